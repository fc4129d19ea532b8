//! Who asks, and whether they may.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io;
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use towpath_common::control;

use crate::apply::Process;
use crate::spec::Pool;

/// The process at the other end of a socket.
#[derive(Debug)]
pub struct Peer {
    /// The process.
    pub process: Process,
    /// Readable once it has ended.
    pub pidfd: OwnedFd,
    /// Its user and groups.
    pub who: control::Peer,
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
        let who = control::Peer::of(stream).map_err(|_| io::Errno::SRCH)?;
        // What was read of the number is about this process only if it still runs.
        if has_ended(&pidfd) {
            return Err(io::Errno::SRCH);
        }
        Ok(Self {
            process,
            pidfd,
            who,
        })
    }

    /// Whether it may lease from `pool`.
    pub fn may(&self, pool: &Pool) -> bool {
        self.who.uid == 0 || pool.allow.iter().any(|one| one.is(&self.who))
    }

    /// The process `pid` and its user, on behalf of this one: root may name any, others their own.
    ///
    /// # Errors
    /// When there is no such process, or it is somebody else's.
    pub fn instead(&self, pid: u32) -> io::Result<(Process, OwnedFd, u32)> {
        let (process, pidfd) = watch(pid)?;
        let owner = uid_of(pid).ok_or(io::Errno::SRCH)?;
        if self.who.uid != 0 && owner != self.who.uid {
            return Err(io::Errno::PERM);
        }
        if has_ended(&pidfd) {
            return Err(io::Errno::SRCH);
        }
        Ok((process, pidfd, owner))
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

fn uid_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::spec;
    use std::process::Command;

    fn pool(allow: &str) -> Pool {
        let text = format!("[[pool]]\nname = \"p\"\nallow = [{allow}]");
        spec(&text).unwrap().pools.remove(0)
    }

    #[test]
    fn a_peer_is_known_by_the_kernels_word() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert_eq!(peer.process, Process::now(std::process::id()).unwrap());
        assert!(!has_ended(&peer.pidfd));
        drop(theirs);
        let who = |uid, gids| control::Peer { uid, gids };
        let stranger = Peer {
            who: who(1000, vec![36]),
            ..peer
        };
        assert!(!stranger.may(&pool("")));
        assert!(!stranger.may(&pool("\"user:36\", \"group:1000\"")));
        assert!(stranger.may(&pool("\"user:1000\"")));
        assert!(stranger.may(&pool("\"group:36\"")));
        let root = Peer {
            who: who(0, Vec::new()),
            ..stranger
        };
        assert!(root.may(&pool("")));
    }

    #[test]
    fn a_stranger_names_only_processes_of_its_own() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut peer = Peer::of(&ours).unwrap();
        peer.who.uid = 54_321;
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
