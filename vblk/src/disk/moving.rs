//! Disks whose lock is held while their queues run, and at no other time: a virtual machine that
//! moves to another VMM has its disk open at both ends, and is served at one.
//!
//! ```text
//! source   queues run, locked ──▶ the last one stops: flushed, unlocked
//! target   open, unlocked                                  ──▶ the first one starts: locked
//! ```

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::Stat;

use super::lock::{lock, unlock};
use super::open::{Spec, fail};
use super::{Disk, DiskError};

/// How often, and how long apart, the lock of somebody who lives is tried: who starts a machine
/// here has stopped it there, and its last requests are done in a moment.
const PATIENCE: u32 = 500;
const PAUSE: Duration = Duration::from_millis(20);

/// What is locked while queues run.
#[derive(Debug)]
pub(super) struct Moving {
    spec: Spec,
    stat: Stat,
    running: Mutex<BTreeSet<u16>>,
}

impl Moving {
    pub(super) fn new(spec: &Spec, stat: Stat) -> Moving {
        Moving {
            spec: spec.clone(),
            stat,
            running: Mutex::default(),
        }
    }

    fn begin(&self, file: BorrowedFd<'_>, queue: u16) -> Result<(), DiskError> {
        // Held while one waits for the lock: the other queues need it as well.
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_empty() {
            self.acquire(file)?;
        }
        running.insert(queue);
        Ok(())
    }

    fn acquire(&self, file: BorrowedFd<'_>) -> Result<(), DiskError> {
        for _ in 0..PATIENCE {
            match lock(file, &self.spec, &self.stat) {
                Err(DiskError::InUse { .. }) => {
                    // What was taken of it must not stop whoever has the rest.
                    unlock(file);
                    std::thread::sleep(PAUSE);
                }
                other => return other,
            }
        }
        lock(file, &self.spec, &self.stat).inspect_err(|_| unlock(file))
    }

    fn end(&self, file: BorrowedFd<'_>, queue: u16) -> Result<(), DiskError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if !running.remove(&queue) || !running.is_empty() {
            return Ok(());
        }
        // Whoever has it next finds all of it.
        let flushed = rustix::fs::fdatasync(file);
        unlock(file);
        flushed.map_err(|e| fail("flush", &self.spec.path, e))
    }
}

impl Disk {
    /// Open a file that is locked only while queues run on it ([`Disk::begin`], [`Disk::end`]).
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open_moving(spec: &Spec) -> Result<Disk, DiskError> {
        Disk::open_as(spec, super::open::Lock::WhileRunning)
    }

    fn moving(&self) -> Option<(&Moving, BorrowedFd<'_>)> {
        Some((self.moving.as_ref()?, self.file()?))
    }

    /// A queue starts to run. May wait for whoever has the disk, ten seconds at most.
    ///
    /// # Errors
    /// [`DiskError::InUse`] if they keep it.
    pub fn begin(&self, queue: u16) -> Result<(), DiskError> {
        let moving = self.moving();
        moving.map_or(Ok(()), |(moving, file)| moving.begin(file, queue))
    }

    /// A queue has stopped, and nothing of it is in flight.
    ///
    /// # Errors
    /// If the storage does not take what was written; the lock is given back all the same.
    pub fn end(&self, queue: u16) -> Result<(), DiskError> {
        let moving = self.moving();
        moving.map_or(Ok(()), |(moving, file)| moving.end(file, queue))
    }
}
