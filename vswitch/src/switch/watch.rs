//! What is to be seen of frames: a note of some, copies for captures.
//!
//! Called for a burst, not for a frame: a worker that nobody watches pays a note and a few
//! branches for each burst. All else is cold.

use towpath_common::chain::BURST;
use towpath_common::clock::Cycles;

use crate::batch::{Batch, Item, Source, Verdict, bits};
use crate::capture::{CaptureId, Direction, Sight, Tap, Taps};
use crate::discard::Discard;
use crate::mac::Mac;
use crate::port::guest::Rest;
use crate::recent::{Egress, Note, Recent};
use crate::table::{Port, PortNo};
use crate::vlan::{Mode, Vid};

/// A burst that was decided on.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) batch: &'a Batch,
    pub(super) source: Source<'a>,
    /// Where it came from.
    pub(super) ingress: &'a Port,
    /// How many frames it has.
    pub(super) frames: usize,
    /// Bytes of those that go on.
    pub(super) bytes: u64,
    /// Those that go on: a bit for each.
    pub(super) taken: u64,
    /// The VLAN of all of them, if the port has one only.
    vid: Option<Vid>,
    /// When it was taken.
    pub(super) now: Cycles,
}

impl<'a> View<'a> {
    /// A burst of so many frames and bytes, of which some may have been dropped.
    #[inline]
    pub(super) fn new(
        batch: &'a Batch,
        source: Source<'a>,
        ingress: &'a Port,
        (frames, bytes): (usize, u64),
        dropped: bool,
        now: Cycles,
    ) -> View<'a> {
        let mut view = View {
            batch,
            source,
            ingress,
            frames,
            bytes,
            taken: u64::MAX >> (BURST - frames.clamp(1, BURST)),
            vid: match ingress.mode {
                Mode::Access { pvid } => Some(pvid),
                Mode::Trunk { .. } => None,
            },
            now,
        };
        if dropped {
            view.leave_out();
        }
        view
    }

    #[cold]
    fn leave_out(&mut self) {
        (self.taken, self.bytes) = (0, 0);
        for (at, item) in self.batch.items[..self.frames].iter().enumerate() {
            if !matches!(item.verdict, Verdict::Drop(_)) {
                self.taken |= 1 << at;
                self.bytes += u64::from(item.len);
            }
        }
    }

    /// Count these frames, which a port took.
    #[inline]
    pub(super) fn count_sent(&self, port: &Port, worker: usize, mask: u64) {
        let vlans = &port.vlans;
        self.runs(mask, |vid, frames, bytes| {
            vlans.sent(worker, vid, frames, bytes);
        });
    }

    /// Count those that go on.
    #[inline]
    fn count_received(&self, worker: usize) {
        let vlans = &self.ingress.vlans;
        self.runs(self.taken, |vid, frames, bytes| {
            vlans.received(worker, vid, frames, bytes);
        });
    }

    /// Frames and bytes of runs of one VLAN.
    #[inline]
    fn runs(&self, mask: u64, mut each: impl FnMut(Vid, u64, u64)) {
        if mask == 0 {
            return;
        }
        if let (Some(vid), true) = (self.vid, mask == self.taken) {
            return each(vid, mask.count_ones().into(), self.bytes);
        }
        let (mut now, mut frames, mut bytes) = (Vid::DEFAULT, 0, 0);
        for at in bits(mask) {
            let item = &self.batch.items[at];
            if item.class.vid() != now && frames > 0 {
                each(now, frames, bytes);
                (frames, bytes) = (0, 0);
            }
            now = item.class.vid();
            frames += 1;
            bytes += u64::from(item.len);
        }
        each(now, frames, bytes);
    }
}

/// What one port did not take of a burst.
#[derive(Debug)]
pub(super) struct Losses {
    /// A bit for each frame.
    pub(super) mask: u64,
    /// Why, by index; means nothing for others.
    why: [Discard; BURST],
}

impl Default for Losses {
    fn default() -> Losses {
        Losses {
            mask: 0,
            why: [Discard::PortDown; BURST],
        }
    }
}

impl Losses {
    /// The port did not take these frames.
    #[cold]
    pub(super) fn add(&mut self, frames: u64, why: Discard) {
        self.mask |= frames;
        for at in bits(frames) {
            self.why[at % BURST] = why;
        }
    }

    fn of(&self, at: usize) -> Option<Discard> {
        (self.mask >> at & 1 == 1).then_some(self.why[at % BURST])
    }
}

/// Everything that watches one worker's frames.
#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) recent: Recent,
    taps: Taps,
}

impl Watch {
    /// A burst begins.
    #[inline]
    pub(super) fn begin(&mut self) {
        self.recent.burst();
        if self.is_capturing() {
            self.taps.burst();
        }
    }

    #[inline]
    fn is_capturing(&self) -> bool {
        !self.taps.is_empty()
    }

    /// Show a capture what passes from now on.
    ///
    /// # Errors
    /// The tap, if there is no room for it.
    pub(super) fn add(&mut self, tap: Tap) -> Result<(), Tap> {
        self.taps.add(tap)
    }

    /// End a capture; its tap is to be dropped by a thread that may wait.
    pub(super) fn remove(&mut self, id: CaptureId) -> Option<Tap> {
        self.taps.remove(id)
    }

    /// These frames were offered to a port.
    #[inline]
    pub(super) fn sent(&mut self, view: View<'_>, to: PortNo, frames: u64, losses: &Losses) {
        if losses.mask != 0 {
            self.note_lost(view, to, losses);
        }
        if self.is_capturing() {
            self.see_sent(view, to, frames, losses);
        }
    }

    /// The burst is over; `lost` frames did not arrive everywhere.
    #[inline]
    pub(super) fn end(&mut self, view: View<'_>, worker: usize, lost: u64) {
        view.count_received(worker);
        let arrived = view.taken & !lost;
        if arrived != 0 {
            let at = arrived.trailing_zeros() as usize;
            self.recent.note(&note(view, at, None, None));
        }
        if self.is_capturing() {
            self.see_received(view);
        }
    }

    /// Count the frames that were dropped where they came in, and note some.
    #[cold]
    pub(super) fn dropped(&mut self, view: View<'_>, worker: usize) {
        let discards = view.ingress.shared.discards.get(worker);
        for (at, item) in view.batch.items[..view.frames].iter().enumerate() {
            let Verdict::Drop(why) = item.verdict else {
                continue;
            };
            if let Some(discards) = discards {
                discards.count(why, 1);
            }
            if self.recent.wants_discard() {
                self.recent.note(&note(view, at, None, Some(why)));
            }
        }
    }

    #[cold]
    fn note_lost(&mut self, view: View<'_>, to: PortNo, losses: &Losses) {
        for at in bits(losses.mask) {
            if !self.recent.wants_discard() {
                return;
            }
            self.recent.note(&note(view, at, Some(to), losses.of(at)));
        }
    }

    #[cold]
    fn see_sent(&mut self, view: View<'_>, to: PortNo, frames: u64, losses: &Losses) {
        for at in bits(frames) {
            self.see(view, at, to, Direction::Tx, losses.of(at));
        }
    }

    #[cold]
    fn see_received(&mut self, view: View<'_>) {
        for at in 0..view.frames {
            let discard = match view.batch.items[at].verdict {
                Verdict::Drop(why) => Some(why),
                _ => None,
            };
            self.see(view, at, view.ingress.no, Direction::Rx, discard);
        }
    }

    fn see(
        &mut self,
        view: View<'_>,
        at: usize,
        port: PortNo,
        direction: Direction,
        discard: Option<Discard>,
    ) {
        let item = &view.batch.items[at];
        let head = known(view.batch, at);
        let address = |value| if head.is_empty() { 0 } else { value };
        let sight = Sight {
            now: view.now,
            port,
            direction,
            vid: vid(item),
            source: Mac::from_u64(address(item.parsed.src)),
            destination: Mac::from_u64(address(item.parsed.dst)),
            discard,
            len: item.len,
        };
        let rest = view.source.rest(at);
        self.taps.see(&sight, head, |into| fill(rest, into));
    }
}

fn note<'a>(view: View<'a>, at: usize, to: Option<PortNo>, discard: Option<Discard>) -> Note<'a> {
    let item = &view.batch.items[at];
    let egress = match (to, item.verdict) {
        (Some(port), _) | (None, Verdict::To(port)) => Egress::Port(port),
        (None, Verdict::Flood) => Egress::Flood,
        (None, Verdict::Drop(_)) => Egress::Nowhere,
    };
    Note {
        now: view.now,
        ingress: view.ingress.no,
        egress,
        vid: vid(item),
        len: item.len,
        discard,
        head: known(view.batch, at),
    }
}

/// A frame's first bytes; none if it was dropped before they were read.
fn known(batch: &Batch, at: usize) -> &[u8] {
    match batch.items[at].len {
        0 => &[],
        _ => batch.heads[at].frame(),
    }
}

/// The VLAN of a frame that came as far as having one.
fn vid(item: &Item) -> Option<Vid> {
    let before = |why| {
        let early = [
            Discard::Runt,
            Discard::Giant,
            Discard::BadHeader,
            Discard::BadTag,
            Discard::TaggedOnAccess,
            Discard::VlanNotAllowed,
            Discard::UntaggedOnTrunk,
        ];
        early.contains(&why)
    };
    match item.verdict {
        Verdict::Drop(why) if before(why) => None,
        _ => Some(item.class.vid()),
    }
}

/// Copy the beginning of a frame's rest; `into` is no longer than that.
fn fill(rest: Rest<'_>, mut into: &mut [u8]) {
    match rest {
        Rest::Own(bytes) => {
            let len = bytes.len().min(into.len());
            into[..len].copy_from_slice(&bytes[..len]);
        }
        Rest::Guest {
            mem,
            segments,
            mut skip,
        } => {
            for seg in segments {
                if skip >= seg.len() {
                    skip -= seg.len();
                    continue;
                }
                let part = seg.skip(skip);
                let part = part.take(u32::try_from(into.len()).unwrap_or(u32::MAX));
                skip = 0;
                let (now, later) = into.split_at_mut(part.len() as usize);
                let _ = mem.read(part, now);
                into = later;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_keep_their_reasons() {
        let mut losses = Losses::default();
        losses.add(0b1010, Discard::ReceiverFull);
        losses.add(1 << 63, Discard::NestedTag);
        assert_eq!(losses.of(3), Some(Discard::ReceiverFull));
        assert_eq!(losses.of(63), Some(Discard::NestedTag));
        assert_eq!(losses.of(0), None);
    }
}
