//! Opening disks: what is accepted, and what the errors say.

use std::fs::File;

use rustix::fs::{FileType, Mode};

use super::lock::{family, is_locked, lock_holder, locks_byte, mounted};
use super::*;
use crate::config::Cache;
use crate::engine::Verb;
use crate::testing::Loop;

fn dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap()
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

fn image(dir: &tempfile::TempDir, size: u64) -> Spec {
    let path = dir.path().join("image.raw");
    File::create(&path).unwrap().set_len(size).unwrap();
    spec(&path)
}

#[test]
fn a_file_is_opened_with_what_its_file_system_tells() {
    let dir = dir();
    let spec = image(&dir, 1 << 20);
    let disk = Disk::open(&spec).unwrap();
    assert_eq!(
        (disk.size(), disk.direct(), disk.read_only()),
        (1 << 20, true, false)
    );
    assert!(disk.physical() >= disk.block() && !disk.trims() && !disk.is_null());
    assert_eq!(&disk.serial().bytes()[..10], b"image.raw\0");
    let limits = disk.limits();
    assert_eq!((limits.capacity, limits.block), (1 << 20, disk.block()));
    // O_DIRECT asked for an alignment, and it is heeded.
    assert!(disk.takes(4096, 4096) && !disk.takes(4097, 4096) && !disk.takes(4096, 100));
    drop(disk);
    let buffered = Disk::open(&Spec {
        cache: Cache::Buffered,
        block_size: Some(BlockSize::PAGE),
        serial: Some(Serial::new("S-1").unwrap()),
        ..spec
    });
    let disk = buffered.unwrap();
    assert!(disk.takes(4097, 100) && !disk.direct());
    assert_eq!(
        (disk.block(), &disk.serial().bytes()[..4]),
        (BlockSize::PAGE, &b"S-1\0"[..])
    );
}

#[test]
fn what_is_not_a_disk_is_named() {
    let dir = dir();
    let says = |path: &Path| Disk::open(&spec(path)).unwrap_err().to_string();
    assert!(says(dir.path()).contains("is a directory"));
    assert!(says(Path::new("/dev/null")).contains("is a character device"));
    let fifo = dir.path().join("fifo");
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, mode, 0).unwrap();
    assert!(says(&fifo).contains("is a pipe"));
    let gone = says(&dir.path().join("gone"));
    assert!(
        gone.contains("cannot find") && gone.contains("gone: No such file"),
        "{gone}"
    );
    let small = Disk::open(&image(&dir, 511)).unwrap_err();
    assert!(
        small
            .to_string()
            .contains("has 511 bytes, less than one block of 512"),
        "{small}"
    );
}

#[test]
fn a_file_system_without_o_direct_is_pointed_to_the_page_cache() {
    // procfs files are regular ones that O_DIRECT is refused on.
    let error = Disk::open(&spec(Path::new("/proc/version"))).unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, DiskError::NoDirect { .. }) && text.contains("use cache=buffered"),
        "{text}"
    );
}

#[test]
fn a_part_of_a_block_is_not_served() {
    let dir = dir();
    let mut spec = image(&dir, (1 << 20) + 513);
    assert_eq!(Disk::open(&spec).unwrap().size(), (1 << 20) + 512);
    spec.block_size = Some(BlockSize::PAGE);
    assert_eq!(Disk::open(&spec).unwrap().size(), 1 << 20);
}

#[test]
fn one_writer_or_many_readers() {
    let dir = dir();
    let writer = image(&dir, 1 << 20);
    let reader = Spec {
        read_only: true,
        ..writer.clone()
    };
    let held = Disk::open(&writer).unwrap();
    for second in [&writer, &reader] {
        let error = Disk::open(second).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, DiskError::InUse { pid: Some(pid), .. } if pid == std::process::id())
        );
        assert!(
            text.contains(&format!("in use by process {}", std::process::id())),
            "{text}"
        );
    }
    drop(held);
    let (_a, _b) = (Disk::open(&reader).unwrap(), Disk::open(&reader).unwrap());
    assert!(matches!(Disk::open(&writer), Err(DiskError::InUse { .. })));
}

#[test]
fn one_that_moves_is_locked_while_its_queues_run() {
    let dir = dir();
    let spec = image(&dir, 1 << 20);
    let (here, there) = (
        Disk::open_moving(&spec).unwrap(),
        Disk::open_moving(&spec).unwrap(),
    );
    here.begin(0).unwrap();
    here.begin(1).unwrap();
    assert!(matches!(Disk::open(&spec), Err(DiskError::InUse { .. })));
    here.end(0).unwrap();
    here.end(7).unwrap();
    let file = there.file().unwrap();
    assert!(is_locked(file, 101), "one queue runs still");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| there.begin(0));
        std::thread::sleep(std::time::Duration::from_millis(50));
        here.end(1).unwrap();
        waits.join().unwrap().unwrap();
    });
    let file = here.file().unwrap();
    assert!(is_locked(file, 101), "the other one has it");
    there.end(0).unwrap();
    assert!(!is_locked(file, 101) && !is_locked(file, 201));
    let error = Disk::open_moving(&spec_of_a_device()).unwrap_err();
    assert!(error.to_string().contains("only files"), "{error}");
}

fn spec_of_a_device() -> Spec {
    // Refused before it is looked at any further.
    let loops = std::fs::read_dir("/dev").unwrap().flatten();
    let block = |path: &Path| {
        let mode = rustix::fs::stat(path).map(|s| s.st_mode);
        mode.is_ok_and(|mode| FileType::from_raw_mode(mode) == FileType::BlockDevice)
    };
    let path = loops.map(|entry| entry.path()).find(|path| block(path));
    Spec {
        cache: Cache::Buffered,
        read_only: true,
        ..spec(&path.expect("a machine has a block device"))
    }
}

#[test]
fn the_holder_of_a_lock_is_found_in_proc_locks() {
    let locks = "1: POSIX  ADVISORY  WRITE 11 fd:00:42 0 EOF\n\
                 2: FLOCK  ADVISORY  WRITE 12 fd:00:43 0 EOF\n\
                 2: -> FLOCK  ADVISORY  WRITE 14 fd:00:42 0 EOF\n\
                 3: FLOCK  ADVISORY  READ  13 fd:00:42 0 EOF\n";
    let dev = rustix::fs::makedev(0xfd, 0);
    assert_eq!(lock_holder(locks, dev, 42), Some(13));
    assert_eq!(lock_holder(locks, dev, 43), Some(12));
    assert_eq!(lock_holder(locks, dev, 44), None);
    assert_eq!(lock_holder("nonsense\n1: FLOCK", dev, 42), None);
}

#[test]
fn qemu_and_vblk_notice_each_others_locks() {
    let dir = dir();
    let writer = image(&dir, 1 << 20);
    let reader = Spec {
        read_only: true,
        ..writer.clone()
    };
    let held = |bytes: &[i64]| {
        let file = File::open(&writer.path).unwrap();
        let all = [100, 101, 103, 200, 201, 203];
        assert!(
            all.iter()
                .all(|b| is_locked(&file, *b) == bytes.contains(b))
        );
    };
    let disk = Disk::open(&reader).unwrap();
    held(&[100, 201, 203]);
    drop(disk);
    let disk = Disk::open(&writer).unwrap();
    held(&[100, 101, 201, 203]);
    let qemu_io = |args: &[&str]| {
        let out = std::process::Command::new("qemu-io")
            .args(args)
            .arg(&writer.path)
            .output();
        match out {
            Ok(out) => {
                Some(String::from_utf8_lossy(&out.stderr).into_owned() + &out.status.to_string())
            }
            Err(error) => {
                println!("skipped: no qemu-io here: {error}");
                None
            }
        }
    };
    let Some(said) = qemu_io(&["-f", "raw", "-c", "write 0 512"]) else {
        return;
    };
    assert!(said.contains("Failed to get"), "{said}");
    drop(disk);
    // And the other way: QEMU holds it until its input ends.
    let mut qemu = std::process::Command::new("qemu-io")
        .args(["-f", "raw"])
        .arg(&writer.path)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut prompt = [0; 8];
    std::io::Read::read_exact(qemu.stdout.as_mut().unwrap(), &mut prompt).unwrap();
    let error = Disk::open(&writer).unwrap_err().to_string();
    assert!(
        error.contains(&format!("process {} (qemu-io)", qemu.id())),
        "{error}"
    );
    assert!(Disk::open(&reader).is_err());
    drop(qemu.stdin.take());
    assert!(qemu.wait().unwrap().success());
    assert!(Disk::open(&writer).is_ok());
}

#[test]
fn a_partition_shares_its_blocks_with_its_disk_and_the_other_way_round() {
    let dir = dir();
    let disk = dir.path().join("devices/sda");
    for (path, number) in [("", "8:0"), ("sda1", "8:1"), ("sda2", "8:2"), ("queue", "")] {
        let path = disk.join(path);
        std::fs::create_dir_all(&path).unwrap();
        if !number.is_empty() {
            std::fs::write(path.join("dev"), format!("{number}\n")).unwrap();
        }
        if !["8:0", ""].contains(&number) {
            std::fs::write(path.join("partition"), "1\n").unwrap();
        }
    }
    let numbers = |target: &Path, number: &str| {
        let link = dir.path().join(number);
        std::os::unix::fs::symlink(target, &link).unwrap();
        let family = family(&link, number).into_iter();
        let mut numbers: Vec<_> = family.map(|place| place.number).collect();
        numbers[1..].sort();
        numbers
    };
    assert_eq!(numbers(&disk, "8:0"), ["8:0", "8:1", "8:2"]);
    assert_eq!(numbers(&disk.join("sda2"), "8:2"), ["8:2", "8:0"]);
    // Without sysfs there is only what is known.
    assert_eq!(numbers(&dir.path().join("nowhere"), "9:9"), ["9:9"]);
}

#[test]
fn what_a_device_or_file_is_used_for_is_said() {
    let info = "lock:\t1: OFDLCK ADVISORY  READ  -1 fd:00:42 101 101\n";
    assert!(locks_byte(info, "fd:00:42", 101));
    assert!(!locks_byte(info, "fd:00:42", 100) && !locks_byte(info, "fd:00:43", 101));
    let mounts = "36 35 7:3 / /mnt/a rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
                  37 35 7:4 / /mnt/b ro - ext3 /dev/root ro\n";
    assert_eq!(mounted(mounts, "7:3"), Some(("/mnt/a".to_owned(), true)));
    assert_eq!(mounted(mounts, "7:4"), Some(("/mnt/b".to_owned(), false)));
    assert_eq!(mounted(mounts, "7:5"), None);
    let dir = dir();
    let file = image(&dir, 8 << 20);
    let Some(device) = Loop::new(&file.path, 512) else {
        return;
    };
    let error = Disk::open(&file).unwrap_err().to_string();
    let expected = format!("it backs {}", device.path().display());
    assert!(error.contains(&expected), "{error}");
    let run = |program: &str, args: &[&str]| {
        let status = std::process::Command::new(program).args(args).status();
        status.is_ok_and(|s| s.success())
    };
    let (path, at) = (
        device.path().to_str().unwrap(),
        dir.path().to_str().unwrap(),
    );
    let at = format!("{at}/mnt");
    std::fs::create_dir(&at).unwrap();
    if !run("mkfs.ext4", &["-q", path]) || !run("mount", &[path, &at]) {
        println!("skipped: cannot mount here");
        return;
    }
    for read_only in [false, true] {
        let spec = Spec {
            read_only,
            ..spec(device.path())
        };
        let error = Disk::open(&spec).unwrap_err().to_string();
        assert!(error.contains("it is mounted at"), "{error}");
    }
    assert!(run("umount", &[&at]));
    assert!(Disk::open(&spec(device.path())).is_ok());
}

#[test]
fn serials_and_block_sizes_are_checked() {
    assert!(Serial::new("exactly twenty chars").is_ok());
    for bad in ["twenty-one characters", "ä", "a\nb"] {
        let text = Serial::new(bad).unwrap_err().to_string();
        assert!(text.contains("printable ASCII"), "{text}");
    }
    let long = Serial::of_path(Path::new("/a/ä a-very-long-name-of-an-image.raw"));
    assert_eq!(long.bytes(), b"a-very-long-name-of-");
    for bad in [0, 1, 256, 511, 513, 1536, 131_072, u32::MAX] {
        assert_eq!(BlockSize::new(bad), None);
    }
    assert_eq!(BlockSize::new(4096), Some(BlockSize::PAGE));
    assert!(BlockSize::PAGE.divides(8192) && !BlockSize::PAGE.divides(8191));
    assert_eq!(BlockSize::PAGE.floor(8191), 4096);
}

#[test]
fn block_devices_show_their_sectors_and_have_one_owner() {
    let dir = dir();
    for sector in [512, 4096] {
        let file = image(&dir, 8 << 20);
        let Some(device) = Loop::new(&file.path, sector) else {
            return;
        };
        let mut spec = spec(device.path());
        let disk = Disk::open(&spec).unwrap();
        assert!(disk.trims());
        // The kernel reads the file for a loop device, in a thread; a direct read of a file starts
        // at once.
        assert!(disk.delegates(Verb::Read) && disk.delegates(Verb::Write));
        assert_eq!((disk.size(), disk.block().bytes()), (8 << 20, sector));
        assert!(disk.limits().discard, "a loop device discards");
        let second = Disk::open(&spec).unwrap_err();
        assert!(matches!(second, DiskError::InUse { .. }), "{second}");
        drop(disk);
        spec.block_size = Some(BlockSize::SECTOR);
        let result = Disk::open(&spec);
        if sector == 4096 {
            let text = result.unwrap_err().to_string();
            assert!(text.contains("use block-size=4096"), "{text}");
        } else {
            assert_eq!(result.unwrap().block(), BlockSize::SECTOR);
        }
    }
}
