//! Backups on the data plane: finding the disk, the moment of rest, the thread that does the rest.

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use towpath_common::worker::Handle;

use super::bitmap::Subject;
use super::copy::Copy;
use super::plan::Plan;
use super::{
    Backed, BackupError, BackupOrder, BackupStatus, Backups, Bitmap, Progress, Sort, State, Tracker,
};
use crate::config;
use crate::device::BlkDevice;
use crate::disk::Disk;
use crate::host::{Host, Running, lock};
use crate::pause::pause;
use crate::plane::{Change, DiskKey};
use crate::service::ServiceError;
use crate::stats::DiskShared;
use crate::tune::find;

/// How long a backup has to end once it is told to: it may wait for storage, for which its disk
/// need not.
const PATIENCE: Duration = Duration::from_secs(10);

/// The last backup or copy of a disk, if there was one.
pub(crate) type Latest = Arc<Mutex<Option<Arc<Progress>>>>;

/// What a bitmap is told of its disk.
fn subject(config: &config::Disk, disk: &Disk) -> Subject {
    let file = match disk.file() {
        Some(fd) if !disk.is_device() => fd.try_clone_to_owned().ok(),
        _ => None,
    };
    let inode = file.as_ref().and_then(|f| rustix::fs::fstat(f).ok());
    let identity = match inode {
        Some(stat) => format!("{} inode {}", config.path, stat.st_ino),
        None => config.path.to_string(),
    };
    let stamp = file.and_then(|f| super::tracker::stamp(&f.into()));
    Subject {
        identity,
        size: disk.size(),
        stamp,
    }
}

/// Give `disk`, just opened, the bitmap its configuration names.
pub(crate) fn attach(config: &config::Disk, disk: &Disk) -> Result<(), BackupError> {
    let Some(path) = &config.bitmap else {
        return Ok(());
    };
    let bitmap = Bitmap::open(path, &subject(config, disk))?;
    disk.track(|| Ok(bitmap)).map(|_| ())
}

/// What a backup's thread is given.
#[derive(Debug)]
struct Job {
    name: String,
    device: Arc<BlkDevice>,
    key: DiskKey,
    busy: Arc<Mutex<()>>,
    latest: Latest,
    shared: Arc<DiskShared>,
}

type Begun = Result<BackupStatus, ServiceError>;

fn refused(error: impl ToString) -> ServiceError {
    ServiceError::Refused(error.to_string())
}

impl Job {
    /// Everything, on a thread of its own; `begun` is told once the disk goes on.
    fn run(
        &self,
        plan: impl FnOnce(&Disk, &Tracker) -> Result<Plan, BackupError>,
        rate: Option<u64>,
        begun: &Sender<Begun>,
    ) {
        let disk = self.device.disk();
        let Ok(_alone) = self.busy.try_lock() else {
            let _ = begun.send(Err(ServiceError::busy(&self.name)));
            return;
        };
        let tracker = disk.track(|| Bitmap::in_memory(disk.size()));
        let planned = tracker.and_then(|tracker| Ok((plan(disk, &tracker)?, tracker)));
        let (plan, tracker) = match planned {
            Ok(planned) => planned,
            Err(error) => {
                let _ = begun.send(Err(refused(error)));
                return;
            }
        };
        let progress = Arc::new(Progress::new(self.first_status(&plan)));
        let began = pause(&self.device, self.key).and_then(|at_rest| {
            let began = plan.begin(disk, &tracker).map_err(refused)?;
            Ok((began, at_rest.elapsed()))
        });
        let ((sink, bytes), rested) = match began {
            Ok(began) => began,
            Err(error) => {
                plan.undo();
                let _ = begun.send(Err(error));
                return;
            }
        };
        progress.total.store(bytes, Relaxed);
        let rested = u64::try_from(rested.as_micros()).unwrap_or(u64::MAX);
        progress.pause_us.store(rested, Relaxed);
        *lock(&self.latest) = Some(Arc::clone(&progress));
        let _ = begun.send(Ok(progress.status()));
        let copy = Copy {
            disk: Arc::clone(disk),
            tracker: Arc::clone(&tracker),
            progress: Arc::clone(&progress),
            size: disk.size(),
            rate,
            worker: self.only_worker(),
        };
        let totals = &self.shared.backup;
        let result = copy.run(sink, totals);
        let result = result.and_then(|()| match plan.made() {
            Some(made) => tracker.bitmap().succeed(made),
            None => Ok(()),
        });
        self.tell(&plan, &progress, &result);
        let count = if result.is_ok() {
            &totals.done
        } else {
            &totals.failed
        };
        count.fetch_add(1, Relaxed);
        progress.finish(&result);
    }

    /// The worker, if nobody else may read the disk.
    fn only_worker(&self) -> Option<(Handle<Change>, DiskKey)> {
        let only = self.device.disk().shape().one_worker;
        let worker = self.device.workers().first().filter(|_| only)?;
        Some((worker.clone(), self.key))
    }

    fn first_status(&self, plan: &Plan) -> BackupStatus {
        let made = plan.made();
        BackupStatus {
            sort: plan.sort,
            state: State::Running,
            to: plan.to.clone(),
            manifest: made.as_ref().map(|m| m.manifest.clone()),
            id: made.map(|m| m.id),
            total_bytes: 0,
            done_bytes: 0,
            copied_first: 0,
            pause_us: 0,
            note: plan.note.clone(),
            error: None,
            took_ms: 0,
        }
    }

    fn tell(&self, plan: &Plan, progress: &Progress, result: &Result<(), BackupError>) {
        let (disk, what, to) = (&self.name, plan.sort.name(), &plan.to);
        match result {
            Ok(()) => {
                let bytes = progress.done.load(Relaxed);
                tracing::info!(name: crate::events::BACKUP_DONE, disk, what, to, bytes, "copied");
            }
            Err(error) => {
                if plan.sort == Sort::Copy {
                    plan.undo();
                }
                tracing::error!(name: crate::events::BACKUP_FAILED, disk, what, to, %error,
                    "given up");
            }
        }
    }
}

impl Host {
    fn job(&self, name: &str) -> Result<Job, ServiceError> {
        let mut disks = lock(&self.disks);
        let running = find(&mut disks, name)?;
        Ok(Job {
            name: name.to_owned(),
            device: Arc::clone(&running.device),
            key: running.key,
            busy: Arc::clone(&running.busy),
            latest: Arc::clone(&running.latest),
            shared: Arc::clone(&running.shared),
        })
    }

    fn start(
        &self,
        name: &str,
        rate: Option<u64>,
        plan: impl FnOnce(&Disk, &Tracker) -> Result<Plan, BackupError> + Send + 'static,
    ) -> Begun {
        let job = self.job(name)?;
        let (begun, begins) = channel();
        let thread = std::thread::Builder::new().name("backup".to_owned());
        thread
            .spawn(move || job.run(plan, rate, &begun))
            .map_err(refused)?;
        let gone = |_| refused("its thread ended; the log says why");
        begins.recv().map_err(gone)?
    }

    /// Copy the disk `name` as it is now to the new file `path`, while it goes on.
    pub(crate) fn copy_disk(&self, name: &str, path: &Path) -> Begun {
        let path = path.to_owned();
        self.start(name, None, move |disk, _| Plan::copy(disk, &path))
    }

    fn latest(&self, name: &str) -> Result<Arc<Progress>, ServiceError> {
        let latest = Arc::clone(&find(&mut lock(&self.disks), name)?.latest);
        let progress = lock(&latest).clone();
        progress.ok_or_else(|| refused(format!("no backup of disk {name} was begun")))
    }
}

/// What is to be shown of a disk's backups.
pub(crate) fn show(running: &Running) -> Backed {
    let disk = running.device.disk();
    let bitmap = disk.tracker().map(|tracker| tracker.bitmap());
    let known = bitmap.filter(|bitmap| bitmap.last().is_ok());
    let totals = &running.shared.backup;
    Backed {
        changed_bytes: known.map(|bitmap| bitmap.changed_bytes(disk.size())),
        latest: lock(&running.latest).as_ref().map(|p| p.status()),
        done: totals.done.load(Relaxed),
        failed: totals.failed.load(Relaxed),
        bytes: totals.bytes.load(Relaxed),
        copied_first: totals.first.load(Relaxed),
    }
}

/// End what is under way on a disk that is being stopped; it can be resumed.
pub(crate) fn end(running: &Running) {
    let Some(progress) = lock(&running.latest).clone() else {
        return;
    };
    progress.cancel();
    wait(&progress);
}

fn wait(progress: &Progress) {
    let until = Instant::now() + PATIENCE;
    while progress.is_running() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Backups for Host {
    fn backup(&self, name: &str, order: &BackupOrder) -> Begun {
        let (called, order) = (name.to_owned(), order.clone());
        self.start(name, order.rate, move |disk, tracker| {
            Plan::new(&called, disk, tracker, &order)
        })
    }

    fn backup_status(&self, name: &str) -> Begun {
        Ok(self.latest(name)?.status())
    }

    fn cancel_backup(&self, name: &str) -> Begun {
        let progress = self.latest(name)?;
        if !progress.is_running() {
            return Err(refused(format!("no backup of disk {name} is under way")));
        }
        progress.cancel();
        wait(&progress);
        Ok(progress.status())
    }
}
