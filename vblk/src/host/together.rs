//! Disks of one configuration are started together, or what was is put back; and end together, each
//! on a thread of its own, so that one whose storage hangs holds up no other, nor the daemon's end.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use towpath_common::worker::{Handle, Worker};
use tracing::error;

use super::{Host, Prepared, Running, lock};
use crate::backup;
use crate::plane::Change;
use crate::service::ServiceError;
use crate::storage::Storage;

/// How long disks have to complete what is in flight when the daemon ends. What is left then stands
/// in the in-flight tables, for the next one to do.
const LEAVE: Duration = Duration::from_secs(10);

/// Stop serving a disk: its requests complete, however long that takes.
pub(super) fn stop(running: &mut Running, workers: &[Handle<Change>]) {
    backup::end(running);
    let _until_stopped = running.device.disk().storage().hurry();
    if let Some(server) = running.server.take() {
        running.connections += server.status().sessions;
        server.stop();
    }
    for worker in workers {
        let _ = worker.call(|reply| Change::RemoveDisk(running.key, reply));
    }
    if let Storage::Mirror(mirror) = running.device.disk().storage() {
        mirror.shared().wait_for_rest();
    }
}

impl Host {
    pub(super) fn handles(&self) -> Vec<Handle<Change>> {
        self.workers.iter().map(Worker::handle).collect()
    }

    /// Stop all disks, leaving sessions to a successor if there are `kept`; those whose storage
    /// hangs are left as they are.
    pub(super) fn end_all(&self, kept: bool) {
        let all: Vec<Running> = lock(&self.disks).drain(..).collect();
        let mut waiting: Vec<_> = all.iter().map(|d| d.config.name.clone()).collect();
        let (done, ended) = channel();
        for mut disk in all {
            let (workers, done) = (self.handles(), done.clone());
            let thread = std::thread::Builder::new().name("end".to_owned());
            let spawned = thread.spawn(move || {
                if let Some(server) = disk.server.take_if(|_| kept) {
                    server.leave();
                }
                stop(&mut disk, &workers);
                let name = disk.config.name.clone();
                // Its files are closed when it is told.
                drop(disk);
                let _ = done.send(name);
            });
            // Without a thread its disk was dropped, and so stopped, here.
            if let Err(error) = spawned {
                error!(%error, "no thread to end a disk on");
            }
        }
        drop(done);
        let until = Instant::now() + LEAVE;
        while !waiting.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(name) = ended.recv_timeout(left) else {
                break;
            };
            waiting.retain(|n| *n != name);
        }
        if !waiting.is_empty() {
            let disks: Vec<&str> = waiting.iter().map(|n| n.as_str()).collect();
            let disks = disks.join(", ");
            error!(%disks, "their storage does not answer: left with requests in flight");
            self.left.store(true, Relaxed);
        }
    }

    /// Start all that was prepared, or none of it; `replaced` is what disks of the same names did.
    pub(super) fn start_all(
        &self,
        prepared: Vec<Prepared>,
        replaced: &[Running],
    ) -> Result<(), ServiceError> {
        let mut started = Vec::new();
        for prepared in prepared {
            let before = replaced
                .iter()
                .find(|r| r.config.name == prepared.config.name);
            let before = before.map(|r| (Arc::clone(&r.shared), r.connections));
            match self.start_disk(prepared, before) {
                Ok(disk) => started.push(disk),
                Err(e) => {
                    for mut disk in started {
                        self.stop_disk(&mut disk);
                    }
                    return Err(e);
                }
            }
        }
        lock(&self.disks).append(&mut started);
        Ok(())
    }

    /// Serve again what was stopped for a configuration that could not be applied.
    pub(super) fn put_back(&self, replaced: Vec<Running>) {
        for old in replaced {
            let Running {
                config,
                device,
                shared,
                connections,
                ..
            } = old;
            let name = config.name.clone();
            let disk = Arc::clone(device.disk());
            let prepared = Prepared {
                config,
                disk,
                listening: None,
            };
            match self.start_disk(prepared, Some((shared, connections))) {
                Ok(disk) => lock(&self.disks).push(disk),
                Err(error) => error!(disk = %name, %error, "disk lost by a failed reload"),
            }
        }
    }

    /// The workers, by index.
    pub(crate) fn workers(&self) -> &[Worker<Change>] {
        &self.workers
    }
}
