//! vblk's data plane on one worker: its disks, their queues, one engine.
//!
//! A step is: reap what completed, offer service to the disks in the scheduler's order, submit what
//! they started with one system call, reap what completed at once (page cache, tmpfs), publish each
//! ring that has something to publish, notify. What the system call cost is charged to the disks by
//! what they put into it.

mod change;
mod changes;
mod doze;
mod loan;
mod publish;
#[cfg(test)]
mod tests;
mod turns;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use towpath_common::chain::Burst;
use towpath_common::clock::{Clock, Cycles};
use towpath_common::mailbox::ReplyTo;
use towpath_common::ring::Ring;
use towpath_common::sched::{EntityId, MAX_ENTITIES, Outcome, Scheduler};
use towpath_common::worker::{Context, Idle, Plane, Poller};

use crate::disk::Disk;
use crate::engine::{DiskId, Engine, MemId};
use crate::io::Io;
use crate::mortal::{Mortal, Point};
use crate::qos::Throttles;
use crate::queue::{Queue, Visit};
use crate::request::{Kind, Limits, Ranges};
use crate::stages::Stages;
use crate::stats::{DiskShared, Events, Latency};
pub use change::{Change, DiskKey, NewDisk};
use doze::Naps;
use loan::Loans;
pub use loan::{Fetch, Fetched, Flush};
use towpath_common::bell::Bell;
use turns::{Price, Turn, Turns};

/// How long half of the slowest requests are kept.
const HALF: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct DiskHere {
    key: DiskKey,
    name: Arc<str>,
    id: DiskId,
    disk: Arc<Disk>,
    /// What requests are checked against.
    limits: Limits,
    mem: Option<MemId>,
    entity: EntityId,
    throttles: Throttles,
    /// Keys of its queues.
    queues: Vec<u32>,
    /// The queue that is asked first: what limits the disk shall not always stop the same ones.
    first: usize,
    shared: Arc<DiskShared>,
    latency: Latency,
    stages: Stages,
    /// Popping has stopped, for something that wants the storage to itself.
    paused: bool,
    /// Requests handed to the engine in this step.
    started: u32,
    price: Price,
    /// When a request last came or ended, or the disk came.
    worked_at: Cycles,
    /// Not looked at in every step.
    dozing: bool,
    poisoned: bool,
}

/// The data plane of one worker.
#[derive(Debug)]
pub struct BlkPlane<E: Engine> {
    io: Io<E>,
    sched: Scheduler,
    clock: Clock,
    poller: Poller,
    index: usize,
    disks: Vec<Option<DiskHere>>,
    naps: Naps,
    turns: Turns,
    /// Places of disks that started requests in this step.
    started: Vec<u16>,
    queues: Vec<Option<Queue>>,
    /// Answers owed to sessions that wait for a drain, by queue key.
    drains: Vec<(u32, ReplyTo<Ring>)>,
    /// Index into `disks` by entity.
    by_entity: Box<[u16]>,
    /// Index into `disks` by queue key.
    by_queue: Vec<u16>,
    /// Keys of queues with something to publish.
    dirty: Vec<u32>,
    /// Bells of queues that are gone: a front-end that comes and goes makes no new ones.
    bells: Vec<Bell>,
    burst: Burst,
    ranges: Ranges,
    events: Events,
    /// When what is held for its storage is tried again.
    retry_at: Option<Cycles>,
    /// Answers owed to those that wait until nothing of a disk is in flight.
    pauses: Vec<(DiskKey, ReplyTo<()>)>,
    loans: Loans,
    mortal: Mortal,
}

impl<E: Engine> BlkPlane<E> {
    /// A plane over `io`, which was made on this thread.
    #[must_use]
    pub fn new(io: Io<E>, context: Context, events: Events) -> BlkPlane<E> {
        let Context {
            poller,
            clock,
            index,
            idle,
        } = context;
        let (rate, now) = (clock.rate(), clock.now());
        BlkPlane {
            io,
            sched: Scheduler::new(rate, now),
            naps: Naps::new(idle != Idle::Busy, rate, now),
            turns: Turns::new(rate),
            started: Vec::new(),
            clock,
            poller,
            index,
            disks: Vec::new(),
            queues: Vec::new(),
            drains: Vec::new(),
            by_entity: vec![0; MAX_ENTITIES].into(),
            by_queue: Vec::new(),
            dirty: Vec::new(),
            bells: Vec::new(),
            burst: Burst::new(),
            ranges: Ranges::new(),
            events,
            retry_at: None,
            pauses: Vec::new(),
            loans: Loans::default(),
            mortal: Mortal::of_environment(),
        }
    }

    /// Take completions; true if there were any.
    #[inline]
    fn reap(&mut self, now: Cycles) -> bool {
        let BlkPlane {
            io,
            queues,
            disks,
            by_queue,
            dirty,
            clock,
            loans,
            ..
        } = self;
        let rate = clock.rate();
        let mut any = false;
        io.reap(|f| {
            any = true;
            let key = f.origin.queue as usize;
            let Some(Some(queue)) = queues.get_mut(key) else {
                loans.ended(&f);
                return;
            };
            if !queue.dirty {
                dirty.push(f.origin.queue);
            }
            queue.finish(&f);
            let disk = by_queue
                .get(key)
                .and_then(|at| disks.get_mut(usize::from(*at)));
            if let Some(Some(disk)) = disk {
                let took = rate.ns(now.since(f.started));
                disk.latency[f.kind.index()].record(took);
                disk.stages.completed(&f, queue.index, now, rate);
                // Whoever waited for slow storage asks again soon.
                disk.worked_at = now;
                queue.reaped.add(now);
            }
        });
        any
    }

    /// Offer service to the disks; true if anybody had work, and what that took.
    #[inline]
    fn serve(&mut self, now: Cycles) -> (bool, Cycles) {
        let BlkPlane {
            io,
            sched,
            clock,
            disks,
            queues,
            by_entity,
            dirty,
            burst,
            ranges,
            mortal,
            turns,
            started,
            ..
        } = self;
        sched.wake_all();
        let mut last = now;
        let worked = sched.pass(now, |entity| {
            let at = by_entity[entity.index()];
            let Some(Some(disk)) = disks.get_mut(usize::from(at)) else {
                return Outcome::Idle;
            };
            let (Some(mem), false) = (disk.mem, disk.paused) else {
                return Outcome::Idle;
            };
            let idle = disk.started == 0;
            let tools = Tools {
                io,
                queues,
                dirty,
                burst,
                ranges,
                mortal,
            };
            let turn = turns.turn(&disk.price, now);
            let (popped, copied) = disk.visit(tools, turn, mem, now, last);
            if popped == 0 {
                return Outcome::Idle;
            }
            let cost = clock.now().since(last);
            last += cost;
            turns.note(at, now);
            disk.price.taken(popped, cost);
            disk.worked_at = now;
            disk.first = match disk.first + 1 {
                next if next < disk.queues.len() => next,
                _ => 0,
            };
            if idle && disk.started > 0 {
                started.push(at);
            }
            if copied > 0 {
                let took = clock.rate().ns(last.since(now));
                disk.latency[Kind::Read.index()].record_many(took, copied);
            }
            Outcome::Worked(cost)
        });
        (worked, last.since(now))
    }

    /// Start what was pushed, and charge the disks for the system call; `served` of the time since
    /// `now` they have paid for already.
    #[inline]
    fn submit(&mut self, now: Cycles, served: Cycles) -> Cycles {
        self.io.submit();
        let after = self.clock.now();
        self.io.stamp(after);
        let BlkPlane {
            sched,
            disks,
            started,
            ..
        } = self;
        let here = |at: &u16| disks.get(usize::from(*at))?.as_ref();
        let total: u32 = started.iter().filter_map(here).map(|d| d.started).sum();
        let cost = after.since(now + served).0;
        for at in started.drain(..) {
            if let Some(Some(disk)) = disks.get_mut(usize::from(at)) {
                let part = cost * u64::from(disk.started) / u64::from(total.max(1));
                sched.charge(disk.entity, Cycles(part));
                disk.price.later(Cycles(part));
                disk.started = 0;
            }
        }
        after
    }
}

/// What a visit to a disk's queues needs of its worker.
struct Tools<'a, E: Engine> {
    io: &'a mut Io<E>,
    queues: &'a mut [Option<Queue>],
    dirty: &'a mut Vec<u32>,
    burst: &'a mut Burst,
    ranges: &'a mut Ranges,
    mortal: &'a mut Mortal,
}

impl DiskHere {
    /// Take what its queues have, at `at`, in the step that began `now`: requests taken, and reads
    /// carried out by copying.
    #[inline]
    fn visit<E: Engine>(
        &mut self,
        tools: Tools<'_, E>,
        mut turn: Turn,
        mem: MemId,
        now: Cycles,
        at: Cycles,
    ) -> (usize, u64) {
        let limited = !self.throttles.is_open();
        let (mut popped, mut copied) = (0, 0);
        let (before, from) = self.queues.split_at(self.first.min(self.queues.len()));
        for &key in from.iter().chain(before) {
            let allowed = if limited {
                self.throttles.ask(at)
            } else {
                usize::MAX
            };
            if allowed == 0 {
                break;
            }
            let queue = tools.queues.get_mut(key as usize).and_then(Option::as_mut);
            let Some(queue) = queue.filter(|queue| queue.is_open()) else {
                continue;
            };
            let most = turn.most(|| queue.ring.waiting()).min(allowed);
            let was_dirty = queue.dirty;
            let visited = queue.visit(Visit {
                mortal: &mut *tools.mortal,
                io: &mut *tools.io,
                burst: &mut *tools.burst,
                ranges: &mut *tools.ranges,
                disk: self.id,
                mem,
                limits: &self.limits,
                key,
                now,
                most,
                measured: limited,
            });
            turn.took(visited.popped);
            if limited {
                self.throttles.take(visited.popped, visited.bytes, at);
            }
            if queue.dirty && !was_dirty {
                tools.dirty.push(key);
            }
            popped += visited.popped;
            copied += visited.copied;
            self.started += visited.started;
        }
        (popped, copied)
    }
}

impl<E: Engine> Plane for BlkPlane<E> {
    type Change = Change;

    fn apply(&mut self, change: Change, now: Cycles) {
        self.change(change, now);
    }

    fn step(&mut self, now: Cycles) -> bool {
        if self.naps.is_due(now) {
            self.look(now);
        }
        let mut worked = self.reap(now);
        let (had_work, served) = self.serve(now);
        if had_work {
            worked = true;
            self.mortal.at(Point::Fetched);
        }
        if self.io.in_flight() > 0 {
            let after = self.submit(now, served);
            self.mortal.at(Point::Submitted);
            worked |= self.reap(after);
        }
        if worked && !self.dirty.is_empty() {
            self.mortal.at(Point::Completed);
        }
        if !self.dirty.is_empty() || !self.drains.is_empty() {
            self.publish();
        }
        if self.io.is_holding() {
            self.end_loans();
            self.hold(now);
        }
        if !self.pauses.is_empty() {
            self.finish_pauses();
        }
        worked
    }

    fn arm(&mut self) -> bool {
        let mut work = self.io.arm();
        let awake = self.naps.awake.iter();
        for disk in awake.filter_map(|at| self.disks.get(usize::from(*at))?.as_ref()) {
            let room = self.io.room_for(disk.id) > 0;
            let parked = self.sched.is_parked(disk.entity);
            let throttled = !disk.throttles.is_open() && disk.throttles.room(self.clock.now()) == 0;
            for key in &disk.queues {
                if let Some(Some(queue)) = self.queues.get_mut(*key as usize)
                    && queue.is_open()
                {
                    // A parked disk's work waits for its cap, which the deadline is about.
                    // And without a free slot only a completion gets us on.
                    // The same for one that is throttled.
                    let barred = parked || throttled || disk.paused;
                    work |= queue.ring.arm() && !barred && room;
                }
            }
        }
        // Without a free slot nothing can be started until a completion wakes us.
        work
    }

    fn disarm(&mut self) {
        self.io.disarm();
        let awake = self.naps.awake.iter();
        for disk in awake.filter_map(|at| self.disks.get(usize::from(*at))?.as_ref()) {
            for key in &disk.queues {
                if let Some(Some(queue)) = self.queues.get_mut(*key as usize) {
                    queue.ring.disarm();
                }
            }
        }
    }

    fn rung(&mut self, token: u32) {
        self.kicked(token, self.clock.now());
    }

    fn housekeep(&mut self, now: Cycles) {
        self.check_poison();
        let BlkPlane {
            queues,
            disks,
            index,
            clock,
            naps,
            ..
        } = self;
        for at in &naps.awake {
            let Some(Some(disk)) = disks.get_mut(usize::from(*at)) else {
                continue;
            };
            for key in &disk.queues {
                if let Some(Some(queue)) = queues.get_mut(*key as usize)
                    && let Some(shared) = disk.shared.queues.get(usize::from(queue.index))
                {
                    queue.report(shared);
                }
            }
            if let Some(throttled) = disk.shared.throttled.get(*index) {
                let ns = clock.rate().ns(disk.throttles.waited(now));
                throttled.store(ns, Relaxed);
            }
            if let Some(shared) = disk.shared.latency.get(*index) {
                for (mine, shared) in disk.latency.iter_mut().zip(shared) {
                    mine.publish(shared);
                }
            }
            if let Some(shared) = disk.shared.stages.get(*index) {
                disk.stages.publish(shared);
            }
            disk.stages.slow.turn(now, clock.rate().of(HALF));
        }
        self.nap(now);
    }

    fn is_patient(&self) -> bool {
        self.io.is_patient()
    }

    fn deadline(&self, now: Cycles) -> Option<Cycles> {
        let release = self.sched.next_release(now);
        let awake = self.naps.awake.iter();
        let disks = awake.filter_map(|at| self.disks.get(usize::from(*at))?.as_ref());
        let opens = disks.filter_map(|disk| disk.throttles.opens(now)).min();
        let retry = self.retry_at.filter(|_| self.io.is_holding());
        release.into_iter().chain(opens).chain(retry).min()
    }
}
