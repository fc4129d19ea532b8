//! vblk's data plane on one worker: its disks, their queues, one engine.
//!
//! A step is: reap what completed, offer service to the disks in the scheduler's order, submit what
//! they started with one system call, reap what completed at once (page cache, tmpfs), publish each
//! ring that has something to publish, notify. What the system call cost is charged to the disks by
//! what they put into it.

mod change;
mod changes;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use towpath_common::chain::Burst;
use towpath_common::clock::{Clock, Cycles};
use towpath_common::mailbox::ReplyTo;
use towpath_common::ring::Ring;
use towpath_common::sched::{EntityId, MAX_ENTITIES, Outcome, Scheduler};
use towpath_common::worker::{Context, Plane, Poller};

use crate::disk::Disk;
use crate::engine::{DiskId, Engine, MemId};
use crate::io::Io;
use crate::mortal::{Mortal, Point};
use crate::qos::Throttles;
use crate::queue::{Queue, Visit};
use crate::request::{Kind, Limits, Ranges};
use crate::stages::Stages;
use crate::stats::{DiskShared, Event, Events, Latency};
pub use change::{Change, DiskKey, NewDisk};
use towpath_common::bell::Bell;

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
    shared: Arc<DiskShared>,
    latency: Latency,
    stages: Stages,
    /// Popping has stopped, for something that wants the storage to itself.
    paused: bool,
    /// Requests handed to the engine in this step.
    started: u32,
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
        } = context;
        BlkPlane {
            io,
            sched: Scheduler::new(clock.rate(), clock.now()),
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
            ..
        } = self;
        let rate = clock.rate();
        let mut any = false;
        io.reap(|f| {
            any = true;
            let key = f.origin.queue as usize;
            let Some(Some(queue)) = queues.get_mut(key) else {
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
                queue.reaped.add(now);
            }
        });
        any
    }

    /// Offer service to the disks; true if anybody had work.
    #[inline]
    fn serve(&mut self, now: Cycles) -> bool {
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
            ..
        } = self;
        sched.wake_all();
        let mut last = now;
        sched.pass(now, |entity| {
            let at = usize::from(by_entity[entity.index()]);
            let Some(Some(disk)) = disks.get_mut(at) else {
                return Outcome::Idle;
            };
            let (Some(mem), false) = (disk.mem, disk.paused) else {
                return Outcome::Idle;
            };
            let limited = !disk.throttles.is_open();
            let (mut most, mut popped, mut copied) = (usize::MAX, 0, 0);
            for &key in &disk.queues {
                if limited {
                    most = disk.throttles.ask(last);
                    if most == 0 {
                        break;
                    }
                }
                let queue = queues.get_mut(key as usize).and_then(Option::as_mut);
                let Some(queue) = queue.filter(|queue| queue.is_open()) else {
                    continue;
                };
                let was_dirty = queue.dirty;
                let visited = queue.visit(Visit {
                    mortal: &mut *mortal,
                    io: &mut *io,
                    burst: &mut *burst,
                    ranges: &mut *ranges,
                    disk: disk.id,
                    mem,
                    limits: &disk.limits,
                    key,
                    now,
                    most,
                });
                if limited {
                    disk.throttles.take(visited.popped, visited.bytes, last);
                }
                if queue.dirty && !was_dirty {
                    dirty.push(key);
                }
                popped += visited.popped;
                copied += visited.copied;
                disk.started += visited.started;
            }
            if popped == 0 {
                return Outcome::Idle;
            }
            let cost = clock.now().since(last);
            last += cost;
            if copied > 0 {
                let took = clock.rate().ns(last.since(now));
                disk.latency[Kind::Read.index()].record_many(took, copied);
            }
            Outcome::Worked(cost)
        })
    }

    /// Start what was pushed, and charge the disks for the system call.
    #[inline]
    fn submit(&mut self, now: Cycles) -> Cycles {
        self.io.submit();
        let after = self.clock.now();
        self.io.stamp(after);
        let BlkPlane { sched, disks, .. } = self;
        let total: u32 = disks.iter().flatten().map(|d| d.started).sum();
        if total > 0 {
            let cost = after.since(now).0;
            for disk in disks.iter_mut().flatten().filter(|d| d.started > 0) {
                let part = cost * u64::from(disk.started) / u64::from(total);
                sched.charge(disk.entity, Cycles(part));
                disk.started = 0;
            }
        }
        after
    }

    /// Publish every ring that has something to publish; tell what went wrong, once a burst.
    #[inline]
    fn publish(&mut self) {
        let BlkPlane {
            queues,
            disks,
            by_queue,
            dirty,
            events,
            drains,
            clock,
            mortal,
            ..
        } = self;
        for key in dirty.drain(..) {
            let Some(Some(queue)) = queues.get_mut(key as usize) else {
                continue;
            };
            let wanted = queue.publish();
            mortal.at(Point::Used);
            if queue.reaped.is_empty() {
                queue.notify(wanted);
            } else {
                let used = clock.now();
                queue.notify(wanted);
                let notified = wanted.then(|| clock.now());
                let reaped = std::mem::take(&mut queue.reaped);
                let at = by_queue.get(key as usize).copied().unwrap_or(u16::MAX);
                if let Some(Some(disk)) = disks.get_mut(usize::from(at)) {
                    disk.stages
                        .told(queue.index, reaped, used, notified, clock.rate());
                }
            }
            let broken = queue.newly_broken();
            let failed = queue.failed.take();
            if broken.is_none() && failed.is_none() {
                continue;
            }
            let at = by_queue.get(key as usize).copied().unwrap_or(u16::MAX);
            if let Some(Some(disk)) = disks.get(usize::from(at)) {
                tell(events, disk, queue.index, broken, failed);
            }
        }
        if !drains.is_empty() {
            self.finish_drains();
        }
    }

    /// End the sessions whose memory was truncated.
    fn check_poison(&mut self) {
        let BlkPlane {
            queues,
            disks,
            events,
            ..
        } = self;
        for disk in disks.iter_mut().flatten().filter(|d| !d.poisoned) {
            let mut here = disk
                .queues
                .iter()
                .filter_map(|k| queues.get(*k as usize)?.as_ref());
            if let Some(queue) = here.find(|q| q.ring.mem().poisoned()) {
                queue.alarm.raise();
                disk.poisoned = true;
                events.tell(Event::Poisoned {
                    disk: Arc::clone(&disk.name),
                });
            }
        }
    }
}

#[cold]
fn tell(
    events: &Events,
    disk: &DiskHere,
    queue: u16,
    broken: Option<towpath_common::ring::Violation>,
    failed: Option<(u64, crate::request::Kind, i32)>,
) {
    let shared = disk.shared.queues.get(usize::from(queue));
    if let Some(violation) = broken {
        if let Some(shared) = shared {
            shared.set_broken(Some(violation));
        }
        events.tell(Event::Broken {
            disk: Arc::clone(&disk.name),
            queue,
            violation,
        });
    }
    if let Some((count, kind, errno)) = failed {
        if let Some(shared) = shared {
            shared.failed(errno, count);
        }
        let disk = Arc::clone(&disk.name);
        events.tell(Event::Failed {
            disk,
            queue,
            kind,
            errno,
            count,
        });
    }
}

impl<E: Engine> Plane for BlkPlane<E> {
    type Change = Change;

    fn apply(&mut self, change: Change, now: Cycles) {
        self.change(change, now);
    }

    fn step(&mut self, now: Cycles) -> bool {
        let mut worked = self.reap(now);
        if self.serve(now) {
            worked = true;
            self.mortal.at(Point::Fetched);
        }
        if self.io.in_flight() > 0 {
            let after = self.submit(now);
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
            self.hold(now);
        }
        if !self.pauses.is_empty() {
            self.finish_pauses();
        }
        worked
    }

    fn arm(&mut self) -> bool {
        let mut work = self.io.arm();
        for disk in self.disks.iter().flatten() {
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
        for queue in self.queues.iter_mut().flatten() {
            queue.ring.disarm();
        }
    }

    fn housekeep(&mut self, now: Cycles) {
        self.check_poison();
        let BlkPlane {
            queues,
            disks,
            index,
            clock,
            ..
        } = self;
        for disk in disks.iter_mut().flatten() {
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
    }

    fn is_patient(&self) -> bool {
        self.io.is_patient()
    }

    fn deadline(&self, now: Cycles) -> Option<Cycles> {
        let release = self.sched.next_release(now);
        let disks = self.disks.iter().flatten();
        let opens = disks.filter_map(|disk| disk.throttles.opens(now)).min();
        let retry = self.retry_at.filter(|_| self.io.is_holding());
        release.into_iter().chain(opens).chain(retry).min()
    }
}
