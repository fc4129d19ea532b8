//! vhost-user messages as bytes: what a front-end may send, well formed or not.
//!
//! [`RawFrontend`] is one connected socket. It knows the 12-byte header and nothing else: any
//! request number, flags, length, payload and descriptors can be sent, and a message can be cut
//! anywhere. Every receive has a deadline, so that a back-end that stays silent fails a test
//! instead of hanging it. [`super::Frontend`] is the honest speaker on top.
//!
//! Source: QEMU `docs/interop/vhost-user.rst`, "Header".

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Bytes of the header: request, flags, payload size, each a `u32` in host order.
pub const HEADER: usize = 12;
/// Flags of every message of protocol version 1.
pub const VERSION: u32 = 1;
/// Flag: this message answers one.
pub const REPLY: u32 = 1 << 2;
/// Flag: the sender wants an answer even where the request has none (needs `REPLY_ACK`).
pub const NEED_REPLY: u32 = 1 << 3;
/// A reply longer than this is refused: no message of the protocol is.
const MAX_REPLY: usize = 64 << 10;
/// Descriptors accepted with one reply; the protocol never sends more than two.
const MAX_REPLY_FDS: usize = 8;
/// How long [`Listener::accept`] and [`RawFrontend::connect`] sleep between two tries.
const RETRY: Duration = Duration::from_millis(1);

/// What can go wrong between a front-end and the back-end under test.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing arrived in time.
    #[error("no answer from the back-end within {0:?}")]
    Timeout(Duration),
    /// The back-end closed the connection.
    #[error("the back-end closed the connection")]
    Closed,
    /// The back-end answered something else than was asked.
    #[error("request {request}: {what}")]
    Protocol {
        /// Request number of the message that was sent.
        request: u32,
        /// What is wrong with the answer.
        what: String,
    },
    /// The back-end refused a request (a non-zero `REPLY_ACK`).
    #[error("the back-end refused request {request} with {code}")]
    Refused {
        /// Request number of the message that was sent.
        request: u32,
        /// The non-zero answer.
        code: u64,
    },
    /// The back-end does not offer what the test needs.
    #[error("the back-end does not offer {0}")]
    NotOffered(String),
    /// The device completed a request with another status than OK.
    #[error("the request came back with status {0}")]
    Status(u8),
    /// The device broke the rules of the ring.
    #[error("the device {0}")]
    Device(String),
    /// The test asked for something this front-end cannot do.
    #[error("in-process guest misused: {0}")]
    Usage(String),
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    pub(super) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    pub(super) fn errno(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Io {
            what,
            source: errno.into(),
        }
    }
}

/// Result of the testing front-end.
pub type Result<T> = std::result::Result<T, Error>;

/// One message as received.
#[derive(Debug)]
pub struct Message {
    /// Request number.
    pub request: u32,
    /// Header flags ([`VERSION`], [`REPLY`], [`NEED_REPLY`]).
    pub flags: u32,
    /// Everything after the header.
    pub payload: Vec<u8>,
    /// Descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// The payload as one `u64`, or an error naming the length found.
    pub fn u64(&self) -> Result<u64> {
        let bytes = self
            .payload
            .as_slice()
            .try_into()
            .map_err(|_| Error::Protocol {
                request: self.request,
                what: format!("expected 8 bytes, got {}", self.payload.len()),
            })?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

/// Header and payload of a message, for tests that send it in pieces or spoil it.
#[must_use]
pub fn encode(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    for word in [request, flags, size] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// One connection to a back-end, without manners.
#[derive(Debug)]
pub struct RawFrontend {
    socket: UnixStream,
    timeout: Duration,
}

impl RawFrontend {
    /// Wraps a connected socket; every send and receive gives up after `timeout`.
    pub fn new(socket: UnixStream, timeout: Duration) -> Result<Self> {
        socket
            .set_read_timeout(Some(timeout))
            .map_err(Error::io("set_read_timeout"))?;
        socket
            .set_write_timeout(Some(timeout))
            .map_err(Error::io("set_write_timeout"))?;
        Ok(Self { socket, timeout })
    }

    /// Connects to a listening back-end, waiting up to `timeout` for its socket to appear.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self> {
        let deadline = Instant::now() + timeout;
        loop {
            match UnixStream::connect(path) {
                Ok(socket) => return Self::new(socket, timeout),
                Err(_) if Instant::now() < deadline => std::thread::sleep(RETRY),
                Err(source) => {
                    return Err(Error::Io {
                        what: "connect to the back-end",
                        source,
                    });
                }
            }
        }
    }

    /// A second handle on the same connection, e.g. to break into an honest session.
    pub fn try_clone(&self) -> Result<Self> {
        let socket = self.socket.try_clone().map_err(Error::io("clone socket"))?;
        Ok(Self {
            socket,
            timeout: self.timeout,
        })
    }

    /// Sends `bytes` as they are; `fds` travel with the first of them.
    ///
    /// The kernel takes at most 253 descriptors a message and answers `EINVAL` for more.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut space = vec![MaybeUninit::uninit(); SendAncillaryMessage::ScmRights(fds).size()];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Error::Usage(format!(
                "{} descriptors do not fit a message",
                fds.len()
            )));
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let message = [IoSlice::new(rest)];
            let send = || sendmsg(&self.socket, &message, &mut control, SendFlags::NOSIGNAL);
            let sent = match retry_on_intr(send) {
                Ok(sent) => sent,
                Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => {
                    return Err(Error::Closed);
                }
                Err(rustix::io::Errno::AGAIN) => return Err(Error::Timeout(self.timeout)),
                Err(errno) => return Err(Error::errno("sendmsg")(errno)),
            };
            control.clear();
            rest = &rest[sent..];
        }
        Ok(())
    }

    /// Sends one message; the size in its header is the payload's.
    pub fn send(
        &self,
        request: u32,
        flags: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<()> {
        self.send_bytes(&encode(request, flags, payload), fds)
    }

    /// Receives one message.
    pub fn recv(&self) -> Result<Message> {
        let mut header = [0; HEADER];
        let fds = self.recv_header(&mut header)?;
        let word = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (request, flags, size) = (word(0), word(4), word(8) as usize);
        if size > MAX_REPLY {
            return Err(Error::Protocol {
                request,
                what: format!("a reply of {size} bytes"),
            });
        }
        let mut payload = vec![0; size];
        self.read_exact(&mut payload)?;
        Ok(Message {
            request,
            flags,
            payload,
            fds,
        })
    }

    /// Whether the back-end hangs up within `patience`. What it sends meanwhile is discarded.
    pub fn closes_within(&self, patience: Duration) -> Result<bool> {
        let deadline = Instant::now() + patience;
        let mut scrap = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if !readable(&self.socket, left)? {
                return Ok(false);
            }
            match (&self.socket).read(&mut scrap) {
                Ok(0) => return Ok(true),
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(true),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(Error::Io {
                        what: "read",
                        source,
                    });
                }
            }
        }
    }

    /// The header, with the descriptors that came along.
    fn recv_header(&self, header: &mut [u8; HEADER]) -> Result<Vec<OwnedFd>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_REPLY_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = retry_on_intr(|| {
            recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(header)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        });
        let got = match received {
            Ok(message) if message.bytes == 0 => return Err(Error::Closed),
            Ok(message) => message.bytes,
            Err(rustix::io::Errno::AGAIN) => return Err(Error::Timeout(self.timeout)),
            Err(rustix::io::Errno::CONNRESET) => return Err(Error::Closed),
            Err(errno) => return Err(Error::errno("recvmsg")(errno)),
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        self.read_exact(&mut header[got..])?;
        Ok(fds)
    }

    fn read_exact(&self, bytes: &mut [u8]) -> Result<()> {
        (&self.socket)
            .read_exact(bytes)
            .map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Error::Closed,
                io::ErrorKind::WouldBlock => Error::Timeout(self.timeout),
                _ => Error::Io {
                    what: "read",
                    source,
                },
            })
    }
}

/// A socket on which the front-end waits for a back-end in client mode.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens on `path`, which must not exist; it is removed again on drop.
    pub fn bind(path: &Path) -> Result<Self> {
        let listener = UnixListener::bind(path).map_err(Error::io("bind"))?;
        Ok(Self {
            listener,
            path: path.to_path_buf(),
        })
    }

    /// The next back-end that connects within `timeout`, which becomes the connection's timeout.
    pub fn accept(&self, timeout: Duration) -> Result<RawFrontend> {
        if !readable(&self.listener, timeout)? {
            return Err(Error::Timeout(timeout));
        }
        let (socket, _) = self.listener.accept().map_err(Error::io("accept"))?;
        RawFrontend::new(socket, timeout)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // The scratch directory of the test goes away anyway.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether `fd` has something to read (or a hang-up to report) within `patience`.
pub(crate) fn readable(fd: &impl std::os::fd::AsFd, patience: Duration) -> Result<bool> {
    let timeout = patience
        .try_into()
        .map_err(|_| Error::Usage(format!("a patience of {patience:?} is too long")))?;
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    retry_on_intr(|| poll(&mut fds, Some(&timeout))).map_err(Error::errno("poll"))?;
    Ok(!fds[0].revents().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    const SOON: Duration = Duration::from_secs(5);

    fn pair() -> (RawFrontend, RawFrontend) {
        let (a, b) = UnixStream::pair().unwrap();
        (
            RawFrontend::new(a, SOON).unwrap(),
            RawFrontend::new(b, SOON).unwrap(),
        )
    }

    #[test]
    fn a_message_arrives_with_payload_and_descriptors() {
        let (a, b) = pair();
        let file = tempfile::tempfile().unwrap();
        a.send(5, VERSION, &[1, 2, 3], &[file.as_fd(), file.as_fd()])
            .unwrap();
        let message = b.recv().unwrap();
        assert_eq!((message.request, message.flags), (5, VERSION));
        assert_eq!(message.payload, [1, 2, 3]);
        assert_eq!(message.fds.len(), 2);
        assert!(message.u64().is_err());
    }

    #[test]
    fn a_message_in_pieces_is_one_message() {
        let (a, b) = pair();
        for byte in encode(1, VERSION, &7u64.to_ne_bytes()) {
            a.send_bytes(&[byte], &[]).unwrap();
        }
        assert_eq!(b.recv().unwrap().u64().unwrap(), 7);
    }

    #[test]
    fn silence_is_a_timeout_and_a_hang_up_is_closed() {
        let (a, b) = UnixStream::pair().unwrap();
        let short = Duration::from_millis(5);
        let front = RawFrontend::new(a, short).unwrap();
        assert!(matches!(front.recv(), Err(Error::Timeout(_))));
        assert!(!front.closes_within(short).unwrap());
        drop(b);
        assert!(matches!(front.recv(), Err(Error::Closed)));
        assert!(front.closes_within(SOON).unwrap());
        assert!(matches!(
            front.send(1, VERSION, &[], &[]),
            Err(Error::Closed)
        ));
    }

    #[test]
    fn too_many_descriptors_are_an_error_not_a_hang() {
        let (a, _b) = pair();
        let file = tempfile::tempfile().unwrap();
        assert!(a.send(1, VERSION, &[], &vec![file.as_fd(); 300]).is_err());
    }
}
