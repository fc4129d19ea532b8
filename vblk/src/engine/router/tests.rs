//! Composed disks over children in memory that misbehave.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::disk::Serial;
use crate::engine::faulty::{Chances, Fault, Faulty};
use crate::engine::memory::Memory;
use crate::request::Status;
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
