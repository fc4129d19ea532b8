//! Reads for a copier of a disk that nobody but its worker may read: a mirror, whose writes are on
//! their way to several disks, or an export whose server promises nothing about two connections.
//! And flushes, for whoever wants all that was acknowledged to be durable.
//!
//! Either is a request like a guest's, with an origin that is no queue. Its memory is the copier's,
//! and ours for as long as it is in flight; nothing is left on the worker by a copier that goes
//! away.

use rustix::io::Errno;
use towpath_common::clock::Cycles;
use towpath_common::mailbox::ReplyTo;
use towpath_common::mem::Segment;

use super::{BlkPlane, DiskKey};
use crate::engine::{Engine, Guest};
use crate::io::{Finished, Origin, Started};
use crate::request::{Command, Data, Request, Status};

/// The number of no queue.
const NO_QUEUE: u32 = u32::MAX;

/// One read: all of a segment, from a place on a disk.
#[derive(Debug)]
pub struct Fetch {
    /// Memory of the asker's.
    pub guest: Guest,
    /// First byte on the disk.
    pub offset: u64,
    /// Where the bytes go.
    pub data: Segment,
    /// Where the status goes.
    pub status: Segment,
}

/// One flush.
#[derive(Debug)]
pub struct Flush {
    /// Memory of the asker's.
    pub guest: Guest,
    /// Where the status goes.
    pub status: Segment,
}

/// How a read or flush ended; EBUSY if the worker has no room for it now.
pub type Fetched = Result<(), Errno>;

/// Answers owed to copiers, by the ids of their requests.
#[derive(Debug, Default)]
pub(super) struct Loans(Vec<Option<ReplyTo<Fetched>>>);

fn verdict(f: &Finished<'_>) -> Fetched {
    match f.status {
        Status::Ok => Ok(()),
        _ => Err(f.errno.unwrap_or(Errno::IO)),
    }
}

impl Loans {
    fn begin(&mut self, reply: ReplyTo<Fetched>) -> Option<u16> {
        let free = self.0.iter().position(Option::is_none);
        let at = free.unwrap_or(self.0.len());
        let id = u16::try_from(at).ok()?;
        match self.0.get_mut(at) {
            Some(place) => *place = Some(reply),
            None => self.0.push(Some(reply)),
        }
        Some(id)
    }

    fn answer(&mut self, id: u16, fetched: Fetched) {
        let place = self.0.get_mut(usize::from(id));
        if let Some(reply) = place.and_then(Option::take) {
            reply.send(fetched);
        }
    }

    /// A request of no queue ended.
    #[cold]
    pub(super) fn ended(&mut self, f: &Finished<'_>) {
        if f.origin.queue == NO_QUEUE {
            self.answer(f.origin.id, verdict(f));
        }
    }
}

impl<E: Engine> BlkPlane<E> {
    /// Begin a read; the answer comes when it ended. Of an unknown disk the reply is dropped.
    pub(super) fn fetch(
        &mut self,
        key: DiskKey,
        fetch: &Fetch,
        reply: ReplyTo<Fetched>,
        now: Cycles,
    ) {
        let segments = [fetch.data];
        let command = Command::Read {
            offset: fetch.offset,
            data: Data::over(&segments, fetch.data.len().into()),
        };
        let status = fetch.status;
        self.lend(key, &fetch.guest, &Request { command, status }, reply, now);
    }

    /// Begin a flush, likewise.
    pub(super) fn flush(
        &mut self,
        key: DiskKey,
        flush: &Flush,
        reply: ReplyTo<Fetched>,
        now: Cycles,
    ) {
        let (command, status) = (Command::Flush, flush.status);
        self.lend(key, &flush.guest, &Request { command, status }, reply, now);
    }

    fn lend(
        &mut self,
        key: DiskKey,
        guest: &Guest,
        request: &Request<'_>,
        reply: ReplyTo<Fetched>,
        now: Cycles,
    ) {
        let Some((_, disk)) = self.find(key) else {
            return;
        };
        let disk = disk.id;
        let Ok(mem) = self.io.adopt(guest) else {
            reply.send(Err(Errno::NOMEM));
            return;
        };
        if let Some(id) = self.loans.begin(reply) {
            let origin = Origin {
                queue: NO_QUEUE,
                id,
            };
            match self.io.start(request, origin, mem, disk, now) {
                Started::Done(f) | Started::Copied(f) => self.loans.answer(id, verdict(&f)),
                Started::InFlight => {}
            }
        }
        // What is in flight keeps it.
        self.io.release(mem);
    }

    /// A copier is told what failed, whatever the disk's policy is for its guest.
    #[cold]
    pub(super) fn end_loans(&mut self) {
        self.io.end_holds(NO_QUEUE);
    }
}
