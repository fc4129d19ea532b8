//! Where a file system keeps a file's bytes (FS_IOC_FIEMAP, Documentation/filesystems/fiemap.rst).

// UNSAFETY: an ioctl that fills a buffer.
#![expect(unsafe_code, reason = "ioctl takes a raw address")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// FS_IOC_FIEMAP (include/uapi/linux/fs.h).
const FS_IOC_FIEMAP: u64 = 0xc020_660b;
/// Write dirty pages first.
const SYNC: u64 = 1;
/// Words of 8 bytes in struct fiemap and in struct fiemap_extent.
const HEAD: usize = 4;
const WORDS: usize = 7;
/// Extents fetched at a time.
const BATCH: usize = 256;

/// Flags of an extent.
pub(super) mod flag {
    /// The last one of the file.
    pub(in super::super) const LAST: u32 = 0x1;
    /// All there are, with their names.
    pub(in super::super) const NAMES: [(u32, &str); 9] = [
        (0x2, "unknown"),
        (0x4, "not allocated yet"),
        (0x8, "encoded"),
        (0x80, "encrypted"),
        (0x100, "not aligned"),
        (0x200, "inside metadata"),
        (0x400, "inside a shared tail"),
        (0x800, "unwritten"),
        (0x2000, "shared with another file"),
    ];
}

/// A piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// First byte in the file.
    pub(super) logical: u64,
    /// First byte on the device.
    pub(super) physical: u64,
    /// Bytes.
    pub(super) len: u64,
    /// [`flag`].
    pub(super) flags: u32,
}

/// All pieces of a file, at most `most` of them; what is dirty is written first.
pub(super) fn pieces(file: impl AsFd, most: usize) -> io::Result<Vec<Piece>> {
    let mut all: Vec<Piece> = Vec::new();
    let mut start = 0;
    // Each turn fetches an extent at least, or is the last.
    while all.len() < most {
        let mut buffer = vec![0u64; HEAD + WORDS * BATCH];
        buffer[0] = start;
        buffer[1] = u64::MAX - start;
        buffer[2] = SYNC;
        buffer[3] = BATCH as u64;
        // SAFETY: the kernel writes the head and at most BATCH extents, as the head says, all of
        // which `buffer` has room for; it lives until the call returns.
        let done =
            unsafe { libc::ioctl(file.as_fd().as_raw_fd(), FS_IOC_FIEMAP, buffer.as_mut_ptr()) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        let count = usize::try_from(buffer[2] >> 32).unwrap_or(0);
        let extents = buffer.get(HEAD..).unwrap_or_default().chunks_exact(WORDS);
        let before = all.len();
        for words in extents.take(count) {
            let &[logical, physical, len, _, _, flags, _] = words else {
                continue;
            };
            all.push(Piece {
                logical,
                physical,
                len,
                flags: u32::try_from(flags & u64::from(u32::MAX)).unwrap_or(0),
            });
        }
        match all.last() {
            Some(last) if all.len() > before && last.flags & flag::LAST == 0 => {
                start = last.logical.saturating_add(last.len);
            }
            _ => return Ok(all),
        }
    }
    Err(io::Error::other(format!("more than {most} extents")))
}
