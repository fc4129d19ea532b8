//! What a disk of a mirror is, as a number: while it stays the same, what was written to the disk
//! is there, flushed or not.
//!
//! That holds for this boot, as long as the device was not taken away, with what its cache held,
//! and put back: the kernel counts each device it meets (`diskseq`, Linux 5.15). It holds for no
//! disk behind a server, whose crash nobody here would see.

use super::record::hash;
use crate::backup::bitmap::boot;
use crate::disk::{Disk, TMPFS_MAGIC, sysfs};

/// The number; 0 where it cannot be told.
pub(super) fn of(disk: &Disk) -> u64 {
    identity(disk).map_or(0, |text| hash(text.as_bytes()).max(1))
}

fn identity(disk: &Disk) -> Option<String> {
    let fd = disk.file()?;
    let stat = rustix::fs::fstat(fd).ok()?;
    let boot = Some(boot()).filter(|boot| !boot.is_empty())?;
    let device = if disk.is_device() {
        stat.st_rdev
    } else {
        stat.st_dev
    };
    let kind = rustix::fs::fstatfs(fd).ok()?.f_type;
    // tmpfs is on no device, and gone with the boot.
    let sequence = if u64::try_from(kind) == Ok(TMPFS_MAGIC) && !disk.is_device() {
        0
    } else {
        sysfs::number(device, "diskseq")?
    };
    Some(format!("{boot} {device} {sequence} {}", stat.st_ino))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::Cache;
    use crate::disk::Spec;

    fn file(path: PathBuf) -> Disk {
        std::fs::write(&path, [0; 4096]).unwrap();
        let spec = Spec {
            path,
            read_only: false,
            cache: Cache::Buffered,
            block_size: None,
            serial: None,
        };
        Disk::open(&spec).unwrap()
    }

    #[test]
    fn a_file_in_memory_is_known_again_and_another_one_is_not_it() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let one = file(dir.path().join("one"));
        assert_ne!(of(&one), 0);
        assert_eq!(of(&one), of(&one));
        assert_ne!(of(&one), of(&file(dir.path().join("two"))));
        assert_eq!(of(&Disk::ram(4096)), 0, "nobody can tell");
    }
}
