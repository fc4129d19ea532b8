//! What workers count, and what the control plane reads of it.
//!
//! As in OVS, "rx" is what the switch received from a port (the guest's transmit queues), "tx" what
//! it sent to a port (the guest's receive queues). Plain counters belong to whoever runs the queue
//! and are published to [`PortShared`]; nothing here is written for each frame by two threads.

mod vlans;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam::queue::ArrayQueue;
use towpath_common::counters;
use towpath_common::ring::Violation;
use towpath_common::stats::Shared;

use crate::discard::Discard;
use crate::vlan::Vid;
pub use vlans::{Carried, VlanCounters};

/// Events that may wait for the log. More in one go are only counted.
const EVENTS: usize = 256;

counters! {
    /// One virtqueue, or one direction of an uplink.
    pub struct QueueCounters {
        /// Frames taken from the port (rx) or given to it (tx).
        frames,
        /// Their bytes, from the destination address on.
        bytes,
        /// Bursts they came in.
        bursts,
        /// Notifications sent to the driver.
        notified,
        /// Publications of which the driver did not want to know.
        suppressed,
        /// Next avail index (a position, not a sum).
        next_avail,
        /// Next used index (a position).
        next_used,
    }
}

/// One queue's published state.
#[derive(Debug)]
pub struct QueueShared {
    /// Counters.
    pub counters: Shared<QueueCounters>,
    /// Times the ring broke, by [`Violation::index`].
    broken: [AtomicU64; Violation::NAMES.len()],
    /// Why it is broken now: an index plus one.
    broken_now: AtomicU8,
}

impl Default for QueueShared {
    fn default() -> Self {
        QueueShared {
            counters: Shared::new(),
            broken: [const { AtomicU64::new(0) }; Violation::NAMES.len()],
            broken_now: AtomicU8::new(0),
        }
    }
}

impl QueueShared {
    /// The ring broke, or is a new one.
    pub fn set_broken(&self, why: Option<Violation>) {
        let index = why.map(|v| v.index());
        if let Some(count) = index.and_then(|i| self.broken.get(i)) {
            count.fetch_add(1, Relaxed);
        }
        let now = index.and_then(|i| u8::try_from(i + 1).ok()).unwrap_or(0);
        self.broken_now.store(now, Relaxed);
    }

    /// Begin with what a predecessor counted, by short name.
    pub fn recall(&self, count: impl Fn(&str) -> u64) {
        for (cell, name) in self.broken.iter().zip(Violation::NAMES) {
            cell.store(count(name), Relaxed);
        }
    }

    /// Why the ring is broken now, by short name.
    #[must_use]
    pub fn broken_now(&self) -> Option<&'static str> {
        let index = usize::from(self.broken_now.load(Relaxed)).checked_sub(1)?;
        Violation::NAMES.get(index).copied()
    }

    /// How often the ring broke, by short name.
    #[must_use]
    pub fn violations(&self) -> Vec<(&'static str, u64)> {
        let counts = self.broken.iter().map(|c| c.load(Relaxed));
        Violation::NAMES.into_iter().zip(counts).collect()
    }
}

/// Frames a worker dropped at one port, by [`Discard::index`].
#[derive(Debug)]
#[repr(align(64))]
pub struct Discards([AtomicU64; Discard::COUNT]);

impl Default for Discards {
    fn default() -> Self {
        Discards([const { AtomicU64::new(0) }; Discard::COUNT])
    }
}

impl Discards {
    /// Count one; only the worker it belongs to does.
    #[inline]
    pub fn count(&self, why: Discard, frames: u64) {
        let cell = &self.0[why.index()];
        cell.store(cell.load(Relaxed).wrapping_add(frames), Relaxed);
    }

    /// Begin with what a predecessor counted, by short name; before any worker counts.
    pub fn recall(&self, count: impl Fn(&str) -> u64) {
        for (cell, name) in self.0.iter().zip(Discard::NAMES) {
            cell.store(count(name), Relaxed);
        }
    }

    /// As counted so far.
    #[must_use]
    pub fn snapshot(&self) -> [u64; Discard::COUNT] {
        std::array::from_fn(|i| self.0[i].load(Relaxed))
    }
}

/// A port's published state; it lives as long as the port's name is configured.
#[derive(Debug)]
pub struct PortShared {
    /// By queue index: even ones are the guest's receive queues (tx), odd ones its transmit queues;
    /// for each queue of an uplink, what was sent and what was received. Each has one writer.
    pub queues: Box<[QueueShared]>,
    /// By worker.
    pub discards: Box<[Discards]>,
    /// By VLAN, what was counted before the port had the VLANs it has. Not for workers.
    past: Mutex<BTreeMap<Vid, Carried>>,
    /// Why its uplink does not work any more. Workers write it once.
    failure: Mutex<Option<String>>,
}

impl PortShared {
    /// For `queues` queues and `workers` workers.
    #[must_use]
    pub fn new(queues: usize, workers: usize) -> PortShared {
        PortShared {
            queues: (0..queues).map(|_| QueueShared::default()).collect(),
            discards: (0..workers).map(|_| Discards::default()).collect(),
            past: Mutex::default(),
            failure: Mutex::default(),
        }
    }

    /// Note why the port's uplink does not work any more, or that it does.
    pub fn fail(&self, why: Option<String>) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Why the port's uplink does not work any more, if so.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        let failure = self.failure.lock();
        failure.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Add to what was counted by VLAN before.
    pub fn remember(&self, more: impl Iterator<Item = (Vid, Carried)>) {
        let sum = self.with_past(more);
        *self.past.lock().unwrap_or_else(PoisonError::into_inner) = sum;
    }

    /// What was counted by VLAN before, and now.
    #[must_use]
    pub fn with_past(&self, now: impl Iterator<Item = (Vid, Carried)>) -> BTreeMap<Vid, Carried> {
        let mut sum = self
            .past
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for (vid, carried) in now {
            let entry = sum.entry(vid).or_default();
            *entry = entry.with(carried);
        }
        sum
    }

    /// Frames dropped at this port, by reason, over all workers.
    #[must_use]
    pub fn discards(&self) -> [u64; Discard::COUNT] {
        let mut sum = [0u64; Discard::COUNT];
        for worker in &self.discards {
            for (total, count) in sum.iter_mut().zip(worker.snapshot()) {
                *total = total.wrapping_add(count);
            }
        }
        sum
    }
}

/// Something a worker wants to be logged.
#[derive(Debug)]
pub enum Event {
    /// A ring was latched.
    Broken {
        /// Its port.
        port: Arc<str>,
        /// Its index.
        queue: u16,
        /// Why.
        violation: Violation,
    },
    /// The guest's memory was truncated; the session ends.
    Poisoned {
        /// Its port.
        port: Arc<str>,
    },
    /// An uplink stopped working.
    UplinkFailed {
        /// Its port.
        port: Arc<str>,
        /// Why.
        error: String,
    },
}

/// Events on their way from the workers to the log.
#[derive(Debug, Clone)]
pub struct Events {
    queue: Arc<ArrayQueue<Event>>,
    lost: Arc<AtomicU64>,
}

impl Default for Events {
    fn default() -> Self {
        Events {
            queue: Arc::new(ArrayQueue::new(EVENTS)),
            lost: Arc::default(),
        }
    }
}

impl Events {
    /// Tell; never waits.
    pub fn tell(&self, event: Event) {
        if self.queue.push(event).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// The next event, oldest first.
    #[must_use]
    pub fn take(&self) -> Option<Event> {
        self.queue.pop()
    }

    /// Events that found no room since this was asked last.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.swap(0, Relaxed)
    }
}
