//! Who asks, and whether they may.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io;
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::apply::Process;
use crate::spec::Pool;

/// The process at the other end of a socket.
#[derive(Debug)]
pub struct Peer {
    /// The process.
    pub process: Process,
    /// Readable once it has ended.
    pub pidfd: OwnedFd,
    /// Its user.
    pub uid: u32,
    /// Its groups.
    pub gids: Vec<u32>,
}

impl Peer {
    /// Who connected.
    ///
    /// Kernels since 6.5 hand out a pidfd that was taken when the connection was made. On older
    /// ones the number is looked up: it may by now be another process's, if the first has ended.
    ///
    /// # Errors
    /// When it has ended already, or the kernel does not say.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = socket_peercred(stream)?;
        let pidfd = match getsockopt(stream, sockopt::PeerPidfd) {
            Ok(pidfd) => pidfd,
            Err(_) => pidfd_open(credentials.pid, PidfdFlags::empty())?,
        };
        let pid = credentials.pid.as_raw_nonzero().get().unsigned_abs();
        let process = Process::now(pid).ok_or(io::Errno::SRCH)?;
        let mut gids = groups(pid);
        gids.push(credentials.gid.as_raw());
        // What was read of the number is about this process only if it still runs.
        if has_ended(&pidfd) {
            return Err(io::Errno::SRCH);
        }
        Ok(Self {
            process,
            pidfd,
            uid: credentials.uid.as_raw(),
            gids,
        })
    }

    /// Whether it may lease from `pool`.
    pub fn may(&self, pool: &Pool) -> bool {
        let groups = pool.gids.iter().any(|gid| self.gids.contains(gid));
        self.uid == 0 || pool.uids.contains(&self.uid) || groups
    }

    /// The process `pid`, on behalf of this one: root may name any, others their own.
    ///
    /// # Errors
    /// When there is no such process, or it is somebody else's.
    pub fn instead(&self, pid: u32) -> io::Result<(Process, OwnedFd)> {
        let (process, pidfd) = watch(pid)?;
        let owner = uid_of(pid);
        if self.uid != 0 && owner != Some(self.uid) {
            return Err(io::Errno::PERM);
        }
        if has_ended(&pidfd) {
            return Err(io::Errno::SRCH);
        }
        Ok((process, pidfd))
    }
}

/// A process and its pidfd.
pub(super) fn watch(pid: u32) -> io::Result<(Process, OwnedFd)> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pidfd = pidfd_open(number.ok_or(io::Errno::SRCH)?, PidfdFlags::empty())?;
    let process = Process::now(pid).ok_or(io::Errno::SRCH)?;
    Ok((process, pidfd))
}

/// Whether the process behind a pidfd has ended.
pub(super) fn has_ended(pidfd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let now = Timespec::default();
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

fn status(pid: u32, key: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.to_owned())
}

fn groups(pid: u32) -> Vec<u32> {
    let line = status(pid, "Groups:").unwrap_or_default();
    line.split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

fn uid_of(pid: u32) -> Option<u32> {
    status(pid, "Uid:")?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn pool(uids: &[u32], gids: &[u32]) -> Pool {
        Pool {
            name: "p".parse().unwrap(),
            uids: uids.to_vec(),
            gids: gids.to_vec(),
        }
    }

    #[test]
    fn a_peer_is_known_by_the_kernels_word() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert_eq!(peer.process, Process::now(std::process::id()).unwrap());
        assert!(!has_ended(&peer.pidfd));
        drop(theirs);
        let stranger = Peer {
            uid: 1000,
            gids: vec![36],
            ..peer
        };
        assert!(!stranger.may(&pool(&[], &[])));
        assert!(stranger.may(&pool(&[1000], &[])));
        assert!(stranger.may(&pool(&[], &[36])));
        assert!(Peer { uid: 0, ..stranger }.may(&pool(&[], &[])));
    }

    #[test]
    fn a_stranger_names_only_processes_of_its_own() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer {
            uid: 54_321,
            ..Peer::of(&ours).unwrap()
        };
        assert_eq!(peer.instead(1).unwrap_err(), io::Errno::PERM);
    }

    #[test]
    fn the_end_of_a_process_is_seen() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let (process, pidfd) = watch(child.id()).unwrap();
        assert!(process.is_alive() && !has_ended(&pidfd));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(has_ended(&pidfd) && !process.is_alive());
        assert_eq!(watch(child.id()).unwrap_err(), io::Errno::SRCH);
    }
}
