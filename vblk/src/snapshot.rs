//! A copy of a disk as it is at one moment, while it is served.
//!
//! The disk is brought to rest, what it holds is made durable, the file is cloned (FICLONE: the
//! file system shares the blocks, so that takes no longer for a large file), and the disk goes on.
//! The guest sees requests that took a little longer. What it had not flushed may be in the
//! snapshot, as after a power cut: its file system recovers, as it would then.
//!
//! Where that cannot be done (another file system, one that does not clone, no file), the disk is
//! copied block by block as of the moment, as for a backup ([`crate::backup`]): the rest is as
//! short, the copy takes its time behind the guest's back.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, fdatasync, fstat, ioctl_ficlone, open};

use crate::config::Source;
use crate::device::BlkDevice;
use crate::disk::Disk;
use crate::events::SNAPSHOT_TAKEN;
use crate::host::{Host, lock};
use crate::pause::pause;
use crate::plane::DiskKey;
use crate::service::{ServiceError, Snapshot};
use crate::storage::Storage;
use crate::storage::lvm::{self, Volume};
use crate::tune::find;

/// The logical volume that a disk is.
fn volume_of(source: &Source) -> Option<Volume> {
    match source {
        Source::Lvm(volume) => Some(volume.clone()),
        _ => None,
    }
}

/// A snapshot in the volume's group: LVM's own, thin or classic.
fn snapshot_volume(
    device: &Arc<BlkDevice>,
    key: DiskKey,
    volume: &Volume,
    path: &Path,
) -> Result<Snapshot, ServiceError> {
    let name = path.to_str().and_then(|p| p.strip_prefix("lvm:"));
    let name = name.and_then(Volume::parse).ok_or_else(|| {
        refused(format!(
            "a snapshot of {volume} is a volume: write lvm:{}/NAME",
            volume.vg
        ))
    })?;
    let disk = device.disk();
    if let Storage::Segments(_) = disk.storage() {
        let why =
            "the disk is served by its segments, past a snapshot; serve it with map = \"file\"";
        return Err(refused(why));
    }
    let at_rest = pause(device, key)?;
    if let Some(file) = disk.file()
        && let Err(error) = fdatasync(file)
    {
        disk.fail_sync();
        return Err(refused(format!(
            "its device cannot be made durable: {error}"
        )));
    }
    lvm::snapshot(volume, &name).map_err(|e| refused(e.to_string()))?;
    let pause_us = u64::try_from(at_rest.elapsed().as_micros()).unwrap_or(u64::MAX);
    tracing::info!(name: SNAPSHOT_TAKEN, %volume, snapshot = %name, pause_us, "snapshot taken");
    Ok(Snapshot {
        bytes: disk.size(),
        pause_us,
        copying: false,
    })
}

fn refused(why: impl Into<String>) -> ServiceError {
    ServiceError::Refused(why.into())
}

impl Host {
    pub(crate) fn snapshot_disk(&self, name: &str, path: &Path) -> Result<Snapshot, ServiceError> {
        let (device, key, busy, volume) = {
            let mut disks = lock(&self.disks);
            let running = find(&mut disks, name)?;
            (
                Arc::clone(&running.device),
                running.key,
                Arc::clone(&running.busy),
                volume_of(&running.config.path),
            )
        };
        let alone = busy.try_lock().map_err(|_| ServiceError::busy(name))?;
        if let Some(volume) = volume {
            return snapshot_volume(&device, key, &volume, path);
        }
        let disk = device.disk();
        if !path.is_absolute() {
            let path = path.display();
            return Err(refused(format!(
                "{path} is not absolute: the daemon has a place of its own"
            )));
        }
        let target = create(path)?;
        if !can_clone(disk, &target, path) {
            // It is ours and holds nothing; the copy makes its own.
            let _ = std::fs::remove_file(path);
            drop(alone);
            let begun = self.copy_disk(name, path)?;
            return Ok(Snapshot {
                bytes: disk.size(),
                pause_us: begun.pause_us,
                copying: true,
            });
        }
        let taken = pause(&device, key).and_then(|at_rest| {
            clone(disk, &target)?;
            Ok(at_rest.elapsed())
        });
        let taken = taken.and_then(|paused| settle(&target, path).map(|()| paused));
        match taken {
            Ok(paused) => {
                let pause_us = u64::try_from(paused.as_micros()).unwrap_or(u64::MAX);
                tracing::info!(name: SNAPSHOT_TAKEN, disk = name, path = %path.display(), pause_us,
                    "snapshot taken");
                Ok(Snapshot {
                    copying: false,
                    bytes: disk.size(),
                    pause_us,
                })
            }
            Err(error) => {
                // It is ours and holds nothing.
                let _ = std::fs::remove_file(path);
                Err(error)
            }
        }
    }
}

/// An empty file that was not there before.
fn create(path: &Path) -> Result<File, ServiceError> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create_new(true).mode(0o600);
    let failed = |e| refused(format!("cannot create {}: {e}", path.display()));
    options.open(path).map_err(failed)
}

/// Clone what is durable of `disk`, which is at rest.
fn clone(disk: &Disk, target: &File) -> Result<(), ServiceError> {
    let Some(source) = disk.file() else {
        return Err(refused("there is no file behind it"));
    };
    if let Err(error) = fdatasync(source) {
        // What the pages held is lost, as after a FLUSH that failed.
        disk.fail_sync();
        return Err(refused(format!("its file cannot be made durable: {error}")));
    }
    ioctl_ficlone(target, source).map_err(|e| refused(format!("cannot clone its file: {e}")))
}

/// True if the file system that the disk's file and `target` are on clones files: tried with two
/// that have no names.
fn can_clone(disk: &Disk, target: &File, path: &Path) -> bool {
    let Some(source) = disk.file().filter(|_| !disk.is_device()) else {
        return false;
    };
    let device = |fd: BorrowedFd<'_>| fstat(fd).map(|s| s.st_dev).ok();
    if device(source) != device(target.as_fd()) {
        return false;
    }
    let dir = path.parent().unwrap_or(path);
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let nameless = || open(dir, flags, Mode::RUSR | Mode::WUSR);
    let (Ok(one), Ok(other)) = (nameless(), nameless()) else {
        return false;
    };
    rustix::io::pwrite(&one, &[1; 4096], 0).is_ok() && ioctl_ficlone(&other, &one).is_ok()
}

/// Make the snapshot and its name durable; the disk goes on meanwhile.
fn settle(target: &File, path: &Path) -> Result<(), ServiceError> {
    let failed = |e| refused(format!("cannot make {} durable: {e}", path.display()));
    target.sync_all().map_err(failed)?;
    let parent = path.parent().unwrap_or(path);
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(failed)
}
