//! Explanations: each step, each reason, and the two questions about an address.

use std::sync::Arc;

use proptest::prelude::*;
use towpath_common::clock::{Clock, Cycles};
use towpath_common::control::Status;

use super::api::{Desk, Looking};
use super::ask::{Ask, Why, ask};
use super::text::text;
use super::*;
use crate::recent::history::History;
use crate::recent::{Egress as Way, Note, Record};
use crate::vlan::VlanSet;

const A: Mac = Mac([2, 0, 0, 0, 0, 0xa]);
const B: Mac = Mac([2, 0, 0, 0, 0, 0xb]);
const NEW: Mac = Mac([2, 0, 0, 0, 0, 0xc]);

fn vid(number: u16) -> Vid {
    Vid::new(number).unwrap()
}

fn port(number: u16, mode: Mode) -> PortView {
    PortView {
        number: PortNo(number),
        name: format!("p{number}"),
        mode,
        link: true,
        uplink: false,
        isolated: false,
        mirror: false,
        macs: Vec::new(),
        source_guard: true,
        bpdu_guard: true,
        mac_limit: 64,
        learned: 1,
    }
}

fn access(number: u16, vlan: u16) -> PortView {
    port(number, Mode::Access { pvid: vid(vlan) })
}

fn trunk(number: u16, vlans: &[u16], native: Option<u16>) -> PortView {
    let allowed: VlanSet = vlans.iter().map(|vlan| vid(*vlan)).collect();
    let native = native.map(vid);
    port(number, Mode::Trunk { allowed, native })
}

fn known(mac: Mac, vlan: u16, port: u16) -> Known {
    Known {
        vid: vid(vlan),
        mac,
        port: PortNo(port),
        is_static: false,
        age_seconds: 3,
        is_held: false,
    }
}

/// p0 and p1 in VLAN 10, p2 in VLAN 20, p3 a trunk of both, p4 a trunk of 20 with 10 native.
fn snapshot() -> Snapshot {
    Snapshot {
        ports: vec![
            access(0, 10),
            access(1, 10),
            access(2, 20),
            trunk(3, &[10, 20], None),
            trunk(4, &[20], Some(10)),
        ],
        known: vec![known(A, 10, 0), known(B, 10, 3)],
    }
}

fn question(ingress: u16, source: Mac, destination: Mac) -> Question {
    Question {
        ingress: Some(PortNo(ingress)),
        vlan: None,
        source: Some(source),
        destination: Some(destination),
    }
}

fn dropped(reason: Discard) -> Verdict {
    Verdict::Dropped(reason.name().to_owned())
}

fn verdict(snapshot: &Snapshot, question: &Question) -> Verdict {
    explain(snapshot, question).verdict
}

#[test]
fn a_frame_between_known_stations_is_explained_step_by_step() {
    let explanation = explain(&snapshot(), &question(0, A, B));
    let stages: Vec<_> = explanation.steps.iter().map(|s| &s.stage[..]).collect();
    assert_eq!(
        stages,
        ["port", "vlan", "guards", "learn", "lookup", "egress"]
    );
    assert_eq!(explanation.verdict, Verdict::Delivered("p3".to_owned()));
    let [.., lookup, egress] = &explanation.steps[..] else {
        panic!("no steps")
    };
    let at = format!("{B} in vlan 10 is at p3 (heard 3 s ago)");
    assert_eq!(lookup.finding, at);
    assert_eq!(egress.finding, "out of p3, tagged 10");
    let text = format!("a frame from {A} to {B}, received from port p0, without a tag");
    assert_eq!(explanation.question, text);
}

#[test]
fn what_is_not_known_floods_its_vlan_and_nothing_else() {
    let snapshot = snapshot();
    let all = |names: &[&str]| Verdict::Flooded(names.iter().map(|&n| n.into()).collect());
    let others = all(&["p1", "p3", "p4"]);
    assert_eq!(verdict(&snapshot, &question(0, A, NEW)), others);
    assert_eq!(verdict(&snapshot, &question(0, A, Mac::BROADCAST)), others);
    let tagged = Question {
        vlan: Some(vid(20)),
        ..question(3, NEW, A)
    };
    let theirs = all(&["p2", "p4"]);
    assert_eq!(
        verdict(&snapshot, &tagged),
        theirs,
        "known in another vlan only"
    );
}

#[test]
fn vlan_rules_are_those_of_the_switch() {
    let snapshot = snapshot();
    let in_vlan = |ingress, vlan| {
        let vlan = Some(vid(vlan));
        verdict(
            &snapshot,
            &Question {
                vlan,
                ..question(ingress, NEW, B)
            },
        )
    };
    assert_eq!(in_vlan(0, 20), dropped(Discard::TaggedOnAccess));
    assert_eq!(in_vlan(3, 30), dropped(Discard::VlanNotAllowed));
    assert_eq!(in_vlan(4, 10), Verdict::Delivered("p3".to_owned()));
    let untagged = question(3, NEW, B);
    assert_eq!(
        verdict(&snapshot, &untagged),
        dropped(Discard::UntaggedOnTrunk)
    );
}

#[test]
fn every_reason_on_the_way_in_is_found() {
    let check = |change: fn(&mut PortView), question: Question, reason| {
        let mut snapshot = snapshot();
        change(&mut snapshot.ports[0]);
        assert_eq!(verdict(&snapshot, &question), dropped(reason));
    };
    let plain = question(0, A, B);
    let bridge = Mac([1, 0x80, 0xc2, 0, 0, 0]);
    check(|p| p.link = false, plain, Discard::PortDown);
    check(|p| p.mirror = true, plain, Discard::NoMember);
    check(|_| (), question(0, Mac::BROADCAST, B), Discard::BadSource);
    check(|_| (), question(0, Mac::default(), B), Discard::BadSource);
    check(|_| (), question(0, A, bridge), Discard::BpduGuard);
    check(
        |p| p.bpdu_guard = false,
        question(0, A, bridge),
        Discard::LinkLocal,
    );
    check(|p| p.macs = vec![B], plain, Discard::SourceGuard);
    check(|p| p.learned = 64, question(0, NEW, B), Discard::MacLimit);
}

#[test]
fn guards_that_are_met_or_off_let_pass() {
    let mut snapshot = snapshot();
    snapshot.ports[0].macs = vec![A, B];
    snapshot.ports[0].learned = 64;
    let there = Verdict::Delivered("p3".to_owned());
    assert_eq!(verdict(&snapshot, &question(0, A, B)), there);
    snapshot.ports[0].macs = vec![B];
    snapshot.ports[0].source_guard = false;
    assert_eq!(verdict(&snapshot, &question(0, A, B)), there);
}

#[test]
fn every_reason_on_the_way_out_is_found() {
    let check = |change: fn(&mut Snapshot), question: Question, reason| {
        let mut snapshot = snapshot();
        change(&mut snapshot);
        assert_eq!(verdict(&snapshot, &question), dropped(reason));
    };
    let plain = question(0, A, B);
    check(|_| (), question(0, B, A), Discard::Hairpin);
    check(|s| s.ports[3].link = false, plain, Discard::PortDown);
    check(
        |s| s.ports[3] = access(3, 20),
        plain,
        Discard::VlanNotAllowed,
    );
    check(|s| s.ports[3].mirror = true, plain, Discard::NoMember);
    check(|s| s.ports.truncate(3), plain, Discard::PortDown);
    let new = question(0, A, NEW);
    let down = |s: &mut Snapshot| s.ports[1..].iter_mut().for_each(|p| p.link = false);
    check(down, new, Discard::PortDown);
    let copies = |s: &mut Snapshot| s.ports[1..].iter_mut().for_each(|p| p.mirror = true);
    check(copies, new, Discard::NoMember);
    check(|s| s.ports.truncate(1), new, Discard::NoMember);
    check(|s| s.ports[0].isolated = true, plain, Discard::Isolated);
    check(|s| s.ports[3].isolated = true, plain, Discard::Isolated);
}

#[test]
fn isolated_ports_reach_uplinks() {
    let mut snapshot = snapshot();
    snapshot.ports[0].isolated = true;
    snapshot.ports[3].uplink = true;
    let there = Verdict::Delivered("p3".to_owned());
    assert_eq!(verdict(&snapshot, &question(0, A, B)), there);
    let uplinks = Verdict::Flooded(vec!["p3".to_owned()]);
    assert_eq!(verdict(&snapshot, &question(0, A, NEW)), uplinks);
}

#[test]
fn an_address_configured_elsewhere_is_not_taken() {
    let mut snapshot = snapshot();
    snapshot.known[0].is_static = true;
    let theft = verdict(&snapshot, &question(1, A, B));
    assert_eq!(theft, dropped(Discard::SourceGuard));
}

#[test]
fn where_an_address_moves_is_said() {
    let finding = |change: fn(&mut Known)| {
        let mut snapshot = snapshot();
        change(&mut snapshot.known[0]);
        let explanation = explain(&snapshot, &question(1, A, B));
        explanation.steps[3].finding.clone()
    };
    assert_eq!(finding(|_| ()), format!("{A} moves here from p0"));
    let held = format!("{A} is held at p0: it moved too often");
    assert_eq!(finding(|k| k.is_held = true), held);
}

fn asked(snapshot: &Snapshot, mac: Mac, vlan: Option<u16>, port: Option<u16>) -> Why {
    let (vlan, port) = (vlan.map(vid), port.map(PortNo));
    ask(snapshot, mac, vlan, port, History::default())
}

fn verdicts(explanations: &[Explanation]) -> Vec<Verdict> {
    explanations.iter().map(|e| e.verdict.clone()).collect()
}

#[test]
fn both_questions_are_answered_wherever_the_address_is() {
    let mut snapshot = snapshot();
    snapshot.known.push(known(A, 20, 4));
    let why = asked(&snapshot, A, None, None);
    let accepted = |vlan| Verdict::Accepted(vid(vlan));
    let delivered = |name: &str| Verdict::Delivered(name.to_owned());
    assert_eq!(verdicts(&why.from), [accepted(10), accepted(20)]);
    assert_eq!(verdicts(&why.to), [delivered("p0"), delivered("p4")]);
    let why = asked(&snapshot, A, Some(20), None);
    assert_eq!(why.places.len(), 1);
    assert_eq!(verdicts(&why.to), [delivered("p4")]);
}

#[test]
fn from_a_port_both_questions_are_about_that_port() {
    let snapshot = snapshot();
    let why = asked(&snapshot, A, None, Some(2));
    assert_eq!(verdicts(&why.from), [Verdict::Accepted(vid(20))]);
    let flooded = Verdict::Flooded(vec!["p3".to_owned(), "p4".to_owned()]);
    assert_eq!(verdicts(&why.to), [flooded]);
    let home = asked(&snapshot, A, None, Some(0));
    assert_eq!(verdicts(&home.to), [Verdict::Delivered("p0".to_owned())]);
}

#[test]
fn an_address_that_was_never_heard_is_looked_for_where_it_is_configured() {
    let mut snapshot = snapshot();
    snapshot.ports[2].macs = vec![NEW];
    snapshot.ports[2].link = false;
    let why = asked(&snapshot, NEW, None, None);
    assert_eq!(verdicts(&why.from), [dropped(Discard::PortDown)]);
    assert_eq!(why.to.len(), 1, "in vlan 20 only");
    let nowhere = asked(&snapshot, Mac([2, 0, 0, 0, 0, 0xd]), None, None);
    assert_eq!((nowhere.from.len(), nowhere.to.len()), (0, 2));
}

struct Plane;

impl Looking for Plane {
    fn snapshot(&self, _: Mac) -> Snapshot {
        snapshot()
    }

    fn recent(&self) -> Vec<Record> {
        let head = [B.0, A.0].concat();
        vec![Record::new(&Note {
            now: Cycles::ZERO,
            ingress: PortNo(0),
            egress: Way::Port(PortNo(3)),
            vid: Vid::new(10),
            len: 60,
            discard: Some(Discard::ReceiverFull),
            head: &head,
        })]
    }
}

#[test]
fn the_answer_has_what_would_be_and_what_was() {
    let desk = Desk::new(Arc::new(Plane), Clock::new());
    let mut question = Ask {
        mac: A,
        vlan: Some(vid(10)),
        port: None,
    };
    let answer = desk.answer(&question);
    let why = answer.data.unwrap();
    assert_eq!(
        why.recent.discarded,
        [("receiver_full".to_owned(), 1)].into()
    );
    let text = text(&why);
    for line in [
        "02:00:00:00:00:0a is at p0 in vlan 10, heard 3 s ago\n",
        "  vlan    untagged, on an access port of vlan 10: vlan 10\n",
        "  => accepted into vlan 10\n",
        "  => delivered to p0\n",
        "0 forwarded, 1 dropped: receiver_full\n",
        "p0 -> p3  vlan 10  02:00:00:00:00:0a > 02:00:00:00:00:0b  60 bytes",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    let json = serde_json::to_string(&why).unwrap();
    assert_eq!(serde_json::from_str::<Why>(&json).unwrap(), why);
    question.port = Some("web".to_owned());
    assert_eq!(desk.answer(&question).status, Status::Failed);
}

proptest! {
    /// Whatever is asked, an explanation ends at ports that may have the frame.
    #[test]
    fn nothing_is_said_to_leave_its_vlan(
        ingress in 0..5_u16,
        vlan in prop::option::of(prop::sample::select(vec![10_u16, 20, 30])),
        last in 0xa..0xd_u8,
        down in 0..6_usize,
    ) {
        let mut snapshot = snapshot();
        if let Some(port) = snapshot.ports.get_mut(down) {
            port.link = false;
        }
        let destination = Mac([2, 0, 0, 0, 0, last]);
        let vlan = vlan.map(vid);
        let question = Question { vlan, ..question(ingress, NEW, destination) };
        let entered = Question { destination: None, ..question };
        let names = match verdict(&snapshot, &question) {
            Verdict::Delivered(name) => vec![name],
            Verdict::Flooded(names) => names,
            _ => return Ok(()),
        };
        let Verdict::Accepted(vid) = verdict(&snapshot, &entered) else {
            panic!("it left without having entered");
        };
        for name in names {
            let port = snapshot.ports.iter().find(|port| port.name == name).unwrap();
            prop_assert!(port.link && port.number != PortNo(ingress));
            prop_assert!(port.mode.egress(vid).is_some());
        }
    }
}
