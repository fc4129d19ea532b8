//! Engines do I/O: a small trait, [`uring::Uring`] for files and devices, [`threads::Threads`] for
//! the same where io_uring is forbidden, and [`memory::Memory`] and `faulty::Faulty` to test what
//! stands on it.
//!
//! An engine belongs to one worker thread and works for all its disks. It knows nothing of guests,
//! requests or retries: it is given an operation with a token and gives back the token with what
//! the system call said. [`router::Router`] is the engine that workers have: it gives operations on
//! files and devices to the one inside as they are, and carries out those on every other kind of
//! storage by operations of its own. [`polled::Polled`] stands below it and gives each operation to
//! the ring that it is for.

mod choice;
#[cfg(test)]
pub(crate) mod contract;
#[cfg(test)]
pub mod faulty;
mod guest;
mod join;
pub mod memory;
mod mirror;
mod nbd;
pub mod polled;
#[cfg(test)]
pub mod recording;
pub mod router;
pub mod threads;
mod threads_sys;
pub mod uring;
mod uring_donor;
mod uring_limits;
mod uring_setup;

use std::io;
use std::os::fd::BorrowedFd;

use arrayvec::ArrayVec;
use rustix::io::Errno;
use towpath_common::mem::Segment;

use crate::disk::Disk;
pub use choice::{Choice, ChoiceError, Kind};
pub use guest::Guest;

/// Most disks one engine serves: as many as a scheduler has entities.
pub const MAX_DISKS: u32 = 1024;

/// Most guest memory maps one engine knows at a time: one a disk, and as many being replaced.
pub const MAX_MEMS: u32 = 2 * MAX_DISKS;

/// Places for disks in all: those of [`MAX_DISKS`], and those that a router gives to the children
/// of composed disks and to sockets.
pub const MAX_PLACES: u32 = 3 * MAX_DISKS;

/// Places for memory in all: those of [`MAX_MEMS`], and a router's own buffers.
pub const MAX_MEM_PLACES: u32 = MAX_MEMS + MAX_DISKS;

/// Most completions taken at once.
pub const REAP: usize = 64;

/// Names an operation in flight; below the engine's capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub u32);

/// A disk's place in an engine; below [`MAX_PLACES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskId(pub(crate) u16);

/// A memory map's place in an engine; below [`MAX_MEM_PLACES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemId(pub(crate) u16);

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Verb {
    /// Read into memory.
    Read,
    /// Write from memory.
    Write,
    /// Make what was written durable (fdatasync).
    Sync,
    /// Deallocate; reads give zeroes afterwards.
    Punch,
    /// Zero, keeping the space allocated where the file system can.
    Zero,
    /// Deallocate a device's blocks; what they read afterwards is undefined.
    Discard,
}

impl Verb {
    /// True if it takes blocks out of the file, and what the page cache holds of them.
    #[inline]
    pub(crate) const fn deallocates(self) -> bool {
        matches!(self, Verb::Punch | Verb::Zero | Verb::Discard)
    }

    /// True if the disk is not the same afterwards.
    #[inline]
    pub(crate) const fn changes(self) -> bool {
        !matches!(self, Verb::Read | Verb::Sync)
    }

    /// Its bit in a set of verbs.
    pub(crate) const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// One operation.
#[derive(Debug, Clone, Copy)]
pub struct Op<'a> {
    /// What to do.
    pub verb: Verb,
    /// To which disk.
    pub disk: DiskId,
    /// A write is durable when it completes.
    pub durable: bool,
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes; not for [`Verb::Sync`].
    pub len: u64,
    /// Whose memory the segments are in.
    pub mem: MemId,
    /// Memory of a read or write, none of it empty, taken from `skip` bytes into the first segment
    /// until `len` bytes are found.
    pub segments: &'a [Segment],
    /// Bytes to leave out at the beginning of the first segment.
    pub skip: u32,
}

impl<'a> Op<'a> {
    /// The pieces of memory it covers: trimmed at both ends, `len` bytes in all or as many as
    /// there are.
    pub fn pieces(&self) -> impl Iterator<Item = Segment> + use<'a> {
        pieces(self.segments, self.skip, self.len)
    }
}

/// `segments` (none of them empty) without the first `skip` bytes, and not more than `len` bytes of
/// the rest.
#[inline]
pub(crate) fn pieces(
    segments: &[Segment],
    mut skip: u32,
    mut len: u64,
) -> impl Iterator<Item = Segment> {
    segments.iter().map_while(move |seg| {
        let piece = seg.skip(std::mem::take(&mut skip));
        let piece = piece.take(u32::try_from(len).unwrap_or(u32::MAX));
        len -= u64::from(piece.len());
        (!piece.is_empty()).then_some(piece)
    })
}

/// An operation that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// Which.
    pub token: Token,
    /// Bytes moved, or the negated errno, as system calls have it.
    pub result: i32,
}

/// Room for one batch of completions.
pub type Completions = ArrayVec<Completion, REAP>;

/// Does I/O for one worker.
///
/// What callers do: push a token again only after its completion; push fewer operations than the
/// engine was made for; name disks and memories that were set and are not cleared meanwhile (one
/// that is not is an error, never a fault).
///
/// What implementors do: exactly one completion for each operation pushed; the result is that of
/// the system call, short transfers and all, without a retry; memory outside the segments is never
/// touched, and the memory map is kept alive until the completion was reaped; order is free.
pub trait Engine {
    /// Queue an operation.
    ///
    /// # Errors
    /// [`Errno::AGAIN`] if there is no room until some are submitted or reaped; another errno if
    /// the operation can never be done. It was not queued then, and there is no completion.
    fn push(&mut self, token: Token, op: &Op<'_>) -> Result<(), Errno>;

    /// Start all that was queued; how many are still queued, for a later call, because they could
    /// not be started now (mostly none).
    fn submit(&mut self) -> usize;

    /// Add completions to `done` while it has room. Never waits.
    fn reap(&mut self, done: &mut Completions);

    /// Ask for a wake-up by the next completion, where the engine has a file to wait on; true if
    /// there is something to do already, so that the worker must not sleep.
    fn arm(&mut self) -> bool;

    /// Take back what [`Engine::arm`] asked for.
    fn disarm(&mut self);

    /// True if all that is in flight is in the hands of threads that need a processor to get on.
    fn is_patient(&self) -> bool {
        false
    }

    /// Give the place `id` to a disk, or clear it.
    ///
    /// # Errors
    /// What the kernel said. The place is clear then.
    fn set_disk(&mut self, id: DiskId, disk: Option<&Disk>) -> io::Result<()>;

    /// Give the place `id` to a socket or an eventfd, of which only [`Verb::Read`] and
    /// [`Verb::Write`] are asked, and the offset means nothing.
    ///
    /// # Errors
    /// What the kernel said, or [`io::ErrorKind::Unsupported`].
    fn set_file(&mut self, _id: DiskId, _file: BorrowedFd<'_>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Give the place `id` to a guest's memory, or clear it.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] if operations on the memory there are in flight, or what
    /// the kernel said.
    fn set_memory(&mut self, id: MemId, guest: Option<&Guest>) -> io::Result<()>;
}
