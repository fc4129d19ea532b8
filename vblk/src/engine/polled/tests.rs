//! What goes to which ring.

use std::path::Path;

use super::*;
use crate::config::Cache;
use crate::disk::Spec;
use crate::engine::faulty::{Fault, Faulty};
use crate::engine::memory::Memory;
use crate::engine::router::Router;
use crate::engine::uring::Uring;
use crate::request::Status;
use crate::testing::{Bench, FLUSH, IN, Loop, OUT};

type Rings = Polled<Faulty<Memory>>;

fn rings() -> Rings {
    Polled::new(Faulty::new(Memory::new()), |_| {
        Ok(Faulty::new(Memory::new()))
    })
}

fn seen(engine: &Faulty<Memory>) -> Vec<Verb> {
    engine.seen.iter().map(|s| s.verb).collect()
}

#[test]
fn reads_and_writes_go_to_the_ring_that_polls_and_all_else_to_the_other() {
    for how in [Polling::Device, Polling::Thread] {
        let disk = Disk::ram(1 << 20).polled_by(how);
        let mut bench = Bench::new(rings(), disk, 16);
        let data = [bench.ram.place(4096, 4096, 0)];
        bench.ram.fill(&data, &[7; 4096]);
        let write = bench.ram.request(OUT, 8, &data);
        assert_eq!(bench.run(&write).status, Status::Ok);
        bench.ram.fill(&data, &[0; 4096]);
        let read = bench.ram.request(IN, 8, &data);
        assert_eq!(bench.run(&read).status, Status::Ok);
        assert_eq!(bench.ram.bytes(&data), [7; 4096]);
        let flush = bench.ram.request(FLUSH, 0, &[]);
        assert_eq!(bench.run(&flush).status, Status::Ok);
        let engine = bench.io.engine();
        assert_eq!(seen(&engine.plain), [Verb::Sync]);
        assert_eq!(engine.rings.len(), 1);
        assert_eq!(engine.rings[0].how, how);
        assert_eq!(seen(&engine.rings[0].engine), [Verb::Write, Verb::Read]);
    }
}

#[test]
fn a_disk_that_is_not_polled_has_no_ring_that_polls() {
    let mut bench = Bench::new(rings(), Disk::ram(1 << 20), 16);
    let data = [bench.ram.place(512, 512, 0)];
    let read = bench.ram.request(IN, 0, &data);
    assert_eq!(bench.run(&read).status, Status::Ok);
    assert!(bench.io.engine().rings.is_empty());
    // Beside one that is, it keeps to the ordinary ring.
    let other = std::sync::Arc::new(Disk::ram(1 << 20).polled_by(Polling::Device));
    let other = bench.io.attach(&other).unwrap();
    assert_eq!(bench.run(&read).status, Status::Ok);
    assert_eq!(seen(&bench.io.engine().plain), [Verb::Read; 2]);
    bench.disk = other;
    assert_eq!(bench.run(&read).status, Status::Ok);
    assert_eq!(seen(&bench.io.engine().rings[0].engine), [Verb::Read]);
}

#[test]
fn a_worker_does_not_sleep_while_it_has_to_ask() {
    let disk = Disk::ram(1 << 20).polled_by(Polling::Device);
    let mut bench = Bench::new(rings(), disk, 16);
    assert!(!bench.io.arm());
    bench.io.disarm();
    let ring = &mut bench.io.engine_mut().rings[0].engine;
    ring.expect(Verb::Read, Fault::Hang);
    let data = [bench.ram.place(512, 512, 0)];
    let read = bench.ram.request(IN, 0, &data);
    assert_eq!(bench.start(&read), Ok(None));
    bench.io.submit();
    assert_eq!(bench.io.reap(|_| {}), 0);
    assert!(bench.io.arm());
    bench.io.disarm();
    bench.io.engine_mut().rings[0].engine.let_go();
    bench.drain();
    assert!(!bench.io.arm());
}

#[test]
fn a_ring_that_cannot_be_made_leaves_the_place_clear() {
    let plain = Faulty::new(Memory::new());
    let mut rings = Polled::new(plain, |_| Err(io::ErrorKind::Unsupported.into()));
    let disk = Disk::ram(1 << 20).polled_by(Polling::Device);
    assert!(rings.set_disk(DiskId(3), Some(&disk)).is_err());
    assert_eq!(rings.at[3], Polling::Off);
    let plain = Disk::ram(1 << 20);
    assert!(rings.set_disk(DiskId(3), Some(&plain)).is_ok());
}

fn spec(path: &Path, cache: Cache) -> Spec {
    Spec {
        path: path.to_owned(),
        read_only: false,
        cache,
        block_size: None,
        serial: None,
    }
}

#[test]
fn what_does_not_poll_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let refused = |path: &Path, cache: Cache| {
        let disk = Disk::open(&spec(path, cache)).unwrap();
        disk.polled(path, Polling::Device).unwrap_err().to_string()
    };
    let why = refused(&image, Cache::Buffered);
    assert!(why.contains("not a block device"), "{why}");
    let Some(device) = Loop::new(&image, 512) else {
        return;
    };
    let why = refused(device.path(), Cache::Buffered);
    assert!(why.contains("cache=direct"), "{why}");
    let why = refused(device.path(), Cache::Direct);
    assert!(why.contains("nvme.poll_queues"), "{why}");
    let disk = Disk::open(&spec(device.path(), Cache::Direct)).unwrap();
    assert!(disk.polled(device.path(), Polling::Off).is_ok());
}

/// A loop device does not poll, and the kernel says so: the rings themselves work, and what they
/// are told of reaches the guest.
#[test]
fn rings_that_poll_say_what_the_kernel_says() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let image = dir.path().join("image");
    std::fs::write(&image, vec![5; 1 << 20]).unwrap();
    let Some(device) = Loop::new(&image, 512) else {
        return;
    };
    for how in [Polling::Device, Polling::Thread] {
        let disk = Disk::open(&spec(device.path(), Cache::Direct)).unwrap();
        let engine = Polled::new(Uring::new(64).unwrap(), |how| Uring::polling(how, 64));
        let mut bench = Bench::new(Router::new(engine), disk.polled_by(how), 32);
        let data: Vec<_> = (0..3).map(|_| bench.ram.place(4096, 4096, 0)).collect();
        let read = bench.ram.request(IN, 8, &data);
        let end = bench.run(&read);
        match end.status {
            Status::Ok => assert_eq!(bench.ram.bytes(&data), [5; 3 * 4096]),
            // EOPNOTSUPP, of kernels that refuse rather than wait for the interrupt.
            _ => assert_eq!(end.errno, Some(95), "{end:?}"),
        }
        let flush = bench.ram.request(FLUSH, 0, &[]);
        assert_eq!(bench.run(&flush).status, Status::Ok);
    }
}
