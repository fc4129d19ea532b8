//! What is accepted, and what is refused with which answer: the hostile cases of the block device
//! among them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::testing::{DISCARD, FLUSH, GET_ID, IN, Laid, OUT, Ram, WRITE_ZEROES, map};

/// A disk of 1 MiB in sectors of 512 bytes.
const LIMITS: Limits = Limits {
    capacity: 1 << 20,
    block: BlockSize::SECTOR,
    read_only: false,
    discard: true,
    write_zeroes: true,
};

/// What a request became, without its lifetimes.
#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    Transfer(Kind, u64, Vec<Segment>),
    Plain(Kind),
    Ranges(Kind, Vec<Range>),
    Refused(Status, Reason),
    Broken(Broken),
}

fn parse_in(laid: &Laid, mem: &Mem, limits: &Limits) -> Parsed {
    let mut ranges = Ranges::new();
    let request = match Request::parse(&laid.chain(), mem, limits, &mut ranges) {
        Ok(request) => request,
        Err(Reject::Broken(why)) => return Parsed::Broken(why),
        Err(Reject::Status {
            status, at, reason, ..
        }) => {
            assert_eq!(Some(at), laid.chain().last_writable_byte());
            return Parsed::Refused(status, reason);
        }
    };
    assert_eq!(Some(request.status), laid.chain().last_writable_byte());
    let kind = request.command.kind();
    match request.command {
        Command::Read { offset, data } | Command::Write { offset, data } => {
            let segments: Vec<_> = data.iter().collect();
            assert_eq!(
                data.len(),
                segments.iter().map(|s| u64::from(s.len())).sum::<u64>()
            );
            Parsed::Transfer(kind, offset, segments)
        }
        Command::GetId { data } => Parsed::Transfer(kind, 0, data.iter().collect()),
        Command::Flush => Parsed::Plain(kind),
        Command::Discard(r) | Command::WriteZeroes(r) => Parsed::Ranges(kind, r.to_vec()),
    }
}

fn parse(ram: &Ram, laid: &Laid, limits: &Limits) -> Parsed {
    parse_in(laid, &ram.mem, limits)
}

/// Cut `segments` into pieces of at most `most` bytes.
fn shred(segments: &[Segment], most: u32) -> Vec<Segment> {
    let mut all = Vec::new();
    for seg in segments {
        let mut rest = *seg;
        while !rest.is_empty() {
            all.push(rest.take(most));
            rest = rest.skip(most);
        }
    }
    all
}

fn refused(status: Status, reason: Reason) -> Parsed {
    Parsed::Refused(status, reason)
}

#[test]
fn each_type_is_read_as_the_standard_has_it() {
    let mut ram = Ram::new(1 << 20);
    let data = [ram.place(1024, 512, 0), ram.place(512, 512, 0)];
    let read = ram.request(IN, 3, &data);
    let expected = Parsed::Transfer(Kind::Read, 1536, data.to_vec());
    assert_eq!(parse(&ram, &read, &LIMITS), expected);
    let write = ram.request(OUT, 2045, &data);
    let expected = Parsed::Transfer(Kind::Write, 2045 * 512, data.to_vec());
    assert_eq!(parse(&ram, &write, &LIMITS), expected);
    let flush = ram.request(FLUSH, 0, &[]);
    assert_eq!(parse(&ram, &flush, &LIMITS), Parsed::Plain(Kind::Flush));
    let id = ram.request(GET_ID, 0, &[data[0].take(20)]);
    let expected = Parsed::Transfer(Kind::GetId, 0, vec![data[0].take(20)]);
    assert_eq!(parse(&ram, &id, &LIMITS), expected);
    let discard = ram.ranges(DISCARD, &[(8, 16, 0), (0, 1, 0)]);
    let range = |offset, len, unmap| Range { offset, len, unmap };
    let expected = vec![range(4096, 8192, false), range(0, 512, false)];
    let expected = Parsed::Ranges(Kind::Discard, expected);
    assert_eq!(parse(&ram, &discard, &LIMITS), expected);
    let zeroes = ram.ranges(WRITE_ZEROES, &[(8, 16, 1), (2047, 1, 0)]);
    let expected = vec![range(4096, 8192, true), range(2047 * 512, 512, false)];
    let expected = Parsed::Ranges(Kind::WriteZeroes, expected);
    assert_eq!(parse(&ram, &zeroes, &LIMITS), expected);
}

#[test]
fn h6_header_data_and_status_may_be_split_and_joined_anyhow() {
    let mut ram = Ram::new(1 << 20);
    for kind in [IN, OUT] {
        let data = ram.place(1024, 512, 0);
        let plain = ram.request(kind, 5, &[data]);
        for most in [1, 3, 7, 16, 512, 513] {
            let shredded = Laid {
                readable: shred(&plain.readable, most),
                writable: shred(&plain.writable, most),
            };
            match (
                parse(&ram, &plain, &LIMITS),
                parse(&ram, &shredded, &LIMITS),
            ) {
                (Parsed::Transfer(k, o, whole), Parsed::Transfer(l, p, parts)) => {
                    assert_eq!((k, o), (l, p));
                    assert_eq!(shred(&whole, most), parts);
                }
                other => panic!("{other:?}"),
            }
        }
    }
    // Header and data in one descriptor; data and status in one descriptor.
    let both = ram.place(16 + 512, 16, 0);
    let status = ram.put(&[0]);
    let header = ram.request(OUT, 9, &[]).readable[0];
    ram.fill(&[both.take(16)], &ram.bytes(&[header]));
    let joined = Laid {
        readable: vec![both],
        writable: vec![status],
    };
    let expected = Parsed::Transfer(Kind::Write, 9 * 512, vec![both.skip(16)]);
    assert_eq!(parse(&ram, &joined, &LIMITS), expected);
    let tail = ram.place(513, 16, 0);
    let header = ram.request(IN, 9, &[]).readable;
    let joined = Laid {
        readable: header,
        writable: vec![tail],
    };
    let expected = Parsed::Transfer(Kind::Read, 9 * 512, vec![tail.take(512)]);
    assert_eq!(parse(&ram, &joined, &LIMITS), expected);
    assert_eq!(joined.chain().last_writable_byte(), Some(tail.skip(512)));
}

#[test]
fn empty_segments_mean_nothing() {
    let mut ram = Ram::new(1 << 20);
    let data = ram.place(512, 512, 0);
    let plain = ram.request(IN, 1, &[data]);
    let mut holes = Laid::default();
    for (from, to) in [
        (&plain.readable, &mut holes.readable),
        (&plain.writable, &mut holes.writable),
    ] {
        for seg in from {
            to.extend([seg.take(0), *seg, seg.take(0)]);
        }
    }
    assert_eq!(parse(&ram, &holes, &LIMITS), parse(&ram, &plain, &LIMITS));
}

#[test]
fn h16_chains_that_cannot_be_answered_break_the_ring() {
    let mut ram = Ram::new(1 << 20);
    let mut short = ram.request(IN, 0, &[]);
    short.readable = vec![short.readable[0].take(15)];
    assert_eq!(
        parse(&ram, &short, &LIMITS),
        Parsed::Broken(Broken::NoHeader)
    );
    let none = Laid::default();
    assert_eq!(
        parse(&ram, &none, &LIMITS),
        Parsed::Broken(Broken::NoHeader)
    );
    // The status descriptor is not writable: it reads as data, and there is no status.
    let mut read_only = ram.request(FLUSH, 0, &[]);
    read_only.readable.append(&mut read_only.writable);
    assert_eq!(
        parse(&ram, &read_only, &LIMITS),
        Parsed::Broken(Broken::NoStatus)
    );
    let mut empty = ram.request(FLUSH, 0, &[]);
    empty.writable = vec![empty.writable[0].take(0)];
    assert_eq!(
        parse(&ram, &empty, &LIMITS),
        Parsed::Broken(Broken::NoStatus)
    );
}

#[test]
fn h10_h11_no_sector_or_length_gets_past_the_end_of_the_disk() {
    let mut ram = Ram::new(1 << 20);
    let data = ram.place(1024, 512, 0);
    let last = LIMITS.capacity / SECTOR - 1;
    let out = refused(Status::IoErr, Reason::OutOfRange);
    for kind in [IN, OUT] {
        for sector in [
            last,
            last + 1,
            1 << 55,
            (1 << 55) + 1,
            u64::MAX,
            u64::MAX - 1,
            1 << 63,
        ] {
            let far = ram.request(kind, sector, &[data]);
            assert_eq!(parse(&ram, &far, &LIMITS), out, "sector {sector}");
        }
        // Each segment would fit, all of them together do not.
        let many = vec![data; 3];
        let far = ram.request(kind, last - 4, &many);
        assert_eq!(parse(&ram, &far, &LIMITS), out);
        let fits = ram.request(kind, last, &[data.take(512)]);
        assert!(matches!(parse(&ram, &fits, &LIMITS), Parsed::Transfer(..)));
        let odd = refused(Status::IoErr, Reason::Misaligned);
        for len in [1, 511, 513] {
            let torn = ram.request(kind, 0, &[data.take(len)]);
            assert_eq!(parse(&ram, &torn, &LIMITS), odd);
        }
    }
}

#[test]
fn h10_no_sum_of_lengths_wraps() {
    // 256 descriptors of nearly 4 GiB each: their sum wraps 32 bits many times over.
    let mem = map(&[8 << 30]);
    let huge = mem.lookup(0, 0xffff_fe00, &mut 0).unwrap();
    let mut ram = Ram::of(mem);
    let limits = Limits {
        capacity: !511,
        ..LIMITS
    };
    for kind in [IN, OUT] {
        for count in [1, 2, 253] {
            let laid = ram.request(kind, 0, &vec![huge; count]);
            let long = refused(Status::IoErr, Reason::TooLong);
            assert_eq!(parse(&ram, &laid, &limits), long);
        }
    }
}

#[test]
fn a_disk_of_4096_byte_blocks_takes_whole_blocks_only() {
    let mut ram = Ram::new(1 << 20);
    let limits = Limits {
        block: BlockSize::PAGE,
        ..LIMITS
    };
    let data = ram.place(8192, 4096, 0);
    let odd = refused(Status::IoErr, Reason::Misaligned);
    for (sector, len, good) in [
        (8, 4096, true),
        (0, 8192, true),
        (1, 4096, false),
        (8, 512, false),
    ] {
        let laid = ram.request(IN, sector, &[data.take(len)]);
        assert_eq!(parse(&ram, &laid, &limits) != odd, good, "{sector} {len}");
    }
    for (sector, sectors, good) in [(8, 8, true), (8, 4, false), (4, 8, false)] {
        let laid = ram.ranges(DISCARD, &[(sector, sectors, 0)]);
        assert_eq!(
            parse(&ram, &laid, &limits) != odd,
            good,
            "{sector} {sectors}"
        );
    }
}

#[test]
fn h12_ranges_are_checked_one_by_one() {
    let mut ram = Ram::new(1 << 20);
    let big = Limits {
        capacity: 1 << 40,
        ..LIMITS
    };
    for (kind, most) in [
        (DISCARD, MAX_DISCARD_SECTORS),
        (WRITE_ZEROES, MAX_ZERO_SECTORS),
    ] {
        let sectors = |n| refused(Status::IoErr, Reason::Sectors(n));
        for n in [0, most + 1, 1 << 23, 1 << 31, u32::MAX] {
            // A good range first: one bad one spoils the request.
            let laid = ram.ranges(kind, &[(0, 8, 0), (0, n, 0)]);
            assert_eq!(parse(&ram, &laid, &big), sectors(n));
        }
        let laid = ram.ranges(kind, &[(0, most, 0)]);
        assert!(matches!(parse(&ram, &laid, &big), Parsed::Ranges(..)));
        for sector in [2041_u64, 2048, 1 << 55, u64::MAX] {
            let laid = ram.ranges(kind, &[(sector, 8, 0)]);
            let out = refused(Status::IoErr, Reason::OutOfRange);
            assert_eq!(parse(&ram, &laid, &LIMITS), out);
        }
        let many = vec![(0, 8, 0); MAX_RANGES];
        let laid = ram.ranges(kind, &many);
        assert!(
            matches!(parse(&ram, &laid, &LIMITS), Parsed::Ranges(_, r) if r.len() == MAX_RANGES)
        );
        let laid = ram.ranges(kind, &vec![(0, 8, 0); MAX_RANGES + 1]);
        let count = |n| refused(Status::IoErr, Reason::Ranges(n));
        assert_eq!(
            parse(&ram, &laid, &LIMITS),
            count(16 * (MAX_RANGES as u64 + 1))
        );
        let laid = ram.ranges(kind, &[]);
        assert_eq!(parse(&ram, &laid, &LIMITS), count(0));
        let mut torn = ram.ranges(kind, &[(0, 8, 0), (0, 8, 0)]);
        torn.readable[1] = torn.readable[1].take(31);
        assert_eq!(parse(&ram, &torn, &LIMITS), count(31));
    }
    let flags = |f| refused(Status::Unsupported, Reason::Flags(f));
    for (kind, bad) in [
        (DISCARD, 1),
        (DISCARD, 2),
        (WRITE_ZEROES, 2),
        (WRITE_ZEROES, 1 << 31),
    ] {
        let laid = ram.ranges(kind, &[(0, 8, bad)]);
        assert_eq!(parse(&ram, &laid, &LIMITS), flags(bad));
    }
}

#[test]
fn h14_nothing_is_written_to_a_read_only_disk() {
    let mut ram = Ram::new(1 << 20);
    let limits = Limits {
        read_only: true,
        ..LIMITS
    };
    let data = ram.place(512, 512, 0);
    let ro = refused(Status::IoErr, Reason::ReadOnly);
    let write = ram.request(OUT, 0, &[data]);
    assert_eq!(parse(&ram, &write, &limits), ro);
    for kind in [DISCARD, WRITE_ZEROES] {
        let laid = ram.ranges(kind, &[(0, 8, 0)]);
        assert_eq!(parse(&ram, &laid, &limits), ro);
    }
    let flush = ram.request(FLUSH, 0, &[]);
    assert_eq!(parse(&ram, &flush, &limits), Parsed::Plain(Kind::Flush));
}

#[test]
fn h15_unknown_types_and_scsi_are_unsupported() {
    let mut ram = Ram::new(1 << 20);
    // 2 and 3: SCSI commands. 5 and 7: reserved. 14: secure erase. 1 << 31: the old barrier bit.
    for kind in [2, 3, 5, 7, 10, 14, 1 << 31, (1 << 31) | OUT, u32::MAX] {
        let laid = ram.request(kind, 0, &[]);
        let unknown = refused(Status::Unsupported, Reason::Type(kind));
        assert_eq!(parse(&ram, &laid, &LIMITS), unknown);
    }
    let limits = Limits {
        discard: false,
        write_zeroes: false,
        ..LIMITS
    };
    for kind in [DISCARD, WRITE_ZEROES] {
        let laid = ram.ranges(kind, &[(0, 8, 0)]);
        let unknown = refused(Status::Unsupported, Reason::Type(kind));
        assert_eq!(parse(&ram, &laid, &limits), unknown);
    }
}

#[test]
fn h13_a_guest_that_rewrites_its_request_gains_nothing() {
    let mut ram = Ram::new(1 << 20);
    let good = ram.ranges(DISCARD, &[(0, 8, 0); 4]);
    let (header, list) = (good.readable[0], good.readable[1]);
    let stop = Arc::new(AtomicBool::new(false));
    let (mem, halt) = (Arc::clone(&ram.mem), Arc::clone(&stop));
    let flipper = std::thread::spawn(move || {
        let mut evil = [0xff; 16];
        let mut turn = 0_u8;
        while !halt.load(Ordering::Relaxed) {
            turn = turn.wrapping_add(1);
            evil[0] = [11, 13, 0, 1, 2][usize::from(turn % 5)];
            evil[1..8].fill(0);
            evil[8..].fill(if turn.is_multiple_of(2) { 0xff } else { 0 });
            assert!(mem.write(header, &evil));
            assert!(mem.write(list.skip(16 * u32::from(turn % 4)), &evil));
        }
    });
    for _ in 0..20_000 {
        // Whatever was read, what came of it is within the disk.
        match parse(&ram, &good, &LIMITS) {
            Parsed::Ranges(_, ranges) => {
                for r in ranges {
                    assert!(r.len > 0 && r.offset + u64::from(r.len) <= LIMITS.capacity);
                }
            }
            Parsed::Transfer(_, offset, data) => {
                let len: u64 = data.iter().map(|s| u64::from(s.len())).sum();
                assert!(offset + len <= LIMITS.capacity);
            }
            Parsed::Plain(_) | Parsed::Refused(..) => {}
            Parsed::Broken(why) => panic!("{why}"),
        }
    }
    stop.store(true, Ordering::Relaxed);
    flipper.join().unwrap();
}

fn segments() -> impl Strategy<Value = Vec<(u64, u32)>> {
    vec((0_u64..0x6000, 0_u32..0x1200), 0..9)
}

proptest! {
    /// Any chain at all over three regions: an answer, never a panic, and never out of bounds.
    #[test]
    fn any_chain_is_parsed_or_refused(
        bytes in vec(any::<u8>(), 64),
        kind in prop_oneof![0_u32..14, any::<u32>()],
        sector in prop_oneof![0_u64..2100, any::<u64>()],
        readable in segments(),
        writable in segments(),
        read_only in any::<bool>(),
        page in any::<bool>(),
    ) {
        let mem = map(&[0x2000, 0x3000, 0x1000]);
        let pick = |list: Vec<(u64, u32)>| -> Vec<Segment> {
            list.iter().filter_map(|(gpa, len)| mem.lookup(*gpa, *len, &mut 0)).collect()
        };
        let laid = Laid { readable: pick(readable), writable: pick(writable) };
        // Make the header a likely one, however it is split, and some ranges behind it.
        let mut head = Vec::new();
        head.extend(kind.to_le_bytes());
        head.extend([0; 4]);
        head.extend(sector.to_le_bytes());
        head.extend(&bytes);
        for seg in &laid.readable {
            let n = head.len().min(seg.len() as usize);
            prop_assert!(mem.write(*seg, &head[..n]));
            head.drain(..n);
        }
        let block = if page { BlockSize::PAGE } else { BlockSize::SECTOR };
        let limits = Limits { read_only, block, ..LIMITS };
        match parse_in(&laid, &mem, &limits) {
            Parsed::Transfer(Kind::GetId, ..) => {}
            Parsed::Transfer(kind, offset, data) => {
                let len: u64 = data.iter().map(|s| u64::from(s.len())).sum();
                prop_assert!(offset + len <= limits.capacity);
                prop_assert!(block.divides(offset) && block.divides(len));
                prop_assert!(kind == Kind::Read || !read_only);
            }
            Parsed::Ranges(_, ranges) => {
                prop_assert!(!read_only && !ranges.is_empty());
                for r in ranges {
                    prop_assert!(r.len > 0 && r.offset + u64::from(r.len) <= limits.capacity);
                    prop_assert!(block.divides(r.offset) && block.divides(u64::from(r.len)));
                }
            }
            Parsed::Broken(Broken::NoHeader) => prop_assert!(laid.chain().readable_len < 16),
            Parsed::Broken(Broken::NoStatus) => prop_assert_eq!(laid.chain().writable_len, 0),
            Parsed::Plain(_) | Parsed::Refused(..) => {}
        }
    }
}
