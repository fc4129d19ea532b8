//! Another size for a mirror that is served.
//!
//! The worker lends its state for that, between two jobs. What is written down must be true of both
//! sizes at every moment, as either head may count after a crash: so first all regions are marked
//! that are marked under the old head or the new one, then the new head follows, then the rest is
//! unmarked. Where regions become larger, their numbers mean something else under either head, and
//! all are marked meanwhile.
//!
//! What a disk holds past the old end is not known to be the same on all, unless it is a file that
//! was extended just now: such regions are read from the first disk and copied to the others, as
//! after a crash.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::record::MAX_SIZE;
use super::{Mirror, MirrorError, Shared, Standing, State, orders};

/// How long the worker has to lend its state: as long as what it does of its own takes.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(1);

fn refused(why: impl Into<String>) -> MirrorError {
    MirrorError::Refused(why.into())
}

/// The state of a mirror, lent by its worker until this is dropped.
#[derive(Debug)]
struct Borrowed<'a> {
    shared: &'a Shared,
    state: Option<Box<State>>,
}

impl Shared {
    fn borrow(&self) -> Result<Borrowed<'_>, MirrorError> {
        let mut borrowed = Borrowed {
            shared: self,
            state: None,
        };
        self.wanted.store(true, Ordering::Release);
        let until = Instant::now() + PATIENCE;
        while borrowed.state.is_none() && Instant::now() < until {
            self.ring();
            std::thread::sleep(LOOK);
            let parcel = self.parcel.lock();
            borrowed.state = parcel.unwrap_or_else(PoisonError::into_inner).take();
        }
        if borrowed.state.is_none() {
            return Err(refused("the mirror does not come to rest; try again"));
        }
        Ok(borrowed)
    }

    /// True if the worker is to lend its state.
    #[inline]
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire)
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if let Some(state) = self.state.take() {
            self.shared.give_back(state);
        }
        self.shared.wanted.store(false, Ordering::Release);
        self.shared.ring();
    }
}

impl Mirror {
    /// See that every disk is here and has all.
    ///
    /// # Errors
    /// [`MirrorError::Refused`]: the size of the mirror does not change now.
    pub(crate) fn expect_whole(&self) -> Result<(), MirrorError> {
        let shared = &self.shared;
        for (name, gauge) in shared.names.iter().zip(&shared.gauges) {
            let behind = gauge.behind.load(Ordering::Relaxed) > 0;
            match gauge.standing() {
                Standing::Failed => {
                    return Err(refused(format!(
                        "disk {name} of the mirror failed, and would be too small or too large \
                         when it is back: bring it back first (`vblk mirror add`)"
                    )));
                }
                Standing::Current if !behind => {}
                Standing::Behind | Standing::Current => {
                    return Err(refused(format!(
                        "disk {name} of the mirror catches up: wait until it has (`vblk mirror \
                         show`)"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Have `size` bytes from now on, for which all disks have room; `equal` if they hold the same
    /// where that is more. The record says so when this returns, or not at all after an error.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub(crate) fn resize(&self, size: u64, equal: bool) -> Result<(), MirrorError> {
        let _alone = self
            .inside
            .adding
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if size > MAX_SIZE {
            return Err(refused(format!("a mirror has at most {MAX_SIZE} bytes")));
        }
        let mut borrowed = self.shared.borrow()?;
        let Some(state) = borrowed.state.as_mut() else {
            return Ok(());
        };
        if !state.is_whole() {
            return Err(refused(
                "a disk of the mirror has just failed, or has to catch up; try again",
            ));
        }
        let new = state.resized(size, equal);
        let (was, is) = (state.record(), new.record());
        let inside = &self.inside;
        if let Err(error) = orders::rewrite(&inside.record, &was, &is, &inside.record_path) {
            // Whichever head counts now, the next one says what the last one said.
            state.write_again(is.head.number);
            return Err(error);
        }
        self.inside.size.store(size, Ordering::Release);
        self.shared
            .region
            .store(1 << is.head.shift, Ordering::Relaxed);
        for (gauge, behind) in self.shared.gauges.iter().zip(&new.behind) {
            gauge.behind.store(behind.count(), Ordering::Relaxed);
        }
        **state = new;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::bits::Bits;
    use super::super::record::{Head, Record, hash};
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn names() -> Vec<String> {
        vec!["a".to_owned(), "b".to_owned()]
    }

    /// The state of two equal disks of `size` bytes, with these regions marked.
    fn state(size: u64, marked: &[usize]) -> State {
        let head = Head::first(size, &names(), true);
        let mut dirty = Bits::new(head.regions());
        for region in marked {
            dirty.set(*region);
        }
        let hashes = [hash(b"a"), hash(b"b")];
        let mut state = State::new(&Record { head, dirty }, &hashes, &[true, true], &[]);
        state.behind.iter_mut().for_each(Bits::clear_all);
        state
    }

    fn marked(bits: &Bits) -> Vec<usize> {
        (0..bits.len()).filter(|i| bits.get(*i)).collect()
    }

    #[test]
    fn what_was_added_is_read_from_the_first_disk_unless_it_is_known_to_be_equal() {
        let old = state(10 * MIB + 4096, &[3]);
        let equal = old.resized(20 * MIB, true);
        assert_eq!((equal.head.size, equal.dirty.len()), (20 * MIB, 20));
        assert!(equal.is_whole() && marked(&equal.dirty) == [3] && equal.marked == equal.dirty);
        assert!(equal.readable(1, 19 * MIB, 4096));

        let unknown = old.resized(20 * MIB, false);
        let added: Vec<usize> = (10..20).collect();
        assert_eq!(marked(&unknown.behind[1]), added);
        assert_eq!(marked(&unknown.dirty), [vec![3], added].concat());
        assert!(unknown.behind[0].is_empty() && !unknown.is_whole());
        assert!(unknown.readable(0, 19 * MIB, 4096) && !unknown.readable(1, 19 * MIB, 4096));
        assert!(unknown.readable(1, 9 * MIB, 4096));
    }

    #[test]
    fn what_is_cut_off_is_not_marked_any_more() {
        let small = state(20 * MIB, &[3, 15]).resized(10 * MIB, false);
        assert_eq!((small.dirty.len(), marked(&small.dirty)), (10, vec![3]));
        assert!(small.is_whole() && small.due == [false]);
    }

    #[test]
    fn regions_become_larger_where_there_would_be_too_many() {
        let old = state(64 * GIB, &[5, 9, 65_535]);
        assert_eq!(old.head.shift, 20);
        let new = old.resized(200 * GIB, true);
        assert_eq!((new.head.shift, new.dirty.len()), (22, 51_200));
        assert_eq!(marked(&new.dirty), [1, 2, 16_383]);
        assert_eq!(new.due, [true, true], "all are marked in the file");
        let most = old.resized(MAX_SIZE, false);
        let again = Head::decode(&most.head.encode()).unwrap();
        assert_eq!((again.regions(), again.shift), (1 << 16, 40));
    }

    #[test]
    fn disks_that_were_left_at_rest_are_not_so_with_another_size() {
        let mut old = state(10 * MIB, &[]);
        old.rest([5, 6].into_iter());
        let new = old.resized(20 * MIB, false);
        assert!(!new.at_rest && new.head.known.iter().all(|k| k.rest == 0));
    }

    #[test]
    fn a_record_that_may_be_either_is_written_again() {
        let mut old = state(10 * MIB, &[]);
        let number = old.resized(20 * MIB, true).head.number;
        old.write_again(number);
        assert!(old.head_due && old.due == [true] && old.head.size == 10 * MIB);
        assert_eq!(old.head.number, number, "the next one is higher");
    }

    proptest! {
        #[test]
        fn a_crash_leaves_one_size_and_every_mark_of_it(
            sizes in (1..70 * 1024u64, 1..300 * 1024u64),
            regions in prop::collection::vec(0..70 * 1024usize, 0..20),
            equal in any::<bool>(),
            (step, sectors) in (0..2usize, 0..40usize),
        ) {
            let old = state(sizes.0 * MIB, &regions);
            let new = old.resized(sizes.1 * MIB, equal);
            let (was, is) = (old.record(), new.record());
            let mut file = was.bytes();
            // All of the steps before, and some sectors of this one, in no order that is known.
            let steps = orders::steps(&was, &is);
            for (number, (at, bytes)) in steps.iter().enumerate().take(step + 1) {
                let at = usize::try_from(*at).unwrap();
                file.resize(file.len().max(at + bytes.len()), 0);
                for (sector, part) in bytes.chunks(512).enumerate() {
                    if number < step || sector % 41 < sectors {
                        let to = at + sector * 512;
                        file[to..to + part.len()].copy_from_slice(part);
                    }
                }
            }
            let found = Record::parse(&file).unwrap();
            let expected = if found.head == was.head { was } else { is };
            prop_assert_eq!(&found.head, &expected.head);
            let all = marked(&expected.dirty).into_iter().all(|region| found.dirty.get(region));
            prop_assert!(all);
        }
    }
}
