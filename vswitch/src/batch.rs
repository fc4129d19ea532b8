//! A burst of frames on its way through the switch: private copies and what was decided.

use towpath_common::chain::{BURST, Burst};
use towpath_common::mem::{Mem, Near};

use crate::discard::Discard;
use crate::fdb::{Hash, PortNo};
use crate::head::{COPIED, ETHERNET, Head, Parsed};
use crate::net::{HEADER, NetHeader, Offloads};
use crate::port::Uplink;
use crate::port::guest::Rest;
use crate::vlan::{Class, Vid};

/// Longest frame there can be, in bytes: a segmented one of 64 KiB, its headers and two tags.
pub const LONGEST: u32 = 65_535 + 14 + 8;

/// Where the frames of a burst come from.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// A guest's transmit queue.
    Guest {
        /// Its memory.
        mem: &'a Mem,
        /// The chains popped.
        burst: &'a Burst,
    },
    /// An uplink that received this many.
    Uplink(&'a dyn Uplink, usize),
    /// One frame of our own.
    Frame(&'a [u8]),
}

impl<'a> Source<'a> {
    /// Frames in the burst.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Source::Guest { burst, .. } => burst.len(),
            Source::Uplink(_, frames) => (*frames).min(BURST),
            Source::Frame(_) => 1,
        }
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A guest's frames, for a loop; none if they are not a guest's.
    #[inline]
    #[must_use]
    pub fn guest(&self) -> Option<GuestFrames<'a>> {
        let Source::Guest { mem, burst } = *self else {
            return None;
        };
        let region = burst.single(0, false).map_or(0, |(_, seg)| seg.region());
        let near = mem.near(region)?;
        Some(GuestFrames { near, mem, burst })
    }

    /// Copy the beginning of a frame, virtio-net header first; gives the length of the frame.
    ///
    /// # Errors
    /// [`Discard::Runt`] or [`Discard::Giant`].
    #[inline]
    pub fn load(&self, index: usize, head: &mut Head) -> Result<u32, Discard> {
        match self {
            Source::Guest { mem, burst } => load_chain(mem, burst, index, head),
            Source::Uplink(..) | Source::Frame(_) => self.load_own(index, head),
        }
    }

    fn load_own(&self, index: usize, head: &mut Head) -> Result<u32, Discard> {
        let (header, frame) = self.own(index);
        let len = u32::try_from(frame.len()).map_err(|_| Discard::Giant)?;
        if len > LONGEST {
            return Err(Discard::Giant);
        }
        if frame.len() < ETHERNET {
            return Err(Discard::Runt);
        }
        let into = head.fill(frame.len());
        let copied = into.len() - HEADER;
        into[..HEADER].copy_from_slice(&header.to_bytes(0));
        into[HEADER..].copy_from_slice(&frame[..copied]);
        Ok(len)
    }

    /// A frame in a buffer of ours.
    #[inline]
    fn own(&self, index: usize) -> (NetHeader, &'a [u8]) {
        match self {
            Source::Uplink(port, _) => port.frame(index),
            Source::Frame(bytes) => (NetHeader::default(), bytes),
            Source::Guest { .. } => (NetHeader::default(), &[]),
        }
    }

    /// What of a frame was not copied.
    #[inline]
    #[must_use]
    pub fn rest(&self, index: usize) -> Rest<'a> {
        match self {
            Source::Guest { mem, burst } => Rest::Guest {
                mem,
                segments: burst.get(index).map_or(&[], |chain| chain.readable),
                #[expect(clippy::cast_possible_truncation, reason = "140")]
                skip: (HEADER + COPIED) as u32,
            },
            Source::Uplink(..) | Source::Frame(_) => {
                let (_, frame) = self.own(index);
                Rest::Own(frame.get(COPIED..).unwrap_or_default())
            }
        }
    }
}

/// A guest's frames, the region that most of them stand in at hand.
#[derive(Debug, Clone, Copy)]
pub struct GuestFrames<'a> {
    near: Near<'a>,
    mem: &'a Mem,
    burst: &'a Burst,
}

impl GuestFrames<'_> {
    /// As [`Source::load`].
    ///
    /// # Errors
    /// As [`Source::load`].
    #[inline]
    pub fn load(&self, index: usize, head: &mut Head) -> Result<u32, Discard> {
        let Some((_, seg)) = self.burst.single(index, false) else {
            return load_chain(self.mem, self.burst, index, head);
        };
        let len = frame_len(seg.len().into())?;
        let into = head.fill(len as usize);
        if self.near.read(seg, into) || self.mem.read(seg, into) {
            Ok(len)
        } else {
            Err(Discard::Runt)
        }
    }
}

/// Length of the frame in a chain of so many readable bytes.
#[inline]
fn frame_len(readable: u64) -> Result<u32, Discard> {
    let len = readable.wrapping_sub(HEADER as u64);
    // One comparison: a chain shorter than the header gives a huge number.
    if len.wrapping_sub(ETHERNET as u64) > u64::from(LONGEST) - ETHERNET as u64 {
        return Err(if readable < (HEADER + ETHERNET) as u64 {
            Discard::Runt
        } else {
            Discard::Giant
        });
    }
    u32::try_from(len).map_err(|_| Discard::Giant)
}

/// Copy the beginning of a frame over several segments.
#[inline(never)]
fn load_chain(mem: &Mem, burst: &Burst, index: usize, head: &mut Head) -> Result<u32, Discard> {
    let Some(chain) = burst.get(index) else {
        return Err(Discard::Runt);
    };
    if !chain.writable.is_empty() {
        // The ring is broken for it, once the burst is done.
        return Err(Discard::BadHeader);
    }
    let len = frame_len(chain.readable_len)?;
    if chain.read(mem, head.fill(len as usize)) {
        Ok(len)
    } else {
        Err(Discard::Runt)
    }
}

/// What was decided about a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to one port.
    To(PortNo),
    /// It goes to every other member of its VLAN.
    Flood,
    /// It goes nowhere.
    Drop(Discard),
}

/// A frame of a burst.
#[derive(Debug, Clone, Copy)]
pub struct Item {
    /// Addresses and tag.
    pub parsed: Parsed,
    /// Length in bytes, from the destination address on.
    pub len: u32,
    /// Its virtio-net header, as it goes on.
    pub header: NetHeader,
    /// What that asks of a receiver.
    pub needs: Offloads,
    /// Its VLAN; means nothing for frames dropped before they had one.
    pub class: Class,
    /// Where the source address is kept.
    pub src: Hash,
    /// Where the destination address is kept.
    pub dst: Hash,
    /// Like the frame before it that was examined, and nothing is asked for it: what is decided
    /// about that one goes for this one.
    pub repeats: bool,
    /// What was decided.
    pub verdict: Verdict,
}

impl Item {
    /// Frames that it makes on a wire: one, or as many as it is to be cut into.
    #[inline]
    #[must_use]
    pub fn wire_frames(&self) -> u32 {
        match self.header.gso_size {
            0 => 1,
            size => {
                let payload = self.len.saturating_sub(self.header.hdr_len.into());
                payload.div_ceil(size.into()).max(1)
            }
        }
    }
}

impl Default for Item {
    fn default() -> Item {
        Item {
            parsed: Parsed::default(),
            len: 0,
            header: NetHeader::default(),
            needs: Offloads::NONE,
            class: Class::new(Vid::DEFAULT, 0, false),
            src: Hash::default(),
            dst: Hash::default(),
            repeats: false,
            verdict: Verdict::Drop(Discard::Runt),
        }
    }
}

/// Room for a burst. Allocated once and reused.
#[derive(Debug)]
pub struct Batch {
    /// First bytes, by index in the burst.
    pub heads: Box<[Head; BURST]>,
    /// What is known, by index in the burst.
    pub items: Box<[Item; BURST]>,
}

impl Default for Batch {
    fn default() -> Batch {
        Batch {
            heads: Box::new([Head::default(); BURST]),
            items: Box::new([Item::default(); BURST]),
        }
    }
}

/// The indices of the bits that are set, lowest first.
#[inline]
pub fn bits(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (mask != 0).then(|| {
            let at = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            at
        })
    })
}
