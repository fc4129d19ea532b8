//! Mirrors: exact copies, and nothing else.

use std::time::Duration;

use towpath_common::control::{Answer, Status};
use towpath_common::testing::net::NetClient;
use towpath_common::testing::net::frame::{BROADCAST, Frame, station};
use vswitch::config::{Change, Diff, Mirror};
use vswitch::control::Order;

use crate::bed::{Bed, eventually, frame};

/// A frame that must not come has time to.
const NOTHING: Duration = Duration::from_millis(50);

fn next(guest: &mut NetClient) -> Vec<u8> {
    guest.expect().unwrap().frame
}

fn change(bed: &Bed, change: Change) -> Answer<Diff> {
    let persist = false;
    bed.client
        .post("/v1/change", &Order { change, persist })
        .unwrap()
}

fn mirror(keys: &str) -> Mirror {
    let name = "name = \"m\"\nto = \"m\"\n".to_owned();
    toml::from_str(&(name + keys)).unwrap()
}

#[test]
fn a_mirror_copies_both_directions_of_a_port_and_gets_nothing_else() {
    let (a, b, c) = (station(1), station(2), station(3));
    let ports = [("a", ""), ("b", ""), ("c", ""), ("m", "")];
    let mirror = "[[mirror]]\nname = \"m\"\nfrom = [\"a\"]\nto = \"m\"\n";
    let bed = Bed::start(&ports, mirror);
    let [mut ga, mut gb, mut gc, mut monitor] = ports.map(|(name, _)| bed.guest(name));
    // c's broadcast reaches a, so it is copied; once, and the monitor is no member besides.
    let hello = frame(BROADCAST, c, 1, 300);
    gc.send(&hello).unwrap();
    assert_eq!(
        [next(&mut ga), next(&mut gb)],
        [hello.clone(), hello.clone()]
    );
    assert_eq!(next(&mut monitor), hello);
    // b to c does not concern a.
    gb.send(&frame(c, b, 2, 300)).unwrap();
    assert_eq!(next(&mut gc), frame(c, b, 2, 300));
    // From a, longer than what the switch reads of a frame.
    let long = frame(c, a, 3, 1400);
    ga.send(&long).unwrap();
    assert_eq!([next(&mut gc), next(&mut monitor)], [long.clone(), long]);
    gc.send(&frame(a, c, 4, 60)).unwrap();
    let both = [next(&mut ga), next(&mut monitor)];
    assert_eq!(both, [frame(a, c, 4, 60), frame(a, c, 4, 60)]);
    // What the monitor sends goes nowhere, and teaches nothing.
    monitor.send(&frame(BROADCAST, station(9), 5, 60)).unwrap();
    eventually(|| bed.discards("m", "no_member") == 1);
    assert_eq!(bed.port("m").learned, 0);
    for guest in [&mut ga, &mut gb, &mut gc, &mut monitor] {
        assert_eq!(guest.receive(NOTHING).unwrap(), None);
    }
}

#[test]
fn a_mirrors_output_goes_on_switching_if_it_is_said_to_be_a_member() {
    let (a, b, m) = (station(1), station(2), station(3));
    let ports = [("a", ""), ("b", ""), ("m", "")];
    let mirror = "[[mirror]]\nname = \"m\"\nfrom = [\"a\"]\nto = \"m\"\nmember = true\n";
    let bed = Bed::start(&ports, mirror);
    let [mut ga, mut gb, mut monitor] = ports.map(|(name, _)| bed.guest(name));
    monitor.send(&frame(BROADCAST, m, 1, 60)).unwrap();
    // What an output sends is never copied, though it reaches a.
    for guest in [&mut ga, &mut gb] {
        assert_eq!(next(guest), frame(BROADCAST, m, 1, 60));
    }
    gb.send(&frame(m, b, 2, 60)).unwrap();
    assert_eq!(next(&mut monitor), frame(m, b, 2, 60));
    ga.send(&frame(b, a, 3, 60)).unwrap();
    assert_eq!(next(&mut gb), frame(b, a, 3, 60));
    assert_eq!(next(&mut monitor), frame(b, a, 3, 60));
    for guest in [&mut ga, &mut gb, &mut monitor] {
        assert_eq!(guest.receive(NOTHING).unwrap(), None);
    }
}

#[test]
fn a_copy_has_the_tag_that_was_received() {
    let (a, t) = (station(1), station(2));
    let ports = [
        ("a", "access = 10"),
        ("t", "trunk = \"10\""),
        ("m", "access = 77"),
    ];
    let mirror = "[[mirror]]\nname = \"m\"\nvlans = \"10\"\nto = \"m\"\n";
    let bed = Bed::start(&ports, mirror);
    let [mut ga, mut gt, mut monitor] = ports.map(|(name, _)| bed.guest(name));
    let tagged = Frame::new(BROADCAST, t).vlan(10).numbered(1, 200).bytes();
    gt.send(&tagged).unwrap();
    assert_eq!(next(&mut ga), frame(BROADCAST, t, 1, 200));
    assert_eq!(next(&mut monitor), tagged);
    ga.send(&frame(t, a, 2, 200)).unwrap();
    let out = Frame::new(t, a).vlan(10).numbered(2, 200).bytes();
    assert_eq!(next(&mut gt), out);
    assert_eq!(next(&mut monitor), frame(t, a, 2, 200));
}

#[test]
fn mirrors_come_and_go_at_run_time() {
    let (a, b, m) = (station(1), station(2), station(3));
    let ports = [("a", ""), ("b", ""), ("m", "")];
    let bed = Bed::start(&ports, "");
    let [mut ga, mut gb, mut monitor] = ports.map(|(name, _)| bed.guest(name));
    for (guest, mac) in [(&mut ga, a), (&mut gb, b), (&mut monitor, m)] {
        guest.send(&frame(BROADCAST, mac, 0, 60)).unwrap();
    }
    for guest in [&mut ga, &mut gb, &mut monitor] {
        next(guest);
        next(guest);
    }
    assert_eq!(bed.port("m").learned, 1);

    let added = change(
        &bed,
        Change::MirrorAdd(mirror("from = [\"b\"]\ndirection = \"rx\"")),
    );
    assert_eq!(added.status, Status::Success, "{}", added.description);
    assert_eq!(
        bed.port("m").learned,
        0,
        "a port for copies is nobody's place"
    );
    gb.send(&frame(a, b, 1, 60)).unwrap();
    assert_eq!(next(&mut monitor), frame(a, b, 1, 60));
    ga.send(&frame(b, a, 2, 60)).unwrap();
    assert_eq!(next(&mut gb), frame(b, a, 2, 60));

    let gone = change(&bed, Change::MirrorDel("m".parse().unwrap()));
    assert_eq!(gone.status, Status::Success, "{}", gone.description);
    gb.send(&frame(a, b, 3, 60)).unwrap();
    ga.send(&frame(BROADCAST, a, 4, 60)).unwrap();
    assert_eq!(
        next(&mut monitor),
        frame(BROADCAST, a, 4, 60),
        "a member again"
    );
}
