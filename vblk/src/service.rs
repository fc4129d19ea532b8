//! The boundary between vblk's control plane and its data plane.
//!
//! Control knows disks and workers only through [`Service`]: a few verbs, and plain values that
//! the API, the metrics and the command line show as they are. The counters in them are totals
//! since the daemon started, taken from what the workers published last; reading them never makes
//! a worker wait.

mod outcome;
mod state;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_common::config::{Cap, CpuId, Name, SocketMode, SocketPath, Weight};

use towpath_common::sandbox::SandboxError;

use crate::backup::{Backed, Backups};
use crate::config::{Config, Limit, OnError};
use crate::engine::{ChoiceError, Kind};
use crate::mirror::{MirrorOrder, MirrorStatus};
use crate::settings::Settings;

pub use outcome::{Resized, SlowRequest, Snapshot};
pub use state::DiskState;

/// What the control plane may ask of the data plane. All verbs may be called from any thread.
pub trait Service: Backups + Send + Sync {
    /// Makes the running disks equal to `config.disks`, as a whole or not at all.
    ///
    /// The caller has validated `config` (unique names, sockets and writable paths) and does not
    /// change `config.daemon`. The implementor opens everything new before it touches anything
    /// old, leaves disks that did not change alone (their sessions go on), and on an error has
    /// changed nothing. May block for as long as storage takes. When it returns `Ok`, every
    /// server-mode socket listens.
    ///
    /// # Errors
    /// [`ServiceError`], naming what could not be done.
    fn apply(&self, config: &Config) -> Result<Report, ServiceError>;

    /// Tries once more to serve disks that could not be opened when the daemon started, and that a
    /// predecessor had served; true if there are some left.
    fn retry(&self) -> bool {
        false
    }

    /// Changes the limits or the share of a disk that is served. May block.
    ///
    /// # Errors
    /// [`ServiceError::Unknown`], [`ServiceError::Setting`].
    fn set_disk(&self, name: &str, settings: &Settings) -> Result<(), ServiceError>;

    /// Changes the limits that the disks of a group share. May block.
    ///
    /// # Errors
    /// As [`Service::set_disk`].
    fn set_group(&self, name: &str, settings: &Settings) -> Result<(), ServiceError>;

    /// Takes what failed on a disk (an fsync; everything, by policy) as repaired.
    ///
    /// # Errors
    /// [`ServiceError::Unknown`].
    fn clear_disk(&self, name: &str) -> Result<(), ServiceError>;

    /// Gives a disk the size it is told, or the one its storage has now. May block.
    ///
    /// # Errors
    /// [`ServiceError::Unknown`], [`ServiceError::Refused`]; nothing has changed then, unless
    /// cutting the file was refused after all else was done.
    fn resize(&self, name: &str, size: Option<u64>, shrink: bool) -> Result<Resized, ServiceError>;

    /// Copies a disk as it is now to a new file, by cloning or else block by block, which then goes
    /// on by itself ([`Backups`]). May block.
    ///
    /// # Errors
    /// As [`Service::resize`]; there is no new file then.
    fn snapshot(&self, name: &str, path: &Path) -> Result<Snapshot, ServiceError>;

    /// Takes a disk of a mirror out, or brings it back. May block.
    /// # Errors
    /// As [`Service::resize`].
    fn mirror(&self, name: &str, order: &MirrorOrder) -> Result<(), ServiceError>;

    /// Every group, in the order of the configuration.
    fn groups(&self) -> Vec<GroupStatus>;

    /// Every disk, in the order of the configuration. Must not block.
    fn disks(&self) -> Vec<DiskStatus>;

    /// The slowest requests of the last minute or two, the slowest first. May block.
    ///
    /// # Errors
    /// [`ServiceError::Unknown`].
    fn slow(&self, name: Option<&str>) -> Result<Vec<SlowRequest>, ServiceError>;

    /// Every worker, by index. Must not block.
    fn workers(&self) -> Vec<WorkerStatus>;

    /// Serves the session of the disk `name` again, which is quarantined; false if there is none.
    fn release(&self, name: &str) -> bool {
        let _ = name;
        false
    }

    /// Stops taking requests, completes those in flight, and closes all sessions. Blocks.
    fn drain(&self);
}

/// What [`Service::apply`] has to tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Sentences that deserve attention, such as a fall-back that was taken.
    pub warnings: Vec<String>,
}

/// Why the data plane could not do what was asked. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A disk could not be set up.
    #[error("disk {name}: {source}")]
    Disk {
        /// The disk.
        name: Name,
        /// Why, and what to do.
        source: Box<dyn Error + Send + Sync>,
    },
    /// There is no such thing.
    #[error("there is no {what} {name:?}; {what}s: {known}")]
    Unknown {
        /// A disk, a group.
        what: &'static str,
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// It cannot be done, or not now, and why.
    #[error("{0}")]
    Refused(String),
    /// A setting makes no sense with the others.
    #[error("{0}")]
    Setting(&'static str),
    /// The engine that is insisted on cannot be had.
    #[error(transparent)]
    Engine(#[from] ChoiceError),
    /// Rights could not be given up.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A worker could not be started.
    #[error("worker {index}: {source}")]
    Worker {
        /// Its index.
        index: usize,
        /// Why, and what to do.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl ServiceError {
    /// Something else has disk `name` to itself.
    pub(crate) fn busy(name: &str) -> ServiceError {
        let why = format!("disk {name} is being resized, copied or backed up; try again later");
        ServiceError::Refused(why)
    }

    /// There is no `what` called `name` among `known`.
    pub(crate) fn unknown(what: &'static str, name: &str, known: &[&str]) -> ServiceError {
        ServiceError::Unknown {
            what,
            name: name.to_owned(),
            known: known.join(", "),
        }
    }
}

/// A group of disks as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GroupStatus {
    /// Its name.
    pub name: Name,
    /// What its disks share.
    pub limit: Limit,
    /// The disks.
    pub disks: Vec<Name>,
}

/// One disk as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiskStatus {
    /// Its name.
    pub name: Name,
    /// The file or device behind it, or `null:SIZE`.
    pub path: String,
    /// The vhost-user socket.
    pub socket: SocketPath,
    /// Which end of the socket vblk is.
    pub mode: SocketMode,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Capacity in bytes.
    pub size_bytes: u64,
    /// Bytes of its page cache that are locked in memory.
    pub locked_bytes: u64,
    /// Logical block size in bytes.
    pub block_size: u32,
    /// Most queues a guest may use.
    pub queues: u16,
    /// What it may do in a second, as it is now.
    #[serde(default)]
    pub limit: Limit,
    /// The group whose limits it shares.
    #[serde(default)]
    pub group: Option<Name>,
    /// Share of its worker's time, as it is now.
    #[serde(default)]
    pub weight: Weight,
    /// Most of a core, as it is now.
    #[serde(default)]
    pub cap: Option<Cap>,
    /// What becomes of requests that the storage failed, as it is now.
    #[serde(default)]
    pub on_error: OnError,
    /// What fails until an operator clears the disk, if anything does.
    #[serde(default)]
    pub failed: Option<Failed>,
    /// Requests held for the storage to get better.
    #[serde(default)]
    pub held: u32,
    /// Whether a front-end is connected.
    pub connected: bool,
    /// The connection.
    pub session: Option<SessionStatus>,
    /// Why a message was refused, or why the last connection was ended by vblk; while no front-end
    /// can connect, why that is.
    #[serde(default)]
    pub last_error: Option<String>,
    /// What is wrong with its storage, if something is.
    #[serde(default)]
    pub trouble: Option<String>,
    /// How its disks are, if it is a mirror.
    pub mirror: Option<MirrorStatus>,
    /// Backups of it, and copies.
    #[serde(default)]
    pub backup: Backed,
    /// What it has done.
    pub stats: DiskStats,
}

/// What fails on a disk until an operator clears it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Failed {
    /// Every FLUSH: an fsync failed, so data is lost that was not yet durable.
    Flush,
    /// Every request: one failed, and the policy is `fail`.
    All,
}

/// One vhost-user connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionStatus {
    /// Negotiated virtio features, by their names in the specification.
    pub virtio_features: Vec<String>,
    /// Negotiated vhost-user protocol features, by name.
    pub protocol_features: Vec<String>,
    /// Guest memory mapped, in bytes.
    pub memory_bytes: u64,
    /// Whether guest memory is registered with io_uring.
    pub memory_registered: bool,
    /// Rings the front-end has set up.
    pub queues: Vec<QueueStatus>,
    /// Whether a restart of the daemon leaves it as it is.
    #[serde(default)]
    pub kept: bool,
    /// Whether it goes on from before the daemon's last start.
    #[serde(default)]
    pub resumed: bool,
    /// It ended the daemon too often: it is held and not served, until it is released.
    #[serde(default)]
    pub quarantined: bool,
}

/// One ring of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QueueStatus {
    /// Its index.
    pub index: u16,
    /// Its size in descriptors.
    pub size: u16,
    /// Whether the front-end has enabled it.
    pub enabled: bool,
    /// Whether a worker serves it.
    pub running: bool,
    /// Next available entry to be read, modulo 2^16.
    pub next_avail: u16,
    /// Next used entry to be written, modulo 2^16.
    pub next_used: u16,
    /// Requests taken and not yet completed.
    pub in_flight: u16,
    /// Why it was latched as broken, if it was.
    pub broken: Option<String>,
}

/// What a disk has done since the daemon started, whatever connections came and went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiskStats {
    /// Front-ends that connected.
    pub connections: u64,
    /// Connections to its storage that were lost, since it was attached.
    #[serde(default)]
    pub storage_losses: u64,
    /// Counters by queue.
    pub queues: Vec<QueueStats>,
    /// Rings latched as broken, by reason.
    pub ring_broken: BTreeMap<String, u64>,
    /// Time from pop to completion, by request type; types never seen may be absent.
    pub latency: BTreeMap<RequestType, Latency>,
    /// Times a request was held, each try counted.
    #[serde(default)]
    pub holds: u64,
    /// Where that time went, by stage (`queue`, `device`, `used`, `notify`); stages that no
    /// request went through may be absent.
    #[serde(default)]
    pub stages: BTreeMap<String, Latency>,
    /// Time in which its limits let nothing through, in ns, all workers together.
    #[serde(default)]
    pub throttled_ns: u64,
}

impl DiskStats {
    /// Requests of one type, all queues together.
    pub fn requests(&self, kind: RequestType) -> u64 {
        self.queues
            .iter()
            .filter_map(|queue| queue.requests.get(&kind))
            .sum()
    }

    /// Bytes in one direction, all queues together.
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.queues
            .iter()
            .filter_map(|queue| queue.bytes.get(&direction))
            .sum()
    }

    /// Failed requests by errno, all queues together.
    pub fn errors(&self) -> BTreeMap<i32, u64> {
        let mut sums = BTreeMap::new();
        for (errno, count) in self.queues.iter().flat_map(|queue| &queue.errors) {
            *sums.entry(*errno).or_default() += count;
        }
        sums
    }
}

/// Counters of one queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QueueStats {
    /// Its index.
    pub index: u16,
    /// Requests completed, whatever their outcome.
    pub requests: BTreeMap<RequestType, u64>,
    /// Bytes moved or affected by requests that succeeded.
    pub bytes: BTreeMap<Direction, u64>,
    /// Requests failed, by the errno of the device or file.
    pub errors: BTreeMap<i32, u64>,
    /// Requests answered with an error without reaching the disk.
    pub refused: u64,
    /// Interrupts sent to the guest.
    pub notifications_sent: u64,
    /// Interrupts the guest did not want.
    pub notifications_suppressed: u64,
}

/// Kinds of requests (virtio 1.3, 5.2.6).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum RequestType {
    /// VIRTIO_BLK_T_IN.
    Read,
    /// VIRTIO_BLK_T_OUT.
    Write,
    /// VIRTIO_BLK_T_FLUSH.
    Flush,
    /// VIRTIO_BLK_T_DISCARD.
    Discard,
    /// VIRTIO_BLK_T_WRITE_ZEROES.
    WriteZeroes,
    /// VIRTIO_BLK_T_GET_ID.
    GetId,
    /// Anything else; answered UNSUPP.
    Unsupported,
}

impl RequestType {
    /// The name in the API and in metric labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write_zeroes",
            Self::GetId => "get_id",
            Self::Unsupported => "unsupported",
        }
    }
}

/// What happened to bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From disk to guest.
    Read,
    /// From guest to disk.
    Written,
    /// Given back to the storage.
    Discarded,
    /// Zeroed without a copy.
    Zeroed,
}

impl Direction {
    /// The name in the API and in metric labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Written => "written",
            Self::Discarded => "discarded",
            Self::Zeroed => "zeroed",
        }
    }
}

/// A distribution of times in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Latency {
    /// Samples.
    pub count: u64,
    /// Their sum.
    pub sum_ns: u64,
    /// Half of the samples are at or below this.
    pub p50_ns: u64,
    /// Nine of ten.
    pub p90_ns: u64,
    /// 99 of 100.
    pub p99_ns: u64,
    /// 999 of 1000.
    pub p99_9_ns: u64,
    /// All of them.
    pub max_ns: u64,
    /// `(upper bound in ns, samples at or below it)`, ascending; the bounds never change.
    pub buckets: Vec<(u64, u64)>,
}

/// One worker as it is now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerStatus {
    /// Its index.
    pub index: usize,
    /// The CPU it is pinned to, if it is.
    pub cpu: Option<CpuId>,
    /// Turns of its loop so far. Grows at least once a second even when idle: the watchdog
    /// compares it.
    pub steps: u64,
    /// Share of the last second or so spent on work, 0 to 1.
    pub busy_ratio: f64,
    /// Time spent on work so far, in ns.
    pub busy_ns: u64,
    /// How often it went to sleep.
    pub sleeps: u64,
    /// Queues it serves.
    pub queues: usize,
    /// What it does I/O with.
    #[serde(default)]
    pub engine: Kind,
}
