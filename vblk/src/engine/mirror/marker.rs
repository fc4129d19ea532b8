//! What a mirror writes down: marks before the first write, who failed before anything is told.
//!
//! Regions are marked in groups (`State::mark`), and unmarked when nothing of the group was written
//! for a while. One write of the record is in flight at a time; what is wanted meanwhile goes with
//! the next one, so that a burst of writes to fresh regions costs one.

use std::sync::atomic::Ordering::Relaxed;

use rustix::io::Errno;

use super::job::{Job, Kind, Stage};
use super::{Mirror, OWN_JOB, PART_BITS, RECORD};
use crate::engine::router::Router;
use crate::engine::{Engine, Token, Verb};
use crate::storage::mirror::State;
use crate::storage::mirror::bits::Bits;
use crate::storage::mirror::record::{BITS_AT, HEAD, PAGE, PAGE_REGIONS};

/// How long nothing may be written to a region before it is unmarked, in seconds: from one to two
/// of these.
const QUIET_SECONDS: u64 = 5;

/// What is being written.
#[derive(Debug)]
pub(super) enum Busy {
    /// With or without a word that disks are left as they are.
    Head { at_rest: bool },
    /// This page, with these words.
    Page(usize, Vec<u64>),
}

fn is_marked(state: &State, job: &Job) -> bool {
    if state.at_rest {
        return false;
    }
    let (from, to) = state.regions(job.offset, job.len);
    (from..to).all(|region| state.marked.get(region))
}

impl Mirror {
    /// See that the regions of a job are marked; true if they are.
    pub(super) fn mark(&mut self, index: u32) -> bool {
        let (Some(state), Some(job)) = (self.state.as_mut(), self.jobs.get_mut(index as usize))
        else {
            return false;
        };
        let (from, to) = state.regions(job.offset, job.len);
        let mut marked = !state.at_rest;
        if !marked {
            state.wake();
        }
        for region in from..to {
            state.recent.set(region);
            if !state.marked.get(region) {
                marked = false;
                state.mark(region);
            }
        }
        if !marked {
            job.stage = Stage::Marking;
            self.marking.push(index);
            self.unsettled = true;
        }
        marked
    }

    pub(super) fn is_recording_head(&self) -> bool {
        matches!(self.busy, Some(Busy::Head { .. }))
    }

    /// Give the state to whoever serves the mirror next.
    pub(in crate::engine) fn give_back(&mut self) {
        if let Some(state) = self.state.take() {
            self.shared.give_back(state);
        }
        self.shared.flying.store(0, Relaxed);
    }

    /// Give the state to somebody who wants it and brings it back, once nothing is under way. What
    /// is still to be written down is in it.
    pub(super) fn lend(&mut self) {
        if self.jobs.len() == self.free.len() && self.busy.is_none() {
            self.region = None;
            self.give_back();
        }
    }

    /// Write what is to be written down next.
    pub(super) fn record_on<E: Engine>(&mut self, router: &mut Router<E>) {
        let leaves = self.is_over() && !self.rested;
        let Some(state) = self.state.as_mut() else {
            return;
        };
        if self.busy.is_some() || self.pause {
            return;
        }
        if leaves && !state.head_due && !state.due.contains(&true) {
            let gauges = self.shared.gauges.iter();
            state.rest(gauges.map(|gauge| gauge.rest.load(Relaxed)));
            self.rested = true;
        }
        let (segment, offset, len, busy);
        if state.head_due {
            state.head.number += 1;
            let bytes = state.head.encode();
            segment = self.pool.head;
            if !self.pool.mem.write(segment, &bytes) {
                return;
            }
            state.head_due = false;
            len = u32::try_from(HEAD).unwrap_or(0);
            let at_rest = state.head.known.iter().any(|known| known.rest != 0);
            (offset, busy) = (state.head.place(), Busy::Head { at_rest });
        } else if let Some(page) = state.due.iter().position(|due| *due) {
            let words = PAGE_REGIONS / 64;
            let words = state.dirty.words(page * words, words).to_vec();
            let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            bytes.resize(PAGE as usize, 0);
            segment = self.pool.page;
            if !self.pool.mem.write(segment, &bytes) {
                return;
            }
            if let Some(due) = state.due.get_mut(page) {
                *due = false;
            }
            (len, busy) = (PAGE, Busy::Page(page, words));
            offset = BITS_AT + page as u64 * u64::from(PAGE);
        } else {
            return;
        }
        let segment = [segment];
        let mut op = self.own_op(Verb::Write, self.record, offset, len, &segment);
        // Believed in this boot alone, which sees what was written, durable or not.
        op.durable = !matches!(busy, Busy::Head { at_rest: true });
        let token = Token(self.base | OWN_JOB << PART_BITS | RECORD);
        let pushed = router.push(token, &op);
        self.busy = Some(busy);
        match pushed {
            Ok(()) => {}
            Err(Errno::AGAIN) => self.undo(),
            Err(errno) => self.recorded(router, -errno.raw_os_error()),
        }
    }

    /// What was being written must be written still.
    fn undo(&mut self) {
        let Some(state) = self.state.as_mut() else {
            return;
        };
        match self.busy.take() {
            Some(Busy::Head { .. }) => state.head_due = true,
            Some(Busy::Page(page, _)) => {
                if let Some(due) = state.due.get_mut(page) {
                    *due = true;
                }
            }
            None => {}
        }
        self.unsettled = true;
    }

    /// A write of the record ended.
    pub(super) fn recorded<E: Engine>(&mut self, router: &mut Router<E>, result: i32) {
        let wanted = match &self.busy {
            Some(Busy::Head { .. }) => HEAD,
            _ => PAGE as usize,
        };
        match usize::try_from(result) {
            Ok(n) if n == wanted => self.shared.record_errno.store(0, Relaxed),
            Ok(_) => return self.cannot_record(router, Errno::IO.raw_os_error()),
            Err(_) => {
                let errno = result.wrapping_neg();
                let again = [Errno::AGAIN, Errno::INTR].map(Errno::raw_os_error);
                if again.contains(&errno) {
                    return self.undo();
                }
                return self.cannot_record(router, errno);
            }
        }
        let Some(state) = self.state.as_mut() else {
            return;
        };
        match self.busy.take() {
            Some(Busy::Page(page, words)) => {
                let from = page * (PAGE_REGIONS / 64);
                // Only what is wanted still: a region that was unmarked meanwhile is not marked.
                let now = state.dirty.words(from, words.len());
                let both: Vec<u64> = words.iter().zip(now).map(|(w, n)| w & n).collect();
                state.marked.replace(from, &both);
                self.fly_marked(router);
            }
            Some(Busy::Head { at_rest }) => {
                state.at_rest = at_rest;
                if !state.head_due {
                    for index in std::mem::take(&mut self.acks) {
                        self.ack(router, index);
                    }
                }
                self.fly_marked(router);
            }
            None => {}
        }
    }

    /// Let jobs go whose regions are marked now.
    fn fly_marked<E: Engine>(&mut self, router: &mut Router<E>) {
        for index in std::mem::take(&mut self.marking) {
            let (Some(state), Some(job)) = (&self.state, self.jobs.get(index as usize)) else {
                continue;
            };
            if is_marked(state, job) {
                let used = state.used();
                self.fly(router, index, used);
            } else {
                self.marking.push(index);
            }
        }
    }

    /// The record cannot be written: what depends on it fails, until it can.
    #[cold]
    fn cannot_record<E: Engine>(&mut self, router: &mut Router<E>, errno: i32) {
        self.undo();
        self.pause = true;
        self.shared.record_errno.store(errno, Relaxed);
        let marking = std::mem::take(&mut self.marking);
        for index in marking.into_iter().chain(std::mem::take(&mut self.acks)) {
            self.tell(router, index, -Errno::IO.raw_os_error());
        }
    }

    /// Begin to unmark regions that were not written for a while, if all disks are current.
    pub(super) fn settle<E: Engine>(&mut self, router: &mut Router<E>) {
        let now = self.clock.now();
        let quiet = self.clock.rate().cycles(QUIET_SECONDS * 1_000_000_000);
        let Some(state) = self.state.as_mut() else {
            return;
        };
        let all = u8::try_from((1u32 << self.members.len()) - 1).unwrap_or(u8::MAX);
        let idle = self.settling.is_none() && now.since(self.settled) >= quiet;
        if !idle || state.current() != all || state.dirty.is_empty() {
            return;
        }
        self.settled = now;
        let mut candidates = Bits::new(state.dirty.len());
        let mut at = 0;
        while let Some(region) = state.dirty.next(at) {
            let behind = state.behind.iter().any(|b| b.get(region));
            if !behind && !state.is_recent(region) {
                candidates.set(region);
            }
            at = region + 1;
        }
        state.recent.clear_all();
        for index in &self.active {
            if let Some(job) = self.jobs.get(*index as usize) {
                let (from, to) = state.regions(job.offset, job.len);
                state.recent.set_range(from, to);
            }
        }
        if candidates.is_empty() {
            return;
        }
        if let Some(index) = self.begin(Kind::Settle, None, Verb::Sync) {
            self.settling = Some(candidates);
            self.fly(router, index, all);
        }
    }

    /// All disks have flushed: unmark what was not written meanwhile.
    pub(super) fn end_settle<E: Engine>(&mut self, router: &mut Router<E>, index: u32) {
        let good = self.jobs.get(index as usize).map_or(0, |job| job.good);
        if let (Some(settled), Some(state)) = (self.settling.take(), self.state.as_mut())
            && good.count_ones() as usize == self.members.len()
        {
            let mut at = 0;
            while let Some(region) = settled.next(at) {
                at = region + 1;
                if state.is_recent(region) || state.behind.iter().any(|b| b.get(region)) {
                    continue;
                }
                state.dirty.clear(region);
                state.marked.clear(region);
                if let Some(due) = state.due.get_mut(region / PAGE_REGIONS) {
                    *due = true;
                }
            }
        }
        self.tell(router, index, 0);
        self.publish();
    }
}
