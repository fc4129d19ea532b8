//! Operations as requests, and the client's own operations.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;
use towpath_common::mem::{Mapping, Mem, Region, RegionSpec, Segment};

use super::conn::BYTES;
use super::cover::Cover;
use crate::engine::{DiskId, MemId, Op, Token, Verb};
use crate::storage::nbd::proto::{Command, FUA, NO_HOLE, Request};

/// An operation of the client's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum What {
    Bell,
    Receive(u8),
    Send(u8),
}

impl What {
    /// As a number below 256.
    pub(super) fn number(self) -> u32 {
        match self {
            What::Bell => 0,
            What::Receive(n) => 1 + 2 * u32::from(n),
            What::Send(n) => 2 + 2 * u32::from(n),
        }
    }

    /// What [`What::number`] gave.
    pub(in crate::engine) fn of(number: u32) -> What {
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
pub(super) enum Stage {
    Free,
    Queued,
    /// Sent on this connection.
    Sent(u8),
}

/// An operation under way.
#[derive(Debug)]
pub(super) struct Req {
    pub(super) stage: Stage,
    pub(super) token: Token,
    pub(super) verb: Verb,
    pub(super) durable: bool,
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) mem: MemId,
    pub(super) segments: Vec<Segment>,
    pub(super) skip: u32,
    /// The upper half of its cookie: another one each time it is sent.
    pub(super) serial: u32,
    /// It was written, and is being flushed, for a server without FUA.
    pub(super) flushing: bool,
    /// What `Shared::flushing` said when it was sent.
    pub(super) mark: u64,
    /// Bytes of a read that came.
    pub(super) cover: Cover,
    /// An error that came in a chunk.
    pub(super) error: Option<Errno>,
    /// Its data is being sent from guest memory.
    pub(super) sending: bool,
    /// How it ended, if that was told before its data was sent.
    pub(super) verdict: Option<i32>,
}

impl Req {
    /// One that nobody uses.
    pub(super) fn free(mem: MemId) -> Req {
        Req {
            stage: Stage::Free,
            token: Token(0),
            verb: Verb::Sync,
            durable: false,
            offset: 0,
            len: 0,
            mem,
            segments: Vec::new(),
            skip: 0,
            serial: 0,
            flushing: false,
            mark: 0,
            cover: Cover::default(),
            error: None,
            sending: false,
            verdict: None,
        }
    }
}

/// The request for what `req` has to do now.
pub(super) fn request_of(req: &Req, index: u32, fua: bool) -> Request {
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
pub(super) struct Simple {
    pub(super) verb: Verb,
    pub(super) disk: DiskId,
    pub(super) mem: MemId,
    pub(super) seg: [Segment; 1],
}

impl Simple {
    pub(super) fn over_one(&self) -> Op<'_> {
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
pub(super) fn buffers(count: u32) -> io::Result<(Arc<Mem>, Segment, Vec<Segment>)> {
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
