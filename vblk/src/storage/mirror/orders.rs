//! What operators have a mirror do, and its record as a file while no worker writes it.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::record::{self, Record, RecordError};
use super::{Gauge, Inside, Mirror, MirrorError, Order, Shared, Standing, fits, unknown};
use crate::disk::Disk;
use crate::storage::Shape;

impl Mirror {
    /// Which disk an operator means: its number, counted from 1, or its name.
    ///
    /// # Errors
    /// [`MirrorError::Refused`].
    pub fn find(&self, which: &str) -> Result<usize, MirrorError> {
        let names = &self.shared.names;
        let number = which.parse::<usize>().ok();
        let number = number.filter(|n| (1..=names.len()).contains(n));
        let by_name = || names.iter().position(|n| n == which);
        number.map(|n| n - 1).or_else(by_name).ok_or_else(|| {
            let all: Vec<String> = (1..)
                .zip(names)
                .map(|(i, n)| format!("{i} ({n})"))
                .collect();
            let all = all.join(", ");
            MirrorError::Refused(format!("the mirror has no disk {which:?}; there are {all}"))
        })
    }

    /// Use disk `index` no more. Blocks until that is so, for a few seconds at most.
    ///
    /// # Errors
    /// [`MirrorError::Refused`].
    pub fn fail(&self, index: usize) -> Result<(), MirrorError> {
        let shared = &self.shared;
        let gauge = shared.gauges.get(index).ok_or_else(unknown)?;
        let current = |(i, g): (usize, &Gauge)| i != index && g.standing() == Standing::Current;
        if !shared.gauges.iter().enumerate().any(current) {
            let why = "it is the only current disk; let another one catch up first";
            return Err(MirrorError::Refused(why.to_owned()));
        }
        self.order(Order::Fail(index), || gauge.standing() == Standing::Failed)
    }

    /// Use disk `index` again: open it anew and copy what it missed, or everything. Blocks until
    /// that has begun.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub fn add(&self, index: usize, full: bool) -> Result<(), MirrorError> {
        let gauge = self.shared.gauges.get(index).ok_or_else(unknown)?;
        let disk = self.inside.reopen(&self.shared, index)?;
        self.order(Order::Add(index, disk, full), || {
            gauge.standing() != Standing::Failed
        })
    }

    fn order(&self, order: Order, done: impl Fn() -> bool) -> Result<(), MirrorError> {
        let busy = || MirrorError::Refused("the mirror's worker does not answer".to_owned());
        self.shared.orders.push(order).map_err(|_| busy())?;
        self.shared.ring();
        for _ in 0..500 {
            if done() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(busy())
    }
}

impl Inside {
    /// Open a failed disk anew.
    pub(super) fn reopen(&self, shared: &Shared, index: usize) -> Result<Arc<Disk>, MirrorError> {
        let _alone = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = |why: &str| MirrorError::Refused(why.to_owned());
        let (Some(member), Some(gauge)) = (self.members.get(index), shared.gauges.get(index))
        else {
            return Err(unknown());
        };
        if gauge.standing() != Standing::Failed {
            return Err(refused(
                "the disk has not failed (`vblk mirror fail` takes it out)",
            ));
        }
        if !gauge.closed.load(Ordering::Acquire) {
            return Err(refused(
                "requests to the failed disk have not ended, or its failure is not written down; \
                 try again",
            ));
        }
        // The lock of the file goes with it.
        drop(self.disks().get_mut(index).and_then(Option::take));
        let disk = (member.open)().map_err(|why| MirrorError::Unfit {
            name: member.name.clone(),
            why,
        })?;
        let shape = Shape {
            size: self.size.load(Ordering::Acquire),
            ..self.shape
        };
        fits(member, &disk, &shape)?;
        gauge.rest.store(super::rest::of(&disk), Ordering::Relaxed);
        let disk = Arc::new(disk);
        if let Some(place) = self.disks().get_mut(index) {
            *place = Some(Arc::clone(&disk));
        }
        Ok(disk)
    }
}

/// The record in `file`.
pub(super) fn read(file: &Disk, path: &Path) -> Result<Record, MirrorError> {
    let fd = file.file().ok_or_else(unknown)?;
    let mut bytes = vec![0; usize::try_from(file.size()).unwrap_or(0)];
    let mut at = 0;
    while let Some(rest) = bytes.get_mut(at..).filter(|rest| !rest.is_empty()) {
        let n = rustix::io::pread(fd, rest, at as u64).map_err(|e| RecordError::Io {
            what: "read",
            path: path.to_owned(),
            source: e.into(),
        })?;
        if n == 0 {
            break;
        }
        at += n;
    }
    let path = path.to_owned();
    Ok(Record::parse(&bytes).ok_or(RecordError::Broken { path })?)
}

/// Write `record` to `file`, durably.
pub(super) fn write(file: &Disk, record: &Record, path: &Path) -> Result<(), MirrorError> {
    // Bits first: a head that calls a disk current counts on them.
    put(file, record::BITS_AT, &record.bits(), path)?;
    put(file, record.head.place(), &record.head.encode(), path)
}

/// Write `is` over `was`, which has another size.
pub(super) fn rewrite(
    file: &Disk,
    was: &Record,
    is: &Record,
    path: &Path,
) -> Result<(), MirrorError> {
    for (at, bytes) in steps(was, is) {
        put(file, at, &bytes, path)?;
    }
    Ok(())
}

/// What to write where, each durably before the next, so that at every moment what is read back has
/// the size of one of the two and all that is marked in either. What is marked too much stays so.
pub(super) fn steps(was: &Record, is: &Record) -> [(u64, Vec<u8>); 2] {
    let (old, new) = (was.bits(), is.bits());
    let mut both = vec![0; old.len().max(new.len())];
    for bits in [old, new] {
        for (to, from) in both.iter_mut().zip(bits) {
            *to |= from;
        }
    }
    if was.head.shift != is.head.shift {
        both.fill(0xff);
    }
    [
        (record::BITS_AT, both),
        (is.head.place(), is.head.encode().to_vec()),
    ]
}

/// Write `bytes` to `file`, durably.
fn put(file: &Disk, at: u64, bytes: &[u8], path: &Path) -> Result<(), MirrorError> {
    let fd = file.file().ok_or_else(unknown)?;
    let written = || {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            done += rustix::io::pwrite(fd, rest, at + done as u64)?;
        }
        rustix::fs::fdatasync(fd)
    };
    Ok(written().map_err(|e| RecordError::Io {
        what: "write",
        path: path.to_owned(),
        source: e.into(),
    })?)
}
