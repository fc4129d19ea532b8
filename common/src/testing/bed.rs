//! A bed for tests: an echo device at a socket of its own ([`Bed`]) and a whole guest in front of
//! it ([`Guest`]).
//!
//! [`SOON`] is a guard against hangs, never a measurement: nothing here depends on speed. What
//! cannot be set up panics, and so fails its test.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a test that cannot be set up has failed"
)]

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{FrontendReq as Request, VhostUserProtocolFeatures as Protocol};

use super::echo::{Echo, Host};
use super::{
    Driver, Form, Frontend, GuestMemory, RawFrontend, Segment, SplitDriver, Token, Wanted, feature,
};
use crate::session::{Endpoint, Mode, Server};
use crate::worker::Idle;

/// Longest anything may take before it counts as hung.
pub const SOON: Duration = Duration::from_secs(30);

/// Everything the session offers.
#[must_use]
pub fn everything() -> Wanted {
    Wanted {
        features: feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX,
        protocol: Protocol::all(),
    }
}

/// Wait until `done`; `what` says for what.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < SOON, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A directory of its own, removed with all it holds when dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Make one.
    #[must_use]
    pub fn new() -> Scratch {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "towpath-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left behind is in the system's directory for such things.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One device at a socket of its own.
#[derive(Debug)]
pub struct Bed {
    /// The device.
    pub echo: Arc<Echo>,
    /// Who serves it.
    pub server: Server,
    dir: Scratch,
}

impl Bed {
    /// A device with `queues` queues on a worker of its own.
    #[must_use]
    pub fn new(queues: u16) -> Bed {
        Bed::on(&Host::start(Idle::Interrupt).unwrap(), queues)
    }

    /// A device with `queues` queues on `host`.
    #[must_use]
    pub fn on(host: &Arc<Host>, queues: u16) -> Bed {
        let dir = Scratch::new();
        let echo = Echo::on(host, queues);
        let endpoint = Endpoint {
            path: dir.path().join("s"),
            mode: Mode::Server,
        };
        let server = Server::start(endpoint.listen().unwrap(), Arc::clone(&echo)).unwrap();
        Bed { echo, server, dir }
    }

    /// Another device on the same worker, with a guest at work: the innocent bystander.
    #[must_use]
    pub fn neighbour(&self) -> Neighbour {
        let bed = Bed::on(self.echo.host(), 1);
        let guest = bed.guest(1);
        Neighbour { guest, _bed: bed }
    }

    /// Its socket.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// A connection without manners.
    #[must_use]
    pub fn raw(&self) -> RawFrontend {
        RawFrontend::connect(&self.path(), SOON).unwrap()
    }

    /// A connection after its handshake.
    #[must_use]
    pub fn front(&self, wanted: Wanted) -> Frontend {
        Frontend::connect(&self.path(), wanted, SOON).unwrap()
    }

    /// A guest with one region of memory and `queues` running queues.
    #[must_use]
    pub fn guest(&self, queues: u32) -> Guest {
        let mut guest = Guest::new(self.front(everything()), &[(0, 4 << 20)]);
        guest.share();
        for queue in 0..queues {
            guest.queue(16);
            guest.start(queue);
        }
        guest
    }

    /// Wait until a refusal is noted; it is, just after the front-end was told.
    pub fn noted(&self) -> String {
        eventually("a note", || self.server.status().last_error.is_some());
        self.server.status().last_error.unwrap_or_default()
    }

    /// Wait for the session to end, and for its reason.
    pub fn end(&self) -> String {
        eventually("the session to end", || !self.server.status().connected);
        self.server.status().last_error.unwrap_or_default()
    }
}

/// Another device's guest, to show that it does not suffer.
#[derive(Debug)]
pub struct Neighbour {
    guest: Guest,
    _bed: Bed,
}

impl Neighbour {
    /// A round trip.
    pub fn is_well(&mut self) {
        self.guest.echo(0, b"all is well");
    }
}

/// A chain on offer: where its answer will be, and what it must say.
#[derive(Debug)]
pub struct Expected {
    /// Guest physical address of the answer.
    pub gpa: u64,
    /// What it must be.
    pub bytes: Vec<u8>,
}

/// A guest: its VMM, and what is inside.
#[derive(Debug)]
pub struct Guest {
    /// Its VMM's end of the connection.
    pub front: Frontend,
    /// Memory and drivers.
    pub inside: Inside,
}

/// What is inside a guest: memory, and a driver for each of its queues.
#[derive(Debug)]
pub struct Inside {
    /// Its memory.
    pub memory: GuestMemory,
    /// One driver a queue.
    pub drivers: Vec<SplitDriver>,
    /// Chains on offer, queue by queue.
    pub pending: Vec<BTreeMap<Token, Expected>>,
}

impl Deref for Guest {
    type Target = Inside;

    fn deref(&self) -> &Inside {
        &self.inside
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut Inside {
        &mut self.inside
    }
}

impl Guest {
    /// A guest with memory at `places`, of which the back-end knows nothing yet.
    #[must_use]
    pub fn new(front: Frontend, places: &[(u64, u64)]) -> Guest {
        let inside = Inside {
            memory: GuestMemory::with_regions(places).unwrap(),
            drivers: Vec::new(),
            pending: Vec::new(),
        };
        Guest { front, inside }
    }

    /// Add a driver with a ring of `size`, in memory only.
    pub fn queue(&mut self, size: u16) {
        let features = self.front.features();
        let driver = SplitDriver::new(&self.memory, size, features).unwrap();
        self.drivers.push(driver);
        self.pending.push(BTreeMap::new());
    }

    /// Tell the back-end of all memory.
    pub fn share(&mut self) {
        self.front.set_memory(&self.inside.memory).unwrap();
    }

    /// Hand a queue over and start it.
    pub fn start(&mut self, queue: u32) {
        let Guest { front, inside } = self;
        let driver = &inside.drivers[queue as usize];
        front
            .start_queue(queue, &inside.memory, &driver.setup())
            .unwrap();
    }

    /// One SET_VRING_* message about `queue` as its driver has it.
    pub fn say(&mut self, queue: u32, what: Request) -> super::Result<()> {
        let Guest { front, inside } = self;
        let setup = inside.drivers[queue as usize].setup();
        match what {
            Request::SET_VRING_NUM => front.set_vring(what, queue, setup.size.into()),
            Request::SET_VRING_BASE => front.set_vring(what, queue, setup.base),
            Request::SET_VRING_ADDR => front.set_vring_addr(queue, &inside.memory, &setup),
            Request::SET_VRING_KICK => front.set_vring_fd(what, queue, Some(setup.kick)),
            Request::SET_VRING_CALL => front.set_vring_fd(what, queue, Some(setup.call)),
            Request::SET_VRING_ERR => front.set_vring_fd(what, queue, Some(setup.err)),
            Request::SET_VRING_ENABLE => front.enable(queue, true),
            other => panic!("{other:?} is not about a vring"),
        }
    }
}

impl Inside {
    /// Offer a chain that brings `bytes` and has room for them.
    pub fn offer(&mut self, queue: usize, bytes: &[u8]) -> Token {
        let len = u32::try_from(bytes.len()).unwrap();
        let (from, to) = (
            self.memory.alloc(len.into(), 16).unwrap(),
            self.memory.alloc(len.into(), 16).unwrap(),
        );
        self.memory.write(from, bytes).unwrap();
        let driver = &mut self.drivers[queue];
        let segments = [Segment::readable(from, len), Segment::writable(to, len)];
        let token = driver.chain(&segments, Form::Direct).unwrap();
        driver.post(token);
        let bytes = bytes.to_vec();
        self.pending[queue].insert(token, Expected { gpa: to, bytes });
        driver.publish().unwrap();
        token
    }

    /// Take what came back so far, checking each answer; how many.
    pub fn reap(&mut self, queue: usize) -> usize {
        let mut done = Vec::new();
        let driver = &mut self.drivers[queue];
        driver.reap(&mut done).unwrap();
        for completion in &done {
            let expected = self.pending[queue].remove(&completion.token).unwrap();
            let mut answer = vec![0; expected.bytes.len()];
            self.memory.read(expected.gpa, &mut answer).unwrap();
            assert_eq!(answer, expected.bytes);
            assert_eq!(completion.written as usize, answer.len());
            driver.free(completion.token);
        }
        done.len()
    }

    /// Wait, by interrupt, until everything on offer has come back.
    pub fn settle(&mut self, queue: usize) {
        while !self.pending[queue].is_empty() {
            assert!(
                self.drivers[queue].wait(SOON).unwrap(),
                "queue {queue} is silent"
            );
            self.reap(queue);
        }
    }

    /// One round trip.
    pub fn echo(&mut self, queue: usize, bytes: &[u8]) {
        self.offer(queue, bytes);
        self.settle(queue);
    }
}
