//! Mirrors against their definition, frame by frame.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const NONE: [u16; 0] = [];

fn vid(number: u16) -> Vid {
    Vid::new(number).unwrap()
}

fn ports(numbers: &[u16]) -> PortSet {
    numbers.iter().map(|n| PortNo(*n)).collect()
}

fn rule(from: &[u16], to: u16) -> Rule {
    Rule {
        from: from.iter().map(|n| PortNo(*n)).collect(),
        rx: true,
        tx: true,
        to: Some(PortNo(to)),
        ..Rule::default()
    }
}

fn copies(mirrors: &Mirrors, ingress: u16, vlan: u16, egress: &[u16]) -> Vec<u16> {
    let copies = mirrors.copies(PortNo(ingress), vid(vlan), &ports(egress));
    copies.into_iter().map(|port| port.0).collect()
}

#[test]
fn a_direction_is_seen_from_the_switch() {
    let rx = Rule {
        tx: false,
        ..rule(&[1], 9)
    };
    let tx = Rule {
        rx: false,
        ..rule(&[1], 9)
    };
    let [rx, tx, both] = [rx, tx, rule(&[1], 9)].map(|rule| Mirrors::new(&[rule]).unwrap());
    assert_eq!(copies(&rx, 1, 10, &[2]), [9]);
    assert_eq!(copies(&rx, 2, 10, &[1]), NONE);
    assert_eq!(copies(&tx, 1, 10, &[2]), NONE);
    assert_eq!(copies(&tx, 2, 10, &[1, 3]), [9]);
    assert_eq!(copies(&both, 1, 10, &[2]), [9]);
    assert_eq!(copies(&both, 2, 10, &[1]), [9]);
    assert_eq!(copies(&both, 2, 10, &[3]), NONE);
}

#[test]
fn between_two_mirrored_ports_a_frame_is_copied_once() {
    let mirrors = Mirrors::new(&[rule(&[1, 2], 9), rule(&[2], 9), rule(&[1], 8)]).unwrap();
    assert_eq!(copies(&mirrors, 1, 10, &[2]), [9, 8]);
}

#[test]
fn a_vlan_is_mirrored_whatever_the_port() {
    let by_vlan = Rule {
        vlans: Some([vid(10)].into_iter().collect()),
        ..rule(&[], 9)
    };
    let mirrors = Mirrors::new(std::slice::from_ref(&by_vlan)).unwrap();
    assert_eq!(copies(&mirrors, 1, 10, &[2]), [9]);
    assert_eq!(copies(&mirrors, 1, 11, &[2]), NONE);
    let tx = Rule {
        rx: false,
        ..by_vlan
    };
    let mirrors = Mirrors::new(&[tx]).unwrap();
    assert_eq!(copies(&mirrors, 1, 10, &[]), NONE, "nothing was sent");
    assert_eq!(copies(&mirrors, 1, 10, &[2]), [9]);
}

#[test]
fn mirrors_of_each_other_do_not_loop() {
    let mirrors = Mirrors::new(&[rule(&[1, 8], 9), rule(&[1, 9], 8)]).unwrap();
    assert_eq!(copies(&mirrors, 1, 10, &[2]), [9, 8]);
    assert_eq!(copies(&mirrors, 9, 10, &[2]), NONE);
    assert_eq!(copies(&mirrors, 8, 10, &[9]), NONE);
    assert_eq!(
        copies(&mirrors, 2, 10, &[8]),
        NONE,
        "an output's own traffic"
    );
}

#[test]
fn an_output_is_a_member_only_if_asked() {
    let member = Rule {
        member: true,
        ..rule(&[1], 9)
    };
    let plain = Mirrors::new(&[rule(&[1], 9)]).unwrap();
    assert!(plain.excludes(PortNo(9)) && !plain.excludes(PortNo(1)));
    let mirrors = Mirrors::new(&[member, rule(&[2], 9)]).unwrap();
    assert!(!mirrors.excludes(PortNo(9)));
    assert_eq!(
        copies(&mirrors, 1, 10, &[2, 9]),
        NONE,
        "it gets the frame anyway"
    );
    assert_eq!(copies(&mirrors, 1, 10, &[2]), [9]);
}

#[test]
fn rules_that_cannot_be_are_refused() {
    let error = |rule: Rule| Mirrors::new(&[rule]).unwrap_err();
    assert_eq!(error(rule(&[1, 9], 9)), MirrorError::Itself);
    assert_eq!(error(rule(&[], 9)), MirrorError::Nothing);
    let none = Rule {
        rx: false,
        tx: false,
        ..rule(&[1], 9)
    };
    assert_eq!(error(none), MirrorError::Nothing);
    assert_eq!(error(rule(&[1024], 9)), MirrorError::NoPort);
    assert_eq!(error(rule(&[1], 1024)), MirrorError::NoPort);
    let nowhere = Rule {
        to: None,
        ..rule(&[1], 9)
    };
    assert_eq!(error(nowhere), MirrorError::NoPort);
    let many = vec![rule(&[1], 9); MIRRORS + 1];
    assert_eq!(Mirrors::new(&many).unwrap_err(), MirrorError::TooMany);
    assert!(Mirrors::default().is_empty());
}

fn some_rule() -> impl Strategy<Value = Rule> {
    let ports = prop::collection::vec(0..6_u16, 0..3);
    let vlans = prop::option::of(1..4_u16);
    (ports, vlans, any::<[bool; 3]>(), 0..8_u16).prop_map(|(from, vlan, flags, to)| Rule {
        vlans: vlan.map(|vlan| [vid(vlan)].into_iter().collect()),
        rx: flags[0],
        tx: flags[1],
        member: flags[2],
        ..rule(&from, to)
    })
}

proptest! {
    #[test]
    fn copies_are_those_of_the_definition(
        rules in prop::collection::vec(some_rule(), 0..4),
        ingress in 0..8_u16,
        vlan in 1..4_u16,
        egress in prop::collection::btree_set(0..8_u16, 0..4),
    ) {
        let Ok(mirrors) = Mirrors::new(&rules) else {
            return Ok(());
        };
        let outputs: BTreeSet<u16> = rules.iter().map(|r| r.to.unwrap().0).collect();
        let mut expected = BTreeSet::new();
        for rule in &rules {
            let in_vlan = rule.vlans.as_ref().is_some_and(|v| v.contains(vid(vlan)));
            let selects = |port: u16| in_vlan || rule.from.contains(&PortNo(port));
            let sent = egress.iter().any(|p| !outputs.contains(p) && selects(*p));
            let to = rule.to.unwrap().0;
            let chosen = rule.rx && selects(ingress) || rule.tx && sent;
            if !outputs.contains(&ingress) && !egress.contains(&to) && chosen {
                expected.insert(to);
            }
        }
        let numbers: Vec<u16> = egress.into_iter().collect();
        let found = copies(&mirrors, ingress, vlan, &numbers);
        let set: BTreeSet<u16> = found.iter().copied().collect();
        prop_assert_eq!(set.len(), found.len(), "nobody gets two copies");
        prop_assert_eq!(set, expected);
    }
}
