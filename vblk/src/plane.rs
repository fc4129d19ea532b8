//! vblk's data plane on one worker: its disks, their queues, one engine.
//!
//! A step is: reap what completed, offer service to the disks in the scheduler's order, submit what
//! they started with one system call, reap what completed at once (page cache, tmpfs), publish each
//! ring that has something to publish, notify. What the system call cost is charged to the disks by
//! what they put into it.

mod changes;

use std::io;
use std::sync::Arc;

use towpath_common::chain::Burst;
use towpath_common::clock::{Clock, Cycles};
use towpath_common::mailbox::ReplyTo;
use towpath_common::ring::Ring;
use towpath_common::sched::{EntityId, MAX_ENTITIES, Outcome, Scheduler, Share};
use towpath_common::session::{Attach, Update};
use towpath_common::worker::{Context, Plane, Poller};

use crate::disk::Disk;
use crate::engine::{DiskId, Engine, Guest, MemId};
use crate::io::Io;
use crate::queue::{Queue, Visit};
use crate::request::{Kind, Limits, Ranges};
use crate::stats::{DiskShared, Event, Events, Latency};
use towpath_common::bell::Bell;

/// Names a disk on all workers, for the daemon's life.
pub type DiskKey = u64;

/// What the control plane and the sessions ask of a worker.
#[derive(Debug)]
pub enum Change {
    /// Serve a disk from now on.
    AddDisk(NewDisk, ReplyTo<io::Result<()>>),
    /// Stop serving a disk; its queues have been detached.
    RemoveDisk(DiskKey, ReplyTo<()>),
    /// Another weight or cap.
    SetShare(DiskKey, Share),
    /// The guest's memory map changed; no queue of the disk is attached.
    Memory(DiskKey, Guest, ReplyTo<io::Result<()>>),
    /// Serve a queue.
    Attach(DiskKey, u16, Box<Attach>, ReplyTo<bool>),
    /// Stop popping, let what is in flight finish, give the ring back.
    Detach(DiskKey, u16, ReplyTo<Ring>),
    /// A change that needs no drain.
    Update(DiskKey, u16, Update),
}

/// A disk as a worker gets it.
#[derive(Debug)]
pub struct NewDisk {
    /// Its key.
    pub key: DiskKey,
    /// Its name, for events.
    pub name: Arc<str>,
    /// The disk.
    pub disk: Arc<Disk>,
    /// Weight and cap.
    pub share: Share,
    /// Where its counters go.
    pub shared: Arc<DiskShared>,
}

#[derive(Debug)]
struct DiskHere {
    key: DiskKey,
    name: Arc<str>,
    id: DiskId,
    /// What requests are checked against.
    limits: Limits,
    mem: Option<MemId>,
    entity: EntityId,
    /// Keys of its queues.
    queues: Vec<u32>,
    shared: Arc<DiskShared>,
    latency: Latency,
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
            ..
        } = self;
        sched.wake_all();
        let mut last = now;
        sched.pass(now, |entity| {
            let at = usize::from(by_entity[entity.index()]);
            let Some(Some(disk)) = disks.get_mut(at) else {
                return Outcome::Idle;
            };
            let Some(mem) = disk.mem else {
                return Outcome::Idle;
            };
            let (mut popped, mut copied) = (0, 0);
            for &key in &disk.queues {
                let Some(Some(queue)) = queues.get_mut(key as usize) else {
                    continue;
                };
                if !queue.is_open() {
                    continue;
                }
                let was_dirty = queue.dirty;
                let (id, limits) = (disk.id, &disk.limits);
                let visited = queue.visit(Visit {
                    io: &mut *io,
                    burst: &mut *burst,
                    ranges: &mut *ranges,
                    disk: id,
                    mem,
                    limits,
                    key,
                    now,
                });
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
            ..
        } = self;
        for key in dirty.drain(..) {
            let Some(Some(queue)) = queues.get_mut(key as usize) else {
                continue;
            };
            queue.publish();
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
        worked |= self.serve(now);
        if self.io.in_flight() > 0 {
            let after = self.submit(now);
            worked |= self.reap(after);
        }
        if !self.dirty.is_empty() || !self.drains.is_empty() {
            self.publish();
        }
        worked
    }

    fn arm(&mut self) -> bool {
        let mut work = self.io.arm();
        let room = self.io.room() > 0;
        for disk in self.disks.iter().flatten() {
            let parked = self.sched.is_parked(disk.entity);
            for key in &disk.queues {
                if let Some(Some(queue)) = self.queues.get_mut(*key as usize)
                    && queue.is_open()
                {
                    // A parked disk's work waits for its cap, which the deadline is about.
                    // And without a free slot only a completion gets us on.
                    work |= queue.ring.arm() && !parked && room;
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

    fn housekeep(&mut self, _: Cycles) {
        self.check_poison();
        let BlkPlane {
            queues,
            disks,
            index,
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
            if let Some(shared) = disk.shared.latency.get(*index) {
                for (mine, shared) in disk.latency.iter_mut().zip(shared) {
                    mine.publish(shared);
                }
            }
        }
    }

    fn is_patient(&self) -> bool {
        self.io.is_patient()
    }

    fn deadline(&self, now: Cycles) -> Option<Cycles> {
        self.sched.next_release(now)
    }
}
