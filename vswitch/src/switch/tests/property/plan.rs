//! What the property is tried on: ports of all kinds, and what happens to them.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use towpath_common::testing::net::frame::{BROADCAST, Frame, station};
use towpath_common::testing::net::{Cut, Shape};

use super::oracle::{Address, Vlans};

/// VLANs that ports carry.
const VIDS: [u16; 4] = [1, 10, 20, 4094];
/// And one that none does.
const STRANGER: u16 = 30;
/// Receive buffers: whether they are merged, how many, of how many bytes, in pieces of how many.
const BUFFERS: [(bool, u16, u32, u32); 12] = [
    (true, 128, 1536, u32::MAX),
    (true, 100, 256, 100),
    (true, 9, 1536, u32::MAX),
    // Longer frames than 64 of these hold.
    (true, 200, 64, u32::MAX),
    // The number of buffers stands in two segments.
    (true, 120, 44, 11),
    // More pieces than a burst has room for.
    (true, 200, 256, 16),
    (false, 128, 2048, 12),
    (false, 100, 700, 350),
    // The longest untagged frame, and no tag.
    (false, 70, 1526, u32::MAX),
    (false, 64, 4096, 16),
    (false, 5, 10_240, u32::MAX),
    (false, 70, 10_240, 4096),
];
/// For several queues: never full.
const AMPLE: (bool, u16, u32, u32) = (true, 64, 10_240, u32::MAX);

/// A port in the making.
#[derive(Debug, Clone)]
pub(super) struct PortPlan {
    pub(super) vlans: Vlans,
    pub(super) uplink: bool,
    pub(super) isolated: bool,
    pub(super) mtu: u32,
    pub(super) pairs: u16,
    pub(super) mergeable: bool,
    pub(super) shape: Shape,
    pub(super) indirect: bool,
    pub(super) in_order: bool,
    pub(super) event_idx: bool,
    pub(super) offloads: bool,
    pub(super) bpdu_guard: bool,
    pub(super) mac_limit: Option<usize>,
    pub(super) sources: Vec<Address>,
}

/// Frames that differ in their number only.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) to: Address,
    pub(super) from: Address,
    tags: Vec<(u16, u16)>,
    ethertype: u16,
    len: usize,
    pub(super) cut: Cut,
    pub(super) count: usize,
}

impl Run {
    /// Its frame that carries `number`, if it is long enough for one.
    pub(super) fn frame(&self, number: u64) -> Vec<u8> {
        let mut frame = Frame::new(self.to, self.from).ethertype(self.ethertype);
        frame.tags.clone_from(&self.tags);
        let mut bytes = frame.numbered(number, self.len).bytes();
        bytes.truncate(self.len);
        bytes
    }
}

/// Something that happens.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// A port sends at most 64 frames.
    Burst(Vec<Run>),
    /// It gets other VLANs.
    Vlans(Vlans),
    /// Its receive queues are enabled or not.
    Receives(bool),
    /// Its transmit queues are.
    Transmits(bool),
    /// It keeps the buffers it got frames in, or gives them back.
    Holds(bool),
    /// A station is said to be there.
    Fix(u16, Address),
    /// What was learned is forgotten.
    Flush,
}

fn vlans() -> impl Strategy<Value = Vlans> {
    let native = proptest::option::of(select(&VIDS[..]));
    let trunk = (subsequence(VIDS.to_vec(), 0..=VIDS.len()), native);
    prop_oneof![
        3 => select(&VIDS[..]).prop_map(Vlans::Access),
        4 => trunk.prop_map(|(allowed, native)| Vlans::Trunk {
            allowed: allowed.into_iter().collect::<BTreeSet<_>>(),
            native,
        }),
    ]
}

/// One time in `n`.
fn rarely(n: u32) -> impl Strategy<Value = bool> {
    (0..n).prop_map(move |i| i + 1 == n)
}

pub(super) fn port() -> impl Strategy<Value = PortPlan> {
    let kind = (vlans(), rarely(4), rarely(4), rarely(3), rarely(4));
    let rings = (select(&BUFFERS[..]), [any::<bool>(); 4]);
    let stations = subsequence((0..STATIONS).map(station).collect::<Vec<_>>(), 2..5);
    let guards = (rarely(4), rarely(6), 1..5_usize, rarely(8), stations);
    (kind, rings, guards).prop_map(|(kind, rings, guards)| {
        let (vlans, uplink, isolated, jumbo, several) = kind;
        let (buffers, [indirect, in_order, event_idx, offloads]) = rings;
        let (bpdu_guard, limited, limit, guarded, stations) = guards;
        let (mergeable, rx_slots, rx_buffer, rx_piece) = if several { AMPLE } else { buffers };
        let shape = Shape {
            rx_slots,
            rx_buffer,
            rx_piece,
            tx_slots: 64,
            tx_buffer: 10_240,
            ..Shape::default()
        };
        let descriptors = u32::from(rx_slots) * rx_buffer.div_ceil(rx_piece);
        PortPlan {
            vlans,
            uplink,
            isolated: isolated && !uplink,
            mtu: if jumbo { 9000 } else { 1500 },
            pairs: 1 + u16::from(several && !uplink),
            mergeable,
            shape,
            indirect: indirect || in_order || descriptors > 256,
            in_order,
            event_idx,
            offloads,
            bpdu_guard,
            mac_limit: limited.then_some(limit),
            sources: if guarded { stations } else { Vec::new() },
        }
    })
}

const STATIONS: u32 = 6;

fn anybody() -> impl Strategy<Value = Address> {
    (0..STATIONS).prop_map(station)
}

fn destination() -> impl Strategy<Value = Address> {
    let groups = [
        [0x01, 0x00, 0x5e, 0, 0, 9],
        [0x33, 0x33, 0, 0, 0, 1],
        [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcd],
        [0x01, 0x80, 0xc2, 0, 0, 0x10],
        [0x01, 0x80, 0xc2, 0, 1, 0],
        [0; 6],
    ];
    prop_oneof![
        12 => anybody(),
        3 => Just(BROADCAST),
        2 => select(groups.to_vec()),
        1 => (0..16_u8).prop_map(|last| [0x01, 0x80, 0xc2, 0, 0, last]),
    ]
}

fn source() -> impl Strategy<Value = Address> {
    let bad = [BROADCAST, [0; 6], [0x01, 0, 0x5e, 0, 0, 9]];
    prop_oneof![30 => anybody(), 1 => select(bad.to_vec())]
}

fn tags() -> impl Strategy<Value = Vec<(u16, u16)>> {
    let vid = || select([&VIDS[..], &VIDS[..], &[STRANGER]].concat());
    let tci = move || (0..16_u16, vid()).prop_map(|(upper, vid)| upper << 12 | vid);
    let tpid = || prop_oneof![4 => Just(0x8100_u16), 1 => Just(0x88a8)];
    let priority = || (0..16_u16).prop_map(|upper| upper << 12);
    prop_oneof![
        6 => Just(Vec::new()),
        6 => tci().prop_map(|tci| vec![(0x8100, tci)]),
        2 => priority().prop_map(|tci| vec![(0x8100, tci)]),
        2 => (tci(), tpid(), tci()).prop_map(|(a, tpid, b)| vec![(0x8100, a), (tpid, b)]),
        1 => (tpid(), any::<u16>()).prop_map(|tag| vec![tag]),
        1 => (priority(), tpid(), tci()).prop_map(|(a, tpid, b)| vec![(0x8100, a), (tpid, b)]),
        1 => Just(vec![(0x8100, 0x0fff)]),
    ]
}

/// Runts, everything up to a jumbo frame, and what lies around the limits in the code and in
/// buffers.
fn len() -> impl Strategy<Value = usize> {
    prop_oneof![
        6 => 34..200_usize,
        4 => 14..=1514_usize,
        1 => 0..34_usize,
        2 => 124..=136_usize,
        1 => 1510..1530_usize,
        2 => 1500..9100_usize,
        1 => 9010..9022_usize,
    ]
}

fn run() -> impl Strategy<Value = Run> {
    let cuts = [1, 7, 13, 139, 140, 141, 1000];
    let cut = prop_oneof![
        Just(Cut::Whole),
        Just(Cut::Header),
        select(cuts.to_vec()).prop_map(Cut::Pieces),
    ];
    let ethertype = select(vec![0x88b5, 0x88b5, 0x88b5, 0x0800, 0x86dd, 0x0040]);
    let count = prop_oneof![3 => Just(1), 2 => 1..12_usize];
    let all = (
        destination(),
        source(),
        tags(),
        ethertype,
        len(),
        cut,
        count,
    );
    all.prop_map(|(to, from, tags, ethertype, len, cut, count)| Run {
        to,
        from,
        tags,
        ethertype,
        len,
        cut,
        count,
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        24 => vec(run(), 1..24).prop_map(Step::Burst),
        1 => vlans().prop_map(Step::Vlans),
        3 => any::<bool>().prop_map(Step::Receives),
        2 => any::<bool>().prop_map(Step::Transmits),
        2 => any::<bool>().prop_map(Step::Holds),
        1 => (select(&VIDS[..]), anybody()).prop_map(|(vid, whom)| Step::Fix(vid, whom)),
        1 => Just(Step::Flush),
    ]
}

/// Ports, and what happens, each time at one of them (modulo their number).
pub(super) fn plan() -> impl Strategy<Value = (Vec<PortPlan>, Vec<(usize, Step)>)> {
    (vec(port(), 2..=8), vec((0..840_usize, step()), 1..16))
}
