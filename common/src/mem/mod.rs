//! A guest's memory, as its VMM shares it with us: an immutable snapshot ([`Mem`]) of regions,
//! each a window on a file the front-end passed over its socket.
//!
//! - A snapshot never changes. SET_MEM_TABLE, ADD_MEM_REG and REM_MEM_REG build a new one; whoever
//!   still holds the old one (a ring, a request in flight) keeps its mappings alive by its `Arc`.
//! - Guest physical ranges are turned into [`Segment`]s, which name a region by index and are only
//!   offsets: every access checks them against the snapshot it is given, so a stale or forged
//!   segment reads the wrong bytes of the *same* guest at worst, and never leaves a mapping.
//! - No Rust reference into guest memory exists. Bytes are copied in or out through raw pointers,
//!   words are read and written by volatile or atomic operations, all of it in `mapping`.
//! - All `unsafe` of the guest-memory path is in this folder, and none of it relies on anything a
//!   guest does.

mod cells;
mod log;
mod mapping;
mod pages;
mod sigbus;
mod window;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

pub use cells::Cells;
pub use log::DirtyLog;
pub use mapping::{Mapping, View};
pub use pages::Pages;
use thiserror::Error;
pub use window::{Near, Window, prefetch_hint};

/// Most regions in one map: the largest count front-ends use (vhost-user CONFIGURE_MEM_SLOTS).
pub const MAX_REGIONS: usize = 509;

/// Bytes of a cache line.
const LINE: u32 = 64;

/// Maps of up to this many regions are searched one by one.
const SCAN: usize = 8;

/// Bytes of guest memory one dirty-log bit stands for (vhost-user, "Migration").
pub const LOG_PAGE: u64 = 4096;

/// Why a memory map or a range was refused.
#[derive(Debug, Error)]
pub enum MemError {
    /// mmap, fstat or fcntl failed.
    #[error("cannot map {len} bytes at offset {offset} of the region's file: {source}")]
    Map {
        /// Length asked for, in bytes.
        len: u64,
        /// Offset into the file, in bytes.
        offset: u64,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The file is not a regular file (memfd, tmpfs, hugetlbfs), so its size means nothing.
    #[error("a memory region's fd is not a regular file; share memory from a memfd or a file")]
    NotAFile,
    /// The file ends before the region does.
    #[error("a memory region ends at {end} but its file has {size} bytes")]
    FileTooSmall {
        /// End of the region in the file, in bytes.
        end: u64,
        /// Size of the file, in bytes.
        size: u64,
    },
    /// A length of zero, or an address that wraps.
    #[error("memory region {gpa:#x}+{len:#x} is empty or wraps")]
    BadRange {
        /// Guest physical address.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Two regions share guest physical or front-end addresses.
    #[error("memory region {gpa:#x}+{len:#x} overlaps another one")]
    Overlap {
        /// Guest physical address.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
    /// More than [`MAX_REGIONS`].
    #[error("more than {MAX_REGIONS} memory regions")]
    TooMany,
    /// REM_MEM_REG names a region that is not there.
    #[error("no memory region at {gpa:#x}+{len:#x}")]
    NoSuchRegion {
        /// Guest physical address.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A ring's address is not (wholly) inside one region, or is misaligned.
    #[error("front-end address {uva:#x}+{len:#x} is not inside one memory region")]
    BadUserAddress {
        /// Address in the front-end's address space.
        uva: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The process has no room for another mapping.
    #[error("too many guest memory mappings in this process (limit {0})")]
    TooManyMappings(usize),
}

/// One region as the front-end describes it (vhost-user "Memory region description").
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RegionSpec {
    /// Guest physical address of the first byte.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u64,
    /// Address of the first byte in the front-end's address space; ring addresses are given so.
    pub uva: u64,
    /// Offset of the first byte in the file, in bytes.
    pub offset: u64,
}

/// A mapped region.
#[derive(Debug, Clone)]
pub struct Region {
    spec: RegionSpec,
    mapping: Arc<Mapping>,
    /// Kept so that the session's state can be handed to a successor process.
    file: Arc<OwnedFd>,
}

impl Region {
    /// Map `spec` out of `file`.
    ///
    /// The file must be a regular one that reaches to the region's end; where it is a memfd that
    /// still accepts seals, it is sealed against shrinking.
    ///
    /// # Errors
    /// See [`MemError`].
    pub fn map(spec: RegionSpec, file: OwnedFd) -> Result<Region, MemError> {
        let RegionSpec {
            gpa,
            len,
            uva,
            offset,
        } = spec;
        let fits = len > 0
            && gpa.checked_add(len).is_some()
            && uva.checked_add(len).is_some()
            && offset.checked_add(len).is_some();
        if !fits {
            return Err(MemError::BadRange { gpa, len });
        }
        let mapping = Mapping::of_file(file.as_fd(), offset, len)?;
        Ok(Region {
            spec,
            mapping: Arc::new(mapping),
            file: Arc::new(file),
        })
    }

    /// What the front-end said about this region.
    #[must_use]
    pub fn spec(&self) -> RegionSpec {
        self.spec
    }

    /// The file behind this region.
    #[must_use]
    pub fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// The mapping behind this region; it starts at the region's first byte.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }
}

/// A range of guest memory inside one region: 16 bytes, plain data, checked at every use.
///
/// Length and region share one word: written apart and copied together they would stall the
/// processor's store forwarding, which costs more than everything else in a lookup.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// Offset in the region, in bytes.
    off: u64,
    /// Length in bytes (low half), index of the region in the snapshot (high half).
    len_region: u64,
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{:#x}+{:#x}", self.region(), self.off, self.len())
    }
}

impl Segment {
    #[inline]
    fn new(region: u32, off: u64, len: u32) -> Segment {
        Segment {
            off,
            len_region: u64::from(len) | u64::from(region) << 32,
        }
    }

    /// Length in bytes.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the low half")]
    pub fn len(&self) -> u32 {
        self.len_region as u32
    }

    /// True if the segment has no bytes.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Index of the region, which is also the index of its registered buffer.
    #[inline]
    #[must_use]
    pub fn region(&self) -> u32 {
        (self.len_region >> 32) as u32
    }

    /// Without its first `n` bytes; `n` is capped at the length.
    #[inline]
    #[must_use]
    pub fn skip(self, n: u32) -> Segment {
        let n = u64::from(n.min(self.len()));
        Segment {
            off: self.off + n,
            len_region: self.len_region - n,
        }
    }

    /// Its first `n` bytes; `n` is capped at the length.
    #[inline]
    #[must_use]
    pub fn take(self, n: u32) -> Segment {
        Segment::new(self.region(), self.off, self.len().min(n))
    }
}

/// What translation and access touch of a region, packed for the cache.
#[derive(Debug)]
struct Span {
    gpa: u64,
    window: Window,
}

impl Span {
    #[inline]
    fn len(&self) -> u64 {
        self.window.len()
    }
}

/// An immutable snapshot of a guest's memory map.
#[derive(Debug, Default)]
pub struct Mem {
    /// Sorted by guest physical address; `regions[i]` has the span `spans[i]`.
    spans: Box<[Span]>,
    regions: Box<[Region]>,
}

impl Mem {
    /// A snapshot of `regions`, in any order.
    ///
    /// # Errors
    /// [`MemError::Overlap`] or [`MemError::TooMany`].
    pub fn new(mut regions: Vec<Region>) -> Result<Mem, MemError> {
        if regions.len() > MAX_REGIONS {
            return Err(MemError::TooMany);
        }
        regions.sort_by_key(|r| r.spec.uva);
        let clash = |pair: &[Region], at: fn(&RegionSpec) -> u64| match pair {
            [a, b] if at(&a.spec) + a.spec.len > at(&b.spec) => Some(b.spec),
            _ => None,
        };
        let by_uva = regions.windows(2).find_map(|p| clash(p, |s| s.uva));
        regions.sort_by_key(|r| r.spec.gpa);
        let by_gpa = regions.windows(2).find_map(|p| clash(p, |s| s.gpa));
        if let Some(RegionSpec { gpa, len, .. }) = by_gpa.or(by_uva) {
            return Err(MemError::Overlap { gpa, len });
        }
        let spans = regions
            .iter()
            .map(|r| Span {
                gpa: r.spec.gpa,
                window: Window::new(&r.mapping),
            })
            .collect();
        Ok(Mem {
            spans,
            regions: regions.into(),
        })
    }

    /// This snapshot with one more region.
    ///
    /// # Errors
    /// As [`Mem::new`].
    pub fn with(&self, region: Region) -> Result<Mem, MemError> {
        let mut regions = self.regions.to_vec();
        regions.push(region);
        Mem::new(regions)
    }

    /// This snapshot without the region that has `spec`'s guest address, front-end address and
    /// length (REM_MEM_REG; the file offset may be given as zero).
    ///
    /// # Errors
    /// [`MemError::NoSuchRegion`].
    pub fn without(&self, spec: &RegionSpec) -> Result<Mem, MemError> {
        let same =
            |r: &Region| r.spec.gpa == spec.gpa && r.spec.uva == spec.uva && r.spec.len == spec.len;
        if !self.regions.iter().any(same) {
            return Err(MemError::NoSuchRegion {
                gpa: spec.gpa,
                len: spec.len,
            });
        }
        Mem::new(self.regions.iter().filter(|r| !same(r)).cloned().collect())
    }

    /// The regions, sorted by guest physical address.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// True once any region's file was found truncated (the process took SIGBUS on it): the
    /// session that owns this memory must end.
    #[must_use]
    pub fn poisoned(&self) -> bool {
        self.regions.iter().any(|r| r.mapping.poisoned())
    }

    /// Region `index`, for a loop.
    #[inline]
    #[must_use]
    pub fn near(&self, index: u32) -> Option<Near<'_>> {
        let span = self.spans.get(index as usize)?;
        Some(Near::new(&span.window, span.gpa, index))
    }

    /// The part of `gpa..gpa + len` that lies in the region holding `gpa`.
    ///
    /// `hint` is the index of the region the caller hit last; it is tried first and updated.
    #[inline]
    #[must_use]
    pub fn lookup(&self, gpa: u64, len: u32, hint: &mut u32) -> Option<Segment> {
        if let Some(s) = self.spans.get(*hint as usize) {
            let off = gpa.wrapping_sub(s.gpa);
            if off < s.len() && u64::from(len) <= s.len() - off {
                return Some(Segment::new(*hint, off, len));
            }
        }
        self.lookup_slow(gpa, len, hint)
    }

    fn lookup_slow(&self, gpa: u64, len: u32, hint: &mut u32) -> Option<Segment> {
        // Few regions: a scan predicts better than a search.
        let index = if self.spans.len() <= SCAN {
            let holds = |s: &Span| gpa.wrapping_sub(s.gpa) < s.len();
            self.spans.iter().position(holds)?
        } else {
            self.spans
                .partition_point(|s| s.gpa <= gpa)
                .checked_sub(1)?
        };
        let s = self.spans.get(index)?;
        let off = gpa - s.gpa;
        let room = s.len().checked_sub(off).filter(|r| *r > 0)?;
        *hint = u32::try_from(index).ok()?;
        let len = u32::try_from(room).map_or(len, |room| len.min(room));
        Some(Segment::new(*hint, off, len))
    }

    /// The bytes at front-end address `uva`, which must all lie in one region, aligned to `align`
    /// in our address space as well.
    ///
    /// # Errors
    /// [`MemError::BadUserAddress`].
    pub fn view_user(&self, uva: u64, len: u64, align: usize) -> Result<View, MemError> {
        let bad = MemError::BadUserAddress { uva, len };
        let Some((region, off)) = self.regions.iter().find_map(|r| {
            let off = uva.checked_sub(r.spec.uva)?;
            let room = r.spec.len.checked_sub(off)?;
            (len <= room).then_some((r, off))
        }) else {
            return Err(bad);
        };
        View::new(&region.mapping, off, len, align).ok_or(bad)
    }

    #[inline]
    fn window(&self, seg: Segment) -> Option<&Window> {
        self.spans.get(seg.region() as usize).map(|s| &s.window)
    }

    /// Copy the first bytes of `seg` out of guest memory; false if `buf` is longer than `seg` or
    /// `seg` is not of this snapshot.
    #[inline]
    #[must_use]
    pub fn read(&self, seg: Segment, buf: &mut [u8]) -> bool {
        buf.len() <= seg.len() as usize && self.window(seg).is_some_and(|m| m.read(seg.off, buf))
    }

    /// Copy `buf` to the first bytes of `seg`; false if `buf` is longer than `seg` or `seg` is not
    /// of this snapshot.
    #[inline]
    #[must_use]
    pub fn write(&self, seg: Segment, buf: &[u8]) -> bool {
        buf.len() <= seg.len() as usize && self.window(seg).is_some_and(|m| m.write(seg.off, buf))
    }

    /// Copy `seg` to the first bytes of `at` in `to`, another guest's memory or the same; false if
    /// `at` is shorter or either is not of its snapshot.
    #[inline]
    #[must_use]
    pub fn copy_to(&self, seg: Segment, to: &Mem, at: Segment) -> bool {
        let (Some(from), Some(window)) = (self.window(seg), to.window(at)) else {
            return false;
        };
        seg.len() <= at.len() && from.copy_to(seg.off, window, at.off, seg.len())
    }

    /// The first 16 bytes of `seg` as two words; none if it is shorter or not of this snapshot.
    #[inline]
    #[must_use]
    pub fn load_pair(&self, seg: Segment) -> Option<[u64; 2]> {
        if seg.len() < 16 {
            return None;
        }
        self.window(seg)?.load_pair(seg.off)
    }

    /// Our address of `seg`, for system calls: dangling once the last `Arc` of this snapshot is
    /// gone, null if `seg` is not of this snapshot.
    #[inline]
    #[must_use]
    pub fn host(&self, seg: Segment) -> *mut u8 {
        let region = self.regions.get(seg.region() as usize);
        region.map_or(std::ptr::null_mut(), |r| {
            r.mapping.host(seg.off, u64::from(seg.len()))
        })
    }

    /// Ask the processor to fetch the first two cache lines of `seg`, for reading: a header and a
    /// small frame stand there.
    #[inline]
    pub fn prefetch(&self, seg: Segment) {
        if let Some(m) = self.window(seg) {
            m.prefetch(seg.off);
            if seg.len() > LINE {
                m.prefetch(seg.off + u64::from(LINE));
            }
        }
    }

    /// The same, for writing.
    #[inline]
    pub fn prefetch_write(&self, seg: Segment) {
        if let Some(m) = self.window(seg) {
            m.prefetch_write(seg.off);
            if seg.len() > LINE {
                m.prefetch_write(seg.off + u64::from(LINE));
            }
        }
    }

    /// Guest physical address of the first byte of `seg`.
    #[inline]
    #[must_use]
    pub fn gpa(&self, seg: Segment) -> u64 {
        self.spans
            .get(seg.region() as usize)
            .map_or(u64::MAX, |s| s.gpa + seg.off)
    }

    /// Guest physical address of front-end address `uva`.
    #[must_use]
    pub fn gpa_of_user(&self, uva: u64) -> Option<u64> {
        self.regions.iter().find_map(|r| {
            let off = uva.checked_sub(r.spec.uva)?;
            (off < r.spec.len).then(|| r.spec.gpa + off)
        })
    }

    /// One past the highest guest physical address.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.spans.last().map_or(0, |s| s.gpa + s.len())
    }
}

#[cfg(test)]
mod tests;
