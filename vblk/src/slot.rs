//! Requests in flight: a slab of fixed capacity, allocated at start.
//!
//! A [`Slot`] is two cache lines: where the request came from, what it still has to do, and its
//! first segments. The segments of longer requests, and the ranges of a DISCARD or WRITE_ZEROES,
//! stand in blocks of a [`Spill`], so that memory is touched only where a guest sends such
//! requests, and the path never allocates. Free slots and blocks are taken last in, first out: the
//! warmest first.
//!
//! A slot that was taken must be given back by [`Slab::free`]; a slab dropped with a slot taken is
//! a bug, and says so in debug builds.

use towpath_common::chain::MAX_SEGMENTS;
use towpath_common::mem::Segment;

use crate::engine::{DiskId, MemId, Token, Verb};
use crate::request::{Data, Kind, MAX_RANGES, Range};

/// A moment, in cycles of the worker's clock.
pub use towpath_common::clock::Cycles;

/// Segments that fit in a slot. Most requests have one, and two are what fills the cache line.
const INLINE: usize = 2;

/// No block, no buffer.
const NONE: u32 = u32::MAX;

/// Where a request came from and where its answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Origin {
    /// The worker's number for the queue.
    pub queue: u32,
    /// The chain's id in its ring.
    pub id: u16,
}

/// A request in flight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    /// First byte of the current extent on the disk.
    pub(crate) offset: u64,
    /// Bytes in the current extent.
    pub(crate) len: u64,
    /// Bytes of it that are done.
    pub(crate) done: u64,
    /// Bytes of earlier extents.
    pub(crate) before: u64,
    pub(crate) started: Cycles,
    /// From then until the first operation was submitted, in units of 16 cycles (5 ns, up to some
    /// 20 s); zero if none was.
    pub(crate) launched: u32,
    pub(crate) status_at: Segment,
    pub(crate) origin: Origin,
    pub(crate) disk: DiskId,
    pub(crate) mem: MemId,
    pub(crate) kind: Kind,
    /// What is being done now.
    pub(crate) verb: Verb,
    /// Each write is durable when it completes.
    pub(crate) durable: bool,
    /// The data goes through a bounce buffer.
    pub(crate) bounced: bool,
    /// The gate of the disk's resident pages is shut for it.
    pub(crate) gated: bool,
    /// The operation in flight is carried out by a kernel thread.
    pub(crate) delegated: bool,
    /// If it fails once more it is not held, whatever the policy.
    pub(crate) last_try: bool,
    /// The range that is the current extent.
    pub(crate) range: u8,
    /// Tries in a row that moved nothing.
    pub(crate) tries: u16,
    /// Segment that byte `done` is in, and bytes of it that are done.
    cursor: u16,
    skip: u32,
    /// The bounce buffer in use.
    pub(crate) buffer: Option<u8>,
    /// Segments, or ranges.
    count: u16,
    /// Block of the spill they are in, if not inline.
    block: u32,
    inline: [Segment; INLINE],
}

impl Slot {
    /// A slot nobody uses.
    fn empty() -> Slot {
        Slot {
            offset: 0,
            len: 0,
            done: 0,
            before: 0,
            started: Cycles::ZERO,
            launched: 0,
            status_at: Segment::default(),
            origin: Origin::default(),
            disk: DiskId(0),
            mem: MemId(0),
            kind: Kind::Flush,
            verb: Verb::Sync,
            durable: false,
            bounced: false,
            gated: false,
            delegated: false,
            last_try: false,
            range: 0,
            tries: 0,
            cursor: 0,
            skip: 0,
            buffer: None,
            count: 0,
            block: NONE,
            inline: [Segment::default(); INLINE],
        }
    }

    /// Begin a request in this slot: nothing done, no data. Field by field, because a slot built
    /// elsewhere and copied here costs more than all the rest.
    #[inline]
    pub(crate) fn begin(&mut self, kind: Kind, origin: Origin, status_at: Segment) {
        (self.offset, self.len, self.done, self.before) = (0, 0, 0, 0);
        (self.origin, self.status_at) = (origin, status_at);
        (self.kind, self.verb) = (kind, Verb::Sync);
        (self.bounced, self.buffer) = (false, None);
        (self.launched, self.last_try) = (0, false);
        (self.range, self.tries) = (0, 0);
        (self.cursor, self.skip) = (0, 0);
        (self.count, self.block) = (0, NONE);
    }
}

/// log2 of the unit of [`Slot::launched`] in cycles.
const LAUNCH_BITS: u32 = 4;

impl Slot {
    /// The first operation was submitted at `now`.
    #[inline]
    pub(crate) fn launch(&mut self, now: Cycles) {
        let after = now.since(self.started).0 >> LAUNCH_BITS;
        self.launched = u32::try_from(after).unwrap_or(u32::MAX).max(1);
    }

    /// When that was.
    #[inline]
    pub(crate) fn submitted(&self) -> Option<Cycles> {
        let after = u64::from(self.launched) << LAUNCH_BITS;
        (after > 0).then(|| self.started + Cycles(after))
    }
}

/// Blocks of `block` items each, for what does not fit in a slot.
#[derive(Debug)]
struct Spill<T> {
    /// Never grows past its first allocation; pages that no block was in are not resident.
    store: Vec<T>,
    block: usize,
    free: Vec<u32>,
}

impl<T: Copy + Default> Spill<T> {
    fn new(blocks: usize, block: usize) -> Spill<T> {
        Spill {
            store: Vec::with_capacity(blocks * block),
            block,
            free: Vec::with_capacity(blocks),
        }
    }

    /// A block nobody uses. There are as many as slots, and a slot has at most one.
    fn take(&mut self) -> u32 {
        if let Some(index) = self.free.pop() {
            return index;
        }
        let index = self.store.len() / self.block;
        self.store
            .resize(self.store.len() + self.block, T::default());
        u32::try_from(index).unwrap_or(NONE)
    }

    fn items(&self, index: u32, count: usize) -> &[T] {
        let start = index as usize * self.block;
        self.store.get(start..start + count).unwrap_or_default()
    }

    fn block_mut(&mut self, index: u32) -> &mut [T] {
        let start = index as usize * self.block;
        self.store
            .get_mut(start..start + self.block)
            .unwrap_or_default()
    }
}

/// All slots of a worker.
#[derive(Debug)]
pub(crate) struct Slab {
    slots: Box<[Slot]>,
    free: Vec<Token>,
    segments: Spill<Segment>,
    ranges: Spill<Range>,
}

impl Slab {
    /// `capacity` free slots.
    pub(crate) fn new(capacity: u32) -> Slab {
        let count = capacity as usize;
        Slab {
            slots: vec![Slot::empty(); count].into(),
            free: (0..capacity).rev().map(Token).collect(),
            segments: Spill::new(count, MAX_SEGMENTS),
            ranges: Spill::new(count, MAX_RANGES),
        }
    }

    /// Free slots.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        self.free.len()
    }

    /// Slots taken.
    pub(crate) fn taken(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Take a slot, if one is free.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<(Token, &mut Slot)> {
        let token = self.free.pop()?;
        Some((token, &mut self.slots[token.0 as usize]))
    }

    /// The slot of `token`, which an engine gave back as it got it.
    #[inline]
    pub(crate) fn get(&self, token: Token) -> &Slot {
        &self.slots[token.0 as usize]
    }

    /// The same, to change.
    #[inline]
    pub(crate) fn get_mut(&mut self, token: Token) -> &mut Slot {
        &mut self.slots[token.0 as usize]
    }

    /// Keep the segments of `data` with the slot.
    #[inline]
    pub(crate) fn keep_data(&mut self, token: Token, data: &Data<'_>) {
        if let Some(only) = data.single() {
            let slot = &mut self.slots[token.0 as usize];
            slot.inline[0] = only;
            slot.count = 1;
        } else {
            self.keep_many(token, data);
        }
    }

    fn keep_many(&mut self, token: Token, data: &Data<'_>) {
        let slot = &mut self.slots[token.0 as usize];
        let mut count = 0;
        for seg in data.iter() {
            if let Some(place) = slot.inline.get_mut(count) {
                *place = seg;
            } else {
                if count == INLINE {
                    slot.block = self.segments.take();
                    self.segments.block_mut(slot.block)[..INLINE].copy_from_slice(&slot.inline);
                }
                match self.segments.block_mut(slot.block).get_mut(count) {
                    Some(place) => *place = seg,
                    None => break, // a chain has no more than a block holds
                }
            }
            count += 1;
        }
        slot.count = u16::try_from(count).unwrap_or(0);
    }

    /// Keep the ranges of a DISCARD or WRITE_ZEROES with the slot.
    pub(crate) fn keep_ranges(&mut self, token: Token, ranges: &[Range]) {
        let slot = &mut self.slots[token.0 as usize];
        slot.block = self.ranges.take();
        let block = self.ranges.block_mut(slot.block);
        block
            .iter_mut()
            .zip(ranges)
            .for_each(|(to, from)| *to = *from);
        slot.count = u16::try_from(ranges.len().min(block.len())).unwrap_or(0);
    }

    /// The slot's segments.
    #[inline]
    pub(crate) fn segments(&self, token: Token) -> &[Segment] {
        let slot = self.get(token);
        let count = usize::from(slot.count);
        match slot.kind {
            Kind::Read | Kind::Write if slot.block == NONE => &slot.inline[..count],
            Kind::Read | Kind::Write => self.segments.items(slot.block, count),
            _ => &[],
        }
    }

    /// The slot's segments from byte `done` on, and how much of the first is done.
    #[inline]
    pub(crate) fn rest(&self, token: Token) -> (&[Segment], u32) {
        let slot = self.get(token);
        let rest = self.segments(token).get(usize::from(slot.cursor)..);
        (rest.unwrap_or_default(), slot.skip)
    }

    /// `bytes` more of the slot's extent are done.
    pub(crate) fn advance(&mut self, token: Token, bytes: u64) {
        let (rest, mut skip) = self.rest(token);
        let (mut left, mut passed) = (bytes, 0);
        for seg in rest {
            let here = u64::from(seg.len() - skip);
            if left < here {
                skip += u32::try_from(left).unwrap_or(0); // below `here`, which is a u32
                break;
            }
            left -= here;
            passed += 1;
            skip = 0;
        }
        let slot = self.get_mut(token);
        slot.cursor += passed;
        slot.skip = skip;
        slot.done += bytes;
    }

    /// The slot's current range.
    pub(crate) fn range(&self, token: Token) -> Option<Range> {
        let slot = self.get(token);
        let ranges = self.ranges.items(slot.block, usize::from(slot.count));
        ranges.get(usize::from(slot.range)).copied()
    }

    /// Give the slot back.
    #[inline]
    pub(crate) fn free(&mut self, token: Token) {
        let slot = self.get(token);
        if slot.block != NONE {
            match slot.kind {
                Kind::Read | Kind::Write => self.segments.free.push(slot.block),
                _ => self.ranges.free.push(slot.block),
            }
        }
        self.free.push(token);
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        let lost = self.taken();
        debug_assert!(
            lost == 0 || std::thread::panicking(),
            "{lost} requests were dropped unfinished"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_two_cache_lines() {
        assert!(size_of::<Slot>() <= 128, "{}", size_of::<Slot>());
    }
}
