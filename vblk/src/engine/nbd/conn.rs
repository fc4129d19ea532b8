//! One connection: what is to be sent, what was received.
//!
//! Two send buffers take turns: while one is on its way, requests gather in the other, so that all
//! requests of a burst leave with one operation. The data of small writes is copied in between;
//! that of large ones is sent from the guest's memory, in its place in the order. What is received
//! goes to one buffer; the rest of a long read's data goes straight to the guest's memory.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::net::{SendFlags, Shutdown};
use towpath_common::mem::Segment;

use crate::engine::DiskId;
use crate::storage::nbd::proto::{Command, REQUEST_BYTES, Request};

/// Bytes of a send buffer.
pub(super) const TX_BYTES: u32 = 128 * 1024;
/// Bytes of the receive buffer.
pub(super) const RX_BYTES: u32 = 256 * 1024;
/// Bytes of all buffers of a connection.
pub(super) const BYTES: u32 = 2 * TX_BYTES + RX_BYTES;

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// There is none; one is ordered.
    Down,
    /// It works.
    Up,
    /// It was shut down, and operations on it have not ended yet.
    Dying,
}

/// What is sent next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Item {
    /// The send buffer up to here.
    Bytes(u32),
    /// The data of this request, from its own memory.
    Payload(u32),
}

/// A send buffer.
#[derive(Debug)]
pub(super) struct Half {
    pub(super) seg: Segment,
    /// Bytes filled.
    pub(super) len: u32,
    /// Bytes sent.
    pub(super) at: u32,
    /// Bytes sent of the payload that is first among the items.
    pub(super) paid: u32,
    pub(super) items: VecDeque<Item>,
}

impl Half {
    fn new(seg: Segment) -> Half {
        Half {
            seg,
            len: 0,
            at: 0,
            paid: 0,
            items: VecDeque::new(),
        }
    }

    fn clear(&mut self) {
        (self.len, self.at, self.paid) = (0, 0, 0);
        self.items.clear();
    }

    /// Bytes that fit.
    pub(super) fn room(&self) -> u32 {
        TX_BYTES - self.len
    }

    /// `n` bytes were filled in.
    pub(super) fn filled(&mut self, n: u32) {
        self.len += n;
        if let Some(Item::Bytes(end)) = self.items.back_mut() {
            *end = self.len;
        } else {
            self.items.push_back(Item::Bytes(self.len));
        }
    }
}

/// What the next received bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// The head of a reply.
    Head,
    /// Data of a read.
    Data {
        /// Whose.
        req: u32,
        /// Where it goes in the request.
        at: u32,
        /// Bytes that have not come.
        left: u32,
        /// The reply ends with it.
        last: bool,
    },
    /// Of no interest.
    Skip {
        /// Whose reply it is in.
        req: u32,
        /// Bytes that have not come.
        left: u32,
        /// The reply ends with it.
        last: bool,
    },
}

/// A connection.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) place: DiskId,
    pub(super) socket: Option<OwnedFd>,
    pub(super) state: State,
    pub(super) halves: [Half; 2],
    /// The half that is being filled.
    pub(super) filling: usize,
    /// A send is in flight.
    pub(super) tx_busy: bool,
    pub(super) rx: Segment,
    /// Received bytes not looked at yet.
    pub(super) start: u32,
    pub(super) end: u32,
    /// A receive is in flight.
    pub(super) rx_busy: bool,
    /// It is one into a guest's memory.
    pub(super) direct: bool,
    pub(super) expect: Expect,
    /// Requests sent and not answered.
    pub(super) sent: u32,
    /// It may lead to another server than the others do, until one of these answers a request with
    /// a later number than this.
    pub(super) doubt: Option<u32>,
}

impl Conn {
    /// A connection whose buffers are in `seg`, which has [`BYTES`] bytes.
    pub(super) fn new(place: DiskId, seg: Segment) -> Conn {
        Conn {
            place,
            socket: None,
            state: State::Down,
            halves: [
                Half::new(seg.take(TX_BYTES)),
                Half::new(seg.skip(TX_BYTES).take(TX_BYTES)),
            ],
            filling: 0,
            tx_busy: false,
            rx: seg.skip(2 * TX_BYTES).take(RX_BYTES),
            start: 0,
            end: 0,
            rx_busy: false,
            direct: false,
            expect: Expect::Head,
            sent: 0,
            doubt: None,
        }
    }

    /// The connection is there, in doubt or not.
    pub(super) fn open(&mut self, socket: OwnedFd, doubt: Option<u32>) {
        self.halves.iter_mut().for_each(Half::clear);
        (self.start, self.end, self.sent) = (0, 0, 0);
        (self.filling, self.expect, self.direct) = (0, Expect::Head, false);
        (self.socket, self.doubt) = (Some(socket), doubt);
        self.state = State::Up;
    }

    /// End it: operations in flight end soon.
    pub(super) fn shut(&mut self) {
        if self.state == State::Up {
            self.state = State::Dying;
        }
        if let Some(socket) = &self.socket {
            // An error means that it ended by itself.
            let _ = rustix::net::shutdown(socket, Shutdown::Both);
        }
    }

    /// Say goodbye, if that is possible without waiting, and end it.
    pub(super) fn hang_up(&mut self) {
        if let Some(socket) = &self.socket
            && self.state == State::Up
            && !self.tx_busy
        {
            let bye = Request {
                command: Command::Disconnect,
                flags: 0,
                cookie: 0,
                offset: 0,
                len: 0,
            };
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let _ = rustix::net::send(socket, &bye.bytes(), flags);
        }
        self.shut();
    }

    /// True if it is one of those that vouch for others: it leads, or led a moment ago, to the
    /// server that acknowledged what was written.
    pub(super) fn stands(&self) -> bool {
        self.state != State::Down && self.doubt.is_none()
    }

    /// True if requests may go to it.
    pub(super) fn is_trusted(&self) -> bool {
        self.state == State::Up && self.doubt.is_none()
    }

    /// A connection that is trusted answered the request with this number.
    pub(super) fn vouch(&mut self, serial: u32) {
        let later = |since| serial.wrapping_sub(since).wrapping_sub(1) < u32::MAX / 2;
        if self.doubt.is_some_and(later) {
            self.doubt = None;
        }
    }

    /// True if no operation on it is in flight.
    pub(super) fn is_quiet(&self) -> bool {
        !self.tx_busy && !self.rx_busy
    }

    /// Room for a request with `data` bytes of data in the buffer that is being filled.
    pub(super) fn has_room(&self, data: u32) -> bool {
        let head = u32::try_from(REQUEST_BYTES).unwrap_or(0);
        self.halves
            .get(self.filling)
            .is_some_and(|h| h.room() >= head + data)
    }

    /// The half that is being sent, if there is something to send; swaps when it has nothing.
    pub(super) fn outgoing(&mut self) -> Option<&mut Half> {
        let sending = 1 - self.filling;
        let idle = |h: &Half| h.items.is_empty();
        if self.halves.get(sending).is_none_or(idle) {
            if self.halves.get(self.filling).is_none_or(idle) {
                return None;
            }
            self.filling = sending;
        }
        self.halves.get_mut(1 - self.filling)
    }

    /// The operation in flight sent `n` bytes; the payload that was sent whole by that.
    pub(super) fn was_sent(&mut self, n: u32, payload: u32) -> Option<u32> {
        let half = self.halves.get_mut(1 - self.filling)?;
        let whole = match half.items.front().copied()? {
            Item::Bytes(end) => {
                half.at += n;
                if half.at >= end {
                    half.items.pop_front();
                }
                None
            }
            Item::Payload(req) => {
                half.paid += n;
                (half.paid >= payload).then(|| {
                    half.items.pop_front();
                    half.paid = 0;
                    req
                })
            }
        };
        if half.items.is_empty() {
            half.clear();
        }
        whole
    }
}
