//! A bucket: one cache line, four entries, each one word that says it all and one of remarks.
//!
//! An entry's word holds the rest of its hash, whether this is the hash's second bucket, and the
//! port. With the bucket's number that is the whole key and its port, written and read in one
//! access: a reader cannot see the key of one entry with the port of another, so there is nothing
//! to lock, count or read twice. The second word, the [`Meta`], is for ageing and moves; one that
//! belongs to an entry just replaced does no harm.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use towpath_common::mem::prefetch_hint;

use super::PortNo;

/// Entries of a bucket.
pub(super) const WAYS: usize = 4;

/// A word is: rest of the hash (51 bits), [`SECOND`] (1), port + 1 (12). No entry: 0.
const PORT_BITS: u32 = 12;
const PORT_MASK: u64 = (1 << PORT_BITS) - 1;
/// The entry stands in its hash's second bucket.
pub(super) const SECOND: u64 = 1 << PORT_BITS;
/// Bits below the rest of the hash.
const REST_SHIFT: u32 = PORT_BITS + 1;

/// One more than the largest port number that fits a word.
pub(super) const PORTS: usize = (1 << PORT_BITS) - 1;

/// A cache line of entries.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Bucket {
    words: [AtomicU64; WAYS],
    metas: [AtomicU64; WAYS],
}

/// An entry's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word(u64);

impl Word {
    /// No entry.
    pub(super) const EMPTY: Word = Word(0);

    /// A word without a port.
    #[inline]
    pub(super) fn new(rest: u64, second: bool) -> Word {
        Word(rest << REST_SHIFT | u64::from(second) << PORT_BITS)
    }

    /// This word with another port; without one if the number is too large.
    #[inline]
    pub(super) fn with_port(self, port: PortNo) -> Word {
        let field = u64::from(port.0) + 1;
        let fits = field <= PORT_MASK;
        Word(self.0 & !PORT_MASK | if fits { field } else { 0 })
    }

    /// The port, [`PortNo::NONE`] if there is none.
    #[inline]
    pub(super) fn port(self) -> PortNo {
        port_of(self.0 & PORT_MASK)
    }

    pub(super) fn rest(self) -> u64 {
        self.0 >> REST_SHIFT
    }

    pub(super) fn is_second(self) -> bool {
        self.0 & SECOND != 0
    }
}

/// A port from a word's lowest bits.
#[inline]
fn port_of(field: u64) -> PortNo {
    #[expect(clippy::cast_possible_truncation, reason = "12 bits")]
    PortNo((field as u16).wrapping_sub(1))
}

impl Bucket {
    /// The port of the entry that has `want`'s hash; [`PortNo::NONE`] if there is none.
    ///
    /// No branch depends on which entry it is: that would be mispredicted three times of four.
    #[inline]
    pub(super) fn port(&self, want: Word) -> PortNo {
        let words = self
            .words
            .each_ref()
            .map(|word| word.load(Relaxed) ^ want.0);
        // What is left has the port alone, if all else is equal.
        let mut found = 0_u32;
        for (way, left) in words.iter().enumerate() {
            found |= u32::from(left.wrapping_sub(1) < PORT_MASK) << way;
        }
        if found == 0 {
            return PortNo::NONE;
        }
        port_of(words[found.trailing_zeros() as usize % WAYS])
    }

    /// The entry that is `want`, port included.
    #[inline]
    pub(super) fn exact(&self, want: Word) -> Option<usize> {
        let mut found = 0_u32;
        for (way, word) in self.words.iter().enumerate() {
            found |= u32::from(word.load(Acquire) == want.0) << way;
        }
        (found != 0).then(|| found.trailing_zeros() as usize % WAYS)
    }

    /// The entry that has `want`'s hash, whatever its port.
    pub(super) fn find(&self, want: Word) -> Option<usize> {
        (0..WAYS).find(|way| {
            let word = self.word(*way).0;
            word & PORT_MASK != 0 && (word ^ want.0) & !PORT_MASK == 0
        })
    }

    /// A way without an entry.
    pub(super) fn empty(&self) -> Option<usize> {
        (0..WAYS).find(|way| self.word(*way) == Word::EMPTY)
    }

    #[inline]
    pub(super) fn word(&self, way: usize) -> Word {
        Word(self.words[way].load(Acquire))
    }

    #[inline]
    pub(super) fn meta(&self, way: usize) -> Meta {
        Meta(self.metas[way].load(Relaxed))
    }

    /// Writes an entry: remarks first, so that no reader finds it with those of its predecessor.
    /// Only for the holder of the table's lock.
    pub(super) fn put(&self, way: usize, word: Word, meta: Meta) {
        self.metas[way].store(meta.0, Relaxed);
        self.words[way].store(word.0, Release);
    }

    /// Notes that an entry was seen at `now_s`, unless that is known or somebody else is writing.
    /// For everybody: it fails if the remarks are not those that were read.
    #[inline]
    pub(super) fn refresh(&self, way: usize, now_s: u32) {
        let meta = self.meta(way);
        let age = meta.age_s(now_s);
        if age != 0 {
            let fresh = meta.seen_at(now_s);
            // Lost to another worker, who wrote the same; or the entry is being replaced.
            let _lost = self.metas[way].compare_exchange(meta.0, fresh.0, Relaxed, Relaxed);
        }
    }

    /// Reads the line, so that it is near when it is needed.
    #[inline]
    pub(super) fn touch(&self) {
        prefetch_hint(std::ptr::from_ref(self).addr(), false);
    }
}

/// Remarks on an entry: when it was last seen, whether it is static, how often it moved.
///
/// Bits: seen (24, seconds), moved (16, seconds), moves (4), static (1), home port + 1 (12). Both
/// times wrap, after 194 days and 18 hours; an entry lives shorter unless it is seen, and at worst
/// a move is delayed or allowed once in 18 hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta(u64);

const SEEN_MASK: u32 = (1 << 24) - 1;
const MOVED_SHIFT: u32 = 24;
const MOVES_SHIFT: u32 = 40;
const STATIC: u64 = 1 << 44;
const HOME_SHIFT: u32 = 45;

/// What became of a wish to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Move {
    /// Go.
    Allowed(Meta),
    /// Too often: go home, and stay.
    Home(Meta, PortNo),
    /// Stay.
    Held,
}

impl Meta {
    /// A new dynamic entry.
    pub(super) fn new(now_s: u32) -> Meta {
        Meta(u64::from(now_s & SEEN_MASK))
    }

    /// A static entry.
    pub(super) fn fixed() -> Meta {
        Meta(STATIC)
    }

    pub(super) fn is_static(self) -> bool {
        self.0 & STATIC != 0
    }

    #[inline]
    fn seen(self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "24 bits")]
        let seen = self.0 as u32;
        seen & SEEN_MASK
    }

    /// Seconds since it was seen; 0 if that was later than `now_s` (another worker's clock).
    #[inline]
    pub(super) fn age_s(self, now_s: u32) -> u32 {
        let age = now_s.wrapping_sub(self.seen()) & SEEN_MASK;
        if age <= SEEN_MASK / 2 { age } else { 0 }
    }

    #[inline]
    fn seen_at(self, now_s: u32) -> Meta {
        Meta(self.0 & !u64::from(SEEN_MASK) | u64::from(now_s & SEEN_MASK))
    }

    fn moves(self) -> u32 {
        (self.0 >> MOVES_SHIFT & 0xf) as u32
    }

    /// Seconds since its first recent move, modulo 18 hours.
    fn moved_ago(self, now_s: u32) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "16 bits are kept")]
        let moved = (self.0 >> MOVED_SHIFT) as u16;
        #[expect(clippy::cast_possible_truncation, reason = "modulo 18 hours")]
        let now = now_s as u16;
        u32::from(now.wrapping_sub(moved))
    }

    fn home(self) -> PortNo {
        port_of(self.0 >> HOME_SHIFT & PORT_MASK)
    }

    /// Forgets that `port` was home, which a port of the same number must not inherit.
    pub(super) fn without_home(self, port: PortNo) -> Meta {
        if self.home() == port {
            Meta(self.0 & !(PORT_MASK << HOME_SHIFT))
        } else {
            self
        }
    }

    /// Whether it has moved too often and may not move now.
    pub(super) fn is_held(self, now_s: u32) -> bool {
        self.moves() > super::MOVES_PER_S && self.moved_ago(now_s) < super::HOLD_S
    }

    /// What becomes of a wish to move away from `from`.
    pub(super) fn wish(self, from: PortNo, now_s: u32) -> Move {
        if self.is_held(now_s) {
            return Move::Held;
        }
        let first = self.moves() == 0 || self.moved_ago(now_s) > 0;
        let (moves, home, since) = if first {
            (1, from, now_s)
        } else {
            let began = now_s.wrapping_sub(self.moved_ago(now_s));
            (self.moves() + 1, self.home(), began)
        };
        let field = Word::EMPTY.with_port(home).0;
        let meta = Meta(
            self.0 & STATIC
                | u64::from(now_s & SEEN_MASK)
                | u64::from(since & 0xffff) << MOVED_SHIFT
                | u64::from(moves) << MOVES_SHIFT
                | field << HOME_SHIFT,
        );
        if moves <= super::MOVES_PER_S {
            Move::Allowed(meta)
        } else if home == PortNo::NONE {
            Move::Home(meta, from)
        } else {
            Move::Home(meta, home)
        }
    }
}
