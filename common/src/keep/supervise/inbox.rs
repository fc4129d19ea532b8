//! What a supervised daemon says (sd_notify(3)): the socket it arrives on, a message and who
//! sent it, and passing it on.

use std::io::{Error, ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::Pid;
use tokio::net::UnixDatagram;
use tracing::debug;

/// The socket that the daemon sends its messages to, in a directory only we can enter.
pub(super) struct Inbox {
    pub(super) socket: UnixDatagram,
    pub(super) directory: PathBuf,
}

impl Inbox {
    pub(super) fn new() -> Result<Inbox, Error> {
        let at = std::env::temp_dir();
        let names = (0..100).map(|n| at.join(format!("towpath-keep-{}-{n}", std::process::id())));
        let free = |path: &PathBuf| std::fs::DirBuilder::new().mode(0o700).create(path).is_ok();
        let directory = names.into_iter().find(free).ok_or_else(|| {
            let why = format!("cannot make a directory in {}", at.display());
            Error::new(ErrorKind::PermissionDenied, why)
        })?;
        let socket = UnixDatagram::bind(directory.join("notify"))?;
        rustix::net::sockopt::set_socket_passcred(&socket, true)?;
        Ok(Inbox { socket, directory })
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        // A directory that stays is empty but for a socket that nobody listens on.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// One message: its length, who sent it, what came with it.
pub(super) fn receive(
    socket: &UnixDatagram,
    text: &mut [u8],
) -> Result<(usize, Option<Pid>, Vec<OwnedFd>), Error> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253), ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = recvmsg(
        socket.as_fd(),
        &mut [IoSliceMut::new(text)],
        &mut control,
        flags,
    )?;
    let (mut sender, mut fds) = (None, Vec::new());
    for part in control.drain() {
        match part {
            RecvAncillaryMessage::ScmRights(some) => fds.extend(some),
            RecvAncillaryMessage::ScmCredentials(who) => sender = Some(who.pid),
            _ => {}
        }
    }
    Ok((message.bytes, sender, fds))
}

/// Tell our own manager, if there is one that reads; never wait for it.
pub(super) fn pass_on(text: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let sent = std::os::unix::net::UnixDatagram::unbound().and_then(|socket| {
        socket.set_nonblocking(true)?;
        socket.send_to(text.as_bytes(), path)
    });
    if let Err(error) = sent {
        debug!(%error, text, "cannot pass a message on");
    }
}
