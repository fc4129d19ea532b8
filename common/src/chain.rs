//! Descriptor chains, copied out of the ring and validated once.
//!
//! A [`Burst`] holds the chains one visit to a ring popped: their segments stand in one arena, so a
//! burst touches a few dense cache lines however long a chain may be. A chain is valid as a whole
//! or it never gets here (virtio 1.3, 2.7.4 and 2.7.5): every segment lies in guest memory, the
//! readable ones come before the writable ones, and the total fits in 64 bits.

use crate::mem::{Mem, Segment};

/// Most chains popped in one visit to a ring. A constant, so that no guest chooses how long its
/// visit lasts; 64 is enough to spread one index read and one system call thin.
pub const BURST: usize = 64;

/// Most segments in one chain: what one vectored system call takes (IOV_MAX is 1024) is far more,
/// and what Linux drivers send is at most 128 or so for the limits we advertise.
pub const MAX_SEGMENTS: usize = 256;

/// Room for segments in a burst: four a chain, and always one longest chain more.
pub const ARENA: usize = BURST * 4 + MAX_SEGMENTS;

/// A chain. One of a single segment has it here; the segments of others stand in the arena.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// The segment, if it is the only one.
    only: Segment,
    id: u16,
    readable: u16,
    writable: u16,
    /// Where in the arena its segments stand, if there are several, or none.
    start: u16,
    /// Sums of their lengths; mean nothing in a chain of a single segment.
    readable_len: u64,
    writable_len: u64,
}

impl Entry {
    #[inline]
    fn is_single(&self) -> bool {
        self.readable + self.writable == 1
    }
}

/// The chains of one visit to a ring. Allocated once and reused.
pub struct Burst {
    /// Those below `len` are chains; the same for `arena` and `used`.
    entries: [Entry; BURST],
    len: usize,
    arena: Box<[Segment; ARENA]>,
    used: usize,
}

impl Default for Burst {
    fn default() -> Burst {
        Burst {
            entries: [Entry::default(); BURST],
            len: 0,
            arena: Box::new([Segment::default(); ARENA]),
            used: 0,
        }
    }
}

impl std::fmt::Debug for Burst {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
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
        (self.len, self.used) = (0, 0);
    }

    /// Chains held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if no chain is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    fn entries(&self) -> &[Entry] {
        self.entries.get(..self.len).unwrap_or_default()
    }

    /// True if one more chain of any length would fit.
    #[inline]
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.len < BURST && self.used <= ARENA - MAX_SEGMENTS
    }

    /// The chain at `index`, in the order the ring gave them.
    #[inline]
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Chain<'_>> {
        let e = self.entries().get(index)?;
        if e.is_single() {
            let (readable, writable) =
                std::slice::from_ref(&e.only).split_at_checked(usize::from(e.readable))?;
            let len = u64::from(e.only.len());
            return Some(Chain {
                id: e.id,
                readable,
                writable,
                readable_len: len * u64::from(e.readable),
                writable_len: len * u64::from(e.writable),
            });
        }
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

    /// The segment of the chain at `index` and the chain's id, if it is the chain's only one and
    /// `writable` says whether the device may write it: what most chains of network drivers are.
    #[inline]
    #[must_use]
    pub fn single(&self, index: usize, writable: bool) -> Option<(u16, Segment)> {
        let e = self.entries().get(index)?;
        let wanted = (u16::from(!writable), u16::from(writable));
        ((e.readable, e.writable) == wanted).then_some((e.id, e.only))
    }

    /// True if any chain has a segment that the device may write.
    #[inline]
    #[must_use]
    pub fn has_writable(&self) -> bool {
        self.entries().iter().fold(0, |any, e| any | e.writable) != 0
    }

    /// What the ring wants back for each chain, in its order.
    #[inline]
    pub fn ids(&self) -> impl Iterator<Item = u16> {
        self.entries().iter().map(|e| e.id)
    }

    /// All chains, in the order the ring gave them.
    pub fn iter(&self) -> impl Iterator<Item = Chain<'_>> {
        (0..self.len).filter_map(|i| self.get(i))
    }

    /// Add chains of one segment each; only a ring does.
    #[inline]
    pub(crate) fn singles(&mut self) -> Singles<'_> {
        Singles {
            entries: self.entries.get_mut(self.len..).unwrap_or_default(),
            added: 0,
            len: &mut self.len,
        }
    }

    /// Begin a chain; only a ring does.
    #[inline]
    pub(crate) fn open(&mut self) -> Builder<'_> {
        let start = self.used;
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

/// Chains of one segment being copied out of a ring. They are counted when this is dropped, so
/// that the count stays in a register.
pub(crate) struct Singles<'a> {
    entries: &'a mut [Entry],
    added: usize,
    len: &'a mut usize,
}

impl Singles<'_> {
    /// How many more fit.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        self.entries.len() - self.added
    }

    /// Add a chain; nothing happens if there is no room.
    #[inline]
    pub(crate) fn push(&mut self, id: u16, seg: Segment, writable: bool) {
        let Some(entry) = self.entries.get_mut(self.added) else {
            return;
        };
        entry.only = seg;
        entry.id = id;
        entry.writable = u16::from(writable);
        entry.readable = u16::from(!writable);
        self.added += 1;
    }
}

impl Drop for Singles<'_> {
    #[inline]
    fn drop(&mut self) {
        *self.len += self.added;
    }
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
        let n = self.burst.used - self.start;
        if !writable && n != self.readable {
            return Err(Unfit::ReadableAfterWritable);
        }
        if n == MAX_SEGMENTS {
            return Err(Unfit::TooLong);
        }
        let place = self.burst.arena.get_mut(self.burst.used);
        *place.ok_or(Unfit::TooLong)? = seg;
        self.burst.used += 1;
        // Each length is below 2^32 and there are at most 256: no sum can wrap.
        if writable {
            self.writable_len += u64::from(seg.len());
        } else {
            self.readable += 1;
            self.readable_len += u64::from(seg.len());
        }
        Ok(())
    }

    /// Ask the processor to fetch the chain's first bytes: the device reads a header there.
    #[inline]
    pub(crate) fn prefetch(&self, mem: &Mem) {
        if let Some(first) = self.burst.arena.get(self.start..self.burst.used)
            && let Some(first) = first.first()
        {
            mem.prefetch(*first);
        }
    }

    /// Finish the chain. The caller asked [`Burst::has_room`] before it opened it.
    #[inline]
    pub(crate) fn close(self, id: u16) {
        let n = self.burst.used - self.start;
        let small = |v: usize| u16::try_from(v).unwrap_or(0); // all are at most ARENA
        if let Some(entry) = self.burst.entries.get_mut(self.burst.len) {
            let only = self.burst.arena.get(self.start).copied();
            *entry = Entry {
                only: only.unwrap_or_default(),
                id,
                readable: small(self.readable),
                writable: small(n - self.readable),
                start: small(self.start),
                readable_len: self.readable_len,
                writable_len: self.writable_len,
            };
            self.burst.len += 1;
        }
        std::mem::forget(self);
    }
}

impl Drop for Builder<'_> {
    fn drop(&mut self) {
        self.burst.used = self.start;
    }
}
