//! What a server says: replies taken apart, data put where it belongs, and every way of breaking
//! the protocol.

use rustix::io::Errno;

use super::conn::{Conn, Expect, State};
use super::{Client, Stage, Wire};
use crate::engine::join::after;
use crate::engine::{Engine, Verb, pieces};
use crate::storage::nbd::proto::{
    self, CHUNK_DATA, CHUNK_ERROR, CHUNK_HOLE, CHUNK_NONE, Reply, u32_at, u64_at,
};

/// Longest head: a chunk's, with the offset and length of a hole.
const HEAD: usize = 32;

/// Longest error message a server may send.
const MAX_MESSAGE: u32 = 64 * 1024;

/// Zeroes are written to guest memory from here.
static ZEROES: [u8; 4096] = [0; 4096];

/// The error of a server that shuts down.
const SHUTDOWN: u32 = 108;

/// What to do after a head was looked at.
enum Step {
    /// Go on.
    On,
    /// More bytes are needed.
    Wait,
    /// The connection is of no use.
    Broken(&'static str),
}

impl Client {
    /// A receive ended.
    pub(super) fn received<E: Engine>(&mut self, wire: &mut Wire<'_, E>, n: u8, result: i32) {
        let Some(conn) = self.conns.get_mut(usize::from(n)) else {
            return;
        };
        conn.rx_busy = false;
        let direct = std::mem::take(&mut conn.direct);
        let moved = u32::try_from(result).unwrap_or(0);
        if conn.state != State::Up || moved == 0 {
            self.lose(n, "the server hung up");
            return;
        }
        if direct {
            if let Expect::Data { at, left, .. } = &mut conn.expect {
                *at += moved;
                *left = left.saturating_sub(moved);
            }
        } else {
            conn.end += moved;
        }
        if let Err(why) = self.parse(wire, n) {
            self.lose(n, why);
        }
    }

    /// Look at all that was received.
    fn parse<E: Engine>(&mut self, wire: &mut Wire<'_, E>, n: u8) -> Result<(), &'static str> {
        // Each turn but the last takes bytes or ends a reply.
        loop {
            let Some(conn) = self.conns.get(usize::from(n)) else {
                return Ok(());
            };
            let step = match conn.expect {
                Expect::Head => self.head(wire, n),
                Expect::Data { .. } => self.data(wire, n),
                Expect::Skip { .. } => self.skip(wire, n),
            };
            match step {
                Step::On => {}
                Step::Wait => break,
                Step::Broken(why) => return Err(why),
            }
        }
        self.tidy(n);
        Ok(())
    }

    /// Move what is left, which is part of a head, to the beginning of the buffer.
    fn tidy(&mut self, n: u8) {
        let Some(conn) = self.conns.get_mut(usize::from(n)) else {
            return;
        };
        let left = conn.end - conn.start;
        let mut bytes = [0; HEAD];
        if let Some(bytes) = bytes.get_mut(..left as usize)
            && conn.start > 0
        {
            let moved = self.buffers.read(conn.rx.skip(conn.start), bytes)
                && self.buffers.write(conn.rx, bytes);
            debug_assert!(moved);
            (conn.start, conn.end) = (0, left);
        }
    }

    fn conn(&mut self, n: u8) -> Option<&mut Conn> {
        self.conns.get_mut(usize::from(n))
    }

    fn take(&mut self, n: u8, bytes: usize) {
        if let Some(conn) = self.conn(n) {
            conn.start += u32::try_from(bytes).unwrap_or(0);
        }
    }

    fn expect(&mut self, n: u8, what: Expect) {
        if let Some(conn) = self.conn(n) {
            conn.expect = what;
        }
    }

    /// The request a cookie names, if it was sent on connection `n` and is not answered yet.
    fn named(&self, cookie: u64, n: u8) -> Option<u32> {
        let index = u32::try_from(cookie & u64::from(u32::MAX)).ok()?;
        let req = self.reqs.get(index as usize)?;
        let own = u64::from(req.serial) == cookie >> 32 && req.stage == Stage::Sent(n);
        (own && req.verdict.is_none()).then_some(index)
    }

    fn head<E: Engine>(&mut self, wire: &mut Wire<'_, E>, n: u8) -> Step {
        let Some(conn) = self.conn(n) else {
            return Step::Wait;
        };
        let (start, len, rx) = (conn.start, conn.end - conn.start, conn.rx);
        let mut bytes = [0; HEAD];
        let have = HEAD.min(len as usize);
        let Some(bytes) = bytes.get_mut(..have) else {
            return Step::Wait;
        };
        if !self.buffers.read(rx.skip(start), bytes) {
            return Step::Broken("its buffer cannot be read");
        }
        let (reply, used) = match Reply::parse(bytes) {
            Ok(Some(parsed)) => parsed,
            Ok(None) => return Step::Wait,
            Err(_) => return Step::Broken("a reply without a magic number"),
        };
        match reply {
            Reply::Simple { error, cookie } => self.simple(wire, n, error, cookie, used),
            Reply::Chunk {
                last,
                kind,
                cookie,
                len,
            } => {
                if !self.shared.info().structured {
                    return Step::Broken("a chunk, though structured replies were not agreed on");
                }
                let Some(index) = self.named(cookie, n) else {
                    return Step::Broken("a chunk for no request");
                };
                let rest = bytes.get(used..).unwrap_or_default();
                self.chunk(wire, n, index, (last, kind, len), (used, rest))
            }
        }
    }

    fn simple<E: Engine>(
        &mut self,
        wire: &mut Wire<'_, E>,
        n: u8,
        error: u32,
        cookie: u64,
        used: usize,
    ) -> Step {
        let Some(index) = self.named(cookie, n) else {
            return Step::Broken("a reply to no request");
        };
        if error == SHUTDOWN {
            return Step::Broken("the server shuts down");
        }
        let Some(req) = self.reqs.get_mut(index as usize) else {
            return Step::Wait;
        };
        let (read, len) = (req.verb == Verb::Read, req.len);
        if read && self.shared.info().structured {
            return Step::Broken("a simple reply to a read, though chunks were agreed on");
        }
        if read && error == 0 && !req.cover.add(0, len) {
            return Step::Broken("data twice");
        }
        self.take(n, used);
        if read && error == 0 {
            let last = true;
            let (req, at, left) = (index, 0, len);
            self.expect(
                n,
                Expect::Data {
                    req,
                    at,
                    left,
                    last,
                },
            );
        } else {
            let failed = (error != 0).then(|| proto::errno(error));
            self.finish(wire, index, failed);
        }
        Step::On
    }

    /// The head of a chunk of the reply to request `index`.
    fn chunk<E: Engine>(
        &mut self,
        wire: &mut Wire<'_, E>,
        n: u8,
        index: u32,
        (last, kind, len): (bool, u16, u32),
        (used, rest): (usize, &[u8]),
    ) -> Step {
        match kind {
            CHUNK_NONE if len == 0 && last => {
                self.take(n, used);
                self.done(wire, index)
            }
            CHUNK_DATA if len > 8 => {
                if rest.len() < 8 {
                    return Step::Wait;
                }
                let Some(at) = self.place(index, u64_at(rest, 0), len - 8) else {
                    return Step::Broken("data that was not asked for, or twice");
                };
                self.take(n, used + 8);
                let (req, left) = (index, len - 8);
                self.expect(
                    n,
                    Expect::Data {
                        req,
                        at,
                        left,
                        last,
                    },
                );
                Step::On
            }
            CHUNK_HOLE if len == 12 => {
                if rest.len() < 12 {
                    return Step::Wait;
                }
                let size = u32_at(rest, 8);
                let Some(at) = self.place(index, u64_at(rest, 0), size) else {
                    return Step::Broken("a hole that was not asked for, or twice");
                };
                self.take(n, used + 12);
                if !self.zero(wire, index, at, size) {
                    return Step::Broken("a hole beyond memory");
                }
                if last {
                    self.done(wire, index)
                } else {
                    Step::On
                }
            }
            error if error & CHUNK_ERROR != 0 && (6..=MAX_MESSAGE).contains(&len) => {
                if rest.len() < 4 {
                    return Step::Wait;
                }
                let code = u32_at(rest, 0);
                if code == SHUTDOWN {
                    return Step::Broken("the server shuts down");
                }
                if let Some(req) = self.reqs.get_mut(index as usize) {
                    req.error.get_or_insert(proto::errno(code));
                }
                self.take(n, used);
                let (req, left) = (index, len);
                self.expect(n, Expect::Skip { req, left, last });
                Step::On
            }
            _ => Step::Broken("a chunk of unknown kind or impossible length"),
        }
    }

    /// Where `len` bytes at `offset` of the disk are in a read; None if they are not, or came
    /// before.
    fn place(&mut self, index: u32, offset: u64, len: u32) -> Option<u32> {
        let req = self.reqs.get_mut(index as usize)?;
        let at = u32::try_from(offset.checked_sub(req.offset)?).ok()?;
        let end = at.checked_add(len)?;
        let inside = req.verb == Verb::Read && end <= req.len;
        (inside && req.cover.add(at, len)).then_some(at)
    }

    /// Data of a read is next.
    fn data<E: Engine>(&mut self, wire: &mut Wire<'_, E>, n: u8) -> Step {
        let Some(conn) = self.conns.get(usize::from(n)) else {
            return Step::Wait;
        };
        let Expect::Data {
            req: index,
            at,
            left,
            last,
        } = conn.expect
        else {
            return Step::Wait;
        };
        if left == 0 {
            self.expect(n, Expect::Head);
            return if last {
                self.done(wire, index)
            } else {
                Step::On
            };
        }
        let now = left.min(conn.end - conn.start);
        if now == 0 {
            return Step::Wait;
        }
        let Some(req) = self.reqs.get(index as usize) else {
            return Step::Wait;
        };
        let guest = wire
            .mems
            .get(usize::from(req.mem.0))
            .and_then(Option::as_ref);
        let (segments, skip) = after(&req.segments, req.skip, at.into());
        let mut from = conn.rx.skip(conn.start).take(now);
        for piece in pieces(segments, skip, now.into()) {
            let part = from.take(piece.len());
            if !guest.is_some_and(|g| self.buffers.copy_to(part, g, piece)) {
                return Step::Broken("data beyond memory");
            }
            from = from.skip(piece.len());
        }
        self.take(n, now as usize);
        let (req, at, left) = (index, at + now, left - now);
        self.expect(
            n,
            Expect::Data {
                req,
                at,
                left,
                last,
            },
        );
        Step::On
    }

    fn skip<E: Engine>(&mut self, wire: &mut Wire<'_, E>, n: u8) -> Step {
        let Some(conn) = self.conn(n) else {
            return Step::Wait;
        };
        let Expect::Skip { req, left, last } = conn.expect else {
            return Step::Wait;
        };
        let now = left.min(conn.end - conn.start);
        conn.start += now;
        if now < left {
            let left = left - now;
            conn.expect = Expect::Skip { req, left, last };
            return Step::Wait;
        }
        conn.expect = Expect::Head;
        if last { self.done(wire, req) } else { Step::On }
    }

    /// Zeroes at byte `at` of a read.
    fn zero<E: Engine>(&mut self, wire: &Wire<'_, E>, index: u32, at: u32, len: u32) -> bool {
        let Some(req) = self.reqs.get(index as usize) else {
            return false;
        };
        let guest = wire
            .mems
            .get(usize::from(req.mem.0))
            .and_then(Option::as_ref);
        let (segments, skip) = after(&req.segments, req.skip, at.into());
        for mut piece in pieces(segments, skip, len.into()) {
            while !piece.is_empty() {
                let n = piece.len().min(4096);
                let zeroes = ZEROES.get(..n as usize).unwrap_or_default();
                if !guest.is_some_and(|g| g.write(piece.take(n), zeroes)) {
                    return false;
                }
                piece = piece.skip(n);
            }
        }
        true
    }

    /// The last chunk of a reply came.
    fn done<E: Engine>(&mut self, wire: &mut Wire<'_, E>, index: u32) -> Step {
        let Some(req) = self.reqs.get(index as usize) else {
            return Step::Wait;
        };
        if req.verb == Verb::Read && req.error.is_none() && !req.cover.is_whole(req.len) {
            return Step::Broken("a reply that leaves out a part of what was asked for");
        }
        let error = req.error;
        self.finish(wire, index, error);
        Step::On
    }

    fn finish<E: Engine>(&mut self, wire: &mut Wire<'_, E>, index: u32, error: Option<Errno>) {
        let Some(req) = self.reqs.get(index as usize) else {
            return;
        };
        let moved = if matches!(req.verb, Verb::Read | Verb::Write) {
            i32::try_from(req.len).unwrap_or(i32::MAX)
        } else {
            0
        };
        let result = error.map_or(moved, |e| -e.raw_os_error());
        self.answered(wire, index, result);
    }
}
