//! The gate and its two sides, on real files.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::config::Cache;
use crate::disk::{Disk, Spec};
use crate::engine::uring::Uring;
use crate::keeper::Keeper;
use crate::testing::{Bench, DISCARD, IN, OUT, WRITE_ZEROES};

const CHUNKS: u64 = 3;
/// Not a whole number of chunks, nor of pages.
const SIZE: u64 = CHUNKS * CHUNK + 512;
const PATIENCE: Duration = Duration::from_secs(60);

/// What is at `offset` of a fresh image.
fn pattern(offset: u64, len: usize) -> Vec<u8> {
    (offset..)
        .map(|i| ((i / 512 * 31 + i) % 251).to_le_bytes()[0])
        .take(len)
        .collect()
}

struct Scene {
    _dir: tempfile::TempDir,
    path: PathBuf,
    bench: Bench<Uring>,
}

impl Scene {
    fn new() -> Scene {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("image");
        let whole = usize::try_from(SIZE).unwrap();
        File::create(&path)
            .unwrap()
            .write_all(&pattern(0, whole))
            .unwrap();
        let disk = open(&path, Cache::Buffered);
        let bench = Bench::new(Uring::new(16).unwrap(), disk, 16);
        let scene = Scene {
            _dir: dir,
            path,
            bench,
        };
        scene.resident().set_limit(1 << 30);
        scene
    }

    fn resident(&self) -> Arc<Resident> {
        Arc::clone(self.bench.target.resident().unwrap())
    }

    /// Read `len` bytes at `offset`; were they copied, and what are they?
    fn read(&mut self, offset: u64, len: u32) -> (bool, Vec<u8>) {
        let half = len / 2;
        let data = [
            self.bench.ram.place(half, 512, 0),
            self.bench.ram.place(len - half, 512, 512),
        ];
        let laid = self.bench.ram.request(IN, offset / 512, &data);
        let before = self.bench.copied;
        let end = self.bench.run(&laid);
        assert_eq!((end.written, end.bytes), (len + 1, u64::from(len)));
        (self.bench.copied > before, self.bench.ram.bytes(&data))
    }

    /// The same, of what is expected there.
    fn reads(&mut self, offset: u64, expected: &[u8]) -> bool {
        let (copied, bytes) = self.read(offset, u32::try_from(expected.len()).unwrap());
        assert!(bytes == expected, "other bytes at {offset}");
        copied
    }
}

fn open(path: &Path, cache: Cache) -> Disk {
    let spec = Spec {
        path: path.to_owned(),
        read_only: false,
        cache,
        block_size: None,
        serial: None,
    };
    Disk::open(&spec).unwrap()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_was_read_is_copied_from_then_on_and_is_always_the_files() {
    let mut scene = Scene::new();
    let resident = scene.resident();
    let (a, b) = (pattern(0, 4096), pattern(CHUNK - 1024, 4096));
    assert!(
        !scene.reads(0, &a) && !scene.reads(CHUNK - 1024, &b),
        "shut"
    );
    assert!(resident.is_asked() && resident.open());
    assert!(!scene.reads(0, &a), "cold");
    resident.promote().unwrap();
    assert_eq!(resident.locked(), 2 * CHUNK);
    assert!(scene.reads(0, &a) && scene.reads(CHUNK - 1024, &b), "hot");
    let end = SIZE - 1024;
    assert!(!scene.reads(end, &pattern(end, 1024)), "another chunk");
    resident.promote().unwrap();
    assert!(scene.reads(end, &pattern(end, 1024)), "the last block");
    // Writes go to the same pages, whoever wrote.
    let new = scene.bench.ram.put(&[0xee; 4096]);
    let write = scene.bench.ram.request(OUT, 8, &[new]);
    assert_eq!(scene.bench.run(&write).bytes, 4096);
    assert!(scene.reads(4096, &[0xee; 4096]));
    resident.close();
    assert!(!scene.reads(0, &a) && resident.locked() == 0);
}

#[test]
fn no_more_is_locked_than_the_limit_allows() {
    let mut scene = Scene::new();
    let resident = scene.resident();
    resident.set_limit(CHUNK - 1);
    assert!(!resident.open(), "nothing to open for");
    resident.set_limit(2 * CHUNK - 1);
    assert!(resident.open());
    for chunk in 0..CHUNKS {
        scene.reads(chunk * CHUNK, &pattern(chunk * CHUNK, 512));
    }
    resident.promote().unwrap();
    assert_eq!(resident.locked(), CHUNK);
    assert!(resident.is_safe());
    resident.set_limit(0);
    assert!(!resident.is_safe(), "the keeper closes it");
}

#[test]
fn what_is_not_in_the_page_cache_is_not_waited_for() {
    let mut scene = Scene::new();
    let resident = scene.resident();
    assert!(resident.open());
    scene.reads(0, &pattern(0, 512));
    let file = scene.bench.target.file().unwrap();
    rustix::fs::fsync(file).unwrap();
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    resident.promote().unwrap();
    assert_eq!(resident.locked(), 0);
}

#[test]
fn deallocated_blocks_are_cold_and_a_reader_holds_deallocation_up() {
    for kind in [DISCARD, WRITE_ZEROES] {
        let mut scene = Scene::new();
        let resident = scene.resident();
        assert!(resident.open());
        for chunk in 0..2 {
            scene.reads(chunk * CHUNK, &pattern(chunk * CHUNK, 4096));
        }
        resident.promote().unwrap();
        assert_eq!(resident.locked(), 2 * CHUNK);
        resident.readers.fetch_add(1, SeqCst);
        let laid = scene.bench.ram.ranges(kind, &[(0, 8, 0)]);
        assert_eq!(scene.bench.start(&laid), Ok(None));
        for _ in 0..10 {
            scene.bench.io.submit();
            scene.bench.io.reap(|_| panic!("a reader is there"));
        }
        // Through the kernel meanwhile, be it hot.
        let laid_in = scene.bench.ram.place(512, 512, 0);
        let read = scene.bench.ram.request(IN, 2 * CHUNK / 512, &[laid_in]);
        assert_eq!(scene.bench.start(&read), Ok(None));
        resident.readers.fetch_sub(1, SeqCst);
        let ends = scene.bench.drain();
        assert!(ends.len() == 2 && ends.iter().all(|e| e.errno.is_none()));
        assert_eq!(resident.locked(), CHUNK);
        assert!(!scene.reads(0, &[0; 4096]), "cold");
        assert!(scene.reads(CHUNK, &pattern(CHUNK, 4096)), "still hot");
    }
}

#[test]
fn only_files_through_the_page_cache_have_pages_to_keep() {
    let scene = Scene::new();
    let path = scene.path.clone();
    drop(scene.bench);
    assert!(open(&path, Cache::Direct).resident().is_none());
}

#[test]
fn the_keeper_opens_promotes_and_lets_others_in() {
    let mut scene = Scene::new();
    let resident = scene.resident();
    let keeper = Keeper::default();
    keeper.add(&resident);
    keeper.add(&resident);
    let bytes = pattern(0, 4096);
    eventually("copied", || scene.reads(0, &bytes));
    assert_eq!(resident.locked(), CHUNK);
    // Somebody else opens the file: the keeper lets go, and takes it up again afterwards.
    let theirs = File::open(&scene.path).unwrap();
    assert!(!resident.window.leased() && resident.locked() == 0);
    assert!(!scene.reads(0, &bytes), "through the kernel");
    drop(theirs);
    eventually("copied again", || scene.reads(0, &bytes));
    drop(keeper);
    assert!(!scene.reads(0, &bytes) && resident.locked() == 0);
}

#[test]
fn nothing_is_taken_away_under_a_reader() {
    let mut scene = Scene::new();
    let resident = scene.resident();
    let other = {
        let resident = Arc::clone(&resident);
        std::thread::spawn(move || {
            let mut rounds = 0;
            while Arc::strong_count(&resident) > 2 {
                if resident.open() {
                    let _ = resident.promote();
                    rounds += 1;
                    resident.close();
                }
            }
            rounds
        })
    };
    let (zero, ones) = (vec![0; 4096], vec![1; 4096]);
    let page = scene.bench.ram.put(&ones);
    for _ in 0..300 {
        let write = scene.bench.ram.request(OUT, 0, &[page]);
        assert_eq!(scene.bench.run(&write).bytes, 4096);
        scene.reads(0, &ones);
        let laid = scene.bench.ram.ranges(DISCARD, &[(0, 8, 0)]);
        assert_eq!(scene.bench.run(&laid).errno, None);
        scene.reads(0, &zero);
    }
    drop(resident);
    assert!(other.join().unwrap() > 0);
}
