//! Mirrors as operators see them: how their disks stand, taking one out, bringing one back.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::host::{Host, lock};
use crate::service::ServiceError;
use crate::storage::Storage;
use crate::storage::mirror::{Mirror, MirrorError, Standing};
use crate::tune::find;

/// What to do with a disk of a mirror: the body of `POST /v1/disks/{name}/mirror`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum MirrorOrder {
    /// Use it no more: its number, counted from 1, or its name.
    Fail(String),
    /// Use it again, and copy what it missed.
    Add(String),
    /// Use it again, and copy everything: it is another disk, or was written meanwhile.
    AddFull(String),
}

/// How a mirror is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MirrorStatus {
    /// Its disks, in the order of the configuration.
    pub disks: Vec<MirrorDiskStatus>,
    /// Bytes in regions in which they may differ, should the daemon be killed now.
    pub marked_bytes: u64,
    /// Bytes copied to disks that had to catch up, since it was attached.
    pub copied_bytes: u64,
}

/// How a disk of a mirror is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MirrorDiskStatus {
    /// As the configuration names it.
    pub path: String,
    /// How it stands.
    pub state: MirrorDiskState,
    /// Why it failed: an errno, or 0 if an operator took it out.
    pub errno: i32,
    /// Operations that failed.
    pub errors: u64,
    /// Reads it did.
    pub reads: u64,
    /// Writes and deallocations it did.
    pub writes: u64,
    /// What a read of it takes, about.
    pub latency_ns: u64,
    /// Bytes it has to catch up with.
    pub behind_bytes: u64,
}

/// How a disk of a mirror stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MirrorDiskState {
    /// It is not used.
    Failed,
    /// It gets what is written and is not read yet.
    Behind,
    /// It has everything.
    Current,
}

fn mirror(disk: &Disk) -> Option<&Mirror> {
    match disk.storage() {
        Storage::Mirror(mirror) => Some(mirror),
        _ => None,
    }
}

/// How `disk` is, if it is a mirror.
pub(crate) fn status(disk: &Disk) -> Option<MirrorStatus> {
    let shared = mirror(disk)?.shared();
    let region = shared.region.load(Relaxed);
    let bytes = |regions: usize| (regions as u64).saturating_mul(region);
    let disks = shared.names.iter().zip(&shared.gauges);
    let disks = disks.map(|(name, gauge)| {
        let state = match gauge.standing() {
            Standing::Failed => MirrorDiskState::Failed,
            Standing::Behind => MirrorDiskState::Behind,
            Standing::Current => MirrorDiskState::Current,
        };
        MirrorDiskStatus {
            path: name.clone(),
            state,
            errno: if state == MirrorDiskState::Failed {
                gauge.errno.load(Relaxed)
            } else {
                0
            },
            errors: gauge.errors.load(Relaxed),
            reads: gauge.reads.load(Relaxed),
            writes: gauge.writes.load(Relaxed),
            latency_ns: gauge.latency.load(Relaxed),
            behind_bytes: bytes(gauge.behind.load(Relaxed)),
        }
    });
    Some(MirrorStatus {
        disks: disks.collect(),
        marked_bytes: bytes(shared.dirty.load(Relaxed)),
        copied_bytes: shared.copied.load(Relaxed),
    })
}

impl Host {
    pub(crate) fn order_mirror(&self, name: &str, order: &MirrorOrder) -> Result<(), ServiceError> {
        let device = {
            let mut disks = lock(&self.disks);
            Arc::clone(&find(&mut disks, name)?.device)
        };
        let refused = |e: MirrorError| ServiceError::Refused(e.to_string());
        let mirror = mirror(device.disk())
            .ok_or_else(|| ServiceError::Refused(format!("disk {name} is no mirror")))?;
        let (MirrorOrder::Fail(which) | MirrorOrder::Add(which) | MirrorOrder::AddFull(which)) =
            order;
        let index = mirror.find(which).map_err(refused)?;
        match order {
            MirrorOrder::Fail(_) => mirror.fail(index),
            MirrorOrder::Add(_) => mirror.add(index, false),
            MirrorOrder::AddFull(_) => mirror.add(index, true),
        }
        .map_err(refused)
    }
}
