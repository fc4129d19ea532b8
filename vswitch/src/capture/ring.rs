//! Records of any length from one thread to another, through a ring of words.
//!
//! One writer, one reader, and neither waits: each owns a position that it publishes after it is
//! done with the words before it (release), and reads the other's (acquire). So the words between
//! the positions are touched by one thread only. They are atomic all the same, which makes this
//! ordinary safe code at the price of a store for each eight bytes.
//!
//! A queue that many threads may use would not do here: in those, a thread that is preempted
//! halfway through an operation can hold up the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

/// Bytes of a word.
const WORD: usize = 8;

struct Shared {
    /// A power of two of them.
    words: Box<[AtomicU64]>,
    /// Words written so far.
    written: CachePadded<AtomicU64>,
    /// Words read so far.
    read: CachePadded<AtomicU64>,
    /// Records for which there was no room, or that the writer gave up.
    missed: CachePadded<AtomicU64>,
}

impl Shared {
    fn word(&self, at: u64) -> &AtomicU64 {
        // The length is a power of two, and the mask keeps the index below it.
        let mask = self.words.len() - 1;
        &self.words[usize::try_from(at).unwrap_or(0) & mask]
    }
}

/// A ring of at least `bytes`: both its ends.
pub(crate) fn ring(bytes: usize) -> (Writer, Reader) {
    let words = bytes.div_ceil(WORD).next_power_of_two();
    let shared = Arc::new(Shared {
        words: (0..words).map(|_| AtomicU64::new(0)).collect(),
        written: CachePadded::default(),
        read: CachePadded::default(),
        missed: CachePadded::default(),
    });
    let writer = Writer {
        shared: Arc::clone(&shared),
        written: 0,
        read: 0,
        missed: 0,
    };
    (writer, Reader { shared, read: 0 })
}

/// The end that writes.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    written: u64,
    /// The reader's position when last looked at.
    read: u64,
    missed: u64,
}

impl Writer {
    /// Whether a record with so many bytes of data fits now.
    #[inline]
    pub(crate) fn fits<const H: usize>(&mut self, bytes: usize) -> bool {
        let needed = 1 + H + bytes.div_ceil(WORD);
        let free = |read: u64| self.shared.words.len() as u64 - (self.written - read);
        if free(self.read) >= needed as u64 {
            return true;
        }
        self.read = self.shared.read.load(Ordering::Acquire);
        free(self.read) >= needed as u64
    }

    /// Writes a record: a header and its data. False if there is no room.
    #[inline]
    pub(crate) fn write<const H: usize>(&mut self, header: [u64; H], data: &[u8]) -> bool {
        if !self.fits::<H>(data.len()) {
            return false;
        }
        let mut at = self.written;
        let mut put = |word: u64| {
            self.shared.word(at).store(word, Ordering::Relaxed);
            at += 1;
        };
        put(data.len() as u64);
        header.into_iter().for_each(&mut put);
        let (words, rest) = data.as_chunks::<WORD>();
        words.iter().for_each(|w| put(u64::from_le_bytes(*w)));
        if !rest.is_empty() {
            let mut last = [0; WORD];
            last[..rest.len()].copy_from_slice(rest);
            put(u64::from_le_bytes(last));
        }
        self.written = at;
        self.shared.written.store(at, Ordering::Release);
        true
    }

    /// Counts a record that was not written.
    #[inline]
    pub(crate) fn miss(&mut self) {
        self.missed += 1;
        self.shared.missed.store(self.missed, Ordering::Release);
    }
}

/// The end that reads.
pub(crate) struct Reader {
    shared: Arc<Shared>,
    read: u64,
}

impl Reader {
    /// The next record, if there is one: its data is appended to `data`.
    pub(crate) fn read<const H: usize>(&mut self, data: &mut Vec<u8>) -> Option<[u64; H]> {
        if self.shared.written.load(Ordering::Acquire) == self.read {
            return None;
        }
        let mut at = self.read;
        let mut get = || {
            let word = self.shared.word(at).load(Ordering::Relaxed);
            at += 1;
            word
        };
        let len = usize::try_from(get()).unwrap_or(0);
        let header = std::array::from_fn(|_| get());
        let end = data.len() + len;
        for _ in 0..len.div_ceil(WORD) {
            data.extend_from_slice(&get().to_le_bytes());
        }
        data.truncate(end);
        self.read = at;
        self.shared.read.store(at, Ordering::Release);
        Some(header)
    }

    /// Records not written so far. Whoever wants it to go with what was read reads first.
    pub(crate) fn missed(&self) -> u64 {
        self.shared.missed.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn what_is_written_is_read_in_order(
            steps in prop::collection::vec(prop::option::of(0..70_usize), 0..400)
        ) {
            let (mut writer, mut reader) = ring(512);
            let mut model: VecDeque<Vec<u8>> = VecDeque::new();
            let mut used = 0;
            for (i, step) in steps.into_iter().enumerate() {
                if let Some(len) = step {
                    let data: Vec<u8> = (0..len).map(|b| (b + i).to_le_bytes()[0]).collect();
                    let size = 3 + len.div_ceil(8);
                    let fits = used + size <= 64;
                    prop_assert_eq!(writer.fits::<2>(len), fits);
                    prop_assert_eq!(writer.write([i as u64, 7], &data), fits);
                    if fits {
                        used += size;
                        model.push_back(data);
                    }
                } else {
                    let mut data = vec![0xee];
                    let header = reader.read::<2>(&mut data);
                    let expected = model.pop_front();
                    prop_assert_eq!(header.is_some(), expected.is_some());
                    if let Some(expected) = expected {
                        used -= 3 + expected.len().div_ceil(8);
                        prop_assert_eq!(&data[1..], &expected[..]);
                    }
                }
            }
        }
    }
}
