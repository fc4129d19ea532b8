//! The slowest requests of the last minute or two, kept by each worker for each disk.
//!
//! Two halves, each of at most [`KEPT`] requests: the minute that runs and the one before it. A
//! request gets in if it took longer than the shortest there, so once a half is full nearly all
//! requests pay one comparison and nothing else.

use arrayvec::ArrayVec;
use towpath_common::clock::Cycles;

use crate::request::Kind;
use crate::stages::STAGES;

/// Requests kept for each half.
pub const KEPT: usize = 32;

/// A request and where its time went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    /// Queue of its device.
    pub queue: u16,
    /// What it was.
    pub kind: Kind,
    /// First byte on the disk, of its last range if it has several.
    pub offset: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// What the storage said, zero if it did not fail.
    pub errno: i32,
    /// When it completed.
    pub completed: Cycles,
    /// Its stages, in the order of [`crate::stages::Stage::ALL`]; those not told of are zero.
    pub stages: [Cycles; STAGES],
}

impl Trace {
    /// All its stages together.
    #[must_use]
    pub fn total(&self) -> Cycles {
        self.stages.into_iter().sum()
    }
}

/// The slowest requests of a disk on one worker.
#[derive(Debug, Default)]
pub struct Slow {
    now: ArrayVec<Trace, KEPT>,
    before: ArrayVec<Trace, KEPT>,
    floor: Cycles,
    began: Cycles,
    /// Some of `now` were not told of yet.
    untold: bool,
}

impl Slow {
    /// A request that took no longer is not kept.
    #[inline]
    #[must_use]
    pub fn floor(&self) -> Cycles {
        self.floor
    }

    /// Keep a request that took longer than [`Slow::floor`].
    #[cold]
    pub fn add(&mut self, trace: Trace) {
        if self.now.is_full() {
            let shortest = (0..self.now.len()).min_by_key(|at| self.now[*at].total());
            if let Some(at) = shortest {
                self.now.swap_remove(at);
            }
        }
        self.now.push(trace);
        self.untold = true;
        if self.now.is_full() {
            let shortest = self.now.iter().map(Trace::total).min();
            self.floor = shortest.unwrap_or_default();
        }
    }

    /// What queue `queue` completed was used, and perhaps notified.
    #[inline]
    pub fn told(&mut self, queue: u16, used: Cycles, notified: Option<Cycles>) {
        if self.untold {
            self.complete(queue, used, notified);
        }
    }

    #[cold]
    fn complete(&mut self, queue: u16, used: Cycles, notified: Option<Cycles>) {
        self.untold = false;
        for trace in &mut self.now {
            let [_, _, to_used, to_notified] = &mut trace.stages;
            // A used stage of no cycles at all cannot be told from one to come, and is told again.
            if *to_used != Cycles::ZERO {
                continue;
            }
            if trace.queue == queue {
                *to_used = used.since(trace.completed);
                *to_notified = notified.map_or(Cycles::ZERO, |at| at.since(used));
            } else {
                self.untold = true;
            }
        }
    }

    /// Begin another half if this one is a `minute` old.
    pub fn turn(&mut self, now: Cycles, minute: Cycles) {
        if now.since(self.began) >= minute {
            self.before = std::mem::take(&mut self.now);
            self.floor = Cycles::ZERO;
            self.began = now;
            self.untold = false;
        }
    }

    /// All that are kept, the slowest first.
    #[must_use]
    pub fn list(&self) -> Vec<Trace> {
        let mut all: Vec<Trace> = self.now.iter().chain(&self.before).copied().collect();
        all.sort_by_key(|trace| std::cmp::Reverse(trace.total()));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(queue: u16, completed: u64, device: u64) -> Trace {
        Trace {
            queue,
            kind: Kind::Read,
            offset: 0,
            bytes: 512,
            errno: 0,
            completed: Cycles(completed),
            stages: [0, device, 0, 0].map(Cycles),
        }
    }

    fn offer(slow: &mut Slow, at: u64, device: u64) {
        if Cycles(device) > slow.floor() {
            slow.add(trace(0, at, device));
        }
        slow.told(0, Cycles(at + 1), None);
    }

    #[test]
    fn the_slowest_are_kept_whatever_their_order() {
        let mut slow = Slow::default();
        for n in 0..1_000_u64 {
            offer(&mut slow, n, 1 + n * 7_919 % 1_000);
        }
        let kept: Vec<u64> = slow.list().iter().map(|t| t.stages[1].0).collect();
        let slowest: Vec<u64> = (1_000 - KEPT as u64 + 1..=1_000).rev().collect();
        assert_eq!(kept, slowest);
    }

    #[test]
    fn they_are_forgotten_after_two_minutes() {
        let mut slow = Slow::default();
        slow.turn(Cycles(100), Cycles(100));
        offer(&mut slow, 110, 50);
        slow.turn(Cycles(150), Cycles(100));
        slow.turn(Cycles(200), Cycles(100));
        offer(&mut slow, 210, 5);
        assert_eq!(slow.list().len(), 2);
        slow.turn(Cycles(300), Cycles(100));
        assert_eq!(slow.list()[0].stages[1], Cycles(5));
        slow.turn(Cycles(400), Cycles(100));
        assert!(slow.list().is_empty());
    }

    #[test]
    fn each_is_told_with_its_own_queue() {
        let mut slow = Slow::default();
        slow.add(trace(0, 100, 7));
        slow.add(trace(1, 100, 9));
        slow.told(1, Cycles(130), Some(Cycles(150)));
        slow.told(0, Cycles(140), None);
        slow.told(1, Cycles(900), Some(Cycles(950)));
        let stages: Vec<_> = slow.list().iter().map(|t| (t.queue, t.stages)).collect();
        assert_eq!(stages[0], (1, [0, 9, 30, 20].map(Cycles)));
        assert_eq!(stages[1], (0, [0, 7, 40, 0].map(Cycles)));
    }
}
