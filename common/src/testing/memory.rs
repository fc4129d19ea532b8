//! A guest's memory, from the guest's side: memfds that the front-end shares with the back-end.
//!
//! [`GuestMemory`] is a list of regions at chosen guest physical addresses ("gpa"), cheap to clone;
//! adding a region makes a new list over the same regions, as hot-plug does. Each region gets its
//! own distance between gpa and front-end address ("uva"), so that a back-end that confuses the two
//! fails at once. Buffers come from a bump allocator: tests and benches never give any back.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::{Error, Result};
use crate::mem::{Mapping, View, Window};

/// Alignment of everything [`GuestMemory::alloc_pages`] returns, in bytes.
pub const PAGE: u64 = 4096;
/// Distance between the front-end addresses of two regions with the same gpa.
const UVA_STRIDE: u64 = 1 << 40;

/// One region of guest memory: a memfd of its own, mapped from its start.
#[derive(Debug)]
pub struct GuestRegion {
    gpa: u64,
    uva: u64,
    mapping: Arc<Mapping>,
    window: Window,
    file: OwnedFd,
    /// Bytes handed out by the allocator.
    taken: AtomicU64,
}

/// Whether the back-end will be able to seal the region's file against shrinking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealing {
    /// As VMMs make it: a memfd that accepts seals.
    Allowed,
    /// A memfd that refuses seals, which the test may truncate under the back-end.
    Refused,
}

impl GuestRegion {
    /// A new region of `len` zero bytes at `gpa`; `slot` (below 64) tells its uva from others'.
    pub fn new(gpa: u64, len: u64, slot: u64, sealing: Sealing) -> Result<Self> {
        let flags = match sealing {
            Sealing::Allowed => MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
            Sealing::Refused => MemfdFlags::CLOEXEC,
        };
        let file = memfd_create("towpath-guest", flags).map_err(Error::errno("memfd_create"))?;
        ftruncate(&file, len).map_err(Error::errno("ftruncate"))?;
        let mapping = Mapping::of_file(file.as_fd(), 0, len)
            .map_err(|e| Error::Usage(format!("guest region at {gpa:#x}: {e}")))?;
        let mapping = Arc::new(mapping);
        let uva = gpa + UVA_STRIDE * (slot + 1);
        Ok(Self {
            gpa,
            uva,
            window: Window::new(&mapping),
            mapping,
            file,
            taken: AtomicU64::new(0),
        })
    }

    /// Guest physical address of its first byte.
    #[must_use]
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// Front-end address of its first byte.
    #[must_use]
    pub fn uva(&self) -> u64 {
        self.uva
    }

    /// Length in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.mapping.len()
    }

    /// The file behind it, to pass or to truncate.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Offset of `gpa`, if it lies inside.
    fn offset(&self, gpa: u64) -> Option<u64> {
        gpa.checked_sub(self.gpa).filter(|off| *off < self.size())
    }

    /// `len` bytes never handed out before, aligned to `align` (a power of two), or `None`.
    fn alloc(&self, len: u64, align: u64) -> Option<u64> {
        let place = |taken: u64| {
            let start = (self.gpa + taken).next_multiple_of(align) - self.gpa;
            let end = start.checked_add(len)?;
            (end <= self.size()).then_some((start, end))
        };
        let taken = self
            .taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                Some(place(taken)?.1)
            })
            .ok()?;
        place(taken).map(|(start, _)| self.gpa + start)
    }
}

/// A guest's memory map.
#[derive(Debug, Clone)]
pub struct GuestMemory {
    regions: Vec<Arc<GuestRegion>>,
}

impl GuestMemory {
    /// One region of `len` bytes at guest physical address 0.
    pub fn new(len: u64) -> Result<Self> {
        Self::with_regions(&[(0, len)])
    }

    /// One region for each (gpa, length).
    pub fn with_regions(places: &[(u64, u64)]) -> Result<Self> {
        let mut regions = Vec::with_capacity(places.len());
        for (slot, &(gpa, len)) in places.iter().enumerate() {
            regions.push(Arc::new(GuestRegion::new(
                gpa,
                len,
                slot as u64,
                Sealing::Allowed,
            )?));
        }
        Ok(Self { regions })
    }

    /// The map made of these regions.
    #[must_use]
    pub fn of(regions: Vec<Arc<GuestRegion>>) -> Self {
        Self { regions }
    }

    /// This map and one more region.
    #[must_use]
    pub fn with(&self, region: Arc<GuestRegion>) -> Self {
        let mut regions = self.regions.clone();
        regions.push(region);
        Self { regions }
    }

    /// The regions, in the order they were given.
    #[must_use]
    pub fn regions(&self) -> &[Arc<GuestRegion>] {
        &self.regions
    }

    /// `len` fresh bytes aligned to `align` (a power of two), from the first region with room.
    pub fn alloc(&self, len: u64, align: u64) -> Result<u64> {
        let found = self
            .regions
            .iter()
            .find_map(|region| region.alloc(len, align));
        found.ok_or_else(|| Error::Usage(format!("no room for {len} bytes of guest memory")))
    }

    /// `len` fresh bytes on pages of their own.
    pub fn alloc_pages(&self, len: u64) -> Result<u64> {
        self.alloc(len.next_multiple_of(PAGE), PAGE)
    }

    /// `len` fresh bytes of the region with this index.
    pub fn alloc_in(&self, region: usize, len: u64, align: u64) -> Result<u64> {
        let found = self.regions.get(region).and_then(|r| r.alloc(len, align));
        found.ok_or_else(|| Error::Usage(format!("no room for {len} bytes in region {region}")))
    }

    /// Front-end address of `gpa`.
    pub fn uva(&self, gpa: u64) -> Result<u64> {
        let (region, offset) = self.find(gpa)?;
        Ok(region.uva + offset)
    }

    /// A window of `len` bytes at `gpa`, within one region and aligned to `align`.
    pub fn view(&self, gpa: u64, len: u64, align: usize) -> Result<View> {
        let (region, offset) = self.find(gpa)?;
        View::new(&region.mapping, offset, len, align)
            .ok_or_else(|| Error::Usage(format!("no {len} bytes at {gpa:#x} aligned to {align}")))
    }

    /// Copies guest memory at `gpa`, over as many adjacent regions as it takes.
    pub fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<()> {
        let mut at = gpa;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (region, offset, part) = self.part(at, rest.len())?;
            let (now, later) = rest.split_at_mut(part);
            if !region.window.read(offset, now) {
                return Err(outside(at));
            }
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// Writes guest memory at `gpa`, over as many adjacent regions as it takes.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<()> {
        let mut at = gpa;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (region, offset, part) = self.part(at, rest.len())?;
            let (now, later) = rest.split_at(part);
            if !region.window.write(offset, now) {
                return Err(outside(at));
            }
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// How much of `len` bytes at `gpa` lies in one region, and where.
    fn part(&self, gpa: u64, len: usize) -> Result<(&GuestRegion, u64, usize)> {
        let (region, offset) = self.find(gpa)?;
        let room = usize::try_from(region.size() - offset).unwrap_or(usize::MAX);
        Ok((region, offset, len.min(room)))
    }

    fn find(&self, gpa: u64) -> Result<(&GuestRegion, u64)> {
        let found = self
            .regions
            .iter()
            .find_map(|r| Some((&**r, r.offset(gpa)?)));
        found.ok_or_else(|| outside(gpa))
    }
}

fn outside(gpa: u64) -> Error {
    Error::Usage(format!("no guest memory at {gpa:#x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_cross_adjacent_regions_and_stop_at_holes() {
        let memory = GuestMemory::with_regions(&[(0, PAGE), (PAGE, PAGE), (8 * PAGE, PAGE)]);
        let memory = memory.unwrap();
        let text = b"over the edge";
        memory.write(PAGE - 4, text).unwrap();
        let mut back = [0; 13];
        memory.read(PAGE - 4, &mut back).unwrap();
        assert_eq!(&back, text);
        assert!(memory.write(2 * PAGE - 4, text).is_err());
        assert!(memory.read(4 * PAGE, &mut back).is_err());
        assert_ne!(memory.uva(PAGE).unwrap() - memory.uva(0).unwrap(), PAGE);
    }

    #[test]
    fn allocations_are_aligned_disjoint_and_bounded() {
        let memory = GuestMemory::with_regions(&[(3 * PAGE, 2 * PAGE), (PAGE, PAGE)]).unwrap();
        assert_eq!(memory.alloc(10, 1).unwrap(), 3 * PAGE);
        assert_eq!(memory.alloc(10, 64).unwrap(), 3 * PAGE + 64);
        assert_eq!(memory.alloc_pages(1).unwrap(), 4 * PAGE);
        assert_eq!(memory.alloc_pages(1).unwrap(), PAGE);
        assert!(memory.alloc(1, 1).is_err());
    }
}
