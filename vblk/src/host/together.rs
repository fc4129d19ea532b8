//! Disks of one configuration are started together, or what was is put back.

use std::sync::Arc;

use towpath_common::worker::Worker;
use tracing::error;

use super::{Host, Prepared, Running, lock};
use crate::plane::Change;
use crate::service::ServiceError;

impl Host {
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
