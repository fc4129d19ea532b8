//! What a slot does next: the mechanism behind [`Io`], and the only code that looks at results.
//!
//! Every function here ends in an outcome, or in the slot being in the engine or among the waiting
//! (None). None is never returned for a slot that is in neither: it would be lost.

use rustix::io::Errno;

use super::bounce::{CHUNK, ZERO_BYTES};
use super::{Cycles, Io, Outcome};
use crate::engine::{DiskId, Engine, Op, Token, Verb, pieces};
use crate::policy::Verdict;
use crate::request::Kind;

/// Tries in a row that may end in EAGAIN or EINTR before a request fails. Both are rare through
/// io_uring, which waits by itself; a device that says so this often is broken.
pub(super) const MAX_TRIES: u16 = 1000;

impl<E: Engine> Io<E> {
    /// An operation ended with `result`: drive its request on, or say how it ends.
    #[inline]
    pub(super) fn step(&mut self, token: Token, result: i32) -> Option<Outcome> {
        let slot = self.slab.get_mut(token);
        self.delegated -= u32::from(std::mem::take(&mut slot.delegated));
        if slot.gated {
            self.open_gate(token);
        }
        let slot = self.slab.get_mut(token);
        let Ok(moved) = u64::try_from(result) else {
            return self.setback(token, Errno::from_raw_os_error(result.wrapping_neg()));
        };
        match slot.verb {
            Verb::Read | Verb::Write if slot.buffer.is_none() && moved == slot.len && moved > 0 => {
                slot.done = slot.len;
                self.extent_done(token)
            }
            Verb::Read | Verb::Write => self.partly_done(token, moved),
            Verb::Sync | Verb::Punch | Verb::Zero | Verb::Discard => self.extent_done(token),
        }
    }

    /// A part of an extent was moved: keep it and go on with the rest.
    #[cold]
    fn partly_done(&mut self, token: Token, moved: u64) -> Option<Outcome> {
        let slot = *self.slab.get(token);
        let target = self.disks.get(slot.disk.0);
        let left = slot.len - slot.done;
        let mut bytes = moved;
        if bytes < left && target.direct() {
            // O_DIRECT goes on only from a whole block.
            bytes = target.block().floor(slot.done + bytes) - slot.done;
        }
        if bytes == 0 || bytes > left {
            return self.give_up(token, Errno::IO);
        }
        if let (Some(buffer), Verb::Read) = (slot.buffer, slot.verb) {
            let mem = self.mems.get(slot.mem.0);
            let (segments, skip) = self.slab.rest(token);
            if !self
                .bounce
                .store(buffer, mem, pieces(segments, skip, bytes))
            {
                return Some(Outcome::failed(Errno::FAULT));
            }
        }
        self.slab.advance(token, bytes);
        self.slab.get_mut(token).tries = 0;
        if bytes == left {
            self.extent_done(token)
        } else {
            self.drive(token)
        }
    }

    /// The current extent is done: was it the last?
    #[inline]
    fn extent_done(&mut self, token: Token) -> Option<Outcome> {
        let slot = self.slab.get_mut(token);
        match slot.kind {
            Kind::Discard | Kind::WriteZeroes if slot.verb != Verb::Sync => {
                slot.before += slot.len;
                (slot.len, slot.done) = (0, 0);
                slot.range += 1;
                self.next_range(token)
            }
            _ => Some(Outcome::OK),
        }
    }

    /// Begin the slot's current range, with the best means this disk has left.
    #[cold]
    pub(super) fn next_range(&mut self, token: Token) -> Option<Outcome> {
        let range = self.slab.range(token);
        let slot = self.slab.get_mut(token);
        let target = self.disks.get(slot.disk.0);
        let Some(range) = range else {
            // fallocate has no RWF_DSYNC.
            if slot.durable && slot.kind == Kind::WriteZeroes {
                slot.verb = Verb::Sync;
                return self.drive(token);
            }
            return Some(Outcome::OK);
        };
        let means: &[Verb] = match (slot.kind, range.unmap) {
            (Kind::Discard, _) if target.trims() => &[Verb::Discard, Verb::Punch],
            (Kind::Discard, _) => &[Verb::Punch],
            (_, true) => &[Verb::Punch, Verb::Zero, Verb::Write],
            (_, false) => &[Verb::Zero, Verb::Write],
        };
        let Some(verb) = means.iter().copied().find(|v| target.can(*v)) else {
            return Some(Outcome::unsupported());
        };
        slot.verb = verb;
        (slot.offset, slot.len, slot.done) = (range.offset, u64::from(range.len), 0);
        self.drive(token)
    }

    /// An operation failed: try again, try other means, or give up.
    #[cold]
    fn setback(&mut self, token: Token, errno: Errno) -> Option<Outcome> {
        let slot = self.slab.get_mut(token);
        let target = self.disks.get(slot.disk.0);
        match (errno, slot.verb) {
            (Errno::AGAIN | Errno::INTR, _) if slot.tries < MAX_TRIES => {
                slot.tries += 1;
                self.waiting.push_back(token);
                None
            }
            (
                Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV,
                verb @ (Verb::Punch | Verb::Zero | Verb::Discard),
            ) => {
                target.cannot(verb);
                self.next_range(token)
            }
            (_, verb) => {
                if verb == Verb::Sync {
                    target.fail_sync();
                }
                self.give_up(token, errno)
            }
        }
    }

    /// The storage will not do it now: what the disk's policy says about that.
    #[cold]
    fn give_up(&mut self, token: Token, errno: Errno) -> Option<Outcome> {
        let slot = self.slab.get_mut(token);
        let policy = self.disks.get(slot.disk.0).policy();
        match policy.judge(slot.verb, errno) {
            Verdict::Hold if !slot.last_try => {
                policy.hold();
                slot.tries = 0;
                self.held.push((token, errno));
                None
            }
            _ => Some(Outcome::failed(errno)),
        }
    }

    /// What was pushed for the first time since the last call was submitted at `now`.
    #[inline]
    pub fn stamp(&mut self, now: Cycles) {
        for token in self.fresh.drain(..) {
            self.slab.get_mut(token).launch(now);
        }
    }

    /// Requests in flight on `disk`.
    #[must_use]
    pub fn in_flight_on(&self, disk: DiskId) -> u32 {
        self.disks.in_flight(disk.0)
    }

    /// Requests of `disk` that can still be started. No disk has more slots than are left to the
    /// others: one whose storage hangs ends up with half of them, and `n` with an `n + 1`th each.
    #[inline]
    #[must_use]
    pub fn room_for(&self, disk: DiskId) -> usize {
        let taken = self.disks.in_flight(disk.0) as usize;
        self.slab.room().saturating_sub(taken).div_ceil(2)
    }

    /// Requests wait for the storage to get better.
    #[inline]
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// A disk with held requests and what the storage said last.
    #[must_use]
    pub fn held(&self) -> Option<(DiskId, Errno)> {
        let (token, errno) = self.held.last()?;
        Some((self.slab.get(*token).disk, *errno))
    }

    /// Try what is held again, from the next [`Io::reap`] on.
    #[cold]
    pub fn retry(&mut self) {
        for (token, _) in self.held.drain(..) {
            self.disks
                .get(self.slab.get(token).disk.0)
                .policy()
                .release();
            self.waiting.push_back(token);
        }
    }

    /// Try what is held of `queue` once more, and then tell.
    #[cold]
    pub fn end_holds(&mut self, queue: u32) {
        let Io {
            held,
            slab,
            disks,
            waiting,
            ..
        } = self;
        held.retain(|(token, _)| {
            let slot = slab.get_mut(*token);
            if slot.origin.queue != queue {
                return true;
            }
            slot.last_try = true;
            disks.get(slot.disk.0).policy().release();
            waiting.push_back(*token);
            false
        });
    }

    /// Forget what is held of `queue`, which stays in flight for a successor; how many that are.
    #[cold]
    pub fn drop_holds(&mut self, queue: u32) -> u16 {
        let (mut dropped, mut at) = (0, 0);
        while let Some((token, _)) = self.held.get(at).copied() {
            let slot = self.slab.get(token);
            if slot.origin.queue != queue {
                at += 1;
                continue;
            }
            self.disks.get(slot.disk.0).policy().release();
            self.held.swap_remove(at);
            self.retire(token);
            dropped += 1;
        }
        dropped
    }

    /// Push what the slot has to do next, or let it wait; an outcome if that can never be done.
    #[inline]
    pub(super) fn drive(&mut self, token: Token) -> Option<Outcome> {
        if self.slab.get(token).verb.changes() && !self.may_change(token) {
            self.waiting.push_back(token);
            return None;
        }
        let slot = self.slab.get_mut(token);
        if slot.bounced && slot.buffer.is_none() {
            slot.buffer = self.bounce.take();
            if slot.buffer.is_none() {
                self.waiting.push_back(token);
                return None;
            }
        }
        if self.slab.get(token).verb.deallocates() && !self.shut_gate(token) {
            self.waiting.push_back(token);
            return None;
        }
        let slot = self.slab.get(token);
        let mut op = Op {
            verb: slot.verb,
            disk: slot.disk,
            durable: slot.durable,
            offset: slot.offset + slot.done,
            len: slot.len - slot.done,
            mem: slot.mem,
            segments: &[],
            skip: 0,
        };
        match (slot.kind, slot.buffer) {
            (Kind::Read | Kind::Write, None) => (op.segments, op.skip) = self.slab.rest(token),
            (Kind::Read | Kind::Write, Some(buffer)) => {
                op.len = op.len.min(u64::from(CHUNK));
                if slot.verb == Verb::Write {
                    let mem = self.mems.get(slot.mem.0);
                    let (segments, skip) = self.slab.rest(token);
                    if !self
                        .bounce
                        .load(buffer, mem, pieces(segments, skip, op.len))
                    {
                        return Some(Outcome::failed(Errno::FAULT));
                    }
                }
                (op.mem, op.segments) = (self.pool, self.bounce.segment(buffer));
            }
            (_, _) if slot.verb == Verb::Write => {
                (op.mem, op.segments) = (self.pool, self.bounce.zeroes());
                op.len = op.len.min(ZERO_BYTES);
            }
            (_, _) => {}
        }
        match self.engine.push(token, &op) {
            Ok(()) => {
                let slot = self.slab.get_mut(token);
                slot.delegated = self.disks.get(slot.disk.0).delegates(slot.verb);
                if slot.launched == 0 && self.fresh.len() < self.fresh.capacity() {
                    self.fresh.push(token);
                }
                self.delegated += u32::from(slot.delegated);
                None
            }
            Err(Errno::AGAIN) => {
                self.waiting.push_back(token);
                None
            }
            Err(errno) => Some(Outcome::failed(errno)),
        }
    }

    /// Tell the disk's tracker, if it has one, what the slot is going to change; false if that must
    /// not change yet.
    #[inline]
    fn may_change(&self, token: Token) -> bool {
        let slot = self.slab.get(token);
        let tracker = self.disks.get(slot.disk.0).tracker();
        let (at, len) = (slot.offset + slot.done, slot.len - slot.done);
        tracker.is_none_or(|tracker| tracker.admit(at, len))
    }

    /// Keep readers of resident pages away from what the slot is going to take out of the file;
    /// false if one is there right now.
    #[cold]
    fn shut_gate(&mut self, token: Token) -> bool {
        let slot = self.slab.get_mut(token);
        let Some(resident) = self.disks.get(slot.disk.0).resident() else {
            return true;
        };
        if !std::mem::replace(&mut slot.gated, true) {
            resident.begin_change();
        }
        resident.may_change(slot.offset + slot.done, slot.len - slot.done)
    }

    /// Undo [`Io::shut_gate`].
    #[cold]
    pub(super) fn open_gate(&mut self, token: Token) {
        let slot = self.slab.get_mut(token);
        if std::mem::take(&mut slot.gated)
            && let Some(resident) = self.disks.get(slot.disk.0).resident()
        {
            resident.end_change();
        }
    }
}
