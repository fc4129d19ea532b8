//! The NBD client of one worker: requests and replies through the worker's ring, nothing waits.
//!
//! An operation becomes a request with a cookie; the reply ends it. A connection that breaks is
//! shut down, its operations are awaited, and its requests go to another connection or wait for
//! the keeper's next one ([`crate::storage::nbd`] says what that promises).
//!
//! The server is hostile until proven otherwise: a reply names a request by its cookie, which holds
//! a number never used twice; data goes only to the request's own segments, each byte once; a
//! request is done only when all of it came; anything else ends the connection, counted and said.

mod conn;
mod cover;
mod pump;
mod reply;
mod req;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;
use towpath_common::mem::{Mem, Segment};

use super::{Completion, DiskId, Engine, Guest, MemId, Op, Token, Verb};
use crate::storage::nbd::proto::flag;
use crate::storage::nbd::{Desk, Export, Mail, Orders, Shared};
use conn::{Conn, Item, State};
pub(super) use req::What;
use req::{Req, Stage, buffers};

/// Writes up to so many bytes are copied into the send buffer; longer ones are sent from where they
/// are.
const COPY: u32 = 32 * 1024;

/// A read with so many bytes outstanding receives them where they belong.
const DIRECT: u32 = 16 * 1024;

/// Most data in one request.
const MAX_DATA: u32 = 2 << 20;

/// What a client uses of its worker.
pub(super) struct Wire<'a, E> {
    pub(super) inner: &'a mut E,
    /// Memory by its place.
    pub(super) mems: &'a [Option<Arc<Mem>>],
    /// Operations that ended.
    pub(super) ready: &'a mut VecDeque<Completion>,
}

/// A client.
#[derive(Debug)]
pub(super) struct Client {
    shared: Arc<Shared>,
    desk: Arc<Desk>,
    orders: Orders,
    bell: DiskId,
    bell_busy: bool,
    /// All buffers, and eight bytes for the bell.
    buffers: Arc<Mem>,
    mem: MemId,
    bell_seg: Segment,
    conns: Box<[Conn]>,
    reqs: Vec<Req>,
    free: Vec<u32>,
    queue: VecDeque<u32>,
    /// Added to the tokens of own operations.
    base: u32,
    serial: u32,
    /// What [`Shared::renewals`] said last.
    renewals: u64,
    /// Something could not be pushed and must be tried again.
    unsettled: bool,
    closing: bool,
}

impl Client {
    /// Places in the engine that a client of `export` needs: for its bell and its connections.
    pub(super) fn places(export: &Export) -> usize {
        1 + usize::from(export.connections())
    }

    /// A client of `export`, whose own operations have tokens from `base` on; `places` are as many
    /// as [`Client::places`] said. Connections are ordered.
    pub(super) fn new<E: Engine>(
        inner: &mut E,
        export: &Export,
        places: &[DiskId],
        mem: MemId,
        base: u32,
    ) -> io::Result<Client> {
        let count = u32::from(export.connections());
        let (buffers, bell_seg, segments) = buffers(count)?;
        let desk = export.desk()?;
        let (bell, conns) = places.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        inner.set_file(*bell, desk.bell())?;
        inner.set_memory(mem, Some(&Guest::plain(Arc::clone(&buffers))))?;
        let conns = conns
            .iter()
            .zip(segments)
            .map(|(place, seg)| Conn::new(*place, seg));
        let client = Client {
            shared: Arc::clone(export.shared()),
            orders: export.orders(&desk),
            desk,
            bell: *bell,
            bell_busy: false,
            buffers,
            mem,
            bell_seg,
            conns: conns.collect(),
            reqs: Vec::new(),
            free: Vec::new(),
            queue: VecDeque::new(),
            base,
            serial: 0,
            renewals: export.shared().renewals(),
            unsettled: true,
            closing: false,
        };
        (0..export.connections()).for_each(|n| client.orders.place(n));
        Ok(client)
    }

    /// The places it has.
    pub(super) fn all_places(&self) -> impl Iterator<Item = DiskId> + '_ {
        std::iter::once(self.bell).chain(self.conns.iter().map(|c| c.place))
    }

    /// The memory it has.
    pub(super) fn memory(&self) -> MemId {
        self.mem
    }

    /// True if [`Client::pump`] must be called again soon.
    pub(super) fn is_unsettled(&self) -> bool {
        self.unsettled
    }

    /// Begin to end: nothing of the client's own stays in flight for long.
    pub(super) fn hang_up(&mut self) {
        self.closing = true;
        self.conns.iter_mut().for_each(Conn::hang_up);
        self.desk.ring();
    }

    /// True once a client that hung up can be dropped.
    pub(super) fn is_gone(&self) -> bool {
        self.closing && !self.bell_busy && self.conns.iter().all(Conn::is_quiet)
    }

    /// Take an operation.
    pub(super) fn push(&mut self, token: Token, op: &Op<'_>) -> Result<(), Errno> {
        let transfer = matches!(op.verb, Verb::Read | Verb::Write);
        let info = self.shared.info();
        let can = match op.verb {
            Verb::Read | Verb::Write => true,
            // Nothing can be in a cache that must be told of.
            Verb::Sync => self.shared.can(flag::SEND_FLUSH) && !self.shared.is_lost(),
            Verb::Discard => self.shared.can(flag::SEND_TRIM),
            Verb::Punch | Verb::Zero => self.shared.can(flag::SEND_WRITE_ZEROES),
        };
        if !can {
            let lost = op.verb == Verb::Sync;
            return Err(if lost { Errno::IO } else { Errno::OPNOTSUPP });
        }
        let mut len = op.len;
        if transfer {
            let most = info.max_block.min(MAX_DATA);
            len = len.min(u64::from(most - most % info.min_block));
        }
        let len = u32::try_from(len).map_err(|_| Errno::INVAL)?;
        let index = self.free.pop().map_or_else(|| self.grow(), Ok)?;
        let req = self.reqs.get_mut(index as usize).ok_or(Errno::NOMEM)?;
        (req.stage, req.token, req.verb) = (Stage::Queued, token, op.verb);
        (req.durable, req.offset, req.len) = (op.durable, op.offset, len);
        (req.mem, req.skip, req.flushing) = (op.mem, op.skip, false);
        req.segments.clear();
        if transfer {
            req.segments.extend_from_slice(op.segments);
        }
        self.queue.push_back(index);
        self.unsettled = true;
        Ok(())
    }

    #[cold]
    fn grow(&mut self) -> Result<u32, Errno> {
        let index = u32::try_from(self.reqs.len()).map_err(|_| Errno::NOMEM)?;
        self.reqs.push(Req::free(self.mem));
        Ok(index)
    }

    /// An own operation ended.
    pub(super) fn ended<E: Engine>(&mut self, wire: &mut Wire<'_, E>, what: What, result: i32) {
        match what {
            What::Bell => {
                self.bell_busy = false;
                self.collect(wire);
            }
            What::Send(n) => self.sent(wire, n, result),
            What::Receive(n) => self.received(wire, n, result),
        }
        self.unsettled = true;
    }

    /// Take what is at the desk.
    fn collect<E: Engine>(&mut self, wire: &mut Wire<'_, E>) {
        let renewals = self.shared.renewals();
        if self.shared.has_given_up() || renewals != self.renewals {
            // What is under way there ends with them, and then fails, or is sent anew.
            self.conns.iter_mut().for_each(Conn::shut);
            self.renewals = renewals;
            // Those with nothing in flight have ended.
            for n in 0..self.conns.len() {
                self.lose(u8::try_from(n).unwrap_or(0), "it was shut");
            }
        }
        while let Some(Mail {
            number,
            socket,
            size,
        }) = self.desk.take()
        {
            let others = self.conns.iter().any(Conn::stands);
            let doubt = others.then_some(self.serial);
            let Some(conn) = self.conns.get_mut(usize::from(number)) else {
                continue;
            };
            if self.closing || conn.state != State::Down {
                continue;
            }
            if size != self.shared.size() {
                // Made just before the export was to have another.
                self.orders.place(number);
                continue;
            }
            match wire.inner.set_file(conn.place, socket.as_fd()) {
                Ok(()) => conn.open(socket, doubt),
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be used by this worker");
                    self.orders.place(number);
                }
            }
        }
    }

    fn sent<E: Engine>(&mut self, wire: &mut Wire<'_, E>, n: u8, result: i32) {
        let Some(conn) = self.conns.get_mut(usize::from(n)) else {
            return;
        };
        conn.tx_busy = false;
        let moved = u32::try_from(result).unwrap_or(0);
        if conn.state != State::Up || moved == 0 {
            self.lose(n, "it does not take what is sent");
            return;
        }
        let payload = match conn.outgoing().and_then(|h| h.items.front().copied()) {
            Some(Item::Payload(index)) => self.reqs.get(index as usize).map_or(0, |r| r.len),
            _ => 0,
        };
        let whole = self
            .conns
            .get_mut(usize::from(n))
            .and_then(|c| c.was_sent(moved, payload));
        if let Some(index) = whole
            && let Some(req) = self.reqs.get_mut(index as usize)
        {
            req.sending = false;
            if let Some(result) = req.verdict.take() {
                self.answered(wire, index, result);
            }
        }
    }

    /// A request was answered; the connection has one less.
    fn answered<E: Engine>(&mut self, wire: &mut Wire<'_, E>, index: u32, result: i32) {
        let Some(req) = self.reqs.get_mut(index as usize) else {
            return;
        };
        if req.sending {
            // The kernel still reads its memory.
            req.verdict = Some(result);
            return;
        }
        if let Stage::Sent(n) = req.stage
            && let Some(conn) = self.conns.get_mut(usize::from(n))
        {
            conn.sent -= 1;
            let serial = req.serial;
            self.conns.iter_mut().for_each(|c| c.vouch(serial));
        }
        let unstable = matches!(
            req.verb,
            Verb::Write | Verb::Zero | Verb::Punch | Verb::Discard
        );
        let fua = self.shared.can(flag::SEND_FUA);
        if result >= 0 {
            if req.verb == Verb::Sync || req.flushing {
                self.shared.flushed(req.mark);
            } else if unstable && req.durable && !fua {
                self.shared.acked();
                (req.flushing, req.stage) = (true, Stage::Queued);
                self.queue.push_back(index);
                return;
            } else if unstable && !req.durable {
                self.shared.acked();
            }
        }
        self.end(wire, index, result);
    }

    /// A request ended: complete its operation.
    fn end<E: Engine>(&mut self, wire: &mut Wire<'_, E>, index: u32, result: i32) {
        if let Some(req) = self.reqs.get_mut(index as usize) {
            req.stage = Stage::Free;
            let token = req.token;
            self.free.push(index);
            wire.ready.push_back(Completion { token, result });
        }
    }

    /// A connection is of no use any more.
    fn lose(&mut self, n: u8, why: &'static str) {
        let closing = self.closing;
        let Some(conn) = self.conns.get_mut(usize::from(n)) else {
            return;
        };
        if conn.state == State::Up {
            self.shared.lose();
            if !closing {
                tracing::warn!(name: crate::events::STORAGE_LOST, connection = n, why,
                    "NBD connection lost");
            }
            conn.shut();
        }
        if conn.state != State::Dying || !conn.is_quiet() {
            return;
        }
        (conn.state, conn.socket, conn.doubt) = (State::Down, None, None);
        if closing {
            return;
        }
        if !self.conns.iter().any(Conn::stands) {
            // What is left, if anything, may lead to a server that was started anew.
            self.shared.cut_off();
            self.conns.iter_mut().for_each(|c| c.doubt = None);
        }
        // In the order they were first sent in, before all that waits.
        let here = |r: &Req| r.stage == Stage::Sent(n);
        let mut again: Vec<u32> = (0..u32::try_from(self.reqs.len()).unwrap_or(0))
            .filter(|i| self.reqs.get(*i as usize).is_some_and(here))
            .collect();
        // The newest first, so that the oldest ends up in front.
        again.sort_by_key(|i| {
            let serial = self.reqs.get(*i as usize).map_or(0, |r| r.serial);
            self.serial.wrapping_sub(serial)
        });
        for index in again {
            if let Some(req) = self.reqs.get_mut(index as usize) {
                (req.stage, req.flushing) = (Stage::Queued, false);
                (req.sending, req.verdict) = (false, None);
                self.queue.push_front(index);
            }
        }
        self.orders.place(n);
    }
}

#[cfg(test)]
mod secure;
#[cfg(test)]
mod servers;
#[cfg(test)]
mod several;
#[cfg(test)]
mod tests;
