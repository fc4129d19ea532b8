//! The disks of a mirror: which one to read, what it means when one fails, and what becomes of a
//! job whose parts have ended.

use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use rustix::io::Errno;
use towpath_common::clock::Cycles;

use super::job::{Kind, Stage};
use super::{MAX_TRIES, Mirror};
use crate::disk::Disk;
use crate::engine::router::Router;
use crate::engine::{DiskId, Engine, Verb};
use crate::storage::mirror::{Order, Standing};

/// A disk as this worker has it.
#[derive(Debug)]
pub(super) struct Here {
    pub(super) place: DiskId,
    /// The place has it.
    attached: bool,
    /// What a short transfer is cut down to.
    block: u64,
    pub(super) in_flight: u32,
    /// What a read takes, in ns, and whether one was made since the last look.
    latency: u64,
    sampled: bool,
}

impl Here {
    pub(super) fn new<E: Engine>(
        router: &mut Router<E>,
        place: DiskId,
        disk: Option<&Disk>,
    ) -> io::Result<Here> {
        let mut here = Here {
            place,
            attached: false,
            block: 1,
            in_flight: 0,
            latency: 0,
            sampled: false,
        };
        if let Some(disk) = disk {
            here.attach(router, disk)?;
        }
        Ok(here)
    }

    fn attach<E: Engine>(&mut self, router: &mut Router<E>, disk: &Disk) -> io::Result<()> {
        router.set_disk(self.place, Some(disk))?;
        self.attached = true;
        self.block = if disk.direct() {
            disk.block().bytes().into()
        } else {
            1
        };
        Ok(())
    }
}

impl Mirror {
    /// Read from the disk that is preferred, or likely to be the fastest.
    pub(super) fn read<E: Engine>(&mut self, router: &mut Router<E>, index: u32) {
        let source = self
            .jobs
            .get(index as usize)
            .and_then(|job| self.source(job.offset, job.len, job.bad));
        match source {
            Some(part) => self.fly(router, index, 1 << part),
            None => {
                let errno = self.jobs.get(index as usize).map_or(0, |job| job.errno);
                let errno = if errno == 0 {
                    Errno::IO.raw_os_error()
                } else {
                    errno
                };
                self.tell(router, index, -errno);
            }
        }
    }

    /// The disk to read these bytes from, if not one of `bad`.
    pub(super) fn source(&self, offset: u64, len: u64, bad: u8) -> Option<usize> {
        let state = self.state.as_ref()?;
        let fits = |i: usize| bad & 1 << i == 0 && state.readable(i, offset, len);
        let preferred = self.shared.prefer.load(Relaxed);
        if preferred < self.members.len() && fits(preferred) {
            return Some(preferred);
        }
        let cost = |i: &usize| {
            let member = self.members.get(*i);
            member.map(|m| (m.latency + 1).saturating_mul(u64::from(m.in_flight) + 1))
        };
        (0..self.members.len())
            .filter(|i| fits(*i))
            .min_by_key(cost)
    }

    /// A disk did, or did not do, its part of a job.
    pub(super) fn part_ended<E: Engine>(
        &mut self,
        router: &mut Router<E>,
        index: u32,
        part: usize,
        result: i32,
    ) {
        let now = self.clock.now();
        let used = self.state.as_ref().map_or(0, |s| s.used());
        let Some(member) = self.members.get_mut(part) else {
            return;
        };
        member.in_flight -= 1;
        let Some(job) = self.jobs.get_mut(index as usize) else {
            return;
        };
        let bit = 1u8 << part;
        if used & bit == 0 {
            // It failed meanwhile: what it says does not count any more.
            job.flying &= !bit;
            job.bad |= bit;
            self.look(router, index);
            return;
        }
        let transfer = matches!(job.verb, Verb::Read | Verb::Write);
        let mut errno = None;
        match u64::try_from(result) {
            Ok(n) if transfer && n > 0 && n <= job.len - job.done(part) => {
                let mut done = job.done(part) + n;
                let whole = done == job.len || job.kind == Kind::Read;
                if !whole {
                    done -= done % member.block;
                }
                let on = done > job.done(part);
                if let Some(place) = job.done.get_mut(part) {
                    *place = done;
                }
                if !whole && on {
                    member.in_flight += 1;
                    self.push_part(router, index, part);
                    return;
                }
                if whole {
                    job.good |= bit;
                } else {
                    errno = Some(Errno::IO);
                }
            }
            Ok(_) if transfer => errno = Some(Errno::IO),
            Ok(_) => job.good |= bit,
            Err(_) => errno = Some(Errno::from_raw_os_error(result.wrapping_neg())),
        }
        if let Some(Errno::AGAIN | Errno::INTR) = errno
            && job.tries < MAX_TRIES
        {
            job.tries += 1;
            member.in_flight += 1;
            self.stalled.push_back((index, part));
            return;
        }
        job.flying &= !bit;
        let took = self.clock.rate().ns(now.since(job.since));
        self.account(index, part, took, errno);
        self.look(router, index);
    }

    /// Count what a disk did, and see what an error means.
    fn account(&mut self, index: u32, part: usize, took: u64, errno: Option<Errno>) {
        let (Some(job), Some(member), Some(gauge)) = (
            self.jobs.get_mut(index as usize),
            self.members.get_mut(part),
            self.shared.gauges.get(part),
        ) else {
            return;
        };
        let Some(errno) = errno else {
            match job.kind {
                Kind::Read => {
                    gauge.reads.fetch_add(1, Relaxed);
                    member.sampled = true;
                    member.latency = if member.latency == 0 {
                        took
                    } else {
                        member.latency - member.latency / 8 + took / 8
                    };
                }
                Kind::Change => drop(gauge.writes.fetch_add(1, Relaxed)),
                _ => {}
            }
            return;
        };
        let unable = matches!(errno, Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV);
        if unable && matches!(job.verb, Verb::Punch | Verb::Zero) {
            job.unable |= 1 << part;
            return;
        }
        job.bad |= 1 << part;
        job.errno = errno.raw_os_error();
        gauge.errors.fetch_add(1, Relaxed);
        self.fail(part, errno.raw_os_error());
    }

    /// Use a disk no more, unless it is the last current one.
    pub(super) fn fail(&mut self, part: usize, errno: i32) {
        let (Some(state), Some(gauge)) = (self.state.as_mut(), self.shared.gauges.get(part)) else {
            return;
        };
        let others = state.current() & !(1 << part);
        if state.standing(part) == Standing::Failed || others == 0 {
            return;
        }
        state.set(part, Standing::Failed);
        gauge.errno.store(errno, Relaxed);
        gauge.closed.store(false, Release);
        gauge.set(Standing::Failed);
        if let Some(region) = &mut self.region {
            region.targets &= !(1 << part);
        }
        self.settling = None;
        self.review = true;
        self.unsettled = true;
    }

    /// See whether a job that waits for disks is done.
    pub(super) fn look<E: Engine>(&mut self, router: &mut Router<E>, index: u32) {
        let used = self.state.as_ref().map_or(0, |s| s.used());
        let Some(job) = self.jobs.get(index as usize) else {
            return;
        };
        if job.stage == Stage::Lingering {
            if job.flying == 0 {
                self.release(index);
            }
            return;
        }
        // A read waits for the disk whatever became of it: the memory is the guest's.
        let waits = if job.kind == Kind::Read || job.verb == Verb::Read {
            job.flying
        } else {
            job.flying & used
        };
        if waits != 0 || job.stage != Stage::Flying {
            return;
        }
        match job.kind {
            Kind::Read if job.good != 0 => {
                let done = job.done.iter().max().copied().unwrap_or(0);
                let done = i32::try_from(done).unwrap_or(i32::MAX);
                self.tell(router, index, done);
            }
            Kind::Read => self.read(router, index),
            Kind::Copy => self.copied(router, index),
            Kind::Settle => self.end_settle(router, index),
            Kind::Finish(part) => {
                if job.good & 1 << part != 0
                    && let Some(state) = self.state.as_mut()
                    && state.standing(part) == Standing::Behind
                {
                    state.set(part, Standing::Current);
                    if let Some(gauge) = self.shared.gauges.get(part) {
                        gauge.set(Standing::Current);
                    }
                }
                self.tell(router, index, 0);
            }
            Kind::Change | Kind::Sync => self.conclude(router, index),
        }
    }

    /// A change or a flush has ended on every disk.
    fn conclude<E: Engine>(&mut self, router: &mut Router<E>, index: u32) {
        let (Some(job), Some(state)) = (self.jobs.get_mut(index as usize), self.state.as_mut())
        else {
            return;
        };
        let current = state.current();
        let done = job.good & current != 0;
        if job.kind == Kind::Change {
            let (from, to) = state.regions(job.offset, job.len);
            state.recent.set_range(from, to);
            if job.unable != 0 || !done {
                // Some did it and some did not: all but one are read no more until they agree.
                let leader = current.trailing_zeros() as usize;
                let used = state.used();
                let others = (0..self.members.len()).filter(|i| used & 1 << i != 0 && *i != leader);
                for other in others {
                    if let Some(behind) = state.behind.get_mut(other) {
                        behind.set_range(from, to);
                    }
                }
            }
        }
        if !done && job.errno == 0 {
            job.errno = Errno::IO.raw_os_error();
        }
        job.errno = if job.unable != 0 {
            Errno::OPNOTSUPP.raw_os_error()
        } else if done {
            0
        } else {
            job.errno
        };
        job.stage = Stage::Acking;
        if state.head_due || self.is_recording_head() {
            self.acks.push(index);
            self.unsettled = true;
        } else {
            self.ack(router, index);
        }
    }

    /// Tell how a change or a flush ended.
    pub(super) fn ack<E: Engine>(&mut self, router: &mut Router<E>, index: u32) {
        let Some(job) = self.jobs.get(index as usize) else {
            return;
        };
        let result = match (job.errno, job.verb) {
            (0, Verb::Write) => i32::try_from(job.len).unwrap_or(i32::MAX),
            (0, _) => 0,
            (errno, _) => -errno,
        };
        self.tell(router, index, result);
    }

    /// The bell rang: see what is wanted, and what the time brings.
    pub(super) fn attend<E: Engine>(&mut self, router: &mut Router<E>) {
        if self.state.is_none() {
            self.state = self.shared.take();
        }
        self.pause = false;
        // Orders wait for the state, too.
        while self.state.is_some()
            && let Some(order) = self.shared.orders.pop()
        {
            match order {
                Order::Fail(part) => self.fail(part, 0),
                Order::Add(part, disk, full) => self.add(router, part, &disk, full),
            }
        }
        self.expire();
        // Who failed is let go once that is durable: what comes back may be another disk, which a
        // record must not call current.
        let head_due = self.state.as_ref().is_none_or(|state| state.head_due);
        let written = !head_due && !self.is_recording_head();
        for (part, member) in self.members.iter_mut().enumerate() {
            if !std::mem::take(&mut member.sampled) {
                // One that is not read gets another chance after a while.
                member.latency -= member.latency / 8;
            }
            let Some(gauge) = self.shared.gauges.get(part) else {
                continue;
            };
            gauge.latency.store(member.latency, Relaxed);
            let failed = gauge.standing() == Standing::Failed;
            if failed && written && member.in_flight == 0 && !gauge.closed.load(Acquire) {
                // Nothing to be done about a place that cannot be cleared.
                let _ = router.set_disk(member.place, None);
                member.attached = false;
                gauge.closed.store(true, Release);
            }
        }
        if !self.closing && !self.shared.is_wanted() {
            self.settle(router);
        }
        self.publish();
    }

    fn add<E: Engine>(&mut self, router: &mut Router<E>, part: usize, disk: &Disk, full: bool) {
        let (Some(state), Some(member), Some(gauge)) = (
            self.state.as_mut(),
            self.members.get_mut(part),
            self.shared.gauges.get(part),
        ) else {
            return;
        };
        if state.standing(part) != Standing::Failed || member.attached {
            return;
        }
        if member.attach(router, disk).is_ok() {
            gauge.closed.store(false, Release);
            state.readmit(part, full);
            gauge.set(Standing::Behind);
            (member.latency, self.cursor) = (0, 0);
        }
    }

    /// Fail disks that have not answered in time.
    fn expire(&mut self) {
        let (now, timeout) = (self.clock.now(), Cycles(self.shared.timeout.load(Relaxed)));
        let late = self.jobs.iter().filter(|job| {
            let waits = matches!(job.stage, Stage::Flying);
            waits && now.since(job.since) > timeout
        });
        let late = late.fold(0, |mask, job| mask | job.flying);
        for part in (0..self.members.len()).filter(|part| late & 1 << part != 0) {
            self.fail(part, Errno::TIMEDOUT.raw_os_error());
        }
    }

    pub(super) fn publish(&self) {
        let Some(state) = &self.state else {
            return;
        };
        self.shared.dirty.store(state.dirty.count(), Relaxed);
        for (gauge, behind) in self.shared.gauges.iter().zip(&state.behind) {
            gauge.behind.store(behind.count(), Relaxed);
        }
    }
}
