//! One disk: as written ([`DiskTable`], what is optional may be absent) and as it will be served
//! ([`Disk`], complete), with the types of its values.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use towpath_common::config::{ByteSize, Cap, Name, SocketMode, SocketPath, ValueError, Weight};
use towpath_common::ranged;

/// A disk to serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// What operators, the API and metrics call it.
    pub name: Name,
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
}

/// The table `[[disk]]`, and what `--disk` becomes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiskTable {
    pub(super) name: Option<Name>,
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
}

impl DiskTable {
    /// The disk under its final name; the serial defaults to as much of the name as fits.
    pub(super) fn complete(self, name: Name) -> Disk {
        Disk {
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
            name,
        }
    }
}

/// As much of the page cache as guest memory is registered by default.
const fn resident() -> ByteSize {
    ByteSize::from_bytes(1 << 30)
}

/// Where a disk's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// A file or a block device, which must exist.
    File(PathBuf),
    /// Nowhere: reads give zeroes, writes vanish. For measuring the path to the disk.
    Null {
        /// The capacity it shows.
        size: ByteSize,
    },
}

impl Source {
    /// Announces the null back-end; a file of that name is `./null:…`.
    const NULL: &str = "null:";
    /// The null back-end's capacity is a multiple of this, the largest block size.
    const NULL_ALIGN_BYTES: u64 = 4096;

    /// The name of a disk that was not given one.
    pub(super) fn stem(&self) -> Name {
        match self {
            Self::File(path) => {
                Name::sanitized(&path.file_stem().unwrap_or_default().to_string_lossy())
            }
            Self::Null { .. } => Name::sanitized("null"),
        }
    }
}

impl TryFrom<String> for Source {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        let Some(size) = text.strip_prefix(Self::NULL) else {
            if text.is_empty() || text.contains('\0') {
                let rule = "name a file or block device, or write null:SIZE";
                return Err(ValueError::form("path", text, rule));
            }
            return Ok(Self::File(text.into()));
        };
        let size: ByteSize = size.parse()?;
        if size.bytes() == 0 || !size.bytes().is_multiple_of(Self::NULL_ALIGN_BYTES) {
            let rule = "the size of the null back-end must be a positive multiple of 4096";
            return Err(ValueError::form("path", text, rule));
        }
        Ok(Self::Null { size })
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        source.to_string()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Null { size } => write!(f, "{}{size}", Self::NULL),
        }
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

/// The identity a guest reads: up to 20 printable ASCII bytes (virtio 1.3, 5.2.6, GET_ID).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// No: O_DIRECT.
    #[default]
    Direct,
    /// Yes: faster when the host has memory to spare; FLUSH still means on the device.
    Buffered,
}

/// The unit a guest addresses, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// How guest memory is handed to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
