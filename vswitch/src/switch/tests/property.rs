//! Every forwarded frame arrives bit-exact with the tag it must have, exactly once per member, and
//! never outside its VLAN; every other frame is counted with its reason.
//!
//! Random ports get random bursts, and so does a bridge on paper ([`oracle`]). After each burst,
//! what arrived at every port and what was counted must be the same at both.

mod oracle;
mod plan;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use towpath_common::testing::Form;
use towpath_common::testing::net::{Cut, HEADER};

use super::*;
use crate::fdb::Filter;
use crate::net::NetHeader;
use oracle::{Arrival, Oracle, Room, Sum, Vlans};
use plan::{PortPlan, Run, Step};

/// Frames that an uplink's wire holds.
const WIRE: usize = 12;

impl Vlans {
    fn mode(&self) -> Mode {
        match self {
            Vlans::Access(pvid) => access(*pvid),
            Vlans::Trunk { allowed, native } => Mode::Trunk {
                allowed: allowed.iter().copied().map(vid).collect(),
                native: native.map(vid),
            },
        }
    }
}

impl PortPlan {
    fn wanted(&self) -> Wanted {
        let bit = |on, bit| if on { bit } else { 0 };
        let mut guards = GuardConfig::usual(Side::Uplink);
        guards.bpdu_guard = self.bpdu_guard;
        guards.source_guard = true;
        if let Some(limit) = self.mac_limit {
            guards.mac_limit = limit.to_string().parse().unwrap();
        }
        Wanted {
            mode: self.vlans.mode(),
            features: F_VERSION_1
                | bit(self.mergeable, feature::NET_MRG_RXBUF)
                | bit(self.indirect, feature::INDIRECT_DESC)
                | bit(self.in_order, feature::IN_ORDER)
                | bit(self.event_idx, feature::EVENT_IDX)
                | bit(self.offloads, feature::NET_OFFLOADS),
            pairs: self.pairs,
            shape: Shape {
                form: if self.indirect {
                    Form::Indirect
                } else {
                    Form::Direct
                },
                ..self.shape
            },
            mtu: self.mtu,
            isolated: self.isolated,
            guards,
            addresses: self.sources.iter().copied().map(Mac).collect(),
        }
    }

    fn on_paper(&self) -> oracle::Port {
        let slots = usize::from(self.shape.rx_slots);
        let room = if self.uplink {
            Room {
                slots: WIRE,
                size: usize::MAX,
                mergeable: false,
                pieces: 1,
                free: WIRE,
            }
        } else {
            Room {
                slots,
                size: usize::try_from(self.shape.rx_buffer).unwrap(),
                mergeable: self.mergeable,
                pieces: self.shape.rx_buffer.div_ceil(self.shape.rx_piece) as usize,
                free: slots,
            }
        };
        oracle::Port {
            vlans: self.vlans.clone(),
            uplink: self.uplink,
            isolated: self.isolated,
            longest: usize::try_from(self.mtu).unwrap() + 14,
            sources: self.sources.clone(),
            bpdu_guard: self.bpdu_guard,
            mac_limit: self.mac_limit,
            room,
            receives: true,
            transmits: true,
            arrivals: Vec::new(),
            rx: Sum::default(),
            tx: Sum::default(),
            by_vlan: BTreeMap::new(),
            dropped: BTreeMap::new(),
        }
    }
}

/// The switch and the bridge on paper, side by side.
struct Twins {
    bed: Bed,
    paper: Oracle,
    plans: Vec<PortPlan>,
    holds: Vec<bool>,
    /// Number of the next frame.
    number: u64,
    /// The queue of a flow, by receiver and addresses.
    flows: BTreeMap<(usize, [u8; 12]), usize>,
}

impl Twins {
    fn new(plans: Vec<PortPlan>) -> Twins {
        let mut bed = Bed::new();
        let mut paper = Oracle::default();
        for plan in &plans {
            let wanted = plan.wanted();
            if plan.uplink {
                let accepts = if plan.offloads {
                    Offloads::ALL
                } else {
                    Offloads::NONE
                };
                bed.uplink(&wanted, accepts, WIRE);
            } else {
                bed.guest(&wanted);
            }
            paper.ports.push(plan.on_paper());
        }
        Twins {
            bed,
            paper,
            holds: vec![false; plans.len()],
            plans,
            number: 0,
            flows: BTreeMap::new(),
        }
    }

    fn step(&mut self, at: usize, step: Step) -> Result<(), TestCaseError> {
        // A second later: how often a station may move in one is the FDB's own affair.
        self.bed.now.seconds += 1;
        let no = PortNo(u16::try_from(at).unwrap());
        let uplink = self.plans[at].uplink;
        let pairs = self.plans[at].pairs;
        match step {
            Step::Burst(runs) => self.burst(at, &runs),
            Step::Vlans(vlans) => self.change(at, vlans),
            Step::Receives(on) if !uplink => {
                for pair in 0..pairs {
                    self.bed.set(no, pair, on);
                }
                self.paper.ports[at].receives = on;
            }
            Step::Transmits(on) if !uplink => {
                for tx in &mut self.bed.guests.get_mut(&no.0).unwrap().tx {
                    tx.update(Update::Enabled(on));
                }
                self.paper.ports[at].transmits = on;
            }
            Step::Holds(on) if !uplink && pairs == 1 => {
                let pair = &mut self.bed.guests.get_mut(&no.0).unwrap().pairs[0];
                pair.hold(on).unwrap();
                self.holds[at] = on;
            }
            Step::Fix(vlan, address) => {
                let fdb = self.bed.switch.fdb();
                fdb.set_static(vid(vlan), Mac(address), no).unwrap();
                self.paper.fix(vlan, address, at);
            }
            Step::Flush => {
                self.bed.switch.fdb().flush(&Filter::default());
                self.paper.flush();
            }
            Step::Receives(_) | Step::Transmits(_) | Step::Holds(_) => {}
        }
        self.compare()
    }

    /// A port sends.
    fn burst(&mut self, at: usize, runs: &[Run]) {
        let no = PortNo(u16::try_from(at).unwrap());
        let pairs = usize::from(self.plans[at].pairs);
        let mut frames = vec![Vec::new(); pairs];
        let all = runs.iter().flat_map(|run| (0..run.count).map(move |_| run));
        for run in all.take(BURST) {
            // A driver keeps a flow in one queue.
            let pair = usize::from(run.to[5] ^ run.from[5]) % pairs;
            frames[pair].push((run.frame(self.number), run.cut));
            self.number += 1;
        }
        for (bytes, _) in frames.iter().flatten() {
            self.paper.receive(at, bytes);
        }
        if self.plans[at].uplink {
            let frames: Vec<_> = frames.concat().into_iter().collect();
            let frames = frames.into_iter().map(|f| (NetHeader::default(), f.0));
            return self.bed.arrive_at_uplink(no, &frames.collect::<Vec<_>>());
        }
        let guest = self.bed.guests.get_mut(&no.0).unwrap();
        for (pair, frames) in guest.pairs.iter_mut().zip(frames) {
            for (bytes, cut) in frames {
                pair.shape().cut = feasible(cut, bytes.len(), self.plans[at].indirect);
                assert!(pair.queue(Header::default(), &bytes).unwrap(), "no room");
            }
            pair.publish().unwrap();
        }
        self.bed.step(no);
    }

    fn change(&mut self, at: usize, vlans: Vlans) {
        let port = &mut self.bed.ports[at];
        port.mode = vlans.mode();
        port.vlans = Arc::new(VlanCounters::new(&port.mode, 1));
        self.bed.refresh();
        self.paper.ports[at].vlans = vlans;
        self.paper.ports[at].by_vlan.clear();
    }

    /// What arrived, and what was counted.
    fn compare(&mut self) -> Result<(), TestCaseError> {
        for at in 0..self.plans.len() {
            let expected = std::mem::take(&mut self.paper.ports[at].arrivals);
            let arrived = self.arrived(at)?;
            if let [only] = &arrived[..] {
                prop_assert_eq!(only, &expected, "at port {}", at);
            } else {
                self.compare_queues(at, &arrived, expected)?;
            }
            if !self.holds[at] {
                let room = &mut self.paper.ports[at].room;
                room.free = room.slots;
            }
        }
        prop_assert!(self.bed.events.take().is_none(), "a ring broke");
        self.compare_counters()
    }

    /// By queue.
    fn arrived(&mut self, at: usize) -> Result<Vec<Vec<Arrival>>, TestCaseError> {
        let no = PortNo(u16::try_from(at).unwrap());
        let mut arrived = Vec::new();
        if self.plans[at].uplink {
            let frames = self.bed.wire(no).into_iter().map(|frame| {
                prop_assert_eq!(frame.header, NetHeader::default());
                let bytes = frame.bytes;
                Ok(Arrival { bytes, buffers: 1 })
            });
            arrived.push(frames.collect::<Result<_, TestCaseError>>()?);
        }
        for pair in 0..usize::from(self.plans[at].pairs) {
            if self.plans[at].uplink {
                break;
            }
            let frames = self.bed.received(no, pair).into_iter().map(|received| {
                let num_buffers = received.header.num_buffers;
                let plain = Header {
                    num_buffers,
                    ..Header::default()
                };
                prop_assert_eq!(received.header, plain);
                Ok(Arrival {
                    bytes: received.frame,
                    buffers: num_buffers.into(),
                })
            });
            arrived.push(frames.collect::<Result<_, TestCaseError>>()?);
        }
        Ok(arrived)
    }

    /// Each queue got some of the frames, in their order, and a flow always the same.
    fn compare_queues(
        &mut self,
        at: usize,
        arrived: &[Vec<Arrival>],
        expected: Vec<Arrival>,
    ) -> Result<(), TestCaseError> {
        let mut left: Vec<_> = expected.into_iter().map(Some).collect();
        for (queue, frames) in arrived.iter().enumerate() {
            let mut from = 0;
            for frame in frames {
                let found = left[from..].iter().position(|e| e.as_ref() == Some(frame));
                prop_assert!(
                    found.is_some(),
                    "port {at}, queue {queue}: not expected, or out of order: {frame:02x?}"
                );
                from += found.unwrap_or_default();
                left[from] = None;
                // Flows of IP are told apart by more than this.
                let ip = [0x0800_u16, 0x86dd].map(u16::to_be_bytes);
                let key = frame.bytes[..12].try_into().unwrap();
                if !ip
                    .iter()
                    .any(|ip| frame.bytes[12..].windows(2).any(|w| w == ip))
                {
                    let before = *self.flows.entry((at, key)).or_insert(queue);
                    prop_assert_eq!(before, queue, "a flow of port {} changed its queue", at);
                }
            }
        }
        let lost: Vec<_> = left.into_iter().flatten().collect();
        prop_assert!(lost.is_empty(), "port {at} did not get {lost:02x?}");
        Ok(())
    }

    fn compare_counters(&self) -> Result<(), TestCaseError> {
        let (mut delivered, mut dropped) = (0, 0);
        for (at, paper) in self.paper.ports.iter().enumerate() {
            let port = &self.bed.ports[at];
            let shared = port.shared.queues.iter().step_by(2);
            let tx = sum(shared.map(|queue| queue.counters.snapshot()));
            prop_assert_eq!(tx, paper.tx, "tx of port {}", at);
            if let Some(guest) = self.bed.guests.get(&port.no.0) {
                let rx = sum(guest.tx.iter().map(|tx| tx.counters));
                prop_assert_eq!(rx, paper.rx, "rx of port {}", at);
            }
            let by_vlan = port.vlans.carried().map(|(vid, carried)| {
                let rx = Sum(carried.rx_frames, carried.rx_bytes);
                (vid.get(), [rx, Sum(carried.tx_frames, carried.tx_bytes)])
            });
            prop_assert_eq!(&by_vlan.collect::<BTreeMap<_, _>>(), &paper.by_vlan);
            let counts = Discard::NAMES.into_iter().zip(port.shared.discards());
            let counts: BTreeMap<_, _> = counts.filter(|(_, count)| *count > 0).collect();
            prop_assert_eq!(&counts, &paper.dropped, "dropped at port {}", at);
            delivered += tx.0;
            dropped += counts.values().sum::<u64>();
        }
        prop_assert_eq!(delivered + dropped, self.paper.decisions);
        Ok(())
    }
}

fn sum(queues: impl Iterator<Item = QueueCounters>) -> Sum {
    queues.fold(Sum::default(), |sum, queue| {
        Sum(sum.0 + queue.frames, sum.1 + queue.bytes)
    })
}

/// The cut, or one with as few pieces as a chain may have.
fn feasible(cut: Cut, len: usize, indirect: bool) -> Cut {
    let Cut::Pieces(bytes) = cut else { return cut };
    let most = if indirect { 250 } else { 4 };
    let least = (HEADER + len).div_ceil(most);
    Cut::Pieces(bytes.max(u32::try_from(least).unwrap()))
}

/// All reasons but those that need a clock or a header that asks for something.
const REASONS: [&str; 20] = [
    "bad_source",
    "bad_tag",
    "bpdu_guard",
    "giant",
    "hairpin",
    "isolated",
    "link_local",
    "mac_limit",
    "nested_tag",
    "no_member",
    "port_down",
    "receiver_full",
    "receiver_small",
    "ring_disabled",
    "runt",
    "source_guard",
    "tagged_on_access",
    "too_big_for_receiver",
    "untagged_on_trunk",
    "vlan_not_allowed",
];

#[test]
fn every_frame_arrives_as_it_must_where_it_must_and_nowhere_else() {
    let mut runner = TestRunner::new(Config {
        failure_persistence: None,
        ..Config::default()
    });
    let reached = RefCell::new(BTreeSet::new());
    let outcome = runner.run(&plan::plan(), |(plans, steps)| {
        let mut twins = Twins::new(plans);
        let ports = twins.plans.len();
        for (at, step) in steps {
            twins.step(at % ports, step)?;
        }
        let ports = twins.paper.ports.iter();
        let dropped = ports.flat_map(|port| port.dropped.keys());
        reached.borrow_mut().extend(dropped.copied());
        Ok(())
    });
    if let Err(why) = outcome {
        panic!("{why}");
    }
    // A few cases asked for by hand need not reach all.
    if runner.config().cases >= 256 {
        assert!(reached.into_inner().into_iter().eq(REASONS), "all were met");
    }
}
