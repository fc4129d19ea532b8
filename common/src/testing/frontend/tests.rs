//! The front-end against the session of this crate.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use vhost::vhost_user::message::BackendReq;

use std::time::Instant;

use super::*;
use crate::chain::Burst;
use crate::mem::Mem;
use crate::ring::Ring;
use crate::session::{Attach, Device, DeviceGone, Endpoint, Mode, Server, Update};
use crate::testing::memory::Sealing;
use crate::testing::{Completion, Driver, Form, Listener, Segment, SplitDriver};

const SOON: Duration = Duration::from_secs(10);

/// A device that gives back what it is told to, when it is told to.
#[derive(Debug, Default)]
struct Echo {
    rings: Mutex<BTreeMap<u16, Attach>>,
    config: Mutex<[u8; 32]>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Echo {
    /// Gives back every chain of a queue; how many.
    fn serve(&self, queue: u16) -> usize {
        let mut rings = lock(&self.rings);
        let Some(attach) = rings.get_mut(&queue) else {
            return 0;
        };
        let mut burst = Burst::new();
        let count = attach.ring.pop(&mut burst, 64);
        for chain in burst.iter() {
            attach.ring.put(chain.id, 5);
        }
        if attach.ring.publish() {
            let call = attach.call.as_ref().unwrap();
            rustix::io::write(call, &1u64.to_ne_bytes()).unwrap();
        }
        count
    }
}

impl Device for Echo {
    fn name(&self) -> &str {
        "echo"
    }

    fn features(&self) -> u64 {
        feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX
    }

    fn max_queues(&self) -> u16 {
        2
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) -> bool {
        let config = lock(&self.config);
        let part = config
            .get(offset as usize..)
            .and_then(|rest| rest.get(..buf.len()));
        part.map(|part| buf.copy_from_slice(part)).is_some()
    }

    fn write_config(&self, offset: u32, data: &[u8]) -> bool {
        let mut config = lock(&self.config);
        let part = config
            .get_mut(offset as usize..)
            .and_then(|rest| rest.get_mut(..data.len()));
        part.map(|part| part.copy_from_slice(data)).is_some()
    }

    fn negotiated(&self, _: u64) {}

    fn memory(&self, _: &Arc<Mem>) {}

    fn attach(&self, queue: u16, attach: Attach) -> std::result::Result<(), DeviceGone> {
        lock(&self.rings).insert(queue, attach);
        Ok(())
    }

    fn detach(&self, queue: u16) -> Option<Ring> {
        lock(&self.rings).remove(&queue).map(|attach| attach.ring)
    }

    fn update(&self, queue: u16, update: Update) {
        if let Some(attach) = lock(&self.rings).get_mut(&queue) {
            match update {
                Update::Call(call) => attach.call = call,
                Update::Err(err) => attach.err = err,
                Update::Enabled(enabled) => attach.enabled = enabled,
            }
        }
    }

    fn disconnected(&self) {}
}

struct Scene {
    device: Arc<Echo>,
    server: Server,
    dir: tempfile::TempDir,
}

impl Scene {
    fn new(mode: Mode) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let device = Arc::new(Echo::default());
        let endpoint = Endpoint {
            path: dir.path().join("s"),
            mode,
        };
        let server = Server::start(endpoint.listen().unwrap(), Arc::clone(&device)).unwrap();
        Self {
            device,
            server,
            dir,
        }
    }

    fn connect(&self, wanted: Wanted) -> Frontend {
        Frontend::connect(&self.dir.path().join("s"), wanted, SOON).unwrap()
    }
}

fn everything() -> Wanted {
    Wanted {
        features: !feature::LOG_ALL,
        protocol: Protocol::all(),
    }
}

/// Offers one chain, lets the device serve it, and takes it back.
fn exchange(scene: &Scene, memory: &GuestMemory, driver: &mut SplitDriver) {
    let gpa = memory.alloc(64, 64).unwrap();
    let token = driver
        .chain(&[Segment::writable(gpa, 64)], Form::Indirect)
        .unwrap();
    driver.post(token);
    driver.publish().unwrap();
    assert!(!driver.arm());
    assert_eq!(scene.device.serve(0), 1);
    assert!(driver.events().called(SOON).unwrap());
    let mut done = Vec::new();
    driver.reap(&mut done).unwrap();
    assert_eq!(done, [Completion { token, written: 5 }]);
    driver.free(token);
}

#[test]
fn a_device_that_is_no_network_device_offers_neither_rarp_nor_mtu() {
    let scene = Scene::new(Mode::Server);
    let mut front = scene.connect(everything());
    assert!(!front.protocol().intersects(Protocol::RARP | Protocol::MTU));
    assert!(matches!(front.set_mtu(1500), Err(Error::NotOffered(_))));
    let wanted = (Protocol::REPLY_ACK | Protocol::RARP).bits();
    let said = front.tell_u64(Request::SET_PROTOCOL_FEATURES, wanted);
    assert!(said.is_err(), "{said:?}");
}

#[test]
fn a_queue_runs_stops_and_goes_on_in_both_modes() {
    for mode in [Mode::Server, Mode::Client] {
        let scene = Scene::new(mode);
        let listener =
            (mode == Mode::Client).then(|| Listener::bind(&scene.dir.path().join("s")).unwrap());
        let memory = GuestMemory::with_regions(&[(0, 1 << 20), (1 << 32, 1 << 20)]).unwrap();
        let mut driver = SplitDriver::new(&memory, 16, everything().features).unwrap();
        for session in 0..3 {
            let mut front = match &listener {
                None => scene.connect(everything()),
                Some(listener) => {
                    Frontend::handshake(listener.accept(SOON).unwrap(), everything()).unwrap()
                }
            };
            assert_eq!(front.queues(), 2);
            front.set_memory(&memory).unwrap();
            front.start_queue(0, &memory, &driver.setup()).unwrap();
            exchange(&scene, &memory, &mut driver);
            assert_eq!(front.stop_queue(0).unwrap(), 2 * session + 1);
            front.start_queue(0, &memory, &driver.setup()).unwrap();
            exchange(&scene, &memory, &mut driver);
        }
    }
}

#[test]
fn every_message_is_understood() {
    let scene = Scene::new(Mode::Server);
    let mut front = scene.connect(everything());
    let memory = GuestMemory::new(1 << 20).unwrap();
    let table = front.get_inflight(2, 16).unwrap();
    assert!(table.size > 0);
    front.set_inflight(&table).unwrap();
    front.set_memory(&memory).unwrap();
    let more = GuestRegion::new(1 << 32, 1 << 20, 5, Sealing::Allowed).unwrap();
    assert!(front.max_mem_slots().unwrap() > 1);
    front.add_region(&more).unwrap();
    // What is shown follows the answer by a moment.
    let deadline = Instant::now() + SOON;
    while scene.server.status().regions != 2 {
        assert!(Instant::now() < deadline, "{:?}", scene.server.status());
        std::thread::yield_now();
    }
    front.remove_region(&more).unwrap();
    front.set_config(4, &[1, 2, 3]).unwrap();
    assert_eq!(front.config(3, 5).unwrap(), [0, 1, 2, 3, 0]);
    front.set_status(15).unwrap();
    assert_eq!(front.status().unwrap(), 15);
    let log = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&log, 4096).unwrap();
    front.set_log(log.as_fd(), 4096, 0).unwrap();
    let mut driver = SplitDriver::new(&memory, 16, front.features()).unwrap();
    front
        .set_features(everything().features | feature::LOG_ALL)
        .unwrap();
    front.start_queue(0, &memory, &driver.setup()).unwrap();
    exchange(&scene, &memory, &mut driver);
    let channel = front.backend_channel(SOON).unwrap();
    assert!(scene.server.config_changed());
    let change = channel.recv().unwrap();
    assert_eq!(change.request, u32::from(BackendReq::CONFIG_CHANGE_MSG));
    front.reset().unwrap();
}

#[test]
fn a_refusal_is_told_or_ends_the_session() {
    let scene = Scene::new(Mode::Server);
    let mut front = scene.connect(everything());
    let refused = front.set_vring(Request::SET_VRING_NUM, 9, 16);
    assert!(matches!(refused, Err(Error::Refused { request: 8, .. })));
    front.set_vring(Request::SET_VRING_NUM, 1, 16).unwrap();
    drop(front);
    let wanted = Wanted {
        protocol: Protocol::MQ,
        ..everything()
    };
    let mut front = scene.connect(wanted);
    front.set_vring(Request::SET_VRING_NUM, 9, 16).unwrap();
    assert!(front.raw().closes_within(SOON).unwrap());
}
