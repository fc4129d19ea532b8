//! A data plane that does nothing, for tests of the control plane: it accepts every configuration
//! unless told otherwise and shows made-up figures.

#![allow(
    clippy::unwrap_used,
    reason = "for tests alone; a lock is poisoned only after another failure"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use towpath_common::config::Name;

use crate::backup::{Backed, Backups};
use crate::config::{Config, Disk};
use crate::mirror::{MirrorDiskState, MirrorDiskStatus, MirrorOrder, MirrorStatus};
use crate::service::{
    Direction, DiskStats, DiskStatus, Failed, GroupStatus, Latency, QueueStats, QueueStatus,
    Report, RequestType, Resized, Service, ServiceError, SessionStatus, SlowRequest, Snapshot,
    WorkerStatus,
};
use crate::settings::Settings;

/// Two workers, and a connected front-end on every disk.
#[derive(Debug, Default)]
pub struct FakeService {
    disks: Mutex<Vec<Disk>>,
    steps: [AtomicU64; 2],
}

impl FakeService {
    /// A disk of this name cannot be set up.
    pub const REFUSED: &str = "refused";
    /// A disk of this name comes with a warning.
    pub const ODD: &str = "odd";

    /// While a disk has this name, a drain never ends.
    pub const STUCK: &str = "stuck";

    /// Lets a worker make progress.
    pub fn step(&self, worker: usize) {
        self.steps[worker].fetch_add(1, Ordering::Relaxed);
    }

    fn status(disk: &Disk) -> DiskStatus {
        let queues = vec![QueueStatus {
            size: 128,
            enabled: true,
            running: true,
            in_flight: 3,
            ..QueueStatus::default()
        }];
        let latency = Latency {
            count: 4,
            sum_ns: 4_000,
            p50_ns: 1_000,
            p90_ns: 1_000,
            p99_ns: 2_000,
            p99_9_ns: 2_000,
            max_ns: 2_000,
            buckets: vec![(1_024, 3), (2_048, 4)],
        };
        let stats = QueueStats {
            requests: BTreeMap::from([(RequestType::Read, 4), (RequestType::Flush, 1)]),
            bytes: BTreeMap::from([(Direction::Read, 16_384)]),
            errors: BTreeMap::from([(5, 2), (999, 1)]),
            refused: 7,
            notifications_sent: 8,
            notifications_suppressed: 9,
            ..QueueStats::default()
        };
        DiskStatus {
            name: disk.name.clone(),
            path: disk.path.to_string(),
            socket: disk.socket.clone(),
            mode: disk.mode,
            read_only: disk.read_only,
            size_bytes: 4 << 30,
            locked_bytes: 0,
            block_size: 512,
            queues: disk.queues.get(),
            limit: disk.limit,
            group: disk.group.clone(),
            weight: disk.weight,
            cap: disk.cap,
            on_error: disk.on_error,
            failed: Some(Failed::Flush),
            held: 2,
            connected: true,
            session: Some(SessionStatus {
                virtio_features: vec!["VIRTIO_F_VERSION_1".into(), "VIRTIO_BLK_F_FLUSH".into()],
                protocol_features: vec!["MQ".into()],
                memory_bytes: 512 << 20,
                memory_registered: true,
                queues,
                ..SessionStatus::default()
            }),
            last_error: None,
            trouble: None,
            mirror: Some(mirror()),
            backup: Backed {
                changed_bytes: Some(1 << 20),
                ..Backed::default()
            },
            stats: DiskStats {
                connections: 1,
                storage_losses: 2,
                queues: vec![stats],
                ring_broken: BTreeMap::from([("loop".to_owned(), 1)]),
                stages: BTreeMap::from([("device".to_owned(), latency.clone())]),
                latency: BTreeMap::from([(RequestType::Read, latency)]),
                holds: 5,
                throttled_ns: 3_000_000,
            },
        }
    }
}

/// A mirror with a disk that failed.
fn mirror() -> MirrorStatus {
    let disk = |path: &str, state, errno, behind_bytes| MirrorDiskStatus {
        path: path.to_owned(),
        state,
        errno,
        errors: 3,
        reads: 1,
        writes: 2,
        latency_ns: 1000,
        behind_bytes,
    };
    MirrorStatus {
        disks: vec![
            disk("/dev/a", MirrorDiskState::Current, 0, 0),
            disk("/dev/b", MirrorDiskState::Failed, 5, 1 << 20),
        ],
        marked_bytes: 1 << 20,
        copied_bytes: 0,
    }
}
impl Backups for FakeService {}

impl Service for FakeService {
    fn apply(&self, config: &Config) -> Result<Report, ServiceError> {
        let named = |name: &str| config.disks.iter().find(|disk| disk.name.as_str() == name);
        if let Some(disk) = named(Self::REFUSED) {
            return Err(ServiceError::Disk {
                name: disk.name.clone(),
                source: "no".into(),
            });
        }
        *self.disks.lock().unwrap() = config.disks.clone();
        let odd = |disk: &Disk| format!("disk {} is odd", disk.name);
        Ok(Report {
            warnings: named(Self::ODD).map(odd).into_iter().collect(),
        })
    }

    fn set_disk(&self, name: &str, settings: &Settings) -> Result<(), ServiceError> {
        let mut disks = self.disks.lock().unwrap();
        let disk = disks.iter_mut().find(|disk| disk.name.as_str() == name);
        let disk = disk.ok_or_else(|| ServiceError::unknown("disk", name, &["a"]))?;
        disk.limit = settings.limit(disk.limit).map_err(ServiceError::Setting)?;
        Ok(())
    }

    fn set_group(&self, name: &str, _: &Settings) -> Result<(), ServiceError> {
        Err(ServiceError::unknown("group", name, &["gold"]))
    }

    fn clear_disk(&self, name: &str) -> Result<(), ServiceError> {
        let disks = self.disks.lock().unwrap();
        let known = disks.iter().any(|disk| disk.name.as_str() == name);
        let unknown = || ServiceError::unknown("disk", name, &["a"]);
        known.then_some(()).ok_or_else(unknown)
    }

    fn slow(&self, _: Option<&str>) -> Result<Vec<SlowRequest>, ServiceError> {
        Ok(Vec::new())
    }

    fn resize(&self, _: &str, size: Option<u64>, shrink: bool) -> Result<Resized, ServiceError> {
        let new_bytes = size.unwrap_or(4 << 30);
        if new_bytes < 4 << 30 && !shrink {
            return Err(ServiceError::Refused("no --shrink".to_owned()));
        }
        Ok(Resized {
            old_bytes: 4 << 30,
            new_bytes,
            told: false,
        })
    }

    fn snapshot(&self, _: &str, _: &Path) -> Result<Snapshot, ServiceError> {
        Ok(Snapshot {
            copying: false,
            bytes: 4 << 30,
            pause_us: 1_500,
        })
    }

    fn mirror(&self, name: &str, _: &MirrorOrder) -> Result<(), ServiceError> {
        Err(ServiceError::Refused(format!("disk {name} is no mirror")))
    }

    fn groups(&self) -> Vec<GroupStatus> {
        Vec::new()
    }

    fn disks(&self) -> Vec<DiskStatus> {
        self.disks
            .lock()
            .unwrap()
            .iter()
            .map(Self::status)
            .collect()
    }

    fn workers(&self) -> Vec<WorkerStatus> {
        let worker = |(index, steps): (usize, &AtomicU64)| WorkerStatus {
            index,
            steps: steps.load(Ordering::Relaxed),
            busy_ratio: 0.25,
            ..WorkerStatus::default()
        };
        self.steps.iter().enumerate().map(worker).collect()
    }

    fn drain(&self) {
        while self
            .disks
            .lock()
            .unwrap()
            .iter()
            .any(|disk| disk.name.as_str() == Self::STUCK)
        {
            std::thread::park();
        }
    }
}

/// The names of disks, for comparison.
pub fn names(names: &[&str]) -> Vec<Name> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}
