//! The client's side of a lease.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use towpath_common::control::{Answer, Status};

use super::{Granted, Request};

/// Binding a VF and waiting for the lock take seconds at worst.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest answer.
const MAX_BYTES: usize = 16 << 10;

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no daemon is listening on {}: start sriov-manager serve ({source})", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The daemon said no.
    #[error("{0}")]
    Refused(String),
    /// The conversation broke.
    #[error("the daemon gave no answer that makes sense: {0}")]
    Io(#[from] io::Error),
}

/// What was handed over.
#[derive(Debug)]
pub struct Handed {
    /// What it is.
    pub granted: Granted,
    /// Descriptors, as [`Granted::fds`] names them.
    pub fds: Vec<OwnedFd>,
}

/// Asks the daemon behind `socket` for a lease.
///
/// # Errors
/// [`ClientError`].
pub fn request(socket: &Path, request: &Request) -> Result<Handed, ClientError> {
    let mut stream = UnixStream::connect(socket).map_err(|source| ClientError::NotRunning {
        path: socket.to_owned(),
        source,
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request).map_err(io::Error::from)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut bytes = vec![0; MAX_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut part = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(&stream, &mut part, &mut ancillary, RecvFlags::CMSG_CLOEXEC);
    let received = received.map_err(io::Error::from)?.bytes;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let answer: Answer<Granted> =
        serde_json::from_slice(&bytes[..received]).map_err(io::Error::from)?;
    match answer {
        Answer {
            status: Status::Failed,
            description,
            ..
        } => Err(ClientError::Refused(description)),
        Answer {
            data: Some(granted),
            ..
        } => Ok(Handed { granted, fds }),
        Answer { description, .. } => Err(io::Error::other(description).into()),
    }
}
