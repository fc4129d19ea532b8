//! Who is at the other end of a unix socket, by the kernel's word: user, group and supplementary
//! groups as they were when it connected.

// UNSAFETY: one getsockopt(2), SO_PEERGROUPS, which neither rustix nor nix has.
#![expect(unsafe_code, reason = "getsockopt fills a C array")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::net::sockopt::socket_peercred;

/// Most supplementary groups that a process can have (NGROUPS_MAX).
const MOST: usize = 65536;

/// A process that connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its groups.
    pub gids: Vec<u32>,
}

impl Peer {
    /// Who connected `socket`.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn of(socket: impl AsFd) -> io::Result<Peer> {
        let credentials = socket_peercred(socket.as_fd())?;
        let mut gids = groups(&socket, 64).or_else(|error| match error.raw_os_error() {
            // More than there was room for.
            Some(libc::ERANGE) => groups(&socket, MOST),
            _ => Err(error),
        })?;
        gids.push(credentials.gid.as_raw());
        let uid = credentials.uid.as_raw();
        Ok(Peer { uid, gids })
    }
}

fn groups(socket: &impl AsFd, room: usize) -> io::Result<Vec<u32>> {
    let mut gids = vec![0u32; room];
    let bytes = size_of_val(&*gids);
    let mut len = libc::socklen_t::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: `gids` is writable for the `len` bytes that are said, and any bytes are valid in it.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            gids.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    gids.truncate(len as usize / size_of::<u32>());
    Ok(gids)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn this_process_is_known_to_itself() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        let mut expected: Vec<u32> = rustix::process::getgroups()
            .unwrap()
            .into_iter()
            .map(|gid| gid.as_raw())
            .collect();
        expected.push(rustix::process::getegid().as_raw());
        assert_eq!(peer.gids, expected);
        assert!(Peer::of(tempfile::tempfile().unwrap()).is_err());
    }
}
