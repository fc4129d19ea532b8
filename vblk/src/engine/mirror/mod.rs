//! A mirror on one worker: what a request becomes on each disk, and when it is done.
//!
//! A write is copied, its regions are marked (`marker`), the copy goes to every disk in use, and
//! the caller is told when all of these have ended and the record says who failed meanwhile. A
//! read goes to one disk, and to the next one if that fails. What overlaps waits in its order.
//! Disks that have to catch up are copied to beside that, chunk by chunk (`copy`).
//! [`crate::storage::mirror`] says what that promises.

mod copy;
mod job;
mod marker;
mod members;
mod pool;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use rustix::io::Errno;
use towpath_common::clock::{Clock, Cycles};
use towpath_common::mem::Segment;

use super::router::Router;
use super::{Completion, DiskId, Engine, Guest, MemId, Op, Token, Verb};
use crate::storage::mirror::{Mirror as Storage, Shared, State};
use copy::Region;
use job::{Job, Kind, Stage};
use marker::Busy;
use members::Here;
use pool::{LARGE, Pool};

/// Bits of a mirror's token that say which disk, or which of its own files.
const PART_BITS: u32 = 4;
/// Bits of a mirror's token that are its own: job and part.
pub(super) const WHAT_BITS: u32 = 21;
/// The job of the operations on its own files, and their parts.
const OWN_JOB: u32 = (1 << (WHAT_BITS - PART_BITS)) - 1;
const BELL: u32 = 0;
const RECORD: u32 = 1;

/// Waiting jobs that are looked at in one go.
const LOOKS: usize = 16;

/// Tries in a row that may end in EAGAIN or EINTR before an operation has failed.
const MAX_TRIES: u16 = 1000;

/// A mirror's part on a worker.
#[derive(Debug)]
pub(super) struct Mirror {
    shared: Arc<Shared>,
    /// None until the worker before has given it back.
    state: Option<Box<State>>,
    clock: Clock,
    /// Added to the tokens of own operations.
    base: u32,
    bell: DiskId,
    bell_busy: bool,
    record: DiskId,
    mem: MemId,
    pool: Pool,
    members: Box<[Here]>,
    jobs: Vec<Job>,
    free: Vec<u32>,
    /// Jobs that change bytes, have begun, and have not been told of.
    active: Vec<u32>,
    /// Jobs that are to change bytes, in their order.
    waiting: VecDeque<u32>,
    marking: Vec<u32>,
    acks: Vec<u32>,
    /// Operations that found no room: job and disk.
    stalled: VecDeque<(u32, usize)>,
    busy: Option<Busy>,
    /// The record could not be written: not before the next ring.
    pause: bool,
    region: Option<Region>,
    cursor: usize,
    /// A settle is under way; when one was last begun.
    settling: Option<crate::storage::mirror::bits::Bits>,
    settled: Cycles,
    /// A disk failed: jobs that wait for it must be looked at.
    review: bool,
    unsettled: bool,
    closing: bool,
    /// It was written down, as far as it can be, that the disks are left as they are.
    rested: bool,
}

impl Mirror {
    /// Places for disks it needs, beside one memory: its disks, its bell, its record.
    pub(super) fn places(storage: &Storage) -> usize {
        storage.shared().gauges.len() + 2
    }

    /// A part of `storage`, whose own operations have tokens from `base` on; `places` are as many
    /// as [`Mirror::places`] said.
    pub(super) fn new<E: Engine>(
        router: &mut Router<E>,
        storage: &Storage,
        places: &[DiskId],
        mem: MemId,
        base: u32,
    ) -> io::Result<Mirror> {
        let shared = Arc::clone(storage.shared());
        let pool = Pool::new()?;
        let (bell, rest) = places.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let (record, rest) = rest.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        router.set_file(*bell, shared.bell())?;
        router.set_disk(*record, Some(storage.record()))?;
        router.set_memory(mem, Some(&Guest::plain(Arc::clone(&pool.mem))))?;
        let mut members = Vec::new();
        for (place, disk) in rest.iter().zip(storage.disks()) {
            members.push(Here::new(router, *place, disk.as_deref())?);
        }
        let clock = shared.clock.clone();
        Ok(Mirror {
            state: shared.take(),
            settled: clock.now(),
            clock,
            shared,
            base,
            bell: *bell,
            bell_busy: false,
            record: *record,
            mem,
            pool,
            members: members.into(),
            jobs: Vec::new(),
            free: Vec::new(),
            active: Vec::new(),
            waiting: VecDeque::new(),
            marking: Vec::new(),
            acks: Vec::new(),
            stalled: VecDeque::new(),
            busy: None,
            pause: false,
            region: None,
            cursor: 0,
            settling: None,
            review: false,
            unsettled: true,
            closing: false,
            rested: false,
        })
    }

    /// All places it has.
    pub(super) fn all_places(&self) -> impl Iterator<Item = DiskId> + '_ {
        let own = [self.bell, self.record];
        own.into_iter().chain(self.members.iter().map(|m| m.place))
    }

    /// The memory it has.
    pub(super) fn memory(&self) -> MemId {
        self.mem
    }

    /// True if [`Mirror::pump`] must be called again soon.
    pub(super) fn is_unsettled(&self) -> bool {
        self.unsettled
    }

    /// Begin to end: what it does of its own ends soon.
    pub(super) fn hang_up(&mut self) {
        self.closing = true;
        self.unsettled = true;
        self.shared.ring();
    }

    /// True once one that hung up can be dropped.
    pub(super) fn is_gone(&self) -> bool {
        let written = self.rested || self.pause || self.state.is_none();
        self.is_over() && !self.bell_busy && self.busy.is_none() && written
    }

    /// True if nothing is to be done any more.
    fn is_over(&self) -> bool {
        self.closing && self.jobs.len() == self.free.len()
    }

    /// Take an operation.
    pub(super) fn push<E: Engine>(
        &mut self,
        router: &mut Router<E>,
        token: Token,
        op: &Op<'_>,
    ) -> Result<(), Errno> {
        if self.state.is_none() || self.shared.is_wanted() {
            return Err(Errno::AGAIN);
        }
        let kind = match op.verb {
            Verb::Read => Kind::Read,
            Verb::Sync => Kind::Sync,
            Verb::Write | Verb::Punch | Verb::Zero => Kind::Change,
            Verb::Discard => return Err(Errno::OPNOTSUPP),
        };
        let index = self.begin(kind, Some(token), op.verb).ok_or(Errno::AGAIN)?;
        let job = self.jobs.get_mut(index as usize).ok_or(Errno::AGAIN)?;
        (job.durable, job.offset, job.len) = (op.durable, op.offset, op.len);
        (job.mem, job.skip) = (op.mem, op.skip);
        if op.verb == Verb::Write {
            job.len = job.len.min(u64::from(LARGE.0));
        }
        if matches!(op.verb, Verb::Read | Verb::Write) {
            job.segments.extend_from_slice(op.segments);
        }
        match kind {
            Kind::Read => self.read(router, index),
            Kind::Sync => {
                let used = self.state.as_ref().map_or(0, |s| s.used());
                self.fly(router, index, used);
            }
            _ => {
                self.waiting.push_back(index);
                if self.waiting.len() == 1 {
                    self.start_waiting(router);
                }
            }
        }
        self.unsettled = true;
        self.shared.flying.store(self.under_way(), Relaxed);
        Ok(())
    }

    fn under_way(&self) -> u32 {
        u32::try_from(self.jobs.len() - self.free.len()).unwrap_or(u32::MAX)
    }

    /// A new job; None if there are too many.
    fn begin(&mut self, kind: Kind, token: Option<Token>, verb: Verb) -> Option<u32> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.jobs.len() >= OWN_JOB as usize => return None,
            None => {
                self.jobs.push(Job::free(self.mem));
                u32::try_from(self.jobs.len() - 1).ok()?
            }
        };
        self.jobs.get_mut(index as usize)?.begin(kind, token, verb);
        Some(index)
    }

    fn job(&mut self, index: u32) -> Option<&mut Job> {
        self.jobs.get_mut(index as usize)
    }

    /// Start jobs that wait, as far as they need not wait for each other or for buffers.
    fn start_waiting<E: Engine>(&mut self, router: &mut Router<E>) {
        let mut at = 0;
        for _ in 0..LOOKS {
            let Some(index) = self.waiting.get(at).copied() else {
                return;
            };
            if self.is_blocked(index, at) || !self.start(router, index) {
                at += 1;
            } else {
                self.waiting.remove(at);
            }
        }
    }

    /// True if a job on the same bytes is before this one, which is number `at` of those waiting.
    fn is_blocked(&self, index: u32, at: usize) -> bool {
        let Some(job) = self.jobs.get(index as usize) else {
            return true;
        };
        let before = self.active.iter().chain(self.waiting.iter().take(at));
        before
            .filter_map(|other| self.jobs.get(*other as usize))
            .any(|other| other.is_exclusive() && other.overlaps(job))
    }

    /// Start a job that is to change bytes; false if there is no buffer for it.
    fn start<E: Engine>(&mut self, router: &mut Router<E>, index: u32) -> bool {
        let Mirror { jobs, pool, .. } = self;
        let Some(job) = jobs.get_mut(index as usize) else {
            return true;
        };
        let copy = job.kind == Kind::Copy;
        if job.verb == Verb::Write || copy {
            job.buffer = pool.take(job.len);
            let Some(buffer) = job.buffer else {
                return false;
            };
            if !copy {
                let from = router.memory(job.mem);
                let pieces = super::pieces(&job.segments, job.skip, job.len);
                let loaded = from
                    .ok_or(Errno::FAULT)
                    .and_then(|m| pool.load(buffer, m, pieces));
                if let Err(errno) = loaded {
                    self.tell(router, index, -errno.raw_os_error());
                    return true;
                }
            }
        }
        self.active.push(index);
        if copy {
            self.start_copy(router, index);
        } else if self.mark(index) {
            let used = self.state.as_ref().map_or(0, |s| s.used());
            self.fly(router, index, used);
        }
        true
    }

    /// Push a job's operation to each of `targets`.
    fn fly<E: Engine>(&mut self, router: &mut Router<E>, index: u32, targets: u8) {
        let now = self.clock.now();
        let Some(job) = self.job(index) else {
            return;
        };
        (job.stage, job.since) = (Stage::Flying, now);
        job.flying |= targets;
        for part in 0..self.members.len() {
            if targets & 1 << part != 0 {
                if let Some(member) = self.members.get_mut(part) {
                    member.in_flight += 1;
                }
                self.push_part(router, index, part);
            }
        }
        if targets == 0 {
            self.look(router, index);
        }
    }

    /// Push what a job has left to do on a disk.
    fn push_part<E: Engine>(&mut self, router: &mut Router<E>, index: u32, part: usize) {
        let Some(job) = self.jobs.get_mut(index as usize) else {
            return;
        };
        let Some(member) = self.members.get_mut(part) else {
            return;
        };
        let done = job.done(part);
        let segments = std::mem::take(&mut job.segments);
        let own: [Segment; 1] = [job
            .buffer
            .map_or(Segment::default(), |b| self.pool.segment(b))];
        let op = Op {
            verb: job.verb,
            disk: member.place,
            durable: job.durable,
            offset: job.offset + done,
            len: job.len - done,
            mem: if job.buffer.is_some() {
                self.mem
            } else {
                job.mem
            },
            segments: if job.buffer.is_some() {
                &own
            } else {
                &segments
            },
            skip: if job.buffer.is_some() {
                u32::try_from(done).unwrap_or(0)
            } else {
                job.skip
            },
        };
        let token = Token(self.base | index << PART_BITS | u32::try_from(part).unwrap_or(0));
        let failed = self
            .state
            .as_ref()
            .is_none_or(|s| s.used() & 1 << part == 0);
        let pushed = if failed {
            Err(Errno::IO)
        } else {
            router.push(token, &op)
        };
        job.segments = segments;
        match pushed {
            Ok(()) => {}
            Err(Errno::AGAIN) => self.stalled.push_back((index, part)),
            Err(errno) => router.done(Completion {
                token,
                result: -errno.raw_os_error(),
            }),
        }
    }

    /// An own operation ended.
    pub(super) fn ended<E: Engine>(&mut self, router: &mut Router<E>, what: u32, result: i32) {
        self.unsettled = true;
        let (index, part) = (what >> PART_BITS, what & ((1 << PART_BITS) - 1));
        if index == OWN_JOB {
            if part == BELL {
                self.bell_busy = false;
                self.attend(router);
            } else {
                self.recorded(router, result);
            }
            return;
        }
        self.part_ended(router, index, part as usize, result);
        self.shared.flying.store(self.under_way(), Relaxed);
    }

    /// Push all that can be pushed.
    pub(super) fn pump<E: Engine>(&mut self, router: &mut Router<E>) {
        self.unsettled = false;
        if !self.bell_busy && !self.closing {
            let seg = [self.pool.bell];
            let op = self.own_op(Verb::Read, self.bell, 0, 8, &seg);
            let token = Token(self.base | OWN_JOB << PART_BITS | BELL);
            self.bell_busy = router.push_file(token, &op).is_ok();
            self.unsettled |= !self.bell_busy;
        }
        if self.state.is_none() {
            return;
        }
        self.start_pump(router);
        self.unsettled |= !self.stalled.is_empty();
    }

    fn start_pump<E: Engine>(&mut self, router: &mut Router<E>) {
        if std::mem::take(&mut self.review) {
            for index in 0..u32::try_from(self.jobs.len()).unwrap_or(0) {
                let stage = self.jobs.get(index as usize).map(|j| j.stage);
                if stage == Some(Stage::Flying) {
                    self.look(router, index);
                }
            }
        }
        for _ in 0..self.stalled.len() {
            if let Some((index, part)) = self.stalled.pop_front() {
                self.push_part(router, index, part);
            }
        }
        self.start_waiting(router);
        let wanted = self.shared.is_wanted();
        if !self.closing && !wanted {
            self.catch_up(router);
        }
        if wanted {
            self.lend();
        }
        self.record_on(router);
    }

    fn own_op<'a>(
        &self,
        verb: Verb,
        disk: DiskId,
        offset: u64,
        len: u32,
        segments: &'a [Segment],
    ) -> Op<'a> {
        Op {
            verb,
            disk,
            durable: verb == Verb::Write,
            offset,
            len: len.into(),
            mem: self.mem,
            segments,
            skip: 0,
        }
    }

    /// A job is over for its caller: say so, and give back what it has.
    fn tell<E: Engine>(&mut self, router: &mut Router<E>, index: u32, result: i32) {
        self.active.retain(|other| *other != index);
        let Some(job) = self.job(index) else {
            return;
        };
        let token = job.token.take();
        if let Some(token) = token {
            router.done(Completion { token, result });
        }
        job.stage = Stage::Lingering;
        if job.flying == 0 {
            self.release(index);
        }
        self.unsettled = true;
    }

    fn release(&mut self, index: u32) {
        let Mirror {
            jobs, pool, free, ..
        } = self;
        if let Some(job) = jobs.get_mut(index as usize)
            && job.stage != Stage::Free
        {
            job.stage = Stage::Free;
            if let Some(buffer) = job.buffer.take() {
                pool.put(buffer);
            }
            free.push(index);
        }
    }
}
