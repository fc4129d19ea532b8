//! io_uring on real files.

use super::*;
use crate::config::{Cache, GuestMemory};
use crate::engine::contract::{self, image, pattern, places, slurp};
use crate::io::Io;
use crate::request::Status;
use crate::testing::{Bench, IN, OUT, Ram};

contract::contract!(|capacity| Uring::new(capacity).unwrap());

/// The modes of [`SETUPS`] that this kernel takes.
fn rings(capacity: u32) -> Vec<Uring> {
    let all = SETUPS
        .iter()
        .filter_map(|setup| Uring::with(capacity, &[*setup]).ok());
    let all: Vec<_> = all.collect();
    assert!(!all.is_empty());
    all
}

#[test]
fn every_mode_wakes_its_worker_and_takes_more_than_its_queue_has_room_for() {
    for setup in SETUPS {
        if Uring::with(8, &[setup]).is_ok() {
            let make = |capacity| Uring::with(capacity, &[setup]).unwrap();
            contract::a_sleeping_worker_is_woken_by_a_completion(make);
            contract::more_requests_than_the_queue_has_room_for_all_finish(make);
        }
    }
}

#[test]
fn a_refused_operation_leaves_no_pieces_and_a_capacity_has_bounds() {
    let mut ring = Uring::new(4).unwrap();
    let small = crate::testing::map(&[4096]);
    ring.set_memory(MemId(3), Some(&Guest::plain(small)))
        .unwrap();
    let far = crate::testing::map(&[4096, 4096]);
    let segments = [far.lookup(4096, 512, &mut 0).unwrap(); 2];
    let foreign = Op {
        verb: Verb::Read,
        disk: DiskId(7),
        durable: false,
        offset: 0,
        len: 1024,
        mem: MemId(3),
        segments: &segments,
        skip: 0,
    };
    assert_eq!(ring.push(Token(0), &foreign), Err(Errno::FAULT));
    assert!(ring.arena.is_empty());
    assert!(Uring::new(0).is_err() && Uring::new(MAX_CAPACITY + 1).is_err());
}

#[test]
fn the_kernel_refuses_what_a_worker_never_asks_for() {
    let mut ring = Uring::new(4).unwrap();
    let file = tempfile::tempfile().unwrap();
    ring.set_file(DiskId(0), file.as_fd()).unwrap();
    let path = c"/dev/null";
    let mut refused = |entry: squeue::Entry| {
        // SAFETY: the memory named is static, or the kernel refuses before it looks.
        unsafe { ring.ring.submission().push(&entry) }.unwrap();
        ring.ring.submit_and_wait(1).unwrap();
        let end = ring.ring.completion().next().unwrap();
        end.result()
    };
    let (fixed, plain) = (types::Fixed(0), types::Fd(file.as_raw_fd()));
    let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build();
    for (what, entry) in [
        ("openat", open),
        ("nop", opcode::Nop::new().build()),
        (
            "accept",
            opcode::Accept::new(fixed, std::ptr::null_mut(), std::ptr::null_mut()).build(),
        ),
        ("truncate", opcode::Ftruncate::new(fixed, 0).build()),
        (
            "a file that was not registered",
            opcode::Fsync::new(plain).build(),
        ),
        (
            "a flag that no worker sets",
            opcode::Fsync::new(fixed)
                .build()
                .flags(squeue::Flags::IO_DRAIN),
        ),
    ] {
        assert_eq!(refused(entry), -libc::EACCES, "{what}");
    }
    assert_eq!(refused(opcode::Fsync::new(fixed).build()), 0);
    let submitter = ring.ring.submitter();
    for error in [
        submitter.register_files(&[-1]).unwrap_err(),
        submitter.register_eventfd(file.as_raw_fd()).unwrap_err(),
        submitter
            .register_probe(&mut io_uring::Probe::new())
            .unwrap_err(),
        submitter.register_restrictions(&mut []).unwrap_err(),
    ] {
        let errno = error.raw_os_error();
        let refused = matches!(errno, Some(libc::EACCES | libc::EBADFD));
        assert!(refused, "{error}");
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
