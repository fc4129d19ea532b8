//! Why a disk is refused: each message names the file, what is wrong, and what to do.

use std::path::PathBuf;

use thiserror::Error;

use super::lock::name_of;

/// Why a disk was refused.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The file cannot be opened or examined.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// Of which file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Neither a regular file nor a block device.
    #[error("{} is a {found}; a disk is a regular file or a block device", path.display())]
    NotADisk {
        /// Which file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// Somebody else writes to it, or reads what we want to write.
    #[error("{} is in use{}; stop that first or serve it read-only", path.display(),
            holder(*pid, detail.as_deref()))]
    InUse {
        /// Which file.
        path: PathBuf,
        /// Process that holds the lock, where the kernel tells.
        pid: Option<u32>,
        /// How it is used, where that is known.
        detail: Option<String>,
    },
    /// The file system has no O_DIRECT.
    #[error("{} cannot be opened with O_DIRECT; use cache=buffered", path.display())]
    NoDirect {
        /// Which file.
        path: PathBuf,
    },
    /// Its completions cannot be polled for.
    #[error("{what} cannot be polled: {why}; leave polling out")]
    NotPolled {
        /// Which disk.
        what: String,
        /// What is missing.
        why: &'static str,
    },
    /// O_DIRECT or the device asks for larger blocks than were configured.
    #[error("{}: block-size={asked} is too small, it takes I/O in units of {needed}; \
             use block-size={needed} or, for a file, cache=buffered", path.display())]
    BlockSize {
        /// Which file.
        path: PathBuf,
        /// Configured, in bytes.
        asked: u32,
        /// Possible, in bytes.
        needed: u32,
    },
    /// Not one whole block.
    #[error("{} has {size} bytes, less than one block of {block}", path.display())]
    TooSmall {
        /// Which file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// Its block size in bytes.
        block: u32,
    },
    /// A serial that GET_ID cannot carry.
    #[error("serial {0:?} is not 20 or fewer printable ASCII characters")]
    Serial(String),
}

fn holder(pid: Option<u32>, detail: Option<&str>) -> String {
    let by = pid.map_or(String::new(), |pid| match name_of(pid) {
        Some(name) => format!(" by process {pid} ({name})"),
        None => format!(" by process {pid}"),
    });
    let how = detail.map_or(String::new(), |detail| format!(": {detail}"));
    by + &how
}
