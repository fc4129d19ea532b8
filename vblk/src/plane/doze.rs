//! Disks that ask for nothing are not looked at: a thousand of them cost the busy one beside them
//! next to nothing.
//!
//! A disk that had nothing to do for [`DOZE`] *dozes*: its rings are armed, as before the worker's
//! sleep, and looked at once more. From then on its driver kicks. A worker that sleeps is woken by
//! that; one that is busy with others asks its poller every [`LOOK`], one system call for all that
//! doze, and so a first request may wait that much longer, as it would for a worker asleep. Once in
//! [`ROUND`] all rings are looked at nevertheless: a kick that a driver forgot costs it a second.
//!
//! All that is done for each disk, in every step, before sleeping or in housekeeping, is done for
//! those awake only. A worker that is told never to sleep polls every disk, and none dozes.

use std::time::Duration;

use towpath_common::clock::{Cycles, Rate};

use super::BlkPlane;
use crate::engine::Engine;

/// Time without work after which a disk dozes: some periods of the scheduler, and so long that
/// whoever works now and then does not pay for arming and kicking each time.
const DOZE: Duration = Duration::from_millis(10);

/// How often a busy worker asks who was kicked: about the time in which one asleep wakes.
const LOOK: Duration = Duration::from_micros(50);

/// How often rings of dozing disks are looked at without a kick.
const ROUND: Duration = Duration::from_secs(1);

/// Who dozes, and when they are looked at.
#[derive(Debug)]
pub(super) struct Naps {
    /// Places of the disks that are looked at in every step.
    pub(super) awake: Vec<u16>,
    dozing: usize,
    /// None where nobody may doze.
    doze: Option<Cycles>,
    look: Cycles,
    round: Cycles,
    look_at: Cycles,
    round_at: Cycles,
}

impl Naps {
    /// Nobody is there yet; `may` be that nobody ever dozes.
    pub(super) fn new(may: bool, rate: Rate, now: Cycles) -> Naps {
        Naps {
            awake: Vec::new(),
            dozing: 0,
            doze: may.then(|| rate.of(DOZE)),
            look: rate.of(LOOK),
            round: rate.of(ROUND),
            look_at: now,
            round_at: now,
        }
    }

    /// Time to ask who was kicked.
    #[inline]
    pub(super) fn is_due(&self, now: Cycles) -> bool {
        self.dozing > 0 && now >= self.look_at
    }

    /// A disk came, awake.
    pub(super) fn add(&mut self, at: u16) {
        self.awake.push(at);
    }

    /// A disk went.
    pub(super) fn remove(&mut self, at: u16) {
        match self.awake.iter().position(|awake| *awake == at) {
            Some(place) => _ = self.awake.swap_remove(place),
            None => self.dozing -= 1,
        }
    }
}

impl<E: Engine> BlkPlane<E> {
    /// Have the disk at `at` looked at again in every step.
    pub(super) fn wake(&mut self, at: u16, now: Cycles) {
        let Some(Some(disk)) = self.disks.get_mut(usize::from(at)) else {
            return;
        };
        disk.worked_at = now;
        if !std::mem::take(&mut disk.dozing) {
            return;
        }
        for key in &disk.queues {
            if let Some(Some(queue)) = self.queues.get_mut(*key as usize) {
                queue.ring.disarm();
            }
        }
        self.sched.wake(disk.entity);
        self.naps.dozing -= 1;
        self.naps.awake.push(at);
    }

    /// A queue's driver kicked.
    pub(super) fn kicked(&mut self, key: u32, now: Cycles) {
        if let Some(at) = self.by_queue.get(key as usize) {
            self.wake(*at, now);
        }
    }

    /// Ask who was kicked.
    #[cold]
    pub(super) fn look(&mut self, now: Cycles) {
        self.naps.look_at = now + self.naps.look;
        for key in self.poller.look() {
            self.kicked(key, now);
        }
    }

    /// Let those doze that had nothing to do for long; wake those that have, without a kick.
    pub(super) fn nap(&mut self, now: Cycles) {
        let Some(doze) = self.naps.doze else {
            return;
        };
        let mut place = 0;
        while let Some(&at) = self.naps.awake.get(place) {
            if self.is_quiet(at, now, doze) {
                self.naps.awake.swap_remove(place);
                self.naps.dozing += 1;
            } else {
                place += 1;
            }
        }
        if self.naps.dozing > 0 && now >= self.naps.round_at {
            self.naps.round_at = now + self.naps.round;
            self.round(now);
        }
    }

    /// Does the disk at `at` doze from now on?
    fn is_quiet(&mut self, at: u16, now: Cycles, doze: Cycles) -> bool {
        let Some(Some(disk)) = self.disks.get_mut(usize::from(at)) else {
            return false;
        };
        if now.since(disk.worked_at) < doze || disk.paused || self.io.in_flight_on(disk.id) > 0 {
            return false;
        }
        if !disk.throttles.is_open() && disk.throttles.ask(now) == 0 {
            return false;
        }
        let mut heard = true;
        for key in &disk.queues {
            if let Some(Some(queue)) = self.queues.get_mut(*key as usize)
                && queue.is_open()
            {
                heard &= queue.kick.is_some() && !queue.dirty && !queue.ring.arm();
            }
        }
        if heard {
            disk.dozing = true;
            self.sched.doze(disk.entity);
            return true;
        }
        for key in &disk.queues {
            if let Some(Some(queue)) = self.queues.get_mut(*key as usize) {
                queue.ring.disarm();
            }
        }
        false
    }

    /// Look at every ring of those that doze.
    #[cold]
    fn round(&mut self, now: Cycles) {
        for at in 0..self.disks.len() {
            let Some(Some(disk)) = self.disks.get(at) else {
                continue;
            };
            let mut waits = false;
            for key in disk.queues.iter().filter(|_| disk.dozing) {
                if let Some(Some(queue)) = self.queues.get_mut(*key as usize) {
                    waits |= queue.is_open() && queue.ring.waiting() > 0;
                }
            }
            if let Ok(at) = u16::try_from(at)
                && waits
            {
                self.wake(at, now);
            }
        }
    }
}
