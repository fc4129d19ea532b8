//! Frames through the switch: five guests on access ports and trunks, whose rings are worked here.
//!
//! What arrives must be what was sent, but for its tag; at a port of its VLAN, and not where it
//! came from.

use std::collections::VecDeque;
use std::sync::Arc;

use towpath_common::bell::Bell;
use towpath_common::chain::Burst;
use towpath_common::ring::{F_VERSION_1, fence};
use towpath_common::testing::net::{Header, NetPair, Shape};
use towpath_common::testing::{GuestMemory, SplitDriver, direct, feature};
use vswitch::egress::{Egress, GuestEgress};
use vswitch::fdb::{Ageing, Capacity, Fdb, HashKey};
use vswitch::guard::{GuardConfig, Guards, Side};
use vswitch::mirror::Mirrors;
use vswitch::port::guest::GuestRx;
use vswitch::port::guest_tx::GuestTx;
use vswitch::stats::{Events, PortShared, QueueCounters, VlanCounters};
use vswitch::switch::{Moment, Switch};
use vswitch::table::{Port, PortNo, Tables};
use vswitch::vlan::{Mode, Vid};

const ALL: u64 = F_VERSION_1 | feature::NET_MRG_RXBUF | feature::NET_OFFLOADS;
/// Takes no offloads: the switch computes sums and cuts segments.
const PLAIN: u64 = F_VERSION_1 | feature::NET_MRG_RXBUF;
/// The ports: features; VLAN of what has no tag; VLANs that may come with one.
const PORTS: [(u64, Option<u16>, &[u16]); 5] = [
    (ALL, Some(10), &[]),
    (PLAIN, Some(10), &[]),
    (ALL, Some(20), &[]),
    (ALL, None, &[10, 20]),
    (PLAIN, Some(10), &[10, 30]),
];

struct Guest {
    pair: NetPair,
    tx: GuestTx,
}

fn mode(untagged: Option<u16>, tagged: &[u16]) -> Mode {
    let vid = |vid: u16| Vid::new(vid).unwrap();
    match (untagged, tagged) {
        (Some(pvid), []) => Mode::Access { pvid: vid(pvid) },
        (native, _) => Mode::Trunk {
            allowed: tagged.iter().map(|v| vid(*v)).collect(),
            native: native.map(vid),
        },
    }
}

fn guest(no: PortNo, features: u64, mode: &Mode) -> (Guest, Port) {
    let shape = Shape {
        rx_slots: 64,
        tx_slots: 4,
        tx_buffer: 4096,
        ..Shape::default()
    };
    let memory = GuestMemory::new(shape.memory() + (256 << 10)).unwrap();
    let mem = direct::mem(&memory).unwrap();
    let ring = || SplitDriver::new(&memory, 64, features).unwrap();
    let mut pair = NetPair::new([ring(), ring()], &memory, features, shape).unwrap();
    let rx = direct::attach(pair.rx(), &memory, &mem, features).unwrap();
    let tx = direct::attach(pair.tx(), &memory, &mem, features).unwrap();
    let bell = || Bell::new().unwrap();
    let egress = GuestEgress::new(1);
    let counters = QueueCounters::default;
    let rx = GuestRx::new(0, rx, bell(), counters(), features).unwrap();
    egress.install(0, rx).unwrap();
    let tx = GuestTx::new(no, 1, tx, bell(), counters(), features).unwrap();
    let port = Port {
        no,
        name: format!("p{}", no.0).into(),
        uplink: false,
        isolated: false,
        mode: mode.clone(),
        max_frame: 1514,
        // No limits: what does not arrive has another reason.
        guards: Arc::new(Guards::new(&GuardConfig::usual(Side::Uplink), &[])),
        egress: Arc::new(Egress::Guest(egress)),
        shared: Arc::new(PortShared::new(3, 1)),
        vlans: Arc::new(VlanCounters::new(mode, 1)),
    };
    (Guest { pair, tx }, port)
}

/// A frame and its tag, if the tag is one of 802.1Q.
fn untag(frame: &[u8]) -> (Vec<u8>, Option<u16>) {
    match frame.get(12..16) {
        Some([0x81, 0, high, low]) => {
            let tci = u16::from_be_bytes([*high, *low]);
            ([&frame[..12], &frame[16..]].concat(), Some(tci & 0x0fff))
        }
        _ => (frame.to_vec(), None),
    }
}

/// The VLAN of what a port sends, if it may send it.
fn vlan(port: usize, tag: Option<u16>) -> Option<u16> {
    let (_, untagged, tagged) = PORTS[port];
    match tag {
        None | Some(0) => untagged,
        Some(vid) => tagged.contains(&vid).then_some(vid),
    }
}

/// Again and again: a byte for the port and whether a header of offloads follows (of ten bytes), a
/// byte for the length (in eights), and the frame.
pub(crate) fn frames(input: &[u8]) {
    let fdb = Fdb::new(
        HashKey::from_words([1, 2, 3, 5, 7, 11]),
        Capacity::default(),
        Ageing::default(),
    );
    let mut switch = Switch::new(Arc::new(fdb), 0, Events::default());
    let (mut guests, mut ports) = (Vec::new(), Vec::new());
    for (no, (features, untagged, tagged)) in (0u16..).zip(PORTS) {
        let (guest, port) = guest(PortNo(no), features, &mode(untagged, tagged));
        guests.push(guest);
        ports.push(port);
    }
    drop(switch.set_tables(Arc::new(Tables::new(ports, Mirrors::default()))));
    let mut burst = Burst::new();
    let mut rest = VecDeque::from(input.to_vec());
    let mut take = |n: usize| -> Vec<u8> { rest.drain(..n.min(rest.len())).collect() };
    for _ in 0..64 {
        let [what, len] = take(2)[..] else { break };
        let from = usize::from(what & 7) % PORTS.len();
        let mut header = [0; 12];
        if what & 8 != 0 {
            let given = take(10);
            header[..given.len()].copy_from_slice(&given);
        }
        let plain = header == [0; 12];
        let frame = take(usize::from(len) * 8);
        let sent = guests[from]
            .pair
            .queue(Header::parse(&header), &frame)
            .unwrap();
        assert!(sent, "a buffer did not come back");
        guests[from].pair.publish().unwrap();
        while guests[from]
            .tx
            .visit(&mut switch, &mut burst, Moment::default())
            > 0
        {}
        fence();
        switch.settle();
        guests.iter_mut().for_each(|guest| guest.tx.settle());
        assert_eq!(guests[from].pair.take_back().unwrap(), 1, "it was not used");
        let (content, tag) = untag(&frame);
        let vlan = vlan(from, tag);
        for (to, guest) in guests.iter_mut().enumerate() {
            let mut copies = 0;
            while let Some(received) = guest.pair.poll().unwrap() {
                copies += 1;
                check(from, to, vlan, &frame, &received.frame);
                // What the switch completed or cut has other bytes, and may be several frames.
                if plain {
                    assert_eq!(untag(&received.frame).0, content, "{from} to {to}");
                    assert_eq!(copies, 1, "twice to {to}");
                }
            }
        }
    }
}

fn check(from: usize, to: usize, vlan: Option<u16>, sent: &[u8], received: &[u8]) {
    assert_ne!(from, to, "back to its sender");
    assert!(sent.len() >= 14, "a runt of {} bytes", sent.len());
    assert_eq!(sent[6] & 1, 0, "from a group");
    let reserved = sent[..5] == [1, 0x80, 0xc2, 0, 0] && sent[5] < 16;
    assert!(!reserved, "a reserved address");
    let vlan = vlan.unwrap_or_else(|| panic!("{from} must not send it: {sent:?}"));
    let (_, untagged, tagged) = PORTS[to];
    match untag(received).1 {
        Some(vid) => assert!(vid == vlan && tagged.contains(&vid), "{vid} to {to}"),
        None => assert_eq!(untagged, Some(vlan), "untagged to {to}"),
    }
}
