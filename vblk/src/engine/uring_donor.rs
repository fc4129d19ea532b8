//! Guest memory registered with io_uring off the worker.
//!
//! A [`Donor`] is a ring that does no I/O: the session's thread registers a guest's memory with it,
//! which may take seconds, and a worker's ring takes the registration over by reference, which
//! takes microseconds. The kernel takes at most 1 GiB in one buffer, so a region is a run of
//! buffers of 1 GiB and a rest.
//!
//! [`Buffers`] is what a worker's ring keeps of it: which buffer holds which address.

// UNSAFETY: registering buffers by address.
#![expect(unsafe_code, reason = "io_uring takes raw addresses")]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::types::CloneBuffersFlags;
use io_uring::{IoUring, Submitter};
use towpath_common::mem::{Mem, Segment};

/// Largest buffer, as a power of two.
const CHUNK_SHIFT: u32 = 30;

/// Most buffers in one ring's table, of the 16384 the kernel allows: terabytes of guest memory.
pub(super) const MAX_BUFFERS: u16 = 4096;

/// A region's buffers: consecutive from `first`, the first of them at host address `base`.
#[derive(Debug, Clone, Copy)]
struct Run {
    base: usize,
    first: u16,
}

/// A guest's memory in the buffer table of a ring of its own.
pub(super) struct Donor {
    /// Before `_mem`: the registration goes before the mapping it is about.
    ring: IoUring,
    runs: Box<[Run]>,
    count: u16,
    _mem: Arc<Mem>,
}

impl std::fmt::Debug for Donor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Donor")
            .field("buffers", &self.count)
            .finish_non_exhaustive()
    }
}

impl Donor {
    /// Register all of `mem`; None if there is nothing to register.
    ///
    /// # Errors
    /// ENOMEM beyond RLIMIT_MEMLOCK, EINVAL on a kernel that cannot lend buffers (before 6.13), or
    /// whatever else the kernel said.
    pub(super) fn new(mem: &Arc<Mem>) -> io::Result<Option<Donor>> {
        let mut list = Vec::new();
        let mut runs = Vec::new();
        for region in mem.regions() {
            let len = region.spec().len;
            let too_many = |_| io::Error::from(io::ErrorKind::OutOfMemory);
            let first = u16::try_from(list.len()).map_err(too_many)?;
            let base = region.mapping().host(0, len).addr();
            runs.push(Run { base, first });
            let mut at = 0;
            while at < len {
                let n = (len - at).min(1 << CHUNK_SHIFT);
                let iov_base = region.mapping().host(at, n).cast();
                let iov_len = usize::try_from(n).map_err(too_many)?;
                list.push(libc::iovec { iov_base, iov_len });
                at += n;
            }
        }
        let count = u16::try_from(list.len()).ok().filter(|n| *n <= MAX_BUFFERS);
        let count = count.ok_or(io::ErrorKind::OutOfMemory)?;
        if count == 0 {
            return Ok(None);
        }
        let ring = IoUring::new(1)?;
        // SAFETY: each iovec is a part of a mapping of `mem`, which the Donor keeps longer than
        // the ring; rings that borrow the buffers keep it as well.
        unsafe { ring.submitter().register_buffers(&list) }?;
        let donor = Donor {
            ring,
            runs: runs.into(),
            count,
            _mem: Arc::clone(mem),
        };
        // Can this kernel lend them? Better to know here than on a worker.
        let borrower = IoUring::new(1)?;
        borrower
            .submitter()
            .register_buffers_sparse(u32::from(count))?;
        donor.lend(&borrower.submitter(), 0)?;
        Ok(Some(donor))
    }

    /// Buffers it has.
    pub(super) fn count(&self) -> u16 {
        self.count
    }

    /// Let the ring of `to` use the buffers, from place `first` of its table on.
    pub(super) fn lend(&self, to: &Submitter<'_>, first: u16) -> io::Result<Buffers> {
        to.register_buffers_clone_offset(
            self.ring.as_raw_fd(),
            0,
            u32::from(first),
            u32::from(self.count),
            CloneBuffersFlags::DST_REPLACE,
        )?;
        let moved = |run: &Run| Run {
            first: run.first + first,
            ..*run
        };
        Ok(Buffers {
            runs: self.runs.iter().map(moved).collect(),
            first,
            count: self.count,
        })
    }
}

/// Where a guest's memory is in a ring's buffer table.
#[derive(Debug)]
pub(super) struct Buffers {
    /// One for each region.
    runs: Box<[Run]>,
    first: u16,
    count: u16,
}

impl Buffers {
    /// The places they take in the table.
    pub(super) fn places(&self) -> std::ops::Range<usize> {
        let first = usize::from(self.first);
        first..first + usize::from(self.count)
    }

    /// The buffer that holds all of `segment`, which is at host address `addr`; None if it is in
    /// two.
    #[inline]
    pub(super) fn holding(&self, segment: Segment, addr: usize) -> Option<u16> {
        let run = self.runs.get(segment.region() as usize)?;
        let start = addr.wrapping_sub(run.base);
        let end = start.wrapping_add(segment.len() as usize).wrapping_sub(1);
        if start >> CHUNK_SHIFT != end >> CHUNK_SHIFT {
            return None;
        }
        u16::try_from(start >> CHUNK_SHIFT)
            .ok()?
            .checked_add(run.first)
    }

    /// Give the places back. The caller knows that no operation uses them.
    pub(super) fn give_back(&self, ring: &Submitter<'_>) -> io::Result<()> {
        let empty = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        let list = vec![empty; usize::from(self.count)];
        // SAFETY: an empty iovec clears a place; no address is registered.
        unsafe { ring.register_buffers_update(u32::from(self.first), &list, None) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_in_the_buffer_of_its_gibibyte_or_in_none() {
        const GIB: u64 = 1 << 30;
        let mem = crate::testing::map(&[GIB / 2, 3 * GIB]);
        let base = |i: usize| mem.regions()[i].mapping().host(0, 1).addr();
        let buffers = Buffers {
            runs: [
                Run {
                    base: base(0),
                    first: 10,
                },
                Run {
                    base: base(1),
                    first: 11,
                },
            ]
            .into(),
            first: 10,
            count: 4,
        };
        let holding = |gpa, len| {
            let segment = mem.lookup(gpa, len, &mut 0).unwrap();
            buffers.holding(segment, mem.host(segment).addr())
        };
        let second = GIB / 2;
        assert_eq!(holding(0, 4096), Some(10));
        assert_eq!(holding(second - 512, 512), Some(10));
        assert_eq!(holding(second, 4096), Some(11));
        assert_eq!(holding(second + GIB - 512, 512), Some(11));
        assert_eq!(holding(second + GIB - 512, 513), None);
        assert_eq!(holding(second + GIB, 1), Some(12));
        assert_eq!(holding(second + 3 * GIB - 1, 1), Some(13));
        assert_eq!(holding(second, 0x4000_0001), None);
        assert_eq!(buffers.places(), 10..14);
    }
}
