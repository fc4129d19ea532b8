//! What every engine on files and devices must do, as tests: each of them runs over io_uring and
//! over threads.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::epoll;
use rustix::io::Errno;

use super::{Completions, DiskId, Engine, Guest, MemId, Op, Token, Verb};
use crate::config::Cache;
use crate::disk::{BlockSize, Disk, Spec};
use crate::request::Status;
use crate::testing::{Bench, DISCARD, FLUSH, IN, Loop, OUT, WRITE_ZEROES};

/// An engine that does system calls.
pub(crate) trait Kernel: Engine + AsFd + std::fmt::Debug {}

impl<E: Engine + AsFd + std::fmt::Debug> Kernel for E {}

/// The tests, over what `$make` makes.
macro_rules! contract {
    ($make:expr) => {
        contract::contract!(@ $make,
            requests_of_one_and_many_segments_reach_files_cached_and_direct,
            a_sleeping_worker_is_woken_by_a_completion,
            more_requests_than_the_queue_has_room_for_all_finish,
            misaligned_guest_buffers_work_on_direct_files,
            discard_punches_and_zeroes_are_zero,
            a_read_only_disk_reads_and_flushes,
            write_through_and_many_disks_on_one_engine,
            a_file_that_shrank_gives_errors_and_not_bytes,
            a_dropped_engine_finishes_what_it_began_and_closes_its_files,
            what_is_not_there_is_an_error_of_the_operation,
            block_devices_of_both_sector_sizes_are_served,
        );
    };
    (@ $make:expr, $($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                contract::$name($make);
            }
        )*
    };
}
pub(crate) use contract;

/// An image of `size` pseudo-random bytes in `dir`, opened as a disk.
pub(crate) fn image(
    dir: &tempfile::TempDir,
    size: usize,
    cache: Cache,
) -> (PathBuf, Vec<u8>, Disk) {
    let path = dir.path().join("image");
    let bytes: Vec<u8> = pattern(size, 31);
    File::create(&path).unwrap().write_all(&bytes).unwrap();
    let spec = Spec {
        path: path.clone(),
        read_only: false,
        cache,
        block_size: None,
        serial: None,
    };
    (path, bytes, Disk::open(&spec).unwrap())
}

/// Bytes that differ from block to block.
pub(crate) fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len)
        .map(|i| ((i / 512 * salt + i) % 251).to_le_bytes()[0])
        .collect()
}

/// A directory on a real file system, and one on tmpfs.
pub(crate) fn places() -> [tempfile::TempDir; 2] {
    [
        tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap(),
        tempfile::tempdir_in("/dev/shm").unwrap(),
    ]
}

pub(crate) fn slurp(path: &PathBuf) -> Vec<u8> {
    let mut all = Vec::new();
    File::open(path).unwrap().read_to_end(&mut all).unwrap();
    all
}

/// What a worker sleeps on.
struct Bed(OwnedFd);

impl Bed {
    fn new(fd: BorrowedFd<'_>) -> Bed {
        let bed = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let data = epoll::EventData::new_u64(1);
        epoll::add(&bed, fd, data, epoll::EventFlags::IN).unwrap();
        Bed(bed)
    }

    /// Sleep; false if nothing happened.
    fn sleep(&self, seconds: i64) -> bool {
        let timeout = rustix::event::Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        let mut events = Vec::with_capacity(1);
        let room = rustix::buffer::spare_capacity(&mut events);
        // A ring without DEFER_TASKRUN interrupts the thread to make completions: awake as well.
        epoll::wait(&self.0, room, Some(&timeout)) != Ok(0)
    }
}

pub(crate) fn requests_of_one_and_many_segments_reach_files_cached_and_direct<E: Kernel>(
    make: impl Fn(u32) -> E,
) {
    for dir in places() {
        for cache in [Cache::Direct, Cache::Buffered] {
            let (path, bytes, disk) = image(&dir, 1 << 20, cache);
            let mut bench = Bench::new(make(32), disk, 32);
            let one = bench.ram.place(8192, 4096, 0);
            let read = bench.ram.request(IN, 16, &[one]);
            let end = bench.run(&read);
            assert_eq!(
                (end.status, end.written, end.bytes),
                (Status::Ok, 8193, 8192)
            );
            assert_eq!(bench.ram.bytes(&[one]), bytes[8192..16384]);

            let many: Vec<_> = (0..5).map(|_| bench.ram.place(4096, 8192, 0)).collect();
            let new: Vec<u8> = pattern(5 * 4096, 7);
            bench.ram.fill(&many, &new);
            let write = bench.ram.request(OUT, 64, &many);
            assert_eq!(bench.run(&write).status, Status::Ok);
            let flush = bench.ram.request(FLUSH, 0, &[]);
            assert_eq!(bench.run(&flush).status, Status::Ok);
            let mut expected = bytes.clone();
            expected[32768..32768 + new.len()].copy_from_slice(&new);
            assert!(
                slurp(&path) == expected,
                "{cache:?} in {}",
                dir.path().display()
            );
        }
    }
}

pub(crate) fn a_sleeping_worker_is_woken_by_a_completion<E: Kernel>(make: impl Fn(u32) -> E) {
    let dir = &places()[0];
    let (_, bytes, disk) = image(dir, 1 << 20, Cache::Direct);
    let mut bench = Bench::new(make(8), disk, 8);
    let bed = Bed::new(bench.io.as_fd());
    let mut slept = 0;
    for round in 0..50 {
        let data = bench.ram.place(4096, 4096, 0);
        let read = bench.ram.request(IN, round * 8, &[data]);
        assert_eq!(bench.start(&read), Ok(None));
        bench.io.submit();
        while bench.io.reap(|f| assert_eq!(f.status, Status::Ok)) == 0 {
            if !bench.io.arm() {
                // Where this fails, a daemon would hang.
                assert!(bed.sleep(10), "{:?}", bench.io.engine());
                slept += 1;
            }
            bench.io.disarm();
        }
        let at = usize::try_from(round).unwrap() * 4096;
        assert_eq!(bench.ram.bytes(&[data]), bytes[at..at + 4096]);
    }
    assert!(slept > 0, "the device was always faster than this thread");
}

pub(crate) fn more_requests_than_the_queue_has_room_for_all_finish<E: Kernel>(
    make: impl Fn(u32) -> E,
) {
    let dir = &places()[1];
    let (_, bytes, disk) = image(dir, 1 << 20, Cache::Buffered);
    let mut bench = Bench::new(make(1024), disk, 1024);
    let data: Vec<_> = (0..4).map(|_| bench.ram.place(512, 1024, 0)).collect();
    for _ in 0..3 {
        // Four times as many submissions as the queue holds, with more iovecs than the arena.
        for i in 0..1024 {
            let read = bench.ram.request(IN, i % 64, &data);
            assert_eq!(bench.start(&read), Ok(None));
        }
        assert_eq!(bench.io.room(), 0);
        let ends = bench.drain();
        assert_eq!(ends.len(), 1024);
        assert!(
            ends.iter()
                .all(|e| e.status == Status::Ok && e.bytes == 2048)
        );
    }
    let read = bench.ram.request(IN, 8, &data);
    assert_eq!(bench.run(&read).status, Status::Ok);
    assert_eq!(bench.ram.bytes(&data), bytes[4096..6144]);
}

pub(crate) fn misaligned_guest_buffers_work_on_direct_files<E: Kernel>(make: impl Fn(u32) -> E) {
    for dir in places() {
        let (path, bytes, disk) = image(&dir, 1 << 20, Cache::Direct);
        let mut bench = Bench::new(make(8), disk, 8);
        // No device takes memory at odd addresses.
        let odd = [
            bench.ram.place(512, 4096, 1),
            bench.ram.place(300 * 1024, 4096, 3),
        ];
        let read = bench.ram.request(IN, 1, &odd);
        assert_eq!(bench.run(&read).status, Status::Ok);
        let len = 512 + 300 * 1024;
        assert!(bench.ram.bytes(&odd) == bytes[512..512 + len]);
        let write = bench.ram.request(OUT, 1024, &odd);
        assert_eq!(bench.run(&write).status, Status::Ok);
        let mut expected = bytes.clone();
        expected.copy_within(512..512 + len, 1024 * 512);
        assert!(slurp(&path) == expected);
        // Segments that are not whole sectors, though their sum is.
        let torn = [bench.ram.place(100, 4096, 0), bench.ram.place(924, 4096, 0)];
        let read = bench.ram.request(IN, 7, &torn);
        assert_eq!(bench.run(&read).status, Status::Ok);
        assert!(bench.ram.bytes(&torn) == expected[3584..3584 + 1024]);
    }
}

pub(crate) fn discard_punches_and_zeroes_are_zero<E: Kernel>(make: impl Fn(u32) -> E) {
    for dir in places() {
        let (path, bytes, disk) = image(&dir, 1 << 20, Cache::Direct);
        assert!(
            disk.limits().discard,
            "no hole punching in {}",
            dir.path().display()
        );
        let mut bench = Bench::new(make(8), disk, 8);
        let before = path.metadata().unwrap().blocks();
        let discard = bench.ram.ranges(DISCARD, &[(128, 256, 0), (1024, 128, 0)]);
        let end = bench.run(&discard);
        assert_eq!((end.status, end.bytes), (Status::Ok, 384 * 512));
        let mut expected = bytes;
        expected[128 * 512..384 * 512].fill(0);
        expected[1024 * 512..1152 * 512].fill(0);
        assert!(slurp(&path) == expected);
        assert!(path.metadata().unwrap().blocks() <= before - 256);
        let file = File::open(&path).unwrap();
        let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap();
        assert_eq!(hole, 128 * 512);
        let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(hole)).unwrap();
        assert_eq!(data, 384 * 512);
        // With UNMAP and without; tmpfs has no FALLOC_FL_ZERO_RANGE, so zeroes are written there.
        for unmap in [1, 0] {
            let zeroes = bench
                .ram
                .ranges(WRITE_ZEROES, &[(600, 100, unmap), (701, 9, unmap)]);
            assert_eq!(bench.run(&zeroes).status, Status::Ok);
            expected[600 * 512..700 * 512].fill(0);
            expected[701 * 512..710 * 512].fill(0);
            assert!(slurp(&path) == expected);
            let data = bench.ram.place(200 * 512, 4096, 0);
            bench.ram.fill(&[data], &pattern(200 * 512, 3));
            let write = bench.ram.request(OUT, 600, &[data]);
            assert_eq!(bench.run(&write).status, Status::Ok);
            expected[600 * 512..800 * 512].copy_from_slice(&pattern(200 * 512, 3));
        }
        assert_eq!(path.metadata().unwrap().len(), 1 << 20);
    }
}

pub(crate) fn a_read_only_disk_reads_and_flushes<E: Kernel>(make: impl Fn(u32) -> E) {
    let dir = &places()[0];
    let (path, bytes, disk) = image(dir, 1 << 20, Cache::Direct);
    drop(disk);
    let spec = Spec {
        path,
        read_only: true,
        cache: Cache::Direct,
        block_size: Some(BlockSize::PAGE),
        serial: None,
    };
    let mut bench = Bench::new(make(8), Disk::open(&spec).unwrap(), 8);
    let data = bench.ram.place(4096, 4096, 0);
    let read = bench.ram.request(IN, 8, &[data]);
    assert_eq!(bench.run(&read).status, Status::Ok);
    assert_eq!(bench.ram.bytes(&[data]), bytes[4096..8192]);
    let flush = bench.ram.request(FLUSH, 0, &[]);
    assert_eq!(bench.run(&flush).status, Status::Ok);
    let write = bench.ram.request(OUT, 8, &[data]);
    assert!(bench.start(&write).is_err());
    assert_eq!(bench.io.in_flight(), 0);
}

pub(crate) fn write_through_and_many_disks_on_one_engine<E: Kernel>(make: impl Fn(u32) -> E) {
    let dir = &places()[0];
    let mut bench = Bench::new(make(64), Disk::null(512), 64);
    let ends = (0..8).map(|i| {
        let sub = dir.path().join(format!("d{i}"));
        std::fs::create_dir(&sub).unwrap();
        let path = sub.join("image");
        std::fs::write(&path, vec![i; 65536]).unwrap();
        let spec = Spec {
            path: path.clone(),
            read_only: false,
            cache: Cache::Direct,
            block_size: None,
            serial: None,
        };
        (path, Arc::new(Disk::open(&spec).unwrap()))
    });
    let disks: Vec<_> = ends.collect();
    for (i, (_, disk)) in disks.iter().enumerate() {
        disk.set_write_through(i % 2 == 0);
        bench.disk = bench.io.attach(disk).unwrap();
        bench.target = Arc::clone(disk);
        let data = bench.ram.place(4096, 4096, 0);
        bench
            .ram
            .fill(&[data], &[0xa0 + u8::try_from(i).unwrap(); 4096]);
        let write = bench.ram.request(OUT, 8, &[data]);
        assert_eq!(bench.start(&write), Ok(None));
    }
    let ends = bench.drain();
    assert!(ends.len() == 8 && ends.iter().all(|e| e.status == Status::Ok));
    for (i, (path, _)) in disks.iter().enumerate() {
        let mut expected = vec![u8::try_from(i).unwrap(); 65536];
        expected[4096..8192].fill(0xa0 + u8::try_from(i).unwrap());
        assert!(slurp(path) == expected);
    }
}

pub(crate) fn a_file_that_shrank_gives_errors_and_not_bytes<E: Kernel>(make: impl Fn(u32) -> E) {
    let dir = &places()[0];
    let (path, _, disk) = image(dir, 1 << 20, Cache::Direct);
    let mut bench = Bench::new(make(8), disk, 8);
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1 << 19)
        .unwrap();
    let data = bench.ram.place(8192, 4096, 0);
    for sector in [1020, 1024, 2000] {
        let read = bench.ram.request(IN, sector, &[data]);
        let end = bench.run(&read);
        assert_eq!(
            (end.status, end.errno),
            (Status::IoErr, Some(libc::EIO)),
            "sector {sector}"
        );
    }
}

pub(crate) fn a_dropped_engine_finishes_what_it_began_and_closes_its_files<E: Kernel>(
    make: impl Fn(u32) -> E,
) {
    let dir = &places()[0];
    let (path, _, disk) = image(dir, 1 << 20, Cache::Direct);
    let ram = crate::testing::Ram::new(1 << 20);
    let segments = [ram.at(0, 65536)];
    ram.fill(&segments, &[0x5a; 65536]);
    let mut engine = make(16);
    engine
        .set_memory(MemId(0), Some(&Guest::plain(Arc::clone(&ram.mem))))
        .unwrap();
    engine.set_disk(DiskId(0), Some(&disk)).unwrap();
    for i in 0..16 {
        let op = Op {
            verb: Verb::Write,
            disk: DiskId(0),
            durable: false,
            offset: u64::from(i) * 65536,
            len: 65536,
            mem: MemId(0),
            segments: &segments,
            skip: 0,
        };
        engine.push(Token(i), &op).unwrap();
    }
    assert_eq!(
        engine.push(
            Token(16),
            &Op {
                verb: Verb::Sync,
                disk: DiskId(0),
                durable: false,
                offset: 0,
                len: 0,
                mem: MemId(0),
                segments: &[],
                skip: 0,
            }
        ),
        Err(Errno::AGAIN)
    );
    drop(engine);
    assert_eq!(Arc::strong_count(&ram.mem), 1);
    assert!(slurp(&path) == vec![0x5a; 1 << 20]);
    // Nobody holds the image's lock but `disk`.
    drop(disk);
    let spec = Spec {
        path,
        read_only: false,
        cache: Cache::Direct,
        block_size: None,
        serial: None,
    };
    assert!(Disk::open(&spec).is_ok());
}

pub(crate) fn what_is_not_there_is_an_error_of_the_operation<E: Kernel>(make: impl Fn(u32) -> E) {
    let mut engine = make(4);
    let ram = crate::testing::Ram::new(4096);
    let segments = [ram.at(0, 512)];
    let op = Op {
        verb: Verb::Read,
        disk: DiskId(7),
        durable: false,
        offset: 0,
        len: 512,
        mem: MemId(3),
        segments: &segments,
        skip: 0,
    };
    assert_eq!(engine.push(Token(0), &op), Err(Errno::FAULT));
    engine
        .set_memory(MemId(3), Some(&Guest::plain(Arc::clone(&ram.mem))))
        .unwrap();
    for (token, verb) in [(0, Verb::Read), (1, Verb::Sync), (2, Verb::Punch)] {
        engine.push(Token(token), &Op { verb, ..op }).unwrap();
    }
    // In use: the memory stays.
    let busy = engine.set_memory(MemId(3), None).unwrap_err();
    assert_eq!(busy.kind(), io::ErrorKind::ResourceBusy);
    assert_eq!(engine.submit(), 0);
    let mut done = Completions::new();
    while done.len() < 3 {
        engine.reap(&mut done);
    }
    assert!(done.iter().all(|c| c.result == -libc::EBADF), "{done:?}");
    // Segments of another snapshot name nothing here.
    let small = crate::testing::map(&[4096]);
    engine
        .set_memory(MemId(3), Some(&Guest::plain(small)))
        .unwrap();
    let far = crate::testing::map(&[4096, 4096]);
    let segments = [far.lookup(4096, 512, &mut 0).unwrap(); 2];
    let foreign = Op {
        segments: &segments,
        len: 1024,
        ..op
    };
    assert_eq!(engine.push(Token(0), &foreign), Err(Errno::FAULT));
    assert_eq!(engine.submit(), 0);
}

pub(crate) fn block_devices_of_both_sector_sizes_are_served<E: Kernel>(make: impl Fn(u32) -> E) {
    for sector in [512, 4096] {
        let dir = &places()[0];
        let (path, bytes, disk) = image(dir, 1 << 20, Cache::Direct);
        drop(disk);
        let Some(device) = Loop::new(&path, sector) else {
            return;
        };
        let spec = Spec {
            path: device.path().to_owned(),
            read_only: false,
            cache: Cache::Direct,
            block_size: None,
            serial: None,
        };
        let mut bench = Bench::new(make(8), Disk::open(&spec).unwrap(), 8);
        // Aligned, misaligned by a sector, and misaligned altogether.
        let mut expected = bytes;
        for (i, odd) in [0, 512, 1].into_iter().enumerate() {
            let data = [
                bench.ram.place(8192, 4096, odd),
                bench.ram.place(4096, 4096, 0),
            ];
            let read = bench.ram.request(IN, 16, &data);
            assert_eq!(bench.run(&read).status, Status::Ok);
            assert!(bench.ram.bytes(&data) == expected[8192..8192 + 12288]);
            bench.ram.fill(&data, &pattern(12288, 77 + i));
            let at = 64 * (i + 1) * 512;
            let write = bench.ram.request(OUT, 64 * (i as u64 + 1), &data);
            assert_eq!(bench.run(&write).status, Status::Ok);
            expected[at..at + 12288].copy_from_slice(&pattern(12288, 77 + i));
        }
        let zeroes = bench.ram.ranges(WRITE_ZEROES, &[(512, 64, 0), (640, 8, 1)]);
        assert_eq!(bench.run(&zeroes).status, Status::Ok);
        expected[512 * 512..576 * 512].fill(0);
        expected[640 * 512..648 * 512].fill(0);
        let flush = bench.ram.request(FLUSH, 0, &[]);
        assert_eq!(bench.run(&flush).status, Status::Ok);
        assert!(slurp(&path) == expected);
        let discard = bench.ram.ranges(DISCARD, &[(1024, 512, 0)]);
        assert_eq!(bench.run(&discard).status, Status::Ok);
        expected[1024 * 512..1536 * 512].fill(0);
        assert!(slurp(&path) == expected, "a loop device punches holes");
    }
}
