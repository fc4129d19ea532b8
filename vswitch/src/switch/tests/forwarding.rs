//! Who gets a frame, with which tag, and in which order.

use towpath_common::testing::Form;
use towpath_common::testing::net::frame::{BROADCAST, Frame, station};

use super::*;

fn frame(to: u32, from: u32, number: u64) -> Frame {
    Frame::new(station(to), station(from)).numbered(number, 100)
}

#[test]
fn an_unknown_address_is_flooded_and_a_known_one_is_not() {
    let mut bed = Bed::new();
    let ports = [(); 3].map(|()| bed.guest(&Wanted::default()));
    let first = frame(1, 0, 1).bytes();
    bed.send(ports[0], &first);
    assert_eq!(bed.frames(ports[1]), std::slice::from_ref(&first));
    assert_eq!(bed.frames(ports[2]), [first]);
    assert!(bed.frames(ports[0]).is_empty(), "not to where it came from");
    let answer = frame(0, 1, 2).bytes();
    bed.send(ports[1], &answer);
    assert_eq!(bed.frames(ports[0]), [answer]);
    assert!(bed.frames(ports[2]).is_empty());
    let all = Frame::new(BROADCAST, station(0)).numbered(3, 60).bytes();
    bed.send(ports[0], &all);
    assert_eq!(bed.frames(ports[1]), std::slice::from_ref(&all));
    assert_eq!(bed.frames(ports[2]), [all]);
    assert_eq!(bed.dropped(), []);
}

#[test]
fn tags_are_what_each_port_wants() {
    let mut bed = Bed::new();
    let port = |mode| Wanted {
        mode,
        ..Wanted::default()
    };
    let untagged = bed.guest(&port(access(10)));
    let other = bed.guest(&port(access(20)));
    let tagged = bed.guest(&port(trunk("10,20", Some(1))));
    let native = bed.guest(&port(trunk("20", Some(10))));
    for len in [20, 60, 110, 114, 118, 200, 1400] {
        let plain = Frame::new(BROADCAST, station(len)).numbered(9, len as usize);
        bed.send(untagged, &plain.bytes());
        assert_eq!(bed.frames(native), [plain.bytes()], "{len}");
        assert_eq!(bed.frames(tagged), [plain.clone().vlan(10).bytes()]);
        assert!(bed.frames(other).is_empty());
        // And back, with a priority, which an untagged frame has no place for.
        let back = Frame::new(station(len), station(7777)).numbered(5, len as usize);
        bed.send(tagged, &back.clone().tag(0x8100, 0xa00a).bytes());
        assert_eq!(bed.frames(untagged), [back.bytes()], "{len}");
        let across = Frame::new(BROADCAST, station(7777)).numbered(6, len as usize);
        bed.send(tagged, &across.clone().tag(0x8100, 0x6014).bytes());
        assert_eq!(bed.frames(other), [across.bytes()]);
        assert_eq!(bed.frames(native), [across.tag(0x8100, 0x6014).bytes()]);
    }
    assert_eq!(bed.dropped(), []);
}

#[test]
fn each_frame_arrives_once_and_in_its_flows_order_over_one_two_and_four_queues() {
    for pairs in [1, 2, 4] {
        for extra in [
            0,
            feature::EVENT_IDX,
            feature::IN_ORDER | feature::INDIRECT_DESC,
        ] {
            let mut bed = Bed::new();
            let wanted = Wanted {
                features: ALL | extra,
                pairs,
                ..Wanted::default()
            };
            let (a, b) = (bed.guest(&wanted), bed.guest(&wanted));
            bed.send(b, &frame(999, 500, 0).bytes());
            bed.frames(a);
            let mut next = [0u64; 8];
            let mut last = [0u64; 8];
            for round in 0..200u64 {
                let guest = bed.guests.get_mut(&a.0).unwrap();
                for flow in 0..8u32 {
                    let at = flow as usize;
                    let number = next[at] << 8 | u64::from(flow);
                    next[at] += 1;
                    let len = 30 + usize::try_from(round * 7 % 1400).unwrap();
                    let bytes = Frame::new(station(500), station(flow)).numbered(number, len);
                    let pair = &mut guest.pairs[at % usize::from(pairs)];
                    assert!(pair.queue(Header::default(), &bytes.bytes()).unwrap());
                    pair.publish().unwrap();
                }
                bed.step(a);
                for bytes in bed.frames(b) {
                    let number = Frame::parse(&bytes).unwrap().number().expect("whole");
                    let flow = usize::try_from(number & 0xff).unwrap();
                    assert_eq!(number >> 8, last[flow], "pairs {pairs}, flow {flow}");
                    last[flow] += 1;
                }
            }
            assert_eq!(next, last, "pairs {pairs}");
            assert_eq!(bed.dropped(), []);
        }
    }
}

#[test]
fn a_queue_that_is_closed_gets_nothing_and_the_others_get_its_flows() {
    let mut bed = Bed::new();
    let wanted = Wanted {
        pairs: 2,
        ..Wanted::default()
    };
    let (a, b) = (bed.guest(&wanted), bed.guest(&wanted));
    bed.set(b, 1, false);
    for flow in 0..20 {
        bed.send(a, &frame(500, flow, flow.into()).bytes());
    }
    assert_eq!(bed.received(b, 0).len(), 20);
    assert_eq!(bed.received(b, 1).len(), 0);
    assert_eq!(bed.dropped(), []);
}

#[test]
fn a_full_receiver_delays_nobody() {
    let mut bed = Bed::new();
    let small = Wanted {
        shape: Shape {
            rx_slots: 3,
            ..Wanted::default().shape
        },
        ..Wanted::default()
    };
    let (a, full, free) = (
        bed.guest(&Wanted::default()),
        bed.guest(&small),
        bed.guest(&Wanted::default()),
    );
    let pair = &mut bed.guests.get_mut(&a.0).unwrap().pairs[0];
    for number in 0..20 {
        let bytes = frame(500, 1, number).bytes();
        assert!(pair.queue(Header::default(), &bytes).unwrap());
    }
    pair.publish().unwrap();
    bed.step(a);
    assert_eq!(bed.frames(free).len(), 20);
    assert_eq!(bed.frames(full).len(), 3, "the first, whole");
    assert_eq!(bed.dropped(), [(full.0, "receiver_full", 17)]);
    // Buffers came back: it goes on.
    bed.send(a, &frame(500, 1, 20).bytes());
    assert_eq!(bed.frames(full).len(), 1);
}

#[test]
fn what_a_frame_teaches_counts_for_the_next_of_its_burst() {
    let mut bed = Bed::new();
    let (a, b) = (bed.guest(&Wanted::default()), bed.guest(&Wanted::default()));
    let pair = &mut bed.guests.get_mut(&a.0).unwrap().pairs[0];
    let (unknown, own) = (frame(2, 1, 1).bytes(), frame(2, 2, 2).bytes());
    for bytes in [&unknown, &own] {
        assert!(pair.queue(Header::default(), bytes).unwrap());
    }
    pair.publish().unwrap();
    bed.step(a);
    assert_eq!(bed.frames(b), [unknown]);
    assert_eq!(bed.dropped(), [(a.0, "hairpin", 1)]);
}

#[test]
fn a_frame_over_more_buffers_than_are_looked_at_is_too_large_and_the_next_one_arrives() {
    let mut bed = Bed::new();
    let jumbo = || Wanted {
        mtu: 9000,
        ..Wanted::default()
    };
    let a = bed.guest(&jumbo());
    // 16 segments each: a burst has room for 17.
    let b = bed.guest(&Wanted {
        features: PLAIN | feature::INDIRECT_DESC,
        shape: Shape {
            rx_slots: 200,
            rx_buffer: 256,
            rx_piece: 16,
            form: Form::Indirect,
            ..jumbo().shape
        },
        ..jumbo()
    });
    let most = 17 * 256 - 12 - 14;
    let sent = |len| Frame::new(station(2), station(1)).numbered(1, len).bytes();
    for len in [most, most + 1, most] {
        bed.send(a, &sent(len));
    }
    assert_eq!(bed.frames(b), [sent(most), sent(most)]);
    assert_eq!(bed.dropped(), [(b.0, "receiver_small", 1)]);
}
