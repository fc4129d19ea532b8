//! The data plane as a whole: workers, disks, and the sockets they are served at.
//!
//! Applying a configuration opens and binds everything new before it touches anything old; what did
//! not change is left alone, its sessions go on. A disk keeps its [`Disk`] (the open file and its
//! lock) as long as nothing about the file itself changes, so that a new socket or queue count does
//! not close it.

mod absent;
mod settle;
mod together;
mod workers;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use towpath_common::config::{Cap, CpuId, Poll, SocketMode, Weight};
use towpath_common::keep;
use towpath_common::sandbox::landlock::hinted;
use towpath_common::session::{Endpoint, Keeping, Listening, Mode, Server};
use towpath_common::worker::{Handle, Idle, SPIN, Worker, warn_if_crowded};
use tracing::warn;

use crate::backup;
use crate::config::{self, Config};
use crate::device::BlkDevice;
use crate::disk::Disk;
use crate::engine::Kind;
use crate::keeper::Keeper;
use crate::mirror::MirrorOrder;
use crate::monitor::{self, Seen};
use crate::plane::{Change, DiskKey, NewDisk};
use crate::service::{
    DiskStatus, GroupStatus, Report, Resized, Service, ServiceError, SlowRequest, Snapshot,
    WorkerStatus,
};
use crate::settings::Settings;
use crate::stats::{DiskShared, Events};
use crate::status;
use crate::storage;
use crate::tune::{Limited, Shared, share};

/// A disk being served.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) config: config::Disk,
    pub(crate) key: DiskKey,
    pub(crate) device: Arc<BlkDevice>,
    pub(crate) shared: Arc<DiskShared>,
    pub(crate) server: Option<Server>,
    /// Sessions of earlier servers of the same disk.
    pub(crate) connections: u64,
    /// Held by what wants the disk for itself: a resize, a snapshot, a backup.
    pub(crate) busy: Arc<Mutex<()>>,
    /// The last backup or copy of it.
    pub(crate) latest: backup::Latest,
    /// Limits as they are now.
    pub(crate) limited: Limited,
    /// Weight and cap as they are now.
    pub(crate) weight: Weight,
    pub(crate) cap: Option<Cap>,
}

/// The data plane.
#[derive(Debug)]
pub struct Host {
    workers: Vec<Worker<Change>>,
    /// What they do I/O with.
    engine: Kind,
    /// Who keeps sessions for a successor of this process.
    manager: keep::Keeper,
    /// Held while a configuration is applied, however long storage takes.
    pub(crate) applying: Mutex<()>,
    /// Held for moments only: the control thread looks at it.
    pub(crate) disks: Arc<Mutex<Vec<Running>>>,
    pub(crate) groups: Mutex<Vec<Shared>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Disks that could not be opened at start.
    absent: Mutex<Vec<absent::Absent>>,
    /// A configuration was applied before.
    begun: AtomicBool,
    next_key: AtomicU64,
    stop: Arc<AtomicBool>,
    monitor: Option<JoinHandle<()>>,
    keeper: Keeper,
    /// Disks were left with requests in flight that their storage does not end.
    left: AtomicBool,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // State is only ever replaced whole: what a panicking thread left is consistent.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Start the workers; no disk is served yet. Sessions are kept by `manager`, and go on from there.
///
/// # Errors
/// [`ServiceError::Worker`] if one cannot start (no io_uring, no such processor).
pub fn start(config: &Config, manager: keep::Keeper) -> Result<Arc<dyn Service>, ServiceError> {
    let settings = &config.daemon;
    let engine = Kind::choose(config.process.engine)?;
    tracing::info!(engine = engine.name(), "who does the I/O");
    let events = Events::default();
    let idle = match settings.poll {
        Poll::Adaptive => Idle::Adaptive(SPIN),
        Poll::Busy => Idle::Busy,
        Poll::Interrupt => Idle::Interrupt,
    };
    let cpus = settings.cpus.as_slice();
    let count = cpus.len().max(1);
    warn_if_crowded(count);
    let mut workers = Vec::new();
    for index in 0..count {
        let cpu = cpus.get(index).map(|c| usize::from(c.get()));
        let events = events.clone();
        let worker = workers::spawn(engine, index, cpu, idle, events);
        let failed = |e: io::Error| ServiceError::Worker {
            index,
            source: e.into(),
        };
        workers.push(worker.map_err(failed)?);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let now = Seen {
        at: Instant::now(),
        busy: 0,
        ratio: 0.0,
    };
    let seen = Arc::new(Mutex::new(vec![now; workers.len()]));
    let disks = Arc::<Mutex<Vec<Running>>>::default();
    let kept = Arc::clone(&disks);
    let refresh = move || {
        let disks = lock(&kept);
        let servers = disks.iter().filter_map(|disk| disk.server.as_ref());
        servers.for_each(Server::refresh);
        disks.iter().for_each(settle::look);
    };
    let monitor = monitor::start(
        &workers,
        events,
        Arc::clone(&seen),
        Arc::clone(&stop),
        refresh,
    );
    Ok(Arc::new(Host {
        workers,
        engine,
        manager,
        applying: Mutex::default(),
        disks,
        groups: Mutex::default(),
        seen,
        absent: Mutex::default(),
        begun: AtomicBool::new(false),
        next_key: AtomicU64::new(1),
        stop,
        monitor: Some(monitor),
        keeper: Keeper::default(),
        left: AtomicBool::new(false),
    }))
}

fn open(config: &config::Disk) -> Result<Disk, ServiceError> {
    let failed = |source| ServiceError::Disk {
        name: config.name.clone(),
        source: hinted(source),
    };
    let disk = storage::open(config).map_err(|e| failed(e.into()))?;
    backup::attach(config, &disk).map_err(|e| failed(e.into()))?;
    Ok(disk)
}

/// Which workers serve a disk: the first, and how many in all. Disks that one worker must serve
/// alone are spread over all of them.
pub(crate) fn workers_of(disk: &Disk, key: DiskKey, queues: u16, workers: usize) -> (usize, usize) {
    if disk.shape().one_worker {
        let first = usize::try_from(key).unwrap_or(0) % workers.max(1);
        (first, 1)
    } else {
        (0, usize::from(queues).min(workers))
    }
}

/// A new or changed disk, opened and (where its socket is free) bound.
struct Prepared {
    config: config::Disk,
    disk: Arc<Disk>,
    listening: Option<Listening>,
}

impl Host {
    fn endpoint(config: &config::Disk) -> Endpoint {
        let mode = match config.mode {
            SocketMode::Server => Mode::Server,
            SocketMode::Client => Mode::Client,
        };
        Endpoint {
            path: config.socket.as_path().to_owned(),
            mode,
        }
    }

    fn listen(&self, config: &config::Disk) -> Result<Listening, ServiceError> {
        let failed = |e: io::Error| ServiceError::Disk {
            name: config.name.clone(),
            source: hinted(e.into()),
        };
        Self::endpoint(config)
            .listen_kept(&self.manager)
            .map_err(failed)
    }

    /// Open and bind without touching what runs.
    fn prepare(&self, config: &config::Disk) -> Result<Prepared, ServiceError> {
        let kept = {
            let running = lock(&self.disks);
            let kept = running.iter().find(|r| r.config.same_file(config));
            kept.map(|r| Arc::clone(r.device.disk()))
        };
        let disk = match kept {
            Some(disk) => disk,
            None => Arc::new(open(config)?),
        };
        self.prepare_open(config, disk)
    }

    fn prepare_open(
        &self,
        config: &config::Disk,
        disk: Arc<Disk>,
    ) -> Result<Prepared, ServiceError> {
        let taken = {
            let running = lock(&self.disks);
            // A socket that a disk of ours listens on is free once that one is stopped.
            let mut ours = running.iter().filter(|r| r.config.socket == config.socket);
            ours.any(|r| r.server.as_ref().is_none_or(|s| s.deaf().is_none()))
        };
        let listening = if taken {
            None
        } else {
            Some(self.listen(config)?)
        };
        Ok(Prepared {
            config: config.clone(),
            disk,
            listening,
        })
    }

    fn stop_disk(&self, running: &mut Running) {
        together::stop(running, &self.handles());
    }

    /// Start serving what was prepared; `old` is what the disk did before.
    fn start_disk(
        &self,
        prepared: Prepared,
        old: Option<(Arc<DiskShared>, u64)>,
    ) -> Result<Running, ServiceError> {
        let Prepared {
            config,
            disk,
            listening,
        } = prepared;
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| ServiceError::Disk {
            name: config.name.clone(),
            source: e,
        };
        let listening = match listening {
            Some(listening) => listening,
            None => self.listen(&config)?,
        };
        if let Some(resident) = disk.resident() {
            resident.set_limit(config.resident.bytes());
            self.keeper.add(resident);
        }
        let key = self.next_key.fetch_add(1, Relaxed);
        let name: Arc<str> = Arc::from(config.name.as_str());
        let queues = config.queues.get();
        let (shared, connections) = match old {
            Some((shared, n)) if shared.queues.len() == usize::from(queues) => (shared, n),
            _ => (Arc::new(DiskShared::new(queues, self.workers.len())), 0),
        };
        let (first, used) = workers_of(&disk, key, queues, self.workers.len());
        disk.policy().set_mode(config.on_error);
        let limited = self.limited(config.limit, config.group.as_ref());
        let all = self.workers.iter().cycle().skip(first).take(used);
        let handles: Vec<Handle<Change>> = all.map(Worker::handle).collect();
        for handle in &handles {
            let new = NewDisk {
                key,
                name: Arc::clone(&name),
                disk: Arc::clone(&disk),
                share: share(config.weight, config.cap, used),
                throttles: limited.throttles.clone(),
                shared: Arc::clone(&shared),
            };
            let answer = handle.call(|reply| Change::AddDisk(new, reply));
            answer
                .map_err(|e| failed(e.into()))?
                .map_err(|e| failed(e.into()))?;
        }
        let device = Arc::new(BlkDevice::new(
            name,
            key,
            disk,
            queues,
            self.engine.memory(config.guest_memory),
            handles,
            &config.path.to_string(),
        ));
        let keeping = Keeping::with(&self.manager, config.name.as_str());
        let server = Server::start_kept(listening, Arc::clone(&device), keeping);
        let server = Some(server.map_err(|e| failed(e.into()))?);
        Ok(Running {
            busy: Arc::default(),
            latest: Arc::default(),
            limited,
            weight: config.weight,
            cap: config.cap,
            config,
            key,
            device,
            shared,
            server,
            connections,
        })
    }
}

impl Service for Host {
    fn apply(&self, config: &Config) -> Result<Report, ServiceError> {
        let _one_at_a_time = lock(&self.applying);
        let stays = |r: &Running| config.disks.iter().any(|d| r.config.same_session(d));
        let fresh: Vec<config::Disk> = {
            let running = lock(&self.disks);
            let kept = |d: &config::Disk| running.iter().any(|r| r.config.same_session(d));
            let fresh = |d: &&config::Disk| !kept(d) && !self.is_absent(d);
            config.disks.iter().filter(fresh).cloned().collect()
        };
        let mut absent = None;
        let prepared = if self.begun.load(Relaxed) || !self.manager.keeps() {
            let prepared: Result<Vec<_>, _> = fresh.iter().map(|d| self.prepare(d)).collect();
            prepared?
        } else {
            let (prepared, left_out) = self.prepare_first(&fresh)?;
            absent = Some(left_out);
            prepared
        };
        let gone: Vec<Running> = {
            let mut running = lock(&self.disks);
            let (kept, gone) = running.drain(..).partition(stays);
            *running = kept;
            gone
        };
        let mut replaced = Vec::new();
        for mut old in gone {
            self.stop_disk(&mut old);
            replaced.push(old);
        }
        let groups = self.regroup(config);
        let before = std::mem::replace(&mut *lock(&self.groups), groups);
        if let Err(failure) = self.start_all(prepared, &replaced) {
            // Nothing is expected to fail after `prepare`; if it does, what was is put back.
            *lock(&self.groups) = before;
            self.put_back(replaced);
            return Err(failure);
        }
        let mut running = lock(&self.disks);
        let place = |r: &Running| config.disks.iter().position(|d| d.name == r.config.name);
        running.sort_by_key(place);
        for disk in running.iter_mut() {
            if let Some(wanted) = config.disks.iter().find(|d| d.name == disk.config.name) {
                self.adjust(disk, wanted);
            }
        }
        let servers = running.iter().filter_map(|disk| disk.server.as_ref());
        servers.for_each(Server::go);
        drop(running);
        self.begun.store(true, Relaxed);
        if let Some(absent) = absent {
            self.leave_out(absent);
        }
        self.keep_absent(&config.disks);
        // Disks that a predecessor served and that are configured no more.
        let waits = |name: &str| {
            lock(&self.absent)
                .iter()
                .any(|d| d.config.name.as_str() == name)
        };
        for (place, kept) in self.manager.claim_rest(|kept| waits(kept.name())) {
            warn!(
                kind = kept.kind(),
                name = kept.name(),
                "left by a predecessor, not wanted"
            );
            kept.abandon(place);
        }
        Ok(Report::default())
    }

    fn retry(&self) -> bool {
        self.retry_absent()
    }

    fn set_disk(&self, name: &str, settings: &Settings) -> Result<(), ServiceError> {
        self.tune_disk(name, settings)
    }

    fn set_group(&self, name: &str, settings: &Settings) -> Result<(), ServiceError> {
        self.tune_group(name, settings)
    }

    fn clear_disk(&self, name: &str) -> Result<(), ServiceError> {
        Host::clear_disk(self, name)
    }

    fn slow(&self, name: Option<&str>) -> Result<Vec<SlowRequest>, ServiceError> {
        self.slowest(name)
    }

    fn resize(&self, name: &str, size: Option<u64>, shrink: bool) -> Result<Resized, ServiceError> {
        self.resize_disk(name, size, shrink)
    }

    fn snapshot(&self, name: &str, path: &Path) -> Result<Snapshot, ServiceError> {
        self.snapshot_disk(name, path)
    }

    fn mirror(&self, name: &str, order: &MirrorOrder) -> Result<(), ServiceError> {
        self.order_mirror(name, order)
    }

    fn groups(&self) -> Vec<GroupStatus> {
        self.group_status()
    }

    fn disks(&self) -> Vec<DiskStatus> {
        // One that comes back is in one of both lists at any time.
        let running = lock(&self.disks);
        let mut disks: Vec<_> = running.iter().map(status::disk).collect();
        disks.extend(self.absent_status());
        disks
    }

    fn workers(&self) -> Vec<WorkerStatus> {
        let seen = lock(&self.seen).clone();
        let disks = lock(&self.disks);
        let status = |(index, (worker, seen)): (usize, (&Worker<Change>, Seen))| WorkerStatus {
            index,
            cpu: worker
                .cpu()
                .and_then(|c| CpuId::try_from(i64::try_from(c).ok()?).ok()),
            steps: worker.pulse().beats(),
            busy_ratio: seen.ratio,
            busy_ns: worker
                .rate()
                .ns(towpath_common::clock::Cycles(worker.pulse().busy())),
            sleeps: worker.pulse().sleeps(),
            queues: status::queues_of(&disks, index, self.workers.len()),
            engine: self.engine,
        };
        self.workers
            .iter()
            .zip(seen)
            .enumerate()
            .map(status)
            .collect()
    }

    fn release(&self, name: &str) -> bool {
        let disks = lock(&self.disks);
        let mut disks = disks.iter().filter(|d| d.config.name.as_str() == name);
        let server = disks.find_map(|disk| disk.server.as_ref());
        let held = server.filter(|server| server.status().quarantined);
        held.map(Server::release).is_some()
    }

    fn drain(&self) {
        self.end_all(self.manager.keeps());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.drain();
        self.stop.store(true, Relaxed);
        if self.left.load(Relaxed) {
            // They would wait for what does not come; the end of the process does not.
            std::mem::forget(std::mem::take(&mut self.workers));
        }
        if let Some(monitor) = self.monitor.take() {
            monitor.thread().unpark();
            let _ = monitor.join();
        }
    }
}
