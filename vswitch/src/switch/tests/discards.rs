//! Every reason to drop a frame, fired once and counted once, at the right port.

use std::collections::BTreeSet;

use towpath_common::testing::net::frame::{BROADCAST, Frame, station};

use super::offloads::{header, tcp};
use super::*;

/// What a case drops: at which port.
type Case = (&'static str, fn(&mut Bed) -> PortNo);

fn plain() -> Frame {
    Frame::new(station(2), station(1)).numbered(1, 60)
}

fn two(bed: &mut Bed, first: &Wanted) -> (PortNo, PortNo) {
    (bed.guest(first), bed.guest(&Wanted::default()))
}

fn guarded(change: fn(&mut GuardConfig)) -> Wanted {
    let mut wanted = Wanted::default();
    change(&mut wanted.guards);
    wanted
}

fn mode(mode: Mode) -> Wanted {
    Wanted {
        mode,
        ..Wanted::default()
    }
}

/// One frame more than passes at once.
fn flood(bed: &mut Bed, port: PortNo, frame: &Frame) {
    for _ in 0..200 {
        bed.send(port, &frame.bytes());
        bed.guests
            .keys()
            .copied()
            .collect::<Vec<_>>()
            .iter()
            .for_each(|no| {
                bed.frames(PortNo(*no));
            });
        if !bed.dropped().is_empty() {
            return;
        }
    }
}

const CASES: &[Case] = &[
    ("runt", |bed| {
        let (a, _) = two(bed, &Wanted::default());
        bed.send(a, &plain().bytes()[..13]);
        a
    }),
    ("giant", |bed| {
        let (a, _) = two(bed, &Wanted::default());
        bed.send(a, &plain().numbered(1, 1501).bytes());
        a
    }),
    ("bad_header", |bed| {
        let (a, _) = two(bed, &Wanted::default());
        let header = Header {
            gso_type: 1,
            ..Header::default()
        };
        bed.send_with(a, 0, header, &plain().bytes());
        a
    }),
    ("bad_source", |bed| {
        let (a, _) = two(bed, &Wanted::default());
        bed.send(
            a,
            &Frame::new(station(2), BROADCAST).numbered(1, 60).bytes(),
        );
        a
    }),
    ("link_local", |bed| {
        let (a, _) = two(bed, &Wanted::default());
        let to = [1, 0x80, 0xc2, 0, 0, 0x0e];
        bed.send(a, &Frame::new(to, station(1)).numbered(1, 60).bytes());
        a
    }),
    ("tagged_on_access", |bed| {
        let (a, _) = two(bed, &Wanted::default());
        bed.send(a, &plain().vlan(1).bytes());
        a
    }),
    ("bad_tag", |bed| {
        let (a, _) = two(bed, &Wanted::default());
        bed.send(a, &plain().tag(0x88a8, 1).bytes());
        a
    }),
    ("nested_tag", |bed| {
        let (a, b) = two(bed, &mode(trunk("1", None)));
        bed.send(a, &plain().vlan(1).vlan(5).bytes());
        b
    }),
    ("vlan_not_allowed", |bed| {
        let (a, _) = two(bed, &mode(trunk("1", None)));
        bed.send(a, &plain().vlan(2).bytes());
        a
    }),
    ("untagged_on_trunk", |bed| {
        let (a, _) = two(bed, &mode(trunk("1", None)));
        bed.send(a, &plain().bytes());
        a
    }),
    ("source_guard", |bed| {
        let wanted = Wanted {
            addresses: vec![Mac(station(7))],
            ..guarded(|g| g.source_guard = true)
        };
        let (a, _) = two(bed, &wanted);
        bed.send(a, &plain().bytes());
        a
    }),
    ("mac_limit", |bed| {
        let (a, _) = two(bed, &guarded(|g| g.mac_limit = "1".parse().unwrap()));
        bed.send(a, &plain().bytes());
        bed.send(
            a,
            &Frame::new(station(2), station(3)).numbered(1, 60).bytes(),
        );
        a
    }),
    ("bpdu_guard", |bed| {
        let (a, _) = two(bed, &guarded(|g| g.bpdu_guard = true));
        let to = [1, 0x80, 0xc2, 0, 0, 0];
        bed.send(a, &Frame::new(to, station(1)).numbered(1, 60).bytes());
        a
    }),
    ("broadcast_storm", |bed| {
        let (a, _) = two(bed, &guarded(|g| g.broadcast_limit = "1".parse().unwrap()));
        flood(bed, a, &Frame::new(BROADCAST, station(1)).numbered(1, 60));
        a
    }),
    ("multicast_storm", |bed| {
        let (a, _) = two(bed, &guarded(|g| g.multicast_limit = "1".parse().unwrap()));
        flood(
            bed,
            a,
            &Frame::new([1, 0, 0x5e, 0, 0, 9], station(1)).numbered(1, 60),
        );
        a
    }),
    ("unknown_storm", |bed| {
        let (a, _) = two(bed, &guarded(|g| g.unknown_limit = "1".parse().unwrap()));
        flood(bed, a, &plain());
        a
    }),
    ("rate_limit", |bed| {
        let (a, _) = two(bed, &guarded(|g| g.packet_rate = "1".parse().unwrap()));
        flood(bed, a, &plain());
        a
    }),
    ("hairpin", |bed| {
        let (a, _) = two(bed, &Wanted::default());
        bed.send(a, &plain().bytes());
        bed.send(
            a,
            &Frame::new(station(1), station(2)).numbered(1, 60).bytes(),
        );
        a
    }),
    ("isolated", |bed| {
        let apart = Wanted {
            isolated: true,
            ..Wanted::default()
        };
        let (a, b) = (bed.guest(&apart), bed.guest(&apart));
        let up = bed.uplink(&Wanted::default(), Offloads::ALL, 64);
        bed.send(
            b,
            &Frame::new(station(9), station(2)).numbered(1, 60).bytes(),
        );
        assert!(bed.frames(a).is_empty(), "not flooded either");
        assert_eq!(bed.wire(up).len(), 1);
        bed.send(a, &plain().bytes());
        a
    }),
    ("no_member", |bed| {
        let (a, _) = two(bed, &mode(access(5)));
        bed.send(a, &plain().bytes());
        a
    }),
    ("port_down", |bed| {
        let (a, b) = two(bed, &Wanted::default());
        bed.set(b, 0, false);
        bed.send(a, &plain().bytes());
        b
    }),
    ("receiver_full", |bed| {
        let (a, b) = two(bed, &Wanted::default());
        bed.guests.get_mut(&b.0).unwrap().pairs[0]
            .hold(true)
            .unwrap();
        for _ in 0..129 {
            bed.send(a, &plain().bytes());
            bed.frames(b);
        }
        b
    }),
    ("receiver_small", |bed| {
        let a = bed.guest(&Wanted::default());
        let b = bed.guest(&Wanted {
            features: F_VERSION_1,
            shape: Shape {
                rx_buffer: 100,
                ..Wanted::default().shape
            },
            ..Wanted::default()
        });
        bed.send(a, &plain().numbered(1, 75).bytes());
        b
    }),
    ("too_big_for_receiver", |bed| {
        let a = bed.guest(&Wanted {
            mtu: 9000,
            ..Wanted::default()
        });
        let up = bed.uplink(&Wanted::default(), Offloads::ALL, 64);
        bed.send(a, &plain().numbered(1, 1500).bytes());
        assert_eq!(bed.wire(up).len(), 1, "the longest that fits");
        bed.send(a, &plain().numbered(1, 1501).bytes());
        up
    }),
    ("too_many_segments", |bed| {
        let a = bed.guest(&Wanted::default());
        let b = bed.guest(&Wanted {
            features: PLAIN,
            ..Wanted::default()
        });
        // The queue has 256 entries; 128 buffers are there.
        bed.send_with(a, 0, header(100, false), &tcp(12_800, None));
        assert_eq!((bed.dropped(), bed.frames(b).len()), (vec![], 128));
        bed.send_with(a, 0, header(100, false), &tcp(25_601, None));
        assert!(bed.frames(b).is_empty(), "nothing of it");
        b
    }),
    ("ring_disabled", |bed| {
        let (a, _) = two(bed, &Wanted::default());
        let tx = &mut bed.guests.get_mut(&a.0).unwrap().tx[0];
        tx.update(Update::Enabled(false));
        bed.send(a, &plain().bytes());
        a
    }),
];

#[test]
fn every_reason_is_counted_once_where_it_belongs() {
    for (name, case) in CASES {
        let mut bed = Bed::new();
        let at = case(&mut bed);
        assert_eq!(bed.dropped(), [(at.0, *name, 1)], "{name}");
    }
    let tested: BTreeSet<_> = CASES.iter().map(|(name, _)| *name).collect();
    assert_eq!(tested, Discard::NAMES.into_iter().collect(), "all of them");
}

#[test]
fn a_chain_with_a_writable_buffer_breaks_the_transmit_queue_only() {
    use towpath_common::testing::{Form, Segment};
    let mut bed = Bed::new();
    let (a, b) = two(&mut bed, &Wanted::default());
    let pair = &mut bed.guests.get_mut(&a.0).unwrap().pairs[0];
    let gpa = pair.memory().alloc(100, 16).unwrap();
    let parts = [Segment::readable(gpa, 60), Segment::writable(gpa + 60, 40)];
    let token = pair.tx().chain(&parts, Form::Direct).unwrap();
    pair.tx().post(token);
    pair.publish().unwrap();
    bed.step(a);
    assert_eq!(bed.dropped(), [(a.0, "bad_header", 1)]);
    assert!(
        bed.guests.get_mut(&a.0).unwrap().tx[0]
            .newly_broken()
            .is_some()
    );
    // Its receive queue goes on.
    bed.send(
        b,
        &Frame::new(BROADCAST, station(5)).numbered(1, 60).bytes(),
    );
    assert_eq!(bed.frames(a).len(), 1);
}

#[test]
fn a_receive_buffer_without_room_for_a_header_breaks_the_queue_once() {
    use towpath_common::testing::{Form, Segment};
    let mut bed = Bed::new();
    let a = bed.guest(&Wanted::default());
    let b = bed.guest(&Wanted {
        shape: Shape {
            rx_slots: 0,
            ..Wanted::default().shape
        },
        ..Wanted::default()
    });
    let pair = &mut bed.guests.get_mut(&b.0).unwrap().pairs[0];
    let gpa = pair.memory().alloc(100, 16).unwrap();
    let token = pair.rx().chain(&[Segment::writable(gpa, 11)], Form::Direct);
    let token = token.unwrap();
    pair.rx().post(token);
    pair.rx().publish().unwrap();
    bed.send(a, &plain().bytes());
    bed.send(a, &plain().bytes());
    assert_eq!(bed.dropped(), [(b.0, "port_down", 2)]);
    assert!(matches!(
        bed.events.take(),
        Some(crate::stats::Event::Broken { queue: 0, .. })
    ));
    assert!(bed.events.take().is_none());
    let shared = &bed.ports[b.index()].shared.queues[0];
    assert_eq!(shared.broken_now(), Some("request"));
}

#[test]
fn a_ring_found_broken_when_a_frame_comes_is_down_and_not_full() {
    let mut bed = Bed::new();
    let (a, b) = two(&mut bed, &Wanted::default());
    let pair = &mut bed.guests.get_mut(&b.0).unwrap().pairs[0];
    // More than the queue has.
    pair.rx().poke_avail_idx(0x7000);
    bed.send(a, &plain().bytes());
    bed.send(a, &plain().bytes());
    assert_eq!(bed.dropped(), [(b.0, "port_down", 2)]);
    let shared = &bed.ports[b.index()].shared.queues[0];
    assert!(shared.broken_now().is_some());
}
