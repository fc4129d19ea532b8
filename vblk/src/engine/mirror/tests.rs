//! Mirrors over disks in memory that misbehave, and what their records say meanwhile.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rustix::io::Errno;
use towpath_common::clock::{ManualClock, Rate};

use super::*;
use crate::config::Cache;
use crate::disk::{Disk, Serial, Spec};
use crate::engine::MAX_DISKS;
use crate::engine::faulty::{Chances, Fault, Faulty};
use crate::engine::memory::Memory;
use crate::request::Status;
use crate::storage::Storage;
use crate::storage::mirror::record::Record;
use crate::storage::mirror::{Member, Mirror as Mirrored, Options, Standing};
use crate::testing::{Bench, End, FLUSH, IN, Laid, OUT, WRITE_ZEROES};
use Standing::{Behind, Current, Failed};

const SIZE: u64 = 6 << 20;
const MIB: u64 = 1 << 20;

type Engine = Router<Faulty<Memory>>;

struct Rig {
    bench: Bench<Engine>,
    clock: ManualClock,
    shared: Arc<Shared>,
    dir: tempfile::TempDir,
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("disk{i}")).collect()
}

fn equal(count: usize) -> Record {
    Record::first(SIZE, &names(count), true)
}

/// The router's places of disk `n` of a mirror, and of its record.
fn place(n: usize) -> DiskId {
    DiskId(u16::try_from(MAX_DISKS as usize + 2 + n).unwrap())
}

fn record_place() -> DiskId {
    DiskId(u16::try_from(MAX_DISKS + 1).unwrap())
}

fn try_rig(
    engine: Faulty<Memory>,
    record: &Record,
    here: &[bool],
) -> Result<Rig, crate::storage::mirror::MirrorError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    record.create(&path).unwrap();
    let members = names(here.len()).into_iter().zip(here.to_vec());
    let members = members.map(|(name, here)| Member {
        name,
        open: Box::new(move || {
            if here {
                Ok(Disk::ram(SIZE))
            } else {
                Err("it is gone".to_owned())
            }
        }),
        returns: false,
    });
    let file = Disk::open(&Spec {
        path: path.clone(),
        read_only: false,
        cache: Cache::Buffered,
        block_size: None,
        serial: None,
    });
    let clock = ManualClock::new(Cycles(1), Rate::NANOSECONDS);
    let disk = Mirrored::over(
        members.collect(),
        record.clone(),
        Arc::new(file.unwrap()),
        Path::new(&path),
        &Options::default(),
        Serial::new("m").unwrap(),
        clock.clock(),
    )?;
    let Storage::Mirror(mirror) = disk.storage() else {
        panic!("no mirror")
    };
    let shared = Arc::clone(mirror.shared());
    Ok(Rig {
        bench: Bench::new(Router::new(engine), disk, 64),
        clock,
        shared,
        dir,
    })
}

fn rig(engine: Faulty<Memory>, record: &Record, here: &[bool]) -> Rig {
    try_rig(engine, record, here).unwrap()
}

fn plain(count: usize) -> Rig {
    rig(
        Faulty::new(Memory::new()),
        &equal(count),
        &vec![true; count],
    )
}

impl Rig {
    fn engine(&mut self) -> &mut Faulty<Memory> {
        self.bench.io.engine_mut().inner_mut()
    }

    fn bytes(&mut self, n: usize) -> &mut Vec<u8> {
        self.engine().inner_mut().bytes(place(n)).unwrap()
    }

    fn file(&mut self) -> Vec<u8> {
        self.engine()
            .inner_mut()
            .bytes(record_place())
            .unwrap()
            .clone()
    }

    /// What its record says now.
    fn record(&mut self) -> Option<Record> {
        Record::parse(&self.file())
    }

    /// What its file would say, which began with a head where the memory engine's has zeroes.
    fn recorded(&mut self) -> Record {
        let count = self.shared.gauges.len();
        let mut file = self.file();
        if Record::parse(&file).is_none() {
            let first = equal(count).head;
            file[4096..4096 + 512].copy_from_slice(&first.encode());
        }
        Record::parse(&file).unwrap()
    }

    fn standings(&self) -> Vec<Standing> {
        self.shared.gauges.iter().map(|g| g.standing()).collect()
    }

    fn step(&mut self) -> Vec<End> {
        let mut ends = Vec::new();
        self.bench.io.submit();
        self.bench.io.reap(|f| ends.push(f.into()));
        ends
    }

    /// Let what goes on beside requests go on, as the mirror's thread would.
    fn idle(&mut self) {
        for _ in 0..20 {
            self.shared.budget.store(64 << 20, Relaxed);
            self.shared.ring();
            for _ in 0..100 {
                assert!(self.step().is_empty());
            }
        }
    }

    fn laid(&mut self, kind: u32, at: u64, fill: u8, len: u32) -> Laid {
        let data = [self.bench.ram.place(len, 512, 0)];
        self.bench.ram.fill(&data, &vec![fill; len as usize]);
        self.bench.ram.request(kind, at / 512, &data)
    }

    fn write(&mut self, at: u64, fill: u8, len: u32) -> End {
        let laid = self.laid(OUT, at, fill, len);
        self.bench.run(&laid)
    }

    fn read(&mut self, at: u64, len: u32) -> (Status, Vec<u8>) {
        let laid = self.laid(IN, at, 0, len);
        let end = self.bench.run(&laid);
        let data = &laid.writable[..laid.writable.len() - 1];
        (end.status, self.bench.ram.bytes(data))
    }

    fn reads(&self) -> Vec<u64> {
        self.shared
            .gauges
            .iter()
            .map(|g| g.reads.load(Relaxed))
            .collect()
    }
}

#[test]
fn what_is_written_is_on_every_disk_and_is_read_from_any() {
    let mut rig = plain(3);
    assert_eq!(rig.write(MIB - 4096, 7, 600 << 10).status, Status::Ok);
    for n in 0..3 {
        let bytes = rig.bytes(n);
        let at = usize::try_from(MIB).unwrap() - 4096;
        assert!(bytes[at..at + (600 << 10)].iter().all(|b| *b == 7));
    }
    for _ in 0..30 {
        assert_eq!(rig.read(MIB, 4096), (Status::Ok, vec![7; 4096]));
    }
    assert_eq!(rig.reads().iter().sum::<u64>(), 30);
    rig.shared.set_options(&Options {
        prefer: Some(2),
        ..Options::default()
    });
    let before = rig.reads()[2];
    (0..9).for_each(|_| drop(rig.read(0, 512)));
    assert_eq!(rig.reads()[2], before + 9);
    let flush = rig.bench.ram.request(FLUSH, 0, &[]);
    assert_eq!(rig.bench.run(&flush).status, Status::Ok);
    let zero = rig.bench.ram.ranges(WRITE_ZEROES, &[(2048, 8, 0)]);
    assert_eq!(rig.bench.run(&zero).status, Status::Ok);
    assert_eq!(rig.read(MIB, 4096), (Status::Ok, vec![0; 4096]));
}

#[test]
fn a_guest_that_changes_its_buffer_meanwhile_leaves_the_disks_equal() {
    let mut rig = plain(2);
    let laid = rig.laid(OUT, 8192, 1, 65536);
    assert!(rig.bench.start(&laid).unwrap().is_none());
    let data = laid.readable[1];
    let mem = Arc::clone(&rig.bench.ram.mem);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    let guest = std::thread::spawn(move || {
        for fill in (2..=255u8).cycle() {
            assert!(mem.write(data, &vec![fill; 65536]));
            if seen.load(Relaxed) {
                return;
            }
        }
    });
    let mut ends = rig.bench.drain();
    // Parts that are written again, and at other times.
    for round in 0..50 {
        rig.engine()
            .expect(Verb::Write, Fault::Short(512 + round % 7 * 512));
        let again = rig.bench.ram.request(OUT, 16, &[data]);
        ends.push(rig.bench.run(&again));
        let other = rig.bytes(1).clone();
        assert!(*rig.bytes(0) == other, "round {round}");
    }
    stop.store(true, Relaxed);
    guest.join().unwrap();
    assert!(ends.iter().all(|e| e.status == Status::Ok));
}

#[test]
fn a_region_is_marked_before_it_is_first_written_and_unmarked_when_all_is_quiet() {
    let mut rig = plain(2);
    assert!(rig.record().is_none(), "nothing has been written down yet");
    rig.write(3 * MIB, 1, 4096);
    let seen: Vec<_> = rig
        .engine()
        .seen
        .iter()
        .map(|s| (s.verb, s.offset, s.durable))
        .collect();
    let w = Verb::Write;
    let bell = (Verb::Read, 0, false);
    assert_eq!(
        seen,
        [
            bell,
            (w, 8192, true),
            (w, 3 * MIB, false),
            (w, 3 * MIB, false)
        ]
    );
    // The region is known to be marked.
    rig.write(3 * MIB + 4096, 1, 4096);
    assert_eq!(rig.engine().seen.len(), 6);
    let marks = |rig: &mut Rig| rig.file()[8192];
    assert_eq!(marks(&mut rig), 1 << 3);
    rig.idle();
    assert_eq!(marks(&mut rig), 1 << 3, "no time has passed");
    let syncs = |rig: &mut Rig| {
        rig.engine()
            .seen
            .iter()
            .filter(|s| s.verb == Verb::Sync)
            .count()
    };
    assert_eq!(syncs(&mut rig), 0);
    for _ in 0..2 {
        rig.clock.advance(Cycles(6_000_000_000));
        rig.idle();
    }
    assert_eq!((marks(&mut rig), syncs(&mut rig)), (0, 2));
    rig.write(3 * MIB, 2, 512);
    assert_eq!(marks(&mut rig), 1 << 3);
}

#[test]
fn what_is_written_while_the_disks_flush_stays_marked() {
    let mut rig = plain(2);
    rig.write(0, 1, 512);
    rig.write(MIB, 1, 512);
    rig.clock.advance(Cycles(6_000_000_000));
    rig.idle();
    rig.clock.advance(Cycles(6_000_000_000));
    rig.engine().expect(Verb::Sync, Fault::Hang);
    rig.shared.ring();
    (0..50).for_each(|_| drop(rig.step()));
    rig.write(MIB, 2, 512);
    // The flush fails on one disk: it is taken out, and nothing is unmarked.
    rig.engine().let_go();
    rig.idle();
    assert_eq!(rig.file()[8192], 3);
    assert_eq!(rig.standings(), [Failed, Current]);
}

#[test]
fn a_disk_that_fails_is_written_down_before_anything_it_missed_is_told() {
    for part in 0..2 {
        let mut rig = plain(2);
        for _ in 0..1 + part {
            rig.engine().expect(Verb::Write, Fault::None);
        }
        rig.engine().expect(Verb::Write, Fault::Fail(Errno::IO));
        let laid = rig.laid(OUT, 0, 9, 4096);
        assert!(rig.bench.start(&laid).unwrap().is_none());
        let mut ends = Vec::new();
        while ends.is_empty() {
            ends = rig.step();
        }
        assert_eq!(ends[0].status, Status::Ok);
        let other = usize::from(part == 0);
        let record = rig.record().unwrap();
        assert!(!record.head.known[part].current && record.head.known[other].current);
        assert_eq!(rig.standings()[part], Failed);
        assert_eq!(rig.shared.gauges[part].errors.load(Relaxed), 1);
        assert_eq!(rig.read(0, 4096), (Status::Ok, vec![9; 4096]));
        let trouble = rig.bench.target.storage().health().trouble.unwrap();
        assert!(trouble.contains(&format!("disk{part}")), "{trouble}");
    }
}

#[test]
fn without_a_record_nothing_is_told() {
    let mut rig = plain(2);
    // No mark, no write.
    rig.engine().expect(Verb::Write, Fault::Fail(Errno::NOSPC));
    assert_eq!(rig.write(0, 1, 512).errno, Some(5));
    assert_eq!(rig.bytes(0)[0], 0);
    let trouble = rig.bench.target.storage().health().trouble.unwrap();
    assert!(trouble.contains("cannot be written"), "{trouble}");
    rig.idle();
    assert_eq!(rig.write(0, 2, 512).status, Status::Ok);
    // A disk fails, and that cannot be written down.
    rig.engine().expect(Verb::Write, Fault::Fail(Errno::IO));
    rig.engine().expect(Verb::Write, Fault::None);
    rig.engine().expect(Verb::Write, Fault::Fail(Errno::NOSPC));
    assert_eq!(rig.write(0, 3, 512).errno, Some(5));
    rig.idle();
    assert_eq!(rig.write(0, 4, 512).status, Status::Ok);
    assert!(!rig.record().unwrap().head.known[0].current);
    assert_eq!(
        rig.bench
            .target
            .storage()
            .health()
            .trouble
            .unwrap()
            .matches("cannot")
            .count(),
        0
    );
}

#[test]
fn the_last_disk_is_not_failed_and_its_errors_are_the_guests() {
    let mut rig = plain(2);
    rig.engine().expect(Verb::Write, Fault::None);
    rig.engine().expect(Verb::Write, Fault::Fail(Errno::IO));
    rig.engine().expect(Verb::Write, Fault::Fail(Errno::NOSPC));
    assert_eq!(rig.write(0, 1, 512).errno, Some(28));
    assert_eq!(rig.standings(), [Failed, Current]);
    rig.engine().expect(Verb::Read, Fault::Fail(Errno::IO));
    assert_eq!(rig.read(0, 512).0, Status::IoErr);
    assert_eq!(rig.write(0, 2, 512).status, Status::Ok);
    assert_eq!(rig.read(0, 512), (Status::Ok, vec![2; 512]));
    rig.engine().expect(Verb::Sync, Fault::Fail(Errno::IO));
    let flush = rig.bench.ram.request(FLUSH, 0, &[]);
    assert_eq!(rig.bench.run(&flush).errno, Some(5));
    assert_eq!(rig.standings(), [Failed, Current]);
}

#[test]
fn a_read_that_fails_is_made_from_another_disk() {
    let mut rig = plain(3);
    rig.write(4096, 5, 4096);
    rig.engine().expect(Verb::Read, Fault::Fail(Errno::IO));
    rig.engine().expect(Verb::Read, Fault::Short(0));
    assert_eq!(rig.read(4096, 4096), (Status::Ok, vec![5; 4096]));
    assert_eq!(rig.standings().iter().filter(|s| **s == Failed).count(), 2);
}

#[test]
fn a_disk_that_does_not_answer_is_failed_and_writes_go_on_without_it() {
    let mut rig = plain(2);
    rig.write(0, 1, 512);
    rig.engine().expect(Verb::Write, Fault::Hang);
    let laid = rig.laid(OUT, 0, 2, 512);
    assert!(rig.bench.start(&laid).unwrap().is_none());
    (0..50).for_each(|_| assert!(rig.step().is_empty()));
    rig.clock.advance(Cycles(31_000_000_000));
    rig.shared.ring();
    let mut ends = Vec::new();
    while ends.is_empty() {
        ends = rig.step();
    }
    assert_eq!(ends[0].status, Status::Ok);
    assert_eq!(rig.standings(), [Failed, Current]);
    assert!(!rig.record().unwrap().head.known[0].current);
    assert!(
        !rig.shared.gauges[0].closed.load(Relaxed),
        "the kernel has the buffer still"
    );
    rig.engine().let_go();
    rig.idle();
    assert!(rig.shared.gauges[0].closed.load(Relaxed));
    assert_eq!(rig.shared.flying.load(Relaxed), 0);
}

/// The mirror as another daemon finds it after this one was killed.
fn after_a_kill(rig: &mut Rig, here: &[bool]) -> Rig {
    let count = rig.shared.gauges.len();
    let record = rig.recorded();
    let contents: Vec<Vec<u8>> = (0..count)
        .map(|n| {
            rig.engine()
                .inner_mut()
                .bytes(place(n))
                .cloned()
                .unwrap_or_default()
        })
        .collect();
    let mut next = self::rig(Faulty::new(Memory::new()), &record, here);
    for (n, content) in contents.into_iter().enumerate() {
        if here[n] && !content.is_empty() {
            *next.bytes(n) = content;
        }
    }
    next
}

#[test]
fn a_stale_disk_is_not_read_after_a_restart_and_catches_up() {
    let mut rig = plain(2);
    rig.write(0, 1, 4096);
    rig.engine().expect(Verb::Write, Fault::Fail(Errno::IO));
    rig.write(0, 2, 4096);
    rig.write(5 * MIB, 3, 4096);
    assert_eq!(rig.standings(), [Failed, Current]);
    let stale = rig.bytes(0).clone();
    let mut rig = after_a_kill(&mut rig, &[true, true]);
    *rig.bytes(0) = stale;
    assert_eq!(rig.standings(), [Behind, Current]);
    for _ in 0..20 {
        assert_eq!(rig.read(0, 4096), (Status::Ok, vec![2; 4096]));
    }
    assert_eq!(rig.reads(), [0, 20]);
    rig.idle();
    assert_eq!(rig.standings(), [Current, Current]);
    assert!(rig.record().unwrap().head.known[0].current);
    let other = rig.bytes(1).clone();
    assert!(*rig.bytes(0) == other);
    assert_eq!(
        rig.shared.copied.load(Relaxed),
        2 << 20,
        "two regions, not the disk"
    );
    // Without the one that is current there is no mirror.
    let mut record = equal(2);
    record.head.known[0].current = false;
    let engine = || Faulty::new(Memory::new());
    let error = try_rig(engine(), &record, &[true, false])
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("disk1: it is gone") && error.contains("older"),
        "{error}"
    );
}

#[test]
fn a_disk_taken_out_comes_back_by_what_it_missed() {
    let mut rig = plain(2);
    rig.write(0, 1, 4096);
    rig.shared
        .orders
        .push(crate::storage::mirror::Order::Fail(1))
        .unwrap();
    rig.idle();
    assert_eq!(rig.standings(), [Current, Failed]);
    rig.write(2 * MIB, 2, 4096);
    let add = |full| {
        let disk = Arc::new(Disk::ram(SIZE));
        crate::storage::mirror::Order::Add(1, disk, full)
    };
    rig.shared.orders.push(add(false)).unwrap();
    rig.shared.ring();
    (0..3).for_each(|_| drop(rig.step()));
    // The memory engine's new disk is empty: as much as was marked is copied.
    assert_eq!(rig.standings(), [Current, Behind]);
    rig.idle();
    assert_eq!(rig.standings(), [Current, Current]);
    assert_eq!(rig.shared.copied.load(Relaxed), 2 << 20);
    let other = rig.bytes(0).clone();
    assert!(*rig.bytes(1) == other);
    // And whole, when it is another disk in its place.
    rig.shared
        .orders
        .push(crate::storage::mirror::Order::Fail(0))
        .unwrap();
    rig.idle();
    rig.shared.orders.push(add(true)).unwrap();
    rig.idle();
    assert_eq!(
        rig.standings(),
        [Failed, Current],
        "it was disk 0 that failed"
    );
}

#[test]
fn catching_up_keeps_to_its_rate() {
    let mut record = Record::first(SIZE, &names(2), false);
    record.head.known[1].current = false;
    let mut rig = rig(Faulty::new(Memory::new()), &record, &[true, true]);
    // The mirror's own thread gives out nothing.
    rig.shared.set_options(&Options {
        rate: 0,
        ..Options::default()
    });
    rig.shared.budget.store(1, Relaxed);
    (0..200).for_each(|_| drop(rig.step()));
    let chunk = u64::from(LARGE.0);
    assert_eq!(rig.shared.copied.load(Relaxed), chunk);
    assert!(rig.shared.budget.load(Relaxed) < 0);
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, u64),
    Wait,
    Ring,
    Fail(usize),
    Add(usize, bool),
    Quiet,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..SIZE / 512 - 16, 1..16u64).prop_map(|(at, n)| Step::Write(at, n)),
        8 => Just(Step::Wait),
        2 => Just(Step::Ring),
        1 => (0..2usize).prop_map(Step::Fail),
        2 => (0..2usize, any::<bool>()).prop_map(|(n, full)| Step::Add(n, full)),
        1 => Just(Step::Quiet),
    ];
    prop::collection::vec(step, 1..120)
}

/// Where two disks that are both current by the record differ, the record must say so, and each has
/// everything that was acknowledged and not written since.
fn check(rig: &mut Rig, told: &[(u64, u64, u8)], open: &[(u64, u64)]) {
    let count = rig.shared.gauges.len();
    let record = rig.recorded();
    let current: Vec<usize> = (0..count)
        .filter(|n| record.head.known[*n].current)
        .collect();
    assert!(!current.is_empty());
    let first = rig.bytes(current[0]).clone();
    for n in &current[1..] {
        let other = rig.bytes(*n).clone();
        for region in 0..record.head.regions() {
            let range = region << 20..((region + 1) << 20).min(first.len());
            let same = first[range.clone()] == other[range];
            assert!(
                same || record.dirty.get(region),
                "region {region} of disk {n}"
            );
        }
    }
    for n in current {
        let bytes = rig.bytes(n).clone();
        for (i, (at, len, fill)) in told.iter().enumerate() {
            for sector in *at..at + len {
                let covers = |(a, l): (u64, u64)| a <= sector && sector < a + l;
                let later = told[i + 1..].iter().any(|(a, l, _)| covers((*a, *l)));
                if later || open.iter().any(|o| covers(*o)) {
                    continue;
                }
                let byte = usize::try_from(sector * 512).unwrap();
                assert_eq!(bytes[byte], *fill, "sector {sector} of disk {n}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn killed_at_any_moment_it_never_shows_what_is_stale(
        script in steps(), seed in any::<u64>(), faults in any::<bool>()
    ) {
        let chances = Chances {
            short: 20,
            transient: 10,
            hard: if faults { 3 } else { 0 },
            refuse: 20,
            delay: 60,
        };
        let engine = Faulty::new(Memory::new()).chances(chances, seed);
        let mut rig = rig(engine, &equal(2), &[true, true]);
        let mut open: Vec<(u16, u64, u64, u8)> = Vec::new();
        let mut told: Vec<(u64, u64, u8)> = Vec::new();
        // What failed or was not told yet may be there or not.
        let mut vague: Vec<(u64, u64)> = Vec::new();
        let mut number = 0u16;
        for step in script {
            match step {
                Step::Write(at, len) => {
                    let busy = open.iter().any(|(_, a, l, _)| *a < at + len && at < a + l);
                    if busy || rig.bench.io.room() < 2 {
                        continue;
                    }
                    let fill = number.to_le_bytes()[0] | 1;
                    let bytes = u32::try_from(len * 512).unwrap();
                    let laid = rig.laid(OUT, at * 512, fill, bytes);
                    prop_assert!(rig.bench.start(&laid).unwrap().is_none());
                    open.push((number, at, len, fill));
                    number += 1;
                }
                Step::Ring => {
                    rig.shared.budget.store(1 << 20, Relaxed);
                    rig.shared.ring();
                }
                Step::Fail(n) => {
                    let others = rig.standings();
                    let other = others.iter().enumerate().any(|(i, s)| i != n && *s == Current);
                    if other {
                        drop(rig.shared.orders.push(crate::storage::mirror::Order::Fail(n)));
                        rig.shared.ring();
                    }
                }
                Step::Add(n, full) => {
                    let gauge = &rig.shared.gauges[n];
                    if gauge.standing() == Failed && gauge.closed.load(Relaxed) {
                        // The memory engine forgets what was on it.
                        let order = crate::storage::mirror::Order::Add;
                        let _ = full;
                        let disk = Arc::new(Disk::ram(SIZE));
                        drop(rig.shared.orders.push(order(n, disk, true)));
                        rig.shared.ring();
                    }
                }
                Step::Quiet => {
                    rig.clock.advance(Cycles(6_000_000_000));
                    rig.shared.ring();
                }
                Step::Wait => {}
            }
            for end in rig.step() {
                let at = open.iter().position(|(id, ..)| *id == end.origin.id).unwrap();
                let (_, at, len, fill) = open.remove(at);
                if end.status == Status::Ok {
                    vague.retain(|(a, l)| !(at <= *a && a + l <= at + len));
                    told.push((at, len, fill));
                } else {
                    vague.push((at, len));
                }
            }
            let mut unknown = vague.clone();
            unknown.extend(open.iter().map(|(_, a, l, _)| (*a, *l)));
            let absent = (0..2).any(|n| rig.engine().inner_mut().bytes(place(n)).is_none());
            if !absent {
                check(&mut rig, &told, &unknown);
            }
        }
        rig.bench.drain();
    }
}

#[test]
fn disks_are_equal_after_catching_up_under_writes() {
    let mut record = Record::first(SIZE, &names(3), false);
    record.head.known[1].current = true;
    let chances = Chances {
        short: 20,
        transient: 10,
        delay: 60,
        refuse: 20,
        hard: 0,
    };
    let engine = Faulty::new(Memory::new()).chances(chances, 11);
    let mut rig = rig(engine, &record, &[true, true, true]);
    for n in 0..3u8 {
        rig.bytes(usize::from(n)).fill(0x11 * (n + 1));
    }
    assert_eq!(rig.standings(), [Current, Current, Behind]);
    let mut seed = 1u64;
    for round in 0..400u32 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = (seed >> 33) % (SIZE / 512 - 64);
        rig.shared.budget.store(300 << 10, Relaxed);
        rig.shared.ring();
        let fill = round.to_le_bytes()[0];
        let end = rig.write(at * 512, fill, 512 + 512 * (round % 60));
        assert_eq!(end.status, Status::Ok);
        let (status, bytes) = rig.read(at * 512, 512);
        assert_eq!((status, bytes[0]), (Status::Ok, fill), "round {round}");
    }
    rig.idle();
    assert_eq!(rig.standings(), [Current, Current, Current]);
    let first = rig.bytes(0).clone();
    for n in 1..3 {
        assert!(*rig.bytes(n) == first, "disk {n}");
    }
    assert!(
        first.contains(&0x11),
        "what was not written is the first disk's"
    );
}

#[test]
fn a_mirror_that_is_detached_goes_on_where_it_is_attached() {
    let mut rig = plain(2);
    rig.write(0, 1, 4096);
    for _ in 0..20 {
        rig.bench.io.detach(rig.bench.disk);
        rig.bench.disk = rig.bench.io.attach(&rig.bench.target).unwrap();
        // The places change, and with them what the memory engine holds; the state does not.
        rig.idle();
        assert_eq!(rig.write(4096, 2, 4096).status, Status::Ok);
    }
    assert_eq!(rig.standings(), [Current, Current]);
    assert_eq!(rig.shared.dirty.load(Relaxed), 1);
    assert!(Duration::from_secs(0) < Options::default().timeout);
}

#[test]
fn a_mirror_that_ends_says_so_and_takes_it_back_before_the_next_write() {
    let mut rig = plain(2);
    let rests = [7, 8];
    for (gauge, rest) in rig.shared.gauges.iter().zip(rests) {
        gauge.rest.store(rest, Relaxed);
    }
    rig.write(0, 1, 4096);
    rig.bench.io.detach(rig.bench.disk);
    rig.idle();
    let state = rig.shared.take().expect("it has ended");
    let said: Vec<u64> = state.head.known.iter().map(|k| k.rest).collect();
    assert_eq!((&said[..], state.at_rest), (&rests[..], true));
    assert!(state.marked.get(0), "nothing was flushed");
    rig.shared.give_back(state);
    rig.bench.disk = rig.bench.io.attach(&rig.bench.target).unwrap();
    rig.idle();
    // The first thing that is written is the record, although the region is marked.
    rig.engine().expect(Verb::Write, Fault::Fail(Errno::NOSPC));
    assert_eq!(rig.write(0, 2, 4096).status, Status::IoErr);
    assert_eq!(rig.standings(), [Current, Current]);
    assert_eq!(
        rig.read(0, 512).1[0],
        0,
        "the places changed, and nothing was written to these"
    );
    rig.idle();
    assert_eq!(rig.write(0, 3, 4096).status, Status::Ok);
    assert_eq!(rig.read(0, 512).1[0], 3);
}

/// Resize a mirror in another thread, while its worker is turned over.
fn resize(rig: &mut Rig, size: u64, equal: bool) -> Result<(), String> {
    let disk = Arc::clone(&rig.bench.target);
    let asking = std::thread::spawn(move || {
        let Storage::Mirror(mirror) = disk.storage() else {
            unreachable!()
        };
        mirror.expect_whole().map_err(|e| e.to_string())?;
        mirror.resize(size, equal).map_err(|e| e.to_string())
    });
    while !asking.is_finished() {
        assert!(rig.step().is_empty());
    }
    asking.join().unwrap()
}

#[test]
fn a_mirror_has_another_size_while_it_works() {
    let mut rig = plain(2);
    assert_eq!(rig.write(0, 8, 4096).status, Status::Ok);
    resize(&mut rig, 4 * MIB, false).unwrap();
    assert_eq!(rig.write(MIB, 9, 4096).status, Status::Ok);
    assert_eq!(rig.read(0, 4096).1, vec![8; 4096]);
    let path = rig.dir.path().join("record");
    let written = Record::parse(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!((written.head.size, written.dirty.len()), (4 * MIB, 4));
    assert!(written.dirty.get(0), "as it was marked");
    // More again: not known to be equal, so the first one is copied.
    let at = usize::try_from(5 * MIB).unwrap();
    rig.bytes(0)[at] = 7;
    rig.shared.budget.store(i64::MIN / 2, Relaxed);
    resize(&mut rig, SIZE, false).unwrap();
    let refused = resize(&mut rig, SIZE, false).unwrap_err();
    assert!(refused.contains("catches up"), "{refused}");
    for _ in 0..20 {
        assert_eq!(rig.read(5 * MIB, 4096).1[0], 7, "from the first one alone");
    }
    rig.idle();
    assert_eq!(rig.shared.gauges[1].behind.load(Relaxed), 0);
    assert_eq!(rig.bytes(1)[at], 7);
    // The worker's own record, which is another file here, goes on from there.
    assert_eq!(rig.write(5 * MIB, 1, 4096).status, Status::Ok);
    assert_eq!(rig.write(0, 3, 4096).status, Status::Ok);
}

#[test]
fn a_mirror_whose_disk_failed_keeps_its_size() {
    let mut rig = plain(2);
    rig.engine().expect(Verb::Write, Fault::None);
    rig.engine().expect(Verb::Write, Fault::None);
    rig.engine().expect(Verb::Write, Fault::Fail(Errno::IO));
    assert_eq!(rig.write(0, 9, 4096).status, Status::Ok);
    rig.idle();
    assert_eq!(rig.standings(), [Current, Failed]);
    let refused = resize(&mut rig, 4 * MIB, false).unwrap_err();
    assert!(
        refused.contains("disk disk1 of the mirror failed"),
        "{refused}"
    );
    assert_eq!(rig.write(0, 9, 4096).status, Status::Ok);
}
