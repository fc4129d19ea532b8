//! State that outlives the process: all that is needed to go on in a successor.
//!
//! A [`Kept`] is a document (JSON in a memfd) and the file descriptors it names. It is stored as
//! one descriptor ([`parcel`]) with whoever keeps it ([`Keeper`]): systemd, or [`supervise`]. What
//! is *not* in a session's document is what changes with every request: where the rings stand. That
//! is in the used rings (guest memory), in the in-flight tables and in the [`Journal`] (memfds),
//! which a killed process leaves exact.
//!
//! ```text
//! parcel ─▶ memfd: {"version": 3, "kind": "session", "name": "web", "fds": ["connection",
//!           "journal", "mem.0", "vring.0.kick", …], "body": {…}}
//!        ─▶ the descriptors, in the order of "fds"
//! ```
//!
//! What a session's descriptors are called: `connection`, `journal`, `mem.N` (memory region N),
//! `log` (dirty log), `inflight` (the front-end's table), `backend_req` (channel for our requests),
//! and for each vring `vring.N.kick`, `vring.N.call`, `vring.N.err`, `vring.N.inflight` (a table of
//! our own). What its body says is [`Record`]. A field that is new has a default, so that older
//! documents read; one that changes its meaning, or without which a session must not go on, makes a
//! new [`VERSION`].
//!
//! Kinds: `session` ([`Record`]), `listener` (a socket front-ends connect to), `ledger`
//! ([`Ledger`]) and what a daemon keeps for itself (`tap`: an interface's queues). A document
//! carries a version. A successor reads its own and older versions, and refuses newer ones, after
//! which the front-end reconnects as if it had met a new back-end.

mod crash;
mod journal;
mod keeper;
mod ledger;
mod muster;
pub mod parcel;
mod pass;
mod standby;
pub mod supervise;

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::mem::{MemError, RegionSpec};
use crate::session::Addresses;

pub use journal::{Cell, Journal};
pub use keeper::{Keeper, Place};
pub use ledger::Ledger;
pub use muster::{Muster, Ticket};

/// Version of the document this build writes, and the newest it reads.
///
/// - 1: the first.
/// - 2: with [`Settings`].
/// - 3: with a kind, an identity and a journal; the first that is kept outside the process.
pub const VERSION: u32 = 3;

/// The kind of a session's document.
pub const SESSION: &str = "session";
/// The kind of a listening socket's document.
pub const LISTENER: &str = "listener";

/// Largest document accepted: 256 vrings and 509 regions take some 100 KiB, and a switch's
/// addresses and counters a few MiB.
const MAX_DOCUMENT: u64 = 64 << 20;

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
    /// What the device is ([`crate::session::Device::identity`]): a session goes on with no other.
    #[serde(default)]
    pub identity: String,
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
}

/// What front-end and driver said to a device besides its rings, where that outlasts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// The MTU that the guest was told, in bytes (NET_SET_MTU).
    pub mtu: Option<u16>,
    /// Queue pairs in use (VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET).
    pub pairs: Option<u16>,
    /// Offloads in use, by feature bits (VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET).
    pub offloads: Option<u64>,
    /// Whether the disk's write cache is on, where the driver may choose (VIRTIO_BLK_F_CONFIG_WCE).
    pub write_cache: Option<bool>,
    /// Bytes of the disk, as the guest was told last.
    pub capacity: Option<u64>,
    /// What fails until an operator says otherwise, as bits of the device's own.
    pub failed: u64,
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

/// A document and its file descriptors.
#[derive(Debug)]
pub struct Kept {
    head: Head,
    body: Value,
    fds: Vec<(String, OwnedFd)>,
}

/// What every version has, and what is needed to find the rest.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Head {
    version: u32,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    name: String,
    /// Names of the fds that belong to it: one that got lost must not pass for one never given.
    #[serde(default)]
    fds: Vec<String>,
}

impl Kept {
    /// A document of `kind` about `name`, without fds.
    ///
    /// # Errors
    /// [`KeepError::Format`] if `body` is not for JSON.
    pub fn new(kind: &str, name: &str, body: &impl Serialize) -> Result<Kept, KeepError> {
        Ok(Kept {
            head: Head {
                version: VERSION,
                kind: kind.to_owned(),
                name: name.to_owned(),
                fds: Vec::new(),
            },
            body: serde_json::to_value(body)?,
            fds: Vec::new(),
        })
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.head.kind
    }

    /// Whose it is.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.head.name
    }

    /// What it says.
    ///
    /// # Errors
    /// [`KeepError::Format`] if it says something else.
    pub fn body<T: DeserializeOwned>(&self) -> Result<T, KeepError> {
        Ok(T::deserialize(&self.body)?)
    }

    /// Keep a duplicate of `fd` as `name`.
    ///
    /// # Errors
    /// If there are no file descriptors left.
    pub fn keep(&mut self, name: impl Into<String>, fd: impl AsFd) -> Result<(), KeepError> {
        self.fds
            .push((name.into(), fd.as_fd().try_clone_to_owned()?));
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

    /// Nobody goes on with it. A socket that front-ends connect to refuses them from now on,
    /// although the manager holds it until it has heard of this: who wants its place does not find
    /// it taken by another process.
    pub fn abandon(mut self, mut place: Place) {
        if let Some(listener) = self.take("listener").filter(|_| self.kind() == LISTENER) {
            // One that is no socket has nobody to refuse.
            let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
        }
        place.clear();
    }

    /// All of it as one descriptor.
    ///
    /// # Errors
    /// If the document or the parcel cannot be made.
    pub fn pack(&self) -> Result<OwnedFd, KeepError> {
        /// The document as it is written.
        #[derive(Serialize)]
        struct Document<'a> {
            #[serde(flatten)]
            head: &'a Head,
            body: &'a Value,
        }
        let names = self.fds.iter().map(|(name, _)| name.clone());
        let head = Head {
            fds: names.collect(),
            ..self.head.clone()
        };
        let body = &self.body;
        let text = serde_json::to_vec(&Document { head: &head, body })?;
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let memory = rustix::fs::memfd_create("towpath-kept", flags);
        let mut memory = std::fs::File::from(memory.map_err(std::io::Error::from)?);
        memory.write_all(&text)?;
        let fds = self.fds.iter().map(|(_, fd)| fd.as_fd());
        let all: Vec<_> = std::iter::once(memory.as_fd()).chain(fds).collect();
        Ok(parcel::pack(&all)?)
    }

    /// Read back what [`Kept::pack`] gave.
    ///
    /// # Errors
    /// [`KeepError::Format`], [`KeepError::Newer`] or [`KeepError::MissingFd`].
    pub fn open(parcel: impl AsFd) -> Result<Kept, KeepError> {
        /// Where the rest of the document is.
        #[derive(Deserialize)]
        struct Rest {
            body: Value,
        }
        let mut fds = parcel::open(parcel)?.into_iter();
        let text = fds.next().map(|memory| read(memory.into()));
        let text = text.ok_or_else(|| KeepError::MissingFd("document".to_owned()))??;
        let value: Value = serde_json::from_slice(&text)?;
        let head = Head::deserialize(&value)?;
        if head.version > VERSION {
            return Err(KeepError::Newer(head.version));
        }
        let Rest { body } = Rest::deserialize(value)?;
        if let Some(lost) = head.fds.get(fds.len()) {
            return Err(KeepError::MissingFd(lost.clone()));
        }
        let fds = head.fds.iter().cloned().zip(fds).collect();
        Ok(Kept { head, body, fds })
    }
}

fn read(memory: std::fs::File) -> Result<Vec<u8>, KeepError> {
    let size = memory.metadata()?.len();
    if size > MAX_DOCUMENT {
        return Err(KeepError::Unfit(format!("a document of {size} bytes")));
    }
    let mut text = vec![0; usize::try_from(size).unwrap_or(0)];
    memory.read_exact_at(&mut text, 0)?;
    Ok(text)
}

impl From<MemError> for KeepError {
    fn from(e: MemError) -> KeepError {
        KeepError::Unfit(e.to_string())
    }
}
