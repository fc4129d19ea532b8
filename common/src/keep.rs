//! State that outlives the process: all a session needs to go on in a successor.
//!
//! A [`Kept`] is a [`Record`] (plain data, JSON in a memfd) and the file descriptors it speaks of,
//! by name. It can be put into systemd's file-descriptor store or inherited. What is *not* in the
//! record is what changes with every request: where the rings stand. That is in the used rings
//! (guest memory) and in the in-flight tables (memfds), which a killed process leaves exact.
//!
//! The record carries a version. A successor reads its own and older versions, and refuses newer
//! ones, after which the front-end reconnects as if it had met a new back-end.

use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};

use crate::mem::RegionSpec;
use crate::session::Addresses;

/// Version of the record this build writes, and the newest it reads.
///
/// - 1: the first.
/// - 2: with [`Settings`].
pub const VERSION: u32 = 2;

/// Largest record accepted: 256 vrings and 509 regions take some 100 KiB.
const MAX_RECORD: u64 = 4 << 20;

/// Why a kept state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// Written by a newer build.
    #[error("the kept state has version {0}, this build reads up to {VERSION}")]
    Newer(u32),
    /// The record names an fd that is not there.
    #[error("the kept state lacks the file descriptor {0:?}")]
    MissingFd(String),
    /// Not a record.
    #[error("the kept state cannot be read: {0}")]
    Format(#[from] serde_json::Error),
    /// A system call failed.
    #[error("the kept state cannot be stored or read: {0}")]
    Io(#[from] std::io::Error),
    /// It reads, and does not fit the device or the memory it names.
    #[error("the kept state does not fit: {0}")]
    Unfit(String),
}

/// One session, as plain data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`] of the build that wrote it.
    pub version: u32,
    /// Name of the device.
    pub device: String,
    /// Acknowledged virtio features.
    pub features: u64,
    /// Acknowledged protocol features.
    pub protocol: u64,
    /// Virtio device status.
    pub device_status: u8,
    /// Memory map; region `i` is in the fd `mem.i`.
    pub regions: Vec<RegionSpec>,
    /// Offset and length of the dirty log in the fd `log`.
    pub log: Option<(u64, u64)>,
    /// The front-end's in-flight table in the fd `inflight`.
    pub inflight: Option<Table>,
    /// Vrings in order.
    pub vrings: Vec<VringRecord>,
    /// What was said to the device; none of it in version 1.
    #[serde(default)]
    pub settings: Settings,
    /// Names of the fds that belong to it: one that got lost must not pass for one never given.
    pub fds: Vec<String>,
}

/// What front-end and driver said to a device besides its rings, where that outlasts them: network
/// devices have such.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// The MTU that the guest was told, in bytes (NET_SET_MTU).
    pub mtu: Option<u16>,
    /// Queue pairs in use (VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET).
    pub pairs: Option<u16>,
    /// Offloads in use, by feature bits (VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET).
    pub offloads: Option<u64>,
}

/// Where an in-flight table lies in its fd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Offset in bytes.
    pub offset: u64,
    /// Queues.
    pub queues: u16,
    /// Descriptors a queue.
    pub size: u16,
}

/// One vring; its fds are `vring.N.kick`, `.call`, `.err` and `.inflight`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VringRecord {
    /// Queue size.
    pub size: Option<u16>,
    /// Avail index to start at, for a vring that was not running; a running one knows better.
    pub base: Option<u16>,
    /// Ring addresses.
    pub addresses: Option<Addresses>,
    /// SET_VRING_KICK came.
    pub started: bool,
    /// SET_VRING_ENABLE.
    pub enabled: bool,
    /// An in-flight table of our own.
    pub inflight: Option<Table>,
}

/// A record and its file descriptors.
#[derive(Debug)]
pub struct Kept {
    /// The data.
    pub record: Record,
    fds: Vec<(String, OwnedFd)>,
}

impl Kept {
    /// A record without fds.
    #[must_use]
    pub fn new(record: Record) -> Kept {
        Kept {
            record,
            fds: Vec::new(),
        }
    }

    /// Keep a duplicate of `fd` as `name`.
    ///
    /// # Errors
    /// If there are no file descriptors left.
    pub fn keep(&mut self, name: impl Into<String>, fd: &OwnedFd) -> Result<(), KeepError> {
        let name = name.into();
        self.record.fds.push(name.clone());
        self.fds.push((name, fd.try_clone()?));
        Ok(())
    }

    /// Take the fd kept as `name`.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let at = self.fds.iter().position(|(n, _)| n == name)?;
        Some(self.fds.swap_remove(at).1)
    }

    /// Take the fd kept as `name`, which must be there.
    ///
    /// # Errors
    /// [`KeepError::MissingFd`].
    pub fn need(&mut self, name: &str) -> Result<OwnedFd, KeepError> {
        self.take(name)
            .ok_or_else(|| KeepError::MissingFd(name.to_owned()))
    }

    /// The record in a memfd, and the fds with their names, for whoever keeps them.
    ///
    /// # Errors
    /// If the memfd cannot be made.
    pub fn store(self) -> Result<(OwnedFd, Vec<(String, OwnedFd)>), KeepError> {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let fd =
            rustix::fs::memfd_create("towpath-session", flags).map_err(std::io::Error::from)?;
        let bytes = serde_json::to_vec(&self.record)?;
        let mut file = std::fs::File::from(fd);
        std::io::Write::write_all(&mut file, &bytes)?;
        Ok((file.into(), self.fds))
    }

    /// Read back what [`Kept::store`] gave.
    ///
    /// # Errors
    /// [`KeepError::Format`], [`KeepError::Newer`] or [`KeepError::MissingFd`].
    pub fn load(fd: impl AsFd, fds: Vec<(String, OwnedFd)>) -> Result<Kept, KeepError> {
        /// The one field every version has.
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let size = rustix::fs::fstat(&fd)
            .map_err(std::io::Error::from)?
            .st_size;
        let size = u64::try_from(size).unwrap_or(0);
        if size > MAX_RECORD {
            return Err(KeepError::Unfit(format!("record of {size} bytes")));
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        let n = rustix::io::pread(&fd, &mut bytes, 0).map_err(std::io::Error::from)?;
        bytes.truncate(n);
        let Head { version } = serde_json::from_slice(&bytes)?;
        if version > VERSION {
            return Err(KeepError::Newer(version));
        }
        let record: Record = serde_json::from_slice(&bytes)?;
        let lost = |name: &&String| !fds.iter().any(|(have, _)| have == *name);
        if let Some(name) = record.fds.iter().find(lost) {
            return Err(KeepError::MissingFd(name.clone()));
        }
        Ok(Kept { record, fds })
    }
}
