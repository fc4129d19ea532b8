//! A disk whose map of pinned extents broke is brought to rest once, so that nothing is in flight
//! by the old map when the file is let go and its blocks may move.

use std::sync::Arc;

use tracing::{info, warn};

use super::Running;
use crate::pause::pause;
use crate::storage::Storage;

/// See whether `running` needs that, and do it on a thread of its own: storage may take its time.
pub(super) fn look(running: &Running) {
    let unsettled = |storage: &Storage| match storage {
        Storage::Pinned(pinned) => pinned.is_unsettled(),
        _ => false,
    };
    if !unsettled(running.device.disk().storage()) {
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
        let name = towpath_common::session::Device::name(&*device).to_owned();
        if let Storage::Pinned(pinned) = device.disk().storage()
            && pinned.is_unsettled()
        {
            match pause(&device, key) {
                Ok(_at_rest) => {
                    pinned.settle();
                    info!(disk = name, "nothing is in flight by the old map any more");
                }
                Err(error) => warn!(disk = name, %error, "its file stays pinned"),
            }
        }
    });
    if let Err(error) = spawned {
        warn!(%error, "no thread to bring a disk to rest on");
    }
}
