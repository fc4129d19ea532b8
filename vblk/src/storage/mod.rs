//! Kinds of storage, and the contract between them and what stands on them.
//!
//! A disk is a [`Storage`] of some kind with a [`Shape`]. All lookups happen when it is opened,
//! on a thread that may wait; from then on a worker's engine ([`crate::engine::router`]) knows it
//! by the number of a place.
//!
//! ```text
//!                open (may wait)                    set_disk (a worker, once)
//!  Source ──────────────────────────▶ Disk ──────────────────────────────────▶ Place
//!  path, nbd:…, stripe:…              Storage + Shape    Plain    file, device: the engine inside
//!                                                        Mapped   stripe: operations on children
//!                                                        Mirror   the same on every child
//!                                                        …
//! ```
//!
//! # What a storage promises
//!
//! - Its shape is true and does not change while the disk is open.
//! - Every operation an engine accepts for it ends in exactly one completion, with the bytes moved
//!   or an errno. A number of bytes is a prefix: all of the first so many bytes were moved. It may
//!   be short, never long. After an error nothing is promised about the range of the operation.
//! - A completed write is read by every read that starts afterwards, through whatever worker.
//! - A completed [`Verb::Sync`] makes every write durable that completed before it was pushed,
//!   through whatever worker; where the storage cannot promise that for several workers, its shape
//!   says [`Shape::one_worker`]. A `durable` write is durable when it completes.
//! - [`Verb::Punch`] and [`Verb::Zero`] leave zeroes; [`Verb::Discard`] is asked only where
//!   [`Storage::trims`] says so. What it cannot do ends with EOPNOTSUPP, and the caller uses other
//!   means.
//! - Memory outside an operation's segments is not written, whatever the storage or a server behind
//!   it does. Where the data is needed twice (mirror), it is copied first: guests change buffers
//!   that are in flight.
//! - It never makes the worker wait.
//!
//! # What it may assume
//!
//! - Ranges lie within [`Shape::size`], offsets and lengths are multiples of [`Shape::block`], and
//!   the pieces of memory obey [`Shape::mem_align`] and [`Shape::len_align`]; longer transfers than
//!   it likes may be cut short.
//! - A read-only storage gets only reads and syncs.
//! - Segments stay valid, and their memory mapped, until the operation's completion was reaped.
//! - Overlapping operations in flight are the guest's own affair: any order will do, but all of a
//!   mirror's children must be given the same one.
//! - A place is cleared only when none of its operations is in flight.
//!
//! For tests, [`Storage::Null`] does nothing, [`Storage::Ram`] stands in the memory of
//! [`crate::engine::memory`], and `engine::faulty` makes any of them fail.
//!
//! [`Verb::Sync`]: crate::engine::Verb::Sync
//! [`Verb::Punch`]: crate::engine::Verb::Punch
//! [`Verb::Zero`]: crate::engine::Verb::Zero
//! [`Verb::Discard`]: crate::engine::Verb::Discard

mod fiemap;
pub mod lvm;
pub mod map;
pub mod mirror;
pub mod nbd;
mod open;
pub mod pinned;
pub(crate) mod room;
pub mod stripe;

use std::os::fd::OwnedFd;

use crate::disk::BlockSize;
use mirror::Mirror;
pub(crate) use open::mirror_options;
pub use open::{Created, OpenError, create_mirror, open};
use stripe::Stripe;

/// What holds a disk's bytes.
#[derive(Debug)]
pub enum Storage {
    /// Nothing: reads leave memory as it is, writes go nowhere.
    Null,
    /// The memory engine's own.
    Ram,
    /// A regular file.
    File(OwnedFd),
    /// A block device.
    Device(OwnedFd),
    /// Chunks in turn on several disks.
    Stripe(Stripe),
    /// The same on several disks.
    Mirror(Mirror),
    /// An export of an NBD server.
    Nbd(nbd::Export),
    /// A logical volume's segments, used past device-mapper.
    Segments(lvm::Segments),
    /// A file's extents, used past its file system.
    Pinned(pinned::Pinned),
}

/// How a storage is, beyond answering requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// What is wrong, if something is.
    pub trouble: Option<String>,
    /// Connections to servers that were lost.
    pub losses: u64,
}

impl Storage {
    /// How it is.
    #[must_use]
    pub fn health(&self) -> Health {
        match self {
            Storage::Null | Storage::Ram | Storage::File(_) | Storage::Device(_) => {
                Health::default()
            }
            Storage::Nbd(export) => export.shared().health(),
            Storage::Mirror(mirror) => mirror.health(),
            Storage::Segments(segments) => Health {
                trouble: segments.trouble(),
                losses: 0,
            },
            Storage::Pinned(pinned) => Health {
                trouble: pinned.watch().is_broken().then(|| {
                    "its extents did not stay; it is served through its file system".to_owned()
                }),
                losses: 0,
            },
            Storage::Stripe(stripe) => {
                let all = stripe.children().iter().map(|d| d.storage().health());
                all.reduce(|a, b| Health {
                    trouble: a.trouble.or(b.trouble),
                    losses: a.losses + b.losses,
                })
                .unwrap_or_default()
            }
        }
    }

    /// Let requests fail that wait for somebody who does not answer, after a grace and as long as
    /// what is returned lives: the disk is being stopped.
    #[must_use]
    pub fn hurry(&self) -> Vec<nbd::Hurry> {
        match self {
            Storage::Nbd(export) => vec![export.shared().hurry()],
            Storage::Mirror(mirror) => mirror.hurry(),
            Storage::Stripe(stripe) => {
                let children = stripe.children().iter();
                children.flat_map(|d| d.storage().hurry()).collect()
            }
            _ => Vec::new(),
        }
    }

    /// True if a server may have lost what it had acknowledged.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        match self {
            Storage::Nbd(export) => export.shared().is_lost(),
            Storage::Stripe(stripe) => stripe.children().iter().any(|d| d.storage().is_lost()),
            // A mirror copies to a disk that was lost.
            _ => false,
        }
    }

    /// Somebody knows whether a server lost what it had acknowledged.
    pub(crate) fn set_lost(&self, lost: bool) {
        match self {
            Storage::Nbd(export) => export.shared().set_lost(lost),
            Storage::Stripe(stripe) => {
                let children = stripe.children().iter();
                children.for_each(|d| d.storage().set_lost(lost));
            }
            _ => {}
        }
    }

    /// True if it can deallocate without promising what is read afterwards, as devices do.
    #[must_use]
    pub fn trims(&self) -> bool {
        match self {
            Storage::Device(_) => true,
            Storage::Null | Storage::Ram | Storage::File(_) => false,
            Storage::Stripe(stripe) => stripe.children().iter().all(|d| d.trims()),
            Storage::Nbd(export) => export.trims(),
            // What a device leaves undefined would differ.
            Storage::Mirror(_) => false,
            // What it falls back to may be thin, or have snapshots.
            Storage::Segments(_) => false,
            // Its file punches holes, which is what it falls back to.
            Storage::Pinned(_) => false,
        }
    }
}

/// What callers have to know of a storage.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Bytes, whole blocks.
    pub size: u64,
    /// Logical block size.
    pub block: BlockSize,
    /// What it writes without reading first.
    pub physical: BlockSize,
    /// The page cache is bypassed.
    pub direct: bool,
    /// Reads and writes are carried out in the submitting thread (tmpfs), or by nobody here
    /// (network).
    pub inline: bool,
    /// A system call on it may wait for a server, so that each is made in a thread of the kernel's.
    pub waits: bool,
    /// A thread of the kernel's does what it is asked, and needs a processor for that (loop
    /// devices).
    pub threaded: bool,
    /// Nothing may be written.
    pub read_only: bool,
    /// Address alignment of I/O buffers, in bytes; 1 if any will do.
    pub mem_align: u32,
    /// Length alignment of each I/O buffer, in bytes; 1 if any will do.
    pub len_align: u32,
    /// DISCARD works, in units of so many bytes.
    pub discard: Option<u32>,
    /// All queues must be served by one worker.
    pub one_worker: bool,
}

impl Shape {
    /// The shape of disks used together: as demanding as the most demanding of them, as able as the
    /// least able. The size is the smallest.
    #[must_use]
    pub fn of_all(shapes: impl IntoIterator<Item = Shape>) -> Option<Shape> {
        shapes.into_iter().reduce(|a, b| Shape {
            size: a.size.min(b.size),
            block: a.block.max(b.block),
            physical: a.physical.max(b.physical),
            direct: a.direct || b.direct,
            inline: a.inline && b.inline,
            waits: a.waits || b.waits,
            threaded: a.threaded || b.threaded,
            read_only: a.read_only || b.read_only,
            mem_align: a.mem_align.max(b.mem_align),
            len_align: a.len_align.max(b.len_align),
            discard: a.discard.zip(b.discard).map(|(a, b)| a.max(b)),
            one_worker: a.one_worker || b.one_worker,
        })
    }
}
