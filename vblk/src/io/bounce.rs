//! Bounce buffers for what O_DIRECT cannot take as it is, and the zeroes that a WRITE_ZEROES
//! without support writes.
//!
//! All of it is one sealed memfd, mapped like a guest's memory, so that an engine needs to know
//! only one kind of memory. The pool is bounded, whatever guests do: a request that finds it empty
//! waits for one that gives a buffer back. Its pages are resident only once they were used.

use std::sync::Arc;

use towpath_common::mem::{Mem, MemError, Region, RegionSpec, Segment};

/// Bytes in a buffer: misaligned requests go to the device in pieces of this size.
pub(super) const CHUNK: u32 = 128 * 1024;

/// Buffers. Misaligned buffers come from firmware and boot loaders, one request at a time, and
/// from programs that read raw devices; a few in flight are enough.
const BUFFERS: u8 = 8;

/// How often the area of zeroes stands in one write.
const ZEROES: usize = 8;

/// Most zeroes in one write: 1 MiB.
pub(super) const ZERO_BYTES: u64 = CHUNK as u64 * ZEROES as u64;

/// Bytes copied at a time between a guest's memory and the pool's, through private memory.
const COPY: u32 = 16 * 1024;

/// The pool.
#[derive(Debug)]
pub(super) struct Bounce {
    mem: Arc<Mem>,
    free: Vec<u8>,
    buffers: [Segment; BUFFERS as usize],
    zeroes: [Segment; ZEROES],
    scratch: Box<[u8]>,
}

impl Bounce {
    pub(super) fn new() -> Result<Bounce, MemError> {
        let len = u64::from(CHUNK) * (u64::from(BUFFERS) + 1);
        let source = |e: rustix::io::Errno| MemError::Map {
            len,
            offset: 0,
            source: e.into(),
        };
        let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("vblk-bounce", flags).map_err(source)?;
        rustix::fs::ftruncate(&file, len).map_err(source)?;
        let spec = RegionSpec {
            gpa: 0,
            len,
            uva: 0,
            offset: 0,
        };
        let mem = Mem::new(vec![Region::map(spec, file)?])?;
        let chunk = |i: usize| {
            let at = u64::from(CHUNK) * i as u64;
            mem.lookup(at, CHUNK, &mut 0).unwrap_or_default()
        };
        Ok(Bounce {
            free: (0..BUFFERS).rev().collect(),
            buffers: std::array::from_fn(chunk),
            zeroes: [chunk(usize::from(BUFFERS)); ZEROES],
            scratch: vec![0; COPY as usize].into(),
            mem: Arc::new(mem),
        })
    }

    /// The memory that the buffers are in.
    pub(super) fn mem(&self) -> &Arc<Mem> {
        &self.mem
    }

    /// Take a buffer, if one is free.
    pub(super) fn take(&mut self) -> Option<u8> {
        self.free.pop()
    }

    /// Give a buffer back.
    pub(super) fn put(&mut self, buffer: u8) {
        self.free.push(buffer);
    }

    /// Buffers that are free.
    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        self.free.len()
    }

    /// A buffer's memory.
    pub(super) fn segment(&self, buffer: u8) -> &[Segment] {
        self.buffers
            .get(usize::from(buffer)..=usize::from(buffer))
            .unwrap_or_default()
    }

    /// A mebibyte of zeroes.
    pub(super) fn zeroes(&self) -> &[Segment] {
        &self.zeroes
    }

    /// Copy from `pieces` of a guest's memory to the beginning of `buffer`.
    pub(super) fn load(
        &mut self,
        buffer: u8,
        guest: &Mem,
        pieces: impl Iterator<Item = Segment>,
    ) -> bool {
        self.copy(buffer, pieces, |pool, to, from, bytes| {
            guest.read(from, bytes) && pool.write(to, bytes)
        })
    }

    /// Copy from the beginning of `buffer` to `pieces` of a guest's memory.
    pub(super) fn store(
        &mut self,
        buffer: u8,
        guest: &Mem,
        pieces: impl Iterator<Item = Segment>,
    ) -> bool {
        self.copy(buffer, pieces, |pool, from, to, bytes| {
            pool.read(from, bytes) && guest.write(to, bytes)
        })
    }

    /// Visit the bytes of `buffer` and of `pieces` side by side, as much at a time as fits in the
    /// scratch memory.
    fn copy(
        &mut self,
        buffer: u8,
        pieces: impl Iterator<Item = Segment>,
        step: impl Fn(&Mem, Segment, Segment, &mut [u8]) -> bool,
    ) -> bool {
        let Some(mut ours) = self.buffers.get(usize::from(buffer)).copied() else {
            return false;
        };
        for mut theirs in pieces {
            while !theirs.is_empty() {
                let n = theirs.len().min(ours.len()).min(COPY);
                let Some(bytes) = self.scratch.get_mut(..n as usize).filter(|b| !b.is_empty())
                else {
                    return false;
                };
                if !step(&self.mem, ours.take(n), theirs.take(n), bytes) {
                    return false;
                }
                (ours, theirs) = (ours.skip(n), theirs.skip(n));
            }
        }
        true
    }
}
