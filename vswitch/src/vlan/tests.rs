//! VLAN rules against a table written from 802.1Q, and what must hold for every frame.

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::discard::Discard;

const IPV4: u16 = 0x0800;

fn vid(vid: u16) -> Vid {
    Vid::new(vid).unwrap()
}

fn set(text: &str) -> VlanSet {
    text.parse().unwrap()
}

fn access(pvid: u16) -> Mode {
    Mode::Access { pvid: vid(pvid) }
}

fn trunk(allowed: &str, native: Option<u16>) -> Mode {
    Mode::Trunk {
        allowed: set(allowed),
        native: native.map(vid),
    }
}

fn tag(tci: u16) -> Option<Tag> {
    Some(Tag { tpid: TPID, tci })
}

/// 802.1Q, 6.9 and 8.6.2: (port, tag, VLAN and priority bits or discard).
#[test]
fn frames_are_classified_as_the_standard_says() {
    let access = access(10);
    let trunk_only = trunk("20,30-32", None);
    let native = trunk("20,30-32", Some(5));
    let service = |tci| {
        Some(Tag {
            tpid: TPID_SERVICE,
            tci,
        })
    };
    let table = [
        // Untagged.
        (&access, None, Ok((10, 0))),
        (&trunk_only, None, Err(Discard::UntaggedOnTrunk)),
        (&native, None, Ok((5, 0))),
        // Priority tags: VLAN id 0 is no VLAN; the priority stays.
        (&access, tag(0x0000), Ok((10, 0))),
        (&access, tag(0xf000), Ok((10, 0xf000))),
        (&trunk_only, tag(0x2000), Err(Discard::UntaggedOnTrunk)),
        (&native, tag(0x3000), Ok((5, 0x3000))),
        // Tagged.
        (&access, tag(20), Err(Discard::TaggedOnAccess)),
        (&access, tag(10), Err(Discard::TaggedOnAccess)),
        (&access, tag(0xe001), Err(Discard::TaggedOnAccess)),
        (&trunk_only, tag(20), Ok((20, 0))),
        (&trunk_only, tag(0xb01f), Ok((31, 0xb000))),
        (&trunk_only, tag(29), Err(Discard::VlanNotAllowed)),
        (&trunk_only, tag(33), Err(Discard::VlanNotAllowed)),
        (&trunk_only, tag(5), Err(Discard::VlanNotAllowed)),
        (&trunk_only, tag(4094), Err(Discard::VlanNotAllowed)),
        (&native, tag(5), Ok((5, 0))),
        (&native, tag(20), Ok((20, 0))),
        (&native, tag(6), Err(Discard::VlanNotAllowed)),
        // Reserved id, and service tags.
        (&access, tag(0x0fff), Err(Discard::BadTag)),
        (&native, tag(0xffff), Err(Discard::BadTag)),
        (&access, service(0), Err(Discard::BadTag)),
        (&access, service(10), Err(Discard::BadTag)),
        (&native, service(20), Err(Discard::BadTag)),
    ];
    for (mode, tag, expected) in table {
        let class = mode.classify(tag, IPV4);
        let class = class.map(|c| (c.vid().get(), c.pcp_dei()));
        assert_eq!(class, expected, "{mode:?} {tag:?}");
    }
}

#[test]
fn a_double_tag_cannot_hop_into_another_vlan() {
    let native = trunk("20", Some(10));
    for (mode, outer) in [
        (access(10), tag(0)),
        (native.clone(), tag(0)),
        (native.clone(), None),
        (access(10), None),
    ] {
        for inner in [TPID, TPID_SERVICE] {
            assert_eq!(mode.classify(outer, inner), Err(Discard::BadTag));
        }
    }
    let nested = access(10).classify(tag(10), TPID);
    assert_eq!(nested, Err(Discard::TaggedOnAccess));

    let class = native.classify(tag(10), TPID).unwrap();
    let untagged = native.egress(class.vid()).unwrap();
    assert_eq!(untagged.tci(class), Err(Discard::NestedTag));
    let to_access = access(10).egress(class.vid()).unwrap();
    assert_eq!(to_access.tci(class), Err(Discard::NestedTag));
    let tagged = trunk("10", None).egress(class.vid()).unwrap();
    assert_eq!(tagged.tci(class), Ok(Some(10)));
}

#[test]
fn a_vlan_leaves_an_access_port_and_a_native_trunk_untagged() {
    let native = trunk("20,30", Some(5));
    assert_eq!(access(10).egress(vid(10)), Some(Egress::Untagged));
    assert_eq!(access(10).egress(vid(11)), None);
    assert_eq!(native.egress(vid(5)), Some(Egress::Untagged));
    assert_eq!(native.egress(vid(30)), Some(Egress::Tagged));
    assert_eq!(native.egress(vid(10)), None);
    assert_eq!(trunk("20", None).egress(vid(5)), None);
    // Allowed and native at once is native.
    assert_eq!(trunk("5", Some(5)).egress(vid(5)), Some(Egress::Untagged));
    assert_eq!(native.members(), set("5,20,30"));
    assert_eq!(access(10).members(), set("10"));
}

#[test]
fn sets_read_back_as_they_print() {
    for (text, printed, len) in [
        ("7", "7", 1),
        ("10,20,30-40", "10,20,30-40", 13),
        ("30-40:20:10", "10,20,30-40", 13),
        ("3, 2 ,1", "1-3", 3),
        ("1,2", "1,2", 2),
        ("63-64,127-129", "63,64,127-129", 5),
        ("1-4094", "1-4094", 4094),
        ("5,5,5-5", "5", 1),
    ] {
        let set = set(text);
        assert_eq!(set.to_string(), printed);
        assert_eq!(set.len(), len);
        assert_eq!(printed.parse::<VlanSet>().unwrap(), set);
    }
    assert_eq!(set("1-4094"), VlanSet::all());
    assert_eq!(VlanSet::none().to_string(), "");
    for bad in [
        "", ",", "0", "4095", "40-30", "1-", "-1", "1-2-3", "a", "+5", "1,,2", "1 0", "0-5",
        "65546",
    ] {
        let error = bad.parse::<VlanSet>().unwrap_err().to_string();
        assert!(error.contains("1 to 4094"), "{bad:?}: {error}");
    }
}

#[derive(Debug, Deserialize)]
struct Port {
    vlans: VlanSet,
}

#[test]
fn sets_are_numbers_texts_or_lists_in_a_file() {
    let read = |text: &str| toml::from_str::<Port>(text).map(|port| port.vlans);
    assert_eq!(read("vlans = 7").unwrap(), set("7"));
    assert_eq!(read("vlans = '10,30-40'").unwrap(), set("10,30-40"));
    assert_eq!(read("vlans = [10, '30-40', 5]").unwrap(), set("5,10,30-40"));
    for bad in ["0", "-3", "[]", "[1, 4095]", "true", "[[1]]", "''"] {
        let error = read(&format!("vlans = {bad}")).unwrap_err();
        assert!(!error.message().is_empty());
    }
    let json = serde_json::to_string(&set("1-3,9")).unwrap();
    assert_eq!(json, "\"1-3,9\"");
    assert_eq!(
        serde_json::from_str::<VlanSet>(&json).unwrap(),
        set("1-3,9")
    );
    let mode = trunk("20", Some(5));
    let json = serde_json::to_string(&mode).unwrap();
    assert_eq!(serde_json::from_str::<Mode>(&json).unwrap(), mode);
}

fn any_vid() -> impl Strategy<Value = Vid> {
    prop_oneof![1_u16..=12, 1_u16..=4094].prop_map(vid)
}

fn any_mode() -> impl Strategy<Value = Mode> {
    let trunk = (
        proptest::collection::vec(any_vid(), 0..8),
        proptest::option::of(any_vid()),
    );
    prop_oneof![
        any_vid().prop_map(|pvid| Mode::Access { pvid }),
        trunk.prop_map(|(vids, native)| Mode::Trunk {
            allowed: vids.into_iter().collect(),
            native,
        }),
    ]
}

/// Tags of all kinds, small VLAN ids and true tags more often than chance would have it.
fn any_tag() -> impl Strategy<Value = Option<Tag>> {
    let tpid = prop_oneof![4 => Just(TPID), 1 => Just(TPID_SERVICE)];
    let tci = prop_oneof![
        any::<u16>(),
        (0_u16..=12, 0_u16..16).prop_map(|(vid, pcp)| vid | pcp << 12)
    ];
    proptest::option::of((tpid, tci).prop_map(|(tpid, tci)| Tag { tpid, tci }))
}

proptest! {
    #[test]
    fn a_set_is_what_was_put_in(vids in proptest::collection::vec(any_vid(), 0..40)) {
        let mut set: VlanSet = vids.iter().copied().collect();
        let mut model: std::collections::BTreeSet<Vid> = vids.iter().copied().collect();
        for vid in vids.iter().take(5) {
            set.remove(*vid);
            model.remove(vid);
        }
        prop_assert_eq!(set.len(), model.len());
        prop_assert_eq!(set.is_empty(), model.is_empty());
        prop_assert!(set.iter().eq(model.iter().copied()));
        if !set.is_empty() {
            prop_assert_eq!(set.to_string().parse::<VlanSet>().unwrap(), set);
        }
    }

    /// What a port takes in a VLAN, it sends in that VLAN; what it would not take, it is no
    /// member of. Sent on, a frame is classified by a like port as it was by the first.
    #[test]
    fn what_goes_in_comes_out_in_its_vlan(
        mode in any_mode(), tag in any_tag(), ethertype in prop_oneof![Just(IPV4), Just(TPID)],
    ) {
        let Ok(class) = mode.classify(tag, ethertype) else {
            return Ok(());
        };
        prop_assert!(mode.members().contains(class.vid()));
        let egress = mode.egress(class.vid()).unwrap();
        match egress.tci(class) {
            Err(reason) => {
                prop_assert_eq!(reason, Discard::NestedTag);
                prop_assert!(class.nested() && egress == Egress::Untagged);
            }
            Ok(None) => {
                let again = mode.classify(None, ethertype).unwrap();
                prop_assert_eq!(again.vid(), class.vid());
            }
            Ok(Some(tci)) => {
                prop_assert_eq!(tci & 0xfff, class.vid().get());
                let again = mode.classify(super::tests::tag(tci), ethertype).unwrap();
                prop_assert_eq!(again, class);
            }
        }
    }

    /// No frame leaves a port in such a way that it would be read as one of another VLAN.
    #[test]
    fn no_frame_changes_its_vlan_on_the_way(
        from in any_mode(), to in any_mode(), tag in any_tag(),
        ethertype in prop_oneof![Just(IPV4), Just(TPID), Just(TPID_SERVICE)],
    ) {
        let Ok(class) = from.classify(tag, ethertype) else {
            return Ok(());
        };
        let Some(egress) = to.egress(class.vid()) else {
            return Ok(());
        };
        let Ok(tci) = egress.tci(class) else {
            return Ok(());
        };
        prop_assert!(tci.is_some() || !is_tpid(ethertype));
        let other_end = to.classify(tci.and_then(super::tests::tag), ethertype).unwrap();
        prop_assert_eq!(other_end.vid(), class.vid());
    }

    #[test]
    fn members_are_those_with_an_egress(mode in any_mode(), vid in any_vid()) {
        prop_assert_eq!(mode.members().contains(vid), mode.egress(vid).is_some());
    }
}
