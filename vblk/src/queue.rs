//! One virtqueue on its worker: pop, parse, start … finish, put, publish.
//!
//! ```text
//! Ring::pop → Request::parse → Io::start ──(io_uring)── Io::reap → Queue::finish → Ring::put
//!                   └─ refused: status at once ──────────────────────────┘    publish, notify
//! ```
//!
//! Every chain popped is put exactly once, whatever becomes of it, so a queue that drains always
//! ends. A chain that cannot even be answered breaks its ring; those popped before and after it in
//! the same burst are carried out all the same.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use towpath_common::chain::{Burst, Chain};
use towpath_common::clock::Cycles;
use towpath_common::keep::Cell;
use towpath_common::mem::{DirtyLog, Mem, Segment};
use towpath_common::ring::{Ring, Violation};
use towpath_common::session::{Alarm, Attach, Update};

use crate::engine::{DiskId, Engine, MemId};
use crate::io::{Finished, Io, Origin, Started};
use crate::mortal::{Mortal, Point};
use crate::request::{Broken, Data, Kind, Limits, Ranges, Reject, Request, Status};
use crate::stages::Reaped;
use crate::stats::{QueueCounters, QueueShared};
use towpath_common::bell::Bell;

/// A queue that a worker serves.
#[derive(Debug)]
pub struct Queue {
    /// The ring; nobody else touches it.
    pub ring: Ring,
    /// Number of the queue in its device.
    pub index: u16,
    /// Kicked by the driver; registered with the worker's poller.
    pub kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    err: Option<OwnedFd>,
    bell: Bell,
    enabled: bool,
    /// Ends the session.
    pub alarm: Arc<Alarm>,
    /// Where a successor reads whether this queue was being served.
    cell: Option<Cell>,
    /// No more chains are popped: the session wants the ring back.
    pub draining: bool,
    /// Of a queue that is left to a successor: requests that are given up here, and stay in flight.
    pub left: Option<u16>,
    /// Has buffers to publish.
    pub dirty: bool,
    told_broken: bool,
    /// What it did.
    pub counters: QueueCounters,
    /// Completed by the engine in this step.
    pub reaped: Reaped,
    /// Failed in this step: how many, the last kind and errno.
    pub failed: Option<(u64, Kind, i32)>,
}

/// What a visit needs beside the queue.
#[derive(Debug)]
pub struct Visit<'a, E: Engine> {
    /// A death to come.
    pub mortal: &'a mut Mortal,
    /// Requests in flight.
    pub io: &'a mut Io<E>,
    /// Room for chains.
    pub burst: &'a mut Burst,
    /// Room for the ranges of a DISCARD.
    pub ranges: &'a mut Ranges,
    /// The disk.
    pub disk: DiskId,
    /// The guest's memory.
    pub mem: MemId,
    /// What requests are checked against.
    pub limits: &'a Limits,
    /// Key of the queue, found again in [`Finished::origin`].
    pub key: u32,
    /// The time.
    pub now: Cycles,
    /// Chains that may be popped.
    pub most: usize,
    /// [`Visited::bytes`] is wanted.
    pub measured: bool,
}

/// What a visit did.
#[derive(Debug, Default, Clone, Copy)]
pub struct Visited {
    /// Chains popped.
    pub popped: usize,
    /// Requests handed to the engine.
    pub started: u32,
    /// Bytes in the chains popped, if [`Visit::measured`].
    pub bytes: u64,
    /// Reads carried out by copying.
    pub copied: u64,
}

impl Queue {
    /// A queue just handed over by its session; `counters` go on from earlier sessions, and `bell`
    /// signals its eventfds.
    ///
    /// # Errors
    /// If the call fd cannot be signalled.
    pub fn new(
        index: u16,
        attach: Attach,
        mut bell: Bell,
        counters: QueueCounters,
    ) -> io::Result<Queue> {
        let Attach {
            ring,
            kick,
            call,
            err,
            enabled,
            alarm,
            cell,
        } = attach;
        bell.aim(call.as_ref().map(AsFd::as_fd))?;
        let mut queue = Queue {
            ring,
            index,
            kick,
            call,
            err,
            bell,
            enabled,
            alarm,
            cell,
            draining: false,
            left: None,
            dirty: false,
            told_broken: false,
            counters,
            reaped: Reaped::default(),
            failed: None,
        };
        // A predecessor may have died between publishing and notifying; the driver would wait for
        // ever. One interrupt too many is harmless.
        queue.bell.ring();
        Ok(queue)
    }

    /// Give back the ring, for its session, and the bell, which signals nothing any more.
    #[must_use]
    pub fn into_parts(self) -> (Ring, Option<Bell>) {
        let mut bell = self.bell;
        let bell = bell.aim(None).is_ok().then_some(bell);
        (self.ring, bell)
    }

    /// Apply a change that needs no drain.
    pub fn update(&mut self, update: Update) {
        match update {
            Update::Call(fd) => {
                self.call = fd;
                // The session took nothing but an eventfd; without one, the driver polls.
                let _ = self.bell.aim(self.call.as_ref().map(AsFd::as_fd));
                // The driver may have missed what was announced on the old one.
                self.bell.ring();
            }
            Update::Err(fd) => self.err = fd,
            Update::Enabled(enabled) => self.enabled = enabled,
        }
    }

    /// True if chains may be popped.
    #[inline]
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.enabled && !self.draining
    }

    /// Pop a burst and start its requests.
    #[inline]
    pub fn visit<E: Engine>(&mut self, visit: Visit<'_, E>) -> Visited {
        let Visit {
            io,
            burst,
            ranges,
            disk,
            mem,
            limits,
            key,
            now,
            most,
            measured,
            mortal,
        } = visit;
        let mut visited = Visited {
            popped: self.ring.pop(burst, io.room_for(disk).min(most)),
            started: 0,
            bytes: 0,
            copied: 0,
        };
        if visited.popped == 0 {
            self.dirty |= self.is_newly_broken();
            return visited;
        }
        if measured {
            let bytes = |chain: Chain<'_>| chain.readable_len + chain.writable_len;
            visited.bytes = burst.iter().map(bytes).sum();
        }
        if let Some(cell) = &self.cell {
            cell.set_busy(true);
        }
        let memory = Arc::clone(self.ring.mem());
        for chain in burst.iter() {
            let request = match Request::parse(&chain, &memory, limits, ranges) {
                Ok(request) => request,
                Err(reject) => {
                    self.reject(&chain, &memory, reject);
                    continue;
                }
            };
            let origin = Origin {
                queue: key,
                id: chain.id,
            };
            match io.start(&request, origin, mem, disk, now) {
                Started::Done(finished) => self.finish(&finished),
                Started::Copied(finished) => {
                    self.finish(&finished);
                    visited.copied += 1;
                }
                Started::InFlight => visited.started += 1,
            }
        }
        mortal.at(Point::Working);
        if let Some(cell) = &self.cell {
            cell.set_busy(false);
        }
        self.dirty |= self.is_newly_broken();
        visited
    }

    fn is_newly_broken(&self) -> bool {
        self.ring.broken().is_some() && !self.told_broken
    }

    /// Answer a chain that is no request, or break the ring.
    #[cold]
    fn reject(&mut self, chain: &Chain<'_>, mem: &Mem, reject: Reject) {
        let written = match reject {
            Reject::Status {
                status, at, kind, ..
            } => {
                self.counters.refused += 1;
                self.counters.completed(kind, 0);
                self.write_status(mem, at, status);
                1
            }
            Reject::Broken(why) => {
                self.ring.latch(Violation::Request(match why {
                    Broken::NoHeader => "no 16-byte header",
                    Broken::NoStatus => "no writable status byte",
                }));
                0
            }
        };
        self.ring.put(chain.id, written);
        self.dirty = true;
    }

    /// A request ended: tell the driver, in its own time.
    #[inline]
    pub fn finish(&mut self, f: &Finished<'_>) {
        if let Some(log) = self.ring.log() {
            log_data(log, f.mem, &f.dirty);
        }
        self.write_status(f.mem, f.status_at, f.status);
        self.ring.put(f.origin.id, f.written);
        self.counters.completed(f.kind, f.bytes);
        self.dirty = true;
        if let Some(errno) = f.errno {
            let (count, ..) = self.failed.unwrap_or((0, f.kind, 0));
            self.failed = Some((count + 1, f.kind, errno.raw_os_error()));
        }
    }

    #[inline]
    fn write_status(&self, mem: &Mem, at: Segment, status: Status) {
        // The segment was validated with its chain; if it is not of this memory, nothing is hurt.
        let _ = mem.write(at, &[status as u8]);
        if let Some(log) = self.ring.log() {
            log.mark(mem.gpa(at), 1);
        }
    }

    /// What of the disk fails from now on, for a successor: to be called before the driver is told.
    #[cold]
    pub fn note_failures(&self, bits: u64) {
        if let Some(cell) = &self.cell {
            cell.fail(bits);
        }
    }

    /// Publish what was put; true if the driver wants to be notified.
    #[inline]
    #[must_use]
    pub fn publish(&mut self) -> bool {
        self.dirty = false;
        self.ring.publish()
    }

    /// Notify the driver, if it is `wanted`.
    #[inline]
    pub fn notify(&mut self, wanted: bool) {
        if wanted {
            self.counters.notified += 1;
            self.bell.ring();
        } else {
            self.counters.suppressed += 1;
        }
    }

    /// Why the ring broke, the first time this is asked after it did; the front-end is told too.
    #[inline]
    pub fn newly_broken(&mut self) -> Option<Violation> {
        let violation = self.ring.broken()?;
        if std::mem::replace(&mut self.told_broken, true) {
            return None;
        }
        if let Some(err) = &self.err
            && self.bell.aim(Some(err.as_fd())).is_ok()
        {
            self.bell.ring();
        }
        // Work in flight completes and is announced as ever.
        let _ = self.bell.aim(self.call.as_ref().map(AsFd::as_fd));
        Some(violation)
    }

    /// Publish the counters, with where the ring stands.
    pub fn report(&mut self, shared: &QueueShared) {
        self.counters.next_avail = self.ring.next_avail().into();
        self.counters.next_used = self.ring.next_used().into();
        self.counters.in_flight = self.ring.in_flight().into();
        shared.counters.publish(&self.counters);
    }
}

#[cold]
fn log_data(log: &DirtyLog, mem: &Mem, data: &Data<'_>) {
    for seg in data.iter() {
        log.mark(mem.gpa(seg), seg.len().into());
    }
}
