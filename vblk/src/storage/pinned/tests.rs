//! Files on ext4 over a loop device, and the corruptions that must not happen.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;

use super::*;
use crate::config::Cache;
use crate::engine::router::Router;
use crate::engine::uring::Uring;
use crate::request::Status;
use crate::testing::{Bench, FLUSH, IN, Loop, OUT, WRITE_ZEROES};

const SIZE: usize = 8 << 20;

/// A mounted ext4, taken apart again when dropped.
struct Mounted {
    at: PathBuf,
    device: Option<Loop>,
    _dir: tempfile::TempDir,
}

fn run(program: &str, args: &[&str]) -> bool {
    let status = Command::new(program).args(args).status();
    status.is_ok_and(|s| s.success())
}

impl Mounted {
    fn new() -> Option<Mounted> {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let image = dir.path().join("ext4.img");
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let device = Loop::new(&image, 512)?;
        let at = dir.path().join("mnt");
        fs::create_dir(&at).unwrap();
        let (path, to) = (device.path().to_str().unwrap(), at.to_str().unwrap());
        if !run("mkfs.ext4", &["-q", "-b", "4096", path]) || !run("mount", &[path, to]) {
            println!("skipped: cannot make and mount an ext4 here");
            return None;
        }
        Some(Mounted {
            at,
            device: Some(device),
            _dir: dir,
        })
    }

    /// A file of `SIZE` bytes, each written.
    fn written(&self) -> PathBuf {
        let path = self.at.join("disk.img");
        fs::write(&path, pattern(0)).unwrap();
        path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = run("umount", &[self.at.to_str().unwrap()]);
        assert!(unmounted || std::thread::panicking());
        if let Some(device) = self.device.take() {
            // What was written past the file system did it no harm.
            let sound = run("e2fsck", &["-f", "-n", device.path().to_str().unwrap()]);
            assert!(sound || std::thread::panicking());
        }
    }
}

fn pattern(seed: u8) -> Vec<u8> {
    (0..SIZE)
        .map(|i| (i >> 9).to_le_bytes()[0] ^ (i >> 17).to_le_bytes()[0] ^ seed)
        .collect()
}

fn spec(path: &Path) -> Spec {
    Spec {
        path: path.to_owned(),
        read_only: false,
        cache: Cache::Direct,
        block_size: None,
        serial: None,
    }
}

fn disk(path: &Path) -> Result<Disk, PinError> {
    Pinned::disk(&spec(path), Serial::new("pinned").unwrap())
}

fn refusal(path: &Path) -> String {
    disk(path).unwrap_err().to_string()
}

fn bench(path: &Path) -> Bench<Router<Uring>> {
    Bench::new(
        Router::new(Uring::new(64).unwrap()),
        disk(path).unwrap(),
        32,
    )
}

fn write(bench: &mut Bench<Router<Uring>>, sector: u64, bytes: &[u8]) {
    let data = [bench
        .ram
        .place(u32::try_from(bytes.len()).unwrap(), 4096, 0)];
    bench.ram.fill(&data, bytes);
    let request = bench.ram.request(OUT, sector, &data);
    assert_eq!(bench.run(&request).status, Status::Ok);
}

fn read(bench: &mut Bench<Router<Uring>>, sector: u64, len: u32) -> Vec<u8> {
    let data = [bench.ram.place(len, 4096, 0)];
    let request = bench.ram.request(IN, sector, &data);
    assert_eq!(bench.run(&request).status, Status::Ok);
    bench.ram.bytes(&data)
}

fn is_pinned(path: &Path) -> bool {
    let file = fs::File::open(path).unwrap();
    rustix::fs::ioctl_getflags(&file)
        .unwrap()
        .contains(IFlags::IMMUTABLE)
}

#[test]
fn what_is_written_past_the_file_system_is_read_through_it_afterwards() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    let path = mounted.written();
    // Corruption A: pages of the file in the cache would hide what is written past them.
    assert!(fs::read(&path).unwrap() == pattern(0));
    let mut bench = bench(&path);
    assert!(is_pinned(&path));
    assert!(read(&mut bench, 0, 65536) == pattern(0)[..65536]);
    let new = pattern(9);
    for at in (0..SIZE).step_by(1 << 20) {
        write(&mut bench, at as u64 / 512, &new[at..at + (1 << 20)]);
    }
    let zero = bench.ram.ranges(WRITE_ZEROES, &[(16, 32, 0)]);
    assert_eq!(bench.run(&zero).status, Status::Ok);
    let flush = bench.ram.request(FLUSH, 0, &[]);
    assert_eq!(bench.run(&flush).status, Status::Ok);
    let mut expected = new;
    expected[16 * 512..48 * 512].fill(0);
    // It was the device that was written, not the file.
    let Storage::Pinned(pinned) = bench.target.storage() else {
        unreachable!()
    };
    assert!(!pinned.watch().is_broken());
    drop(bench);
    assert!(!is_pinned(&path));
    assert!(fs::read(&path).unwrap() == expected);
}

#[test]
fn a_file_with_bytes_that_were_never_written_is_refused() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    // Corruption B: an allocated extent reads as zeroes whatever is put into its blocks.
    let allocated = mounted.at.join("allocated.img");
    let file = fs::File::create(&allocated).unwrap();
    let mode = rustix::fs::FallocateFlags::empty();
    rustix::fs::fallocate(&file, mode, 0, SIZE as u64).unwrap();
    drop(file);
    let text = refusal(&allocated);
    assert!(
        text.contains("are unwritten") && text.contains("serve it with map=file"),
        "{text}"
    );
    assert!(!is_pinned(&allocated));
    let holes = mounted.at.join("holes.img");
    fs::File::create(&holes)
        .unwrap()
        .set_len(SIZE as u64)
        .unwrap();
    assert!(refusal(&holes).contains("a hole at 0"));
    let file = fs::OpenOptions::new().write(true).open(&holes).unwrap();
    file.write_all_at(&[1; 8192], 0).unwrap();
    drop(file);
    assert!(refusal(&holes).contains("a hole at 8192"));
    assert!(!is_pinned(&holes));
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = elsewhere.path().join("tmpfs.img");
    fs::write(&path, vec![1; SIZE]).unwrap();
    assert!(refusal(&path).contains("only a regular file on ext4"));
}

#[test]
fn the_blocks_cannot_be_taken_from_under_a_disk() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    let path = mounted.written();
    let before = fs::OpenOptions::new().write(true).open(&path).unwrap();
    // Whoever can write it can have ext4 move its blocks (EXT4_IOC_MOVE_EXT), pinned or not.
    assert!(refusal(&path).contains("somebody else has it open"));
    assert!(!is_pinned(&path));
    drop(before);
    let mut bench = bench(&path);
    // Corruption C: the blocks of a file that is gone belong to somebody else.
    assert!(fs::remove_file(&path).is_err());
    assert!(fs::rename(&path, mounted.at.join("moved.img")).is_err());
    let readable = fs::File::open(&path).unwrap();
    assert!(readable.set_len(0).is_err());
    assert!(fs::OpenOptions::new().write(true).open(&path).is_err());
    write(&mut bench, 0, &[5; 4096]);
    drop(bench);
    drop(readable);
    assert!(fs::read(&path).unwrap()[..4096] == [5; 4096]);
}

#[test]
fn when_the_pin_is_taken_away_the_disk_goes_on_through_its_file() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    let path = mounted.written();
    let mut bench = bench(&path);
    write(&mut bench, 8, &[1; 4096]);
    assert!(run("chattr", &["-i", path.to_str().unwrap()]));
    let Storage::Pinned(pinned) = bench.target.storage() else {
        unreachable!()
    };
    let watch = Arc::clone(pinned.watch());
    while !watch.is_broken() {
        std::thread::yield_now();
    }
    assert!(watch.is_unsettled(), "something may be in flight");
    pinned.settle();
    assert!(!watch.is_unsettled());
    // The blocks may now move: what is written from here on goes to wherever they are.
    let copy = mounted.at.join("other.img");
    fs::write(&copy, vec![3; SIZE]).unwrap();
    write(&mut bench, 16, &[2; 4096]);
    let flush = bench.ram.request(FLUSH, 0, &[]);
    assert_eq!(bench.run(&flush).status, Status::Ok);
    assert!(read(&mut bench, 8, 4096) == [1; 4096]);
    // The file's own cache agrees, which it did not if the device had been written.
    let file = fs::read(&path).unwrap();
    assert!(file[4096..8192] == [1; 4096] && file[8192..12288] == [2; 4096]);
    drop(bench);
    assert!(fs::read(&copy).unwrap() == vec![3; SIZE]);
}

#[test]
fn a_map_that_changed_under_the_flag_is_noticed() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    let disk = disk(&mounted.written()).unwrap();
    let Storage::Pinned(pinned) = disk.storage() else {
        unreachable!()
    };
    assert_eq!(still_holds(&pinned.file, &pinned.pieces, true), Ok(()));
    let mut moved = pinned.pieces.to_vec();
    moved[0].physical += 4096;
    assert_eq!(still_holds(&pinned.file, &moved, false), Ok(()));
    let seen = still_holds(&pinned.file, &moved, true);
    assert_eq!(seen, Err("its extents moved"));
}

#[test]
fn a_killed_daemons_pin_is_found_again_and_an_operators_is_left_alone() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    let path = mounted.written();
    let file = Disk::open(&spec(&path)).unwrap();
    pin(&file, &path).unwrap();
    drop(file);
    assert!(is_pinned(&path));
    drop(disk(&path).unwrap());
    assert!(!is_pinned(&path));
    assert!(run("chattr", &["+i", path.to_str().unwrap()]));
    assert!(refusal(&path).contains("somebody made it immutable"));
    assert!(is_pinned(&path));
    assert!(run("chattr", &["-i", path.to_str().unwrap()]));
}
