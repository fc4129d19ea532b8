//! What workers ask before a disk changes: marks the change, and says whether it may happen yet.
//!
//! While a copy is being made, a block that belongs to it and has not been read yet must not
//! change: the worker lets the request wait and asks for that block, which is read next (copy
//! before write). Without a copy under way the question costs a look at a bit that is mostly set,
//! and at a flag.
//!
//! Order: a copy begins while the disk is at rest, and workers learn that it has begun before they
//! take requests again (their mailbox). A block's bit is cleared, with release, after it was read.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;

use super::bitmap::{BLOCK, Bitmap};

/// Most blocks asked for at a time; a request that finds no room asks again at its next turn.
const ASKED: usize = 1024;

/// Marks changes of a disk, and holds them back for a copy.
#[derive(Debug)]
pub struct Tracker {
    bitmap: Bitmap,
    /// The disk's file, for when it was modified last.
    file: Option<File>,
    copying: AtomicBool,
    /// Blocks of the copy that have not been read.
    pending: Box<[AtomicU64]>,
    /// Those that were asked for.
    asked: Box<[AtomicU64]>,
    urgent: ArrayQueue<u64>,
}

fn words(blocks: u64) -> Box<[AtomicU64]> {
    let count = usize::try_from(blocks.div_ceil(64)).unwrap_or(0);
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

/// When a file was modified last.
pub(super) fn stamp(file: &File) -> Option<String> {
    let meta = file.metadata().ok()?;
    Some(format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()))
}

impl Tracker {
    /// A tracker over `bitmap`; `file` is the disk's, if it is a regular one.
    #[must_use]
    pub fn new(bitmap: Bitmap, file: Option<OwnedFd>) -> Tracker {
        Tracker {
            file: file.map(File::from),
            copying: AtomicBool::new(false),
            pending: words(bitmap.blocks()),
            asked: words(bitmap.blocks()),
            urgent: ArrayQueue::new(ASKED),
            bitmap,
        }
    }

    /// Its bitmap.
    #[must_use]
    pub fn bitmap(&self) -> &Bitmap {
        &self.bitmap
    }

    /// `len` bytes from `offset` are about to change: marks them. False if they must not change
    /// yet; the caller asks again.
    #[inline]
    #[must_use]
    pub fn admit(&self, offset: u64, len: u64) -> bool {
        self.bitmap.mark(offset, len);
        !self.copying.load(Ordering::Acquire) || self.copied(offset, len)
    }

    #[cold]
    fn copied(&self, offset: u64, len: u64) -> bool {
        let last = offset.saturating_add(len.saturating_sub(1)) / BLOCK;
        let mut all = true;
        for block in offset / BLOCK..=last {
            if bit(&self.pending, block) {
                all = false;
                if !bit(&self.asked, block) && self.urgent.push(block).is_ok() {
                    set(&self.asked, block);
                }
            }
        }
        all
    }

    /// A copy begins, of the blocks whose bits `wanted` gives by words of 64, of a disk of `size`
    /// bytes that is at rest. How many blocks that is.
    pub fn begin(&self, size: u64, wanted: impl Fn(usize) -> u64) -> u64 {
        let blocks = size.div_ceil(BLOCK);
        let mut count = 0;
        while self.urgent.pop().is_some() {}
        for (index, (pending, asked)) in self.pending.iter().zip(&self.asked).enumerate() {
            let left = blocks.saturating_sub(index as u64 * 64);
            let inside = u32::try_from(left.min(64)).unwrap_or(64);
            let mask = u64::MAX.checked_shr(64 - inside).unwrap_or(0);
            let word = if inside == 0 { 0 } else { wanted(index) & mask };
            count += u64::from(word.count_ones());
            pending.store(word, Ordering::Relaxed);
            asked.store(0, Ordering::Relaxed);
        }
        self.copying.store(true, Ordering::Release);
        count
    }

    /// A block that somebody waits for.
    pub fn next_urgent(&self) -> Option<u64> {
        for _ in 0..=ASKED {
            let block = self.urgent.pop()?;
            if bit(&self.pending, block) {
                return Some(block);
            }
        }
        None
    }

    /// Somebody waits for a block.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        let Some(block) = self.next_urgent() else {
            return false;
        };
        if self.urgent.push(block).is_err()
            && let Some((word, bit)) = place(&self.asked, block)
        {
            // Workers filled the room meanwhile: it is asked for again.
            word.fetch_and(!bit, Ordering::Relaxed);
        }
        true
    }

    /// The first block from `from` on that has not been read.
    #[must_use]
    pub fn next(&self, from: u64) -> Option<u64> {
        let mut index = usize::try_from(from / 64).ok()?;
        let mut word = self.pending.get(index)?.load(Ordering::Relaxed) & (u64::MAX << (from % 64));
        while word == 0 {
            index += 1;
            word = self.pending.get(index)?.load(Ordering::Relaxed);
        }
        Some(index as u64 * 64 + u64::from(word.trailing_zeros()))
    }

    /// `block` was read: it may change.
    pub fn read(&self, block: u64) {
        if let Some((word, bit)) = place(&self.pending, block) {
            word.fetch_and(!bit, Ordering::Release);
        }
    }

    /// The copy is over, complete or not: everything may change.
    pub fn end(&self) {
        self.copying.store(false, Ordering::Release);
    }
}

fn place(words: &[AtomicU64], block: u64) -> Option<(&AtomicU64, u64)> {
    let word = words.get(usize::try_from(block / 64).ok()?)?;
    Some((word, 1 << (block % 64)))
}

fn bit(words: &[AtomicU64], block: u64) -> bool {
    place(words, block).is_some_and(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
}

fn set(words: &[AtomicU64], block: u64) {
    if let Some((word, bit)) = place(words, block) {
        word.fetch_or(bit, Ordering::Relaxed);
    }
}

impl Drop for Tracker {
    /// The last request has finished: nothing is written any more.
    fn drop(&mut self) {
        let stamp = self.file.as_ref().and_then(stamp);
        if let Err(error) = self.bitmap.close(stamp) {
            tracing::warn!(%error, "the bitmap was not closed; after a crash of the machine the \
                next backup is a full one");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracker(size: u64) -> Tracker {
        Tracker::new(Bitmap::in_memory(size).unwrap(), None)
    }

    #[test]
    fn without_a_copy_everything_may_change_and_is_marked() {
        let tracker = tracker(10 * BLOCK);
        assert!(tracker.admit(BLOCK - 1, 2));
        let marked: Vec<u64> = (0..10).filter(|b| tracker.bitmap().is_recent(*b)).collect();
        assert_eq!(marked, [0, 1]);
        assert_eq!(tracker.bitmap().changed_bytes(10 * BLOCK), 2 * BLOCK);
    }

    #[test]
    fn what_has_not_been_read_waits_and_is_asked_for_once() {
        let tracker = tracker(100 * BLOCK);
        assert_eq!(tracker.begin(70 * BLOCK - 5, |_| u64::MAX), 70);
        assert!(!tracker.admit(65 * BLOCK, 1) && !tracker.admit(65 * BLOCK, 1));
        assert!(tracker.is_wanted());
        assert_eq!(tracker.next_urgent(), Some(65));
        assert_eq!(tracker.next_urgent(), None);
        assert!(!tracker.admit(66 * BLOCK, 1));
        tracker.read(66);
        assert!(!tracker.is_wanted(), "nobody waits for what was read");
        tracker.read(65);
        assert!(tracker.admit(65 * BLOCK, BLOCK));
        assert!(!tracker.admit(66 * BLOCK, BLOCK + 1));
        tracker.end();
        assert!(tracker.admit(0, 70 * BLOCK));
    }

    #[test]
    fn blocks_are_found_in_order_and_to_the_end() {
        let tracker = tracker(300 * BLOCK);
        let wanted = [0, 63, 64, 130, 299];
        let words = |index: usize| {
            let here = wanted.iter().filter(|b| *b / 64 == index);
            here.fold(0, |word, b| word | 1 << (b % 64))
        };
        assert_eq!(tracker.begin(300 * BLOCK, words), 5);
        let (mut found, mut at) = (Vec::new(), 0);
        while let Some(block) = tracker.next(at) {
            found.push(usize::try_from(block).unwrap());
            tracker.read(block);
            at = block;
        }
        assert_eq!(found, wanted);
    }

    #[test]
    fn more_asked_for_than_there_is_room_is_asked_for_later() {
        let blocks = 3000;
        let tracker = tracker(blocks * BLOCK);
        tracker.begin(blocks * BLOCK, |_| u64::MAX);
        let mut turns = 0;
        while !tracker.admit(0, blocks * BLOCK) {
            while let Some(block) = tracker.next_urgent() {
                tracker.read(block);
            }
            turns += 1;
            assert!(turns < 10);
        }
        assert_eq!(turns, 3);
    }
}
