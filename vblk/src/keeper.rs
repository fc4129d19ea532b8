//! Keeps the pages of buffered disks at hand: takes and gives up leases on their files, locks what
//! is read and lets go of what is not ([`Resident`]).
//!
//! One thread, which may wait for storage; workers never wait for it. It looks most often at disks
//! whose file it holds a lease on, since whoever opens such a file waits until it was given up.

use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::resident::Resident;

/// Between two looks at a file under lease: how long another program's open waits.
const LEASED: Duration = Duration::from_millis(20);

/// Between two looks at the others: a twentieth of a second for a disk to become fast.
const IDLE: Duration = Duration::from_millis(50);

/// Between two looks at the machine's memory.
const MEMORY: Duration = Duration::from_secs(1);

/// After so long without a read, everything is let go.
const UNUSED: Duration = Duration::from_secs(60);

/// Nothing more is locked when less than this part of memory is available, in percent, and all is
/// let go below half of it.
const AVAILABLE: u64 = 25;

/// A disk's pages, and what is done for them.
#[derive(Debug)]
struct Ward {
    resident: Weak<Resident>,
    open: bool,
    /// When it was last used, or last tried.
    since: Instant,
    /// mlock refused: tried again with the next lease only.
    full: bool,
}

#[derive(Debug, Default)]
struct State {
    wards: Vec<Ward>,
    stop: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Wards are added and removed whole: what a panicking thread left is consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread, from the first disk on that has pages to keep.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Keeper {
    /// Look after `resident` until it is dropped.
    pub(crate) fn add(&self, resident: &Arc<Resident>) {
        let mut state = self.shared.lock();
        let same = |w: &Ward| w.resident.ptr_eq(&Arc::downgrade(resident));
        if state.wards.iter().any(same) {
            return;
        }
        state.wards.push(Ward {
            resident: Arc::downgrade(resident),
            open: false,
            since: Instant::now(),
            full: false,
        });
        drop(state);
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let shared = Arc::clone(&self.shared);
            let keep = std::thread::Builder::new().name("keeper".into());
            // Without the thread reads go through the kernel, as without leases.
            *thread = keep.spawn(move || run(&shared)).ok();
        }
        self.shared.changed.notify_one();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_one();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(shared: &Shared) {
    let mut state = shared.lock();
    let (mut memory, mut looked) = (available(), Instant::now());
    while !state.stop {
        let now = Instant::now();
        if now.duration_since(looked) >= MEMORY {
            (memory, looked) = (available(), now);
        }
        state.wards.retain_mut(|ward| tend(ward, now, memory));
        let pause = if state.wards.iter().any(|w| w.open) {
            LEASED
        } else {
            IDLE
        };
        let waited = shared.changed.wait_timeout(state, pause);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
    for ward in &state.wards {
        if let Some(resident) = ward.resident.upgrade().filter(|_| ward.open) {
            resident.close();
        }
    }
}

/// One look at a disk; false once it is gone or lost.
fn tend(ward: &mut Ward, now: Instant, memory: u64) -> bool {
    let Some(resident) = ward.resident.upgrade() else {
        return false;
    };
    if !ward.open {
        if memory >= AVAILABLE && resident.is_asked() && resident.open() {
            (ward.open, ward.since, ward.full) = (true, now, false);
        }
        return !resident.is_lost();
    }
    if resident.take_used() {
        ward.since = now;
    }
    let unused = now.duration_since(ward.since) > UNUSED;
    if unused || memory < AVAILABLE / 2 || !resident.is_safe() {
        resident.close();
        ward.open = false;
        if resident.is_lost() {
            warn!("pages of a disk's file were lost; it is read through the kernel from now on");
        }
        return !resident.is_lost();
    }
    if memory >= AVAILABLE
        && !ward.full
        && let Err(error) = resident.promote()
    {
        ward.full = true;
        info!(%error, locked = resident.locked(), "no more of a disk's cached pages can be \
            locked; raise LimitMEMLOCK or grant CAP_IPC_LOCK, or say resident=0");
    }
    true
}

/// Memory that is available, in percent; 0 if that is unknown.
fn available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    percent_available(&text).unwrap_or(0)
}

/// `MemAvailable` of `MemTotal` in /proc/meminfo (proc_meminfo(5)), in percent.
fn percent_available(meminfo: &str) -> Option<u64> {
    let value = |key: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    (value("MemAvailable:")? * 100).checked_div(value("MemTotal:")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_kernels_table() {
        let table = "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:   250 kB\n";
        assert_eq!(percent_available(table), Some(25));
        assert_eq!(
            percent_available("MemTotal: 0 kB\nMemAvailable: 1 kB\n"),
            None
        );
        assert_eq!(percent_available("nothing"), None);
        assert!((1..=100).contains(&available()));
    }
}
