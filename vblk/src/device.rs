//! A disk as a vhost-user device: what its session asks, passed on to the workers that serve it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use towpath_common::keep::Settings;
use towpath_common::mailbox::ReplyTo;
use towpath_common::mem::Mem;
use towpath_common::ring::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Ring};
use towpath_common::session::{Attach, Device, DeviceGone, Update};
use towpath_common::worker::Handle;
use tracing::{error, warn};

use crate::config::GuestMemory;
use crate::disk::Disk;
use crate::engine::Guest;
use crate::features::{self, Config};
use crate::plane::{Change, DiskKey};

/// Ring features offered with every disk. IN_ORDER is not: a disk completes in the order the
/// storage does, and holding back what is done would only add latency.
const RING: u64 = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX;

/// A disk that front-ends attach to.
#[derive(Debug)]
pub struct BlkDevice {
    name: Arc<str>,
    key: DiskKey,
    disk: Arc<Disk>,
    queues: u16,
    config: Mutex<Config>,
    /// Features the driver accepted.
    accepted: AtomicU64,
    guest_memory: GuestMemory,
    /// What it is to its driver, besides its size.
    identity: String,
    /// The guest's memory is registered with the workers' rings.
    registered: AtomicBool,
    /// The workers that serve it; queue `i` belongs to worker `i % len`.
    workers: Vec<Handle<Change>>,
}

impl BlkDevice {
    /// A device for `disk`, whose queues are served by `workers`; `contents` says what is on it, as
    /// configured.
    #[must_use]
    pub fn new(
        name: Arc<str>,
        key: DiskKey,
        disk: Arc<Disk>,
        queues: u16,
        guest_memory: GuestMemory,
        workers: Vec<Handle<Change>>,
        contents: &str,
    ) -> BlkDevice {
        let config = Mutex::new(Config::new(&disk, queues));
        let (block, read_only) = (disk.block().bytes(), disk.read_only());
        let identity = format!("{contents} block_size={block} read_only={read_only}");
        BlkDevice {
            name,
            key,
            disk,
            queues,
            config,
            accepted: AtomicU64::new(0),
            guest_memory,
            identity,
            registered: AtomicBool::new(false),
            workers,
        }
    }

    /// Whether guest memory is registered with io_uring.
    #[must_use]
    pub fn registered(&self) -> bool {
        self.registered.load(Relaxed)
    }

    /// The workers that serve it.
    pub(crate) fn workers(&self) -> &[Handle<Change>] {
        &self.workers
    }

    /// The disk behind it.
    #[must_use]
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// The disk has another size: show it from now on.
    pub(crate) fn resized(&self) {
        self.config().set_capacity(self.disk.size());
    }

    /// A poisoned lock only means that some thread panicked while it copied bytes.
    fn config(&self) -> MutexGuard<'_, Config> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_caching(&self, config: &Config) {
        let through = features::write_through(self.accepted.load(Relaxed), config.wce());
        self.disk.set_write_through(through);
    }

    fn worker(&self, queue: u16) -> Option<&Handle<Change>> {
        let at = usize::from(queue) % self.workers.len().max(1);
        self.workers.get(at)
    }

    fn take_back(
        &self,
        queue: u16,
        how: impl FnOnce(DiskKey, u16, ReplyTo<Ring>) -> Change,
    ) -> Option<Ring> {
        let worker = self.worker(queue)?;
        match worker.call(|reply| how(self.key, queue, reply)) {
            Ok(ring) => {
                if let Err(error) = self.disk.end(queue) {
                    error!(name: crate::events::DATA_LOST, disk = &*self.name, queue, %error,
                "given up with data unwritten");
                }
                Some(ring)
            }
            Err(error) => {
                error!(disk = &*self.name, queue, %error, "queue not given back by its worker");
                None
            }
        }
    }
}

impl Device for BlkDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        features::offered(&self.disk, self.queues, RING)
    }

    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn max_queues(&self) -> u16 {
        self.queues
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) -> bool {
        let len = u32::try_from(buf.len()).unwrap_or(u32::MAX);
        let bytes = self.config().read(offset, len);
        bytes.is_some_and(|bytes| {
            buf.copy_from_slice(&bytes);
            true
        })
    }

    fn write_config(&self, offset: u32, data: &[u8]) -> bool {
        let mut config = self.config();
        let written = config.write(offset, data);
        self.set_caching(&config);
        written
    }

    fn negotiated(&self, features: u64) {
        self.accepted.store(features, Relaxed);
        let mut config = self.config();
        if features & features::F_CONFIG_WCE == 0 {
            config.set_wce(true);
        }
        self.set_caching(&config);
    }

    fn memory(&self, mem: &Arc<Mem>) {
        // Off the workers' threads: registering takes seconds a gigabyte.
        let guest = Guest::prepare(Arc::clone(mem), self.guest_memory);
        self.registered.store(guest.is_registered(), Relaxed);
        for worker in &self.workers {
            let answer = worker.call(|reply| Change::Memory(self.key, guest.clone(), reply));
            match answer {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(disk = &*self.name, %error, "guest memory not accepted"),
                Err(error) => error!(disk = &*self.name, %error, "worker unreachable"),
            }
        }
    }

    fn attach(&self, queue: u16, attach: Attach) -> Result<(), DeviceGone> {
        let worker = self.worker(queue).ok_or(DeviceGone)?;
        self.disk.begin(queue).map_err(|error| {
            error!(disk = &*self.name, queue, %error, "a queue cannot run");
            DeviceGone
        })?;
        let attach = Box::new(attach);
        let answer = worker.call(|reply| Change::Attach(self.key, queue, attach, reply));
        if answer == Ok(true) {
            return Ok(());
        }
        if answer == Ok(false)
            && let Err(error) = self.disk.end(queue)
        {
            error!(name: crate::events::DATA_LOST, disk = &*self.name, queue, %error,
                "given up with data unwritten");
        }
        Err(DeviceGone)
    }

    fn detach(&self, queue: u16) -> Option<Ring> {
        self.take_back(queue, Change::Detach)
    }

    fn leave(&self, queue: u16) -> Option<Ring> {
        self.take_back(queue, Change::Leave)
    }

    fn update(&self, queue: u16, update: Update) {
        if let Some(worker) = self.worker(queue) {
            // A worker that is gone is reported by whoever needs its answer.
            let _ = worker.post(Change::Update(self.key, queue, update));
        }
    }

    fn settings(&self) -> Settings {
        let config = self.config();
        Settings {
            write_cache: Some(config.wce()),
            capacity: Some(config.capacity()),
            failed: self.disk.failures(),
            ..Settings::default()
        }
    }

    fn restore(&self, settings: &Settings) -> bool {
        if let Some(on) = settings.write_cache {
            let mut config = self.config();
            config.set_wce(on);
            self.set_caching(&config);
        }
        if settings.failed != 0 {
            warn!(
                disk = &*self.name,
                "it had failed and still has, until `vblk disk clear`"
            );
            self.disk.restore_failures(settings.failed);
        }
        settings
            .capacity
            .is_some_and(|told| told != self.disk.size())
    }

    fn disconnected(&self) {
        self.memory(&Arc::new(Mem::default()));
    }
}
