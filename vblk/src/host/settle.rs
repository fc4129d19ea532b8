//! A disk whose map broke is brought to rest once, so that nothing is in flight by the old map on
//! any worker: a pinned file is let go then, and its blocks may move; what was written by the old
//! segments of a volume is made durable.

use std::io;
use std::sync::Arc;

use tracing::{info, warn};

use super::Running;
use crate::pause::pause;
use crate::storage::Storage;

fn is_unsettled(storage: &Storage) -> bool {
    match storage {
        Storage::Pinned(pinned) => pinned.watch().is_unsettled(),
        Storage::Segments(segments) => segments.watch().is_unsettled(),
        _ => false,
    }
}

/// Let go what was kept for requests in flight by the old map, of which there are none.
fn settle(storage: &Storage) -> io::Result<()> {
    match storage {
        Storage::Pinned(pinned) => pinned.settle(),
        Storage::Segments(segments) => return segments.settle(),
        _ => {}
    }
    Ok(())
}

/// See whether `running` needs that, and do it on a thread of its own: storage may take its time.
pub(super) fn look(running: &Running) {
    if !is_unsettled(running.device.disk().storage()) {
        return;
    }
    let (device, key) = (Arc::clone(&running.device), running.key);
    // Whoever has the disk for itself now is done soon; the next look comes after that.
    let busy = Arc::clone(&running.busy);
    let thread = std::thread::Builder::new().name("settle".to_owned());
    let spawned = thread.spawn(move || {
        let Ok(_alone) = busy.try_lock() else {
            return;
        };
        let storage = device.disk().storage();
        if !is_unsettled(storage) {
            return;
        }
        let name = towpath_common::session::Device::name(&*device).to_owned();
        let _at_rest = match pause(&device, key) {
            Ok(at_rest) => at_rest,
            Err(error) => {
                warn!(disk = name, %error, "its old map may be in use still");
                return;
            }
        };
        match settle(storage) {
            Ok(()) => info!(disk = name, "nothing is in flight by the old map any more"),
            Err(error) => {
                // The kernel tells of it once: no later FLUSH may succeed.
                device.disk().fail_sync();
                warn!(disk = name, %error, "what was written by the old map may be lost");
            }
        }
    });
    if let Err(error) = spawned {
        warn!(%error, "no thread to bring a disk to rest on");
    }
}
