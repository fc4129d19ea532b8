//! What changes on a worker between two steps: disks, memory maps, queues.

use std::io;
use std::sync::Arc;

use rustix::fd::AsFd;
use towpath_common::clock::Cycles;
use towpath_common::mailbox::ReplyTo;
use towpath_common::ring::Ring;
use towpath_common::session::Attach;

use super::turns::Price;
use super::{BlkPlane, Change, DiskHere, DiskKey, HALF, NewDisk};
use crate::engine::{Engine, Guest};
use crate::policy::RETRY;
use crate::qos::Throttles;
use crate::queue::Queue;
use crate::stages::Stages;
use crate::stats::Event;
use towpath_common::bell::Bell;

impl<E: Engine> BlkPlane<E> {
    /// Carry out a change.
    pub(super) fn change(&mut self, change: Change, now: Cycles) {
        match change {
            Change::AddDisk(new, reply) => reply.send(self.add_disk(new, now)),
            Change::RemoveDisk(key, reply) => {
                self.remove_disk(key);
                reply.send(());
            }
            Change::SetShare(key, share) => {
                if let Some((_, disk)) = self.find(key) {
                    let entity = disk.entity;
                    self.sched.set_share(entity, share, now);
                    self.turns.weighted = self.sched.weights_differ();
                }
            }
            Change::Throttle(key, [own, group]) => {
                if let Some((_, disk)) = self.find(key) {
                    disk.throttles.replace(own, group);
                }
            }
            Change::Memory(key, guest, reply) => reply.send(self.set_memory(key, &guest)),
            Change::Pause(key, reply) => {
                // Of an unknown disk nothing is in flight, and dropping the reply tells.
                if let Some((_, disk)) = self.find(key) {
                    disk.paused = true;
                    self.pauses.push((key, reply));
                    self.finish_pauses();
                }
            }
            Change::Resume(key) => {
                if let Some((_, disk)) = self.find(key) {
                    disk.paused = false;
                }
            }
            Change::Fetch(key, fetch, reply) => self.fetch(key, &fetch, reply, now),
            Change::Flush(key, flush, reply) => self.flush(key, &flush, reply, now),
            Change::Resize(key, reply) => {
                if let Some((_, disk)) = self.find(key) {
                    disk.limits = disk.disk.limits();
                    reply.send(());
                }
            }
            Change::Slow(key, reply) => {
                let half = self.clock.rate().of(HALF);
                if let Some((_, disk)) = self.find(key) {
                    // One that dozes forgets nothing by itself.
                    disk.stages.slow.turn(now, half);
                    let slowest = disk.stages.slow.list();
                    reply.send((now, slowest));
                }
            }
            Change::Attach(key, index, attach, reply) => {
                reply.send(self.attach(key, index, *attach, now));
            }
            Change::Detach(key, index, reply) => self.detach(key, index, reply, false),
            Change::Leave(key, index, reply) => self.detach(key, index, reply, true),
            Change::Update(key, index, update) => {
                if let Some(slot) = self.find_queue(key, index)
                    && let Some(Some(queue)) = self.queues.get_mut(slot as usize)
                {
                    queue.update(update);
                    self.kicked(slot, now);
                }
            }
        }
    }

    /// Answer those that wait for a disk of which nothing is in flight any more.
    #[cold]
    pub(super) fn finish_pauses(&mut self) {
        let mut at = 0;
        while let Some((key, _)) = self.pauses.get(at) {
            let key = *key;
            let id = self.find(key).map(|(_, disk)| disk.id);
            if id.is_some_and(|id| self.io.in_flight_on(id) > 0) {
                at += 1;
                continue;
            }
            self.pauses.swap_remove(at).1.send(());
        }
    }

    /// Requests are held: have them tried again when it is time.
    #[cold]
    pub(super) fn hold(&mut self, now: Cycles) {
        match self.retry_at {
            None => {
                self.retry_at = Some(now + self.clock.rate().of(RETRY));
                let Some((id, errno)) = self.io.held() else {
                    return;
                };
                let mut disks = self.disks.iter().flatten();
                if let Some(disk) = disks.find(|disk| disk.id == id) {
                    self.events.tell(Event::Held {
                        disk: Arc::clone(&disk.name),
                        errno: errno.raw_os_error(),
                    });
                }
            }
            Some(at) if at <= now => {
                self.retry_at = None;
                self.io.retry();
            }
            Some(_) => {}
        }
    }

    pub(super) fn find(&mut self, key: DiskKey) -> Option<(u16, &mut DiskHere)> {
        let at = self
            .disks
            .iter()
            .position(|d| d.as_ref().is_some_and(|d| d.key == key))?;
        let disk = self.disks.get_mut(at)?.as_mut()?;
        Some((u16::try_from(at).ok()?, disk))
    }

    fn find_queue(&mut self, key: DiskKey, index: u16) -> Option<u32> {
        let (_, disk) = self.find(key)?;
        let keys = disk.queues.clone();
        keys.into_iter()
            .find(|k| self.queue(*k).is_some_and(|q| q.index == index))
    }

    fn queue(&self, key: u32) -> Option<&Queue> {
        self.queues.get(key as usize)?.as_ref()
    }

    pub(super) fn add_disk(&mut self, new: NewDisk, now: Cycles) -> io::Result<()> {
        let NewDisk {
            key,
            name,
            disk,
            share,
            throttles: [own, group],
            shared,
        } = new;
        let entity = self.sched.add(share, now).map_err(io::Error::other)?;
        let id = match self.io.attach(&disk) {
            Ok(id) => id,
            Err(e) => {
                self.sched.remove(entity);
                return Err(e);
            }
        };
        let here = DiskHere {
            key,
            name,
            id,
            limits: disk.limits(),
            disk,
            mem: None,
            entity,
            throttles: Throttles::new(own, group),
            queues: Vec::new(),
            first: 0,
            shared,
            latency: Box::default(),
            stages: Stages::default(),
            paused: false,
            started: 0,
            price: Price::default(),
            worked_at: now,
            dozing: false,
            poisoned: false,
        };
        let at = vacancy(&mut self.disks);
        self.disks[at] = Some(here);
        let at = u16::try_from(at).unwrap_or(u16::MAX);
        self.by_entity[entity.index()] = at;
        self.naps.add(at);
        // Room now, so that the loop never allocates.
        self.started.reserve(self.disks.len());
        self.naps.awake.reserve(self.disks.len());
        self.turns.weighted = self.sched.weights_differ();
        Ok(())
    }

    pub(super) fn remove_disk(&mut self, key: DiskKey) {
        let Some((at, _)) = self.find(key) else {
            return;
        };
        let Some(disk) = self.disks[usize::from(at)].take() else {
            return;
        };
        for key in disk.queues {
            self.queues[key as usize] = None;
        }
        if let Some(mem) = disk.mem {
            self.io.release(mem);
        }
        self.io.detach(disk.id);
        self.sched.remove(disk.entity);
        self.naps.remove(at);
        self.turns.weighted = self.sched.weights_differ();
    }

    pub(super) fn set_memory(&mut self, key: DiskKey, guest: &Guest) -> io::Result<()> {
        let Some((at, disk)) = self.find(key) else {
            return Ok(());
        };
        let old = disk.mem.take();
        disk.poisoned = false;
        if let Some(old) = old {
            self.io.release(old);
        }
        let new = self.io.adopt(guest)?;
        if let Some(Some(disk)) = self.disks.get_mut(usize::from(at)) {
            disk.mem = Some(new);
        }
        Ok(())
    }

    pub(super) fn attach(&mut self, key: DiskKey, index: u16, attach: Attach, now: Cycles) -> bool {
        let Some((at, disk)) = self.find(key) else {
            return false;
        };
        let counters = disk.shared.queues.get(usize::from(index)).map(|q| {
            q.set_broken(None);
            q.counters.snapshot()
        });
        let Ok(bell) = self.bells.pop().map_or_else(Bell::new, Ok) else {
            return false;
        };
        let queue = Queue::new(index, attach, bell, counters.unwrap_or_default());
        let Ok(mut queue) = queue else {
            return false;
        };
        let slot = vacancy(&mut self.queues);
        let Ok(slot_key) = u32::try_from(slot) else {
            return false;
        };
        if let Some(kick) = &queue.kick
            && self.poller.add_as(kick.as_fd(), slot_key).is_err()
        {
            return false;
        }
        queue.ring.disarm();
        self.queues[slot] = Some(queue);
        self.by_queue.resize(self.queues.len(), 0);
        self.by_queue[slot] = at;
        if let Some(Some(disk)) = self.disks.get_mut(usize::from(at)) {
            disk.queues.push(slot_key);
        }
        // Room now, so that the loop never allocates.
        self.dirty.reserve(self.queues.len());
        self.wake(at, now);
        true
    }

    fn detach(&mut self, key: DiskKey, index: u16, reply: ReplyTo<Ring>, leaves: bool) {
        // An unknown queue: dropping the reply tells the caller.
        let Some(slot) = self.find_queue(key, index) else {
            return;
        };
        if let Some(Some(queue)) = self.queues.get_mut(slot as usize) {
            queue.draining = true;
            queue.left = leaves.then_some(0);
        }
        self.drains.push((slot, reply));
        self.finish_drains();
    }

    /// Hand back the rings of draining queues that have nothing in flight any more.
    #[cold]
    pub(super) fn finish_drains(&mut self) {
        let mut at = 0;
        while let Some((slot, _)) = self.drains.get(at) {
            let slot = *slot as usize;
            let key = self.drains[at].0;
            if let Some(Some(Queue {
                left: Some(left), ..
            })) = self.queues.get_mut(slot)
            {
                *left += self.io.drop_holds(key);
            } else {
                self.io.end_holds(key);
            }
            let done = |q: &Queue| q.ring.in_flight() == q.left.unwrap_or(0) && !q.dirty;
            if !self.queues[slot].as_ref().is_some_and(done) {
                at += 1;
                continue;
            }
            let (key, reply) = self.drains.swap_remove(at);
            let Some(mut queue) = self.queues[slot].take() else {
                continue;
            };
            let disk = self
                .disks
                .get_mut(usize::from(self.by_queue[slot]))
                .and_then(Option::as_mut);
            if let Some(disk) = disk {
                disk.queues.retain(|k| *k != key);
                if let Some(shared) = disk.shared.queues.get(usize::from(queue.index)) {
                    queue.report(shared);
                }
            }
            if let Some(kick) = &queue.kick {
                self.poller.remove(kick.as_fd());
            }
            let (ring, bell) = queue.into_parts();
            self.bells.extend(bell);
            reply.send(ring);
        }
    }
}

/// Index of an empty place, made if there is none.
fn vacancy<T>(places: &mut Vec<Option<T>>) -> usize {
    places.iter().position(Option::is_none).unwrap_or_else(|| {
        places.push(None);
        places.len() - 1
    })
}
