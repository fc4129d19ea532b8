//! One descriptor, copied out of guest memory, the flags it carries (virtio 1.3, 2.7.5), and how
//! its bytes become segments of a chain.

use super::Violation;
use crate::chain::{Builder, Unfit};
use crate::mem::Mem;

/// Another descriptor follows, at `next`.
pub(super) const NEXT: u16 = 1;
/// The device writes the buffer; otherwise it reads it.
pub(super) const WRITE: u16 = 2;
/// The buffer holds a table of descriptors.
pub(super) const INDIRECT: u16 = 4;
/// Size of a descriptor in bytes.
pub(super) const DESC: usize = 16;
/// The same, as a length in guest memory.
pub(super) const DESC_LEN: u32 = 16;

/// A descriptor, copied.
#[derive(Debug, Clone, Copy)]
pub(super) struct Desc {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

impl Desc {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "fields are cut out of one u64"
    )]
    #[inline]
    pub(super) fn from_words(addr: u64, rest: u64) -> Desc {
        Desc {
            addr,
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }

    #[inline]
    pub(super) fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// Add a descriptor's bytes to a chain; a buffer may cross regions that adjoin.
#[inline]
pub(super) fn add(
    mem: &Mem,
    hint: &mut u32,
    d: Desc,
    chain: &mut Builder<'_>,
) -> Result<(), Violation> {
    let outside = Violation::BadAddress {
        gpa: d.addr,
        len: d.len,
    };
    let (mut gpa, mut left) = (d.addr, d.len);
    while left > 0 {
        let seg = mem.lookup(gpa, left, hint).ok_or(outside)?;
        chain.push(seg, d.has(WRITE)).map_err(unfit)?;
        left -= seg.len();
        gpa = gpa.checked_add(seg.len().into()).ok_or(outside)?;
    }
    Ok(())
}

#[cold]
pub(super) fn unfit(why: Unfit) -> Violation {
    match why {
        Unfit::TooLong => Violation::TooLong,
        Unfit::ReadableAfterWritable => Violation::ReadableAfterWritable,
    }
}
