//! What a mirror knows of its disks: which may be read where. It belongs to the worker that serves
//! the mirror, and goes from one to the next whole.

use super::bits::Bits;
use super::record::{Head, Known, PAGE_REGIONS, Record, shift_for};

/// How a disk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Standing {
    /// It is not used.
    Failed = 0,
    /// It gets all that is written, and is not read until it has what it missed.
    Behind = 1,
    /// It has all that was acknowledged.
    Current = 2,
}

impl Standing {
    pub(super) fn of(number: u8) -> Standing {
        match number {
            2 => Standing::Current,
            1 => Standing::Behind,
            _ => Standing::Failed,
        }
    }
}

/// The state of a mirror.
#[derive(Debug)]
pub struct State {
    /// The head as it is to be; what is written down may be older.
    pub(crate) head: Head,
    /// The head must be written.
    pub(crate) head_due: bool,
    /// What is written down may say that the disks are left as they are.
    pub(crate) at_rest: bool,
    standings: Vec<Standing>,
    /// Regions that a disk must not be read in.
    pub(crate) behind: Vec<Bits>,
    /// Regions that are marked, or are to be.
    pub(crate) dirty: Bits,
    /// Of these, those that are known to be marked durably.
    pub(crate) marked: Bits,
    /// Regions written since somebody looked.
    pub(crate) recent: Bits,
    /// Pages of bits that must be written.
    pub(crate) due: Vec<bool>,
    /// Regions that are marked and unmarked together; a power of two.
    group: usize,
}

/// Most bytes that are marked for one write. Each mark costs a flush of the record's storage, which
/// may take as long as hundreds of writes: writes all over a disk would wait for one at each
/// region. What a mark costs is copied after a crash.
const GROUP: u64 = 64 << 20;

/// Fewest groups of a disk, as far as it has regions: a small disk is not copied whole.
const GROUPS: usize = 16;

impl State {
    /// The state after `found` was read, of disks with these hashes, of which some are `here`, and
    /// are what `rests` says ([`Known::rest`]).
    pub(super) fn new(found: &Record, hashes: &[u64], here: &[bool], rests: &[u64]) -> State {
        let regions = found.head.regions();
        let known = |hash: &u64| found.head.known.iter().find(|k| k.hash == *hash).copied();
        let mut all: Vec<Known> = hashes
            .iter()
            .map(|hash| {
                known(hash).unwrap_or(Known {
                    hash: *hash,
                    current: false,
                    stranger: true,
                    rest: 0,
                })
            })
            .collect();
        let mut dirty = found.dirty.clone();
        // None until there is a leader: is it as it was left?
        let mut leader: Option<bool> = None;
        let mut standings = Vec::new();
        let mut behind = Vec::new();
        for (i, (known, here)) in all.iter_mut().zip(here).enumerate() {
            let standing = match (*here, known.current) {
                (false, _) => Standing::Failed,
                (true, true) => Standing::Current,
                (true, false) => Standing::Behind,
            };
            known.current = standing == Standing::Current;
            let rest = std::mem::take(&mut known.rest);
            let rested = rest != 0 && rests.get(i) == Some(&rest);
            behind.push(match leader {
                _ if known.stranger => {
                    dirty = Bits::all(regions);
                    Bits::all(regions)
                }
                None if known.current => {
                    leader = Some(rested);
                    Bits::new(regions)
                }
                Some(true) if known.current && rested => Bits::new(regions),
                _ => found.dirty.clone(),
            });
            standings.push(standing);
        }
        let pages = regions.div_ceil(PAGE_REGIONS);
        State {
            head: Head {
                number: found.head.number + 1,
                known: all,
                ..found.head.clone()
            },
            head_due: false,
            at_rest: false,
            standings,
            behind,
            marked: dirty.clone(),
            dirty,
            recent: Bits::new(regions),
            due: vec![false; pages],
            group: group(regions, found.head.shift),
        }
    }

    /// The state of the same disks, all of which have all, with `size` bytes; `equal` if they hold
    /// the same where that is more.
    pub(super) fn resized(&self, size: u64, equal: bool) -> State {
        let mut head = Head {
            number: self.head.number + 1,
            size,
            shift: self.head.shift.max(shift_for(size)),
            known: self.head.known.clone(),
        };
        // Equal where they were; what was added has no part in that.
        head.known.iter_mut().for_each(|known| known.rest = 0);
        let (regions, by) = (head.regions(), head.shift - self.head.shift);
        let scaled = |bits: &Bits| bits.scaled(by, regions);
        let mut dirty = scaled(&self.dirty);
        let mut behind: Vec<Bits> = self.behind.iter().map(scaled).collect();
        if size > self.head.size && !equal {
            let from = usize::try_from(self.head.size >> head.shift).unwrap_or(usize::MAX);
            dirty.set_range(from, regions);
            // As after a crash: the first one is believed.
            for behind in behind.iter_mut().skip(1) {
                behind.set_range(from, regions);
            }
        }
        let pages = regions.div_ceil(PAGE_REGIONS);
        // All are marked in the file where regions have become larger.
        let due = vec![by > 0; pages];
        State {
            head_due: false,
            at_rest: false,
            standings: self.standings.clone(),
            behind,
            marked: dirty.clone(),
            dirty,
            recent: scaled(&self.recent),
            due,
            group: group(regions, head.shift),
            head,
        }
    }

    /// True if all disks are current and may be read everywhere.
    pub(super) fn is_whole(&self) -> bool {
        let current = self.standings.iter().all(|s| *s == Standing::Current);
        current && self.behind.iter().all(Bits::is_empty)
    }

    /// What is written down may be anything; the last head there has this number at most.
    pub(super) fn write_again(&mut self, number: u64) {
        (self.head.number, self.head_due) = (number, true);
        self.due.fill(true);
    }

    /// Mark the group of `region`.
    pub(crate) fn mark(&mut self, region: usize) {
        let (from, to) = self.group_of(region);
        self.dirty.set_range(from, to);
        // Groups do not reach over pages: both are powers of two.
        if let Some(due) = self.due.get_mut(region / PAGE_REGIONS) {
            *due = true;
        }
    }

    /// True if a region of the group of `region` was written lately.
    pub(crate) fn is_recent(&self, region: usize) -> bool {
        let (from, to) = self.group_of(region);
        self.recent.next(from).is_some_and(|next| next < to)
    }

    fn group_of(&self, region: usize) -> (usize, usize) {
        let from = region & !(self.group - 1);
        (from, from + self.group)
    }

    /// What is to be written down.
    pub(super) fn record(&self) -> Record {
        Record {
            head: self.head.clone(),
            dirty: self.dirty.clone(),
        }
    }

    /// How all disks stand.
    pub(super) fn standings(&self) -> Vec<Standing> {
        self.standings.clone()
    }

    /// How disk `index` stands.
    #[inline]
    pub(crate) fn standing(&self, index: usize) -> Standing {
        let standing = self.standings.get(index).copied();
        standing.unwrap_or(Standing::Failed)
    }

    /// Disks that get what is written, one bit each.
    #[inline]
    pub(crate) fn used(&self) -> u8 {
        self.mask(|s| s != Standing::Failed)
    }

    /// Current disks, one bit each.
    #[inline]
    pub(crate) fn current(&self) -> u8 {
        self.mask(|s| s == Standing::Current)
    }

    #[inline]
    fn mask(&self, is: impl Fn(Standing) -> bool) -> u8 {
        let bits = self.standings.iter().enumerate();
        bits.fold(0, |mask, (i, s)| mask | u8::from(is(*s)) << i)
    }

    /// Disk `index` stands like this from now on, which is to be written down.
    pub(crate) fn set(&mut self, index: usize, standing: Standing) {
        if let Some(place) = self.standings.get_mut(index) {
            *place = standing;
        }
        if let Some(known) = self.head.known.get_mut(index) {
            known.current = standing == Standing::Current;
            known.stranger &= standing != Standing::Current;
        }
        self.head_due = true;
    }

    /// Say in the head that every disk which has all is left as it is, being what `rests` says.
    pub(crate) fn rest(&mut self, rests: impl Iterator<Item = u64>) {
        let disks = self.standings.iter().zip(&self.behind);
        let known = self.head.known.iter_mut().zip(rests);
        for ((standing, behind), (known, rest)) in disks.zip(known) {
            let whole = *standing == Standing::Current && behind.is_empty();
            known.rest = if whole { rest } else { 0 };
        }
        (self.head_due, self.at_rest) = (true, true);
    }

    /// The disks are about to be written: take back what [`State::rest`] said, which is so once
    /// `at_rest` is false.
    pub(crate) fn wake(&mut self) {
        if self.head.known.iter().any(|known| known.rest != 0) {
            self.head.known.iter_mut().for_each(|known| known.rest = 0);
            self.head_due = true;
        }
    }

    /// Disk `index` is used again, and has to catch up with what it missed, or all.
    pub(crate) fn readmit(&mut self, index: usize, full: bool) {
        let (Some(behind), Some(known)) =
            (self.behind.get_mut(index), self.head.known.get_mut(index))
        else {
            return;
        };
        known.stranger |= full;
        if known.stranger {
            // Marked before anything is acknowledged: the head waits for the bits.
            let all = Bits::all(self.dirty.len());
            for (page, due) in self.due.iter_mut().enumerate() {
                let from = page * PAGE_REGIONS / 64;
                let count = PAGE_REGIONS / 64;
                *due |= self.dirty.words(from, count) != all.words(from, count);
            }
            self.dirty = all.clone();
            *behind = all;
        } else {
            behind.clone_from(&self.dirty);
        }
        self.set(index, Standing::Behind);
    }

    /// Regions from, to (exclusive) of a range.
    #[inline]
    pub(crate) fn regions(&self, offset: u64, len: u64) -> (usize, usize) {
        let shift = self.head.shift;
        let end = offset.saturating_add(len.max(1)) - 1;
        let number = |at: u64| usize::try_from(at >> shift).unwrap_or(usize::MAX);
        (number(offset), number(end).saturating_add(1))
    }

    /// True if disk `index` may be read there.
    #[inline]
    pub(crate) fn readable(&self, index: usize, offset: u64, len: u64) -> bool {
        let (from, to) = self.regions(offset, len);
        let behind = self.behind.get(index);
        self.standing(index) == Standing::Current
            && behind.is_some_and(|b| b.is_empty() || b.next(from).is_none_or(|r| r >= to))
    }
}

/// Regions of `1 << shift` bytes that a group has, on a disk of so many.
fn group(regions: usize, shift: u32) -> usize {
    let most = usize::try_from(GROUP >> shift).unwrap_or(usize::MAX);
    let most = most.min(regions / GROUPS).max(1);
    1 << most.ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::mirror::record::hash;
    use Standing::{Behind, Current, Failed};

    #[test]
    fn a_group_is_64_mib_or_a_sixteenth_of_the_disk() {
        const MIB: u32 = 20;
        assert_eq!(group(6, MIB), 1);
        assert_eq!(group(256, MIB), 16);
        assert_eq!(group(1000, MIB), 32);
        assert_eq!(group(1 << 16, MIB), 64);
        assert_eq!(group(1 << 16, MIB + 4), 4);
        assert_eq!(group(1 << 16, MIB + 10), 1);
    }

    #[test]
    fn regions_are_marked_and_remembered_by_group() {
        let head = Head::first(256 << 20, &["a".to_owned()], true);
        let found = Record {
            dirty: Bits::new(head.regions()),
            head,
        };
        let mut state = State::new(&found, &[hash(b"a")], &[true], &[]);
        state.mark(37);
        let marked: Vec<usize> = (0..256).filter(|r| state.dirty.get(*r)).collect();
        assert_eq!(marked, (32..48).collect::<Vec<_>>());
        assert!(state.due[0]);
        state.recent.set(40);
        assert!(state.is_recent(32) && state.is_recent(47));
        assert!(!state.is_recent(31) && !state.is_recent(48));
    }

    fn record(currents: [bool; 2]) -> Record {
        let names = ["a".to_owned(), "b".to_owned()];
        let mut record = Record::first(8 << 20, &names, true);
        record.dirty.set(3);
        for (known, current) in record.head.known.iter_mut().zip(currents) {
            known.current = current;
        }
        record
    }

    fn hashes(names: &[&str]) -> Vec<u64> {
        names
            .iter()
            .map(|n| super::super::record::hash(n.as_bytes()))
            .collect()
    }

    #[test]
    fn after_a_crash_the_first_current_disk_is_believed_where_they_may_differ() {
        let state = State::new(
            &record([true, true]),
            &hashes(&["a", "b"]),
            &[true, true],
            &[],
        );
        assert_eq!(state.standings(), [Current, Current]);
        let readable = |i, mib: u64| state.readable(i, mib << 20, 4096);
        assert!(readable(0, 3) && readable(1, 2) && !readable(1, 3));
        assert!(!state.readable(1, (3 << 20) - 512, 1024));
        let lost = State::new(
            &record([true, true]),
            &hashes(&["a", "b"]),
            &[false, true],
            &[],
        );
        assert_eq!(lost.standings(), [Failed, Current]);
        assert!(lost.readable(1, 3 << 20, 512) && !lost.head.known[0].current);
    }

    #[test]
    fn a_stale_disk_is_never_read_and_a_stranger_is_copied_whole() {
        let stale = State::new(
            &record([false, true]),
            &hashes(&["a", "b"]),
            &[true, true],
            &[],
        );
        assert_eq!(stale.standings(), [Behind, Current]);
        assert!(!stale.readable(0, 0, 512) && stale.readable(1, 3 << 20, 512));
        assert_eq!(
            (stale.behind[0].count(), stale.used(), stale.current()),
            (1, 3, 2)
        );
        let alone = State::new(
            &record([false, true]),
            &hashes(&["a", "b"]),
            &[true, false],
            &[],
        );
        assert_eq!(alone.standings(), [Behind, Failed]);
        let new = State::new(
            &record([true, true]),
            &hashes(&["a", "c"]),
            &[true, true],
            &[],
        );
        assert_eq!(new.standings(), [Current, Behind]);
        assert_eq!((new.behind[1].count(), new.dirty.count()), (8, 8));
    }

    #[test]
    fn disks_that_were_left_at_rest_agree_while_they_are_the_same() {
        let found = |rests: [u64; 2]| {
            let mut record = record([true, true]);
            for (known, rest) in record.head.known.iter_mut().zip(rests) {
                known.rest = rest;
            }
            record
        };
        let names = hashes(&["a", "b"]);
        let behind = |record: &Record, rests: [u64; 2]| {
            let state = State::new(record, &names, &[true, true], &rests);
            assert!(!state.at_rest && state.head.known.iter().all(|k| k.rest == 0));
            assert_eq!(state.dirty.count(), 1, "nothing was flushed");
            state.behind[1].count()
        };
        assert_eq!(behind(&found([5, 6]), [5, 6]), 0);
        // Another boot, another device, a record of an older daemon, one that cannot be told.
        for (was, is) in [([5, 6], [5, 7]), ([5, 6], [4, 6]), ([0, 0], [5, 6])] {
            assert_eq!(behind(&found(was), is), 1, "{was:?} {is:?}");
        }
        assert_eq!(behind(&found([0, 0]), [0, 0]), 1);
        let mut stale = found([5, 6]);
        stale.head.known[1].current = false;
        assert_eq!(behind(&stale, [5, 6]), 1, "it missed what is marked");
    }

    #[test]
    fn only_disks_that_have_all_are_left_at_rest() {
        let names = hashes(&["a", "b"]);
        let mut state = State::new(&record([true, true]), &names, &[true, true], &[]);
        state.rest([5, 6].into_iter());
        let rests = |state: &State| state.head.known.iter().map(|k| k.rest).collect::<Vec<_>>();
        assert_eq!((rests(&state), state.head_due), (vec![5, 0], true));
        state.behind[1].clear_all();
        state.rest([5, 6].into_iter());
        assert_eq!(rests(&state), [5, 6]);
        state.head_due = false;
        state.wake();
        assert!(state.at_rest && state.head_due, "until that is written");
        assert_eq!(rests(&state), [0, 0]);
        state.set(1, Failed);
        state.rest([5, 6].into_iter());
        assert_eq!(rests(&state), [5, 0]);
    }

    #[test]
    fn a_disk_that_comes_back_has_to_catch_up_with_what_is_marked() {
        let mut state = State::new(
            &record([true, true]),
            &hashes(&["a", "b"]),
            &[true, true],
            &[],
        );
        state.behind[1].clear_all();
        state.set(1, Failed);
        assert!(state.head_due && !state.head.known[1].current);
        state.dirty.set(5);
        state.readmit(1, false);
        assert_eq!((state.standing(1), state.behind[1].count()), (Behind, 2));
        assert_eq!(state.due, [false]);
        state.readmit(1, true);
        assert_eq!((state.behind[1].count(), state.due[0]), (8, true));
        assert!(state.head.known[1].stranger);
        state.set(1, Current);
        assert!(!state.head.known[1].stranger);
    }
}
