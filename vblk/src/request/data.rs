//! The data of a request, as a view of its chain: nothing is copied, not even the list.

use towpath_common::chain::Chain;
use towpath_common::mem::{Mem, Segment};

use super::HEADER;

/// The data of a request: segments trimmed of header and status, without a copy of the list.
#[derive(Debug, Clone, Copy, Default)]
pub struct Data<'a> {
    head: Segment,
    body: &'a [Segment],
    tail: Segment,
    len: u64,
}

impl<'a> Data<'a> {
    /// All of `segments`, `len` bytes.
    pub(crate) fn over(segments: &'a [Segment], len: u64) -> Data<'a> {
        Data {
            body: segments,
            len,
            ..Data::default()
        }
    }

    /// Bytes in all.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The one segment that has bytes, if that is seen at a glance: how drivers send most data.
    #[inline]
    pub(crate) fn single(&self) -> Option<Segment> {
        match (self.body, self.head.is_empty(), self.tail.is_empty()) {
            ([one], true, true) if !one.is_empty() => Some(*one),
            ([], false, true) => Some(self.head),
            ([], true, false) => Some(self.tail),
            _ => None,
        }
    }

    /// The segments that have bytes, in order.
    pub fn iter(&self) -> impl Iterator<Item = Segment> + 'a {
        std::iter::once(self.head)
            .chain(self.body.iter().copied())
            .chain(std::iter::once(self.tail))
            .filter(|s| !s.is_empty())
    }

    /// Copy the first `buf.len()` bytes out; false if there are fewer.
    pub(super) fn read(&self, mem: &Mem, mut buf: &mut [u8]) -> bool {
        for seg in self.iter() {
            let n = buf.len().min(seg.len() as usize);
            let Some((now, rest)) = buf.split_at_mut_checked(n) else {
                return false;
            };
            if !mem.read(seg, now) {
                return false;
            }
            buf = rest;
        }
        buf.is_empty()
    }

    /// Copy in as much of `bytes` as there is room for; how many bytes that was.
    pub fn write(&self, mem: &Mem, mut bytes: &[u8]) -> usize {
        let whole = bytes.len();
        for seg in self.iter() {
            let n = bytes.len().min(seg.len() as usize);
            let Some((now, rest)) = bytes.split_at_checked(n) else {
                break;
            };
            if !mem.write(seg, now) {
                break;
            }
            bytes = rest;
        }
        whole.saturating_sub(bytes.len())
    }

    /// What follows the header.
    #[inline]
    pub(super) fn after_header(chain: &Chain<'a>) -> Data<'a> {
        let len = chain.readable_len.saturating_sub(u64::from(HEADER));
        let mut skip = HEADER;
        let mut rest = chain.readable;
        while let Some((first, behind)) = rest.split_first() {
            rest = behind;
            if first.len() > skip {
                return Data {
                    head: first.skip(skip),
                    body: rest,
                    len,
                    ..Data::default()
                };
            }
            skip = skip.saturating_sub(first.len());
        }
        Data::default()
    }

    /// What precedes the status byte.
    #[inline]
    pub(super) fn before_status(chain: &Chain<'a>) -> Data<'a> {
        let len = chain.writable_len.saturating_sub(1);
        let mut rest = chain.writable;
        while let Some((last, before)) = rest.split_last() {
            rest = before;
            if let Some(n) = last.len().checked_sub(1) {
                return Data {
                    body: rest,
                    tail: last.take(n),
                    len,
                    ..Data::default()
                };
            }
        }
        Data::default()
    }
}
