//! Opening a disk: what it is, whose it is, and what it can do.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use towpath_common::mem::Pages;

use super::lock::{self, lock};
use super::moving::Moving;
use super::{BlockSize, Disk, DiskError, Serial, sysfs};
use crate::config::{Cache, Polling};
use crate::request::SECTOR;
use crate::resident::Resident;
use crate::storage::{Shape, Storage};

/// How often, and how long apart, a disk is tried that a process seems to use which is gone: the
/// kernel takes an io_uring apart in the background, and only then closes its files, so a daemon
/// that was killed holds its disks a moment longer.
pub(super) const PATIENCE: u32 = 1000;
pub(super) const PAUSE: Duration = Duration::from_millis(2);

/// What to open, and how.
#[derive(Debug, Clone)]
pub struct Spec {
    /// A regular file or a block device; it must exist.
    pub path: PathBuf,
    /// Serve it read-only.
    pub read_only: bool,
    /// Through the page cache or not.
    pub cache: Cache,
    /// Logical block size to show; of the file system or device if none is given.
    pub block_size: Option<BlockSize>,
    /// Serial number; from the file's name if none is given.
    pub serial: Option<Serial>,
}

/// Who else may have it meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    /// Nobody, as long as it is open.
    Held,
    /// Nobody while queues run ([`Disk::open_moving`]).
    WhileRunning,
    /// Whoever has it.
    Shared,
}

impl Disk {
    /// Open the file or device `spec` names.
    ///
    /// A size that is not a whole number of logical blocks is rounded down, with a warning: images
    /// with a trailer of another program's exist, and the guest has no way to address a part.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open(spec: &Spec) -> Result<Disk, DiskError> {
        Disk::open_as(spec, Lock::Held)
    }

    /// Open the block device `path` for writing though others have it: a file system is on it,
    /// whose blocks the caller knows not to touch.
    ///
    /// # Errors
    /// [`DiskError`].
    pub(crate) fn open_shared(path: &Path) -> Result<Disk, DiskError> {
        let spec = Spec {
            path: path.to_owned(),
            read_only: false,
            cache: Cache::Direct,
            block_size: None,
            serial: None,
        };
        Disk::open_as(&spec, Lock::Shared)
    }

    /// This disk, opened as `path`, with its completions found as `polling` says.
    ///
    /// # Errors
    /// [`DiskError::NotPolled`] if that is no device, or one without queues that are polled.
    pub(crate) fn polled(mut self, path: &Path, polling: Polling) -> Result<Disk, DiskError> {
        if polling != Polling::Off
            && let Some(why) = self.unpolled()
        {
            let what = path.display().to_string();
            return Err(DiskError::NotPolled { what, why });
        }
        self.polling = polling;
        Ok(self)
    }

    /// What polling for this disk's completions lacks, if something.
    fn unpolled(&self) -> Option<&'static str> {
        let Storage::Device(file) = self.storage() else {
            return Some("it is not a block device");
        };
        if !self.direct() {
            return Some("it is not opened with cache=direct");
        }
        let polls = rustix::fs::fstat(file).map(|stat| queue_value(stat.st_rdev, "io_poll"));
        match polls {
            Ok(Some(1..)) => None,
            _ => Some("its driver has no queues for that (nvme.poll_queues=2, for one)"),
        }
    }

    pub(super) fn open_as(spec: &Spec, how: Lock) -> Result<Disk, DiskError> {
        let path = &spec.path;
        let io = |what| move |source: Errno| fail(what, path, source);
        // Look before opening: open(2) on a pipe or a tape would wait or act.
        kind_of(rustix::fs::stat(path).map_err(io("find"))?.st_mode, path)?;
        let file = open_file(spec, how)?;
        let stat = rustix::fs::fstat(&file).map_err(io("examine"))?;
        let device = kind_of(stat.st_mode, path)? == FileType::BlockDevice;
        if how == Lock::WhileRunning && device {
            return Err(DiskError::NotADisk {
                path: path.clone(),
                found: "block device, and only files are locked while they run",
            });
        }
        if !device && how != Lock::WhileRunning {
            lock(file.as_fd(), spec, &stat)?;
        } else if device && spec.read_only {
            lock::refuse_mounted(stat.st_rdev, path)?;
        }
        let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(io("size"))?;
        let direct = spec.cache == Cache::Direct;
        let inline = answer_inline(&file);
        let align = Alignment::of(&file, device, direct, path)?;
        let block = block_size(spec, align.unit)?;
        let size = block.floor(end);
        if size == 0 {
            return Err(DiskError::TooSmall {
                path: path.clone(),
                size: end,
                block: block.bytes(),
            });
        }
        if size != end {
            tracing::warn!(path = %path.display(), size = end, served = size,
                "size is not a multiple of the block size; the rest is not served");
        }
        let discard = if device {
            device_discard(stat.st_rdev)
        } else {
            file_discard(&file, end, stat.st_blksize)
        };
        let pages = if device {
            None
        } else {
            resident(&file, spec, size)
        };
        let shape = Shape {
            size,
            block,
            physical: align.physical.max(block),
            direct,
            inline,
            waits: !device && may_wait(&file),
            threaded: device && sysfs::is_loop(stat.st_rdev),
            read_only: spec.read_only,
            mem_align: if direct { align.memory } else { 1 },
            len_align: if direct { align.unit.bytes() } else { 1 },
            discard: discard.filter(|_| !spec.read_only),
            one_worker: false,
        };
        let storage = if device {
            Storage::Device(file)
        } else {
            Storage::File(file)
        };
        let serial = spec.serial.unwrap_or_else(|| Serial::of_path(path));
        Ok(Disk {
            resident: pages,
            moving: (how == Lock::WhileRunning).then(|| Moving::new(spec, stat)),
            ..Disk::of(storage, shape, serial)
        })
    }
}

pub(super) fn fail(what: &'static str, path: &Path, source: Errno) -> DiskError {
    DiskError::Io {
        what,
        path: path.to_owned(),
        source: source.into(),
    }
}

fn kind_of(mode: u32, path: &Path) -> Result<FileType, DiskError> {
    let found = match FileType::from_raw_mode(mode) {
        kind @ (FileType::RegularFile | FileType::BlockDevice) => return Ok(kind),
        FileType::Directory => "directory",
        FileType::CharacterDevice => "character device",
        FileType::Fifo => "pipe",
        FileType::Socket => "socket",
        _ => "file of unknown type",
    };
    Err(DiskError::NotADisk {
        path: path.to_owned(),
        found,
    })
}

fn open_file(spec: &Spec, how: Lock) -> Result<OwnedFd, DiskError> {
    let path = &spec.path;
    let mut flags = OFlags::CLOEXEC | OFlags::NOCTTY;
    if spec.read_only {
        flags |= OFlags::RDONLY;
    } else {
        // On a block device, O_EXCL without O_CREAT means "nobody else, no mount"; on a regular
        // file it means nothing.
        flags |= OFlags::RDWR;
        if how == Lock::Held {
            flags |= OFlags::EXCL;
        }
    }
    if spec.cache == Cache::Direct {
        flags |= OFlags::DIRECT;
    }
    let open = || rustix::fs::open(path, flags, Mode::empty());
    let mut opened = open();
    for _ in 0..PATIENCE {
        if !matches!(opened, Err(Errno::BUSY)) {
            break;
        }
        std::thread::sleep(PAUSE);
        opened = open();
    }
    opened.map_err(|e| match e {
        Errno::INVAL if spec.cache == Cache::Direct => DiskError::NoDirect { path: path.clone() },
        Errno::BUSY => DiskError::InUse {
            path: path.clone(),
            pid: None,
            detail: rustix::fs::stat(path)
                .ok()
                .and_then(|s| lock::device_use(s.st_rdev, path)),
        },
        e => fail("open", path, e),
    })
}

/// What fstatfs(2) says of tmpfs: TMPFS_MAGIC, include/uapi/linux/magic.h.
pub(crate) const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Let io_uring read and write tmpfs in the submitting thread: its pages are in memory, yet tmpfs
/// does not say that it never waits (FMODE_NOWAIT), so each request would go through a kernel
/// worker and back, which costs several times the copy. O_NONBLOCK says it instead. On any other
/// file system without FMODE_NOWAIT (NFS, FUSE) it would make the worker wait; there it stays off.
fn answer_inline(file: &OwnedFd) -> bool {
    let kind = rustix::fs::fstatfs(file).map(|s| u64::try_from(s.f_type));
    if kind == Ok(Ok(TMPFS_MAGIC))
        && let Ok(flags) = rustix::fs::fcntl_getfl(file)
    {
        // Refused, it is slower and nothing else.
        return rustix::fs::fcntl_setfl(file, flags | OFlags::NONBLOCK).is_ok();
    }
    false
}

/// File systems on this machine's own disks or memory, which say by EAGAIN that a read or write
/// would wait (`FMODE_NOWAIT`), or do not wait: ext4, XFS, btrfs, f2fs and tmpfs
/// (include/uapi/linux/magic.h).
const LOCAL: [u64; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994];

/// May a read or write wait for a server, without saying so? True of every file system that is not
/// known to be local: what it costs those that are, and not known, is a thread's turn a request.
/// Asked by name, as a file cannot be asked: a FUSE file holds up io_uring_enter (Linux 6.18).
fn may_wait(file: &OwnedFd) -> bool {
    let kind = rustix::fs::fstatfs(file).map(|s| u64::try_from(s.f_type));
    !matches!(kind, Ok(Ok(kind)) if LOCAL.contains(&kind))
}

/// Its pages, to be read by copying, where what they are rests with this kernel alone: not over a
/// network, where a server may say otherwise, nor in a program (FUSE).
fn resident(file: &OwnedFd, spec: &Spec, size: u64) -> Option<Arc<Resident>> {
    if spec.cache != Cache::Buffered || may_wait(file) {
        return None;
    }
    let window = Pages::of_file(file.as_fd(), size).ok()?;
    Some(Arc::new(Resident::new(window, size)))
}

/// What O_DIRECT asks of offsets, lengths and addresses.
struct Alignment {
    /// Of buffers in memory, in bytes.
    memory: u32,
    /// Of offsets and lengths.
    unit: BlockSize,
    /// What the medium writes at once.
    physical: BlockSize,
}

impl Alignment {
    fn of(file: &OwnedFd, device: bool, direct: bool, path: &Path) -> Result<Alignment, DiskError> {
        let mask = StatxFlags::BASIC_STATS | StatxFlags::DIOALIGN;
        let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, mask).ok();
        // Zero means that the kernel does not know, or that there is no O_DIRECT.
        let known = stat.filter(|s| s.stx_dio_offset_align != 0);
        let reported = known.and_then(|s| BlockSize::new(s.stx_dio_offset_align));
        let (logical, physical) = if device {
            let logical = rustix::fs::ioctl_blksszget(file).map_err(|e| fail("size", path, e))?;
            let physical = rustix::fs::ioctl_blkpbszget(file).map_err(|e| fail("size", path, e))?;
            (BlockSize::new(logical), BlockSize::new(physical))
        } else {
            (None, Some(BlockSize::PAGE))
        };
        let floor = if direct { reported } else { None };
        let unit = logical.max(floor).unwrap_or(BlockSize::SECTOR);
        let memory = known.map_or(unit.bytes(), |s| s.stx_dio_mem_align);
        Ok(Alignment {
            memory: memory.max(1).next_power_of_two(),
            unit,
            physical: physical.unwrap_or(unit),
        })
    }
}

/// The logical block size to show, which cannot be smaller than what the backing takes.
fn block_size(spec: &Spec, unit: BlockSize) -> Result<BlockSize, DiskError> {
    match spec.block_size {
        None => Ok(unit),
        Some(asked) if asked >= unit => Ok(asked),
        Some(asked) => Err(DiskError::BlockSize {
            path: spec.path.clone(),
            asked: asked.bytes(),
            needed: unit.bytes(),
        }),
    }
}

/// Can this file have holes punched? Tried past its end, where there is nothing to lose.
fn file_discard(file: &OwnedFd, end: u64, unit: i64) -> Option<u32> {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let past = BlockSize::PAGE.floor(end).checked_add(8192)?;
    rustix::fs::fallocate(file, mode, past, 4096).ok()?;
    u32::try_from(unit)
        .ok()
        .filter(|u| u64::from(*u) % SECTOR == 0 && *u > 0)
}

/// Does this block device discard, and in what unit?
fn device_discard(dev: u64) -> Option<u32> {
    queue_value(dev, "discard_max_bytes").filter(|most| *most > 0)?;
    let unit = queue_value(dev, "discard_granularity").unwrap_or(SECTOR);
    u32::try_from(unit.max(SECTOR)).ok()
}

/// What sysfs says of a block device's queue.
fn queue_value(device: u64, name: &str) -> Option<u64> {
    sysfs::number(device, &format!("queue/{name}"))
}
