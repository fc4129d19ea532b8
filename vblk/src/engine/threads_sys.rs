//! preadv2(2) and pwritev2(2) on guest memory: addresses, never slices.
//!
//! The addresses are made and used within one call, in which the memory map they were checked
//! against is borrowed, so that it cannot be unmapped meanwhile. What the guest does to the bytes
//! is its own affair: the kernel copies, and nothing here looks at them.

// UNSAFETY: two system calls that take raw addresses.
#![expect(
    unsafe_code,
    reason = "rustix takes slices, which guest memory must not be"
)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use towpath_common::mem::{Mem, Segment};

/// Room for a list of pieces of memory, as the kernel takes it; one a thread.
#[derive(Debug)]
pub(super) struct Vector {
    list: Vec<libc::iovec>,
}

/// Which way, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From the file into memory.
    Read,
    /// From memory into the file; if `durable`, it is on the device when the call returns.
    Write {
        /// RWF_DSYNC.
        durable: bool,
    },
}

impl Vector {
    /// Most pieces of one transfer: what a descriptor chain can have, and the kernel's UIO_FASTIOV
    /// and UIO_MAXIOV allow.
    pub(super) const MOST: usize = towpath_common::chain::MAX_SEGMENTS;

    pub(super) fn new() -> Vector {
        Vector {
            list: Vec::with_capacity(Vector::MOST),
        }
    }

    /// Move bytes between `file`, from `offset` on, and `pieces` of `mem`; how many were.
    ///
    /// # Errors
    /// EFAULT if a piece is not in `mem`, or what the system call said.
    pub(super) fn transfer(
        &mut self,
        (mem, pieces): (&Mem, &[Segment]),
        file: BorrowedFd<'_>,
        offset: u64,
        way: Way,
    ) -> Result<usize, Errno> {
        self.list.clear();
        for piece in pieces.iter().take(Vector::MOST) {
            let base = mem.host(*piece);
            if base.is_null() {
                return Err(Errno::FAULT);
            }
            self.list.push(libc::iovec {
                iov_base: base.cast(),
                iov_len: piece.len() as usize,
            });
        }
        let (fd, list) = (file.as_raw_fd(), self.list.as_ptr());
        let count = libc::c_int::try_from(self.list.len()).map_err(|_| Errno::INVAL)?;
        let offset = offset.cast_signed();
        let moved = match way {
            // SAFETY: `list` is `count` iovecs long, each of mapped memory of `mem`, which is
            // borrowed until the call is over.
            Way::Read => unsafe { libc::preadv2(fd, list, count, offset, 0) },
            Way::Write { durable } => {
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                // SAFETY: as above; it is read only.
                unsafe { libc::pwritev2(fd, list, count, offset, flags) }
            }
        };
        usize::try_from(moved).map_err(|_| {
            let errno = std::io::Error::last_os_error();
            Errno::from_io_error(&errno).unwrap_or(Errno::IO)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn pieces_are_moved_in_order_and_foreign_ones_refused() {
        let ram = crate::testing::Ram::new(8192);
        let file = tempfile::tempfile().unwrap();
        let pieces = [ram.at(4096, 3), ram.at(10, 2)];
        ram.fill(&pieces, b"abcde");
        let mut vector = Vector::new();
        let way = Way::Write { durable: true };
        let moved = vector.transfer((&ram.mem, &pieces), file.as_fd(), 7, way);
        assert_eq!(moved, Ok(5));
        let mut bytes = [0; 12];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"\0\0\0\0\0\0\0abcde");
        ram.fill(&pieces, b"-----");
        // Short: the file ends.
        let moved = vector.transfer((&ram.mem, &pieces), file.as_fd(), 8, Way::Read);
        assert_eq!(moved, Ok(4));
        assert_eq!(ram.bytes(&pieces), b"bcde-");
        let far = crate::testing::map(&[4096, 4096]);
        let far = [far.lookup(4096, 8, &mut 0).unwrap()];
        let small = crate::testing::map(&[4096]);
        let refused = vector.transfer((&small, &far), file.as_fd(), 0, Way::Read);
        assert_eq!(refused, Err(Errno::FAULT));
    }
}
