//! What an uplink was given in one burst: an uplink loses segments, a switch counts frames.

use arrayvec::ArrayVec;
use towpath_common::chain::BURST;

/// The frames given to an uplink, in their order.
#[derive(Debug, Default)]
pub(super) struct Posted(ArrayVec<Post, BURST>);

/// One frame, as far as it was queued.
#[derive(Debug)]
pub(super) struct Post {
    /// Where it stands in the burst.
    at: usize,
    segments: usize,
    bytes: u64,
    /// All of it was queued; otherwise it was dropped already.
    whole: bool,
}

impl Posted {
    /// Another frame, of which nothing is queued yet. There is room for each of a burst once.
    pub(super) fn begin(&mut self, at: usize) -> &mut Post {
        if self.0.is_full() {
            self.0.pop();
        }
        let last = self.0.len();
        self.0.push(Post {
            at,
            segments: 0,
            bytes: 0,
            whole: false,
        });
        &mut self.0[last]
    }

    /// The last `segments` that were queued are lost; gives the frames that lost one, by bits. What
    /// was dropped before is not among them.
    pub(super) fn lose(&mut self, mut segments: usize) -> u64 {
        let mut frames = 0;
        while segments > 0
            && let Some(post) = self.0.pop()
        {
            segments = segments.saturating_sub(post.segments);
            if post.whole && post.segments > 0 {
                frames |= 1 << post.at;
            }
        }
        frames
    }

    /// Frames that were sent whole, and their bytes.
    pub(super) fn sent(&self) -> (u64, u64) {
        let whole = self.0.iter().filter(|post| post.whole);
        whole.fold((0, 0), |(n, bytes), post| (n + 1, bytes + post.bytes))
    }
}

impl Post {
    /// A segment of `len` bytes was queued.
    pub(super) fn segment(&mut self, len: usize) {
        self.segments += 1;
        self.bytes += len as u64;
    }

    /// That was all of it.
    pub(super) fn whole(&mut self) {
        self.whole = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn posted(frames: &[(usize, usize, bool)]) -> Posted {
        let mut posted = Posted::default();
        for &(at, segments, whole) in frames {
            let post = posted.begin(at);
            (0..segments).for_each(|_| post.segment(100));
            if whole {
                post.whole();
            }
        }
        posted
    }

    #[test]
    fn the_last_frames_are_those_that_lost_segments() {
        let frames = [(1, 1, true), (3, 5, true), (4, 1, true)];
        let cases = [
            (0, 0, (3, 700)),
            (1, 0b1_0000, (2, 600)),
            (2, 0b1_1000, (1, 100)),
            (6, 0b1_1000, (1, 100)),
            (7, 0b1_1010, (0, 0)),
            (100, 0b1_1010, (0, 0)),
        ];
        for (lost, mask, sent) in cases {
            let mut posted = posted(&frames);
            assert_eq!((posted.lose(lost), posted.sent()), (mask, sent), "{lost}");
        }
    }

    #[test]
    fn what_was_dropped_before_is_not_lost_once_more() {
        // The second frame found no room for its last segments; those before them are lost too.
        let mut posted = posted(&[(0, 2, true), (1, 3, false), (2, 0, false)]);
        assert_eq!((posted.lose(3), posted.sent()), (0, (1, 200)));
    }
}
