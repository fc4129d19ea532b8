//! Requests from start to end over an engine that misbehaves.

#![expect(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

use proptest::collection::vec;
use proptest::prelude::*;

use super::bounce::CHUNK;
use super::drive::MAX_TRIES;
use super::*;
use crate::engine::faulty::{Chances, Fault, Faulty};
use crate::engine::memory::Memory;
use crate::testing::{Bench, DISCARD, End, FLUSH, GET_ID, IN, Laid, OUT, WRITE_ZEROES};

const SIZE: u64 = 1 << 20;
const EIO: Option<i32> = Some(5);

fn engine() -> Faulty<Memory> {
    Faulty::new(Memory::new())
}

fn bench(engine: Faulty<Memory>) -> Bench<Faulty<Memory>> {
    Bench::new(engine, Disk::ram(SIZE), 64)
}

/// A bench whose disk holds a pattern, and that pattern.
fn patterned(engine: Faulty<Memory>) -> (Bench<Faulty<Memory>>, Vec<u8>) {
    let mut bench = bench(engine);
    let bytes: Vec<u8> = (0..SIZE)
        .map(|i| ((i / 512 + i) % 251).to_le_bytes()[0])
        .collect();
    *stored(&mut bench) = bytes.clone();
    (bench, bytes)
}

fn stored(bench: &mut Bench<Faulty<Memory>>) -> &mut Vec<u8> {
    let disk = bench.disk;
    bench.io.engine_mut().inner_mut().bytes(disk).unwrap()
}

fn seen(bench: &Bench<Faulty<Memory>>) -> Vec<(Verb, u64, u64)> {
    let seen = bench.io.engine().seen.iter();
    seen.map(|s| (s.verb, s.offset, s.len)).collect()
}

fn errno(end: End) -> (Status, Option<i32>) {
    (end.status, end.errno)
}

const OK: (Status, Option<i32>) = (Status::Ok, None);

#[test]
fn disks_that_hang_leave_slots_to_the_others() {
    let mut bench = Bench::new(engine(), Disk::ram(SIZE), 16);
    let others = [(); 2].map(|()| bench.io.attach(&Arc::new(Disk::ram(SIZE))).unwrap());
    let first = bench.disk;
    let data = [bench.ram.place(512, 512, 0)];
    let read = bench.ram.request(IN, 4, &data);
    for (disk, has) in [(first, 8), (others[0], 4), (others[1], 2)] {
        bench.disk = disk;
        let mut started = 0;
        while bench.io.room_for(disk) > 0 {
            assert_eq!(bench.start(&read), Ok(None));
            started += 1;
        }
        assert_eq!(started, has);
    }
    assert_eq!(bench.io.room(), 2);
    assert_eq!(bench.drain().len(), 14);
    assert_eq!(bench.io.room_for(first), 8);
}

#[test]
fn a_request_comes_back_with_all_that_its_queue_needs() {
    let (mut bench, bytes) = patterned(engine());
    let data = [bench.ram.place(512, 512, 0), bench.ram.place(1024, 512, 0)];
    let read = bench.ram.request(IN, 4, &data);
    assert_eq!(bench.start(&read), Ok(None));
    assert_eq!(
        (bench.io.in_flight(), bench.io.in_flight_of(bench.mem)),
        (1, 1)
    );
    bench.io.submit();
    let mut ends = 0;
    let n = bench.io.reap(|f| {
        assert_eq!(f.origin, Origin { queue: 3, id: 0 });
        assert_eq!((f.kind, f.status, f.errno), (Kind::Read, Status::Ok, None));
        assert_eq!((f.written, f.bytes, f.started), (1537, 1536, Cycles(42)));
        assert_eq!(f.status_at, read.writable[2]);
        assert_eq!(f.dirty.iter().collect::<Vec<_>>(), data);
        ends += 1;
    });
    assert_eq!(
        (n, ends, bench.io.in_flight(), bench.io.room()),
        (1, 1, 0, 64)
    );
    assert_eq!(bench.ram.bytes(&data), bytes[2048..2048 + 1536]);
}

#[test]
fn a_null_disk_answers_everything_at_once() {
    let mut bench = Bench::new(engine(), Disk::null(SIZE), 4);
    let data = bench.ram.place(4096, 512, 0);
    for kind in [IN, OUT, FLUSH] {
        let data: &[Segment] = if kind == FLUSH { &[] } else { &[data] };
        let laid = bench.ram.request(kind, 0, data);
        let end = bench.start(&laid).unwrap().unwrap();
        assert_eq!((errno(end), end.written), (OK, 1));
        assert_eq!(end.bytes, if kind == FLUSH { 0 } else { 4096 });
    }
    let zeroes = bench.ram.ranges(WRITE_ZEROES, &[(0, 8, 0), (8, 8, 0)]);
    let end = bench.start(&zeroes).unwrap().unwrap();
    assert_eq!((errno(end), end.bytes), (OK, 8192));
    assert_eq!(seen(&bench), []);
}

#[test]
fn h17_get_id_gives_as_much_as_there_is_room_for() {
    let mut bench = bench(engine());
    let mut serial = [0; 20];
    serial[..3].copy_from_slice(b"ram");
    for room in [0, 1, 19, 20, 21, 4096] {
        let data = bench.ram.place(room, 512, 3);
        bench.ram.fill(&[data], &vec![0xee; room as usize]);
        let laid = bench.ram.request(GET_ID, 0, &[data]);
        let end = bench.start(&laid).unwrap().unwrap();
        let given = room.min(20);
        assert_eq!((errno(end), end.written), (OK, given + 1));
        let bytes = bench.ram.bytes(&[data]);
        let (id, rest) = bytes.split_at(given as usize);
        assert_eq!(id, &serial[..given as usize]);
        assert!(rest.iter().all(|b| *b == 0xee));
    }
}

#[test]
fn f3_short_transfers_are_continued_where_they_ended() {
    let script = engine()
        .script(Verb::Read, Fault::Short(700))
        .script(Verb::Read, Fault::Short(324))
        .script(Verb::Write, Fault::Short(1));
    let (mut bench, mut bytes) = patterned(script);
    let data: Vec<_> = (0..6).map(|i| bench.ram.place(512, 512, i)).collect();
    let read = bench.ram.request(IN, 2, &data);
    let end = bench.run(&read);
    assert_eq!((errno(end), end.written, end.bytes), (OK, 3073, 3072));
    assert_eq!(bench.ram.bytes(&data), bytes[1024..4096]);
    let write = bench.ram.request(OUT, 100, &data);
    assert_eq!(errno(bench.run(&write)), OK);
    bytes.copy_within(1024..4096, 51200);
    assert!(*stored(&mut bench) == bytes);
    let expected = [
        (Verb::Read, 1024, 3072),
        (Verb::Read, 1724, 2372),
        (Verb::Read, 2048, 2048),
        (Verb::Write, 51200, 3072),
        (Verb::Write, 51201, 3071),
    ];
    assert_eq!(seen(&bench), expected);
}

#[test]
fn f3_a_transfer_of_nothing_is_an_error_and_never_success() {
    for verb in [Verb::Read, Verb::Write] {
        let script = engine()
            .script(verb, Fault::Short(512))
            .script(verb, Fault::Short(0));
        let (mut bench, _) = patterned(script);
        let data = bench.ram.place(4096, 512, 0);
        let kind = if verb == Verb::Read { IN } else { OUT };
        let laid = bench.ram.request(kind, 0, &[data]);
        let end = bench.run(&laid);
        assert_eq!((errno(end), end.bytes), ((Status::IoErr, EIO), 512));
        assert_eq!(end.written, if kind == IN { 513 } else { 1 });
    }
}

#[test]
fn f3_interruptions_are_tried_again_but_not_for_ever() {
    let script = engine()
        .script(Verb::Read, Fault::Fail(Errno::AGAIN))
        .script(Verb::Read, Fault::Fail(Errno::INTR))
        .script(Verb::Read, Fault::Refuse)
        .script(Verb::Sync, Fault::Fail(Errno::AGAIN));
    let (mut bench, bytes) = patterned(script);
    let data = bench.ram.place(512, 512, 0);
    let read = bench.ram.request(IN, 1, &[data]);
    assert_eq!(errno(bench.run(&read)), OK);
    assert_eq!(bench.ram.bytes(&[data]), bytes[512..1024]);
    let flush = bench.ram.request(FLUSH, 0, &[]);
    assert_eq!(errno(bench.run(&flush)), OK);

    let mut stubborn = engine();
    for _ in 0..=MAX_TRIES {
        stubborn = stubborn.script(Verb::Write, Fault::Fail(Errno::AGAIN));
    }
    let (mut bench, _) = patterned(stubborn);
    let write = bench.ram.request(OUT, 1, &[data]);
    assert_eq!(
        errno(bench.run(&write)),
        (Status::IoErr, Some(libc::EAGAIN))
    );
    assert_eq!(errno(bench.run(&write)), OK);
}

#[test]
fn f3_what_the_device_says_reaches_the_guest_as_an_error() {
    for fault in [Errno::IO, Errno::NOSPC, Errno::TIMEDOUT] {
        let mut script = engine();
        for verb in [Verb::Read, Verb::Write, Verb::Sync, Verb::Punch, Verb::Zero] {
            script = script.script(verb, Fault::Fail(fault));
        }
        let (mut bench, bytes) = patterned(script);
        let data = bench.ram.place(512, 512, 0);
        let all = [
            bench.ram.request(IN, 0, &[data]),
            bench.ram.request(OUT, 0, &[data]),
            bench.ram.request(FLUSH, 0, &[]),
            bench.ram.ranges(DISCARD, &[(0, 8, 0), (8, 8, 0)]),
            bench.ram.ranges(WRITE_ZEROES, &[(0, 8, 0)]),
        ];
        for laid in &all {
            let expected = (Status::IoErr, Some(fault.raw_os_error()));
            assert_eq!(errno(bench.run(laid)), expected);
        }
        assert!(*stored(&mut bench) == bytes);
        assert_eq!(bench.io.room(), 64);
    }
}

/// A request whose operations are `verb`s, on two ranges of eight sectors at 8 and 32.
fn of_ranges(bench: &mut Bench<Faulty<Memory>>, verb: Verb) -> Laid {
    let (kind, flags) = match verb {
        Verb::Discard => (DISCARD, 0),
        Verb::Punch => (WRITE_ZEROES, 1),
        _ => (WRITE_ZEROES, 0),
    };
    bench.ram.ranges(kind, &[(8, 8, flags), (32, 8, flags)])
}

/// A device that holds a pattern, and has no Zero where zeroes are to be written.
fn device(verb: Verb, mut engine: Faulty<Memory>) -> (Bench<Faulty<Memory>>, Vec<u8>) {
    if verb == Verb::Write {
        engine.expect(Verb::Zero, Fault::Fail(Errno::OPNOTSUPP));
    }
    let mut bench = Bench::new(engine, Disk::ram(SIZE).like_a_device(), 16);
    let bytes: Vec<u8> = (0..SIZE).map(|i| (i % 251).to_le_bytes()[0] | 1).collect();
    *stored(&mut bench) = bytes.clone();
    (bench, bytes)
}

fn without(mut bytes: Vec<u8>, sectors: &[u64]) -> Vec<u8> {
    for at in sectors {
        bytes[*at as usize * 512..(*at as usize + 8) * 512].fill(0);
    }
    bytes
}

const RANGED: [Verb; 4] = [Verb::Discard, Verb::Punch, Verb::Zero, Verb::Write];

#[test]
fn f3_interrupted_ranges_are_tried_again_and_others_not_gone_on_with() {
    for verb in RANGED {
        // Interrupted in both ranges.
        let mut script = engine();
        for fault in [
            Fault::Fail(Errno::AGAIN),
            Fault::Fail(Errno::INTR),
            Fault::Refuse,
            Fault::None,
            Fault::Fail(Errno::INTR),
        ] {
            script.expect(verb, fault);
        }
        let (mut bench, bytes) = device(verb, script);
        let laid = of_ranges(&mut bench, verb);
        let end = bench.run(&laid);
        assert_eq!((errno(end), end.bytes), (OK, 8192), "{verb:?}");
        assert!(*stored(&mut bench) == without(bytes, &[8, 32]), "{verb:?}");
        // One that fails ends the request: what comes after it is left alone.
        for fault in [Errno::IO, Errno::NOSPC, Errno::TIMEDOUT] {
            for (good, done) in [(0, &[][..]), (1, &[8][..])] {
                let mut script = engine();
                (0..good).for_each(|_| script.expect(verb, Fault::None));
                script.expect(verb, Fault::Fail(fault));
                let (mut bench, bytes) = device(verb, script);
                let laid = of_ranges(&mut bench, verb);
                let end = bench.run(&laid);
                let expected = (Status::IoErr, Some(fault.raw_os_error()));
                assert_eq!((errno(end), end.written), (expected, 1), "{verb:?}");
                assert!(*stored(&mut bench) == without(bytes, done), "{verb:?}");
                let laid = of_ranges(&mut bench, verb);
                assert_eq!(errno(bench.run(&laid)), OK, "{verb:?} {fault:?}");
            }
        }
        // Interrupted for ever.
        let mut script = engine();
        (0..=MAX_TRIES).for_each(|_| script.expect(verb, Fault::Fail(Errno::AGAIN)));
        let (mut bench, bytes) = device(verb, script);
        let laid = of_ranges(&mut bench, verb);
        let expected = (Status::IoErr, Some(libc::EAGAIN));
        assert_eq!(errno(bench.run(&laid)), expected, "{verb:?}");
        assert!(*stored(&mut bench) == bytes && bench.io.room() == 16);
    }
}

#[test]
fn f3_zeroes_that_are_written_in_part_are_written_to_their_end_or_fail() {
    let mut script = engine();
    for fault in [
        Fault::Short(512),
        Fault::Short(1024),
        Fault::None,
        Fault::Short(3584),
    ] {
        script.expect(Verb::Write, fault);
    }
    let (mut bench, bytes) = device(Verb::Write, script);
    let laid = of_ranges(&mut bench, Verb::Zero);
    let end = bench.run(&laid);
    assert_eq!((errno(end), end.bytes), (OK, 8192));
    assert!(*stored(&mut bench) == without(bytes, &[8, 32]));
    let writes: Vec<_> = seen(&bench)
        .into_iter()
        .filter(|s| s.0 == Verb::Write)
        .collect();
    let expected = [
        (Verb::Write, 4096, 4096),
        (Verb::Write, 4608, 3584),
        (Verb::Write, 5632, 2560),
        (Verb::Write, 16384, 4096),
        (Verb::Write, 19968, 512),
    ];
    assert_eq!(writes, expected);
    // None at all is no progress.
    bench.io.engine_mut().expect(Verb::Write, Fault::Short(0));
    let laid = of_ranges(&mut bench, Verb::Zero);
    assert_eq!(errno(bench.run(&laid)), (Status::IoErr, EIO));
}

#[test]
fn f4_an_fsync_that_failed_once_stays_failed() {
    let mut bench = bench(engine().script(Verb::Sync, Fault::Fail(Errno::IO)));
    let flush = bench.ram.request(FLUSH, 0, &[]);
    for _ in 0..3 {
        assert_eq!(errno(bench.run(&flush)), (Status::IoErr, EIO));
    }
    assert_eq!(seen(&bench).len(), 1);
    assert!(bench.target.sync_failed());
    // Another disk of the same worker is none the worse for it.
    let other = bench.io.attach(&Arc::new(Disk::ram(SIZE))).unwrap();
    bench.disk = other;
    bench.target = Arc::new(Disk::ram(SIZE));
    assert_eq!(errno(bench.run(&flush)), OK);
}

#[test]
fn writes_are_durable_one_by_one_when_the_cache_is_off() {
    let mut bench = bench(engine());
    let data = bench.ram.place(512, 512, 0);
    let write = bench.ram.request(OUT, 0, &[data]);
    let zeroes = bench.ram.ranges(WRITE_ZEROES, &[(0, 1, 0), (1, 1, 0)]);
    bench.run(&write);
    bench.target.set_write_through(true);
    bench.run(&write);
    bench.run(&zeroes);
    let durable: Vec<_> = bench
        .io
        .engine()
        .seen
        .iter()
        .map(|s| (s.verb, s.durable))
        .collect();
    let expected = [
        (Verb::Write, false),
        (Verb::Write, true),
        (Verb::Zero, true),
        (Verb::Zero, true),
        (Verb::Sync, true),
    ];
    assert_eq!(durable, expected);
}

#[test]
fn zeroes_are_written_where_they_cannot_be_declared_and_that_is_remembered() {
    let no = Fault::Fail(Errno::OPNOTSUPP);
    let script = engine().script(Verb::Punch, no).script(Verb::Zero, no);
    let (mut bench, mut bytes) = patterned(script);
    // 1.5 MiB would be past the end; 600 KiB takes one write, in one region of zeroes.
    let first = bench
        .ram
        .ranges(WRITE_ZEROES, &[(8, 1200, 1), (1300, 8, 0)]);
    let end = bench.run(&first);
    assert_eq!((errno(end), end.bytes), (OK, 1208 * 512));
    bytes[8 * 512..1208 * 512].fill(0);
    bytes[1300 * 512..1308 * 512].fill(0);
    assert!(*stored(&mut bench) == bytes);
    let second = bench.ram.ranges(WRITE_ZEROES, &[(2000, 8, 1)]);
    assert_eq!(errno(bench.run(&second)), OK);
    let expected = [
        (Verb::Punch, 8 * 512, 1200 * 512),
        (Verb::Zero, 8 * 512, 1200 * 512),
        (Verb::Write, 8 * 512, 1200 * 512),
        (Verb::Write, 1300 * 512, 8 * 512),
        (Verb::Write, 2000 * 512, 8 * 512),
    ];
    assert_eq!(seen(&bench), expected);
    // Discarding has no such substitute.
    let discard = bench.ram.ranges(DISCARD, &[(0, 8, 0)]);
    let unsupported = (Status::Unsupported, Some(libc::EOPNOTSUPP));
    assert_eq!(errno(bench.run(&discard)), unsupported);
}

#[test]
fn a_device_is_discarded_by_what_its_kernel_knows() {
    let script = engine().script(Verb::Discard, Fault::Fail(Errno::OPNOTSUPP));
    let mut bench = Bench::new(script, Disk::ram(SIZE).like_a_device(), 4);
    let discard = bench.ram.ranges(DISCARD, &[(0, 8, 0), (16, 8, 0)]);
    assert_eq!(errno(bench.run(&discard)), OK);
    let verbs: Vec<_> = seen(&bench).iter().map(|s| s.0).collect();
    assert_eq!(verbs, [Verb::Discard, Verb::Punch, Verb::Punch]);
}

#[test]
fn misaligned_memory_goes_through_the_bounce_pool_in_chunks() {
    let script = engine()
        .script(Verb::Read, Fault::Short(1024))
        .script(Verb::Write, Fault::Short(1024 + 17));
    let mut bench = Bench::new(script, Disk::ram(SIZE).demanding(4096), 64);
    let bytes: Vec<u8> = (0..SIZE)
        .map(|i| ((i / 512 + i) % 251).to_le_bytes()[0])
        .collect();
    *stored(&mut bench) = bytes.clone();
    let chunk = u64::from(CHUNK);
    let data = [
        bench.ram.place(CHUNK, 4096, 1),
        bench.ram.place(CHUNK + 512, 1, 0),
    ];
    let read = bench.ram.request(IN, 4, &data);
    let end = bench.run(&read);
    assert_eq!((errno(end), end.bytes), (OK, 2 * chunk + 512));
    assert!(bench.ram.bytes(&data) == bytes[2048..2048 + 2 * CHUNK as usize + 512]);
    let write = bench.ram.request(OUT, 1024, &data);
    assert_eq!(errno(bench.run(&write)), OK);
    let mut expected = bytes.clone();
    expected.copy_within(2048..2048 + 2 * CHUNK as usize + 512, 1024 * 512);
    assert!(*stored(&mut bench) == expected);
    let expected = [
        (Verb::Read, 2048, chunk),
        (Verb::Read, 3072, chunk),
        (Verb::Read, 3072 + chunk, chunk - 512),
        (Verb::Write, 524_288, chunk),
        // The odd 17 bytes are written once more: O_DIRECT goes on from a whole block.
        (Verb::Write, 525_312, chunk),
        (Verb::Write, 525_312 + chunk, chunk - 512),
    ];
    assert_eq!(seen(&bench), expected);
    // Aligned memory is used as it is.
    let whole = bench.ram.place(2 * CHUNK, 4096, 0);
    let read = bench.ram.request(IN, 0, &[whole]);
    assert_eq!(errno(bench.run(&read)), OK);
    assert_eq!(seen(&bench).last(), Some(&(Verb::Read, 0, 2 * chunk)));
}

#[test]
fn requests_wait_for_a_bounce_buffer_and_all_finish() {
    let mut bench = Bench::new(engine(), Disk::ram(SIZE).demanding(4096), 64);
    let free = bench.io.bounce.room();
    for i in 0..64 {
        let data = bench.ram.place(2048, 4096, 8);
        let laid = bench
            .ram
            .request(if i % 2 == 0 { OUT } else { IN }, i * 4, &[data]);
        assert_eq!(bench.start(&laid), Ok(None));
    }
    assert_eq!((bench.io.bounce.room(), bench.io.room()), (0, 0));
    assert!(bench.io.restless());
    let ends = bench.drain();
    assert_eq!(ends.len(), 64);
    assert!(ends.iter().all(|e| errno(*e) == OK));
    assert_eq!((bench.io.bounce.room(), bench.io.restless()), (free, false));
}

#[test]
fn without_room_a_request_fails_and_nothing_is_lost() {
    let mut bench = Bench::new(engine(), Disk::ram(SIZE), 2);
    let data = bench.ram.place(512, 512, 0);
    let read = bench.ram.request(IN, 0, &[data]);
    assert_eq!(bench.start(&read), Ok(None));
    assert_eq!(bench.start(&read), Ok(None));
    let end = bench.start(&read).unwrap().unwrap();
    assert_eq!(errno(end), (Status::IoErr, Some(libc::EBUSY)));
    assert_eq!(bench.drain().len(), 2);
}

#[test]
fn memory_and_disks_stay_until_their_last_request_finished() {
    let (mut bench, _) = patterned(engine());
    let data = bench.ram.place(512, 512, 0);
    let read = bench.ram.request(IN, 0, &[data]);
    let again = bench
        .io
        .adopt(&Guest::plain(Arc::clone(&bench.ram.mem)))
        .unwrap();
    assert_eq!(again, bench.mem);
    bench.io.release(again);
    assert_eq!(bench.start(&read), Ok(None));
    bench.io.release(bench.mem);
    bench.io.detach(bench.disk);
    // Ours, the bench's disk; the table's and the engine's clones of the memory.
    assert!(Arc::strong_count(&bench.ram.mem) > 1);
    assert_eq!(Arc::strong_count(&bench.target), 2);
    assert_eq!(errno(bench.drain()[0]), OK);
    assert_eq!(Arc::strong_count(&bench.ram.mem), 1);
    assert_eq!(Arc::strong_count(&bench.target), 1);
    // What is gone is gone: no panic, an error.
    bench.mem = bench
        .io
        .adopt(&Guest::plain(Arc::clone(&bench.ram.mem)))
        .unwrap();
    let end = bench.start(&read).unwrap().unwrap();
    assert_eq!(errno(end), (Status::IoErr, Some(libc::ENODEV)));
}

#[test]
#[should_panic(expected = "1 requests were dropped unfinished")]
fn a_request_dropped_unfinished_is_a_bug_that_shows() {
    let (mut bench, _) = patterned(engine());
    let data = bench.ram.place(512, 512, 0);
    let read = bench.ram.request(IN, 0, &[data]);
    assert_eq!(bench.start(&read), Ok(None));
}

#[test]
fn long_requests_share_the_spill_and_keep_their_segments_apart() {
    let (mut bench, bytes) = patterned(engine());
    let mut all = Vec::new();
    for i in 0..40_u64 {
        let n = [1, 2, 3, 60, 126][(i % 5) as usize];
        let data: Vec<_> = (0..n).map(|_| bench.ram.place(512, 512, 0)).collect();
        let read = bench.ram.request(IN, i * 7, &data);
        assert_eq!(bench.start(&read), Ok(None));
        all.push((i as usize * 7 * 512, data));
        if i % 8 == 7 {
            bench.drain();
        }
    }
    bench.drain();
    for (at, data) in all {
        let read = bench.ram.bytes(&data);
        assert!(read == bytes[at..at + read.len()]);
    }
}

/// One request of the storm: kind, block, blocks, segments, misaligned.
type Wish = (u8, u64, u64, usize, bool);

/// Run `wishes` over a disk of 64 blocks of 4 KiB that lies as `chances` say, and check every
/// success against a model that knows which bytes it may no longer be sure of.
fn storm(wishes: &[Wish], device: bool, chances: Chances, seed: u64) {
    let lying = engine().chances(chances, seed);
    let disk = Disk::ram(64 * 4096).demanding(4096);
    // A device is told of DISCARD, a file gets holes.
    let disk = if device { disk.like_a_device() } else { disk };
    let mut bench = Bench::new(lying, disk, 16);
    let mut model: Vec<Option<u8>> = vec![Some(0); 64 * 4096];
    let mut finished = 0;
    for (round, (kind, block, blocks, parts, odd)) in wishes.iter().enumerate() {
        let blocks = (*blocks).min(64 - block);
        let (at, len) = (*block as usize * 4096, blocks as usize * 4096);
        let part = u32::try_from(len / parts).unwrap() / 512 * 512;
        let mut data: Vec<_> = (1..*parts)
            .map(|_| bench.ram.place(part, 4096, u64::from(*odd)))
            .collect();
        let rest = u32::try_from(len).unwrap() - part * u32::try_from(*parts - 1).unwrap();
        data.push(bench.ram.place(rest, 4096, u64::from(*odd)));
        let fill: Vec<u8> = (0..len)
            .map(|i| (round * 7 + i / 512 + i).to_le_bytes()[0])
            .collect();
        bench.ram.fill(&data, &fill);
        let sectors = u32::try_from(len / 512).unwrap();
        let laid = match kind {
            0 => bench.ram.request(IN, block * 8, &data),
            1 => bench.ram.request(OUT, block * 8, &data),
            2 => bench
                .ram
                .ranges(WRITE_ZEROES, &[(block * 8, sectors, u32::from(*odd))]),
            3 => {
                // In two ranges, the later one first.
                let (half, from) = (sectors / 16 * 8, block * 8);
                let later = (from + u64::from(half), sectors - half, 0);
                let ranges = [later, (from, half, 0)];
                let count = if half == 0 { 1 } else { 2 };
                bench.ram.ranges(DISCARD, &ranges[..count])
            }
            _ => bench.ram.request(FLUSH, 0, &[]),
        };
        let end = bench.run(&laid);
        finished += 1;
        let now = &mut model[at..at + len];
        match (kind, end.status) {
            (0, Status::Ok) => {
                let read = bench.ram.bytes(&data);
                assert!(now.iter().zip(read).all(|(m, r)| m.is_none_or(|m| m == r)));
                assert_eq!(end.written as usize, len + 1);
            }
            (1, Status::Ok) => now.iter_mut().zip(fill).for_each(|(m, f)| *m = Some(f)),
            // A disk may keep what is discarded; this one has zeroes then, so that a range that was
            // left out shows.
            (2 | 3, Status::Ok) => now.fill(Some(0)),
            (1..=3, _) => now.fill(None),
            (_, _) => {}
        }
        if chances.hard == 0 {
            assert_eq!(errno(end), OK, "seed {seed}");
        }
        assert_eq!(bench.io.room(), 16);
    }
    assert_eq!(finished, wishes.len());
}

fn wishes() -> impl Strategy<Value = Vec<Wish>> {
    vec(
        (0_u8..5, 0_u64..64, 1_u64..40, 1_usize..4, any::<bool>()),
        1..24,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is transient is hidden from the guest, and data survives it.
    #[test]
    fn f3_transient_faults_are_invisible(
        wishes in wishes(),
        device in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let chances = Chances { short: 128, transient: 64, refuse: 64, delay: 64, hard: 0 };
        storm(&wishes, device, chances, seed);
    }

    /// Whatever is not is reported, and what is reported as done was done.
    #[test]
    fn f3_hard_faults_are_never_reported_as_success(
        wishes in wishes(),
        device in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let chances = Chances { short: 128, transient: 32, refuse: 32, delay: 64, hard: 64 };
        storm(&wishes, device, chances, seed);
    }

    /// Many at a time, delayed and reordered: each ends once, under its own name.
    #[test]
    fn each_request_ends_once(count in 1_u16..200, seed in any::<u64>()) {
        let chances = Chances { short: 64, transient: 64, refuse: 64, delay: 128, hard: 32 };
        let lying = engine().chances(chances, seed);
        let mut bench = Bench::new(lying, Disk::ram(SIZE), 32);
        let data = bench.ram.place(4096, 4096, 0);
        let read = bench.ram.request(IN, 0, &[data]);
        let mut ended = vec![0; usize::from(count)];
        let mut started = 0;
        while started < count || bench.io.in_flight() > 0 {
            while started < count && bench.io.room() > 0 {
                if bench.start(&read).unwrap().is_some() {
                    ended[usize::from(started)] += 1;
                }
                started += 1;
            }
            bench.io.submit();
            bench.io.reap(|f| ended[usize::from(f.origin.id)] += 1);
        }
        prop_assert!(ended.iter().all(|n| *n == 1));
    }
}
