//! From a descriptor chain to a request: every check of what a guest may ask stands in this file
//! (virtio 1.3, 5.2.6).
//!
//! - The 16-byte header and the ranges of a DISCARD or WRITE_ZEROES are read once, into private
//!   memory; what is checked is what is used, whatever the guest does to its copy meanwhile.
//! - Framing is free (virtio 1.3, 2.7.4.1): the header is the first 16 readable bytes, the status
//!   the very last writable one, and the data what lies between, however they are split.
//! - A [`Request`] is good as a whole: each byte it touches on the disk lies below the capacity,
//!   in whole logical blocks, computed in 64 bits. Nothing after this file sees a raw sector.
//! - A chain that cannot even carry an answer is [`Reject::Broken`]: the ring is broken then.
//!   Everything else is answered with a status, and the reason is there to be counted.

#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod data;

use arrayvec::ArrayVec;
use thiserror::Error;
use towpath_common::chain::Chain;
use towpath_common::mem::{Mem, Segment};

use crate::disk::BlockSize;
pub use data::Data;

/// Bytes in a sector, the unit of the protocol whatever the disk's block size (virtio 1.3, 5.2.6).
pub const SECTOR: u64 = 512;

/// Bytes in a request header (struct virtio_blk_req up to the data).
const HEADER: u32 = 16;

/// Bytes of a GET_ID answer (virtio 1.3, 5.2.6: "up to 20 bytes").
pub const ID_BYTES: usize = 20;

/// Most ranges in one DISCARD or WRITE_ZEROES; offered as max_discard_seg. What ext4's fstrim
/// merges into one request is fewer.
pub const MAX_RANGES: usize = 32;

/// Bytes of one range (struct virtio_blk_discard_write_zeroes).
const RANGE: usize = 16;

/// Most sectors in one range of a DISCARD: 1 GiB, so that punching one stays in the milliseconds.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 21;

/// Most sectors in one range of a WRITE_ZEROES: 128 MiB, because it may have to be written.
pub const MAX_ZERO_SECTORS: u32 = 1 << 18;

/// Most data bytes in one read or write. Guests send at most a few MiB; the bound keeps a result
/// in the 31 bits a system call has for it, and one guest from queueing a terabyte in one request.
pub const MAX_DATA: u64 = 1 << 30;

/// Request types (virtio 1.3, 5.2.6).
mod wire {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
    /// Flag of a WRITE_ZEROES range: the device may deallocate it.
    pub(super) const UNMAP: u32 = 1;
}

/// The status byte (virtio 1.3, 5.2.6: VIRTIO_BLK_S_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Failed, on the device or because the driver asked for what it may not have.
    IoErr = 1,
    /// A request type or flag that is not supported.
    Unsupported = 2,
}

/// What kind of request it is; the label of its metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// VIRTIO_BLK_T_IN.
    Read,
    /// VIRTIO_BLK_T_OUT.
    Write,
    /// VIRTIO_BLK_T_FLUSH.
    Flush,
    /// VIRTIO_BLK_T_GET_ID.
    GetId,
    /// VIRTIO_BLK_T_DISCARD.
    Discard,
    /// VIRTIO_BLK_T_WRITE_ZEROES.
    WriteZeroes,
    /// Any other type, SCSI commands among them.
    Unsupported,
}

impl Kind {
    /// All kinds, in the order of their [`Kind::index`].
    pub const ALL: [Kind; 7] = [
        Kind::Read,
        Kind::Write,
        Kind::Flush,
        Kind::GetId,
        Kind::Discard,
        Kind::WriteZeroes,
        Kind::Unsupported,
    ];

    /// A small number for tables of counters.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Its name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Flush => "flush",
            Kind::GetId => "get_id",
            Kind::Discard => "discard",
            Kind::WriteZeroes => "write_zeroes",
            Kind::Unsupported => "unsupported",
        }
    }
}

/// What a disk allows; a request is checked against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Size of the disk in bytes: whole blocks.
    pub capacity: u64,
    /// Logical block size: offsets and lengths are multiples of it.
    pub block: BlockSize,
    /// Nothing may be written.
    pub read_only: bool,
    /// DISCARD is offered.
    pub discard: bool,
    /// WRITE_ZEROES is offered.
    pub write_zeroes: bool,
}

impl Limits {
    /// True if `len` bytes at `offset` are whole blocks.
    fn aligned(&self, offset: u64, len: u64) -> bool {
        self.block.divides(offset) && self.block.divides(len)
    }

    /// The byte offset of `sector`, if `len` bytes from there end within the disk.
    fn offset(&self, sector: u64, len: u64) -> Option<u64> {
        let offset = sector.checked_mul(SECTOR)?;
        (offset.checked_add(len)? <= self.capacity).then_some(offset)
    }
}

/// Why a request was answered with an error at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Reason {
    /// A byte of it lies past the end of the disk, or the sector number wraps.
    #[error("a range that ends past the disk")]
    OutOfRange,
    /// Not a whole number of logical blocks.
    #[error("an offset or length that is not in whole blocks")]
    Misaligned,
    /// More than [`MAX_DATA`] bytes of data.
    #[error("more data than {MAX_DATA} bytes")]
    TooLong,
    /// A write of any kind to a read-only disk.
    #[error("a write to a read-only disk")]
    ReadOnly,
    /// An unknown type, or one that was not offered.
    #[error("request type {0}")]
    Type(u32),
    /// A range flag that is unknown or not allowed with this type.
    #[error("range flags {0:#x}")]
    Flags(u32),
    /// No range, more than [`MAX_RANGES`], or a part of one.
    #[error("{0} bytes of ranges")]
    Ranges(u64),
    /// A range of no sectors, or of more than was offered.
    #[error("a range of {0} sectors")]
    Sectors(u32),
}

/// Why a chain cannot be answered; its ring is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Broken {
    /// Fewer than 16 readable bytes.
    #[error("a request without a 16-byte header")]
    NoHeader,
    /// No writable byte for the status.
    #[error("a request without a writable status byte")]
    NoStatus,
}

/// Why a chain is not a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// Answer it with a status.
    Status {
        /// What to answer.
        status: Status,
        /// Where the status byte goes.
        at: Segment,
        /// What was asked.
        kind: Kind,
        /// Why it is refused.
        reason: Reason,
    },
    /// Latch the ring as broken.
    Broken(Broken),
}

/// A range of the disk to discard or to zero, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Bytes; more than zero.
    pub len: u32,
    /// The range may be deallocated (WRITE_ZEROES with UNMAP).
    pub unmap: bool,
}

/// Room for the ranges of one request; kept by the caller so that a [`Request`] stays small.
pub type Ranges = ArrayVec<Range, MAX_RANGES>;

/// What is asked, checked.
#[derive(Debug, Clone, Copy)]
pub enum Command<'a> {
    /// Read `data.len()` bytes from byte `offset` of the disk.
    Read {
        /// First byte.
        offset: u64,
        /// Where they go.
        data: Data<'a>,
    },
    /// Write `data.len()` bytes at byte `offset` of the disk.
    Write {
        /// First byte.
        offset: u64,
        /// Where they come from.
        data: Data<'a>,
    },
    /// Make every completed write durable.
    Flush,
    /// Tell the serial number.
    GetId {
        /// Where it goes.
        data: Data<'a>,
    },
    /// Forget these ranges.
    Discard(&'a [Range]),
    /// Zero these ranges.
    WriteZeroes(&'a [Range]),
}

impl Command<'_> {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Command::Read { .. } => Kind::Read,
            Command::Write { .. } => Kind::Write,
            Command::Flush => Kind::Flush,
            Command::GetId { .. } => Kind::GetId,
            Command::Discard(_) => Kind::Discard,
            Command::WriteZeroes(_) => Kind::WriteZeroes,
        }
    }
}

/// A request: checked, not yet started.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// What is asked.
    pub command: Command<'a>,
    /// Where the status byte goes.
    pub status: Segment,
}

/// A refusal inside [`Request::parse`], before it knows where to answer.
type Refusal = (Status, Reason);

impl<'a> Request<'a> {
    /// Read and check the request in `chain`. `ranges` is scratch for those of a DISCARD or
    /// WRITE_ZEROES.
    ///
    /// # Errors
    /// [`Reject`].
    #[inline]
    pub fn parse(
        chain: &Chain<'a>,
        mem: &Mem,
        limits: &Limits,
        ranges: &'a mut Ranges,
    ) -> Result<Request<'a>, Reject> {
        let mut header = [0; HEADER as usize];
        if !chain.read(mem, &mut header) {
            return Err(Reject::Broken(Broken::NoHeader));
        }
        let Some(status) = chain.last_writable_byte() else {
            return Err(Reject::Broken(Broken::NoStatus));
        };
        // struct virtio_blk_req: le32 type, le32 reserved, le64 sector.
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let kind = u32::from_le_bytes([t0, t1, t2, t3]);
        let sector = u64::from_le_bytes(sector);
        let command = match kind {
            wire::IN => read(chain, limits, sector),
            wire::OUT => write(chain, limits, sector),
            wire::FLUSH => Ok(Command::Flush),
            wire::GET_ID => Ok(Command::GetId {
                data: Data::before_status(chain),
            }),
            wire::DISCARD | wire::WRITE_ZEROES => {
                collect(chain, mem, limits, kind, ranges).map(|()| {
                    if kind == wire::DISCARD {
                        Command::Discard(ranges)
                    } else {
                        Command::WriteZeroes(ranges)
                    }
                })
            }
            other => Err((Status::Unsupported, Reason::Type(other))),
        };
        match command {
            Ok(command) => Ok(Request { command, status }),
            Err((answer, reason)) => Err(refuse(kind, answer, status, reason)),
        }
    }
}

#[cold]
fn refuse(kind: u32, status: Status, at: Segment, reason: Reason) -> Reject {
    let kind = match kind {
        wire::IN => Kind::Read,
        wire::OUT => Kind::Write,
        wire::DISCARD => Kind::Discard,
        wire::WRITE_ZEROES => Kind::WriteZeroes,
        _ => Kind::Unsupported,
    };
    Reject::Status {
        status,
        at,
        kind,
        reason,
    }
}

#[inline]
fn read<'a>(chain: &Chain<'a>, limits: &Limits, sector: u64) -> Result<Command<'a>, Refusal> {
    let data = Data::before_status(chain);
    let offset = extent(limits, sector, data.len())?;
    Ok(Command::Read { offset, data })
}

#[inline]
fn write<'a>(chain: &Chain<'a>, limits: &Limits, sector: u64) -> Result<Command<'a>, Refusal> {
    if limits.read_only {
        return Err((Status::IoErr, Reason::ReadOnly));
    }
    let data = Data::after_header(chain);
    let offset = extent(limits, sector, data.len())?;
    Ok(Command::Write { offset, data })
}

/// Where on the disk a transfer of `len` bytes from `sector` starts, if it may be made at all.
#[inline]
fn extent(limits: &Limits, sector: u64, len: u64) -> Result<u64, Refusal> {
    let fail = |reason| Err((Status::IoErr, reason));
    if len > MAX_DATA {
        return fail(Reason::TooLong);
    }
    let Some(offset) = limits.offset(sector, len) else {
        return fail(Reason::OutOfRange);
    };
    if !limits.aligned(offset, len) {
        return fail(Reason::Misaligned);
    }
    Ok(offset)
}

/// Read the ranges of a DISCARD or WRITE_ZEROES into `ranges` and check each (virtio 1.3, 5.2.6.2).
#[cold]
fn collect(
    chain: &Chain<'_>,
    mem: &Mem,
    limits: &Limits,
    kind: u32,
    ranges: &mut Ranges,
) -> Result<(), Refusal> {
    let (offered, most, flags_allowed) = if kind == wire::DISCARD {
        (limits.discard, MAX_DISCARD_SECTORS, 0)
    } else {
        (limits.write_zeroes, MAX_ZERO_SECTORS, wire::UNMAP)
    };
    if limits.read_only {
        return Err((Status::IoErr, Reason::ReadOnly));
    }
    if !offered {
        return Err((Status::Unsupported, Reason::Type(kind)));
    }
    let data = Data::after_header(chain);
    let odd = Err((Status::IoErr, Reason::Ranges(data.len())));
    let mut buf = [0; RANGE * MAX_RANGES];
    let len = usize::try_from(data.len()).unwrap_or(usize::MAX);
    let Some(bytes) = buf.get_mut(..len).filter(|b| !b.is_empty()) else {
        return odd;
    };
    if !data.read(mem, bytes) {
        return odd;
    }
    let (words, rest) = bytes.as_chunks::<RANGE>();
    if !rest.is_empty() {
        return odd;
    }
    ranges.clear();
    for word in words {
        // struct virtio_blk_discard_write_zeroes: le64 sector, le32 num_sectors, le32 flags.
        let [sector @ .., n0, n1, n2, n3, f0, f1, f2, f3] = *word;
        let sector = u64::from_le_bytes(sector);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        if flags & !flags_allowed != 0 {
            return Err((Status::Unsupported, Reason::Flags(flags)));
        }
        let fail = |reason| Err((Status::IoErr, reason));
        let len = u64::from(sectors).saturating_mul(SECTOR);
        let (Ok(bytes), 1.., true) = (u32::try_from(len), sectors, sectors <= most) else {
            return fail(Reason::Sectors(sectors));
        };
        let Some(offset) = limits.offset(sector, len) else {
            return fail(Reason::OutOfRange);
        };
        if !limits.aligned(offset, len) {
            return fail(Reason::Misaligned);
        }
        let unmap = flags & wire::UNMAP != 0;
        let range = Range {
            offset,
            len: bytes,
            unmap,
        };
        if ranges.try_push(range).is_err() {
            return odd;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
