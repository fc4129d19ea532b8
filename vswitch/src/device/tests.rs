//! A network card as its session uses it: settings, and the queues that a worker gets.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use towpath_common::mem::{Region, RegionSpec};
use towpath_common::ring::{F_INDIRECT_DESC, F_VERSION_1, Setup};
use towpath_common::sched::Share;
use towpath_common::session::Alarm;
use towpath_common::testing::memory::Sealing;
use towpath_common::testing::net::Control as Commands;
use towpath_common::testing::{Driver, GuestMemory, GuestRegion, SplitDriver};
use towpath_common::worker::{Idle, Worker};

use super::*;
use crate::egress::GuestEgress;
use crate::fdb::{Ageing, Capacity, Fdb, HashKey};
use crate::net::Offloads;
use crate::plane::{NetPlane, NewPort};
use crate::stats::Events;

const CARD: Card = Card {
    pairs: 2,
    mac: None,
    mtu: 9000,
    offloads: true,
};
/// The control queue of that card.
const CONTROL: u16 = 4;
const FEATURES: u64 = F_VERSION_1
    | F_INDIRECT_DESC
    | features::CTRL_VQ
    | features::MQ
    | features::CTRL_GUEST_OFFLOADS
    | features::GUEST_CSUM
    | features::GUEST_TSO4;

/// A card, and a driver with two receive queues and a control queue.
struct Bed {
    device: NetDevice,
    memory: GuestMemory,
    mem: Arc<Mem>,
    receive: [SplitDriver; 2],
    commands: Commands,
    /// Ends when the session is hung up.
    hung_up: UnixStream,
    alarm: Arc<Alarm>,
    _worker: Worker<Change>,
}

impl Bed {
    fn new() -> Bed {
        let key = HashKey::from_words([1, 2, 3, 5, 7, 11]);
        let fdb = Arc::new(Fdb::new(key, Capacity::default(), Ageing::default()));
        let worker = Worker::spawn(0, None, Idle::Interrupt, move |context| {
            Ok(NetPlane::new(context, fdb, Events::default()))
        });
        let worker: Worker<Change> = worker.unwrap();
        let shared = Arc::new(PortShared::new(5, 1));
        let new = NewPort {
            no: PortNo(0),
            name: "p0".into(),
            share: Share::default(),
            shared: Arc::clone(&shared),
        };
        let added = worker.handle().call(|reply| Change::AddPort(new, reply));
        assert_eq!(added, Ok(true));
        let egress = Arc::new(Egress::Guest(GuestEgress::new(2)));
        let workers = vec![worker.handle()];
        let device = NetDevice::new("p0".into(), PortNo(0), CARD, egress, shared, workers);
        device.negotiated(FEATURES);
        // A file that takes no seals can be truncated.
        let region = GuestRegion::new(0, 1 << 20, 0, Sealing::Refused).unwrap();
        let memory = GuestMemory::of(vec![Arc::new(region)]);
        let region = &memory.regions()[0];
        let spec = RegionSpec {
            gpa: region.gpa(),
            len: region.size(),
            uva: region.uva(),
            offset: 0,
        };
        let file = region.file().try_clone_to_owned().unwrap();
        let mem = Mem::new(vec![Region::map(spec, file).unwrap()]).unwrap();
        let ring = || SplitDriver::new(&memory, 64, FEATURES).unwrap();
        let (ours, hung_up) = UnixStream::pair().unwrap();
        Bed {
            device,
            mem: Arc::new(mem),
            receive: [ring(), ring()],
            commands: Commands::new(ring(), &memory).unwrap(),
            memory,
            hung_up,
            alarm: Arc::new(Alarm::new(ours)),
            _worker: worker,
        }
    }

    fn attach(&mut self, queue: u16, base: u16) {
        let driver = match queue {
            0 => &mut self.receive[0],
            2 => &mut self.receive[1],
            _ => self.commands.driver(),
        };
        let (at, memory) = (driver.setup(), &self.memory);
        let uva = |gpa| memory.uva(gpa).unwrap();
        let setup = Setup {
            size: at.size,
            desc: uva(at.desc),
            avail: uva(at.avail),
            used: uva(at.used),
            base: Some(base),
            features: FEATURES,
            log: None,
            log_addr: None,
            inflight: None,
        };
        let fd = |fd: std::os::fd::BorrowedFd<'_>| Some(fd.try_clone_to_owned().unwrap());
        let attach = Attach {
            ring: Ring::new(setup, Arc::clone(&self.mem)).unwrap(),
            kick: fd(driver.events().kick_fd()),
            call: fd(driver.events().call_fd()),
            err: None,
            enabled: true,
            alarm: Arc::clone(&self.alarm),
            cell: None,
        };
        self.device.attach(queue, attach).unwrap();
    }

    /// Take every ring back, change something, set them up again.
    fn rebuild(&mut self, change: impl FnOnce(&NetDevice)) {
        let stood = [0, 2, CONTROL].map(|queue| (queue, self.device.detach(queue)));
        change(&self.device);
        for (queue, ring) in stood {
            self.attach(queue, ring.unwrap().next_avail());
        }
    }

    fn queues(&self) -> &GuestEgress {
        match &*self.device.egress {
            Egress::Guest(queues) => queues,
            Egress::Uplink(_) => panic!("a guest's"),
        }
    }

    /// Receive queues in use, and what the last one takes.
    fn chosen(&self) -> (u16, Offloads) {
        let held = self.queues().hold(1).unwrap();
        (self.queues().active(), held.as_ref().unwrap().accepts())
    }
}

#[test]
fn what_a_driver_chose_lasts_until_it_begins_anew() {
    let all = Offloads::CSUM.with(Offloads::TSO4);
    let anew: [fn(&NetDevice); 3] = [
        |device| device.reset(),
        |device| device.negotiated(FEATURES & !features::MTU | 1 << 40),
        |device| {
            device.disconnected();
            device.negotiated(FEATURES);
        },
    ];
    for begin in anew {
        let mut bed = Bed::new();
        for queue in [0, 2, CONTROL] {
            bed.attach(queue, 0);
        }
        assert_eq!(bed.chosen(), (1, all), "before it says anything");
        assert_eq!(bed.commands.use_pairs(2).unwrap(), 0);
        let checksums = features::GUEST_CSUM.to_le_bytes();
        assert_eq!(bed.commands.command(5, 0, &checksums).unwrap(), 0);
        assert_eq!(bed.chosen(), (2, Offloads::CSUM));
        // Another memory map, a ring stopped and started, a migration's log.
        bed.rebuild(|_| {});
        assert_eq!(bed.chosen(), (2, Offloads::CSUM));
        bed.rebuild(|device| device.negotiated(FEATURES | F_LOG_ALL));
        assert_eq!(bed.chosen(), (2, Offloads::CSUM));
        bed.rebuild(begin);
        assert_eq!(bed.chosen(), (1, all));
    }
}

#[test]
fn memory_truncated_under_a_control_queue_ends_the_session() {
    let mut bed = Bed::new();
    bed.attach(CONTROL, 0);
    assert_eq!(bed.commands.use_pairs(2).unwrap(), 0);
    rustix::fs::ftruncate(bed.memory.regions()[0].file(), 0).unwrap();
    bed.commands.driver().events().kick().unwrap();
    let patience = Some(Duration::from_secs(10));
    bed.hung_up.set_read_timeout(patience).unwrap();
    assert_eq!(bed.hung_up.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_guest_is_told_no_larger_mtu_than_its_port_has() {
    let egress = Arc::new(Egress::Guest(GuestEgress::new(2)));
    let shared = Arc::new(PortShared::new(4, 1));
    let device = NetDevice::new("p0".into(), PortNo(0), CARD, egress, shared, Vec::new());
    let shown = || {
        let mut mtu = [0; 2];
        assert!(device.read_config(10, &mut mtu));
        u16::from_le_bytes(mtu)
    };
    assert_eq!((device.max_queues(), shown()), (5, 9000));
    assert!(device.set_mtu(1500) && !device.set_mtu(9001) && !device.set_mtu(67));
    assert_eq!(shown(), 1500);
    device.disconnected();
    assert_eq!(
        shown(),
        9000,
        "the next front-end finds the port as configured"
    );
}

#[test]
fn a_successor_knows_what_was_said_to_the_one_before() {
    let mut bed = Bed::new();
    for queue in [0, 2, CONTROL] {
        bed.attach(queue, 0);
    }
    assert_eq!(bed.device.settings().mtu, None, "as configured");
    assert!(bed.device.set_mtu(1400));
    assert_eq!(bed.commands.use_pairs(2).unwrap(), 0);
    assert_eq!(bed.commands.command(5, 0, &[0; 8]).unwrap(), 0);
    let said = bed.device.settings();
    let expected = Settings {
        mtu: Some(1400),
        pairs: Some(2),
        offloads: Some(0),
        ..Settings::default()
    };
    assert_eq!(said, expected);
    let mut next = Bed::new();
    next.device.restore(&said);
    for queue in [0, 2, CONTROL] {
        next.attach(queue, 0);
    }
    assert_eq!(next.chosen(), (2, Offloads::NONE));
    assert_eq!(next.device.settings(), said);
    // What does not fit the card as it is now does not count.
    let unfit = Settings {
        mtu: Some(9001),
        pairs: Some(3),
        offloads: Some(u64::MAX - 1),
        ..Settings::default()
    };
    let mut next = Bed::new();
    next.device.restore(&unfit);
    for queue in [0, 2, CONTROL] {
        next.attach(queue, 0);
    }
    let all = Offloads::CSUM.with(Offloads::TSO4);
    assert_eq!(next.chosen(), (1, all));
    assert_eq!(next.device.settings().mtu, None);
}
