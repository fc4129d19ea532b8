//! virtio-blk requests from the guest's side (virtio 1.3, section 5.2.6).
//!
//! A [`BlkQueue`] owns a fixed number of slots. Each slot has one cache line that holds the
//! request's header and status byte, so that an exchange with the device moves one line there and
//! back, and one data buffer. [`BlkQueue::prepare`] shapes a slot (operation and length);
//! [`BlkQueue::aim`] then only rewrites the sector, which is all that a load generator does per
//! request. [`BlkClient`] (in `client`) adds the session and blocking calls, for tests.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::driver::{Completion, Driver, Form, Segment, Token};
use super::memory::GuestMemory;
use super::split::SplitDriver;
use super::{Error, Result};
use crate::mem::View;

mod client;

pub use client::{BlkClient, ClientOptions};

/// Bytes of a sector, whatever the disk's block size (section 5.2.4).
pub const SECTOR: u64 = 512;
/// Status: done.
pub const OK: u8 = 0;
/// Status: the device failed.
pub const IOERR: u8 = 1;
/// Status: the device does not know this operation.
pub const UNSUPP: u8 = 2;
/// What a status byte holds before the device writes it.
pub const UNTOUCHED: u8 = 0xff;
/// Bytes of the identification string (section 5.2.6).
pub const ID_LEN: u32 = 20;
/// Discard and write-zeroes segment flag: the device may unmap.
pub const UNMAP: u32 = 1;

/// Bytes of a slot's line: header at 0, status at 16.
const LINE: u64 = 64;
const STATUS_AT: usize = 16;
const HEADER_LEN: u32 = 16;

/// Request types (section 5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Read.
    In,
    /// Write.
    Out,
    /// Make what was written durable.
    Flush,
    /// Read the identification string.
    GetId,
    /// Give sectors back.
    Discard,
    /// Make sectors read as zero.
    WriteZeroes,
    /// Any other type code; data, if any, is for the device to write.
    Other(u32),
}

impl Op {
    /// Type code in the header.
    #[must_use]
    pub fn code(self) -> u32 {
        match self {
            Self::In => 0,
            Self::Out => 1,
            Self::Flush => 4,
            Self::GetId => 8,
            Self::Discard => 11,
            Self::WriteZeroes => 13,
            Self::Other(code) => code,
        }
    }

    /// Whether the device writes the data.
    fn device_writes(self) -> bool {
        matches!(self, Self::In | Self::GetId | Self::Other(_))
    }
}

/// The 16-byte request header.
#[must_use]
pub fn header(code: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&code.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

/// One range of DISCARD or `WRITE_ZEROES`: sector, sectors, flags.
#[must_use]
pub fn range(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

/// A request that came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Its slot.
    pub slot: usize,
    /// [`OK`], [`IOERR`], [`UNSUPP`], or what else the device wrote.
    pub status: u8,
    /// Bytes the device says it wrote, data and status.
    pub written: u32,
}

/// How a queue's slots are laid out.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Slots, hence requests in flight at most.
    pub slots: u16,
    /// Bytes of each slot's data buffer.
    pub buffer: u32,
    /// Data is cut into segments of at most this many bytes.
    pub piece: u32,
    /// Where descriptors go.
    pub form: Form,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            slots: 16,
            buffer: 128 << 10,
            piece: u32::MAX,
            form: Form::Indirect,
        }
    }
}

#[derive(Debug)]
struct Slot {
    data: u64,
    /// The prepared chain, for this operation and length.
    prepared: Option<(Token, Op, u32)>,
}

/// One queue of a virtio-blk disk.
#[derive(Debug)]
pub struct BlkQueue<D = SplitDriver> {
    driver: D,
    shape: Shape,
    lines_gpa: u64,
    lines: View,
    slots: Vec<Slot>,
    /// Slot by token.
    owner: Vec<u16>,
    returned: Vec<Completion>,
}

impl<D: Driver> BlkQueue<D> {
    /// Slots in fresh guest memory on top of `driver`.
    pub fn new(driver: D, memory: &GuestMemory, shape: Shape) -> Result<Self> {
        let bytes = LINE * u64::from(shape.slots);
        let lines_gpa = memory.alloc_pages(bytes)?;
        let mut slots = Vec::with_capacity(shape.slots.into());
        for _ in 0..shape.slots {
            let data = memory.alloc_pages(shape.buffer.into())?;
            slots.push(Slot {
                data,
                prepared: None,
            });
        }
        Ok(Self {
            shape,
            lines_gpa,
            lines: memory.view(lines_gpa, bytes, 64)?,
            slots,
            owner: vec![0; driver.setup().size.into()],
            returned: Vec::with_capacity(driver.setup().size.into()),
            driver,
        })
    }

    /// The ring underneath.
    #[must_use]
    pub fn driver(&self) -> &D {
        &self.driver
    }

    /// The ring underneath, to poke.
    pub fn driver_mut(&mut self) -> &mut D {
        &mut self.driver
    }

    /// Slots.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Guest physical address of a slot's data buffer.
    #[must_use]
    pub fn data(&self, slot: usize) -> u64 {
        self.slots[slot].data
    }

    /// Shapes an idle slot for an operation with `len` bytes of data, and aims it at `sector`.
    pub fn prepare(&mut self, slot: usize, op: Op, sector: u64, len: u32) -> Result<()> {
        if len > self.shape.buffer {
            return Err(Error::Usage(format!(
                "{len} bytes for a buffer of {}",
                self.shape.buffer
            )));
        }
        match self.slots[slot].prepared {
            Some((_, old, old_len)) if old == op && old_len == len => {}
            previous => {
                if let Some((token, ..)) = previous {
                    self.driver.free(token);
                    self.slots[slot].prepared = None;
                }
                let segments = self.segments(slot, op, len);
                let token = self.driver.chain(&segments, self.shape.form)?;
                self.slots[slot].prepared = Some((token, op, len));
                self.owner[usize::from(token.0)] = u16::try_from(slot).unwrap_or(u16::MAX);
            }
        }
        self.lines
            .store_u64(Self::line(slot), op.code().into(), Ordering::Relaxed);
        self.aim(slot, sector);
        Ok(())
    }

    /// Aims a prepared slot at another sector.
    #[inline]
    pub fn aim(&mut self, slot: usize, sector: u64) {
        let line = Self::line(slot);
        self.lines.store_u64(line + 8, sector, Ordering::Relaxed);
        self.lines
            .store_u8(line + STATUS_AT, UNTOUCHED, Ordering::Relaxed);
    }

    /// Offers a prepared slot; the device sees it after [`BlkQueue::publish`].
    #[inline]
    pub fn post(&mut self, slot: usize) {
        if let Some((token, ..)) = self.slots[slot].prepared {
            self.driver.post(token);
        }
    }

    /// Makes every offer visible and kicks if the device wants it; whether it did.
    #[inline]
    pub fn publish(&mut self) -> Result<bool> {
        self.driver.publish()
    }

    /// Appends the requests that came back to `done`; how many.
    #[inline]
    pub fn reap(&mut self, done: &mut Vec<Done>) -> Result<usize> {
        let count = self.driver.reap(&mut self.returned)?;
        for Completion { token, written } in self.returned.drain(..) {
            let slot = usize::from(self.owner[usize::from(token.0)]);
            let status = self
                .lines
                .load_u8(Self::line(slot) + STATUS_AT, Ordering::Relaxed);
            done.push(Done {
                slot,
                status,
                written,
            });
        }
        Ok(count)
    }

    /// One request on slot 0, which must be idle, from start to end.
    pub fn call(&mut self, op: Op, sector: u64, len: u32, patience: Duration) -> Result<Done> {
        self.prepare(0, op, sector, len)?;
        self.post(0);
        self.publish()?;
        let mut done = Vec::with_capacity(1);
        while self.reap(&mut done)? == 0 {
            if !self.driver.wait(patience)? {
                return Err(Error::Timeout(patience));
            }
        }
        match done[..] {
            [one] if one.slot == 0 => Ok(one),
            _ => Err(Error::Usage(
                "call() on a queue with other requests in flight".into(),
            )),
        }
    }

    #[inline]
    fn line(slot: usize) -> usize {
        slot * 64
    }

    /// Header, data in pieces, status.
    fn segments(&self, slot: usize, op: Op, len: u32) -> Vec<Segment> {
        let line = self.lines_gpa + LINE * slot as u64;
        let mut segments = vec![Segment::readable(line, HEADER_LEN)];
        let mut at = 0;
        while at < len {
            let piece = self.shape.piece.min(len - at);
            let gpa = self.slots[slot].data + u64::from(at);
            segments.push(Segment {
                gpa,
                len: piece,
                writable: op.device_writes(),
            });
            at += piece;
        }
        segments.push(Segment::writable(line + STATUS_AT as u64, 1));
        segments
    }
}

#[cfg(test)]
mod tests;
