//! The smallest device: what a chain brings in its readable part goes back in its writable part.
//!
//! The one piece of a back-end in this folder. Tests of the session, the ring and the worker need a
//! device whose every step they can see and stop: an [`Echo`] runs on a real [`Worker`], several
//! may share one (to show that one guest's misdeeds do not reach the next), it can hold chains in
//! flight, and it can lose its rings as a killed process would.

mod room;

use std::io;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::room::Room;
use crate::keep::Settings;
use crate::mailbox::ReplyTo;
use crate::mem::Mem;
use crate::ring::{F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_VERSION_1, Ring, Violation};
use crate::session::{Attach, Device, DeviceGone, P_NET_MTU, P_RARP, Update};
use crate::worker::{Handle, Idle, Worker};

/// The largest MTU it takes, in bytes.
pub const MAX_MTU: u16 = 9000;

/// Bytes of configuration space; the first half is writable.
pub const CONFIG: usize = 64;

/// A device and a queue of it.
type Key = (u16, u16);

/// One chain the device saw: queue, head, readable bytes.
pub type Seen = (u16, u16, Vec<u8>);

/// What happens to chains once they are popped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conduct {
    /// They are answered at once.
    Answer,
    /// They stay in flight until [`Echo::conduct`] says `Answer`, or the queue is detached.
    Hold,
}

/// What the worker is told.
#[derive(Debug)]
pub enum Change {
    /// Take a ring, and write into its device's diary.
    Attach(Key, Box<Attach>, Arc<Diary>, ReplyTo<()>),
    /// Finish what is in flight and give the ring back.
    Detach(Key, ReplyTo<Option<Ring>>),
    /// Exchange an eventfd, or enable.
    Update(Key, Update, ReplyTo<()>),
    /// Hold or answer the chains of this device.
    Conduct(u16, Conduct, ReplyTo<()>),
    /// Answer one chain that is held; whether it was.
    Finish(Key, u16, ReplyTo<bool>),
    /// Lose every ring of this device, in-flight chains unanswered, as a killed process does.
    Lose(u16, ReplyTo<usize>),
    /// Panic, as a bug would.
    Die,
}

/// A worker that echo devices share.
#[derive(Debug)]
pub struct Host {
    worker: Worker<Change>,
    devices: AtomicU16,
}

impl Host {
    /// Start one, which sleeps whenever it has nothing to do.
    ///
    /// # Errors
    /// As [`Worker::spawn`].
    pub fn start(idle: Idle) -> io::Result<Arc<Host>> {
        let worker = Worker::spawn(0, None, idle, |context| Ok(Room::new(context)))?;
        Ok(Arc::new(Host {
            worker,
            devices: AtomicU16::new(0),
        }))
    }

    /// The worker's thread and its pulse.
    #[must_use]
    pub fn worker(&self) -> &Worker<Change> {
        &self.worker
    }

    /// Make the worker's thread panic.
    pub fn die(&self) {
        let _ = self.worker.handle().post(Change::Die);
    }
}

/// An echo device.
#[derive(Debug)]
pub struct Echo {
    name: String,
    id: u16,
    queues: u16,
    features: u64,
    host: Arc<Host>,
    handle: Handle<Change>,
    config: Mutex<[u8; CONFIG]>,
    diary: Arc<Diary>,
}

/// What a device remembers for its test.
#[derive(Debug, Default)]
pub struct Diary {
    seen: Mutex<Vec<Seen>>,
    negotiated: AtomicU64,
    regions: AtomicU64,
    disconnects: AtomicU64,
    resets: AtomicU64,
    /// MTUs and addresses the front-end sent, in order.
    mtus: Mutex<Vec<u16>>,
    announced: Mutex<Vec<[u8; 6]>>,
    broken: Mutex<Vec<(u16, Violation)>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Echo {
    /// A device with `queues` queues and all ring features, on `host`.
    #[must_use]
    pub fn on(host: &Arc<Host>, queues: u16) -> Arc<Echo> {
        let id = host.devices.fetch_add(1, SeqCst);
        let mut config = [0; CONFIG];
        for (byte, value) in config.iter_mut().zip(0u8..) {
            *byte = value;
        }
        Arc::new(Echo {
            name: format!("echo{id}"),
            id,
            queues,
            features: F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX | F_IN_ORDER,
            host: Arc::clone(host),
            handle: host.worker.handle(),
            config: Mutex::new(config),
            diary: Arc::default(),
        })
    }

    /// The worker it runs on.
    #[must_use]
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Answer or hold chains from now on; holding ends by answering all that are held.
    pub fn conduct(&self, conduct: Conduct) {
        let _ = self.handle.call(|r| Change::Conduct(self.id, conduct, r));
    }

    /// Answer one chain that is held; whether it was.
    #[must_use]
    pub fn finish(&self, queue: u16, head: u16) -> bool {
        self.handle
            .call(|r| Change::Finish((self.id, queue), head, r))
            .unwrap_or_default()
    }

    /// Forget every ring at once; how many chains were in flight. The session still believes that
    /// they are attached, as it does in a process that is killed.
    #[must_use]
    pub fn lose(&self) -> usize {
        self.handle
            .call(|r| Change::Lose(self.id, r))
            .unwrap_or_default()
    }

    /// Take the list of chains popped so far, in order.
    #[must_use]
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *lock(&self.diary.seen))
    }

    /// Chains popped since [`Echo::take_seen`].
    #[must_use]
    pub fn seen(&self) -> usize {
        lock(&self.diary.seen).len()
    }

    /// Rings that broke, and why.
    #[must_use]
    pub fn broken(&self) -> Vec<(u16, Violation)> {
        lock(&self.diary.broken).clone()
    }

    /// Features the session reported as negotiated.
    #[must_use]
    pub fn negotiated_features(&self) -> u64 {
        self.diary.negotiated.load(SeqCst)
    }

    /// Regions of the last memory map.
    #[must_use]
    pub fn regions(&self) -> u64 {
        self.diary.regions.load(SeqCst)
    }

    /// MTUs the front-end set, those refused among them.
    #[must_use]
    pub fn mtus(&self) -> Vec<u16> {
        lock(&self.diary.mtus).clone()
    }

    /// Addresses the front-end wanted announced.
    #[must_use]
    pub fn announced(&self) -> Vec<[u8; 6]> {
        lock(&self.diary.announced).clone()
    }

    /// Times the driver began anew.
    #[must_use]
    pub fn resets(&self) -> u64 {
        self.diary.resets.load(SeqCst)
    }

    /// Sessions that ended.
    #[must_use]
    pub fn disconnects(&self) -> u64 {
        self.diary.disconnects.load(SeqCst)
    }
}

impl Device for Echo {
    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn protocol_features(&self) -> u64 {
        P_RARP | P_NET_MTU
    }

    fn max_queues(&self) -> u16 {
        self.queues
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) -> bool {
        let config = lock(&self.config);
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let Some(bytes) = from
            .checked_add(buf.len())
            .and_then(|to| config.get(from..to))
        else {
            return false;
        };
        buf.copy_from_slice(bytes);
        true
    }

    fn write_config(&self, offset: u32, data: &[u8]) -> bool {
        let mut config = lock(&self.config);
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let to = from
            .checked_add(data.len())
            .filter(|to| *to <= CONFIG / 2)
            .unwrap_or(0);
        let Some(bytes) = config.get_mut(from..to) else {
            return false;
        };
        bytes.copy_from_slice(data);
        true
    }

    fn negotiated(&self, features: u64) {
        self.diary.negotiated.store(features, SeqCst);
    }

    fn reset(&self) {
        self.diary.resets.fetch_add(1, SeqCst);
    }

    fn memory(&self, mem: &Arc<Mem>) {
        self.diary.regions.store(mem.regions().len() as u64, SeqCst);
    }

    fn attach(&self, queue: u16, attach: Attach) -> Result<(), DeviceGone> {
        let key = (self.id, queue);
        let (attach, diary) = (Box::new(attach), Arc::clone(&self.diary));
        self.handle
            .call(|r| Change::Attach(key, attach, diary, r))
            .map_err(|_| DeviceGone)
    }

    fn detach(&self, queue: u16) -> Option<Ring> {
        let key = (self.id, queue);
        self.handle.call(|r| Change::Detach(key, r)).ok().flatten()
    }

    fn update(&self, queue: u16, update: Update) {
        let key = (self.id, queue);
        let _ = self.handle.call(|r| Change::Update(key, update, r));
    }

    fn announce(&self, mac: [u8; 6]) {
        lock(&self.diary.announced).push(mac);
    }

    fn set_mtu(&self, mtu: u16) -> bool {
        lock(&self.diary.mtus).push(mtu);
        mtu <= MAX_MTU
    }

    fn settings(&self) -> Settings {
        let taken = self.mtus().into_iter().rfind(|mtu| *mtu <= MAX_MTU);
        Settings {
            mtu: taken,
            ..Settings::default()
        }
    }

    fn restore(&self, settings: &Settings) -> bool {
        lock(&self.diary.mtus).extend(settings.mtu);
        false
    }

    fn disconnected(&self) {
        self.diary.disconnects.fetch_add(1, SeqCst);
    }
}
