//! Backups of disks that are being served: full or incremental, to a file or an NBD export.
//!
//! ```text
//!  worker ── may this change? ──▶ Tracker ◀── which block next? ── reader ──▶ writer ──▶ target
//!    ▲            marks Bitmap       │ pending blocks                 │ bounded  │ hash  manifest
//!    └── the request waits while ────┘                                └──────────┘
//! ```
//!
//! A backup is one moment of the disk. The disk is brought to rest for that moment, which takes as
//! long as what is in flight; then it goes on, and blocks are copied behind its back. A request
//! that would change a block before it was copied waits for that one block, which is read next,
//! into memory, whatever the target does. If the target is so slow that memory is full and a guest
//! has waited for [`GRACE`], the backup is given up, not the guest.
//!
//! What changed since the last backup is in a [`Bitmap`], which survives restarts, and crashes of
//! the process; after a crash of the machine it is not believed, and the next backup is full.
//!
//! A backup that was cut off is resumed as of a new moment: blocks that it has copied already and
//! that did not change since are kept.
//!
//! On the target, a backup is the disk's blocks at their own places (a full one is a raw image, an
//! increment a sparse one), and a [`Manifest`] with a hash of each. [`offline`] reads them again.

pub mod bitmap;
mod copy;
mod host;
mod lent;
pub mod manifest;
pub mod offline;
mod plan;
mod progress;
mod tracker;
pub mod volume;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use bitmap::{BLOCK, Bitmap};
pub(crate) use host::{Latest, attach, end, show};
pub use manifest::Manifest;
pub(crate) use progress::Progress;
pub use progress::{Backed, BackupOrder, BackupStatus, Sort, State, Totals};
pub use tracker::Tracker;

use crate::service::ServiceError;
use crate::storage::OpenError;

/// How long a guest may have to wait because of a target that is slower than it writes.
pub const GRACE: Duration = Duration::from_secs(5);

/// What can be asked of a data plane about backups.
pub trait Backups {
    /// Begins a backup, which then goes on by itself. May block.
    ///
    /// # Errors
    /// [`ServiceError::Unknown`], [`ServiceError::Refused`]; nothing has begun then.
    fn backup(&self, name: &str, order: &BackupOrder) -> Result<BackupStatus, ServiceError> {
        let _ = order;
        Err(ServiceError::unknown("disk", name, &[]))
    }

    /// How the backup or copy stands that is under way, or how the last one ended.
    ///
    /// # Errors
    /// [`ServiceError::Unknown`]; [`ServiceError::Refused`] if there was none.
    fn backup_status(&self, name: &str) -> Result<BackupStatus, ServiceError> {
        Err(ServiceError::unknown("disk", name, &[]))
    }

    /// Ends the backup or copy that is under way. May block.
    ///
    /// # Errors
    /// [`ServiceError::Unknown`]; [`ServiceError::Refused`] if there is none.
    fn cancel_backup(&self, name: &str) -> Result<BackupStatus, ServiceError> {
        Err(ServiceError::unknown("disk", name, &[]))
    }
}

/// Why there is no backup, or what is wrong with one.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file of ours.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A disk, of the guest or of the backup.
    #[error("cannot {what} disk {disk} at byte {at}: {source}")]
    Storage {
        /// What was tried.
        what: &'static str,
        /// First byte.
        at: u64,
        /// Its serial.
        disk: String,
        /// What the storage said.
        source: io::Error,
    },
    /// No memory, or no io_uring.
    #[error("there is no memory for it: {0}")]
    NoMemory(String),
    /// Another process has the bitmap.
    #[error("the bitmap {} is in use: give each disk of each daemon its own", .0.display())]
    BitmapInUse(PathBuf),
    /// The file is something else.
    #[error("{} is no bitmap of vblk: name another file, or remove it", .0.display())]
    NotABitmap(PathBuf),
    /// The header does not fit.
    #[error("the paths of disk and manifest are too long for the bitmap {}", .0.display())]
    LongPath(PathBuf),
    /// There is something already.
    #[error("{} exists already: name another target, or remove it, or say --resume", .0.display())]
    Exists(PathBuf),
    /// A manifest is damaged.
    #[error("manifest {}: {what}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// The increment's base is another backup.
    #[error("{} is not the backup that {} was made upon", parent.display(), path.display())]
    WrongParent {
        /// The increment.
        path: PathBuf,
        /// What was found in its parent's place.
        parent: PathBuf,
    },
    /// A block is not what it was.
    #[error(
        "block {block} (byte {}) of {data} is corrupt: its hash is not that in {}",
        block * BLOCK, manifest.display()
    )]
    Corrupt {
        /// Which.
        block: u64,
        /// Where its bytes are.
        data: String,
        /// The manifest.
        manifest: PathBuf,
    },
    /// The target cannot be used.
    #[error("{0}")]
    Target(String),
    /// The target's storage.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It was told to.
    #[error("it was cancelled, or its disk was stopped; --resume goes on with it")]
    Cancelled,
    /// The guest must not wait.
    #[error(
        "the target is too slow: the guest had to wait {} s for it; use a faster one",
        GRACE.as_secs()
    )]
    TooSlow,
}

impl BackupError {
    fn file(what: &'static str, path: &Path, source: io::Error) -> BackupError {
        BackupError::File {
            what,
            path: path.to_owned(),
            source,
        }
    }
}
