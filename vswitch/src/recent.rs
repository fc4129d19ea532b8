//! What the switch did with recent frames: always on, one for each worker.
//!
//! ```text
//! worker:  burst() ─▶ note(frame) … note(frame)        between bursts: copy_into(&mut vec)
//!                        │ by ingress port                        │
//!                        ▼                                        ▼
//!          [32 discards │ 16 forwards] for each port   ──▶   control: History
//! ```
//!
//! Records stand in plain memory of the worker, so a note is a store of 64 bytes. There is a ring
//! for each port and outcome: what one port sends, and a flood of one outcome, does not wash out
//! what is known of others. Of each burst the first forwarded frame is noted, and the first
//! [`DISCARDS_A_BURST`] discards: what a note costs is paid by the burst, not by the frame.
//!
//! The memory is reserved at the start and touched when a port is first heard of: 3 KiB for each.

use towpath_common::clock::Cycles;

use crate::discard::Discard;
use crate::mac::Mac;
use crate::table::PortNo;
use crate::vlan::Vid;

pub mod history;

/// Bytes of the frame that a record holds: both addresses, a tag or two, and the start of what
/// follows (IPv4 addresses, ARP's sender).
pub const HEAD: usize = 44;
/// Discards noted of one burst; more of them look alike.
pub const DISCARDS_A_BURST: u8 = 8;
/// Discards kept for a port.
pub const DISCARDS: usize = 32;
/// Forwarded frames kept for a port.
pub const FORWARDS: usize = 16;
/// Ports with rings of their own; ports whose numbers are equal modulo this share.
pub const PORTS: usize = 256;
/// Most records that one call of [`Recent::copy_into`] looks at: 64 KiB, a few microseconds.
pub const COPY: usize = 1024;

/// In place of an egress port: all members of the VLAN.
const FLOOD: u16 = 0xfffe;

/// Records of a port.
const RING: usize = DISCARDS + FORWARDS;

/// Where a frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// Nowhere.
    Nowhere,
    /// To one port, or dropped on the way out of it.
    Port(PortNo),
    /// To all members of its VLAN.
    Flood,
}

/// What a worker says about a frame.
#[derive(Clone, Copy, Debug)]
pub struct Note<'a> {
    /// When its burst was taken.
    pub now: Cycles,
    /// Where it came from.
    pub ingress: PortNo,
    /// Where it went, or was to go.
    pub egress: Egress,
    /// Its VLAN, if it came as far as having one.
    pub vid: Option<Vid>,
    /// Length in bytes from the destination address on.
    pub len: u32,
    /// Why it was dropped, if it was.
    pub discard: Option<Discard>,
    /// Its first bytes, as received; [`HEAD`] of them are kept.
    pub head: &'a [u8],
}

/// A note as it is kept: 64 bytes.
#[derive(Clone, Copy)]
pub struct Record {
    /// When the burst of the frame was taken.
    pub time: Cycles,
    /// Length of the frame in bytes, from the destination address on.
    pub len: u32,
    /// Where the frame came from; [`PortNo::NONE`] in a record that was never written.
    pub ingress: PortNo,
    /// A port, [`FLOOD`], or none.
    egress: u16,
    /// Its VLAN, if it came as far as having one.
    pub vid: Option<Vid>,
    /// Why it was dropped, if it was.
    pub discard: Option<Discard>,
    /// Bytes of `head`.
    kept: u8,
    head: [u8; HEAD],
}

const _: () = assert!(size_of::<Record>() == 64, "a record is a cache line");

impl Record {
    const EMPTY: Record = Record {
        time: Cycles::ZERO,
        len: 0,
        ingress: PortNo::NONE,
        egress: PortNo::NONE.0,
        vid: None,
        discard: None,
        kept: 0,
        head: [0; HEAD],
    };

    /// What to keep of a note.
    #[inline]
    #[must_use]
    pub fn new(note: &Note<'_>) -> Record {
        let kept = note.head.len().min(HEAD);
        let mut head = [0; HEAD];
        head[..kept].copy_from_slice(&note.head[..kept]);
        Record {
            time: note.now,
            len: note.len,
            ingress: note.ingress,
            egress: match note.egress {
                Egress::Nowhere => PortNo::NONE.0,
                Egress::Port(port) => port.0,
                Egress::Flood => FLOOD,
            },
            vid: note.vid,
            discard: note.discard,
            kept: u8::try_from(kept).unwrap_or(0),
            head,
        }
    }

    /// Where the frame went, or was to go.
    #[must_use]
    pub fn egress(&self) -> Egress {
        match self.egress {
            FLOOD => Egress::Flood,
            port if PortNo(port) == PortNo::NONE => Egress::Nowhere,
            port => Egress::Port(PortNo(port)),
        }
    }

    /// The first bytes of the frame.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        &self.head[..usize::from(self.kept)]
    }

    /// Destination address, if the frame was long enough for one.
    #[must_use]
    pub fn destination(&self) -> Option<Mac> {
        address(self.head(), 0)
    }

    /// Source address, if the frame was long enough for one.
    #[must_use]
    pub fn source(&self) -> Option<Mac> {
        address(self.head(), 6)
    }
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record")
            .field("time", &self.time)
            .field("ingress", &self.ingress)
            .field("egress", &self.egress())
            .field("vid", &self.vid)
            .field("discard", &self.discard)
            .field("len", &self.len)
            .field("source", &self.source())
            .field("destination", &self.destination())
            .finish_non_exhaustive()
    }
}

/// The address at `at`, if the head reaches that far.
fn address(head: &[u8], at: usize) -> Option<Mac> {
    head.get(at..at + 6)?.try_into().ok().map(Mac)
}

/// Notes of one port.
#[derive(Clone, Copy, Default)]
struct Ring {
    /// Its first record; rings stand in the order in which ports were first heard of.
    first: u16,
    /// Whether the port was ever heard of.
    heard: bool,
    /// Where the next discard goes.
    discard: u8,
    /// Where the next forwarded frame goes.
    forward: u8,
}

/// Recent frames of one worker.
pub struct Recent {
    /// [`RING`] records for each port that was heard of; never grows beyond its capacity.
    records: Vec<Record>,
    rings: Box<[Ring; PORTS]>,
    discards_left: u8,
    forward_left: bool,
}

impl Recent {
    /// Nothing noted yet. Allocates address space of 768 KiB, of which nothing is touched.
    #[must_use]
    pub fn new() -> Recent {
        Recent {
            records: Vec::with_capacity(PORTS * RING),
            rings: Box::new([Ring::default(); PORTS]),
            discards_left: DISCARDS_A_BURST,
            forward_left: true,
        }
    }

    /// A burst begins: notes are taken again.
    #[inline]
    pub fn burst(&mut self) {
        self.discards_left = DISCARDS_A_BURST;
        self.forward_left = true;
    }

    /// Whether the next forwarded frame would be noted: a caller may spare itself the note.
    #[inline]
    #[must_use]
    pub fn wants_forward(&self) -> bool {
        self.forward_left
    }

    /// Whether the next dropped frame would be noted.
    #[inline]
    #[must_use]
    pub fn wants_discard(&self) -> bool {
        self.discards_left != 0
    }

    /// Notes a frame, unless enough of its kind have been noted in this burst.
    #[inline]
    pub fn note(&mut self, note: &Note<'_>) {
        if note.discard.is_some() {
            if self.discards_left == 0 {
                return;
            }
            self.discards_left -= 1;
        } else if !std::mem::take(&mut self.forward_left) {
            return;
        }
        self.store(note);
    }

    fn store(&mut self, note: &Note<'_>) {
        let ring = &mut self.rings[note.ingress.index() % PORTS];
        if !ring.heard {
            ring.heard = true;
            // At most PORTS rings are ever made: this fits in the number, and in the capacity.
            ring.first = u16::try_from(self.records.len()).unwrap_or(0);
            self.records.extend([Record::EMPTY; RING]);
        }
        let place = if note.discard.is_some() {
            next(&mut ring.discard, DISCARDS)
        } else {
            DISCARDS + next(&mut ring.forward, FORWARDS)
        };
        if let Some(record) = self.records.get_mut(usize::from(ring.first) + place) {
            *record = Record::new(note);
        }
    }

    /// Copies records from the `from`th on, for as long as `out` has room without growing and no
    /// more than [`COPY`] are looked at. Gives where to go on, if there are more.
    ///
    /// For use between bursts, on behalf of a thread that may wait; it made `out`.
    #[must_use]
    pub fn copy_into(&self, from: usize, out: &mut Vec<Record>) -> Option<usize> {
        let room = (out.capacity() - out.len()).min(COPY);
        let rest = self.records.get(from..).unwrap_or_default();
        let now = &rest[..rest.len().min(room)];
        out.extend(now.iter().filter(|r| r.ingress != PortNo::NONE));
        (now.len() < rest.len()).then_some(from + now.len())
    }

    /// A place for what one [`Recent::copy_into`] copies.
    #[must_use]
    pub fn room() -> Vec<Record> {
        Vec::with_capacity(COPY)
    }
}

impl Default for Recent {
    fn default() -> Self {
        Recent::new()
    }
}

impl std::fmt::Debug for Recent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recent")
            .field("ports_heard", &(self.records.len() / RING))
            .finish_non_exhaustive()
    }
}

/// The place of the next note in a ring of `size`.
#[inline]
fn next(place: &mut u8, size: usize) -> usize {
    let now = usize::from(*place);
    *place = u8::try_from((now + 1) % size).unwrap_or(0);
    now
}

#[cfg(test)]
mod tests;
