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
mod reply;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;
use towpath_common::mem::{Mapping, Mem, Region, RegionSpec, Segment};

use super::join::after;
use super::{Completion, DiskId, Engine, Guest, MemId, Op, Token, Verb};
use crate::storage::nbd::proto::{Command, FUA, NO_HOLE, Request, flag};
use crate::storage::nbd::{Desk, Export, Orders, Shared};
use conn::{BYTES, Conn, Item, RX_BYTES, State};
use cover::Cover;

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

/// An operation of the client's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Bell,
    Receive(u8),
    Send(u8),
}

impl What {
    /// As a number below 256.
    fn number(self) -> u32 {
        match self {
            What::Bell => 0,
            What::Receive(n) => 1 + 2 * u32::from(n),
            What::Send(n) => 2 + 2 * u32::from(n),
        }
    }

    /// What [`What::number`] gave.
    pub(super) fn of(number: u32) -> What {
        let n = u8::try_from(number.saturating_sub(1) / 2).unwrap_or(u8::MAX);
        match number {
            0 => What::Bell,
            odd if odd % 2 == 1 => What::Receive(n),
            _ => What::Send(n),
        }
    }
}

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Free,
    Queued,
    /// Sent on this connection.
    Sent(u8),
}

/// An operation under way.
#[derive(Debug)]
struct Req {
    stage: Stage,
    token: Token,
    verb: Verb,
    durable: bool,
    offset: u64,
    len: u32,
    mem: MemId,
    segments: Vec<Segment>,
    skip: u32,
    /// The upper half of its cookie: another one each time it is sent.
    serial: u32,
    /// It was written, and is being flushed, for a server without FUA.
    flushing: bool,
    /// What [`Shared::flushing`] said when it was sent.
    mark: u64,
    /// Bytes of a read that came.
    cover: Cover,
    /// An error that came in a chunk.
    error: Option<Errno>,
    /// Its data is being sent from guest memory.
    sending: bool,
    /// How it ended, if that was told before its data was sent.
    verdict: Option<i32>,
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
        self.reqs.push(Req {
            stage: Stage::Free,
            token: Token(0),
            verb: Verb::Sync,
            durable: false,
            offset: 0,
            len: 0,
            mem: self.mem,
            segments: Vec::new(),
            skip: 0,
            serial: 0,
            flushing: false,
            mark: 0,
            cover: Cover::default(),
            error: None,
            sending: false,
            verdict: None,
        });
        Ok(index)
    }

    /// Push all that can be pushed: requests to connections, connections' buffers to the ring.
    pub(super) fn pump<E: Engine>(&mut self, wire: &mut Wire<'_, E>) {
        self.unsettled = false;
        if !self.bell_busy && !self.closing {
            let op = self.op(Verb::Read, self.bell, &self.bell_seg, 8);
            self.bell_busy = self.start(wire, What::Bell, &op.over_one());
        }
        let given_up = self.shared.has_given_up();
        while let Some(index) = self.queue.front().copied() {
            if given_up {
                self.end(wire, index, -Errno::IO.raw_os_error());
            } else if !self.send(wire, index) {
                break;
            }
            self.queue.pop_front();
        }
        for n in 0..self.conns.len() {
            let n = u8::try_from(n).unwrap_or(0);
            self.pump_send(wire, n);
            self.pump_receive(wire, n);
        }
    }

    fn op(&self, verb: Verb, disk: DiskId, seg: &Segment, len: u32) -> Simple {
        Simple {
            verb,
            disk,
            mem: self.mem,
            seg: [seg.take(len)],
        }
    }

    /// Push an own operation; true if that worked.
    fn start<E: Engine>(&mut self, wire: &mut Wire<'_, E>, what: What, op: &Op<'_>) -> bool {
        let pushed = wire
            .inner
            .push(Token(self.base + what.number()), op)
            .is_ok();
        self.unsettled |= !pushed;
        pushed
    }

    /// The connection with the least to do that has room for `data` bytes.
    fn choose(&self, data: u32) -> Option<u8> {
        let able = |c: &&(usize, &Conn)| c.1.state == State::Up && c.1.has_room(data);
        let all = self.conns.iter().enumerate();
        let best = all.filter(|c| able(&c)).min_by_key(|(_, c)| c.sent)?;
        u8::try_from(best.0).ok()
    }

    /// Put a request into a send buffer; false if there is no room or no connection.
    fn send<E: Engine>(&mut self, wire: &mut Wire<'_, E>, index: u32) -> bool {
        let Some(req) = self.reqs.get(index as usize) else {
            return true;
        };
        let copied = req.verb == Verb::Write && !req.flushing && req.len <= COPY;
        let inline = if copied { req.len } else { 0 };
        if req.verb == Verb::Sync && self.shared.is_lost() {
            self.end(wire, index, -Errno::IO.raw_os_error());
            return true;
        }
        let Some(number) = self.choose(inline) else {
            return false;
        };
        self.serial = self.serial.wrapping_add(1);
        let (serial, mark, fua) = (
            self.serial,
            self.shared.flushing(),
            self.shared.can(flag::SEND_FUA),
        );
        let (Some(req), Some(conn)) = (
            self.reqs.get_mut(index as usize),
            self.conns.get_mut(usize::from(number)),
        ) else {
            return true;
        };
        (req.serial, req.mark) = (serial, mark);
        (req.stage, req.error, req.verdict) = (Stage::Sent(number), None, None);
        req.cover.clear();
        let request = request_of(req, index, fua);
        let Some(half) = conn.halves.get_mut(conn.filling) else {
            return true;
        };
        let bytes = request.bytes();
        let mut ok = self.buffers.write(half.seg.skip(half.len), &bytes);
        half.filled(u32::try_from(bytes.len()).unwrap_or(0));
        req.sending = false;
        if copied {
            let guest = wire
                .mems
                .get(usize::from(req.mem.0))
                .and_then(Option::as_ref);
            let mut to = half.seg.skip(half.len);
            for piece in super::pieces(&req.segments, req.skip, req.len.into()) {
                ok &= guest.is_some_and(|g| g.copy_to(piece, &self.buffers, to));
                to = to.skip(piece.len());
            }
            half.filled(req.len);
        } else if request.command == Command::Write {
            req.sending = true;
            half.items.push_back(Item::Payload(index));
        }
        conn.sent += 1;
        // Memory that cannot be read was checked before it came here.
        debug_assert!(ok);
        true
    }

    fn pump_send<E: Engine>(&mut self, wire: &mut Wire<'_, E>, n: u8) {
        let Some(conn) = self.conns.get_mut(usize::from(n)) else {
            return;
        };
        if conn.state != State::Up || conn.tx_busy {
            return;
        }
        let place = conn.place;
        let Some(half) = conn.to_send() else {
            return;
        };
        let (seg, at, paid) = (half.seg, half.at, half.paid);
        let busy = match half.items.front().copied() {
            None => false,
            Some(Item::Bytes(end)) => {
                let op = self.op(Verb::Write, place, &seg.skip(at), end - at);
                self.start(wire, What::Send(n), &op.over_one())
            }
            Some(Item::Payload(index)) => {
                let token = Token(self.base + What::Send(n).number());
                let pushed = self.reqs.get(index as usize).map(|req| {
                    let (segments, skip) = after(&req.segments, req.skip, paid.into());
                    let op = Op {
                        verb: Verb::Write,
                        disk: place,
                        durable: false,
                        offset: 0,
                        len: u64::from(req.len - paid),
                        mem: req.mem,
                        segments,
                        skip,
                    };
                    wire.inner.push(token, &op).is_ok()
                });
                self.unsettled |= pushed != Some(true);
                pushed == Some(true)
            }
        };
        if let Some(conn) = self.conns.get_mut(usize::from(n)) {
            conn.tx_busy = busy;
        }
    }

    fn pump_receive<E: Engine>(&mut self, wire: &mut Wire<'_, E>, n: u8) {
        let Some(conn) = self.conns.get(usize::from(n)) else {
            return;
        };
        if conn.state != State::Up || conn.rx_busy {
            return;
        }
        let (place, end, seg) = (conn.place, conn.end, conn.rx);
        let direct = match conn.expect {
            conn::Expect::Data { req, at, left, .. } if left >= DIRECT && conn.start == end => {
                Some((req, at, left))
            }
            _ => None,
        };
        let busy = match direct {
            None => {
                let op = self.op(Verb::Read, place, &seg.skip(end), RX_BYTES - end);
                self.start(wire, What::Receive(n), &op.over_one())
            }
            Some((index, at, left)) => {
                let token = Token(self.base + What::Receive(n).number());
                let pushed = self.reqs.get(index as usize).map(|req| {
                    let (segments, skip) = after(&req.segments, req.skip, at.into());
                    let op = Op {
                        verb: Verb::Read,
                        disk: place,
                        durable: false,
                        offset: 0,
                        len: left.into(),
                        mem: req.mem,
                        segments,
                        skip,
                    };
                    wire.inner.push(token, &op).is_ok()
                });
                self.unsettled |= pushed != Some(true);
                pushed == Some(true)
            }
        };
        if let Some(conn) = self.conns.get_mut(usize::from(n)) {
            (conn.rx_busy, conn.direct) = (busy, busy && direct.is_some());
        }
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
        if self.shared.has_given_up() {
            // What is under way there ends with them, and then fails.
            self.conns.iter_mut().for_each(Conn::shut);
        }
        while let Some((number, socket)) = self.desk.take() {
            let Some(conn) = self.conns.get_mut(usize::from(number)) else {
                continue;
            };
            if self.closing || conn.state != State::Down {
                continue;
            }
            match wire.inner.set_file(conn.place, socket.as_fd()) {
                Ok(()) => conn.open(socket),
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
        let payload = match conn.to_send().and_then(|h| h.items.front().copied()) {
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
                tracing::warn!(connection = n, why, "NBD connection lost");
            }
            conn.shut();
        }
        if conn.state != State::Dying || !conn.is_quiet() {
            return;
        }
        (conn.state, conn.socket) = (State::Down, None);
        if closing {
            return;
        }
        if self.conns.iter().all(|c| c.state == State::Down) {
            self.shared.cut_off();
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

/// The request for what `req` has to do now.
fn request_of(req: &Req, index: u32, fua: bool) -> Request {
    let (command, mut flags) = match req.verb {
        _ if req.flushing => (Command::Flush, 0),
        Verb::Read => (Command::Read, 0),
        Verb::Write => (Command::Write, 0),
        Verb::Sync => (Command::Flush, 0),
        Verb::Punch => (Command::WriteZeroes, 0),
        Verb::Zero => (Command::WriteZeroes, NO_HOLE),
        Verb::Discard => (Command::Trim, 0),
    };
    let flush = command == Command::Flush;
    if req.durable && fua && !flush && command != Command::Read {
        flags |= FUA;
    }
    Request {
        command,
        flags,
        cookie: u64::from(req.serial) << 32 | u64::from(index),
        offset: if flush { 0 } else { req.offset },
        len: if flush { 0 } else { req.len },
    }
}

/// An operation on one piece of the client's own memory.
struct Simple {
    verb: Verb,
    disk: DiskId,
    mem: MemId,
    seg: [Segment; 1],
}

impl Simple {
    fn over_one(&self) -> Op<'_> {
        Op {
            verb: self.verb,
            disk: self.disk,
            durable: false,
            offset: 0,
            len: self.seg.iter().map(|s| u64::from(s.len())).sum(),
            mem: self.mem,
            segments: &self.seg,
            skip: 0,
        }
    }
}

/// Memory for `count` connections and the bell.
fn buffers(count: u32) -> io::Result<(Arc<Mem>, Segment, Vec<Segment>)> {
    const PAGE: u32 = 4096;
    let len = u64::from(PAGE) + u64::from(count) * u64::from(BYTES);
    let (_, file) = Mapping::memfd("vblk-nbd", len).map_err(io::Error::other)?;
    let spec = RegionSpec {
        gpa: 0,
        len,
        uva: 0,
        offset: 0,
    };
    let region = Region::map(spec, file).map_err(io::Error::other)?;
    let mem = Mem::new(vec![region]).map_err(io::Error::other)?;
    let at = |gpa: u64, len| mem.lookup(gpa, len, &mut 0).unwrap_or_default();
    let bell = at(0, 8);
    let first = u64::from(PAGE);
    let conns = (0..count).map(|n| at(first + u64::from(n) * u64::from(BYTES), BYTES));
    let conns = conns.collect();
    Ok((Arc::new(mem), bell, conns))
}

#[cfg(test)]
mod servers;
#[cfg(test)]
mod tests;
