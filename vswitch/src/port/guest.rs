//! A guest's receive queue: where frames for it are written (virtio 1.3, 5.1.6.4).
//!
//! A [`GuestRx`] stands in a lease and is used by one worker for the length of a burst:
//! [`GuestRx::begin`] pops as many buffers as there are frames, [`Delivery::put`] writes one frame,
//! over several buffers if the driver merges them, and [`Delivery::end`] gives back what was not
//! needed and publishes. [`GuestRx::settle`] notifies, once for all bursts of a worker's step. A
//! frame is written whole or not at all.

use std::io;

use towpath_common::bell::Bell;
use towpath_common::chain::{BURST, Burst, Chain};
use towpath_common::mem::{Mem, Segment};
use towpath_common::ring::{Ring, Soon, Violation, fence};
use towpath_common::session::{Attach, Update};

use super::line::Line;
use crate::discard::Discard;
use crate::features;
use crate::net::{HEADER, Offloads};
use crate::stats::QueueCounters;

/// Offset of `num_buffers` in the header, in bytes.
const NUM_BUFFERS: u32 = 10;

/// What a frame consists of after its private first bytes.
#[derive(Debug, Clone, Copy)]
pub enum Rest<'a> {
    /// Bytes of our own.
    Own(&'a [u8]),
    /// Buffers of the sending guest, of which the first `skip` bytes have been taken.
    Guest {
        /// Its memory.
        mem: &'a Mem,
        /// Its buffers, header and all.
        segments: &'a [Segment],
        /// Bytes to leave out.
        skip: u32,
    },
}

/// A guest's receive queue.
#[derive(Debug)]
pub struct GuestRx {
    ring: Ring,
    index: u16,
    line: Line,
    mergeable: bool,
    accepts: Offloads,
    /// The driver has not been asked yet whether it wants to be notified of the last frames.
    owes: bool,
    /// What it did.
    pub counters: QueueCounters,
}

impl GuestRx {
    /// A queue just handed over by its session; `features` were negotiated, and `counters` go on
    /// from earlier sessions.
    ///
    /// # Errors
    /// If the call fd cannot be signalled.
    pub fn new(
        index: u16,
        attach: Attach,
        bell: Bell,
        counters: QueueCounters,
        features: u64,
    ) -> io::Result<GuestRx> {
        let (mut ring, _, line) = Line::of(attach, bell)?;
        // Whether there are buffers is seen when a frame comes: no kicks, ever.
        ring.disarm();
        Ok(GuestRx {
            ring,
            index,
            line,
            mergeable: features & features::MRG_RXBUF != 0,
            accepts: features::accepts(features),
            owes: false,
            counters,
        })
    }

    /// Give back the ring, for its session, and the bell, which signals nothing any more.
    #[must_use]
    pub fn into_parts(mut self) -> (Ring, Option<Bell>) {
        fence();
        self.settle();
        (self.ring, self.line.into_bell())
    }

    /// Apply a change that needs no drain.
    pub fn update(&mut self, update: Update) {
        self.line.update(update);
    }

    /// Number of the queue in its device.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Whether frames can be delivered.
    #[inline]
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.line.enabled && self.ring.broken().is_none()
    }

    /// Whether the front-end enabled it.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.line.enabled
    }

    /// What the driver takes without checksums and segmentation done first.
    #[inline]
    #[must_use]
    pub fn accepts(&self) -> Offloads {
        self.accepts
    }

    /// It takes these from now on.
    pub fn set_accepts(&mut self, accepts: Offloads) {
        self.accepts = accepts;
    }

    /// True once the guest's memory was found truncated; its session is hung up then.
    #[must_use]
    pub fn check_poison(&self) -> bool {
        self.line.check_poison(&self.ring)
    }

    /// Why the ring broke, the first time this is asked after it did; the front-end is told too.
    #[inline]
    pub fn newly_broken(&mut self) -> Option<Violation> {
        self.line.newly_broken(&self.ring)
    }

    /// Notify the driver of the frames of late, if it wants that; the caller passed a
    /// [`fence`] since the last of them.
    #[inline]
    pub fn settle(&mut self) {
        self.owes = false;
        if self.ring.owes_call() {
            self.counters.notified += 1;
            self.line.notify();
        } else {
            self.counters.suppressed += 1;
        }
    }

    /// Where its ring will be used next.
    #[inline]
    #[must_use]
    pub fn soon(&self) -> Soon {
        self.ring.soon()
    }

    /// Prepare to deliver about `frames` frames; `burst` is room for buffers.
    #[inline]
    pub fn begin<'a>(&'a mut self, burst: &'a mut Burst, frames: usize) -> Delivery<'a> {
        let logged = self.ring.log().is_some();
        self.ring.pop(burst, frames);
        Delivery {
            rx: self,
            burst,
            at: 0,
            logged,
            frames: 0,
            bytes: 0,
        }
    }
}

/// A burst on its way into a guest's receive queue.
#[derive(Debug)]
pub struct Delivery<'a> {
    rx: &'a mut GuestRx,
    burst: &'a mut Burst,
    /// Next buffer of the burst that is not used.
    at: usize,
    /// What is written is logged: a migration runs.
    logged: bool,
    /// Frames written, and their bytes with headers.
    frames: u64,
    bytes: u64,
}

impl Delivery<'_> {
    /// Write a frame: `head` is its header and first bytes, `rest` what follows, `len` the length
    /// of both in bytes. The header says one buffer.
    ///
    /// # Errors
    /// [`Discard::ReceiverFull`], [`Discard::ReceiverSmall`] or [`Discard::PortDown`]; nothing was
    /// used then.
    #[inline]
    pub fn put(&mut self, head: &[u8], rest: Rest<'_>, len: u32) -> Result<(), Discard> {
        let Some((id, first)) = self.fitting(len) else {
            return self.put_slow([head, &[], &[]], rest, len);
        };
        let mem = self.rx.ring.mem();
        let whole = mem.write(first, head) && put_rest(mem, rest, skipped(first, head.len()));
        debug_assert!(whole, "a segment of another snapshot");
        self.use_one(id, len);
        Ok(())
    }

    /// The same, of a frame that `head` is all of.
    ///
    /// # Errors
    /// As [`Delivery::put`].
    #[inline(always)]
    pub fn put_whole(&mut self, head: &[u8], len: u32) -> Result<(), Discard> {
        let Some((id, first)) = self.fitting(len) else {
            return self.put_slow([head, &[], &[]], Rest::Own(&[]), len);
        };
        let whole = self.rx.ring.mem().write(first, head);
        debug_assert!(whole, "a segment of another snapshot");
        self.use_one(id, len);
        Ok(())
    }

    /// The same, of a frame whose first bytes are in pieces.
    ///
    /// # Errors
    /// As [`Delivery::put`].
    #[inline]
    pub fn put_pieces(
        &mut self,
        head: [&[u8]; 3],
        rest: Rest<'_>,
        len: u32,
    ) -> Result<(), Discard> {
        let Some((id, first)) = self.fitting(len) else {
            return self.put_slow(head, rest, len);
        };
        let mem = self.rx.ring.mem();
        let (mut to, mut whole) = (first, true);
        for piece in head {
            whole &= mem.write(to, piece);
            to = skipped(to, piece.len());
        }
        whole &= put_rest(mem, rest, to);
        debug_assert!(whole, "a segment of another snapshot");
        self.use_one(id, len);
        Ok(())
    }

    /// The next buffer, if it is of one segment that `len` bytes fit, as almost all are.
    #[inline(always)]
    fn fitting(&self, len: u32) -> Option<(u16, Segment)> {
        let next = self.burst.single(self.at, true);
        next.filter(|(_, seg)| seg.len() >= len && !self.logged)
    }

    #[inline(always)]
    fn use_one(&mut self, id: u16, len: u32) {
        self.rx.ring.put(id, len);
        self.at += 1;
        self.frames += 1;
        self.bytes += u64::from(len);
    }

    /// Most frames that can be written in one burst: each takes an entry of the ring.
    #[must_use]
    pub fn most(&self) -> usize {
        self.rx.ring.size().into()
    }

    /// A frame over several buffers or segments, or buffers that are not there, or a migration.
    #[cold]
    fn put_slow(&mut self, head: [&[u8]; 3], rest: Rest<'_>, len: u32) -> Result<(), Discard> {
        let buffers = match self.buffers(len) {
            Ok(buffers) => buffers,
            Err(Discard::ReceiverFull) => {
                // Those at hand go back; as many as a burst holds are taken instead.
                self.rx.ring.unpop(self.burst, self.burst.len() - self.at);
                self.rx.ring.pop(self.burst, BURST);
                self.at = 0;
                let buffers = self.buffers(len);
                if buffers.is_err() && self.rx.ring.broken().is_some() {
                    // It has no buffers that could be trusted.
                    return Err(Discard::PortDown);
                }
                buffers?
            }
            Err(why) => return Err(why),
        };
        let mut out = Cursor {
            delivery: self,
            buffer: 0,
            segment: 0,
            offset: 0,
        };
        head.into_iter().for_each(|piece| out.bytes(piece));
        match rest {
            Rest::Own(bytes) => out.bytes(bytes),
            Rest::Guest {
                mem,
                segments,
                skip,
            } => out.guest(mem, segments, skip),
        }
        self.finish(buffers, len);
        Ok(())
    }

    /// How many of the buffers at hand a frame of `len` bytes takes.
    fn buffers(&mut self, len: u32) -> Result<usize, Discard> {
        let mut room = 0;
        for n in 0.. {
            if n == BURST || (n == 1 && !self.rx.mergeable) {
                return Err(Discard::ReceiverSmall);
            }
            let Some(chain) = self.burst.get(self.at + n) else {
                // With room for another, there was none; with none at hand used, none will do.
                let all = self.at == 0 && !self.burst.has_room();
                let why = if all {
                    Discard::ReceiverSmall
                } else {
                    Discard::ReceiverFull
                };
                return Err(why);
            };
            if !chain.readable.is_empty() || chain.writable_len < HEADER as u64 {
                let why = "a receive buffer without room for a header, or readable";
                self.rx.ring.latch(Violation::Request(why));
                return Err(Discard::PortDown);
            }
            room += chain.writable_len;
            if room >= u64::from(len) {
                return Ok(n + 1);
            }
        }
        Err(Discard::ReceiverSmall)
    }

    /// Use `buffers` buffers for the `len` bytes that were written to them.
    fn finish(&mut self, buffers: usize, len: u32) {
        let mut left = len;
        for n in 0..buffers {
            let Some(chain) = self.burst.get(self.at + n) else {
                break;
            };
            let here = u64::from(left).min(chain.writable_len);
            let here = u32::try_from(here).unwrap_or(left);
            if n == 0 {
                let count = u16::try_from(buffers).unwrap_or(1).to_le_bytes();
                write_at(self.rx.ring.mem(), chain, NUM_BUFFERS, count);
            }
            if let Some(log) = self.rx.ring.log() {
                let mut left = here;
                for seg in chain.writable {
                    let part = seg.take(left);
                    log.mark(self.rx.ring.mem().gpa(part), part.len().into());
                    left -= part.len();
                }
            }
            left -= here;
            self.rx.ring.put(chain.id, here);
        }
        self.at += buffers;
        self.frames += 1;
        self.bytes += u64::from(len);
    }

    /// Give back what was not used, and publish. True if [`GuestRx::settle`] is to be called
    /// before the worker does anything else, and nobody was told yet.
    #[inline]
    #[must_use]
    pub fn end(self) -> bool {
        let unused = self.burst.len() - self.at;
        if unused > 0 {
            self.rx.ring.unpop(self.burst, unused);
        }
        let counters = &mut self.rx.counters;
        counters.frames += self.frames;
        counters.bytes += self.bytes - self.frames * HEADER as u64;
        counters.bursts += 1;
        self.rx.ring.expose();
        counters.next_avail = self.rx.ring.next_avail().into();
        counters.next_used = self.rx.ring.next_used().into();
        !std::mem::replace(&mut self.rx.owes, true)
    }
}

#[inline]
fn skipped(seg: Segment, bytes: usize) -> Segment {
    seg.skip(u32::try_from(bytes).unwrap_or(u32::MAX))
}

/// Write what follows a frame's first bytes to `to`, in `mem`; false if a segment is not of its
/// snapshot, or too short.
#[inline]
fn put_rest(mem: &Mem, rest: Rest<'_>, mut to: Segment) -> bool {
    let (from, segments, mut skip) = match rest {
        Rest::Own(bytes) => return bytes.is_empty() || mem.write(to, bytes),
        Rest::Guest {
            mem,
            segments,
            skip,
        } => (mem, segments, skip),
    };
    let mut done = true;
    for seg in segments {
        if skip >= seg.len() {
            skip -= seg.len();
            continue;
        }
        let part = seg.skip(skip);
        skip = 0;
        done &= from.copy_to(part, mem, to);
        to = to.skip(part.len());
    }
    done
}

/// Write two bytes at `offset` of a chain, wherever its segments end.
fn write_at(mem: &Mem, chain: Chain<'_>, mut offset: u32, bytes: [u8; 2]) {
    let mut left = bytes.as_slice();
    for seg in chain.writable {
        if left.is_empty() {
            return;
        }
        if offset >= seg.len() {
            offset -= seg.len();
            continue;
        }
        let part = seg.skip(offset);
        offset = 0;
        let n = left.len().min(part.len() as usize);
        let (now, later) = left.split_at(n);
        let _ = mem.write(part, now);
        left = later;
    }
}

/// Writes bytes one after the other into the buffers of a delivery that were found to suffice.
struct Cursor<'a, 'b> {
    delivery: &'a mut Delivery<'b>,
    buffer: usize,
    segment: usize,
    offset: u32,
}

impl Cursor<'_, '_> {
    /// Room for at most `len` bytes, and one past it.
    fn room(&mut self, len: u32) -> Option<Segment> {
        loop {
            let chain = self.delivery.burst.get(self.delivery.at + self.buffer)?;
            let Some(seg) = chain.writable.get(self.segment) else {
                (self.buffer, self.segment, self.offset) = (self.buffer + 1, 0, 0);
                continue;
            };
            let room = seg.skip(self.offset).take(len);
            if room.is_empty() {
                (self.segment, self.offset) = (self.segment + 1, 0);
                continue;
            }
            self.offset += room.len();
            return Some(room);
        }
    }

    fn bytes(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let Some(room) = self.room(len) else { return };
            let (now, later) = bytes.split_at(room.len() as usize);
            let _ = self.delivery.rx.ring.mem().write(room, now);
            bytes = later;
        }
    }

    fn guest(&mut self, mem: &Mem, segments: &[Segment], mut skip: u32) {
        for seg in segments {
            if skip >= seg.len() {
                skip -= seg.len();
                continue;
            }
            let mut part = seg.skip(skip);
            skip = 0;
            while !part.is_empty() {
                let Some(room) = self.room(part.len()) else {
                    return;
                };
                let _ = mem.copy_to(part.take(room.len()), self.delivery.rx.ring.mem(), room);
                part = part.skip(room.len());
            }
        }
    }
}
