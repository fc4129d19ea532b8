//! The two ends of a capture: a [`Tap`] on each worker, a [`Reader`] on the control thread.

use arrayvec::ArrayVec;
use towpath_common::clock::Cycles;

use super::filter::{Direction, Filter, Sight};
use super::ring::{self, ring};
use super::{CAPTURES, CaptureId, MAX_SNAPLEN};
use crate::table::PortNo;
use crate::vlan::Vid;

/// Memory between a worker and the reader, for each capture: a reader that comes by every 10 ms
/// gets 100 MB/s, far more than it can write.
pub const RING_BYTES: usize = 1 << 20;
/// Bytes copied of one burst, after which frames are counted as missed: a few microseconds.
pub const BURST_BYTES: usize = 32 << 10;

/// Bits of the third word of a record.
const OUT: u64 = 1 << 40;
const DROPPED: u64 = 1 << 41;

/// A worker's end of a capture.
pub struct Tap {
    id: CaptureId,
    filter: Filter,
    writer: ring::Writer,
    /// Where a frame is put together: as long as the longest part of a frame to be captured.
    frame: Box<[u8]>,
    /// Bytes that may still be copied in this burst.
    budget: usize,
}

impl Tap {
    /// The capture.
    #[must_use]
    pub fn id(&self) -> CaptureId {
        self.id
    }

    /// Whether the capture wants this frame.
    #[inline]
    #[must_use]
    pub fn wants(&self, sight: &Sight) -> bool {
        self.filter.wants(sight)
    }

    /// Takes a frame that is wanted, or counts it as missed.
    ///
    /// `head` is its beginning; `rest` is asked to fill what follows, if the capture wants more
    /// than the head.
    #[inline]
    pub fn push(&mut self, sight: &Sight, head: &[u8], rest: impl FnOnce(&mut [u8])) {
        let len = usize::try_from(sight.len).unwrap_or(usize::MAX);
        let kept = len.min(self.frame.len());
        if kept > self.budget || !self.writer.fits::<3>(kept) {
            self.writer.miss();
            return;
        }
        self.budget -= kept;
        let known = head.len().min(kept);
        self.frame[..known].copy_from_slice(&head[..known]);
        if known < kept {
            rest(&mut self.frame[known..kept]);
        }
        let header = encode(sight);
        if !self.writer.write(header, &self.frame[..kept]) {
            self.writer.miss();
        }
    }
}

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tap")
            .field("id", &self.id)
            .field("filter", &self.filter)
            .field("snaplen", &self.frame.len())
            .finish_non_exhaustive()
    }
}

/// The captures of one worker.
#[derive(Debug, Default)]
pub struct Taps {
    taps: ArrayVec<Tap, CAPTURES>,
}

impl Taps {
    /// Whether there is nothing to do: to be asked once a burst.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.taps.is_empty()
    }

    /// A burst begins.
    #[inline]
    pub fn burst(&mut self) {
        for tap in &mut self.taps {
            tap.budget = BURST_BYTES.max(tap.frame.len());
        }
    }

    /// Shows a frame to every capture; see [`Tap::push`].
    #[inline]
    pub fn see(&mut self, sight: &Sight, head: &[u8], rest: impl Fn(&mut [u8])) {
        for tap in &mut self.taps {
            if tap.wants(sight) {
                tap.push(sight, head, &rest);
            }
        }
    }

    /// Adds a capture.
    ///
    /// # Errors
    /// The tap, if there are [`CAPTURES`] already.
    pub fn add(&mut self, tap: Tap) -> Result<(), Tap> {
        self.taps.try_push(tap).map_err(|full| full.element())
    }

    /// Removes a capture; its tap is to be dropped by a thread that may wait.
    pub fn remove(&mut self, id: CaptureId) -> Option<Tap> {
        let at = self.taps.iter().position(|tap| tap.id == id)?;
        Some(self.taps.remove(at))
    }
}

/// A frame as the reader gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured<'a> {
    /// When its burst was taken.
    pub time: Cycles,
    /// The port.
    pub port: PortNo,
    /// Which way it passed the port.
    pub direction: Direction,
    /// Its VLAN, if it came as far as having one.
    pub vid: Option<Vid>,
    /// Why it was dropped, if it was: [`Discard::index`](crate::discard::Discard::index).
    pub discard: Option<usize>,
    /// Its length in bytes; more than `data` if that was cut.
    pub len: u32,
    /// Its beginning.
    pub data: &'a [u8],
}

/// The control thread's end of a capture.
pub struct Reader {
    rings: Vec<ring::Reader>,
    /// What was read last: headers, and where the data of each begins in `data`.
    records: Vec<([u64; 3], usize, usize)>,
    data: Vec<u8>,
}

impl Reader {
    /// Reads what the workers have written, up to about `bytes` of each, and shows it in the
    /// order of time.
    ///
    /// # Errors
    /// That of `show`, at once; what was not shown then is lost.
    pub fn drain<E>(
        &mut self,
        bytes: usize,
        mut show: impl FnMut(&Captured<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.records.clear();
        self.data.clear();
        for ring in &mut self.rings {
            let limit = self.data.len().saturating_add(bytes);
            while self.data.len() < limit {
                let from = self.data.len();
                let Some(header) = ring.read(&mut self.data) else {
                    break;
                };
                self.records.push((header, from, self.data.len()));
            }
        }
        self.records.sort_by_key(|(header, ..)| header[0]);
        for (header, from, to) in &self.records {
            show(&decode(*header, &self.data[*from..*to]))?;
        }
        Ok(())
    }

    /// Frames that were wanted and could not be taken, so far.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.rings.iter().map(ring::Reader::missed).sum()
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("workers", &self.rings.len())
            .field("missed", &self.missed())
            .finish_non_exhaustive()
    }
}

/// A capture of at most `snaplen` bytes of each frame that `filter` wants: a tap for each of
/// `workers`, and what reads them. All its memory is allocated here.
#[must_use]
pub fn open(id: CaptureId, filter: &Filter, snaplen: u32, workers: usize) -> (Vec<Tap>, Reader) {
    let snaplen = usize::try_from(snaplen.clamp(1, MAX_SNAPLEN)).unwrap_or(1);
    let (taps, rings) = (0..workers)
        .map(|_| {
            let (writer, reader) = ring(RING_BYTES);
            let tap = Tap {
                id,
                filter: filter.clone(),
                writer,
                frame: vec![0; snaplen].into(),
                budget: 0,
            };
            (tap, reader)
        })
        .unzip();
    let reader = Reader {
        rings,
        records: Vec::new(),
        data: Vec::new(),
    };
    (taps, reader)
}

/// Time; length; port, VLAN, reason and flags.
#[inline]
fn encode(sight: &Sight) -> [u64; 3] {
    let vid = u64::from(sight.vid.map_or(0, Vid::get));
    let reason = sight
        .discard
        .map_or(0, |d| d.index() as u64 | DROPPED >> 32);
    let out = if sight.direction == Direction::Tx {
        OUT
    } else {
        0
    };
    let place = u64::from(sight.port.0) | vid << 16 | reason << 32 | out;
    [sight.now.0, u64::from(sight.len), place]
}

fn decode(header: [u64; 3], data: &[u8]) -> Captured<'_> {
    let [time, len, place] = header;
    let [p0, p1, v0, v1, reason, ..] = place.to_le_bytes();
    Captured {
        time: Cycles(time),
        port: PortNo(u16::from_le_bytes([p0, p1])),
        direction: if place & OUT == 0 {
            Direction::Rx
        } else {
            Direction::Tx
        },
        vid: Vid::new(u16::from_le_bytes([v0, v1])),
        discard: (place & DROPPED != 0).then_some(usize::from(reason)),
        len: u32::try_from(len).unwrap_or(u32::MAX),
        data,
    }
}

#[cfg(test)]
mod tests;
