//! Block devices, alone and striped, against what is then in the files under them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::config::Cache;
use crate::disk::{Serial, Spec};
use crate::engine::uring::Uring;
use crate::request::Status;
use crate::storage::stripe::Stripe;
use crate::testing::{Bench, DISCARD, FLUSH, IN, Loop, OUT, WRITE_ZEROES};

const SIZE: u64 = 4 << 20;

fn image(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    File::create(&path).unwrap().set_len(SIZE).unwrap();
    path
}

fn open(device: &Loop) -> Disk {
    let spec = Spec {
        path: device.path().to_owned(),
        read_only: false,
        cache: Cache::Direct,
        block_size: None,
        serial: None,
    };
    Disk::open(&spec).unwrap()
}

/// Write, zero and discard here and there; what the disk must hold then, and where it may hold
/// anything.
fn work(bench: &mut Bench<Router<Uring>>, size: u64) -> (Vec<u8>, std::ops::Range<usize>) {
    let mut model = vec![0; usize::try_from(size).unwrap()];
    // From whole pages to what O_DIRECT cannot take, which goes through a bounce buffer.
    for (i, (sector, len, odd)) in [(0, 65536, 0), (800, 131_072, 512), (3000, 8192, 3)]
        .into_iter()
        .enumerate()
    {
        let data = [
            bench.ram.place(len / 2, 4096, odd),
            bench.ram.place(len / 2, 4096, odd),
        ];
        let bytes: Vec<u8> = (0..len).map(|n| (n >> 4).to_le_bytes()[0] ^ 0x55).collect();
        bench.ram.fill(&data, &bytes);
        bench.target.set_write_through(i == 1);
        let write = bench.ram.request(OUT, sector, &data);
        assert_eq!(bench.run(&write).status, Status::Ok);
        let at = usize::try_from(sector * 512).unwrap();
        model[at..at + bytes.len()].copy_from_slice(&bytes);
        bench.ram.fill(&data, &vec![0; bytes.len()]);
        let read = bench.ram.request(IN, sector, &data);
        assert_eq!(bench.run(&read).status, Status::Ok);
        assert!(bench.ram.bytes(&data) == bytes);
    }
    for (sector, sectors, unmap) in [(8, 16, 0), (840, 64, 1)] {
        let zero = bench.ram.ranges(WRITE_ZEROES, &[(sector, sectors, unmap)]);
        assert_eq!(bench.run(&zero).status, Status::Ok);
        let at = usize::try_from(sector * 512).unwrap();
        model[at..at + sectors as usize * 512].fill(0);
    }
    let discard = bench.ram.ranges(DISCARD, &[(64, 64, 0)]);
    assert_eq!(bench.run(&discard).status, Status::Ok);
    let flush = bench.ram.request(FLUSH, 0, &[]);
    assert_eq!(bench.run(&flush).status, Status::Ok);
    (model, 64 * 512..128 * 512)
}

fn bench(disk: Disk) -> Bench<Router<Uring>> {
    Bench::new(Router::new(Uring::new(64).unwrap()), disk, 32)
}

#[test]
fn a_device_does_what_was_asked_with_small_and_large_sectors() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    for sector in [512, 4096] {
        let path = image(dir.path(), &sector.to_string());
        let Some(device) = Loop::new(&path, sector) else {
            return;
        };
        let mut bench = bench(open(&device));
        let (model, anything) = work(&mut bench, SIZE);
        drop(bench);
        let bytes = std::fs::read(&path).unwrap();
        let differs = (0..model.len()).find(|i| bytes[*i] != model[*i] && !anything.contains(i));
        assert_eq!(differs, None, "sectors of {sector}");
    }
}

#[test]
fn a_stripe_of_devices_spreads_chunks_over_them() {
    const CHUNK: usize = 65536;
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let paths: Vec<_> = ["a", "b", "c", "d"]
        .iter()
        .map(|n| image(dir.path(), n))
        .collect();
    let devices: Option<Vec<Loop>> = paths.iter().map(|p| Loop::new(p, 512)).collect();
    let Some(devices) = devices else {
        return;
    };
    let disks = devices.iter().map(|d| Arc::new(open(d))).collect();
    let disk = Stripe::disk(disks, CHUNK as u64, Serial::new("s").unwrap()).unwrap();
    assert!(disk.trims() && disk.size() == 4 * SIZE);
    let mut bench = bench(disk);
    let (model, anything) = work(&mut bench, 4 * SIZE);
    drop(bench);
    let files: Vec<Vec<u8>> = paths.iter().map(|p| std::fs::read(p).unwrap()).collect();
    for (n, chunk) in model.chunks(CHUNK).enumerate() {
        let at = n / 4 * CHUNK;
        let stored = &files[n % 4][at..at + CHUNK];
        let differs =
            (0..CHUNK).find(|i| stored[*i] != chunk[*i] && !anything.contains(&(n * CHUNK + i)));
        assert_eq!(differs, None, "chunk {n}");
    }
}
