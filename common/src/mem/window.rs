//! A whole mapping at hand, for copies in and out of guest memory.
//!
//! An access names an offset and a length; both are checked against the mapping's here, every time,
//! and the bytes are copied. [`Near`] is the same for a loop that meets one region again and again:
//! address and length stay in registers.

// UNSAFETY: dereferencing the mapping. Each block's argument is bounds (checked in the function)
// and lifetime (a `Window` keeps its `Mapping` alive, a `Near` borrows a `Window`).
#![expect(
    unsafe_code,
    reason = "guest memory is reached through raw pointers, in this folder alone"
)]

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{LINE, Mapping, Segment};

/// A whole mapping, with its address and length at hand: an access checks and copies without
/// following another pointer.
#[derive(Debug, Clone)]
pub struct Window {
    base: NonNull<u8>,
    len: u64,
    /// Keeps the memory mapped.
    _mapping: Arc<Mapping>,
}

// SAFETY: a Window is a Mapping (which is Send) and its address and length.
unsafe impl Send for Window {}
// SAFETY: as for Mapping: all access is by copies and atomic words, and there are no references.
unsafe impl Sync for Window {}

impl Window {
    /// All of `mapping`.
    #[must_use]
    pub fn new(mapping: &Arc<Mapping>) -> Window {
        Window {
            base: mapping.base(),
            len: mapping.len(),
            _mapping: Arc::clone(mapping),
        }
    }

    /// Length in bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never true: a mapping of no bytes is refused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    fn has(&self, off: u64, len: u64) -> bool {
        off <= self.len && len <= self.len - off
    }

    /// Address of `off`, which the caller has checked.
    #[inline]
    fn at(&self, off: u64) -> *mut u8 {
        // Wrapping: the argument that it stays inside is the caller's check, not this line.
        self.base
            .as_ptr()
            .wrapping_add(usize::try_from(off).unwrap_or(usize::MAX))
    }

    /// Copy out `buf.len()` bytes at `off`; false if they are not inside.
    #[inline]
    #[must_use]
    pub fn read(&self, off: u64, buf: &mut [u8]) -> bool {
        if !self.has(off, buf.len() as u64) {
            return false;
        }
        // SAFETY: `off + buf.len() <= self.len` was checked above and the mapping lives as long as
        // `self`; `buf` is private memory, so the two do not overlap.
        unsafe { copy(self.at(off), buf.as_mut_ptr(), buf.len()) };
        true
    }

    /// The 16 bytes at `off` as two words, each read once; none if they are not inside.
    #[inline]
    #[must_use]
    pub fn load_pair(&self, off: u64) -> Option<[u64; 2]> {
        if !self.has(off, 16) {
            return None;
        }
        let pair = self.at(off).cast::<[AtomicU64; 2]>();
        if !pair.addr().is_multiple_of(align_of::<AtomicU64>()) {
            return self.load_pair_bytes(off);
        }
        // SAFETY: 16 bytes at `off` were checked to lie inside, and to be aligned; the mapping
        // lives as long as `self`.
        let [a, b] = unsafe { &*pair };
        Some([a, b].map(|word| u64::from_le(word.load(Ordering::Relaxed))))
    }

    #[cold]
    fn load_pair_bytes(&self, off: u64) -> Option<[u64; 2]> {
        let mut words = [[0; 8]; 2];
        let read = self.read(off, words.as_flattened_mut());
        read.then(|| words.map(u64::from_le_bytes))
    }

    /// Copy in `buf` at `off`; false if it does not fit.
    #[inline]
    #[must_use]
    pub fn write(&self, off: u64, buf: &[u8]) -> bool {
        if !self.has(off, buf.len() as u64) {
            return false;
        }
        // SAFETY: as in `read`, with source and destination exchanged.
        unsafe { copy(buf.as_ptr(), self.at(off), buf.len()) };
        true
    }

    /// Copy `len` bytes at `off` to `to_off` of `to`, which may be the same memory; false if they
    /// do not lie inside on both sides.
    #[inline]
    #[must_use]
    pub fn copy_to(&self, off: u64, to: &Window, to_off: u64, len: u32) -> bool {
        if !self.has(off, len.into()) || !to.has(to_off, len.into()) {
            return false;
        }
        // SAFETY: both ranges were checked above to lie in their mappings, which live as long as
        // the borrows; they may overlap (a guest can share one file twice), which `copy_to` allows.
        unsafe { self.at(off).copy_to(to.at(to_off), len as usize) };
        true
    }

    /// Ask the processor to fetch the cache line at `off`.
    #[inline]
    pub fn prefetch(&self, off: u64) {
        prefetch(self.at(off));
    }

    /// The same for a line that will be written.
    #[inline]
    pub fn prefetch_write(&self, off: u64) {
        prefetch_write(self.at(off));
    }
}

/// One region of a snapshot, for a loop: what is outside of it is for [`super::Mem`] to find.
#[derive(Debug, Clone, Copy)]
pub struct Near<'a> {
    base: NonNull<u8>,
    gpa: u64,
    len: u64,
    index: u32,
    window: PhantomData<&'a Window>,
}

impl<'a> Near<'a> {
    /// The region of number `index`, which begins at `gpa`.
    #[inline]
    pub(super) fn new(window: &'a Window, gpa: u64, index: u32) -> Near<'a> {
        Near {
            base: window.base,
            gpa,
            len: window.len,
            index,
            window: PhantomData,
        }
    }

    /// `gpa .. gpa + len`, if all of it lies in this region and it is not empty.
    #[inline]
    #[must_use]
    pub fn find(&self, gpa: u64, len: u32) -> Option<Segment> {
        let off = gpa.wrapping_sub(self.gpa);
        let room = self.len.wrapping_sub(len.into());
        let inside = u64::from(len) <= self.len && off <= room && len != 0;
        inside.then(|| Segment::new(self.index, off, len))
    }

    /// Fetch the first two cache lines of a segment of this region, to be read or to be written.
    #[inline]
    pub fn prefetch(&self, seg: Segment, write: bool) {
        // A hint: it need not lie inside.
        let at = |off| {
            self.base
                .as_ptr()
                .wrapping_add(usize::try_from(off).unwrap_or(0))
        };
        let (first, second) = (at(seg.off), at(seg.off + u64::from(LINE)));
        let two = seg.len() > LINE;
        if write {
            prefetch_write(first);
            if two {
                prefetch_write(second);
            }
        } else {
            prefetch(first);
            if two {
                prefetch(second);
            }
        }
    }

    /// Copy the first bytes of `seg` out; false if it is of another region, or shorter.
    #[inline]
    #[must_use]
    pub fn read(&self, seg: Segment, buf: &mut [u8]) -> bool {
        let len = buf.len() as u64;
        let mine = seg.region() == self.index && len <= seg.len().into();
        if !mine || seg.off > self.len || len > self.len - seg.off {
            return false;
        }
        let at = self
            .base
            .as_ptr()
            .wrapping_add(usize::try_from(seg.off).unwrap_or(0));
        // SAFETY: `off + len <= self.len` was checked above, and the window is borrowed, so its
        // mapping lives; `buf` is private memory, so the two do not overlap.
        unsafe { copy(at, buf.as_mut_ptr(), buf.len()) };
        true
    }
}

/// Ask the processor to fetch a cache line, to be written if `write` says so. Any address will do:
/// the processor ignores one where nothing is.
#[inline]
pub fn prefetch_hint(address: usize, write: bool) {
    let at = std::ptr::without_provenance(address);
    if write {
        prefetch_write(at);
    } else {
        prefetch(at);
    }
}

/// Ask the processor to fetch the cache line of an address.
#[inline]
pub(super) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch is a hint: it reads no value and faults on no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// The same for a line that will be written: it comes as our own, without a second round trip
/// between processors when the write comes.
#[expect(
    clippy::pointers_in_nomem_asm_block,
    reason = "a hint: it reads and writes nothing"
)]
#[inline]
pub(super) fn prefetch_write(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint as well, and a no-operation where the processor does not know it; the
    // intrinsic for it becomes a plain prefetch unless the build is for newer processors only.
    unsafe {
        std::arch::asm!(
            "prefetchw [{0}]",
            in(reg) at,
            options(nostack, preserves_flags, nomem)
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Copy `len` bytes; headers and small frames (16 to 256 bytes) without a call: two windows of
/// fixed size, one of them ending where the range ends, so that some bytes are copied twice.
///
/// # Safety
/// Both ranges are valid for `len` bytes and do not overlap.
#[inline]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    /// # Safety
    /// As [`copy`], and `TAIL <= N <= len <= N + TAIL`.
    #[inline]
    unsafe fn windows<const N: usize, const TAIL: usize>(from: *const u8, to: *mut u8, len: usize) {
        let (tail, to_tail) = (from.wrapping_add(len - TAIL), to.wrapping_add(len - TAIL));
        // SAFETY: the last bytes, of which there are as many.
        unsafe { tail.copy_to_nonoverlapping(to_tail, TAIL) };
        // The first window comes last: what is read back soonest, a header, then stands in one
        // store each, and need not be put together from two, for which processors stall.
        // SAFETY: the first N of at least N bytes.
        unsafe { from.copy_to_nonoverlapping(to, N) };
    }
    // First what most small frames are: 60 bytes and a header, and acknowledgements of TCP.
    if len.wrapping_sub(64) <= 16 {
        // SAFETY: the caller's promise, and 64 to 80 bytes.
        return unsafe { windows::<64, 16>(from, to, len) };
    }
    match len {
        // SAFETY: the caller's promise, and at least 128 bytes.
        129..=256 => unsafe { windows::<128, 128>(from, to, len) },
        // SAFETY: the caller's promise, and at least 64 bytes.
        81..=128 => unsafe { windows::<64, 64>(from, to, len) },
        // SAFETY: the caller's promise, and at least 32 bytes.
        32..64 => unsafe { windows::<32, 32>(from, to, len) },
        // SAFETY: the caller's promise, and at least 16 bytes.
        16..32 => unsafe { windows::<16, 16>(from, to, len) },
        // SAFETY: the caller's promise.
        _ => unsafe { from.copy_to_nonoverlapping(to, len) },
    }
}
