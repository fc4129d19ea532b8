//! Receivers that take less than senders ask for, and buffers smaller than frames.

use std::collections::BTreeMap;

use towpath_common::testing::net::frame::station;

use super::*;
use crate::net::{GSO_TCPV4, HEADER, NEEDS_CSUM};

/// Ethernet, IPv4 and TCP with a partial checksum, `payload` bytes behind them.
pub(super) fn tcp(payload: usize, tag: Option<u16>) -> Vec<u8> {
    let mut frame = [station(2), station(1)].concat();
    if let Some(tci) = tag {
        frame.extend([0x81, 0]);
        frame.extend(tci.to_be_bytes());
    }
    let length = u16::try_from(40 + payload).unwrap();
    frame.extend([8, 0, 0x45, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([0, 7, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let at = frame.len() - 20;
    let sum = etherparse::Ipv4Header::from_slice(&frame[at..]).unwrap().0;
    frame[at + 10..at + 12].copy_from_slice(&sum.calc_header_checksum().to_be_bytes());
    // Ports, sequence, acknowledgement, offset and flags, window, pseudo-header's sum, urgent.
    frame.extend([0x30, 0x39, 0, 80, 0, 0, 1, 0, 0, 0, 0, 9, 0x50, 0x18, 1, 0]);
    let pseudo = Sum::of(&[10, 0, 0, 1, 10, 0, 0, 2]).with_u16(6);
    let pseudo = pseudo.with_u16(u16::try_from(20 + payload).unwrap());
    frame.extend(pseudo.fold().to_be_bytes());
    frame.extend([0, 0]);
    frame.extend((0..payload).map(|i| u8::try_from(i * 31 % 251).unwrap()));
    frame
}

use crate::offload::Sum;

pub(super) fn header(gso: u16, tag: bool) -> Header {
    let shift = if tag { 4 } else { 0 };
    Header {
        flags: NEEDS_CSUM,
        gso_type: if gso > 0 { GSO_TCPV4 } else { 0 },
        hdr_len: if gso > 0 { 54 + shift } else { 0 },
        gso_size: gso,
        csum_start: 34 + shift,
        csum_offset: 16,
        num_buffers: 0,
    }
}

/// Both checksums of a frame are right, by another's judgement; gives sequence number and payload.
fn checked(frame: &[u8]) -> (u32, Vec<u8>) {
    let parsed = etherparse::PacketHeaders::from_ethernet_slice(frame).unwrap();
    let Some(etherparse::NetHeaders::Ipv4(ip, _)) = parsed.net else {
        panic!("no IPv4")
    };
    let Some(etherparse::TransportHeader::Tcp(tcp)) = parsed.transport else {
        panic!("no TCP")
    };
    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
    let payload = parsed.payload.slice();
    let sum = tcp.calc_checksum_ipv4(&ip, payload).unwrap();
    assert_eq!(tcp.checksum, sum);
    assert_eq!(usize::from(ip.total_len), 40 + payload.len());
    (tcp.sequence_number, payload.to_vec())
}

fn reassembled<'a>(frames: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let parts: BTreeMap<u32, Vec<u8>> = frames.into_iter().map(checked).collect();
    let mut next = 0x100;
    for (at, part) in &parts {
        assert_eq!(*at, next, "no gap");
        next += u32::try_from(part.len()).unwrap();
    }
    parts.into_values().flatten().collect()
}

#[test]
fn a_plain_receiver_gets_checksums_and_segments_done_whatever_happens_to_tags() {
    let modes = [
        (access(10), access(10)),
        (access(10), trunk("10", None)),
        (trunk("10", None), access(10)),
        (trunk("10", None), trunk("10", None)),
    ];
    for (from, to) in modes {
        let tag = matches!(from, Mode::Trunk { .. }).then_some(0x600a);
        let tagged = matches!(to, Mode::Trunk { .. });
        for (payload, gso, count) in [(100, 0, 1), (1, 0, 1), (5000, 1000, 5), (60_000, 1448, 42)] {
            let mut bed = Bed::new();
            let a = bed.guest(&Wanted {
                mode: from.clone(),
                ..Wanted::default()
            });
            let b = bed.guest(&Wanted {
                mode: to.clone(),
                features: PLAIN,
                ..Wanted::default()
            });
            let sent = tcp(payload, tag);
            bed.send_with(a, 0, header(gso, tag.is_some()), &sent);
            let got = bed.received(b, 0);
            assert_eq!(bed.dropped(), []);
            assert_eq!(got.len(), count);
            for received in &got {
                let plain = Header {
                    num_buffers: 1,
                    ..Header::default()
                };
                assert_eq!(received.header, plain);
                let has = received.frame[12..14] == [0x81, 0];
                assert_eq!(has, tagged);
            }
            let bytes = reassembled(got.iter().map(|r| &r.frame[..]));
            assert_eq!(bytes, sent[sent.len() - payload..]);
        }
    }
}

#[test]
fn a_receiver_that_takes_it_gets_a_segmented_frame_whole_over_many_buffers() {
    let modes = [
        (access(10), access(10), 0i16),
        (access(10), trunk("10", None), 4),
        (trunk("10", None), access(10), -4),
    ];
    for (from, to, shift) in modes {
        for (rx_buffer, rx_piece) in [(1526, u32::MAX), (1526, 700), (4096, 1024), (68 << 10, 999)]
        {
            let tag = matches!(from, Mode::Trunk { .. }).then_some(10);
            let mut bed = Bed::new();
            let a = bed.guest(&Wanted {
                mode: from.clone(),
                shape: Shape {
                    cut: towpath_common::testing::net::Cut::Pieces(3000),
                    ..Wanted::default().shape
                },
                ..Wanted::default()
            });
            let b = bed.guest(&Wanted {
                mode: to.clone(),
                features: ALL | feature::INDIRECT_DESC,
                shape: Shape {
                    rx_slots: 60,
                    rx_buffer,
                    rx_piece,
                    form: towpath_common::testing::Form::Indirect,
                    ..Wanted::default().shape
                },
                ..Wanted::default()
            });
            let sent = tcp(65_000, tag);
            let asked = header(1448, tag.is_some());
            for _ in 0..3 {
                bed.send_with(a, 0, asked, &sent);
                let got = bed.received(b, 0);
                assert_eq!(bed.dropped(), [], "{rx_buffer} {rx_piece}");
                assert_eq!(got.len(), 1);
                let len = HEADER + sent.len();
                let len = len.strict_add_signed(shift.into());
                let buffers = len.div_ceil(rx_buffer as usize);
                let expected = Header {
                    csum_start: asked.csum_start.strict_add_signed(shift),
                    hdr_len: asked.hdr_len.strict_add_signed(shift),
                    num_buffers: u16::try_from(buffers).unwrap(),
                    ..asked
                };
                assert_eq!(got[0].header, expected);
                let (frame, at) = (&got[0].frame, 12usize);
                assert_eq!(frame[frame.len() - 65_040..], sent[sent.len() - 65_040..]);
                let ethertype = if shift > 0 { [0x81, 0] } else { [8, 0] };
                assert_eq!(frame[at..at + 2], ethertype);
            }
        }
    }
}

#[test]
fn jumbo_frames_pass_between_ports_that_take_them() {
    let mut bed = Bed::new();
    let wanted = Wanted {
        mtu: 9000,
        ..Wanted::default()
    };
    let (a, b) = (bed.guest(&wanted), bed.guest(&wanted));
    let up = bed.uplink(&wanted, Offloads::NONE, 64);
    let frame = towpath_common::testing::net::frame::Frame::new(station(2), station(1));
    let frame = frame.numbered(5, 9000).bytes();
    bed.send(a, &frame);
    assert_eq!(bed.received(b, 0)[0].header.num_buffers, 6);
    assert_eq!(bed.wire(up)[0].bytes, frame);
    assert_eq!(bed.dropped(), []);
}

#[test]
fn an_uplink_gets_what_it_takes_and_no_longer_frame() {
    for accepts in [Offloads::ALL, Offloads::CSUM, Offloads::NONE] {
        let mut bed = Bed::new();
        let a = bed.guest(&Wanted::default());
        let up = bed.uplink(
            &Wanted {
                mode: trunk("1", None),
                ..Wanted::default()
            },
            accepts,
            64,
        );
        let sent = tcp(20_000, None);
        bed.send_with(a, 0, header(1446, false), &sent);
        let frames = bed.wire(up);
        if accepts == Offloads::ALL {
            assert_eq!(frames.len(), 1);
            assert_eq!(frames[0].header.csum_start, 38);
        } else {
            assert_eq!(frames.len(), 14);
        }
        if accepts == Offloads::NONE {
            let bytes = reassembled(frames.iter().map(|f| &f.bytes[..]));
            assert_eq!(bytes, sent[54..]);
        }
        bed.send_with(a, 0, header(1461, false), &sent);
        assert_eq!(bed.wire(up).len(), 0);
        assert_eq!(bed.dropped(), [(up.0, "too_big_for_receiver", 1)]);
    }
}

#[test]
fn a_checksum_that_the_host_verified_says_nothing_else_whatever_happens_to_tags() {
    let mut bed = Bed::new();
    let up = bed.uplink(&Wanted::default(), Offloads::ALL, 64);
    let tagged = bed.guest(&Wanted {
        mode: trunk("1", None),
        ..Wanted::default()
    });
    let plain = bed.guest(&Wanted {
        features: PLAIN,
        ..Wanted::default()
    });
    let valid = crate::net::NetHeader {
        flags: crate::net::DATA_VALID,
        ..Default::default()
    };
    bed.arrive_at_uplink(up, &[(valid, tcp(10, None))]);
    let got = bed.received(tagged, 0);
    let expected = Header {
        flags: crate::net::DATA_VALID,
        num_buffers: 1,
        ..Header::default()
    };
    assert_eq!(got[0].header, expected);
    assert_eq!(bed.received(plain, 0)[0].header.flags, 0);
}

#[test]
fn a_segmented_frame_costs_its_sender_as_many_frames_as_it_makes() {
    let mut bed = Bed::new();
    let mut limited = Wanted::default();
    limited.guards.packet_rate = "100".parse().unwrap();
    limited.guards.packet_burst = "100".parse().unwrap();
    let a = bed.guest(&limited);
    let b = bed.guest(&Wanted::default());
    // 50 segments each, the last of them short; the receiver gets them whole.
    for sent in 1..=3 {
        bed.send_with(a, 0, header(100, false), &tcp(4901, None));
        assert_eq!(bed.frames(b).len(), usize::from(sent <= 2));
    }
    assert_eq!(bed.dropped(), [(a.0, "rate_limit", 1)]);
    bed.now.ns += 10_000_000;
    bed.send(a, &tcp(60, None));
    assert_eq!(
        bed.frames(b).len(),
        1,
        "one more after the hundredth part of a second"
    );
    bed.send(a, &tcp(60, None));
    assert!(bed.frames(b).is_empty());
}
