//! Frames from port to port through one switch: guests are rings in memory, worked by hand, so
//! that each test says what happens when.

mod discards;
mod forwarding;
mod offloads;
mod property;
mod uplinks;

use std::collections::BTreeMap;

use towpath_common::bell::Bell;
use towpath_common::chain::Burst;
use towpath_common::lease::Lease;
use towpath_common::ring::{F_VERSION_1, fence};
use towpath_common::session::Update;
use towpath_common::testing::direct;
use towpath_common::testing::net::{Header, NetPair, Received, Shape};
use towpath_common::testing::{Driver, GuestMemory, SplitDriver, feature};

use super::*;
use crate::egress::{Egress, GuestEgress};
use crate::fdb::{Ageing, Capacity, HashKey};
use crate::guard::{GuardConfig, Guards, Side};
use crate::mirror::Mirrors;
use crate::port::Uplink;
use crate::port::guest::GuestRx;
use crate::port::guest_tx::GuestTx;
use crate::port::memory::{Memory, Wire};
use crate::stats::{PortShared, VlanCounters};
use crate::vlan::{Mode, Vid};

/// Feature bits of a guest that takes and sends everything.
const ALL: u64 = F_VERSION_1 | feature::NET_MRG_RXBUF | feature::NET_OFFLOADS;
/// And of one without offloads.
const PLAIN: u64 = F_VERSION_1 | feature::NET_MRG_RXBUF;

fn vid(vid: u16) -> Vid {
    Vid::new(vid).unwrap()
}

fn access(pvid: u16) -> Mode {
    Mode::Access { pvid: vid(pvid) }
}

fn trunk(allowed: &str, native: Option<u16>) -> Mode {
    Mode::Trunk {
        allowed: allowed.parse().unwrap(),
        native: native.map(vid),
    }
}

/// A port as a test wants it.
struct Wanted {
    mode: Mode,
    features: u64,
    pairs: u16,
    shape: Shape,
    mtu: u32,
    isolated: bool,
    guards: GuardConfig,
    addresses: Vec<Mac>,
}

impl Default for Wanted {
    fn default() -> Wanted {
        Wanted {
            mode: access(1),
            features: ALL,
            pairs: 1,
            shape: Shape {
                tx_buffer: 68 << 10,
                ..Shape::default()
            },
            mtu: 1500,
            isolated: false,
            // No limits: tests that want one say so.
            guards: GuardConfig::usual(Side::Uplink),
            addresses: Vec::new(),
        }
    }
}

/// One end of a port: the driver's.
struct Guest {
    pairs: Vec<NetPair>,
    tx: Vec<GuestTx>,
}

/// A switch and what hangs on it.
struct Bed {
    switch: Switch,
    events: Events,
    ports: Vec<Port>,
    guests: BTreeMap<u16, Guest>,
    uplinks: BTreeMap<u16, Wire>,
    now: Moment,
}

impl Bed {
    fn new() -> Bed {
        let key = HashKey::from_words([1, 2, 3, 5, 7, 11]);
        let fdb = Fdb::new(key, Capacity::default(), Ageing::default());
        let events = Events::default();
        Bed {
            switch: Switch::new(Arc::new(fdb), 0, events.clone()),
            events,
            ports: Vec::new(),
            guests: BTreeMap::new(),
            uplinks: BTreeMap::new(),
            now: Moment::default(),
        }
    }

    fn add(&mut self, wanted: &Wanted, uplink: bool, egress: Egress, queues: usize) -> PortNo {
        let no = PortNo(u16::try_from(self.ports.len()).unwrap());
        self.ports.push(Port {
            no,
            name: format!("p{}", no.0).into(),
            uplink,
            isolated: wanted.isolated,
            mode: wanted.mode.clone(),
            max_frame: wanted.mtu + 14,
            guards: Arc::new(Guards::new(&wanted.guards, &wanted.addresses)),
            egress: Arc::new(egress),
            shared: Arc::new(PortShared::new(queues, 1)),
            vlans: Arc::new(VlanCounters::new(&wanted.mode, 1)),
        });
        self.refresh();
        no
    }

    /// Let the switch see the ports as they are now.
    fn refresh(&mut self) {
        let tables = Tables::new(self.ports.iter().cloned(), Mirrors::default());
        drop(self.switch.set_tables(Arc::new(tables)));
    }

    fn guest(&mut self, wanted: &Wanted) -> PortNo {
        let features = wanted.features;
        let each = wanted.shape.memory() + (1 << 20);
        let memory = GuestMemory::new(each * u64::from(wanted.pairs)).unwrap();
        let mem = direct::mem(&memory).unwrap();
        let egress = GuestEgress::new(wanted.pairs);
        let pairs = usize::from(wanted.pairs);
        let no = PortNo(u16::try_from(self.ports.len()).unwrap());
        let mut guest = Guest {
            pairs: Vec::new(),
            tx: Vec::new(),
        };
        for index in 0..wanted.pairs {
            let ring = || SplitDriver::new(&memory, 256, features).unwrap();
            let pair = NetPair::new([ring(), ring()], &memory, features, wanted.shape);
            let mut pair = pair.unwrap();
            let rx = direct::attach(pair.rx(), &memory, &mem, features).unwrap();
            let tx = direct::attach(pair.tx(), &memory, &mem, features).unwrap();
            let bell = || Bell::new().unwrap();
            let none = QueueCounters::default;
            let rx = GuestRx::new(index * 2, rx, bell(), none(), features).unwrap();
            egress.install(index, rx).unwrap();
            let tx = GuestTx::new(no, index * 2 + 1, tx, bell(), none(), features);
            guest.tx.push(tx.unwrap());
            guest.pairs.push(pair);
        }
        self.guests.insert(no.0, guest);
        self.add(wanted, false, Egress::Guest(egress), pairs * 2 + 1)
    }

    fn uplink(&mut self, wanted: &Wanted, accepts: Offloads, capacity: usize) -> PortNo {
        let (no, mut wires) = self.uplink_queues(wanted, accepts, capacity, 1);
        self.uplinks.insert(no.0, wires.remove(0));
        no
    }

    /// An uplink of several queues, each with a wire of its own.
    fn uplink_queues(
        &mut self,
        wanted: &Wanted,
        accepts: Offloads,
        capacity: usize,
        queues: usize,
    ) -> (PortNo, Vec<Wire>) {
        let max = usize::try_from(wanted.mtu).unwrap() + 14;
        let queue = || Memory::new(accepts, max, capacity).unwrap();
        let (ours, wires): (Vec<_>, Vec<_>) = (0..queues).map(|_| queue()).unzip();
        let leases = ours.into_iter();
        let leases = leases.map(|ours| Lease::new(Box::new(ours) as Box<dyn Uplink>));
        let no = self.add(wanted, true, Egress::Uplink(leases.collect()), queues * 2);
        (no, wires)
    }

    /// Frames and bytes counted by a queue of a port.
    fn counted(&self, port: PortNo, queue: usize) -> (u64, u64) {
        let counters = &self.ports[port.index()].shared.queues[queue].counters;
        let counters = counters.snapshot();
        (counters.frames, counters.bytes)
    }

    /// What a guest sends, all of it, as one or more bursts.
    fn step(&mut self, port: PortNo) {
        let mut burst = Burst::new();
        let guest = self.guests.get_mut(&port.0).unwrap();
        for tx in &mut guest.tx {
            while tx.visit(&mut self.switch, &mut burst, self.now) > 0 {}
        }
        self.settle();
    }

    /// The end of a worker's step.
    fn settle(&mut self) {
        fence();
        self.switch.settle();
        for guest in self.guests.values_mut() {
            guest.tx.iter_mut().for_each(GuestTx::settle);
        }
    }

    fn send_with(&mut self, port: PortNo, pair: usize, header: Header, frame: &[u8]) {
        let guest = self.guests.get_mut(&port.0).unwrap();
        assert!(guest.pairs[pair].queue(header, frame).unwrap());
        guest.pairs[pair].publish().unwrap();
        self.step(port);
    }

    fn send(&mut self, port: PortNo, frame: &[u8]) {
        self.send_with(port, 0, Header::default(), frame);
    }

    /// What arrived at a guest's pair.
    fn received(&mut self, port: PortNo, pair: usize) -> Vec<Received> {
        let pair = &mut self.guests.get_mut(&port.0).unwrap().pairs[pair];
        std::iter::from_fn(|| pair.poll().unwrap()).collect()
    }

    /// The same, of all pairs and as bytes.
    fn frames(&mut self, port: PortNo) -> Vec<Vec<u8>> {
        let pairs = self.guests[&port.0].pairs.len();
        let all = (0..pairs).flat_map(|pair| self.received(port, pair));
        all.map(|received| received.frame).collect()
    }

    /// A burst received by an uplink.
    fn arrive_at_uplink(&mut self, port: PortNo, frames: &[(crate::net::NetHeader, Vec<u8>)]) {
        let (mut source, wire) = Memory::new(Offloads::ALL, 1518, 64).unwrap();
        for (header, frame) in frames {
            assert!(wire.push(*header, frame));
        }
        let count = source.receive(64);
        let mut counters = QueueCounters::default();
        let ingress = Ingress {
            port,
            may_send: Offloads::ALL,
            trusted: true,
            counters: &mut counters,
        };
        self.switch
            .forward(Source::Uplink(&source, count), ingress, self.now);
        self.settle();
    }

    fn wire(&self, port: PortNo) -> Vec<crate::port::memory::Frame> {
        let wire = &self.uplinks[&port.0];
        std::iter::from_fn(|| wire.pop()).collect()
    }

    /// What was dropped, everywhere: port, reason, frames.
    fn dropped(&self) -> Vec<(u16, &'static str, u64)> {
        let mut all = Vec::new();
        for port in &self.ports {
            let counts = port.shared.discards();
            for (name, count) in Discard::NAMES.into_iter().zip(counts) {
                if count > 0 {
                    all.push((port.no.0, name, count));
                }
            }
        }
        all
    }

    fn set(&self, port: PortNo, pair: u16, enabled: bool) {
        if let Egress::Guest(queues) = &*self.ports[port.index()].egress {
            queues.update(pair, Update::Enabled(enabled));
        }
    }
}
