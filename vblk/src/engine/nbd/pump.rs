//! From requests to the ring: which connection, which buffer, which operation.

use rustix::io::Errno;
use towpath_common::mem::Segment;

use super::conn::{Conn, Expect, Item, RX_BYTES, State};
use super::req::{Simple, Stage, What, request_of};
use super::{COPY, Client, DIRECT, Wire};
use crate::engine::join::after;
use crate::engine::{DiskId, Engine, Op, Token, Verb, pieces};
use crate::storage::nbd::proto::{Command, flag};

impl Client {
    /// Push all that can be pushed: requests to connections, connections' buffers to the ring.
    pub(in crate::engine) fn pump<E: Engine>(&mut self, wire: &mut Wire<'_, E>) {
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
        let able = |c: &&(usize, &Conn)| c.1.is_trusted() && c.1.has_room(data);
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
            for piece in pieces(&req.segments, req.skip, req.len.into()) {
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
        let Some(half) = conn.outgoing() else {
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
            Expect::Data { req, at, left, .. } if left >= DIRECT && conn.start == end => {
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
}
