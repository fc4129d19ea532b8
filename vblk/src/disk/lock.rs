//! Whose a file or device is: locks, and who holds them.
//!
//! A file is locked twice. By flock(2), shared by readers and exclusive to a writer: /proc/locks
//! names its holder. And by QEMU's bytes, so that QEMU, qemu-img and qemu-nbd notice us and we
//! notice them: for each permission that is held, a shared lock on byte 100 + permission, for each
//! that is not granted to others, one on byte 200 + permission; then neither may be contradicted by
//! somebody else (block/file-posix.c describes it). They are locks of the open file (F_OFD_SETLK),
//! as the kernel would release those of a process when it closes any other descriptor of the file.
//!
//! A block device is opened O_EXCL, which the kernel refuses while it is mounted, swapped to, part
//! of a volume, or held by another daemon; here it is found out which.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{FlockOperation, Stat};
use rustix::io::Errno;

use super::DiskError;
use super::open::{PATIENCE, PAUSE, Spec, fail};

/// QEMU's permissions (include/block/block-common.h).
mod permission {
    pub(super) const CONSISTENT_READ: i64 = 0;
    pub(super) const WRITE: i64 = 1;
    pub(super) const RESIZE: i64 = 3;
}
use permission::{CONSISTENT_READ, RESIZE, WRITE};

/// Where the bytes of held permissions begin, and those of permissions not granted.
const HELD: i64 = 100;
const DENIED: i64 = 200;

/// Lock a file, for as long as it is open.
pub(super) fn lock(file: BorrowedFd<'_>, spec: &Spec, stat: &Stat) -> Result<(), DiskError> {
    let in_use = |pid, detail| DiskError::InUse {
        path: spec.path.clone(),
        pid,
        detail,
    };
    if !spec.read_only
        && let Some(device) = loop_over(stat)
    {
        return Err(in_use(None, Some(format!("it backs {device}"))));
    }
    flock(file, spec, stat)?;
    let held: &[i64] = if spec.read_only {
        &[CONSISTENT_READ]
    } else {
        &[CONSISTENT_READ, WRITE]
    };
    let denied = [WRITE, RESIZE];
    let fail = |e: nix::errno::Errno| fail("lock", &spec.path, Errno::from_raw_os_error(e as i32));
    let bytes = held
        .iter()
        .map(|p| HELD + p)
        .chain(denied.map(|p| DENIED + p));
    for byte in bytes {
        fcntl(file, FcntlArg::F_OFD_SETLK(&byte_lock(libc::F_RDLCK, byte))).map_err(fail)?;
    }
    let against = held
        .iter()
        .map(|p| DENIED + p)
        .chain(denied.map(|p| HELD + p));
    for byte in against {
        for attempt in 0.. {
            let mut found = byte_lock(libc::F_WRLCK, byte);
            fcntl(file, FcntlArg::F_OFD_GETLK(&mut found)).map_err(fail)?;
            if i32::from(found.l_type) == libc::F_UNLCK {
                break;
            }
            let pid = ofd_holder(stat, byte);
            // Somebody who was killed lets go in a moment.
            if pid.is_some() || attempt >= PATIENCE {
                return Err(in_use(pid, None));
            }
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// Give back what [`lock`] took, or a part of it.
pub(super) fn unlock(file: BorrowedFd<'_>) {
    let mut all = byte_lock(libc::F_UNLCK, HELD);
    all.l_len = 2 * (DENIED - HELD);
    // Nothing that is held cannot be given back.
    let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&all));
    let _ = rustix::fs::flock(file, FlockOperation::Unlock);
}

fn byte_lock(kind: i32, byte: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or(0),
        l_whence: 0,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

fn flock(file: BorrowedFd<'_>, spec: &Spec, stat: &Stat) -> Result<(), DiskError> {
    let how = if spec.read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    let mut pid = None;
    for _ in 0..PATIENCE {
        match rustix::fs::flock(file, how) {
            Ok(()) => {
                if spec.read_only {
                    outwait_the_dead(stat);
                }
                return Ok(());
            }
            Err(Errno::WOULDBLOCK) => {}
            Err(e) => return Err(fail("lock", &spec.path, e)),
        }
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        pid = lock_holder(&locks, stat.st_dev, stat.st_ino);
        // A process that ended has no program, though its number may still be there.
        if pid.is_some_and(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok()) {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    Err(DiskError::InUse {
        path: spec.path.clone(),
        pid,
        detail: None,
    })
}

/// A shared lock does not wait for a process that was killed while it read: what it had asked for
/// may still be on its way into a guest's memory. Its lock goes with the last of that.
fn outwait_the_dead(stat: &Stat) {
    let is_alive = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok();
    for _ in 0..PATIENCE {
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        let mut dead = locks.lines().filter_map(|line| {
            let pid = lock_holder(line, stat.st_dev, stat.st_ino)?;
            (!is_alive(pid)).then_some(pid)
        });
        if dead.next().is_none() {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

/// An inode as /proc/locks has it.
fn inode(dev: u64, ino: u64) -> String {
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    format!("{major:02x}:{minor:02x}:{ino}")
}

/// Who holds a flock on inode `ino` of device `dev`, by /proc/locks (proc_locks(5)):
/// `1: FLOCK  ADVISORY  WRITE 1234 08:02:5678 0 EOF`.
pub(super) fn lock_holder(locks: &str, dev: u64, ino: u64) -> Option<u32> {
    let inode = inode(dev, ino);
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let held = words.next()? == "FLOCK";
        let pid = words.nth(2)?.parse().ok()?;
        (held && words.next()? == inode).then_some(pid)
    })
}

/// True if the text of a /proc/PID/fdinfo/FD has an open file's lock on `byte` of the inode:
/// `lock:  1: OFDLCK ADVISORY  READ  -1 08:02:5678 101 101`.
pub(super) fn locks_byte(fdinfo: &str, inode: &str, byte: i64) -> bool {
    fdinfo.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, _, "OFDLCK", _, _, _, at, first, last] = words.as_slice() else {
            return false;
        };
        let last = last.parse().unwrap_or(i64::MAX);
        *at == inode && first.parse().is_ok_and(|first: i64| first <= byte) && byte <= last
    })
}

/// Who else holds an open file's lock on `byte` of the file; the kernel does not say by itself.
fn ofd_holder(stat: &Stat, byte: i64) -> Option<u32> {
    let inode = inode(stat.st_dev, stat.st_ino);
    let own = std::process::id();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|p| p.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| {
        let infos = fs::read_dir(format!("/proc/{pid}/fdinfo"));
        *pid != own
            && infos.into_iter().flatten().flatten().any(|info| {
                let text = fs::read_to_string(info.path()).unwrap_or_default();
                locks_byte(&text, &inode, byte)
            })
    })
}

/// The loop device that stands on a file.
fn loop_over(stat: &Stat) -> Option<String> {
    let devices = fs::read_dir("/sys/block").ok()?.flatten();
    let mut loops = devices.filter_map(|d| d.file_name().into_string().ok());
    loops.find_map(|name| {
        let file = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
        let over = rustix::fs::stat(file.trim_end()).ok()?;
        let same = (over.st_dev, over.st_ino) == (stat.st_dev, stat.st_ino);
        same.then(|| format!("/dev/{name}"))
    })
}

/// How a block device is used, as far as the kernel tells.
pub(super) fn device_use(dev: u64, path: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for place in family(&sysfs_of(dev), &number_of(dev)) {
        let whose = whose(dev, &place);
        if let Some((at, _)) = mounted(&mounts, &place.number) {
            return Some(format!("{whose} is mounted at {at}"));
        }
        let mut names = fs::read_dir(place.path.join("holders"))
            .into_iter()
            .flatten()
            .flatten();
        if let Some(holder) = names.next() {
            let holder = holder.file_name();
            return Some(format!("{} stands on {whose}", holder.to_string_lossy()));
        }
    }
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let path = path.to_str()?;
    let swap = swaps
        .lines()
        .any(|l| l.split_whitespace().next() == Some(path));
    swap.then(|| "it is swapped to".to_owned())
}

/// Refuse to read a device that somebody writes to through a mount: of it, of the disk that it is a
/// partition of, or of a partition of it.
pub(super) fn refuse_mounted(dev: u64, path: &Path) -> Result<(), DiskError> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for place in family(&sysfs_of(dev), &number_of(dev)) {
        if let Some((at, true)) = mounted(&mounts, &place.number) {
            let whose = whose(dev, &place);
            return Err(DiskError::InUse {
                path: path.to_owned(),
                pid: None,
                detail: Some(format!("{whose} is mounted at {at}, and written to")),
            });
        }
    }
    Ok(())
}

fn number_of(dev: u64) -> String {
    format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev))
}

fn sysfs_of(dev: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}", number_of(dev)))
}

/// What to call `place` where device `dev` is spoken of.
fn whose(dev: u64, place: &Place) -> String {
    if place.number == number_of(dev) {
        return "it".to_owned();
    }
    let name = place.path.file_name().unwrap_or_default();
    format!("/dev/{}", name.to_string_lossy())
}

/// A device that shares its blocks with another.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) number: String,
}

/// The device `number`, which is at `sysfs`, and those that its blocks are blocks of as well: the
/// disk that it is a partition of, or its partitions.
pub(super) fn family(sysfs: &Path, number: &str) -> Vec<Place> {
    // A partition's directory is in that of its disk; the link to it is not.
    let own = fs::canonicalize(sysfs).unwrap_or_else(|_| sysfs.to_owned());
    let is_partition = |path: &Path| path.join("partition").exists();
    let others = if is_partition(&own) {
        own.parent().map(Path::to_owned).into_iter().collect()
    } else {
        let within = fs::read_dir(&own).into_iter().flatten().flatten();
        let mut parts: Vec<_> = within.map(|e| e.path()).collect();
        parts.retain(|path| is_partition(path));
        parts
    };
    let mut all = vec![Place {
        path: own,
        number: number.to_owned(),
    }];
    all.extend(others.into_iter().filter_map(|path| {
        let number = fs::read_to_string(path.join("dev")).ok()?;
        let number = number.trim().to_owned();
        Some(Place { path, number })
    }));
    all
}

/// Where device `number` is mounted, and whether it is written to, by /proc/self/mountinfo
/// (proc_pid_mountinfo(5)): `36 35 98:0 / /mnt rw,noatime - ext3 /dev/root rw`.
pub(super) fn mounted(mounts: &str, number: &str) -> Option<(String, bool)> {
    mounts.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (at, device) = (words.get(4)?, words.get(2)?);
        let options = words.last()?;
        let writes = options.split(',').any(|o| o == "rw");
        (*device == number).then(|| ((*at).to_owned(), writes))
    })
}

/// The name of a process.
pub(super) fn name_of(pid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

/// The file, for its locks, which [`lock`] took.
#[cfg(test)]
pub(super) fn is_locked(file: impl std::os::fd::AsFd, byte: i64) -> bool {
    let mut found = byte_lock(libc::F_WRLCK, byte);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found)).unwrap();
    i32::from(found.l_type) != libc::F_UNLCK
}
