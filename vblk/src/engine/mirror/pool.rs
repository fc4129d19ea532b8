//! A mirror's own memory: copies of what is written, and what goes to its record.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;
use towpath_common::mem::{Mapping, Mem, Region, RegionSpec, Segment};

use crate::storage::mirror::record::PAGE;

/// Bytes of a small buffer and of a large one, and how many there are of each: 128 small requests
/// in flight, or 4 MiB of large ones.
const SMALL: (u32, u32) = (16 << 10, 128);
pub(super) const LARGE: (u32, u32) = (256 << 10, 16);

/// A buffer, by number: small ones first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Buffer(u16);

/// The memory.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) mem: Arc<Mem>,
    segments: Vec<Segment>,
    small: Vec<Buffer>,
    large: Vec<Buffer>,
    /// For the bell, for a page of bits, for a head.
    pub(super) bell: Segment,
    pub(super) page: Segment,
    pub(super) head: Segment,
}

impl Pool {
    pub(super) fn new() -> io::Result<Pool> {
        let own = 3 * u64::from(PAGE);
        let total = |(bytes, count): (u32, u32)| u64::from(bytes) * u64::from(count);
        let len = own + total(SMALL) + total(LARGE);
        let (_, file) = Mapping::memfd("vblk-mirror", len).map_err(io::Error::other)?;
        let spec = RegionSpec {
            gpa: 0,
            len,
            uva: 0,
            offset: 0,
        };
        let region = Region::map(spec, file).map_err(io::Error::other)?;
        let mem = Mem::new(vec![region]).map_err(io::Error::other)?;
        let at = |gpa: u64, len| mem.lookup(gpa, len, &mut 0).unwrap_or_default();
        let mut next = own;
        let mut segments = Vec::new();
        for (bytes, count) in [SMALL, LARGE] {
            for _ in 0..count {
                segments.push(at(next, bytes));
                next += u64::from(bytes);
            }
        }
        let numbers = |from: u32, to: u32| -> Vec<Buffer> {
            let all = (from..to).filter_map(|n| u16::try_from(n).ok());
            all.map(Buffer).collect()
        };
        Ok(Pool {
            segments,
            small: numbers(0, SMALL.1),
            large: numbers(SMALL.1, SMALL.1 + LARGE.1),
            bell: at(0, 8),
            page: at(u64::from(PAGE), PAGE),
            head: at(2 * u64::from(PAGE), PAGE),
            mem: Arc::new(mem),
        })
    }

    /// A buffer for `len` bytes or as much as fits into a large one.
    pub(super) fn take(&mut self, len: u64) -> Option<Buffer> {
        if len <= u64::from(SMALL.0) {
            self.small.pop()
        } else {
            self.large.pop()
        }
    }

    pub(super) fn put(&mut self, buffer: Buffer) {
        if u32::from(buffer.0) < SMALL.1 {
            self.small.push(buffer);
        } else {
            self.large.push(buffer);
        }
    }

    pub(super) fn segment(&self, buffer: Buffer) -> Segment {
        let segment = self.segments.get(usize::from(buffer.0));
        segment.copied().unwrap_or_default()
    }

    /// Copy `pieces` of `from` to `buffer`.
    pub(super) fn load(
        &self,
        buffer: Buffer,
        from: &Mem,
        pieces: impl Iterator<Item = Segment>,
    ) -> Result<(), Errno> {
        let mut to = self.segment(buffer);
        for piece in pieces {
            if !from.copy_to(piece, &self.mem, to) {
                return Err(Errno::FAULT);
            }
            to = to.skip(piece.len());
        }
        Ok(())
    }
}
