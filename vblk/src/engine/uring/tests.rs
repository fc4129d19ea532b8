//! io_uring on real files.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::event::epoll;

use super::*;
use crate::config::{Cache, GuestMemory};
use crate::disk::{BlockSize, Spec};
use crate::io::Io;
use crate::request::Status;
use crate::testing::{Bench, DISCARD, FLUSH, IN, Loop, OUT, Ram, WRITE_ZEROES};

/// An image of `size` pseudo-random bytes in `dir`, opened as a disk.
fn image(dir: &tempfile::TempDir, size: usize, cache: Cache) -> (PathBuf, Vec<u8>, Disk) {
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
fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len)
        .map(|i| ((i / 512 * salt + i) % 251).to_le_bytes()[0])
        .collect()
}

/// A directory on a real file system, and one on tmpfs.
fn places() -> [tempfile::TempDir; 2] {
    [
        tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap(),
        tempfile::tempdir_in("/dev/shm").unwrap(),
    ]
}

fn slurp(path: &PathBuf) -> Vec<u8> {
    let mut all = Vec::new();
    File::open(path).unwrap().read_to_end(&mut all).unwrap();
    all
}

#[test]
fn requests_of_one_and_many_segments_reach_files_cached_and_direct() {
    for dir in places() {
        for cache in [Cache::Direct, Cache::Buffered] {
            let (path, bytes, disk) = image(&dir, 1 << 20, cache);
            let mut bench = Bench::new(Uring::new(32).unwrap(), disk, 32);
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

/// The modes of [`SETUPS`] that this kernel takes.
fn rings(capacity: u32) -> Vec<Uring> {
    let all = SETUPS
        .iter()
        .filter_map(|setup| Uring::with(capacity, &[*setup]).ok());
    let all: Vec<_> = all.collect();
    assert!(!all.is_empty());
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

#[test]
fn a_sleeping_worker_is_woken_by_a_completion() {
    for ring in rings(8) {
        let dir = &places()[0];
        let (_, bytes, disk) = image(dir, 1 << 20, Cache::Direct);
        let mut bench = Bench::new(ring, disk, 8);
        let bed = Bed::new(bench.io.as_fd());
        let mut slept = 0;
        for round in 0..50 {
            assert!(!bench.io.arm() && !bed.sleep(0));
            bench.io.disarm();
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
}

#[test]
fn completions_that_are_ready_cost_no_system_call() {
    let dir = &places()[1];
    let (_, _, disk) = image(dir, 1 << 20, Cache::Buffered);
    let mut bench = Bench::new(Uring::new(64).unwrap(), disk, 64);
    let data = bench.ram.place(4096, 4096, 0);
    let read = bench.ram.request(IN, 0, &[data]);
    let before = bench.io.engine().enters();
    for _ in 0..32 {
        assert_eq!(bench.start(&read), Ok(None));
    }
    bench.io.submit();
    // tmpfs answers at once: one call for the burst, none to see its end.
    let mut ends = 0;
    bench.io.reap(|f| {
        assert_eq!(f.status, Status::Ok);
        ends += 1;
    });
    assert_eq!((ends, bench.io.engine().enters() - before), (32, 1));
    for _ in 0..100 {
        assert_eq!(bench.io.reap(|_| ()), 0);
    }
    assert_eq!(bench.io.engine().enters() - before, 1);
}

#[test]
fn more_requests_than_the_queue_has_room_for_all_finish() {
    for ring in rings(1024) {
        let dir = &places()[1];
        let (_, bytes, disk) = image(dir, 1 << 20, Cache::Buffered);
        let mut bench = Bench::new(ring, disk, 1024);
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
}

#[test]
fn misaligned_guest_buffers_work_on_direct_files() {
    for dir in places() {
        let (path, bytes, disk) = image(&dir, 1 << 20, Cache::Direct);
        let mut bench = Bench::new(Uring::new(8).unwrap(), disk, 8);
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

#[test]
fn discard_punches_and_zeroes_are_zero() {
    for dir in places() {
        let (path, bytes, disk) = image(&dir, 1 << 20, Cache::Direct);
        assert!(
            disk.limits().discard,
            "no hole punching in {}",
            dir.path().display()
        );
        let mut bench = Bench::new(Uring::new(8).unwrap(), disk, 8);
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

#[test]
fn a_read_only_disk_reads_and_flushes() {
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
    let mut bench = Bench::new(Uring::new(8).unwrap(), Disk::open(&spec).unwrap(), 8);
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

#[test]
fn write_through_and_many_disks_on_one_ring() {
    let dir = &places()[0];
    let mut bench = Bench::new(Uring::new(64).unwrap(), Disk::null(512), 64);
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

#[test]
fn a_file_that_shrank_gives_errors_and_not_bytes() {
    let dir = &places()[0];
    let (path, _, disk) = image(dir, 1 << 20, Cache::Direct);
    let mut bench = Bench::new(Uring::new(8).unwrap(), disk, 8);
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

#[test]
fn what_is_not_there_is_an_error_of_the_operation() {
    let mut ring = Uring::new(4).unwrap();
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
    assert_eq!(ring.push(Token(0), &op), Err(Errno::FAULT));
    ring.set_memory(MemId(3), Some(&Guest::plain(Arc::clone(&ram.mem))))
        .unwrap();
    for (token, verb) in [(0, Verb::Read), (1, Verb::Sync), (2, Verb::Punch)] {
        ring.push(Token(token), &Op { verb, ..op }).unwrap();
    }
    // In use: the memory stays.
    let busy = ring.set_memory(MemId(3), None).unwrap_err();
    assert_eq!(busy.kind(), io::ErrorKind::ResourceBusy);
    assert_eq!(ring.submit(), 0);
    let mut done = Completions::new();
    while done.len() < 3 {
        ring.reap(&mut done);
    }
    assert!(done.iter().all(|c| c.result == -libc::EBADF), "{done:?}");
    // Segments of another snapshot name nothing here.
    let small = crate::testing::map(&[4096]);
    ring.set_memory(MemId(3), Some(&Guest::plain(small)))
        .unwrap();
    let far = crate::testing::map(&[4096, 4096]);
    let segments = [far.lookup(4096, 512, &mut 0).unwrap(); 2];
    let foreign = Op {
        segments: &segments,
        len: 1024,
        ..op
    };
    assert_eq!(ring.push(Token(0), &foreign), Err(Errno::FAULT));
    assert!(ring.arena.is_empty());
    assert_eq!(ring.submit(), 0);
    assert!(Uring::new(0).is_err() && Uring::new(MAX_CAPACITY + 1).is_err());
}

#[test]
fn a_dropped_ring_finishes_what_it_began_and_closes_its_files() {
    let dir = &places()[0];
    let (path, _, disk) = image(dir, 1 << 20, Cache::Direct);
    let ram = crate::testing::Ram::new(1 << 20);
    let segments = [ram.at(0, 65536)];
    ram.fill(&segments, &[0x5a; 65536]);
    let mut ring = Uring::new(16).unwrap();
    ring.set_memory(MemId(0), Some(&Guest::plain(Arc::clone(&ram.mem))))
        .unwrap();
    ring.set_disk(DiskId(0), Some(&disk)).unwrap();
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
        ring.push(Token(i), &op).unwrap();
    }
    assert_eq!(
        ring.push(
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
    drop(ring);
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

#[test]
fn io_and_engine_are_made_on_the_worker_they_serve() {
    // A ring made by one thread is of no use to another; each worker makes its own.
    let handles = (0..2).map(|_| {
        std::thread::spawn(|| {
            let dir = tempfile::tempdir_in("/dev/shm").unwrap();
            let (_, bytes, disk) = image(&dir, 1 << 16, Cache::Buffered);
            let mut bench = Bench::new(Uring::new(8).unwrap(), disk, 8);
            let data = bench.ram.place(512, 512, 0);
            let read = bench.ram.request(IN, 3, &[data]);
            assert_eq!(bench.run(&read).status, Status::Ok);
            assert_eq!(bench.ram.bytes(&[data]), bytes[1536..2048]);
            let _: &Io<Uring> = &bench.io;
        })
    });
    handles
        .collect::<Vec<_>>()
        .into_iter()
        .for_each(|h| h.join().unwrap());
}

#[test]
fn block_devices_of_both_sector_sizes_are_served() {
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
        let mut bench = Bench::new(Uring::new(8).unwrap(), Disk::open(&spec).unwrap(), 8);
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

/// Ram over `sizes`, registered.
fn registered(sizes: &[u64]) -> (Ram, Guest) {
    let ram = Ram::of(crate::testing::map(sizes));
    let guest = Guest::prepare(Arc::clone(&ram.mem), GuestMemory::Auto);
    assert!(
        guest.is_registered(),
        "root, or RLIMIT_MEMLOCK above {sizes:?}, and Linux 6.13"
    );
    (ram, guest)
}

#[test]
fn registered_memory_is_used_where_a_buffer_holds_it_all() {
    for cache in [Cache::Direct, Cache::Buffered] {
        for ring in rings(8) {
            let dir = &places()[0];
            let (path, mut expected, disk) = image(dir, 1 << 20, cache);
            let (ram, guest) = registered(&[8 << 20, 1 << 20]);
            let mut bench = Bench::with(ring, disk, 8, ram, &guest);
            let mem = usize::from(bench.mem.0);
            let buffer = |bench: &Bench<Uring>, piece| {
                let engine = bench.io.engine();
                engine.mems[mem].as_ref().unwrap().address(piece).unwrap().1
            };
            let far = bench.ram.at(8 << 20, 4096);
            let near: Vec<_> = (0..4).map(|_| bench.ram.place(4096, 8192, 0)).collect();
            assert_eq!(
                (buffer(&bench, near[0]), buffer(&bench, far)),
                (Some(0), Some(1))
            );
            // One piece, several of one buffer, several of two.
            for data in [vec![near[0]], near.clone(), vec![near[0], far, near[1]]] {
                let len = data.len() * 4096;
                let read = bench.ram.request(IN, 64, &data);
                assert_eq!(bench.run(&read).status, Status::Ok);
                assert!(bench.ram.bytes(&data) == expected[32768..32768 + len]);
                bench.ram.fill(&data, &pattern(len, len));
                let write = bench.ram.request(OUT, 64, &data);
                assert_eq!(bench.run(&write).status, Status::Ok);
                expected[32768..32768 + len].copy_from_slice(&pattern(len, len));
                assert!(slurp(&path) == expected);
            }
        }
    }
}

#[test]
fn registrations_come_and_go_without_a_trace() {
    let mut ring = Uring::new(4).unwrap();
    let guests: Vec<_> = (1..4).map(|n| registered(&vec![1 << 16; n]).1).collect();
    for round in 0..300_u16 {
        for (i, guest) in guests.iter().enumerate() {
            let id = MemId(u16::try_from(i).unwrap());
            ring.set_memory(id, Some(guest)).unwrap();
        }
        assert_eq!(ring.places.iter().filter(|taken| **taken).count(), 6);
        // Not in the order they came in.
        for i in [1, 0, 2] {
            ring.set_memory(MemId((i + round) % 3), None).unwrap();
        }
        assert!(ring.places.iter().all(|taken| !taken));
    }
    // Two workers borrow from one registration; it ends with the last of them.
    let (ram, guest) = registered(&[1 << 16]);
    let mut other = Uring::new(4).unwrap();
    ring.set_memory(MemId(0), Some(&guest)).unwrap();
    other.set_memory(MemId(0), Some(&guest)).unwrap();
    drop(guest);
    drop(ring);
    other.set_memory(MemId(0), None).unwrap();
    drop(other);
    assert_eq!(Arc::strong_count(&ram.mem), 1);
}

#[test]
fn the_policy_decides_what_is_registered() {
    let is =
        |sizes: &[u64], policy| Guest::prepare(crate::testing::map(sizes), policy).is_registered();
    assert!(is(&[1 << 20], GuestMemory::Auto));
    assert!(is(&[1 << 20], GuestMemory::Registered));
    assert!(!is(&[1 << 20], GuestMemory::Plain));
    assert!(!is(&[1 << 29, 1 << 30], GuestMemory::Auto));
    assert!(!is(&[], GuestMemory::Registered));
}
