//! Counters of VLANs, and frames that are too long for their receiver.

use towpath_common::control::{Answer, Status};
use towpath_common::testing::net::NetClient;
use towpath_common::testing::net::frame::{BROADCAST, Frame, Mac, station};
use vswitch::config::{Change, Diff, PortEdit};
use vswitch::control::{Order, Stats};
use vswitch::service::VlanFlow;
use vswitch::vlan::Vid;

use crate::bed::{Bed, eventually, frame};

fn flow(vlan: u16, rx: (u64, u64), tx: (u64, u64)) -> VlanFlow {
    VlanFlow {
        vlan: Vid::new(vlan).unwrap(),
        rx_packets: rx.0,
        rx_bytes: rx.1,
        tx_packets: tx.0,
        tx_bytes: tx.1,
    }
}

fn tagged(to: Mac, from: Mac, vlan: u16, len: usize) -> Vec<u8> {
    Frame::new(to, from).vlan(vlan).numbered(1, len).bytes()
}

fn take(guest: &mut NetClient, frames: usize) {
    for _ in 0..frames {
        guest.expect().unwrap();
    }
}

fn flows(bed: &Bed, port: &str) -> Vec<VlanFlow> {
    bed.port(port).stats.vlans
}

#[test]
fn vlans_are_counted_to_the_frame() {
    let (a, b, t) = (station(1), station(2), station(3));
    let ports = [
        ("a", "access = 10"),
        ("b", "access = 20"),
        ("t", "trunk = \"10,20,4094\""),
    ];
    let bed = Bed::start(&ports, "");
    let [mut ga, mut gb, mut gt] = ports.map(|(name, _)| bed.guest(name));
    // 100 bytes of payload are 114 of frame, and 118 with a tag.
    for _ in 0..3 {
        ga.send(&frame(BROADCAST, a, 1, 100)).unwrap();
    }
    take(&mut gt, 3);
    // VLANs in turns, in one burst or several; those of 4094 have nowhere to go.
    for vlan in [10, 10, 20, 4094, 10, 20, 30] {
        gt.send(&tagged(BROADCAST, t, vlan, 100)).unwrap();
    }
    take(&mut ga, 3);
    take(&mut gb, 2);
    gb.send(&frame(t, b, 1, 200)).unwrap();
    take(&mut gt, 1);

    let (a_flows, b_flows) = (
        vec![flow(10, (3, 342), (3, 354))],
        vec![flow(20, (1, 214), (2, 236))],
    );
    let t_flows = vec![flow(10, (3, 354), (3, 342)), flow(20, (2, 236), (1, 214))];
    eventually(|| flows(&bed, "b") == b_flows && flows(&bed, "t") == t_flows);
    assert_eq!(flows(&bed, "a"), a_flows);
    assert_eq!(bed.discards("t", "no_member"), 1);
    assert_eq!(bed.discards("t", "vlan_not_allowed"), 1);

    let stats: Stats = bed.get("/v1/stats");
    let sums = [flow(10, (6, 696), (6, 696)), flow(20, (3, 450), (3, 450))];
    assert_eq!(stats.vlans[..2], sums);
}

#[test]
fn counts_outlive_a_change_of_vlans() {
    let bed = Bed::start(&[("a", "access = 10"), ("b", "access = 10")], "");
    let (mut ga, mut gb) = (bed.guest("a"), bed.guest("b"));
    ga.send(&frame(BROADCAST, station(1), 1, 100)).unwrap();
    take(&mut gb, 1);
    eventually(|| flows(&bed, "a") == [flow(10, (1, 114), (0, 0))]);
    for name in ["a", "b"] {
        let edit = PortEdit {
            name: name.parse().unwrap(),
            set: toml::from_str("access = 5").unwrap(),
            unset: Vec::new(),
        };
        let order = Order {
            change: Change::PortSet(edit),
            persist: false,
        };
        let answer: Answer<Diff> = bed.client.post("/v1/change", &order).unwrap();
        assert_eq!(answer.status, Status::Success, "{}", answer.description);
    }
    ga.send(&frame(BROADCAST, station(1), 2, 100)).unwrap();
    take(&mut gb, 1);
    let both = [flow(5, (1, 114), (0, 0)), flow(10, (1, 114), (0, 0))];
    eventually(|| flows(&bed, "a") == both);
}

#[test]
fn no_frame_is_longer_than_its_receiver_takes() {
    let (a, small, t) = (station(1), station(2), station(3));
    let ports = [
        ("a", "access = 10\nmtu = 9000"),
        ("s", "access = 10\nmtu = 1000"),
        ("t", "trunk = \"10\"\nmtu = 1000"),
    ];
    let bed = Bed::start(&ports, "");
    let [mut ga, mut gs, mut gt] = ports.map(|(name, _)| bed.guest(name));
    ga.send(&frame(BROADCAST, a, 1, 1001)).unwrap();
    ga.send(&frame(BROADCAST, a, 2, 1000)).unwrap();
    assert_eq!(gs.expect().unwrap().frame, frame(BROADCAST, a, 2, 1000));
    let with_tag = Frame::new(BROADCAST, a).vlan(10).numbered(2, 1000).bytes();
    assert_eq!(gt.expect().unwrap().frame, with_tag, "a tag comes on top");
    eventually(|| bed.discards("s", "too_big_for_receiver") == 1);
    eventually(|| bed.discards("t", "too_big_for_receiver") == 1);
    // And in again, tagged.
    gt.send(&tagged(small, t, 10, 1000)).unwrap();
    let untagged = Frame::new(small, t).numbered(1, 1000).bytes();
    assert_eq!(gs.expect().unwrap().frame, untagged);
}
