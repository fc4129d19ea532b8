//! The split virtqueue (virtio 1.3, 2.7): descriptor table, avail ring, used ring.
//!
//! A burst is popped in three passes so that the cache misses overlap: all heads (the descriptors
//! are prefetched), all first descriptors (indirect tables and headers are prefetched), then the
//! walks. Words the guest owns are read once into private values and judged there.
//!
//! Private state is the truth: `next_avail`, `next_used` and the set of heads in flight are never
//! read back from guest memory, except the used index once at start.

mod notify;
mod walk;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrayvec::ArrayVec;

use super::descriptor::{DESC, Desc, INDIRECT, NEXT, WRITE};
use super::inflight::InflightQueue;
use super::reorder::Reorder;
use super::{F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, MAX_SIZE, RingError, Setup, Violation};
use crate::chain::{BURST, Burst, Chain};
use crate::mem::{Cells, DirtyLog, Mem, Near, Segment, View};

/// VIRTQ_AVAIL_F_NO_INTERRUPT, 2.7.6: the driver does not want notifications.
const NO_INTERRUPT: u16 = 1;
/// VIRTQ_USED_F_NO_NOTIFY, 2.7.8: the device does not want kicks.
const NO_NOTIFY: u16 = 1;
/// Offset of the index in both rings; flags stand at 0, the elements at 4.
const IDX: usize = 2;
const ELEMENTS: usize = 4;

#[derive(Debug)]
pub(super) struct Split {
    /// The descriptor table, and the elements of both rings; `avail` and `used` are all of them.
    desc: Cells<16, 16>,
    heads: Cells<2, 2>,
    elements: Cells<8, 4>,
    avail: View,
    used: View,
    mem: Arc<Mem>,
    size: u16,
    mask: u16,
    event_idx: bool,
    indirect: bool,
    next_avail: u16,
    /// Avail index as last read.
    avail_seen: u16,
    /// Used index as staged; `published` is what the driver can see, and `asked` what it was when
    /// we last asked whether the driver wants to be notified.
    next_used: u16,
    published: u16,
    asked: u16,
    /// Region hit last.
    hint: u32,
    /// By head: popped and not yet put. A byte each and not a bit: neighbours are set one after the
    /// other, and would wait for each other's word.
    busy: Box<[bool]>,
    /// Heads to hand out again after a crash, last first.
    resubmit: Vec<u16>,
    /// The last burst came from there.
    resubmitted: bool,
    inflight: Option<InflightQueue>,
    reorder: Option<Reorder>,
    /// Neither of the two.
    plain: bool,
    log: Option<DirtyLog>,
    log_addr: Option<u64>,
    broken: Option<Violation>,
}

/// The whole buffer of a descriptor, in another region than the last, which `near` becomes.
#[cold]
fn elsewhere<'a>(mem: &'a Mem, d: Desc, hint: &mut u32, near: &mut Near<'a>) -> Option<Segment> {
    let found = mem.lookup(d.addr, d.len, hint)?;
    *near = mem.near(*hint)?;
    Some(found).filter(|seg| seg.len() == d.len && d.len != 0)
}

/// The parts of a ring in guest memory: the elements of all three, and both rings whole.
type Parts = (Cells<16, 16>, Cells<2, 2>, Cells<8, 4>, View, View);

/// Find the parts of a ring. Sizes and alignments: 2.7. The avail ring's two bytes may end a region
/// exactly.
fn parts(setup: &Setup, mem: &Mem) -> Result<Parts, RingError> {
    let n = u64::from(setup.size);
    let event = if setup.features & F_EVENT_IDX != 0 {
        2
    } else {
        0
    };
    let part = |part, uva, len, align| {
        mem.view_user(uva, len, align)
            .map_err(|source| RingError::BadPart { part, source })
    };
    let desc = part("descriptor", setup.desc, n * DESC as u64, 16)?;
    let avail = part("avail", setup.avail, 4 + 2 * n + event, 2)?;
    let used = part("used", setup.used, 4 + 8 * n + event, 4)?;
    let cells = (
        Cells::new(&desc, 0, setup.size),
        Cells::new(&avail, ELEMENTS, setup.size),
        Cells::new(&used, ELEMENTS, setup.size),
    );
    let (Some(desc), Some(heads), Some(elements)) = cells else {
        return Err(RingError::BadSize(setup.size.into()));
    };
    Ok((desc, heads, elements, avail, used))
}

impl Split {
    pub(super) fn new(setup: Setup, mem: Arc<Mem>) -> Result<Split, RingError> {
        let size = setup.size;
        if !size.is_power_of_two() || size > MAX_SIZE {
            return Err(RingError::BadSize(size.into()));
        }
        let (desc, heads, elements, avail, used) = parts(&setup, &mem)?;
        let used_idx = used.load_u16(IDX, Ordering::Acquire);
        let mut inflight = setup.inflight;
        let recovered = match &mut inflight {
            Some(table) => table.recover(used_idx, size)?,
            None => None,
        };
        // A table in use says what was popped: as many as are in flight, beyond what was used. The
        // front-end's base is then a guess, QEMU's for one: the used index as it was when the
        // connection broke, to which a predecessor that drained may have added since.
        let base = match (setup.base, &recovered) {
            (Some(base), None) => base,
            _ => {
                let popped = recovered.as_ref().map_or(0, Vec::len);
                used_idx.wrapping_add(u16::try_from(popped).unwrap_or(size))
            }
        };
        let resubmit = recovered.unwrap_or_default();
        let in_order = setup.features & F_IN_ORDER != 0;
        let slots = usize::from(size);
        let reorder = in_order.then(|| Reorder {
            popped: vec![0; slots].into(),
            done: vec![None; slots].into(),
            tail: used_idx,
            next: used_idx,
        });
        Ok(Split {
            desc,
            heads,
            elements,
            avail,
            used,
            mem,
            size,
            mask: size - 1,
            event_idx: setup.features & F_EVENT_IDX != 0,
            indirect: setup.features & F_INDIRECT_DESC != 0,
            next_avail: base,
            avail_seen: base,
            next_used: used_idx,
            published: used_idx,
            asked: used_idx,
            hint: 0,
            busy: vec![false; slots].into(),
            resubmit,
            resubmitted: false,
            plain: inflight.is_none() && reorder.is_none(),
            inflight,
            reorder,
            log: setup.log,
            log_addr: setup.log_addr,
            broken: None,
        })
    }

    #[inline]
    pub(super) fn mem(&self) -> &Arc<Mem> {
        &self.mem
    }

    #[inline]
    pub(super) fn log(&self) -> Option<&DirtyLog> {
        self.log.as_ref()
    }

    #[inline]
    pub(super) fn broken(&self) -> Option<Violation> {
        self.broken
    }

    pub(super) fn latch(&mut self, violation: Violation) {
        self.broken.get_or_insert(violation);
    }

    #[inline]
    pub(super) fn next_avail(&self) -> u16 {
        self.next_avail
    }

    #[inline]
    pub(super) fn next_used(&self) -> u16 {
        self.next_used
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn in_flight(&self) -> u16 {
        let popped = self.busy.iter().filter(|busy| **busy).count();
        u16::try_from(popped).unwrap_or(u16::MAX)
    }

    /// Chains available, at least one index read per call if fewer than `max` are known.
    #[inline]
    fn pending(&mut self, max: usize) -> u16 {
        let known = self.avail_seen.wrapping_sub(self.next_avail);
        if usize::from(known) >= max {
            return known;
        }
        // Acquire: the elements and descriptors behind the index are read after it.
        self.avail_seen = self.avail.load_u16(IDX, Ordering::Acquire);
        let pending = self.avail_seen.wrapping_sub(self.next_avail);
        if pending > self.size {
            self.latch(Violation::AvailJump(pending));
            return 0;
        }
        pending
    }

    pub(super) fn waiting(&mut self) -> usize {
        if self.broken.is_some() {
            return 0;
        }
        match self.resubmit.len() {
            0 => self.pending(usize::MAX).into(),
            left => left,
        }
    }

    #[inline]
    fn descriptor(&self, index: u16) -> Desc {
        let [addr, rest] = self.desc.load_pair(index);
        Desc::from_words(addr, rest)
    }

    #[inline]
    pub(super) fn pop(&mut self, burst: &mut Burst, max: usize) -> usize {
        burst.clear();
        if self.broken.is_some() {
            return 0;
        }
        let mut heads = ArrayVec::<u16, BURST>::new();
        let max = max.min(BURST);
        self.resubmitted = !self.resubmit.is_empty();
        if !self.resubmitted {
            let n = usize::from(self.pending(max)).min(max);
            self.expect_puts(n);
            for i in 0..n {
                #[expect(clippy::cast_possible_truncation, reason = "i < BURST")]
                let head = self.heads.load_u16(self.next_avail.wrapping_add(i as u16));
                self.desc.prefetch(head);
                heads.push(head);
            }
            let done = self.take(&heads, burst);
            #[expect(clippy::cast_possible_truncation, reason = "done <= BURST")]
            {
                self.next_avail = self.next_avail.wrapping_add(done as u16);
            }
            done
        } else {
            // Left over by a process that died: handed out again in the order they came.
            let n = self.resubmit.len().min(max);
            heads.extend(self.resubmit.iter().rev().take(n).copied());
            let done = self.take(&heads, burst);
            self.resubmit.truncate(self.resubmit.len() - done);
            done
        }
    }

    /// Fetch the lines of the used ring that the next `n` elements go to: the driver has read
    /// them, and each would be waited for when it is written. Not the first, where the index
    /// stands: a driver that polls takes it back at once.
    #[inline]
    fn expect_puts(&self, n: usize) {
        /// Used elements in a cache line.
        const LINE: usize = 8;
        for i in (0..n).step_by(LINE) {
            #[expect(clippy::cast_possible_truncation, reason = "i < BURST")]
            let at = self.next_used.wrapping_add(i as u16) & self.mask;
            if usize::from(at) >= LINE {
                self.elements.prefetch_write(at);
            }
        }
    }

    /// Copy the chains of `heads` into `burst`: all of them, or those before the first that does
    /// not fit or breaks the rules.
    #[inline]
    fn take(&mut self, heads: &[u16], burst: &mut Burst) -> usize {
        let done = self.take_singles(heads, burst);
        match heads.get(done..) {
            Some(rest) if !rest.is_empty() && self.broken.is_none() => {
                done + self.take_chains(rest, burst)
            }
            _ => done,
        }
    }

    /// Those at the front that have one buffer in one region, which is what network drivers send;
    /// the descriptor of the first that has not is read anew for [`Self::take_chains`], and
    /// nothing of what was read here is kept.
    #[inline]
    fn take_singles(&mut self, heads: &[u16], burst: &mut Burst) -> usize {
        // The region hit last; what is not in it takes the other way.
        let near = self.mem.near(self.hint);
        let (Some(mut near), true) = (near, self.plain) else {
            return 0;
        };
        let mut singles = burst.singles();
        let heads = heads.get(..singles.room()).unwrap_or(heads);
        for (done, &head) in heads.iter().enumerate() {
            let [addr, rest] = self.desc.load_pair(head);
            let d = Desc::from_words(addr, rest);
            let mut found = near.find(d.addr, d.len);
            if found.is_none() {
                found = elsewhere(&self.mem, d, &mut self.hint, &mut near);
            }
            let (Some(seg), Some(busy)) = (found, self.busy.get_mut(usize::from(head))) else {
                return done;
            };
            if d.flags & (NEXT | INDIRECT) != 0 {
                return done;
            }
            if std::mem::replace(busy, true) {
                self.broken = Some(Violation::HeadInFlight(head));
                return done;
            }
            near.prefetch(seg, d.has(WRITE));
            singles.push(head, seg, d.has(WRITE));
        }
        heads.len()
    }

    /// Any chains.
    fn take_chains(&mut self, heads: &[u16], burst: &mut Burst) -> usize {
        let mut firsts = ArrayVec::<(Desc, Segment), BURST>::new();
        for &head in heads {
            if head >= self.size {
                self.latch(Violation::BadHead(head));
                break;
            }
            let first = self.descriptor(head);
            let seg = self.mem.lookup(first.addr, first.len, &mut self.hint);
            let seg = seg.unwrap_or_default();
            if first.has(WRITE) {
                self.mem.prefetch_write(seg);
            } else {
                self.mem.prefetch(seg);
            }
            firsts.push((first, seg));
        }
        let mut done = 0;
        for (&head, &first) in heads.iter().zip(&firsts) {
            if !burst.has_room() {
                break;
            }
            if let Err(violation) = self.walk(head, first, burst) {
                // The earliest violation counts: one found later in pass two must not hide it.
                self.broken = Some(violation);
                break;
            }
            done += 1;
        }
        done
    }

    /// Note that `head` was popped; false if it is in flight already.
    #[inline]
    fn mark(&mut self, head: u16) -> bool {
        match self.busy.get_mut(usize::from(head)) {
            Some(busy) if !*busy => *busy = true,
            _ => return false,
        }
        if let Some(r) = &mut self.reorder {
            r.popped[usize::from(r.tail & self.mask)] = head;
            r.tail = r.tail.wrapping_add(1);
        }
        // What a predecessor popped is in the table already, and keeps its place there.
        if let Some(table) = self.inflight.as_mut().filter(|_| !self.resubmitted) {
            table.popped(head);
        }
        true
    }

    pub(super) fn unpop(&mut self, burst: &Burst, count: usize) {
        for at in (burst.len().saturating_sub(count)..burst.len()).rev() {
            let Some(Chain { id, .. }) = burst.get(at) else {
                continue;
            };
            self.busy[usize::from(id)] = false;
            if let Some(r) = &mut self.reorder {
                r.tail = r.tail.wrapping_sub(1);
            }
            if self.resubmitted {
                self.resubmit.push(id);
                continue;
            }
            self.next_avail = self.next_avail.wrapping_sub(1);
            if let Some(table) = &mut self.inflight {
                table.returned(id);
            }
        }
    }

    #[inline]
    pub(super) fn put(&mut self, id: u16, written: u32) {
        if self.plain {
            self.put_plain(id, written);
        } else if self.reorder.is_none() {
            self.stage(id, written);
        } else {
            self.put_in_order(id, written);
        }
    }

    /// Nobody keeps book of it but we.
    #[inline]
    fn put_plain(&mut self, id: u16, written: u32) {
        self.elements
            .write_pair(self.next_used, [u32::from(id), written]);
        self.next_used = self.next_used.wrapping_add(1);
        if let Some(busy) = self.busy.get_mut(usize::from(id)) {
            debug_assert!(*busy, "put of a head that is not in flight");
            *busy = false;
        }
    }

    #[inline(never)]
    fn put_in_order(&mut self, id: u16, written: u32) {
        if let Some(r) = &mut self.reorder {
            r.done[usize::from(id)] = Some(written);
        }
        while let Some((head, written)) = self.reorder.as_mut().and_then(|r| r.pull(self.mask)) {
            self.stage(head, written);
        }
    }

    /// Stage chains in the order given: what was written to each.
    #[inline]
    pub(super) fn put_all(&mut self, used: impl Iterator<Item = (u16, u32)>) {
        if self.plain {
            used.for_each(|(id, written)| self.put_plain(id, written));
        } else {
            used.for_each(|(id, written)| self.put(id, written));
        }
    }

    /// Write one used element, invisible until `publish`.
    #[inline(never)]
    fn stage(&mut self, id: u16, written: u32) {
        self.put_plain(id, written);
        if let Some(table) = &mut self.inflight {
            table.used(id);
        }
    }
}
