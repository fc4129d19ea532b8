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
//! So is an export, which is connected to anew then; the disk is flushed and at rest for that.
//! What is behind a disk, and what of it can be given another length, is [`Room`]'s.

use std::sync::Arc;

use crate::device::BlkDevice;
use crate::host::{Host, lock};
use crate::pause::pause;
use crate::plane::{Change, DiskKey};
use crate::service::{Resized, ServiceError};
use crate::storage::room::{Room, RoomError};
use crate::tune::find;

fn refused(why: impl Into<String>) -> ServiceError {
    ServiceError::Refused(why.into())
}

impl From<RoomError> for ServiceError {
    fn from(error: RoomError) -> ServiceError {
        ServiceError::Refused(error.to_string())
    }
}

impl Host {
    pub(crate) fn resize_disk(
        &self,
        name: &str,
        size: Option<u64>,
        shrink: bool,
    ) -> Result<Resized, ServiceError> {
        let (device, key, busy, config, notify) = {
            let mut disks = lock(&self.disks);
            let running = find(&mut disks, name)?;
            let notify = running.server.as_ref().map(|server| server.notifier());
            let device = Arc::clone(&running.device);
            let busy = Arc::clone(&running.busy);
            (device, running.key, busy, running.config.clone(), notify)
        };
        let _alone = busy.try_lock().map_err(|_| ServiceError::busy(name))?;
        let disk = device.disk();
        let room = Room::of(disk, &config.path)?;
        let (old, new) = (disk.size(), size.unwrap_or_else(|| room.size()));
        room.check(new)?;
        let mut resized = Resized {
            old_bytes: old,
            new_bytes: new,
            told: false,
        };
        if new == old {
            return Ok(resized);
        }
        let cut = new < old;
        if cut && !(shrink && config.shrink) {
            return Err(refused(format!(
                "from {old} to {new} bytes it would lose data: allow it by `shrink = true` in the \
                 disk's configuration and by --shrink"
            )));
        }
        let expected = if cut { None } else { room.expect(new) };
        // A file is cut while nobody asks for what is cut off, and connections are made anew while
        // nothing is in flight on them.
        let at_rest = if cut || expected.is_some() {
            Some(pause(&device, key)?)
        } else {
            None
        };
        if let (Some(at_rest), Some(_)) = (&at_rest, &expected) {
            at_rest.flush()?;
        }
        if !cut {
            room.grow(new)?;
        }
        if let Some(expected) = expected {
            expected.renew();
        }
        allow(&device, key, new);
        if cut && let Err(error) = room.cut(new) {
            // Nobody was told yet.
            allow(&device, key, old);
            return Err(error.into());
        }
        device.resized();
        resized.told = notify.is_some_and(|notify| notify.config_changed());
        tracing::info!(name: crate::events::RESIZED, disk = name, old, new, told = resized.told,
            "resized");
        Ok(resized)
    }
}

/// Let requests go as far as `size` from now on, and no farther.
fn allow(device: &BlkDevice, key: DiskKey, size: u64) {
    let disk = device.disk();
    let old = disk.size();
    disk.set_size(size);
    if let Some(tracker) = disk.tracker() {
        tracker.bitmap().resized(old, size);
    }
    for worker in device.workers() {
        // A worker that is gone checks nothing any more.
        let _ = worker.call(|reply| Change::Resize(key, reply));
    }
}
