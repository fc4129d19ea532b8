//! How much of a disk's work is taken in one turn.
//!
//! A disk that is busy alone gives all it has, up to a burst. Beside others a turn is about
//! [`SLICE`] of the worker's time, by what the disk's requests cost lately: the megabytes of one do
//! not hold up the sectors of another, and what is left to be taken is what the scheduler's credits
//! decide about.
//!
//! Where weights differ, a turn also leaves half of what waits. The scheduler keeps nobody waiting
//! for somebody who has nothing to do at the moment; a disk with a short queue, taken whole in each
//! turn, would be found so while its driver refills it, and others would get its time, whatever
//! their weight.

use std::time::Duration;

use towpath_common::chain::BURST;
use towpath_common::clock::{Cycles, Rate};

/// Length of a turn beside others.
const SLICE: Duration = Duration::from_micros(50);

/// Two disks that worked within this time are beside each other: twice the scheduler's period,
/// after which one that had to wait was served.
const BESIDE: Duration = Duration::from_millis(2);

/// Requests that are taken in any case: beneath that, a turn is nothing but its own cost.
const LEAST: u64 = 2;

/// Who works beside whom.
#[derive(Debug)]
pub(super) struct Turns {
    /// The disk that worked last, and when.
    recent: (u16, Cycles),
    /// When the one before it did.
    other: Option<Cycles>,
    /// Weights of this worker's disks differ.
    pub(super) weighted: bool,
    slice: u64,
    beside: Cycles,
}

/// What a disk's requests cost.
#[derive(Debug, Default)]
pub(super) struct Price {
    /// Cycles for each, on average; zero if there were none yet.
    each: u64,
    requests: u64,
    spent: u64,
}

impl Price {
    /// So many requests were taken, at this cost.
    #[inline]
    pub(super) fn taken(&mut self, requests: usize, cost: Cycles) {
        if let Some(each) = self.spent.checked_div(self.requests) {
            self.each = if self.each == 0 {
                each
            } else {
                (3 * self.each + each) / 4
            };
        }
        self.requests = requests as u64;
        self.spent = cost.0;
    }

    /// They cost so much more.
    #[inline]
    pub(super) fn later(&mut self, cost: Cycles) {
        self.spent += cost.0;
    }
}

impl Turns {
    pub(super) fn new(rate: Rate) -> Turns {
        Turns {
            recent: (u16::MAX, Cycles::ZERO),
            other: None,
            weighted: false,
            slice: rate.of(SLICE).0,
            beside: rate.of(BESIDE),
        }
    }

    /// The disk at `at` had work.
    #[inline]
    pub(super) fn note(&mut self, at: u16, now: Cycles) {
        if self.recent.0 != at {
            self.other = Some(self.recent.1).filter(|_| self.recent.0 != u16::MAX);
        }
        self.recent = (at, now);
    }

    /// True if more than one disk works.
    #[inline]
    fn crowded(&self, now: Cycles) -> bool {
        self.other
            .is_some_and(|other| now.since(other) < self.beside)
    }

    /// The turn of a disk with this price.
    #[inline]
    pub(super) fn turn(&self, price: &Price, now: Cycles) -> Turn {
        if !self.crowded(now) {
            return Turn {
                left: usize::MAX,
                halves: false,
            };
        }
        let left = self
            .slice
            .checked_div(price.each)
            .map(|left| left.max(LEAST));
        let left = left.and_then(|left| usize::try_from(left).ok());
        let left = left.map_or(BURST, |left| left.min(BURST));
        Turn {
            left,
            halves: self.weighted,
        }
    }
}

/// What may still be taken in a disk's turn.
#[derive(Debug)]
pub(super) struct Turn {
    left: usize,
    halves: bool,
}

impl Turn {
    /// Requests to take of a queue at most; `waiting` tells how many it has.
    #[inline]
    pub(super) fn most(&self, waiting: impl FnOnce() -> usize) -> usize {
        if self.halves {
            self.left.min(waiting().div_ceil(2))
        } else {
            self.left
        }
    }

    /// So many were taken.
    #[inline]
    pub(super) fn took(&mut self, requests: usize) {
        self.left = self.left.saturating_sub(requests);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn turns() -> Turns {
        Turns::new(Rate::NANOSECONDS)
    }

    fn price(each: u64) -> Price {
        let mut price = Price::default();
        price.taken(10, Cycles(4 * each));
        price.later(Cycles(6 * each));
        price.taken(1, Cycles(0));
        price
    }

    #[test]
    fn a_disk_alone_gives_all_it_has() {
        let mut turns = turns();
        turns.weighted = true;
        for at in 0..10 {
            turns.note(3, Cycles(at * MS));
            assert_eq!(
                turns.turn(&price(MS), Cycles(at * MS)).most(|| 1),
                usize::MAX
            );
        }
    }

    #[test]
    fn beside_another_a_turn_is_a_slice_of_time() {
        let mut turns = turns();
        turns.note(3, Cycles(0));
        turns.note(4, Cycles(MS));
        let most = |each| turns.turn(&price(each), Cycles(MS)).most(|| unreachable!());
        assert_eq!(most(100), BURST);
        assert_eq!(most(5_000), 10);
        assert_eq!(most(MS), 2);
        let mut first = turns.turn(&Price::default(), Cycles(MS));
        assert_eq!(first.most(|| 0), BURST);
        first.took(BURST - 1);
        assert_eq!(first.most(|| 0), 1);
        first.took(1);
        assert_eq!(first.most(|| 0), 0);
    }

    #[test]
    fn the_other_is_forgotten_when_it_stops() {
        let mut turns = turns();
        turns.note(3, Cycles(0));
        turns.note(4, Cycles(MS / 2));
        turns.note(4, Cycles(MS));
        let most = |at| turns.turn(&price(5_000), Cycles(at)).most(|| 0);
        assert_eq!(most(MS), 10);
        assert_eq!(most(2 * MS), usize::MAX);
    }

    #[test]
    fn where_weights_differ_half_is_left() {
        let mut turns = turns();
        turns.weighted = true;
        turns.note(3, Cycles(0));
        turns.note(4, Cycles(1));
        let most = |waiting| turns.turn(&price(5_000), Cycles(1)).most(|| waiting);
        assert_eq!([most(0), most(1), most(5), most(100)], [0, 1, 3, 10]);
    }

    #[test]
    fn a_price_follows_what_was_paid() {
        let mut price = price(1_000);
        assert_eq!(price.each, 1_000);
        for _ in 0..20 {
            price.taken(4, Cycles(4 * 9_000));
        }
        assert!((8_900..=9_000).contains(&price.each), "{}", price.each);
    }
}
