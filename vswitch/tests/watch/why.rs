//! `why` tells what happens, and what happened.

use towpath_common::testing::net::frame::{BROADCAST, Mac, station};
use vswitch::why::Verdict;
use vswitch::why::ask::Why;

use crate::bed::{Bed, eventually, frame, text};

fn dropped(reason: &str) -> Verdict {
    Verdict::Dropped(reason.to_owned())
}

fn why(bed: &Bed, mac: Mac, more: &str) -> Why {
    bed.get(&format!("/v1/why?mac={}{more}", text(mac)))
}

#[test]
fn a_source_that_is_not_the_ports_own_is_named_as_the_reason() {
    let (a, liar) = (station(1), station(9));
    let bed = Bed::start(&[("a", &format!("mac = {:?}", text(a))), ("b", "")], "");
    let (mut guest, mut other) = (bed.guest("a"), bed.guest("b"));
    guest.send(&frame(BROADCAST, liar, 1, 60)).unwrap();
    guest.send(&frame(BROADCAST, a, 2, 60)).unwrap();
    assert_eq!(other.expect().unwrap().frame, frame(BROADCAST, a, 2, 60));

    let why_liar = why(&bed, liar, "&port=a");
    assert_eq!(why_liar.from[0].verdict, dropped("source_guard"));
    assert_eq!(why_liar.recent.discarded["source_guard"], 1);
    assert_eq!(why_liar.recent.forwarded, 0);
    assert_eq!(why_liar.recent.frames[0].ingress, "a");
    assert_eq!(bed.discards("a", "source_guard"), 1);

    eventually(|| why(&bed, a, "").recent.forwarded == 1);
    let why_a = why(&bed, a, "");
    assert_eq!(why_a.places[0].port, "a");
    assert_eq!(why_a.recent.frames[0].egress.as_deref(), Some("flood"));
    assert!(why_a.recent.discarded.is_empty());
}

#[test]
fn a_frame_lost_on_its_way_out_is_remembered_there() {
    let (a, b) = (station(1), station(2));
    let entry = format!("[[fdb]]\nmac = {:?}\nport = \"b\"\n", text(b));
    let bed = Bed::start(&[("a", ""), ("b", "")], &entry);
    let mut guest = bed.guest("a");
    guest.send(&frame(b, a, 1, 60)).unwrap();
    eventually(|| bed.discards("b", "port_down") == 1);
    eventually(|| why(&bed, b, "").recent.discarded.contains_key("port_down"));

    let why_b = why(&bed, b, "&port=a");
    assert_eq!(why_b.to[0].verdict, dropped("port_down"));
    let seen = why_b.recent.frames.last().unwrap();
    assert_eq!(seen.ingress, "a");
    assert_eq!(seen.egress.as_deref(), Some("b"));
    assert_eq!(why_b.recent.forwarded, 0, "it did not arrive");
}

#[test]
fn bridge_protocols_and_link_local_frames_are_told_apart() {
    let bed = Bed::start(&[("a", ""), ("b", "")], "");
    let mut guest = bed.guest("a");
    let groups = [
        ([0x01, 0x80, 0xc2, 0, 0, 0], "bpdu_guard"),
        ([0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcd], "bpdu_guard"),
        ([0x01, 0x80, 0xc2, 0, 0, 0x0e], "link_local"),
    ];
    for (group, reason) in groups {
        let before = bed.discards("a", reason);
        guest.send(&frame(group, station(1), 1, 60)).unwrap();
        eventually(|| bed.discards("a", reason) == before + 1);
        let answer = why(&bed, group, "&port=a");
        assert_eq!(answer.to[0].verdict, dropped(reason), "{group:?}");
    }
}
