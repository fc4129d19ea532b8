//! File descriptors across exec, as sd_listen_fds(3) describes: numbered from 3 on, how many in
//! `LISTEN_FDS`, their names in `LISTEN_FDNAMES`, separated by colons.
//!
//! `LISTEN_PID` says whom they are for. Where it is missing they are for whoever finds them: a
//! keeper cannot know its child's number before there is a child.

// UNSAFETY: taking ownership of numbers that a parent left for us, and putting descriptors there
// between fork and exec.
#![expect(
    unsafe_code,
    reason = "numbers become descriptors only by from_raw_fd, and a child gets them only by dup2"
)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::FdFlags;

/// SD_LISTEN_FDS_START.
const START: RawFd = 3;
/// Most descriptors that are looked at.
const MOST: usize = 1 << 16;

/// What the parent passed on, with names; nothing when asked again.
#[must_use]
pub(super) fn inherited() -> Vec<(String, OwnedFd)> {
    static ASKED: AtomicBool = AtomicBool::new(false);
    let number = |name: &str| std::env::var(name).ok()?.parse::<usize>().ok();
    let Some(count) = number("LISTEN_FDS") else {
        return Vec::new();
    };
    let ours = number("LISTEN_PID").is_none_or(|pid| u32::try_from(pid) == Ok(std::process::id()));
    if !ours || ASKED.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(str::to_owned);
    let fds = (START..).take(count.min(MOST));
    let open = |fd: &RawFd| std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok();
    names
        .zip(fds)
        .filter(|(_, fd)| open(fd))
        .map(|(name, number)| {
            // SAFETY: it is open, and by the protocol it was opened by our parent for us alone;
            // this is done once, so nobody else here owns it.
            let fd = unsafe { OwnedFd::from_raw_fd(number) };
            // Programs that we start get nothing by accident.
            let _ = rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC);
            (name, fd)
        })
        .collect()
}

/// Whether a descriptor can have this name (sd_pid_notify_with_fds(3)).
#[must_use]
pub(super) fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii() && !c.is_ascii_control() && c != ':';
    name.len() <= 255 && name.chars().all(plain)
}

/// Let `command` find `fds` as [`inherited`] does, and end with this thread. The second value has
/// to live until it is spawned: it keeps the numbers free from whatever the standard library opens
/// meanwhile.
///
/// # Errors
/// If there are no file descriptors left.
pub(super) fn hand_over(
    command: &mut Command,
    fds: &[(String, OwnedFd)],
) -> std::io::Result<Vec<OwnedFd>> {
    let count = RawFd::try_from(fds.len()).unwrap_or(RawFd::MAX - START);
    let end = START + count;
    let high = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, end);
    let high: Result<Vec<OwnedFd>, _> = fds.iter().map(|(_, fd)| high(fd)).collect();
    let high = high?;
    let mut fillers: Vec<OwnedFd> = Vec::new();
    while fillers.last().is_none_or(|last| last.as_raw_fd() < end) {
        fillers.push(std::fs::File::open("/dev/null")?.into());
    }
    let names: Vec<&str> = fds.iter().map(|(name, _)| name.as_str()).collect();
    command
        .env("LISTEN_FDS", fds.len().to_string())
        .env("LISTEN_FDNAMES", names.join(":"))
        .env_remove("LISTEN_PID");
    let place = move || {
        // A daemon whose keeper is gone would hold its disks and nobody could start another.
        // SAFETY: prctl with this option takes a signal number and touches no memory.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
        for (fd, number) in high.iter().zip(START..) {
            // SAFETY: both are numbers of the child's own table, of which no Rust object of the
            // child's but `high` knows; `high` lies above the numbers that are replaced.
            if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls alone and takes nothing from the
    // heap.
    unsafe { command.pre_exec(place) };
    Ok(fillers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_child_finds_them_from_three_on_whatever_numbers_they_had() {
        // Twice as many as fit below the numbers that are in use here.
        let pipes: Vec<_> = (0..40).map(|_| std::io::pipe().unwrap()).collect();
        let mut readers = Vec::new();
        let mut fds = Vec::new();
        for (n, (reader, writer)) in pipes.into_iter().enumerate() {
            readers.push(reader);
            fds.push((format!("p{n}"), OwnedFd::from(writer)));
        }
        fds.reverse();
        let script = "for n in $(seq 3 42); do echo $n >/proc/self/fd/$n; done; \
                      echo $LISTEN_FDS $LISTEN_FDNAMES >/proc/self/fd/3";
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let fillers = hand_over(&mut command, &fds).unwrap();
        let mut child = command.spawn().unwrap();
        drop((fillers, command, fds));
        assert!(child.wait().unwrap().success());
        for (n, mut reader) in readers.into_iter().enumerate() {
            let mut said = String::new();
            reader.read_to_string(&mut said).unwrap();
            let first = said.lines().next().unwrap();
            assert_eq!(first, (42 - n).to_string());
            if n == 39 {
                assert!(said.contains("40 p39:p38:"), "{said}");
            }
        }
    }
}
