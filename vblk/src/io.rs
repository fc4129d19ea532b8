//! From a request to its end: the one place that knows what to do when the device does less than it
//! was asked.
//!
//! [`Io::start`] puts a checked request into a slot and gives the engine its first operation;
//! [`Io::reap`] takes completions and either finishes the request or drives it on. `drive` is all
//! there is of mechanism: it looks at what the slot still has to do and pushes the next operation,
//! be it the rest of a short transfer, one more try, the next chunk through a bounce buffer, the
//! next range, or zeroes in place of a refused fallocate. Where there is no room (the engine's
//! queue, the bounce pool), the slot waits its turn and is driven again by `reap`.
//!
//! - A request finishes exactly once, and with success only if every byte of it was moved.
//! - Each request has at most one operation in flight.
//! - An fsync that failed makes every later FLUSH of that disk fail: the pages it was about are
//!   marked clean and lost, and a second fsync would lie.
//! - Nothing here allocates once [`Io::new`] returned, except for attaching and adopting.

mod bounce;
mod copy;
mod drive;
mod table;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::io::Errno;
use towpath_common::mem::{Mem, Segment};

use crate::disk::Disk;
use crate::engine::{
    Completions, DiskId, Engine, Guest, MAX_DISKS, MAX_MEMS, MemId, REAP, Token, Verb,
};
use crate::request::{Command, Data, Kind, Request, Status};
use crate::slot::Slab;
pub use crate::slot::{Cycles, Origin};
use bounce::Bounce;
use table::Table;

/// A request that ended.
#[derive(Debug)]
pub struct Finished<'a> {
    /// Where it came from.
    pub origin: Origin,
    /// What it was.
    pub kind: Kind,
    /// What to write to [`Finished::status_at`].
    pub status: Status,
    /// Where the status byte goes.
    pub status_at: Segment,
    /// Bytes written to guest memory, the status byte included: the used element's length.
    pub written: u32,
    /// Bytes moved, discarded or zeroed on the disk.
    pub bytes: u64,
    /// What the device said, if it failed.
    pub errno: Option<Errno>,
    /// The moment given to [`Io::start`].
    pub started: Cycles,
    /// When its first operation was submitted, if any was and [`Io::stamp`] told.
    pub submitted: Option<Cycles>,
    /// First byte on the disk of what was done last.
    pub offset: u64,
    /// The guest's memory.
    pub mem: &'a Mem,
    /// The data segments that may have been written, for the dirty log.
    pub dirty: Data<'a>,
}

/// What became of a request that was started.
#[derive(Debug)]
pub enum Started<'a> {
    /// It ended at once.
    Done(Finished<'a>),
    /// It was read from resident pages, at once.
    Copied(Finished<'a>),
    /// It will be told of by [`Io::reap`].
    InFlight,
}

/// How a request ends.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    status: Status,
    errno: Option<Errno>,
}

impl Outcome {
    const OK: Outcome = Outcome {
        status: Status::Ok,
        errno: None,
    };

    #[cold]
    fn failed(errno: Errno) -> Outcome {
        Outcome {
            status: Status::IoErr,
            errno: Some(errno),
        }
    }

    #[cold]
    fn unsupported() -> Outcome {
        Outcome {
            status: Status::Unsupported,
            errno: Some(Errno::OPNOTSUPP),
        }
    }
}

/// All requests in flight of one worker, over its engine.
#[derive(Debug)]
pub struct Io<E: Engine> {
    engine: E,
    slab: Slab,
    disks: Table<Disk>,
    mems: Table<Mem>,
    bounce: Bounce,
    /// The place of the bounce buffers' memory in the engine.
    pool: MemId,
    /// Slots that found no room, to be driven again in this order.
    waiting: VecDeque<Token>,
    /// Slots whose storage said no, to be tried again after a while (`crate::policy`).
    held: Vec<(Token, Errno)>,
    /// Slots whose first operation was pushed since the last [`Io::stamp`].
    fresh: Vec<Token>,
    /// Operations in flight that kernel threads carry out.
    delegated: u32,
    /// Operations that `submit` had to leave in the engine's queue.
    backlog: usize,
    completions: Box<Completions>,
}

fn full(what: &'static str, most: u32) -> io::Error {
    io::Error::other(format!("more than {most} {what} on one worker"))
}

impl<E: Engine> Io<E> {
    /// Room for `capacity` requests, over an engine that takes as many operations.
    ///
    /// # Errors
    /// If the bounce buffers cannot be made.
    pub fn new(mut engine: E, capacity: u32) -> io::Result<Io<E>> {
        let bounce = Bounce::new().map_err(io::Error::other)?;
        let mut mems = Table::new(MAX_MEMS, Mem::default());
        let pool = mems.vacancy().ok_or(io::ErrorKind::OutOfMemory)?;
        mems.put(pool, Arc::clone(bounce.mem()));
        let pool = MemId(pool);
        engine.set_memory(pool, Some(&Guest::plain(Arc::clone(bounce.mem()))))?;
        Ok(Io {
            engine,
            slab: Slab::new(capacity),
            disks: Table::new(MAX_DISKS, Disk::null(0)),
            mems,
            bounce,
            pool,
            waiting: VecDeque::with_capacity(capacity as usize),
            held: Vec::with_capacity(capacity as usize),
            fresh: Vec::with_capacity(capacity as usize),
            delegated: 0,
            backlog: 0,
            completions: Box::default(),
        })
    }

    /// The engine, to wait on.
    pub fn engine(&self) -> &E {
        &self.engine
    }

    #[cfg(test)]
    pub(crate) fn engine_mut(&mut self) -> &mut E {
        &mut self.engine
    }

    /// Requests that can still be started.
    #[inline]
    #[must_use]
    pub fn room(&self) -> usize {
        self.slab.room()
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slab.taken()
    }

    /// Requests in flight that use the memory `mem`.
    #[must_use]
    pub fn in_flight_of(&self, mem: MemId) -> u32 {
        self.mems.in_flight(mem.0)
    }

    /// True if something waits for the worker rather than for the device, so that it must call
    /// [`Io::reap`] and [`Io::submit`] again before it sleeps.
    #[must_use]
    pub fn restless(&self) -> bool {
        !self.waiting.is_empty() || self.backlog > 0
    }

    /// Ask the engine for a wake-up by the next completion. True if there is something to do
    /// already: [`Io::reap`] and [`Io::submit`] rather than sleep.
    #[must_use]
    pub fn arm(&mut self) -> bool {
        self.engine.arm() || self.restless()
    }

    /// Undo [`Io::arm`], after sleeping or when it said no.
    pub fn disarm(&mut self) {
        self.engine.disarm();
    }

    /// True if all that is in flight is in the hands of other threads, the kernel's or a backup's,
    /// which need a processor to get on: a worker that only spins would take that away from them.
    #[inline]
    #[must_use]
    pub fn is_patient(&self) -> bool {
        let lent = self.delegated as usize + self.waiting.len();
        (lent > 0 && lent == self.slab.taken()) || self.engine.is_patient()
    }

    /// Serve `disk` from now on. A disk attached twice has one id, and must be detached twice.
    ///
    /// # Errors
    /// More than [`MAX_DISKS`], or what the engine said.
    pub fn attach(&mut self, disk: &Arc<Disk>) -> io::Result<DiskId> {
        if let Some(id) = self.disks.share(disk) {
            return Ok(DiskId(id));
        }
        let id = self
            .disks
            .vacancy()
            .ok_or_else(|| full("disks", MAX_DISKS))?;
        if !disk.is_null() {
            self.engine.set_disk(DiskId(id), Some(disk))?;
        }
        self.disks.put(id, Arc::clone(disk));
        Ok(DiskId(id))
    }

    /// Let go of a disk. It is closed once its last request finished.
    pub fn detach(&mut self, disk: DiskId) {
        if self.disks.remove(disk.0) {
            self.forget_disk(disk);
        }
    }

    /// Use a guest's memory from now on. Memory adopted twice has one id, and must be released
    /// twice.
    ///
    /// # Errors
    /// More than [`MAX_MEMS`], or what the engine said.
    pub fn adopt(&mut self, guest: &Guest) -> io::Result<MemId> {
        if let Some(id) = self.mems.share(guest.mem()) {
            return Ok(MemId(id));
        }
        let id = self
            .mems
            .vacancy()
            .ok_or_else(|| full("memory maps", MAX_MEMS))?;
        self.engine.set_memory(MemId(id), Some(guest))?;
        self.mems.put(id, Arc::clone(guest.mem()));
        Ok(MemId(id))
    }

    /// Let go of a guest's memory. It is unmapped once the last request that uses it finished.
    pub fn release(&mut self, mem: MemId) {
        if self.mems.remove(mem.0) {
            self.forget_mem(mem);
        }
    }

    fn forget_disk(&mut self, disk: DiskId) {
        // Clearing a place fails only if there never was one, as for a null disk.
        let _ = self.engine.set_disk(disk, None);
    }

    fn forget_mem(&mut self, mem: MemId) {
        // No request names it, so no operation is in flight: it cannot be busy.
        let _ = self.engine.set_memory(mem, None);
    }

    /// Start a request. The caller asked [`Io::room`] before; without room it fails with EBUSY.
    ///
    /// `now` comes back in [`Finished::started`].
    #[inline]
    pub fn start<'a>(
        &'a mut self,
        request: &Request<'a>,
        origin: Origin,
        mem: MemId,
        disk: DiskId,
        now: Cycles,
    ) -> Started<'a> {
        let outcome = match self.disks.find(disk.0) {
            None => Some(Outcome::failed(Errno::NODEV)),
            Some(target) => known(&request.command, target),
        };
        if outcome.is_none() && self.copy(request, mem, disk) {
            return Started::Copied(self.copied(request, origin, mem, now));
        }
        let outcome = outcome.or_else(|| self.launch(request, origin, mem, disk, now));
        let Some(outcome) = outcome else {
            return Started::InFlight;
        };
        let command = &request.command;
        let mem = self.mems.get(mem.0);
        let mut finished = Finished {
            origin,
            kind: command.kind(),
            status: outcome.status,
            status_at: request.status,
            written: 1,
            bytes: 0,
            errno: outcome.errno,
            started: now,
            submitted: None,
            offset: 0,
            mem,
            dirty: Data::default(),
        };
        if outcome.status == Status::Ok {
            match command {
                Command::Read { data, .. } | Command::Write { data, .. } => {
                    finished.bytes = data.len();
                }
                Command::Discard(ranges) | Command::WriteZeroes(ranges) => {
                    finished.bytes = ranges.iter().map(|r| u64::from(r.len)).sum();
                }
                Command::GetId { data } => {
                    let serial = self.disks.get(disk.0).serial().bytes();
                    let n = data.write(mem, serial);
                    finished.written += u32::try_from(n).unwrap_or(0);
                    finished.dirty = *data;
                }
                Command::Flush => {}
            }
        }
        Started::Done(finished)
    }

    /// Put the request into a slot and begin; an outcome if it ended at once.
    #[inline]
    fn launch(
        &mut self,
        request: &Request<'_>,
        origin: Origin,
        mem: MemId,
        disk: DiskId,
        now: Cycles,
    ) -> Option<Outcome> {
        let target = self.disks.get(disk.0);
        let Some((token, slot)) = self.slab.take() else {
            return Some(Outcome::failed(Errno::BUSY));
        };
        slot.begin(request.command.kind(), origin, request.status);
        (slot.disk, slot.mem, slot.started) = (disk, mem, now);
        slot.durable = target.write_through();
        if let Command::Read { offset, data } | Command::Write { offset, data } = &request.command {
            (slot.offset, slot.len) = (*offset, data.len());
            slot.verb = match slot.kind {
                Kind::Read => Verb::Read,
                _ => Verb::Write,
            };
            let mem = self.mems.get(mem.0);
            let fits = |s: Segment| target.takes(mem.host(s).addr(), s.len());
            slot.bounced = target.direct() && !data.iter().all(fits);
        }
        self.disks.pin(disk.0);
        self.mems.pin(mem.0);
        let outcome = match &request.command {
            Command::Read { data, .. } | Command::Write { data, .. } => {
                self.slab.keep_data(token, data);
                self.drive(token)
            }
            Command::Discard(ranges) | Command::WriteZeroes(ranges) => {
                self.slab.keep_ranges(token, ranges);
                self.next_range(token)
            }
            Command::Flush | Command::GetId { .. } => self.drive(token),
        };
        if outcome.is_some() {
            self.retire(token);
        }
        outcome
    }

    /// Start all that was pushed since the last call; how many operations that left in the queue
    /// because the kernel would not take them now (mostly none).
    #[inline]
    pub fn submit(&mut self) -> usize {
        self.backlog = self.engine.submit();
        self.backlog
    }

    /// Take completions, drive requests on and tell of those that finished; how many did. What was
    /// driven on needs a [`Io::submit`].
    #[inline]
    pub fn reap(&mut self, mut done: impl FnMut(Finished<'_>)) -> usize {
        let before = self.slab.room();
        // One batch more than the slots fill: the bound is the loop's, not the engine's.
        for _ in 0..=self.slab.taken() / REAP {
            self.completions.clear();
            self.engine.reap(&mut self.completions);
            for i in 0..self.completions.len() {
                let one = self.completions[i];
                if let Some(outcome) = self.step(one.token, one.result) {
                    self.finish(one.token, outcome, &mut done);
                }
            }
            if !self.completions.is_full() {
                break;
            }
        }
        for _ in 0..self.waiting.len() {
            if let Some(token) = self.waiting.pop_front()
                && let Some(outcome) = self.drive(token)
            {
                self.finish(token, outcome, &mut done);
            }
        }
        self.slab.room() - before
    }

    /// Tell of a request that ended and give its slot back.
    #[inline]
    fn finish(&mut self, token: Token, outcome: Outcome, done: &mut impl FnMut(Finished<'_>)) {
        let slot = self.slab.get(token);
        let read = slot.kind == Kind::Read;
        let written = if read { slot.done + 1 } else { 1 };
        done(Finished {
            origin: slot.origin,
            kind: slot.kind,
            status: outcome.status,
            status_at: slot.status_at,
            written: u32::try_from(written).unwrap_or(u32::MAX),
            bytes: slot.before + slot.done,
            errno: outcome.errno,
            started: slot.started,
            submitted: slot.submitted(),
            offset: slot.offset,
            mem: self.mems.get(slot.mem.0),
            dirty: if read {
                Data::over(self.slab.segments(token), slot.len)
            } else {
                Data::default()
            },
        });
        self.retire(token);
    }

    /// Give a slot back, and all it held.
    #[inline]
    pub(super) fn retire(&mut self, token: Token) {
        if self.slab.get(token).gated {
            self.open_gate(token);
        }
        let slot = self.slab.get(token);
        let (disk, mem, buffer) = (slot.disk, slot.mem, slot.buffer);
        if let Some(buffer) = buffer {
            self.bounce.put(buffer);
        }
        self.slab.free(token);
        if self.disks.unpin(disk.0) {
            self.forget_disk(disk);
        }
        if self.mems.unpin(mem.0) {
            self.forget_mem(mem);
        }
    }
}

impl<E: Engine + AsFd> AsFd for Io<E> {
    /// Readable, while armed, once there are completions to reap.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.engine.as_fd()
    }
}

/// What is known of a request's end without asking the device.
#[inline]
fn known(command: &Command<'_>, target: &Disk) -> Option<Outcome> {
    if target.is_null() {
        return Some(Outcome::OK);
    }
    match command {
        Command::GetId { .. } => Some(Outcome::OK),
        _ if target.policy().has_failed() => Some(Outcome::failed(Errno::IO)),
        // Firmware flushes read-only disks as well; there is nothing to do.
        Command::Flush if target.read_only() => Some(Outcome::OK),
        Command::Flush if target.sync_failed() => Some(Outcome::failed(Errno::IO)),
        Command::Read { data, .. } | Command::Write { data, .. } if data.is_empty() => {
            Some(Outcome::OK)
        }
        _ => None,
    }
}

#[cfg(test)]
mod durable;
#[cfg(test)]
mod tests;
