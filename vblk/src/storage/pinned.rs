//! Pinned extents: a file whose blocks are fetched once and used directly, past its file system.
//!
//! That is only as safe as the file system's promise not to move them, and Linux has no such
//! promise but the immutable flag. So everything is refused that the flag does not cover:
//!
//! - ext4 only: no copy on write, no reflinks (an immutable file can be the source of one), one
//!   device;
//! - every byte written: no holes, no extents that are unwritten (they would read as zeroes
//!   whatever was put there), delayed, inline, encoded, encrypted, shared or unaligned;
//! - the first block of each extent reads the same through the file and through the device.
//!
//! While it is served the file has the immutable flag, so that nobody can write, truncate, punch,
//! move or unlink it. An extended attribute says whose flag it is: a daemon that was killed finds
//! its file again, and an operator's own flag is left alone. The flag is no obstacle to whoever has
//! the file open for writing already (on ext4, EXT4_IOC_MOVE_EXT moves its blocks), so a lease
//! shows that nobody has. Cached pages are dropped before and after. A thread looks at the flag ten
//! times a second and at the whole map every ten seconds; if either changed, the disk is served
//! through the file from then on, and says so; the file is let go once nothing is in flight by the
//! old map (`settle`). Between somebody's taking the flag away as root and the next look there is a
//! tenth of a second in which a block may be written that is not the file's any more. Hence the
//! kind is opt-in.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{Advice, IFlags, Mode, OFlags, XattrFlags};

use towpath_common::mem::Pages;

use super::fiemap::{self, Piece, flag};
use super::map::{Map, Run};
use super::{Shape, Storage};
use crate::disk::{Disk, DiskError, Serial, Spec};
use crate::events::MAP_BROKEN;

/// Says that the immutable flag is ours.
const MARK: &str = "user.towpath.pinned";
/// EXT4_SUPER_MAGIC, include/uapi/linux/magic.h.
const EXT4: u64 = 0xef53;
/// Most extents of a file: 1 TiB in pieces of 16 MiB.
const MAX_EXTENTS: usize = 65536;
/// Time between two looks at the flag, and looks at it between two looks at the map.
const LOOK: Duration = Duration::from_millis(100);
const LOOKS: u32 = 100;
/// Bytes of a page.
const PAGE: u64 = 4096;
/// Most extents whose first block is compared.
const SAMPLES: usize = 64;

/// Why a file cannot be served by its extents.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The file or the device under it.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A step failed.
    #[error("map=extents: cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A condition is not met.
    #[error("map=extents: {}: {why}; serve it with map=file", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// Which, and what to do.
        why: String,
    },
}

/// Whether the map still holds.
#[derive(Debug, Default)]
pub struct Watch {
    broken: AtomicBool,
    /// Nothing is in flight by the map any more, and what it was kept for is let go.
    settled: AtomicBool,
}

impl Watch {
    /// The map does not hold any more.
    pub(crate) fn break_off(&self) {
        self.broken.store(true, Ordering::Release);
    }

    /// True once the map does not hold any more.
    #[inline]
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// True if the map broke and something may be in flight by it.
    #[must_use]
    pub(crate) fn is_unsettled(&self) -> bool {
        self.is_broken() && !self.settled.load(Ordering::Acquire)
    }

    /// Nothing is in flight by the map that broke.
    pub(crate) fn settle(&self) {
        self.settled.store(true, Ordering::Release);
    }
}

/// A file served by its extents.
#[derive(Debug)]
pub struct Pinned {
    path: PathBuf,
    /// The file itself, locked, for when the map breaks.
    file: Arc<Disk>,
    device: Arc<Disk>,
    map: Map,
    pieces: Arc<[Piece]>,
    watch: Arc<Watch>,
}

impl Pinned {
    /// Pin the file that `spec` names and make a disk of its extents.
    ///
    /// # Errors
    /// [`PinError`]; the file is as it was then.
    pub fn disk(spec: &Spec, serial: Serial) -> Result<Disk, PinError> {
        let path = &spec.path;
        release_own(path)?;
        let file = Arc::new(Disk::open(spec)?);
        let fd = file.file().ok_or_else(|| unfit(path, "it is no file"))?;
        let stat = rustix::fs::fstat(fd).map_err(|e| failed("examine", path, e))?;
        let kind = rustix::fs::fstatfs(fd).map_err(|e| failed("examine", path, e))?;
        if !matches!(file.storage(), Storage::File(_)) || u64::try_from(kind.f_type) != Ok(EXT4) {
            return Err(unfit(
                path,
                "only a regular file on ext4 has extents that can be pinned",
            ));
        }
        if !file.direct() || file.read_only() {
            return Err(unfit(path, "it must be writable, and cache=direct"));
        }
        let under = device_of(stat.st_dev).map_err(|e| failed("find the device of", path, e))?;
        let device = Arc::new(Disk::open_shared(&under)?);
        pin(&file, path)?;
        let made = alone(&file, path).and_then(|()| Pinned::over(path, &file, &device, serial));
        if made.is_err() {
            unpin(&file);
        }
        made
    }

    fn over(
        path: &Path,
        file: &Arc<Disk>,
        device: &Arc<Disk>,
        serial: Serial,
    ) -> Result<Disk, PinError> {
        let fd = file.file().ok_or_else(|| unfit(path, "it is no file"))?;
        rustix::fs::fsync(fd).map_err(|e| failed("sync", path, e))?;
        drop_pages(file).map_err(|e| failed("drop cached pages of", path, e))?;
        let pieces =
            fiemap::pieces(fd, MAX_EXTENTS).map_err(|e| failed("fetch the extents of", path, e))?;
        let shape = Shape {
            size: file.size(),
            ..Shape::of_all([*file.shape(), *device.shape()]).unwrap_or(*file.shape())
        };
        let map = map_of(&pieces, &shape, device.size()).map_err(|why| unfit(path, &why))?;
        compare(&pieces, file, device).map_err(|why| unfit(path, &why))?;
        let pinned = Pinned {
            path: path.to_owned(),
            file: Arc::clone(file),
            device: Arc::clone(device),
            map,
            pieces: pieces.into(),
            watch: Arc::default(),
        };
        pinned.start_watch().map_err(|e| failed("watch", path, e))?;
        Ok(Disk::of(Storage::Pinned(pinned), shape, serial))
    }

    /// The device under the file system.
    #[must_use]
    pub fn device(&self) -> &Arc<Disk> {
        &self.device
    }

    /// The file itself.
    #[must_use]
    pub fn file(&self) -> &Arc<Disk> {
        &self.file
    }

    /// Where the file's bytes are on the device.
    #[must_use]
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// Whether that still holds.
    #[must_use]
    pub fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// Nothing is in flight by the map that broke: let the file go.
    pub(crate) fn settle(&self) {
        unpin(&self.file);
        self.watch.settle();
    }

    fn start_watch(&self) -> io::Result<()> {
        // The thread must not keep the file open, nor locked, and ends with it.
        let (file, pieces) = (Arc::downgrade(&self.file), Arc::clone(&self.pieces));
        let (watch, path) = (Arc::clone(&self.watch), self.path.clone());
        let thread = std::thread::Builder::new().name("pin-watch".to_owned());
        thread.spawn(move || {
            for look in 1u32.. {
                std::thread::sleep(LOOK);
                let Some(file) = file.upgrade() else {
                    return;
                };
                let whole = look % LOOKS == 0;
                if let Err(why) = still_holds(&file, &pieces, whole) {
                    watch.break_off();
                    tracing::error!(name: MAP_BROKEN, path = %path.display(), why, "the map \
                        of the file's extents does not hold any more; it is served through its \
                        file system from now on");
                    return;
                }
            }
        })?;
        Ok(())
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if !self.watch.settled.load(Ordering::Acquire) {
            if let Some(device) = self.device.file() {
                let _ = rustix::fs::fdatasync(device);
            }
            unpin(&self.file);
        }
        let _ = drop_pages(&self.file);
    }
}

fn unfit(path: &Path, why: &str) -> PinError {
    PinError::Unfit {
        path: path.to_owned(),
        why: why.to_owned(),
    }
}

fn failed(what: &'static str, path: &Path, source: impl Into<io::Error>) -> PinError {
    PinError::Io {
        what,
        path: path.to_owned(),
        source: source.into(),
    }
}

/// Take away the flag that a daemon of ours left when it was killed.
fn release_own(path: &Path) -> Result<(), PinError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed("open", path, e))?;
    // No such ioctl: another file system, which is refused later.
    let Ok(flags) = rustix::fs::ioctl_getflags(&file) else {
        return Ok(());
    };
    if !flags.contains(IFlags::IMMUTABLE) {
        return Ok(());
    }
    if !is_marked(&file) {
        return Err(unfit(
            path,
            "somebody made it immutable (chattr -i takes that away)",
        ));
    }
    let set = rustix::fs::ioctl_setflags(&file, flags - IFlags::IMMUTABLE);
    set.map_err(|e| failed("unpin", path, e))
}

fn is_marked(file: &OwnedFd) -> bool {
    rustix::fs::fgetxattr(file, MARK, &mut [0u8; 8]).is_ok()
}

fn pin(file: &Disk, path: &Path) -> Result<(), PinError> {
    let fd = file.file().ok_or_else(|| unfit(path, "it is no file"))?;
    let marked = rustix::fs::fsetxattr(fd, MARK, b"1", XattrFlags::empty());
    marked.map_err(|e| failed("mark", path, e))?;
    let flags = rustix::fs::ioctl_getflags(fd).map_err(|e| failed("pin", path, e))?;
    let set = rustix::fs::ioctl_setflags(fd, flags | IFlags::IMMUTABLE);
    set.map_err(|e| failed("pin (it takes CAP_LINUX_IMMUTABLE)", path, e))
}

/// Nobody else has the file open, which is pinned, so that nobody will.
fn alone(file: &Disk, path: &Path) -> Result<(), PinError> {
    let fd = file.file().ok_or_else(|| unfit(path, "it is no file"))?;
    let page = Pages::of_file(fd, PAGE.min(file.size()))
        .map_err(|e| failed("look who has opened", path, io::Error::other(e)))?;
    let alone = page.lease();
    page.give_up();
    if alone {
        Ok(())
    } else {
        let why = "somebody else has it open and could move its blocks (fuser -v tells who)";
        Err(unfit(path, why))
    }
}

/// Undo [`pin`], as far as that is possible.
fn unpin(file: &Disk) {
    if let Some(fd) = file.file() {
        if let Ok(flags) = rustix::fs::ioctl_getflags(fd) {
            let _ = rustix::fs::ioctl_setflags(fd, flags - IFlags::IMMUTABLE);
        }
        let _ = rustix::fs::fremovexattr(fd, MARK);
    }
}

fn drop_pages(file: &Disk) -> io::Result<()> {
    if let Some(fd) = file.file() {
        rustix::fs::fadvise(fd, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

/// The device that a file system with number `dev` is on.
fn device_of(dev: u64) -> io::Result<PathBuf> {
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}"))?;
    let name = link.file_name().ok_or(io::ErrorKind::NotFound)?;
    let path = Path::new("/dev").join(name);
    if rustix::fs::stat(&path)?.st_rdev == dev {
        Ok(path)
    } else {
        let message = format!("{} is another device", path.display());
        Err(io::Error::new(io::ErrorKind::NotFound, message))
    }
}

/// The map, if every condition is met.
fn map_of(pieces: &[Piece], shape: &Shape, device: u64) -> Result<Map, String> {
    let mut at = 0;
    let mut runs = Vec::new();
    for piece in pieces {
        let what = flag::NAMES.iter().find(|(bit, _)| piece.flags & bit != 0);
        if let Some((_, what)) = what {
            return Err(format!(
                "{} bytes at {} are {what}; every byte must have been written: copy the file",
                piece.len, piece.logical
            ));
        }
        if piece.logical != at {
            return Err(format!(
                "it has a hole at {at}; copy it with cp --sparse=never"
            ));
        }
        let odd = [piece.physical, piece.len]
            .into_iter()
            .any(|n| !shape.block.divides(n));
        let end = piece.physical.checked_add(piece.len);
        if odd || piece.len == 0 || end.is_none_or(|end| end > device) {
            return Err(format!(
                "its extent at {at} is not in whole blocks of its device"
            ));
        }
        runs.push(Run {
            child: 0,
            offset: piece.physical,
            len: piece.len,
        });
        at += piece.len;
    }
    if at < shape.size {
        return Err(format!(
            "it has a hole at {at}; copy it with cp --sparse=never"
        ));
    }
    Ok(Map::table(runs))
}

/// Do the file and the device agree about the beginnings of extents?
fn compare(pieces: &[Piece], file: &Disk, device: &Disk) -> Result<(), String> {
    // Aligned for O_DIRECT by taking an aligned part of a larger buffer.
    let read = |disk: &Disk, offset: u64| -> io::Result<Vec<u8>> {
        let fd = disk.file().ok_or(io::ErrorKind::NotFound)?;
        let mut buffer = vec![0u8; 8192];
        let skip = buffer.as_ptr().align_offset(4096);
        let part = buffer
            .get_mut(skip..skip + 4096)
            .ok_or(io::ErrorKind::Other)?;
        let n = rustix::io::pread(fd, &mut *part, offset)?;
        part.get(..n)
            .map(<[u8]>::to_vec)
            .ok_or_else(|| io::ErrorKind::Other.into())
    };
    for piece in pieces.iter().take(SAMPLES) {
        let both = read(file, piece.logical).and_then(|a| Ok((a, read(device, piece.physical)?)));
        let (a, b) = both.map_err(|e| format!("its beginning cannot be compared: {e}"))?;
        let n = a.len().min(b.len());
        if n == 0 || a.get(..n) != b.get(..n) {
            let at = piece.logical;
            return Err(format!(
                "its bytes at {at} are not where its file system says"
            ));
        }
    }
    Ok(())
}

fn still_holds(file: &Disk, pieces: &[Piece], whole: bool) -> Result<(), &'static str> {
    let fd = file.file().ok_or("the file is gone")?;
    let flags = rustix::fs::ioctl_getflags(fd).map_err(|_| "its flags cannot be read")?;
    if !flags.contains(IFlags::IMMUTABLE) {
        return Err("the immutable flag was taken away");
    }
    if whole {
        let now = fiemap::pieces(fd, MAX_EXTENTS).map_err(|_| "its extents cannot be fetched")?;
        if now != pieces {
            return Err("its extents moved");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
