//! Descriptor chains, copied out of the ring and validated once.
//!
//! A [`Burst`] holds the chains one visit to a ring popped: their segments stand in one arena, so a
//! burst touches a few dense cache lines however long a chain may be. A chain is valid as a whole
//! or it never gets here (virtio 1.3, 2.7.4 and 2.7.5): every segment lies in guest memory, the
//! readable ones come before the writable ones, and the total fits in 64 bits.

use arrayvec::ArrayVec;

use crate::mem::{Mem, Segment};

/// Most chains popped in one visit to a ring. A constant, so that no guest chooses how long its
/// visit lasts; 64 is enough to spread one index read and one system call thin.
pub const BURST: usize = 64;

/// Most segments in one chain: what one vectored system call takes (IOV_MAX is 1024) is far more,
/// and what Linux drivers send is at most 128 or so for the limits we advertise.
pub const MAX_SEGMENTS: usize = 256;

/// Room for segments in a burst: four a chain, and always one longest chain more.
pub const ARENA: usize = BURST * 4 + MAX_SEGMENTS;

/// Where a chain's segments stand in the arena.
#[derive(Debug, Clone, Copy)]
struct Entry {
    id: u16,
    readable: u16,
    writable: u16,
    start: u16,
    readable_len: u64,
    writable_len: u64,
}

/// The chains of one visit to a ring. Allocated once and reused.
#[derive(Debug, Default)]
pub struct Burst {
    entries: ArrayVec<Entry, BURST>,
    arena: Box<ArrayVec<Segment, ARENA>>,
}

/// One descriptor chain of a [`Burst`].
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a> {
    /// What the ring wants back when the chain is used: the head's index (split ring).
    pub id: u16,
    /// Segments the device may read, in order.
    pub readable: &'a [Segment],
    /// Segments the device may write, in order.
    pub writable: &'a [Segment],
    /// Sum of the readable lengths, in bytes.
    pub readable_len: u64,
    /// Sum of the writable lengths, in bytes.
    pub writable_len: u64,
}

impl Chain<'_> {
    /// Copy the first `buf.len()` readable bytes, however they are split over segments; false if
    /// there are fewer.
    #[inline]
    #[must_use]
    pub fn read(&self, mem: &Mem, buf: &mut [u8]) -> bool {
        match self.readable.first() {
            Some(first) if first.len() as usize >= buf.len() => mem.read(*first, buf),
            _ => self.read_split(mem, buf),
        }
    }

    #[cold]
    fn read_split(&self, mem: &Mem, mut buf: &mut [u8]) -> bool {
        for seg in self.readable {
            let n = buf.len().min(seg.len() as usize);
            let (now, rest) = buf.split_at_mut(n);
            if !mem.read(*seg, now) {
                return false;
            }
            buf = rest;
        }
        buf.is_empty()
    }

    /// The very last writable byte: where virtio-blk wants its status.
    #[inline]
    #[must_use]
    pub fn last_writable_byte(&self) -> Option<Segment> {
        let last = self.writable.iter().rev().find(|s| !s.is_empty())?;
        Some(last.skip(last.len() - 1))
    }
}

impl Burst {
    /// An empty burst.
    #[must_use]
    pub fn new() -> Burst {
        Burst::default()
    }

    /// Forget all chains.
    #[inline]
    pub fn clear(&mut self) {
        self.entries.clear();
        self.arena.clear();
    }

    /// Chains held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if no chain is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// True if one more chain of any length would fit.
    #[inline]
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.entries.is_full() && self.arena.remaining_capacity() >= MAX_SEGMENTS
    }

    /// The chain at `index`, in the order the ring gave them.
    #[inline]
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Chain<'_>> {
        let e = self.entries.get(index)?;
        let start = usize::from(e.start);
        let mid = start + usize::from(e.readable);
        Some(Chain {
            id: e.id,
            readable: self.arena.get(start..mid)?,
            writable: self.arena.get(mid..mid + usize::from(e.writable))?,
            readable_len: e.readable_len,
            writable_len: e.writable_len,
        })
    }

    /// True if any chain has a segment that the device may write.
    #[inline]
    #[must_use]
    pub fn has_writable(&self) -> bool {
        self.entries.iter().fold(0, |any, e| any | e.writable) != 0
    }

    /// What the ring wants back for each chain, in its order.
    #[inline]
    pub fn ids(&self) -> impl Iterator<Item = u16> {
        self.entries.iter().map(|e| e.id)
    }

    /// All chains, in the order the ring gave them.
    pub fn iter(&self) -> impl Iterator<Item = Chain<'_>> {
        (0..self.entries.len()).filter_map(|i| self.get(i))
    }

    /// Add a chain of one segment; only a ring does, after it asked [`Burst::has_room`].
    #[inline]
    pub(crate) fn push_single(&mut self, id: u16, seg: Segment, writable: bool) {
        let start = self.arena.len();
        let len = u64::from(seg.len());
        if self.arena.try_push(seg).is_err() {
            return;
        }
        let one = u16::from(writable);
        let entry = Entry {
            id,
            readable: 1 - one,
            writable: one,
            #[expect(clippy::cast_possible_truncation, reason = "at most ARENA")]
            start: start as u16,
            readable_len: if writable { 0 } else { len },
            writable_len: if writable { len } else { 0 },
        };
        let _ = self.entries.try_push(entry);
    }

    /// Begin a chain; only a ring does.
    #[inline]
    pub(crate) fn open(&mut self) -> Builder<'_> {
        let start = self.arena.len();
        Builder {
            burst: self,
            start,
            readable: 0,
            readable_len: 0,
            writable_len: 0,
        }
    }
}

/// Why a segment does not fit a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// [`MAX_SEGMENTS`] reached.
    TooLong,
    /// Virtio 1.3, 2.7.4.2: device-readable descriptors come first.
    ReadableAfterWritable,
}

/// A chain being copied out of a ring; dropped without [`Builder::close`], it leaves no trace.
#[derive(Debug)]
pub(crate) struct Builder<'a> {
    burst: &'a mut Burst,
    start: usize,
    readable: usize,
    readable_len: u64,
    writable_len: u64,
}

impl Builder<'_> {
    /// Add a segment.
    #[inline]
    pub(crate) fn push(&mut self, seg: Segment, writable: bool) -> Result<(), Unfit> {
        let n = self.burst.arena.len() - self.start;
        if !writable && n != self.readable {
            return Err(Unfit::ReadableAfterWritable);
        }
        if n == MAX_SEGMENTS {
            return Err(Unfit::TooLong);
        }
        // Each length is below 2^32 and there are at most 256: no sum can wrap.
        if writable {
            self.writable_len += u64::from(seg.len());
        } else {
            self.readable += 1;
            self.readable_len += u64::from(seg.len());
        }
        self.burst.arena.try_push(seg).map_err(|_| Unfit::TooLong)
    }

    /// Ask the processor to fetch the chain's first bytes: the device reads a header there.
    #[inline]
    pub(crate) fn prefetch(&self, mem: &Mem) {
        if let Some(first) = self.burst.arena.get(self.start) {
            mem.prefetch(*first);
        }
    }

    /// Finish the chain. The caller asked [`Burst::has_room`] before it opened it.
    #[inline]
    pub(crate) fn close(self, id: u16) {
        let n = self.burst.arena.len() - self.start;
        let small = |v: usize| u16::try_from(v).unwrap_or(0); // all are at most ARENA
        self.burst.entries.push(Entry {
            id,
            readable: small(self.readable),
            writable: small(n - self.readable),
            start: small(self.start),
            readable_len: self.readable_len,
            writable_len: self.writable_len,
        });
        std::mem::forget(self);
    }
}

impl Drop for Builder<'_> {
    fn drop(&mut self) {
        self.burst.arena.truncate(self.start);
    }
}
