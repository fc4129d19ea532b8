//! Offloads against other implementations: etherparse reads the headers, smoltcp verifies the
//! checksums, and a naive sum stands beside the quick one.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;
use smoltcp::wire::{IpAddress, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

use super::*;
use crate::net::{GSO_TCPV4, GSO_TCPV6, GSO_UDP};

const FIN_PSH_ACK_CWR: u8 = 0x99;

/// A frame to be made.
#[derive(Debug, Clone)]
struct Spec {
    tags: usize,
    v6: bool,
    /// Options: IPv4 options or IPv6 extension headers, in units of eight bytes.
    ip_options: usize,
    tcp: bool,
    /// TCP options in units of four bytes.
    tcp_options: usize,
    sequence: u32,
    id: u16,
    payload: Vec<u8>,
    size: u16,
}

impl Default for Spec {
    fn default() -> Spec {
        Spec {
            tags: 0,
            v6: false,
            ip_options: 0,
            tcp: true,
            tcp_options: 3,
            sequence: 0xffff_ff00,
            id: 0xfffe,
            payload: (0..10_000u32).map(|i| i.to_le_bytes()[0]).collect(),
            size: 1448,
        }
    }
}

impl Spec {
    fn network(&self) -> usize {
        14 + 4 * self.tags
    }

    fn transport(&self) -> usize {
        self.network() + if self.v6 { 40 } else { 20 } + 8 * self.ip_options
    }

    fn headers(&self) -> usize {
        let transport = if self.tcp {
            20 + 4 * self.tcp_options
        } else {
            8
        };
        self.transport() + transport
    }

    fn gso_type(&self) -> u8 {
        match (self.tcp, self.v6) {
            (true, false) => GSO_TCPV4,
            (true, true) => GSO_TCPV6,
            (false, _) => GSO_UDP_L4,
        }
    }

    fn header(&self) -> NetHeader {
        NetHeader {
            flags: NEEDS_CSUM,
            gso_type: self.gso_type(),
            hdr_len: 77,
            gso_size: self.size,
            csum_start: self.transport().try_into().unwrap(),
            csum_offset: if self.tcp { 16 } else { 6 },
        }
    }

    /// The frame as a driver sends it: the checksum field holds the sum of the pseudo-header.
    fn frame(&self) -> Vec<u8> {
        let behind = self.headers() - self.transport() + self.payload.len();
        let options = 8 * self.ip_options;
        let mut f = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for tag in 0..self.tags {
            f.extend(if tag + 1 < self.tags {
                [0x88, 0xa8]
            } else {
                [0x81, 0]
            });
            f.extend([0x60, 7]);
        }
        let protocol = if self.tcp { 6 } else { 17 };
        let (source, destination) = if self.v6 {
            let next = if options > 0 { 60 } else { protocol };
            f.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            f.extend(u16::try_from(options + behind).unwrap().to_be_bytes());
            f.extend([next, 64]);
            let (source, destination) = ([0xfd; 16], [0xfe; 16]);
            f.extend(source);
            f.extend(destination);
            for i in 0..self.ip_options {
                let next = if i + 1 < self.ip_options {
                    60
                } else {
                    protocol
                };
                f.extend([next, 0, 1, 4, 0, 0, 0, 0]);
            }
            (source.to_vec(), destination.to_vec())
        } else {
            let ihl = u8::try_from(5 + self.ip_options * 2).unwrap();
            f.extend([8, 0, 0x40 | ihl, 2]);
            f.extend(u16::try_from(20 + options + behind).unwrap().to_be_bytes());
            f.extend(self.id.to_be_bytes());
            f.extend([0x40, 0, 64, protocol, 0xde, 0xad, 10, 0, 0, 1, 10, 0, 0, 2]);
            f.extend(vec![1; options]);
            (vec![10, 0, 0, 1], vec![10, 0, 0, 2])
        };
        let mut pseudo = [source, destination].concat();
        pseudo.extend([0, protocol]);
        pseudo.extend(u16::try_from(behind).unwrap().to_be_bytes());
        let partial = (!naive(&pseudo)).to_be_bytes();
        f.extend([0x12, 0x34, 0x56, 0x78]);
        if self.tcp {
            f.extend(self.sequence.to_be_bytes());
            let offset = u8::try_from((5 + self.tcp_options) << 4).unwrap();
            f.extend([9, 9, 9, 9, offset, FIN_PSH_ACK_CWR, 1, 0]);
            f.extend(partial);
            f.extend([0, 0]);
            f.extend(vec![1; self.tcp_options * 4]);
        } else {
            f.extend(u16::try_from(behind).unwrap().to_be_bytes());
            f.extend(partial);
        }
        assert_eq!(f.len(), self.headers());
        f.extend(&self.payload);
        f
    }
}

/// The checksum as RFC 1071 defines it.
fn naive(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// What [`check`] read.
struct Read {
    payload: Vec<u8>,
    sequence: u32,
    id: u16,
    flags: u8,
}

/// Read a frame with etherparse, verify every checksum and length with smoltcp.
fn check(frame: &[u8], spec: &Spec) -> Read {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let (id, source, destination): (u16, IpAddress, IpAddress) = match sliced.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            let packet = Ipv4Packet::new_checked(&frame[spec.network()..]).unwrap();
            assert!(packet.verify_checksum());
            assert_eq!(
                usize::from(packet.total_len()),
                frame.len() - spec.network()
            );
            (
                ip.header().identification(),
                packet.src_addr().into(),
                packet.dst_addr().into(),
            )
        }
        NetSlice::Ipv6(_) => {
            let packet = Ipv6Packet::new_checked(&frame[spec.network()..]).unwrap();
            assert_eq!(packet.total_len(), frame.len() - spec.network());
            (0, packet.src_addr().into(), packet.dst_addr().into())
        }
        other => panic!("{other:?}"),
    };
    let transport = &frame[spec.transport()..];
    match sliced.transport.unwrap() {
        TransportSlice::Tcp(tcp) => {
            let packet = TcpPacket::new_checked(transport).unwrap();
            assert!(packet.verify_checksum(&source, &destination));
            Read {
                payload: tcp.payload().to_vec(),
                sequence: tcp.sequence_number(),
                id,
                flags: transport[13],
            }
        }
        TransportSlice::Udp(udp) => {
            let packet = UdpPacket::new_checked(transport).unwrap();
            assert_ne!(packet.checksum(), 0, "zero means none");
            assert!(packet.verify_checksum(&source, &destination));
            assert_eq!(usize::from(udp.length()), transport.len());
            Read {
                payload: udp.payload().to_vec(),
                sequence: 0,
                id,
                flags: 0,
            }
        }
        other => panic!("{other:?}"),
    }
}

/// Cut the frame for a receiver, and check everything that must hold of the segments.
fn cut_and_check(spec: &Spec, accepts: Offloads) -> usize {
    let frame = spec.frame();
    let head = &frame[..frame.len().min(128)];
    let header = validate(spec.header(), frame.len(), head, Offloads::ALL).unwrap();
    assert_eq!(usize::from(header.hdr_len), spec.headers());
    let segments = Segments::new(header, &frame, accepts).unwrap();
    let count = segments.len();
    assert_eq!(count, spec.payload.len().div_ceil(spec.size.into()));
    let mut payload = Vec::new();
    for (i, segment) in segments.enumerate() {
        let mut out = vec![0; 65_600];
        let len = segment.write(&mut out).unwrap();
        out.truncate(len);
        assert_eq!(len, segment.len());
        if accepts.has(Offloads::CSUM) {
            assert_eq!(segment.header.needs(), Offloads::CSUM);
            let head = &out[..len.min(128)];
            let again = validate(segment.header, len, head, Offloads::CSUM);
            assert_eq!(again, Ok(segment.header));
            complete_checksum(segment.header, &mut out).unwrap();
        } else {
            assert_eq!(segment.header, NetHeader::default());
        }
        let read = check(&out, spec);
        assert_eq!(
            out[..spec.network()],
            frame[..spec.network()],
            "link header"
        );
        let last = i + 1 == count;
        assert!(if last {
            !read.payload.is_empty()
        } else {
            read.payload.len() == usize::from(spec.size)
        });
        if spec.tcp {
            let before = u32::try_from(payload.len()).unwrap();
            assert_eq!(read.sequence, spec.sequence.wrapping_add(before));
            let first_only = if i == 0 { 0x80 } else { 0 };
            let last_only = if last { 0x09 } else { 0 };
            assert_eq!(read.flags, 0x10 | first_only | last_only);
        }
        if !spec.v6 {
            assert_eq!(read.id, spec.id.wrapping_add(i.try_into().unwrap()));
        }
        payload.extend(read.payload);
    }
    assert_eq!(payload, spec.payload);
    count
}

fn specs() -> impl Strategy<Value = Spec> {
    let shape = (
        0usize..=2,
        any::<bool>(),
        0usize..=4,
        any::<bool>(),
        0usize..=10,
    );
    let numbers = (
        any::<u32>(),
        any::<u16>(),
        1u16..9000,
        2usize..40,
        any::<u16>(),
    );
    (shape, numbers, any::<u64>()).prop_map(|(shape, numbers, seed)| {
        let (tags, v6, ip_options, tcp, tcp_options) = shape;
        let (sequence, id, size, count, rest) = numbers;
        let full = usize::from(size) * (count - 1) + usize::from(rest % size) + 1;
        let length = full.min(65_000).max(usize::from(size) + 1);
        let bytes = (0..length as u64).map(|i| (seed ^ i).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Spec {
            tags,
            v6,
            ip_options,
            tcp,
            tcp_options,
            sequence,
            id,
            payload: bytes.map(|word| word.to_be_bytes()[0]).collect(),
            size,
        }
    })
}

/// Headers with some sense in them, so that more than the first check is reached.
fn headers() -> impl Strategy<Value = NetHeader> {
    let flags = prop_oneof![4 => Just(NEEDS_CSUM), 1 => any::<u8>()];
    let kinds = [
        GSO_NONE,
        GSO_TCPV4,
        GSO_TCPV6,
        GSO_UDP_L4,
        GSO_TCPV4 | GSO_ECN,
    ];
    let kind = prop_oneof![4 => proptest::sample::select(kinds.to_vec()), 1 => any::<u8>()];
    let start = prop_oneof![4 => 0u16..120, 1 => any::<u16>()];
    let offset = prop_oneof![4 => proptest::sample::select(vec![6u16, 16]), 1 => any::<u16>()];
    (flags, kind, any::<u16>(), any::<u16>(), start, offset).prop_map(
        |(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)| NetHeader {
            flags,
            gso_type,
            hdr_len,
            gso_size,
            csum_start,
            csum_offset,
        },
    )
}

proptest! {
    #[test]
    fn the_sum_is_the_naive_one(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        prop_assert_eq!(Sum::of(&bytes).checksum(), naive(&bytes));
        let (a, b) = bytes.split_at(bytes.len() / 4 * 2);
        prop_assert_eq!(Sum::of(a).with(b).checksum(), naive(&bytes));
        let with_number = Sum::of(a).with_u16(0x1234).with(b).fold();
        prop_assert_eq!(!with_number, naive(&[a, &[0x12, 0x34], b].concat()));
    }

    #[test]
    fn segments_are_the_frame_again(spec in specs()) {
        cut_and_check(&spec, Offloads::NONE);
        cut_and_check(&spec, Offloads::CSUM);
    }

    #[test]
    fn a_completed_checksum_verifies(spec in specs(), tail in 0usize..1500) {
        let spec = Spec { payload: spec.payload[..tail.min(spec.payload.len())].to_vec(), ..spec };
        let mut frame = spec.frame();
        let at = spec.network();
        if !spec.v6 {
            Ipv4Packet::new_checked(&mut frame[at..]).unwrap().fill_checksum();
        }
        let header = NetHeader { gso_type: GSO_NONE, ..spec.header() };
        let header = validate(header, frame.len(), &frame, Offloads::CSUM).unwrap();
        complete_checksum(header, &mut frame).unwrap();
        check(&frame, &spec);
    }

    #[test]
    fn arbitrary_frames_harm_nobody(
        header in headers(),
        mut frame in proptest::collection::vec(any::<u8>(), 0..400),
        visible in 0usize..200,
        negotiated in any::<bool>(),
    ) {
        exercise(header, &mut frame, visible, negotiated);
    }

    #[test]
    fn broken_frames_harm_nobody(
        header in headers(),
        spec in specs(),
        flips in proptest::collection::vec((0usize..120, any::<u8>()), 0..4),
        keep in 0usize..2000,
        visible in 0usize..129,
    ) {
        let mut frame = spec.frame();
        for (at, value) in flips {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        let mut short = frame[..keep.min(frame.len())].to_vec();
        exercise(spec.header(), &mut frame, visible, true);
        exercise(spec.header(), &mut short, visible, true);
        exercise(header, &mut frame, visible, true);
    }
}

/// Put a frame through everything; what is accepted must keep the promises.
fn exercise(header: NetHeader, frame: &mut [u8], visible: usize, negotiated: bool) {
    let asked = if negotiated {
        Offloads::ALL
    } else {
        Offloads::CSUM
    };
    let head = &frame[..visible.min(frame.len())];
    if let Ok(checked) = validate(header, frame.len(), head, asked) {
        assert!(asked.has(checked.needs()));
        assert_eq!(checked.flags & !NEEDS_CSUM, 0);
        assert!(usize::from(checked.hdr_len) <= frame.len());
        assert_eq!(
            validate(checked, frame.len(), head, asked),
            Ok(checked),
            "idempotent"
        );
        let mut copy = frame.to_vec();
        complete_checksum(checked, &mut copy).unwrap();
        assert_eq!(copy[..frame.len().min(12)], frame[..frame.len().min(12)]);
        // Tags may have come or gone, and the frame not with them.
        for bytes in [-8, -4, 4, 8] {
            let _ = complete_checksum(checked.shifted(bytes), &mut copy);
            let _ = Segments::new(checked.shifted(bytes), frame, asked).map(Iterator::count);
        }
    }
    let _ = complete_checksum(header, &mut frame.to_vec());
    if let Ok(segments) = Segments::new(header, frame, Offloads::NONE) {
        assert!(segments.len() <= MAX_SEGMENTS);
        let total: usize = segments.map(|segment| segment.payload.len()).sum();
        assert!(total <= frame.len());
    }
}

#[test]
fn every_kind_of_frame_is_cut() {
    for (tags, v6, tcp) in [0, 1, 2].iter().flat_map(|tags| {
        [(false, false), (false, true), (true, false), (true, true)].map(|(a, b)| (*tags, a, b))
    }) {
        let spec = Spec {
            tags,
            v6,
            tcp,
            ..Spec::default()
        };
        assert_eq!(cut_and_check(&spec, Offloads::NONE), 7);
        assert_eq!(cut_and_check(&spec, Offloads::CSUM), 7);
    }
}

#[test]
fn the_longest_frame_and_the_smallest_segments_are_cut() {
    let payload = vec![0xa5; 65_535 - 20 - 32];
    let spec = Spec {
        payload: payload.clone(),
        ..Spec::default()
    };
    assert_eq!(cut_and_check(&spec, Offloads::NONE), 46);
    let spec = Spec {
        payload,
        size: 64,
        ..spec
    };
    assert_eq!(cut_and_check(&spec, Offloads::NONE), 1024);
    let frame = spec.frame();
    let header = NetHeader {
        gso_size: 63,
        ..spec.header()
    };
    assert_eq!(
        validate(header, frame.len(), &frame, Offloads::ALL),
        Err(Discard::BadHeader)
    );
}

#[test]
fn a_checksum_of_zero_is_written_as_ones() {
    let mut frame = vec![0; 64];
    frame[40] = 0xff;
    frame[41] = 0xff;
    let header = NetHeader {
        flags: NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 20,
        ..NetHeader::default()
    };
    complete_checksum(header, &mut frame).unwrap();
    assert_eq!(frame[54..56], [0xff, 0xff]);
}

#[test]
fn a_plain_frame_has_a_plain_header() {
    let garbage = NetHeader {
        flags: DATA_VALID | 0xf0,
        gso_type: GSO_NONE,
        hdr_len: 0xffff,
        gso_size: 0xffff,
        csum_start: 0xffff,
        csum_offset: 0xffff,
    };
    let plain = NetHeader::default();
    assert_eq!(validate(garbage, 60, &[0; 60], Offloads::NONE), Ok(plain));
    let kernel = NetHeader {
        flags: DATA_VALID,
        ..plain
    };
    assert_eq!(validate_uplink(garbage, 60, &[0; 60]), Ok(kernel));
}

/// What is wrong with a header.
type Change = fn(&mut NetHeader);

#[test]
fn each_contradiction_is_refused() {
    let cases: [(&str, Change); 17] = [
        ("without a checksum", |h| h.flags = 0),
        ("no size", |h| h.gso_size = 0),
        ("one byte a segment", |h| h.gso_size = 1),
        ("beyond the end", |h| h.csum_start = 10_066 - 17),
        ("far beyond", |h| h.csum_start = u16::MAX),
        ("offset beyond", |h| h.csum_offset = u16::MAX),
        ("in the addresses", |h| (h.csum_start, h.gso_type) = (4, 0)),
        ("another header", |h| h.csum_start = 38),
        ("another field", |h| h.csum_offset = 6),
        ("TCP over IPv6", |h| h.gso_type = GSO_TCPV6),
        ("UDP", |h| h.gso_type = GSO_UDP_L4),
        ("UDP fragments", |h| h.gso_type = GSO_UDP),
        ("unknown", |h| h.gso_type = 2),
        ("in a tunnel over IPv4", |h| h.gso_type = 0x21),
        ("in a tunnel over IPv6", |h| h.gso_type = 0x41),
        ("ECN of nothing", |h| h.gso_type = GSO_ECN),
        ("all bits", |h| h.gso_type = 0xff),
    ];
    let spec = Spec::default();
    let frame = spec.frame();
    assert_eq!(frame.len(), 10_066);
    let check = |h, negotiated| validate(h, frame.len(), &frame[..128], negotiated);
    for (what, change) in cases {
        let mut header = spec.header();
        assert!(check(header, Offloads::ALL).is_ok());
        change(&mut header);
        let result = check(header, Offloads::ALL);
        assert_eq!(result, Err(Discard::BadHeader), "{what}");
    }
}

#[test]
fn what_was_not_negotiated_is_refused() {
    let spec = Spec::default();
    let frame = spec.frame();
    let check = |gso_type, negotiated| {
        let header = NetHeader {
            gso_type,
            ..spec.header()
        };
        validate(header, frame.len(), &frame[..128], negotiated).is_ok()
    };
    let tso4 = Offloads::CSUM.with(Offloads::TSO4);
    assert!(!check(GSO_NONE, Offloads::NONE));
    assert!(check(GSO_NONE, Offloads::CSUM));
    assert!(!check(GSO_TCPV4, Offloads::CSUM.with(Offloads::TSO6)));
    assert!(check(GSO_TCPV4, tso4));
    assert!(!check(GSO_TCPV4 | GSO_ECN, tso4));
    assert!(check(GSO_TCPV4 | GSO_ECN, tso4.with(Offloads::ECN)));

    let udp = Spec { tcp: false, ..spec };
    let frame = udp.frame();
    let header = NetHeader {
        gso_type: GSO_UDP_L4 | GSO_ECN,
        ..udp.header()
    };
    let result = validate(header, frame.len(), &frame, Offloads::ALL);
    assert_eq!(result, Err(Discard::BadHeader), "UDP has no ECN bits");
}

#[test]
fn a_checksum_may_be_the_last_of_a_frame() {
    let at = |csum_offset| NetHeader {
        flags: NEEDS_CSUM,
        csum_start: 34,
        csum_offset,
        ..NetHeader::default()
    };
    let check = |header| validate(header, 60, &[0; 60], Offloads::CSUM);
    assert_eq!(check(at(24)), Ok(at(24)));
    assert_eq!(check(at(25)), Err(Discard::BadHeader));
    assert!(complete_checksum(at(24), &mut [0; 60]).is_ok());
    assert!(complete_checksum(at(25), &mut [0; 60]).is_err());
    assert!(complete_checksum(at(0), &mut [0; 33]).is_err());
}

#[test]
fn a_checksum_cannot_be_written_over_the_tags() {
    let spec = Spec {
        tags: 2,
        ..Spec::default()
    };
    let frame = spec.frame();
    let at = |csum_start| NetHeader {
        flags: NEEDS_CSUM,
        csum_start,
        ..NetHeader::default()
    };
    let check = |header| validate(header, frame.len(), &frame[..64], Offloads::CSUM);
    assert_eq!(check(at(18)), Err(Discard::BadHeader));
    assert_eq!(check(at(21)), Err(Discard::BadHeader));
    assert_eq!(check(at(22)), Ok(at(22)));
}

#[test]
fn one_segment_is_not_segmented() {
    let spec = Spec {
        payload: vec![1; 1448],
        ..Spec::default()
    };
    let frame = spec.frame();
    let header = validate(spec.header(), frame.len(), &frame, Offloads::ALL).unwrap();
    assert_eq!(header.needs(), Offloads::CSUM);
    assert_eq!((header.gso_size, header.hdr_len), (0, 0));
}

#[test]
fn with_few_bytes_at_hand_the_length_is_a_guess() {
    let spec = Spec {
        v6: true,
        ..Spec::default()
    };
    let frame = spec.frame();
    let header = validate(spec.header(), frame.len(), &frame[..64], Offloads::ALL).unwrap();
    assert_eq!(header.hdr_len, 14 + 40 + 20);
    assert_eq!(header.needs(), Offloads::CSUM.with(Offloads::TSO6));
    let whole = frame[..64].to_vec();
    let result = validate(spec.header(), whole.len(), &whole, Offloads::ALL);
    assert_eq!(
        result,
        Err(Discard::BadHeader),
        "the frame ends in its headers"
    );
}

#[test]
fn what_cannot_be_cut_says_so() {
    let spec = Spec {
        v6: true,
        ip_options: 1,
        ..Spec::default()
    };
    // A routing header with one station to go.
    let mut frame = spec.frame();
    frame[20] = 43;
    frame[57] = 1;
    let result = Segments::new(spec.header(), &frame, Offloads::NONE);
    assert_eq!(result.err(), Some(Discard::TooBigForReceiver));
    frame[57] = 0;
    assert!(Segments::new(spec.header(), &frame, Offloads::NONE).is_ok());
    // A fragment.
    let spec = Spec::default();
    let mut frame = spec.frame();
    frame[20] |= 0x20;
    let result = Segments::new(spec.header(), &frame, Offloads::NONE);
    assert_eq!(result.err(), Some(Discard::BadHeader));
    // Plain frames.
    let plain = NetHeader::default();
    assert!(Segments::new(plain, &spec.frame(), Offloads::NONE).is_err());
}
