//! Composed disks over children in memory that misbehave.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::disk::Serial;
use crate::engine::faulty::{Chances, Fault, Faulty};
use crate::engine::memory::Memory;
use crate::request::Status;
use crate::storage::lvm::Segments;
use crate::storage::map::{Leg, Piece};
use crate::storage::pinned::Watch;
use crate::storage::stripe::Stripe;
use crate::testing::{Bench, DISCARD, FLUSH, IN, OUT, WRITE_ZEROES};

const CHUNK: u64 = 4096;
const CHILD: u64 = 64 * CHUNK;

type Engine = Router<Faulty<Memory>>;

fn striped(engine: Faulty<Memory>, children: usize) -> Bench<Engine> {
    let disks = (0..children).map(|_| Arc::new(Disk::ram(CHILD))).collect();
    let disk = Stripe::disk(disks, CHUNK, Serial::new("s").unwrap()).unwrap();
    Bench::new(Router::new(engine), disk, 64)
}

fn engine() -> Faulty<Memory> {
    Faulty::new(Memory::new())
}

/// What a stripe's children hold, put together as the disk shows it.
fn stored(bench: &mut Bench<Engine>, children: u16) -> Vec<u8> {
    let first = u16::try_from(MAX_DISKS).unwrap();
    let memory = bench.io.engine_mut().inner_mut().inner_mut();
    let parts: Vec<Vec<u8>> = (0..children)
        .map(|i| memory.bytes(DiskId(first + i)).unwrap().clone())
        .collect();
    let chunk = usize::try_from(CHUNK).unwrap();
    (0..usize::try_from(CHILD / CHUNK).unwrap())
        .flat_map(|row| {
            parts
                .iter()
                .map(move |p| &p[row * chunk..(row + 1) * chunk])
        })
        .flatten()
        .copied()
        .collect()
}

fn pattern(seed: u8, len: u32) -> Vec<u8> {
    (0..len)
        .map(|i| (i.wrapping_mul(31) >> 3).to_le_bytes()[0] ^ seed)
        .collect()
}

#[test]
fn a_request_over_many_chunks_is_one_operation_a_child() {
    let mut bench = striped(engine(), 3);
    let data: Vec<_> = (0..6).map(|_| bench.ram.place(8192, 512, 0)).collect();
    let bytes = pattern(1, 6 * 8192);
    bench.ram.fill(&data, &bytes);
    let write = bench.ram.request(OUT, 8, &data);
    let end = bench.run(&write);
    assert_eq!((end.status, end.bytes), (Status::Ok, 6 * 8192));
    let seen = &bench.io.engine_mut().inner_mut().seen;
    let seen: Vec<_> = seen.iter().map(|s| (s.verb, s.offset, s.len)).collect();
    // Chunks 1 to 12: 3 children, 4 chunks each.
    let (four, w) = (4 * CHUNK, Verb::Write);
    assert_eq!(seen, [(w, 0, four), (w, 0, four), (w, CHUNK, four)]);
    assert_eq!(stored(&mut bench, 3)[4096..][..bytes.len()], bytes);
    let read = bench.ram.request(IN, 8, &data);
    bench.ram.fill(&data, &vec![0; bytes.len()]);
    assert_eq!(bench.run(&read).status, Status::Ok);
    assert_eq!(bench.ram.bytes(&data), bytes);
}

#[test]
fn a_flush_reaches_every_child_and_fails_with_any() {
    let mut bench = striped(engine(), 4);
    let flush = bench.ram.request(FLUSH, 0, &[]);
    assert_eq!(bench.run(&flush).status, Status::Ok);
    assert_eq!(bench.io.engine_mut().inner_mut().seen.len(), 4);
    let failing = engine()
        .script(Verb::Sync, Fault::None)
        .script(Verb::Sync, Fault::Fail(Errno::IO));
    let mut bench = striped(failing, 4);
    let flush = bench.ram.request(FLUSH, 0, &[]);
    assert_eq!(bench.run(&flush).errno, Some(5));
    // And the disk stays failed.
    assert_eq!(bench.run(&flush).errno, Some(5));
    assert_eq!(bench.io.engine_mut().inner_mut().seen.len(), 4);
}

#[test]
fn a_short_part_is_continued_and_one_without_progress_is_an_error() {
    let short = engine().script(Verb::Write, Fault::Short(1536));
    let mut bench = striped(short, 2);
    let data = [bench.ram.place(16384, 512, 0)];
    let bytes = pattern(2, 16384);
    bench.ram.fill(&data, &bytes);
    let write = bench.ram.request(OUT, 0, &data);
    assert_eq!(bench.run(&write).status, Status::Ok);
    assert_eq!(stored(&mut bench, 2)[..16384], bytes);
    let nothing = engine().script(Verb::Write, Fault::Short(0));
    let mut bench = striped(nothing, 2);
    let data = [bench.ram.place(16384, 512, 0)];
    let write = bench.ram.request(OUT, 0, &data);
    assert_eq!(bench.run(&write).errno, Some(5));
}

#[test]
fn ranges_are_cut_at_chunks_and_long_ones_go_on_to_their_end() {
    let mut bench = striped(engine(), 2);
    let all = u32::try_from(2 * CHILD / 512).unwrap();
    let data = [bench.ram.place(65536, 512, 0)];
    bench.ram.fill(&data, &[7; 65536]);
    for at in 0..all / 128 {
        let write = bench.ram.request(OUT, u64::from(at) * 128, &data);
        assert_eq!(bench.run(&write).status, Status::Ok);
    }
    let zero = bench
        .ram
        .ranges(WRITE_ZEROES, &[(9, u32::from(u8::MAX), 0)]);
    assert_eq!(bench.run(&zero).status, Status::Ok);
    let bytes = stored(&mut bench, 2);
    let zeroed = 9 * 512..(9 + 255) * 512;
    for (i, byte) in bytes.iter().enumerate() {
        assert_eq!(*byte == 0, zeroed.contains(&i), "byte {i}");
    }
    let discard = bench.ram.ranges(DISCARD, &[(0, all, 0)]);
    assert_eq!(bench.run(&discard).status, Status::Ok);
    assert!(stored(&mut bench, 2).iter().all(|b| *b == 0));
}

/// A volume of `count` pieces of a chunk, on two physical volumes in turn and backwards, so that no
/// two of them adjoin; what says whether that holds.
fn volume(engine: Faulty<Memory>, count: u64) -> (Bench<Engine>, Arc<Watch>) {
    let disks = (0..3).map(|_| Arc::new(Disk::ram(CHILD))).collect();
    let pieces = (0..count).map(|i| Piece {
        start: i * CHUNK,
        len: CHUNK,
        chunk: CHUNK,
        legs: Box::new([Leg {
            child: usize::try_from(i % 2).unwrap(),
            offset: CHILD - (1 + i) * CHUNK,
        }]),
    });
    let disk = Segments::over(disks, pieces.collect());
    let Storage::Segments(segments) = disk.storage() else {
        unreachable!()
    };
    let watch = Arc::clone(segments.watch());
    (Bench::new(Router::new(engine), disk, 64), watch)
}

/// What the volume itself holds, which is written through device-mapper alone.
fn whole(bench: &mut Bench<Engine>) -> Vec<u8> {
    let third = DiskId(u16::try_from(MAX_DISKS).unwrap() + 2);
    let memory = bench.io.engine_mut().inner_mut().inner_mut();
    memory.bytes(third).unwrap().clone()
}

fn seen(bench: &mut Bench<Engine>) -> Vec<(Verb, u64, u64)> {
    let seen = &bench.io.engine_mut().inner_mut().seen;
    seen.iter().map(|s| (s.verb, s.offset, s.len)).collect()
}

#[test]
fn what_is_in_flight_by_a_map_that_broke_ends_before_another_is_used() {
    let (mut bench, watch) = volume(engine().script(Verb::Write, Fault::Hang), 2);
    let data = [bench.ram.place(4096, 512, 0), bench.ram.place(4096, 512, 0)];
    for seg in data {
        bench.ram.fill(&[seg], &pattern(7, 4096));
    }
    let first = bench.ram.request(OUT, 0, &data[..1]);
    let second = bench.ram.request(OUT, 8, &data[1..]);
    assert_eq!(bench.start(&first), Ok(None));
    watch.break_off();
    assert_eq!(bench.start(&second), Ok(None));
    for _ in 0..50 {
        bench.io.submit();
        assert_eq!(bench.io.reap(|f| panic!("{:?} ended", f.kind)), 0);
    }
    assert_eq!(seen(&mut bench), [(Verb::Write, CHILD - CHUNK, CHUNK)]);
    assert!(bench.io.restless(), "it is looked at again");
    bench.io.engine_mut().inner_mut().let_go();
    let ends = bench.drain();
    let statuses: Vec<_> = ends.iter().map(|e| e.status).collect();
    assert_eq!(statuses, [Status::IoErr, Status::Ok]);
    assert_eq!(seen(&mut bench)[1..], [(Verb::Write, CHUNK, CHUNK)]);
    assert_eq!(whole(&mut bench)[4096..8192], pattern(7, 4096));
    // A flush is for all that was written, by whichever map.
    let flush = bench.ram.request(FLUSH, 0, &[]);
    assert_eq!(bench.run(&flush).status, Status::Ok);
    assert_eq!(seen(&mut bench)[2..], [(Verb::Sync, 0, 0); 3]);
}

#[test]
fn an_operation_in_parts_whose_map_broke_is_done_anew_by_the_other() {
    let (mut bench, watch) = volume(engine().script(Verb::Write, Fault::Short(1024)), 2);
    let data = [bench.ram.place(8192, 512, 0)];
    bench.ram.fill(&data, &pattern(3, 8192));
    let write = bench.ram.request(OUT, 0, &data);
    assert_eq!(bench.start(&write), Ok(None));
    watch.break_off();
    let ends = bench.drain();
    assert_eq!((ends[0].status, ends[0].bytes), (Status::Ok, 8192));
    let w = Verb::Write;
    let parts = [(w, CHILD - CHUNK, CHUNK), (w, CHILD - 2 * CHUNK, CHUNK)];
    let seen = seen(&mut bench);
    assert_eq!(seen[..2], parts);
    assert_eq!(
        seen[2..],
        [(w, 0, 2 * CHUNK)],
        "the rest of a part was not pushed"
    );
    assert_eq!(whole(&mut bench)[..8192], pattern(3, 8192));
}

#[test]
fn a_long_range_whose_map_broke_is_not_gone_on_with() {
    let (mut bench, watch) = volume(engine(), 60);
    let stored = bench.io.engine_mut().inner_mut().inner_mut();
    let third = DiskId(u16::try_from(MAX_DISKS).unwrap() + 2);
    stored.bytes(third).unwrap().fill(9);
    let zero = bench.ram.ranges(WRITE_ZEROES, &[(0, 60 * 8, 0)]);
    assert_eq!(bench.start(&zero), Ok(None));
    let parts = seen(&mut bench).len();
    assert!((2..60).contains(&parts), "{parts} parts are all of it");
    watch.break_off();
    let ends = bench.drain();
    assert_eq!(ends[0].status, Status::Ok);
    assert_eq!(seen(&mut bench)[parts..], [(Verb::Zero, 0, 60 * CHUNK)]);
    let bytes = whole(&mut bench);
    let (zeroes, rest) = bytes.split_at(60 * 4096);
    assert!(zeroes.iter().all(|b| *b == 0) && rest.iter().all(|b| *b == 9));
}

#[test]
fn a_part_of_another_disks_operation_waits_as_well() {
    let disks = (0..3).map(|_| Arc::new(Disk::ram(CHILD))).collect();
    let legs = Box::new([Leg {
        child: 0,
        offset: 0,
    }]);
    let (start, len, chunk) = (0, CHILD, CHILD);
    let piece = Piece {
        start,
        len,
        chunk,
        legs,
    };
    let volume = Segments::over(disks, vec![piece]);
    let Storage::Segments(segments) = volume.storage() else {
        unreachable!()
    };
    let watch = Arc::clone(segments.watch());
    let disks = vec![Arc::new(volume), Arc::new(Disk::ram(CHILD))];
    let stripe = Stripe::disk(disks, CHUNK, Serial::new("s").unwrap()).unwrap();
    let hangs = engine().script(Verb::Write, Fault::Hang);
    let mut bench = Bench::new(Router::new(hangs), stripe, 64);
    let data = [bench.ram.place(8192, 512, 0), bench.ram.place(8192, 512, 0)];
    let first = bench.ram.request(OUT, 0, &data[..1]);
    let second = bench.ram.request(OUT, 16, &data[1..]);
    assert_eq!(bench.start(&first), Ok(None));
    watch.break_off();
    assert_eq!(bench.start(&second), Ok(None));
    for _ in 0..20 {
        bench.io.submit();
        bench.io.reap(|f| panic!("{:?} ended", f.kind));
    }
    // Both halves of the first, and what of the second is not on the volume.
    assert_eq!(seen(&mut bench).len(), 3);
    bench.io.engine_mut().inner_mut().let_go();
    let ends = bench.drain();
    assert_eq!(ends.len(), 2);
    assert_eq!(seen(&mut bench)[3..], [(Verb::Write, CHUNK, CHUNK)]);
}

#[test]
fn a_detached_stripe_gives_its_childrens_places_back() {
    let mut bench = striped(engine(), 2);
    for _ in 0..MAX_PLACES {
        bench.io.detach(bench.disk);
        bench.disk = bench.io.attach(&bench.target).unwrap();
    }
    bench.io.detach(bench.disk);
    let router = bench.io.engine_mut();
    assert_eq!(router.composed, 0);
    assert_eq!(router.vacant.len(), (MAX_PLACES - MAX_DISKS) as usize);
}

proptest! {
    // A bench has a guest's memory; a few dozen of them are enough.
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Whatever the engine does to operations, a stripe holds what a flat disk would.
    #[test]
    fn a_stripe_is_a_disk(
        seed: u64,
        writes in prop::collection::vec((0u64..380, 1u32..100, any::<u8>()), 1..20),
        children in 2usize..5,
    ) {
        let chances = Chances { short: 60, transient: 20, refuse: 30, delay: 60, hard: 0 };
        let mut bench = striped(engine().chances(chances, seed), children);
        let mut model = vec![0u8; usize::try_from(CHILD).unwrap() * children];
        for (sector, sectors, byte) in writes {
            let len = sectors * 512;
            let half = bench.ram.place(len / 2, 2, 0);
            let data = [half, bench.ram.place(len - len / 2, 2, 0)];
            let bytes = pattern(byte, len);
            bench.ram.fill(&data, &bytes);
            let write = bench.ram.request(OUT, sector, &data);
            prop_assert_eq!(bench.run(&write).status, Status::Ok);
            let at = usize::try_from(sector * 512).unwrap();
            model[at..at + bytes.len()].copy_from_slice(&bytes);
            bench.ram.fill(&data, &vec![0; bytes.len()]);
            let read = bench.ram.request(IN, sector, &data);
            prop_assert_eq!(bench.run(&read).status, Status::Ok);
            prop_assert_eq!(bench.ram.bytes(&data), bytes);
        }
        let count = u16::try_from(children).unwrap();
        prop_assert!(stored(&mut bench, count) == model);
    }
}
