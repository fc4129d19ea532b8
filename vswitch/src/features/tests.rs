//! What a driver is shown, and what its answer means.

use proptest::prelude::*;

use super::*;

const CARD: Card = Card {
    pairs: 1,
    mac: None,
    mtu: 1500,
    offloads: true,
};

#[test]
fn what_is_offered_never_changes() {
    // A guest that migrated here negotiated these. Bits may be added, if all hosts have them; none
    // may go.
    let plain = 0x01c0_0009_3023_bb8b;
    assert_eq!(offered(&CARD), plain, "{:#x}", offered(&CARD));
    let mac = Some(Mac([0x52, 0x54, 0, 0, 0, 1]));
    assert_eq!(offered(&Card { mac, ..CARD }), plain | 1 << 5);
    assert_eq!(offered(&Card { pairs: 2, ..CARD }), plain | 1 << 22);
    assert_eq!(offered(&Card { mtu: 9000, ..CARD }), plain);
}

#[test]
fn what_is_offered_has_what_it_requires_and_nothing_that_is_missing() {
    let all = offered(&Card { pairs: 4, ..CARD });
    assert_eq!(
        (accepts(all), may_send(all)),
        (Offloads::ALL, Offloads::ALL)
    );
    // MQ and GUEST_ANNOUNCE stand on the control queue.
    assert_ne!(all & CTRL_VQ, 0);
    // UFO (guest, host), packed, HASH_REPORT, RSS, UDP tunnels.
    let missing = [10, 14, 34, 57, 60, 46, 47, 48, 49];
    assert!(missing.iter().all(|bit| all & 1 << bit == 0));
    let unserved = CTRL_GUEST_OFFLOADS | CTRL_RX | CTRL_VLAN | CTRL_RX_EXTRA | CTRL_MAC_ADDR;
    assert_eq!(all & unserved, 0);
}

#[test]
fn every_bit_that_is_offered_has_a_name() {
    let mac = Some(Mac::default());
    let all = offered(&Card {
        pairs: 2,
        mac,
        ..CARD
    });
    assert_eq!(names(all).len(), all.count_ones() as usize);
    assert_eq!(names(u64::MAX).len(), VIRTIO.len());
    let bits = VIRTIO.iter().fold(0, |all, (bit, _)| all | bit);
    assert_eq!(bits.count_ones() as usize, VIRTIO.len(), "a bit twice");
    assert_eq!(names(MQ | CSUM), ["CSUM", "MQ"]);
}

#[test]
fn a_feature_without_what_it_requires_is_none() {
    let with = |offload: Offloads| Offloads::CSUM.with(offload);
    for (features, taken) in [
        (0, Offloads::NONE),
        (GUEST_CSUM, Offloads::CSUM),
        (GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN, Offloads::NONE),
        (GUEST_CSUM | GUEST_TSO4, with(Offloads::TSO4)),
        (GUEST_CSUM | GUEST_TSO6, with(Offloads::TSO6)),
        (GUEST_CSUM | GUEST_ECN, Offloads::CSUM),
        (
            GUEST_CSUM | GUEST_TSO6 | GUEST_ECN,
            with(Offloads::TSO6).with(Offloads::ECN),
        ),
        (GUEST_CSUM | GUEST_USO4, Offloads::CSUM),
        (GUEST_CSUM | GUEST_USO4 | GUEST_USO6, with(Offloads::USO)),
        (CSUM | HOST_TSO4, Offloads::NONE),
    ] {
        assert_eq!(accepts(features), taken, "{features:#x}");
    }
    for (features, sent) in [
        (0, Offloads::NONE),
        (HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_USO, Offloads::NONE),
        (CSUM | HOST_ECN, Offloads::CSUM),
        (CSUM | HOST_USO, with(Offloads::USO)),
        (CSUM | HOST_TSO4, with(Offloads::TSO4)),
        (GUEST_CSUM | GUEST_TSO4, Offloads::NONE),
    ] {
        assert_eq!(may_send(features), sent, "{features:#x}");
    }
}

#[test]
fn the_configuration_space_has_each_field_in_its_place() {
    let mac = Some(Mac([1, 2, 3, 4, 5, 6]));
    let card = Card {
        pairs: 0x0304,
        mac,
        mtu: 9000,
        offloads: true,
    };
    let mut config = NetConfig::new(card);
    let mut all = [0xee; CONFIG_MAX];
    assert!(config.read(0, &mut all));
    assert_eq!(all[..6], [1, 2, 3, 4, 5, 6]);
    assert_eq!(all[6..12], [1, 0, 4, 3, 0x28, 0x23]);
    assert!(all[12..].iter().all(|b| *b == 0));
    let status = |config: &NetConfig| {
        let mut word = [0; 2];
        assert!(config.read(6, &mut word));
        u16::from_le_bytes(word)
    };
    config.set_announce(true);
    assert_eq!(status(&config), 3);
    config.set_link(false);
    assert_eq!(status(&config), 2);
    config.set_announce(false);
    config.set_link(true);
    assert_eq!(status(&config), 1);
    assert!(!config.set_mtu(67) && config.card().mtu == 9000);
    assert!(config.set_mtu(68) && config.card().mtu == 68);
    assert!(NetConfig::new(CARD).read(0, &mut all[..6]));
    assert_eq!(all[..6], [0; 6]);
}

proptest! {
    /// H18: reads stay inside, whatever is asked for.
    #[test]
    fn reads_of_the_configuration_space_stay_inside(
        offset: u32,
        small in 0u32..300,
        len in 0usize..300,
    ) {
        let config = NetConfig::new(CARD);
        let mut whole = [0; CONFIG_MAX];
        prop_assert!(config.read(0, &mut whole));
        for at in [offset, small] {
            let mut buf = vec![0xee; len];
            let good = config.read(at, &mut buf);
            prop_assert_eq!(good, at as usize + len <= CONFIG_MAX);
            if good {
                prop_assert_eq!(&buf[..], &whole[at as usize..][..len]);
            }
        }
    }

    /// No combination of bits gives an offload without checksums.
    #[test]
    fn offloads_never_come_without_checksums(features: u64) {
        for offloads in [accepts(features), may_send(features)] {
            prop_assert!(offloads == Offloads::NONE || offloads.has(Offloads::CSUM));
        }
    }
}
