//! What workers count, and what the control plane reads of it.
//!
//! A worker owns plain counters for each queue it serves and a latency histogram for each disk and
//! request kind; it publishes them into [`DiskShared`] every few hundred steps. What is rare
//! (errors, broken rings) is counted in shared atomics at once, and told as an [`Event`] so that
//! somebody who may log logs it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use crossbeam::queue::ArrayQueue;
use towpath_common::counters;
use towpath_common::ring::Violation;
use towpath_common::stats::{Histogram, Shared, SharedHistogram};

use crate::backup::Totals;
use crate::request::Kind;
use crate::stages::STAGES;

/// Request kinds, as rows of tables.
pub const KINDS: usize = Kind::ALL.len();

/// Errno values counted one by one; the highest of Linux is 133.
const ERRNOS: usize = 134;

/// Events that may wait for the log. More in one go are only counted.
const EVENTS: usize = 256;

counters! {
    /// One queue, as its worker sees it.
    pub struct QueueCounters {
        /// VIRTIO_BLK_T_IN completed, whatever the outcome.
        reads,
        /// VIRTIO_BLK_T_OUT.
        writes,
        /// VIRTIO_BLK_T_FLUSH.
        flushes,
        /// VIRTIO_BLK_T_GET_ID.
        get_ids,
        /// VIRTIO_BLK_T_DISCARD.
        discards,
        /// VIRTIO_BLK_T_WRITE_ZEROES.
        write_zeroes,
        /// Any other type.
        unsupported,
        /// Bytes read from the disk.
        bytes_read,
        /// Bytes written to the disk.
        bytes_written,
        /// Bytes discarded.
        bytes_discarded,
        /// Bytes zeroed.
        bytes_zeroed,
        /// Requests answered with an error without reaching the disk.
        refused,
        /// Notifications sent to the driver.
        notified,
        /// Publications of which the driver did not want to know.
        suppressed,
        /// Next avail index (a position, not a sum).
        next_avail,
        /// Next used index (a position).
        next_used,
        /// Requests in flight (a level).
        in_flight,
    }
}

impl QueueCounters {
    /// Count one completed request.
    #[inline]
    pub fn completed(&mut self, kind: Kind, bytes: u64) {
        match kind {
            Kind::Read => {
                self.reads += 1;
                self.bytes_read += bytes;
            }
            Kind::Write => {
                self.writes += 1;
                self.bytes_written += bytes;
            }
            Kind::Flush => self.flushes += 1,
            Kind::GetId => self.get_ids += 1,
            Kind::Discard => {
                self.discards += 1;
                self.bytes_discarded += bytes;
            }
            Kind::WriteZeroes => {
                self.write_zeroes += 1;
                self.bytes_zeroed += bytes;
            }
            Kind::Unsupported => self.unsupported += 1,
        }
    }
}

/// One queue's published state.
#[derive(Debug)]
pub struct QueueShared {
    /// Counters.
    pub counters: Shared<QueueCounters>,
    errors: [AtomicU64; ERRNOS],
    /// Times the ring broke, by [`Violation::index`].
    broken: [AtomicU64; Violation::NAMES.len()],
    /// Why it is broken now: an index plus one.
    broken_now: AtomicU8,
}

impl Default for QueueShared {
    fn default() -> Self {
        QueueShared {
            counters: Shared::new(),
            errors: [const { AtomicU64::new(0) }; ERRNOS],
            broken: [const { AtomicU64::new(0) }; Violation::NAMES.len()],
            broken_now: AtomicU8::new(0),
        }
    }
}

impl QueueShared {
    /// Count `count` failed requests.
    pub fn failed(&self, errno: i32, count: u64) {
        let at = usize::try_from(errno)
            .ok()
            .filter(|e| *e < ERRNOS)
            .unwrap_or(0);
        self.errors[at].fetch_add(count, Relaxed);
    }

    /// Failed requests by errno (0: unknown), those that happened.
    pub fn errors(&self) -> impl Iterator<Item = (i32, u64)> {
        let nonzero = |(e, n): (usize, &AtomicU64)| {
            let n = n.load(Relaxed);
            (n > 0).then_some((i32::try_from(e).unwrap_or(0), n))
        };
        self.errors.iter().enumerate().filter_map(nonzero)
    }

    /// The ring broke, or a fresh one was attached.
    pub fn set_broken(&self, violation: Option<Violation>) {
        let code = violation.map_or(0, |v| {
            self.broken[v.index()].fetch_add(1, Relaxed);
            u8::try_from(v.index() + 1).unwrap_or(u8::MAX)
        });
        self.broken_now.store(code, Relaxed);
    }

    /// Why the ring is broken now.
    #[must_use]
    pub fn broken_now(&self) -> Option<&'static str> {
        let code = usize::from(self.broken_now.load(Relaxed));
        Violation::NAMES.get(code.checked_sub(1)?).copied()
    }

    /// Times the ring broke, by reason, those that happened.
    pub fn broken(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.broken.iter().map(|n| n.load(Relaxed));
        Violation::NAMES
            .iter()
            .copied()
            .zip(counts)
            .filter(|(_, n)| *n > 0)
    }
}

/// A disk's published state: survives its sessions.
#[derive(Debug)]
pub struct DiskShared {
    /// Queue by queue.
    pub queues: Vec<QueueShared>,
    /// Worker by worker, kind by kind.
    pub latency: Vec<[SharedHistogram; KINDS]>,
    /// Worker by worker, stage by stage.
    pub stages: Vec<[SharedHistogram; STAGES]>,
    /// Time in which its limits let nothing through, in ns, worker by worker.
    pub throttled: Vec<AtomicU64>,
    /// Backups and copies.
    pub backup: Totals,
}

impl DiskShared {
    /// For a disk with `queues` queues, on `workers` workers.
    #[must_use]
    pub fn new(queues: u16, workers: usize) -> DiskShared {
        DiskShared {
            queues: (0..queues).map(|_| QueueShared::default()).collect(),
            latency: (0..workers).map(|_| Default::default()).collect(),
            stages: (0..workers).map(|_| Default::default()).collect(),
            throttled: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            backup: Totals::default(),
        }
    }
}

/// A worker's own histograms of one disk.
pub type Latency = Box<[Histogram; KINDS]>;

/// What should be logged.
#[derive(Debug, Clone)]
pub enum Event {
    /// A driver broke the rules of its ring.
    Broken {
        /// Disk.
        disk: Arc<str>,
        /// Queue.
        queue: u16,
        /// What it did.
        violation: Violation,
    },
    /// The disk failed requests; told once a burst, with the last errno.
    Failed {
        /// Disk.
        disk: Arc<str>,
        /// Queue.
        queue: u16,
        /// What the last of them was.
        kind: Kind,
        /// Last errno.
        errno: i32,
        /// Failed requests in this burst.
        count: u64,
    },
    /// Requests are held until the storage gets better; told at each try.
    Held {
        /// Disk.
        disk: Arc<str>,
        /// What the storage said last.
        errno: i32,
    },
    /// Guest memory vanished under us (its file was truncated); the session was ended.
    Poisoned {
        /// Disk.
        disk: Arc<str>,
    },
}

/// The way from workers to the log: bounded, never waits.
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
    /// Tell an event, or count it as lost.
    pub fn tell(&self, event: Event) {
        if self.queue.push(event).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// The oldest event not taken yet.
    #[must_use]
    pub fn take(&self) -> Option<Event> {
        self.queue.pop()
    }

    /// Events lost since last asked.
    #[must_use]
    pub fn take_lost(&self) -> u64 {
        self.lost.swap(0, Relaxed)
    }
}
