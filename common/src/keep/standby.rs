//! A daemon that is to follow another one, started while that one still serves.
//!
//! It has read its configuration and knows its way before anything ends, so that guests wait for
//! what is left: the predecessor's end and the sessions' return. One that cannot start says so
//! while nothing has been lost.
//!
//! ```text
//! manager                         standby                        predecessor
//! start, with a socket ─────────▶ read the configuration         serves
//!                     ◀───────── "here"                          serves
//! SIGTERM ─────────────────────────────────────────────────────▶ leaves its sessions, ends
//! all that is held, as a parcel ▶ serves
//! ```
//!
//! The socket is passed as sd_listen_fds(3) describes, under the name `towpath-standby`. A build
//! that does not know of it closes it, and is started the other way.

use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::net::UnixStream;
use tracing::error;

use super::{parcel, pass};

/// The name of its socket.
const NAME: &str = "towpath-standby";
/// What it says when it has come so far.
const HERE: &[u8] = b"here";

/// Where a standby waits.
#[derive(Debug)]
pub(super) struct Wait(OwnedFd);

impl Wait {
    /// Whether this process is a standby: its socket, out of what it was started with.
    pub(super) fn among(given: &mut Vec<(String, OwnedFd)>) -> Option<Wait> {
        let at = given.iter().position(|(name, _)| name == NAME)?;
        Some(Wait(given.swap_remove(at).1))
    }

    /// Say that it is here, and wait for what it is to go on with; none if it is not needed after
    /// all.
    ///
    /// # Errors
    /// If the manager's message cannot be read.
    pub(super) fn wait(self) -> Result<Option<Vec<(String, OwnedFd)>>, Error> {
        let word = [IoSlice::new(HERE)];
        let flags = SendFlags::NOSIGNAL;
        sendmsg(&self.0, &word, &mut SendAncillaryBuffer::default(), flags)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut text = [0; 1];
        let mut text = [IoSliceMut::new(&mut text)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received =
            rustix::io::retry_on_intr(|| recvmsg(&self.0, &mut text, &mut control, flags))?;
        if received.bytes == 0 {
            return Ok(None);
        }
        let parcel = control.drain().find_map(|part| match part {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let parcel = parcel.ok_or_else(|| Error::new(ErrorKind::InvalidData, "no parcel"))?;
        unpack(&parcel).map(Some)
    }
}

/// A standby, as the manager knows it. Dropping one that was not given the word ends it.
#[derive(Debug)]
pub(super) struct Standby {
    child: Option<Child>,
    socket: UnixStream,
    /// It said that it is here.
    pub(super) here: bool,
}

impl Standby {
    /// Start `command` as one.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(super) fn start(mut command: Command) -> Result<Standby, Error> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let theirs = OwnedFd::from(theirs);
        let fillers = pass::hand_over(&mut command, &[(NAME.to_owned(), theirs)])?;
        let child = command.spawn()?;
        drop(fillers);
        Ok(Standby {
            child: Some(child),
            socket: UnixStream::from_std(ours)?,
            here: false,
        })
    }

    /// Wait until it is here: true, or until it has closed its socket.
    ///
    /// # Errors
    /// If the socket cannot be read.
    pub(super) async fn heard(&mut self) -> Result<bool, Error> {
        let mut text = [0; HERE.len()];
        // Sent at once, and so received at once.
        let length = loop {
            self.socket.readable().await?;
            match self.socket.try_read(&mut text) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => break read?,
            }
        };
        self.here = text.get(..length) == Some(HERE);
        Ok(self.here)
    }

    /// Give it the word: it goes on with `held`.
    ///
    /// # Errors
    /// If it is gone, or does not listen; it is ended then.
    pub(super) fn go(mut self, held: &[(String, OwnedFd)]) -> Result<Child, Error> {
        let parcel = pack(held)?;
        // One message, which always fits.
        let socket = &self.socket;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [parcel.as_fd()];
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(Error::from(ErrorKind::InvalidInput));
        }
        let word = [IoSlice::new(b"!")];
        sendmsg(socket, &word, &mut control, SendFlags::NOSIGNAL)?;
        self.child
            .take()
            .ok_or_else(|| Error::from(ErrorKind::NotFound))
    }

    /// Its end, once it has closed its socket: how it ended, or that it goes on, and so is of a
    /// build that knows of no standbys.
    pub(super) async fn ended(&mut self) -> Option<std::process::ExitStatus> {
        const MOMENT: Duration = Duration::from_millis(5);
        let child = self.child.as_mut()?;
        for _ in 0..200 {
            if let Ok(Some(status)) = child.try_wait() {
                return Some(status);
            }
            tokio::time::sleep(MOMENT).await;
        }
        None
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // One that has ended is only to be waited for.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What is to be expected of who was started to follow.
pub(super) enum Follows {
    /// It waits for its word.
    Here,
    /// It runs, and does not know how to wait.
    Unaware,
    /// It ended.
    Gone,
}

/// Wait for news of who is to follow, if there are to be any.
pub(super) async fn follows(next: &mut Option<Standby>) -> Follows {
    let Some(next) = next.as_mut().filter(|next| !next.here) else {
        return std::future::pending().await;
    };
    if next.heard().await.unwrap_or(false) {
        return Follows::Here;
    }
    match next.ended().await {
        Some(status) => {
            error!(%status, "the daemon that was to follow ended; the running one goes on");
            Follows::Gone
        }
        None => Follows::Unaware,
    }
}

/// Descriptors and their names, as one: the names come first, in a file.
fn pack(held: &[(String, OwnedFd)]) -> Result<OwnedFd, Error> {
    let names: Vec<&str> = held.iter().map(|(name, _)| name.as_str()).collect();
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut text = std::fs::File::from(rustix::fs::memfd_create("towpath-names", flags)?);
    text.write_all(names.join(":").as_bytes())?;
    let fds = held.iter().map(|(_, fd)| fd.as_fd());
    let all: Vec<BorrowedFd<'_>> = std::iter::once(text.as_fd()).chain(fds).collect();
    parcel::pack(&all)
}

fn unpack(parcel: &OwnedFd) -> Result<Vec<(String, OwnedFd)>, Error> {
    let mut fds = parcel::open(parcel)?.into_iter();
    let text = fds
        .next()
        .ok_or_else(|| Error::from(ErrorKind::InvalidData))?;
    let mut text = std::fs::File::from(text);
    text.rewind()?;
    let mut names = String::new();
    text.read_to_string(&mut names)?;
    Ok(names.split(':').map(str::to_owned).zip(fds).collect())
}

#[cfg(test)]
mod tests;
