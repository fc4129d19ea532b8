//! Another size for a disk that is being served.
//!
//! Growing: the file grows first, then workers allow the new range, then the guest is told, so it
//! never asks for what is not there. Shrinking destroys what is cut off: the disk is brought to
//! rest, workers refuse what lies past the new end, the file is cut, then the guest is told and
//! goes on. A successor of a daemon that was killed in between takes the file's size, and tells the
//! guest if that is not what it was told last. It is for guests that have shrunk their file system
//! first, so it wants to be allowed twice: by `shrink = true` in the disk's configuration, and by
//! `--shrink`.
//!
//! A block device has the size it has: it is extended by its own tools first, and vblk looks again.

use std::sync::Arc;

use rustix::fs::{SeekFrom, ftruncate, seek};

use crate::disk::Disk;
use crate::host::{Host, lock};
use crate::pause::pause;
use crate::plane::Change;
use crate::service::{Resized, ServiceError};
use crate::tune::find;

fn refused(why: impl Into<String>) -> ServiceError {
    ServiceError::Refused(why.into())
}

impl Host {
    pub(crate) fn resize_disk(
        &self,
        name: &str,
        size: Option<u64>,
        shrink: bool,
    ) -> Result<Resized, ServiceError> {
        let (device, key, busy, may_shrink, notify) = {
            let mut disks = lock(&self.disks);
            let running = find(&mut disks, name)?;
            let notify = running.server.as_ref().map(|server| server.notifier());
            let device = Arc::clone(&running.device);
            let busy = Arc::clone(&running.busy);
            (device, running.key, busy, running.config.shrink, notify)
        };
        let _alone = busy.try_lock().map_err(|_| ServiceError::busy(name))?;
        let disk = device.disk();
        let (old, new) = (disk.size(), wanted(disk, size)?);
        let mut resized = Resized {
            old_bytes: old,
            new_bytes: new,
            told: false,
        };
        if new == old {
            return Ok(resized);
        }
        let cut = new < old;
        if cut && !(shrink && may_shrink) {
            return Err(refused(format!(
                "from {old} to {new} bytes it would lose data: allow it by `shrink = true` in the \
                 disk's configuration and by --shrink"
            )));
        }
        // A file is cut while nobody asks for what is cut off.
        let _at_rest = if cut {
            Some(pause(&device, key)?)
        } else {
            None
        };
        if !cut {
            set_length(disk, new)?;
        }
        disk.set_size(new);
        if let Some(tracker) = disk.tracker() {
            tracker.bitmap().resized(old, new);
        }
        for worker in device.workers() {
            // A worker that is gone checks nothing any more.
            let _ = worker.call(|reply| Change::Resize(key, reply));
        }
        if cut && let Err(error) = set_length(disk, new) {
            // Nobody was told yet.
            disk.set_size(old);
            for worker in device.workers() {
                let _ = worker.call(|reply| Change::Resize(key, reply));
            }
            return Err(error);
        }
        device.resized();
        resized.told = notify.is_some_and(|notify| notify.config_changed());
        tracing::info!(name: crate::events::RESIZED, disk = name, old, new, told = resized.told,
            "resized");
        Ok(resized)
    }
}

/// The size the disk is to have.
fn wanted(disk: &Disk, size: Option<u64>) -> Result<u64, ServiceError> {
    let block = disk.block();
    let there = match disk.file() {
        Some(file) => seek(file, SeekFrom::End(0))
            .map_err(|e| refused(format!("its size cannot be found: {e}")))?,
        None if disk.is_null() => size.unwrap_or(disk.size()),
        None => {
            return Err(refused(
                "only files, block devices and null disks change their size",
            ));
        }
    };
    let new = size.unwrap_or_else(|| block.floor(there));
    if new == 0 || !block.divides(new) {
        let block = block.bytes();
        return Err(refused(format!(
            "{new} bytes are not whole blocks of {block}"
        )));
    }
    if disk.is_device() && new != block.floor(there) {
        return Err(refused(format!(
            "the device has {there} bytes, not {new}: resize it first (lvextend, …), then say \
             `vblk disk resize` without a size"
        )));
    }
    if disk.read_only() && new > there {
        return Err(refused(
            "it is served read-only: grow its file by other means",
        ));
    }
    Ok(new)
}

/// Give a regular file the length `len`, unless it is longer because it is read-only.
fn set_length(disk: &Disk, len: u64) -> Result<(), ServiceError> {
    match disk.file() {
        Some(file) if !disk.is_device() && !disk.read_only() => {
            ftruncate(file, len).map_err(|e| refused(format!("its file: {e}")))
        }
        _ => Ok(()),
    }
}
