//! Which bytes of a read have come: the chunks of a structured reply may come in any order, and a
//! server that leaves one out must not be believed.

use arrayvec::ArrayVec;

/// Most separate spans at a time. Servers send ascending chunks, which is one.
const SPANS: usize = 16;

/// The spans of a read that have come: from, to; separate and not adjoining.
#[derive(Debug, Clone, Default)]
pub(super) struct Cover {
    spans: ArrayVec<(u32, u32), SPANS>,
}

impl Cover {
    /// Nothing has come.
    pub(super) fn clear(&mut self) {
        self.spans.clear();
    }

    /// `len` bytes at `at` come. False if some of them came before, or there are too many holes.
    #[must_use]
    pub(super) fn add(&mut self, at: u32, len: u32) -> bool {
        let Some(end) = at.checked_add(len).filter(|_| len > 0) else {
            return false;
        };
        if self.spans.iter().any(|(from, to)| at < *to && *from < end) {
            return false;
        }
        let (mut from, mut to) = (at, end);
        self.spans.retain(|span| {
            let joins = span.1 == from || span.0 == to;
            if joins {
                (from, to) = (from.min(span.0), to.max(span.1));
            }
            !joins
        });
        self.spans.try_push((from, to)).is_ok()
    }

    /// True if all of `len` bytes have come.
    pub(super) fn is_whole(&self, len: u32) -> bool {
        self.spans.as_slice() == [(0, len)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_whole_when_every_byte_came_once() {
        let mut cover = Cover::default();
        assert!(cover.add(512, 512) && cover.add(2048, 10) && !cover.is_whole(1024));
        assert!(cover.add(0, 512) && cover.spans.len() == 2);
        assert!(!cover.add(1023, 2) && !cover.add(0, 1) && !cover.add(5, 0));
        assert!(cover.add(1024, 1024) && cover.is_whole(2058));
        assert!(!cover.add(u32::MAX, 2));
        cover.clear();
        assert!(!cover.is_whole(1));
        for i in 0..u32::try_from(SPANS).unwrap() {
            assert!(cover.add(i * 10, 5));
        }
        assert!(!cover.add(1000, 5));
    }
}
