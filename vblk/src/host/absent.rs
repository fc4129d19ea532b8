//! Disks that cannot be opened when the daemon starts, and whose guests are still there.
//!
//! After a crash, a restart or an upgrade, a server may be away, a volume inactive, or an image
//! locked by what is left of a dead process. That is one disk's trouble: the others are served at
//! once, and this one as soon as it can be, on the connection its guest has had all the time. A
//! disk nobody was connected to before is another matter: that it cannot be opened is most likely a
//! mistake in the configuration, and starting tells.
//!
//! Each is opened on a thread of its own, since open(2) may hang with its storage.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::{Duration, Instant};

use tracing::{error, info};

use super::{Host, Prepared, lock, open};
use crate::config;
use crate::disk::Disk;
use crate::events::{DISK_ABSENT, DISK_BACK};
use crate::service::{DiskStatus, ServiceError};

/// How long the start of all disks waits for one that a predecessor served.
const PATIENCE: Duration = Duration::from_secs(3);

/// A disk that is being opened.
type Opening = Receiver<Result<Disk, ServiceError>>;

/// A disk that is not served yet.
#[derive(Debug)]
pub(crate) struct Absent {
    pub(crate) config: config::Disk,
    /// Why.
    why: String,
    /// It is being opened; else it is about to be tried again.
    opening: Option<Opening>,
}

/// What became of an absent disk.
enum Tried {
    /// It is being opened.
    Opening(Option<Opening>),
    /// It is open.
    Open(Box<Disk>),
}

fn begin(config: &config::Disk) -> Result<Opening, ServiceError> {
    let (done, opening) = channel();
    let disk = config.clone();
    let thread = std::thread::Builder::new().name("open".to_owned());
    let spawned = thread.spawn(move || {
        // Nobody waits for a disk that was taken out of the configuration meanwhile.
        let _ = done.send(open(&disk));
    });
    match spawned {
        Ok(_) => Ok(opening),
        Err(source) => Err(ServiceError::Disk {
            name: config.name.clone(),
            source: source.into(),
        }),
    }
}

/// Look after one that is being opened, or begin.
fn try_once(config: &config::Disk, opening: Option<Opening>) -> Result<Tried, ServiceError> {
    let Some(opening) = opening else {
        return Ok(Tried::Opening(Some(begin(config)?)));
    };
    match opening.try_recv() {
        Err(TryRecvError::Empty) => Ok(Tried::Opening(Some(opening))),
        Err(TryRecvError::Disconnected) => Err(gone(config)),
        Ok(opened) => opened.map(|disk| Tried::Open(Box::new(disk))),
    }
}

fn gone(config: &config::Disk) -> ServiceError {
    ServiceError::Disk {
        name: config.name.clone(),
        source: "the thread that opens it ended".into(),
    }
}

impl Host {
    /// Open all `disks` of a daemon that starts, at the same time, and prepare them. Those that a
    /// predecessor served, and that cannot be opened now, are left out.
    pub(super) fn prepare_first(
        &self,
        disks: &[config::Disk],
    ) -> Result<(Vec<Prepared>, Vec<Absent>), ServiceError> {
        let opening: Result<Vec<Opening>, _> = disks.iter().map(begin).collect();
        let until = Instant::now() + PATIENCE;
        let (mut prepared, mut absent) = (Vec::new(), Vec::new());
        for (config, opening) in disks.iter().zip(opening?) {
            let missed = self.manager.has_left(config.name.as_str());
            let left = until.saturating_duration_since(Instant::now());
            let opened = match opening.recv_timeout(left) {
                Err(RecvTimeoutError::Timeout) if missed => {
                    absent.push(Absent {
                        config: config.clone(),
                        why: format!("opening it takes longer than {} s", PATIENCE.as_secs()),
                        opening: Some(opening),
                    });
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => opening.recv().ok(),
                Err(RecvTimeoutError::Disconnected) => None,
                Ok(opened) => Some(opened),
            };
            match opened.unwrap_or_else(|| Err(gone(config))) {
                Ok(disk) => prepared.push(self.prepare_open(config, Arc::new(disk))?),
                Err(error) if missed => absent.push(Absent {
                    config: config.clone(),
                    why: error.to_string(),
                    opening: None,
                }),
                Err(error) => return Err(error),
            }
        }
        Ok((prepared, absent))
    }

    /// These are left out for now.
    pub(super) fn leave_out(&self, absent: Vec<Absent>) {
        for disk in &absent {
            let (disk, why) = (&disk.config.name, &disk.why);
            error!(name: DISK_ABSENT, %disk, %why, "not served before it can be opened");
        }
        *lock(&self.absent) = absent;
    }

    /// Whether disk `config` was left out, and waits to be opened.
    pub(super) fn is_absent(&self, config: &config::Disk) -> bool {
        lock(&self.absent)
            .iter()
            .any(|disk| disk.config.same_session(config))
    }

    /// Forget what is configured no more, or otherwise; what is left is as configured now.
    pub(super) fn keep_absent(&self, configured: &[config::Disk]) {
        lock(&self.absent).retain_mut(|disk| {
            let wanted = configured.iter().find(|d| disk.config.same_session(d));
            if let Some(wanted) = wanted {
                disk.config = wanted.clone();
            }
            wanted.is_some()
        });
    }

    /// Try again; true if there are disks left to try. Each is shown as absent until it is served.
    pub(super) fn retry_absent(&self) -> bool {
        let Ok(_one_at_a_time) = self.applying.try_lock() else {
            return true;
        };
        let waiting: Vec<config::Disk> = {
            let absent = lock(&self.absent);
            absent.iter().map(|disk| disk.config.clone()).collect()
        };
        for config in waiting {
            // Nothing else takes them out meanwhile: that needs `applying` as well.
            let opening = {
                let mut absent = lock(&self.absent);
                let disk = absent.iter_mut().find(|d| d.config.name == config.name);
                disk.and_then(|disk| disk.opening.take())
            };
            let tried = try_once(&config, opening).and_then(|tried| match tried {
                Tried::Opening(opening) => Ok(opening),
                Tried::Open(open) => self.serve_late(&config, *open).map(|()| None),
            });
            let mut absent = lock(&self.absent);
            // One that is served now is not among them any more.
            let Some(disk) = absent.iter_mut().find(|d| d.config.name == config.name) else {
                continue;
            };
            match tried {
                Ok(opening) => disk.opening = opening,
                Err(error) => {
                    let why = error.to_string();
                    if why != disk.why {
                        error!(name: DISK_ABSENT, disk = %config.name, %why, "not served yet");
                    }
                    disk.why = why;
                }
            }
        }
        !lock(&self.absent).is_empty()
    }

    fn serve_late(&self, config: &config::Disk, disk: Disk) -> Result<(), ServiceError> {
        // A server that was away may have lost what a predecessor of this process did not flush.
        disk.storage().set_lost(true);
        let prepared = self.prepare_open(config, Arc::new(disk))?;
        let running = self.start_disk(prepared, None)?;
        let mut disks = lock(&self.disks);
        if let Some(server) = &running.server {
            server.go();
        }
        disks.push(running);
        lock(&self.absent).retain(|disk| disk.config.name != config.name);
        drop(disks);
        info!(name: DISK_BACK, disk = %config.name, "opened at last, and served again");
        Ok(())
    }

    /// The absent ones as the API shows them.
    pub(super) fn absent_status(&self) -> Vec<DiskStatus> {
        let absent = lock(&self.absent);
        absent.iter().map(Absent::status).collect()
    }
}

impl Absent {
    fn status(&self) -> DiskStatus {
        let config = &self.config;
        DiskStatus {
            name: config.name.clone(),
            path: config.path.to_string(),
            socket: config.socket.clone(),
            mode: config.mode,
            read_only: config.read_only,
            size_bytes: 0,
            locked_bytes: 0,
            block_size: 0,
            queues: config.queues.get(),
            limit: config.limit,
            group: config.group.clone(),
            weight: config.weight,
            cap: config.cap,
            on_error: config.on_error,
            failed: None,
            held: 0,
            connected: false,
            session: None,
            last_error: None,
            trouble: Some(format!("not served yet: {}", self.why)),
            mirror: None,
            backup: crate::backup::Backed::default(),
            stats: crate::service::DiskStats::default(),
        }
    }
}
