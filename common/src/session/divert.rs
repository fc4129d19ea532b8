//! The messages the `vhost` crate does not know, answered here before it sees them; and one that
//! it refuses in an order that front-ends use.
//!
//! Only the header is peeked at: MSG_PEEK without a control buffer leaves attached fds queued, so
//! a message that is not ours is still whole for the crate.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recv, recvmsg,
    send,
};
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use super::Device;
use super::error::SessionError;
use super::state::Session;

/// Length of a vhost-user header: request, flags, size; 32 bits each.
const HEADER: usize = 12;
/// Header flags: version 1; this is a reply; please reply.
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;
/// Payload of every message diverted here, at most.
const MAX_PAYLOAD: usize = 8;
/// Fds accepted with one message, so that surplus ones are received, and closed.
const MAX_FDS: usize = 8;

// Request numbers, vhost-user "Front-end message types".
const SET_LOG_FD: u32 = 7;
/// QEMU enables the rings of a network device before it sets features, when no driver is there
/// yet; the `vhost` crate takes that for a front-end that did not negotiate it.
const SET_VRING_ENABLE: u32 = 18;
const SEND_RARP: u32 = 19;
const NET_SET_MTU: u32 = 20;
const SET_BACKEND_REQ_FD: u32 = 21;
const SET_STATUS: u32 = 39;
const GET_STATUS: u32 = 40;

/// Requests with an answer of their own that cannot say no: GET_FEATURES, SET_LOG_BASE,
/// GET_VRING_BASE, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM, GET_INFLIGHT_FD, GET_MAX_MEM_SLOTS.
/// (GET_CONFIG can, by an empty payload.) And SET_PROTOCOL_FEATURES: the `vhost` crate takes even
/// refused ones as acknowledged, and forgets REPLY_ACK if that was not among them.
const ANSWERED: [u32; 8] = [1, 6, 11, 15, 16, 17, 31, 36];

/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG.
const CONFIG_CHANGE: u32 = 2;

/// What to do with the next message.
#[derive(Debug)]
pub(super) enum Next {
    /// The `vhost` crate handles it.
    Crate(Header),
    /// It was handled here.
    Done,
    /// It was refused here, and the front-end was told.
    Refused(String),
    /// The connection is over.
    Closed,
}

/// Why a diverted message ends the session.
#[derive(Debug, thiserror::Error)]
pub(super) enum DivertError {
    #[error("message {request} with {size} bytes of payload is malformed")]
    Malformed { request: u32, size: u32 },
    #[error("message {0} needs exactly one file descriptor")]
    Fds(u32),
    #[error("a message header came in pieces ({0} of {HEADER} bytes)")]
    Pieces(usize),
    #[error("message {request} needs protocol feature {feature:?}, which was not negotiated")]
    NotNegotiated { request: u32, feature: Protocol },
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("socket: {0}")]
    Socket(#[from] rustix::io::Errno),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) request: u32,
    flags: u32,
    size: u32,
}

impl Header {
    fn parse(raw: [u8; HEADER]) -> Header {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = raw;
        Header {
            request: u32::from_le_bytes([a, b, c, d]),
            flags: u32::from_le_bytes([e, f, g, h]),
            size: u32::from_le_bytes([i, j, k, l]),
        }
    }

    /// True if the sender is told of a refusal: it asked for that, and the message has no answer of
    /// its own. Those that have one know no failure, so their sender would wait for ever.
    pub(super) fn is_acknowledged(self) -> bool {
        self.flags & NEED_REPLY != 0 && !ANSWERED.contains(&self.request)
    }

    fn message(self, payload: &[u8]) -> Vec<u8> {
        let words = [self.request, self.flags, self.size];
        let header = words.iter().flat_map(|w| w.to_le_bytes());
        header.chain(payload.iter().copied()).collect()
    }
}

impl std::fmt::Display for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Header { request, size, .. } = self;
        write!(f, "message {request} with {size} bytes of payload")
    }
}

/// Look at the next message on `socket`, and handle it if it is one of ours. Blocks until one
/// comes.
pub(super) fn next<D: Device>(
    socket: &UnixStream,
    session: &Mutex<Session<D>>,
) -> Result<Next, DivertError> {
    let mut raw = [0u8; HEADER];
    let flags = RecvFlags::PEEK | RecvFlags::WAITALL;
    let (n, _) = rustix::io::retry_on_intr(|| recv(socket, &mut raw[..], flags))?;
    if n == 0 {
        return Ok(Next::Closed);
    }
    // A peek waits for the first byte only. Whoever sends a header at once, as all do, has sent it
    // whole: the kernel splits nothing that small.
    if n < HEADER {
        return Err(DivertError::Pieces(n));
    }
    let header = Header::parse(raw);
    // From here until the answer is sent, a successor could not know how far this got.
    lock(session).set_handling(true);
    match header.request {
        SET_LOG_FD | SEND_RARP | NET_SET_MTU => {}
        SET_BACKEND_REQ_FD | SET_STATUS | GET_STATUS => {}
        SET_VRING_ENABLE if lock(session).features == 0 => {}
        _ => return Ok(Next::Crate(header)),
    }
    let (payload, fds) = receive(socket, header)?;
    // Not held while replying: a front-end that reads nothing must not hold up the control plane.
    let (result, acks) = {
        let mut session = lock(session);
        let result = session.divert(header, payload, fds);
        if header.request != GET_STATUS {
            session.commit();
        }
        (result, session.speaks(Protocol::REPLY_ACK))
    };
    if header.request == GET_STATUS {
        let status = result?;
        reply(socket, header, status)?;
        return Ok(Next::Done);
    }
    if header.flags & NEED_REPLY != 0 && acks {
        reply(socket, header, u64::from(result.is_err()))?;
        return Ok(result.map_or_else(|e| Next::Refused(e.to_string()), |_| Next::Done));
    }
    result.map(|_| Next::Done)
}

fn lock<D: Device>(session: &Mutex<Session<D>>) -> MutexGuard<'_, Session<D>> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

fn reply(socket: &UnixStream, to: Header, value: u64) -> Result<(), DivertError> {
    let header = Header {
        flags: VERSION | REPLY,
        size: 8,
        ..to
    };
    let message = header.message(&value.to_le_bytes());
    send(socket, &message, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receive a message of ours, with what is attached.
fn receive(socket: &UnixStream, header: Header) -> Result<(u64, Vec<OwnedFd>), DivertError> {
    let Header {
        request,
        size,
        flags,
    } = header;
    let malformed = DivertError::Malformed { request, size };
    let len = usize::try_from(size).unwrap_or(usize::MAX);
    if len > MAX_PAYLOAD || flags & 3 != VERSION || flags & REPLY != 0 {
        return Err(malformed);
    }
    let mut raw = [0u8; HEADER + MAX_PAYLOAD];
    let (want, mut got) = (HEADER + len, 0);
    let mut fds = Vec::new();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    while got < want {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let part = raw.get_mut(got..want).unwrap_or_default();
        let flags = RecvFlags::CMSG_CLOEXEC;
        let msg = recvmsg(socket, &mut [IoSliceMut::new(part)], &mut control, flags)?;
        for m in control.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = m {
                fds.extend(more);
            }
        }
        if msg.bytes == 0 || msg.flags.contains(ReturnFlags::CTRUNC) {
            return Err(malformed);
        }
        got += msg.bytes;
    }
    let [.., a, b, c, d, e, f, g, h] = raw;
    let payload = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    Ok((payload, fds))
}

impl<D: Device> Session<D> {
    pub(super) fn speaks(&self, feature: Protocol) -> bool {
        self.protocol & feature.bits() != 0
    }

    /// Handle one diverted message; the value is the reply of those that have one.
    fn divert(
        &mut self,
        header: Header,
        payload: u64,
        fds: Vec<OwnedFd>,
    ) -> Result<u64, DivertError> {
        let Header { request, size, .. } = header;
        let need = |feature| {
            let missing = DivertError::NotNegotiated { request, feature };
            if self.speaks(feature) {
                Ok(())
            } else {
                Err(missing)
            }
        };
        let one_fd = || <[OwnedFd; 1]>::try_from(fds).map_err(|_| DivertError::Fds(request));
        match (request, size) {
            // Signals that the log was written; nobody needs it, and the fd is closed.
            (SET_LOG_FD, _) => one_fd().map(|_| 0),
            (SET_VRING_ENABLE, 8) => {
                let [a, b, c, d, e, f, g, h] = payload.to_le_bytes();
                let index = self.index(u32::from_le_bytes([a, b, c, d]))?;
                match u32::from_le_bytes([e, f, g, h]) {
                    0 => self.set_enabled(index, false)?,
                    1 => self.set_enabled(index, true)?,
                    _ => return Err(DivertError::Malformed { request, size }),
                }
                Ok(0)
            }
            (SEND_RARP, 8) => {
                need(Protocol::RARP)?;
                // The address is the first six bytes as they came.
                let [a, b, c, d, e, f, _, _] = payload.to_le_bytes();
                self.device.announce([a, b, c, d, e, f]);
                Ok(0)
            }
            (NET_SET_MTU, 8) => {
                need(Protocol::MTU)?;
                let mtu = u16::try_from(payload).ok();
                if mtu.is_some_and(|mtu| self.device.set_mtu(mtu)) {
                    Ok(0)
                } else {
                    Err(SessionError::BadMtu(payload).into())
                }
            }
            (SET_BACKEND_REQ_FD, 0) => {
                need(Protocol::BACKEND_REQ)?;
                let [fd] = one_fd()?;
                self.backend_req = Some(UnixStream::from(fd));
                Ok(0)
            }
            (SET_STATUS, 8) => {
                need(Protocol::STATUS)?;
                #[expect(clippy::cast_possible_truncation, reason = "the status is one byte")]
                {
                    self.device_status = payload as u8;
                }
                if self.device_status == 0 {
                    self.reset()?;
                }
                Ok(0)
            }
            (GET_STATUS, 0) => {
                need(Protocol::STATUS)?;
                Ok(self.device_status.into())
            }
            _ => Err(DivertError::Malformed { request, size }),
        }
    }

    /// Tell the front-end that configuration space changed (a disk was resized); false if it did
    /// not open a channel for that.
    pub fn notify_config_change(&self) -> bool {
        let Some(channel) = &self.backend_req else {
            return false;
        };
        let header = Header {
            request: CONFIG_CHANGE,
            flags: VERSION,
            size: 0,
        };
        // Never wait for a front-end that does not read.
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        send(channel.as_fd(), &header.message(&[]), flags).is_ok()
    }
}
