//! Catching up: regions are copied from a disk that may be read to those that have to, chunk by
//! chunk, as fast as the rate allows. A chunk is locked against writes while it is copied; what is
//! written to a region meanwhile goes to all disks, so a region is done when all its chunks are.

use std::sync::atomic::Ordering::Relaxed;

use super::job::Kind;
use super::pool::LARGE;
use super::{Mirror, Stage};
use crate::engine::router::Router;
use crate::engine::{Engine, Verb};
use crate::storage::mirror::Standing;

/// Chunks under way at a time, so that a distant disk is not waited for one by one.
const CHUNKS: u32 = 4;

/// The region that is being copied.
#[derive(Debug)]
pub(super) struct Region {
    number: usize,
    next: u64,
    end: u64,
    flying: u32,
    failed: bool,
    /// Disks it is for, one bit each.
    pub(super) targets: u8,
}

impl Mirror {
    /// Go on copying, and let disks that have all they missed be current.
    pub(super) fn catch_up<E: Engine>(&mut self, router: &mut Router<E>) {
        if self.region.is_none() {
            self.region = self.next_region();
        }
        let Some(region) = self.region.as_mut() else {
            self.finish_members(router);
            return;
        };
        while region.next < region.end && region.flying < CHUNKS {
            if self.shared.budget.load(Relaxed) <= 0 {
                return;
            }
            let len = u64::from(LARGE.0).min(region.end - region.next);
            let (offset, targets) = (region.next, region.targets);
            let free = self.free.pop();
            let index = free.unwrap_or_else(|| {
                self.jobs.push(super::Job::free(self.mem));
                u32::try_from(self.jobs.len() - 1).unwrap_or(0)
            });
            let Some(job) = self.jobs.get_mut(index as usize) else {
                return;
            };
            job.begin(Kind::Copy, None, Verb::Read);
            (job.offset, job.len, job.targets) = (offset, len, targets);
            self.shared
                .budget
                .fetch_sub(i64::try_from(len).unwrap_or(0), Relaxed);
            region.next += len;
            region.flying += 1;
            self.waiting.push_back(index);
            self.unsettled = true;
        }
    }

    /// The next region that a disk has to catch up with.
    fn next_region(&mut self) -> Option<Region> {
        let state = self.state.as_ref()?;
        let used = state.used();
        let here = |i: &usize| used & 1 << i != 0;
        let next = |from: usize| {
            let all = state.behind.iter().enumerate().filter(|(i, _)| here(i));
            all.filter_map(|(_, behind)| behind.next(from)).min()
        };
        let number = next(self.cursor).or_else(|| next(0))?;
        self.cursor = number + 1;
        let (size, region) = (state.head.size, 1u64 << state.head.shift);
        let start = number as u64 * region;
        let end = (start + region).min(size);
        // Without a disk to read from, another round may find one.
        self.source(start, end - start, 0)?;
        let state = self.state.as_ref()?;
        let behind = state.behind.iter().enumerate();
        let targets = behind.filter(|(i, b)| used & 1 << i != 0 && b.get(number));
        Some(Region {
            number,
            next: start,
            end,
            flying: 0,
            failed: false,
            targets: targets.fold(0, |mask, (i, _)| mask | 1 << i),
        })
    }

    /// Read a chunk.
    pub(super) fn start_copy<E: Engine>(&mut self, router: &mut Router<E>, index: u32) {
        let job = self.jobs.get(index as usize);
        let source = job.and_then(|job| self.source(job.offset, job.len, 0));
        match source {
            Some(part) => self.fly(router, index, 1 << part),
            None => self.end_copy(router, index, false),
        }
    }

    /// A chunk was read, or written.
    pub(super) fn copied<E: Engine>(&mut self, router: &mut Router<E>, index: u32) {
        let used = self.state.as_ref().map_or(0, |s| s.used());
        let Some(job) = self.jobs.get_mut(index as usize) else {
            return;
        };
        if job.verb == Verb::Write {
            let missed = job.targets & used & !job.good;
            self.end_copy(router, index, missed == 0);
        } else if job.good == 0 {
            self.end_copy(router, index, false);
        } else {
            // The reader's part is over; it may be a target no more than it was.
            (job.verb, job.good, job.bad) = (Verb::Write, 0, 0);
            job.done = Default::default();
            let targets = job.targets & used;
            job.targets = targets;
            self.fly(router, index, targets);
        }
    }

    fn end_copy<E: Engine>(&mut self, router: &mut Router<E>, index: u32, done: bool) {
        if let Some(job) = self.job(index) {
            job.stage = Stage::Flying;
            let len = job.len;
            self.shared.copied.fetch_add(len, Relaxed);
        }
        self.tell(router, index, 0);
        let Some(region) = self.region.as_mut() else {
            return;
        };
        region.flying -= 1;
        region.failed |= !done;
        if region.flying > 0 || region.next < region.end {
            return;
        }
        if let (Some(region), Some(state)) = (self.region.take(), self.state.as_mut())
            && !region.failed
        {
            for (i, behind) in state.behind.iter_mut().enumerate() {
                if region.targets & 1 << i != 0 {
                    behind.clear(region.number);
                }
            }
        }
        self.publish();
    }

    /// Flush disks that have caught up; then they are current.
    fn finish_members<E: Engine>(&mut self, router: &mut Router<E>) {
        for part in 0..self.members.len() {
            let Some(state) = self.state.as_ref() else {
                return;
            };
            let ready = state.standing(part) == Standing::Behind
                && state.behind.get(part).is_some_and(|b| b.is_empty());
            let under_way = self
                .jobs
                .iter()
                .any(|j| j.kind == Kind::Finish(part) && j.stage != Stage::Free);
            if ready
                && !under_way
                && let Some(index) = self.begin(Kind::Finish(part), None, Verb::Sync)
            {
                self.fly(router, index, 1 << part);
            }
        }
    }
}
