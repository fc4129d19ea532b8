//! One disk: as written ([`DiskTable`], what is optional may be absent) and as it will be served
//! ([`Disk`], complete), with the types of its values.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_common::config::{ByteSize, Cap, Name, SocketMode, SocketPath, ValueError, Weight};
use towpath_common::ranged;

use super::catalogue::Uuid;
use super::qos::{Bandwidth, Iops, Limit};
use super::source::Source;

/// A disk to serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// What operators, the API and metrics call it.
    pub name: Name,
    /// What it is called wherever it moves, if it was given that.
    pub uuid: Option<Uuid>,
    /// Where its bytes are.
    pub path: Source,
    /// The vhost-user socket.
    pub socket: SocketPath,
    /// Which end of the socket vblk is.
    pub mode: SocketMode,
    /// Refuse everything that would change it.
    pub read_only: bool,
    /// Most queues a guest may use.
    pub queues: QueueCount,
    /// What the guest's GET_ID returns.
    pub serial: Serial,
    /// Whether the host's page cache is used.
    pub cache: Cache,
    /// Most of the page cache to lock in memory, so that reads of it need no system call.
    pub resident: ByteSize,
    /// Logical block size; `None`: that of the device, or 512.
    pub block_size: Option<BlockSize>,
    /// Share of its worker's time.
    pub weight: Weight,
    /// The most it may use of a core; `None`: no limit.
    pub cap: Option<Cap>,
    /// How guest memory is handed to the kernel.
    pub guest_memory: GuestMemory,
    /// What it may do in a second.
    #[serde(flatten)]
    pub limit: Limit,
    /// The group whose limits it shares.
    pub group: Option<Name>,
    /// What becomes of requests that the storage failed.
    pub on_error: OnError,
    /// `vblk disk resize --shrink` may make it smaller.
    pub shrink: bool,
    /// Connections of each worker to an NBD server.
    pub connections: Connections,
    /// How a file's blocks are reached.
    pub map: FileMap,
    /// When a file is locked.
    pub lock: FileLock,
    /// Where is kept what changed since the last backup.
    pub bitmap: Option<PathBuf>,
    /// The record of a mirror; `None`: beside its first disk, which must be a file then.
    pub record: Option<PathBuf>,
    /// The disk of a mirror that is read while it is current, counted from 1; `None`: the fastest.
    pub prefer: Option<MirrorDisk>,
    /// Most bytes a second that are copied to a disk of a mirror that catches up.
    pub resync_rate: Bandwidth,
    /// How long a disk of a mirror has to answer.
    pub mirror_timeout: MirrorTimeout,
    /// How a device's completions are found.
    pub polling: Polling,
}

/// The table `[[disk]]`, and what `--disk` becomes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiskTable {
    pub(super) name: Option<Name>,
    pub(super) uuid: Option<Uuid>,
    pub(super) path: Source,
    pub(super) socket: SocketPath,
    #[serde(default)]
    pub(super) mode: SocketMode,
    #[serde(default)]
    pub(super) read_only: bool,
    #[serde(default)]
    pub(super) queues: QueueCount,
    pub(super) serial: Option<Serial>,
    #[serde(default)]
    pub(super) cache: Cache,
    #[serde(default = "resident")]
    pub(super) resident: ByteSize,
    pub(super) block_size: Option<BlockSize>,
    #[serde(default)]
    pub(super) weight: Weight,
    pub(super) cap: Option<Cap>,
    #[serde(default)]
    pub(super) guest_memory: GuestMemory,
    iops: Option<Iops>,
    iops_burst: Option<Iops>,
    bandwidth: Option<Bandwidth>,
    bandwidth_burst: Option<Bandwidth>,
    pub(super) group: Option<Name>,
    #[serde(default)]
    on_error: OnError,
    #[serde(default)]
    shrink: bool,
    #[serde(default)]
    pub(super) connections: Connections,
    #[serde(default)]
    pub(super) map: FileMap,
    #[serde(default)]
    pub(super) lock: FileLock,
    pub(super) bitmap: Option<PathBuf>,
    pub(super) record: Option<PathBuf>,
    pub(super) prefer: Option<MirrorDisk>,
    #[serde(default = "resync_rate")]
    resync_rate: Bandwidth,
    #[serde(default)]
    mirror_timeout: MirrorTimeout,
    #[serde(default)]
    polling: Polling,
}

impl DiskTable {
    pub(super) fn limit(&self) -> Limit {
        Limit {
            iops: self.iops,
            iops_burst: self.iops_burst,
            bandwidth: self.bandwidth,
            bandwidth_burst: self.bandwidth_burst,
        }
    }

    /// What is wrong with its bitmap, if something is.
    pub(super) fn bitmap_mistake(&self) -> Option<String> {
        let bitmap = self.bitmap.as_ref()?;
        if self.read_only {
            return Some("a read-only disk never changes: leave bitmap out".to_owned());
        }
        if !bitmap.is_absolute() {
            return Some(format!("bitmap {bitmap:?}: write an absolute path"));
        }
        None
    }

    /// What is wrong with when it is locked, if something is.
    pub(super) fn lock_mistake(&self) -> Option<&'static str> {
        if self.lock == FileLock::Open {
            return None;
        }
        if !matches!(self.path, Source::File(_)) || self.map != FileMap::File {
            Some("lock = \"running\" is for a file, with map = \"file\"")
        } else if self.cache == Cache::Buffered {
            Some(
                "lock = \"running\" needs cache = \"direct\": two hosts would each have a page \
                 cache of their own",
            )
        } else if self.bitmap.is_some() {
            Some(
                "lock = \"running\" and bitmap exclude each other: nobody else notes changes there",
            )
        } else {
            None
        }
    }

    /// The disk under its final name; the serial defaults to as much of the name as fits.
    pub(super) fn complete(self, name: Name) -> Disk {
        Disk {
            limit: self.limit(),
            uuid: self.uuid,
            path: self.path,
            socket: self.socket,
            mode: self.mode,
            read_only: self.read_only,
            queues: self.queues,
            serial: self.serial.unwrap_or_else(|| Serial::from_name(&name)),
            cache: self.cache,
            resident: self.resident,
            block_size: self.block_size,
            weight: self.weight,
            cap: self.cap,
            guest_memory: self.guest_memory,
            group: self.group,
            on_error: self.on_error,
            shrink: self.shrink,
            connections: self.connections,
            map: self.map,
            lock: self.lock,
            bitmap: self.bitmap,
            record: self.record,
            prefer: self.prefer,
            resync_rate: self.resync_rate,
            mirror_timeout: self.mirror_timeout,
            polling: self.polling,
            name,
        }
    }
}

/// None: whoever opens a file under lease waits a moment, which an operator should have asked for.
const fn resident() -> ByteSize {
    ByteSize::from_bytes(0)
}

/// As much as a disk that spins reads, and less than hurts a fast one.
const fn resync_rate() -> Bandwidth {
    Bandwidth::of(ByteSize::from_bytes(100 << 20))
}

ranged! {
    /// A disk of a mirror, counted from 1.
    MirrorDisk(u8), "prefer", 1..=8
}

ranged! {
    /// Seconds in which a disk of a mirror has to answer.
    MirrorTimeout(u16), "mirror_timeout", 1..=3600
}

impl Default for MirrorTimeout {
    /// As long as the kernel lets a disk try, by default.
    fn default() -> Self {
        Self(30)
    }
}

ranged! {
    /// How many queues a guest may use; a queue nobody uses costs next to nothing.
    QueueCount(u16), "queues", 1..=64
}

impl Default for QueueCount {
    /// QEMU asks for one queue per virtual CPU and fails if it cannot have them.
    fn default() -> Self {
        Self(16)
    }
}

ranged! {
    /// How many connections a worker has to an NBD server that allows several.
    Connections(u8), "connections", 1..=16
}

impl Default for Connections {
    fn default() -> Self {
        Self(1)
    }
}

/// The identity a guest reads: up to 20 printable ASCII bytes (virtio 1.3, 5.2.6, GET_ID).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
pub struct Serial(String);

impl Serial {
    /// VIRTIO_BLK_ID_BYTES.
    pub const MAX_LEN: usize = 20;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn from_name(name: &Name) -> Self {
        Self(name.as_str().chars().take(Self::MAX_LEN).collect())
    }
}

impl TryFrom<String> for Serial {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        if text.len() > Self::MAX_LEN || !text.chars().all(|c| c.is_ascii_graphic() || c == ' ') {
            return Err(ValueError::form(
                "serial",
                text,
                "use at most 20 printable ASCII bytes",
            ));
        }
        Ok(Self(text))
    }
}

/// Whether the host's page cache stands between the guest and the storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// No: O_DIRECT.
    #[default]
    Direct,
    /// Yes: faster when the host has memory to spare; FLUSH still means on the device.
    Buffered,
}

/// The unit a guest addresses, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "i64", into = "u32")]
pub enum BlockSize {
    /// 512 bytes.
    B512,
    /// 4096 bytes.
    B4096,
}

impl BlockSize {
    /// In bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }
}

impl TryFrom<i64> for BlockSize {
    type Error = ValueError;

    fn try_from(bytes: i64) -> Result<Self, ValueError> {
        match bytes {
            512 => Ok(Self::B512),
            4096 => Ok(Self::B4096),
            _ => Err(ValueError::form(
                "block size",
                bytes.to_string(),
                "use 512 or 4096",
            )),
        }
    }
}

impl From<BlockSize> for u32 {
    fn from(size: BlockSize) -> Self {
        size.bytes()
    }
}

/// What becomes of requests that the storage failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum OnError {
    /// The guest is told.
    #[default]
    Report = 0,
    /// They stay in flight and are tried again, until the storage does them or this is changed.
    Hold = 1,
    /// The guest is told, and every later request fails, until an operator clears the disk.
    Fail = 2,
}

/// How guest memory is handed to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GuestMemory {
    /// Registered if the guest has 1 GiB or less; plain, with a log line, where limits refuse.
    #[default]
    Auto,
    /// Registered whatever its size, so pinned; plain, with a log line, where limits refuse.
    Registered,
    /// Never registered: nothing is pinned, each request maps its pages.
    Plain,
}

/// How a file's blocks are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileMap {
    /// Through its file system.
    #[default]
    File,
    /// Past its file system, by extents fetched once and pinned; ext4 only, and only as safe as the
    /// immutable flag.
    Extents,
    /// Past device-mapper, by the segments of a linear or striped logical volume.
    Segments,
}

/// When a file is locked against others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileLock {
    /// As long as it is open.
    #[default]
    Open,
    /// While the guest's queues run: two daemons have it, for a virtual machine that moves from one
    /// to the other.
    Running,
}

/// How it is found out that a block device did what it was asked to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Polling {
    /// It interrupts.
    #[default]
    Off = 0,
    /// The worker asks the device (IORING_SETUP_IOPOLL).
    Device = 1,
    /// A thread of the kernel's submits to the device and asks it (IORING_SETUP_SQPOLL besides).
    Thread = 2,
}
