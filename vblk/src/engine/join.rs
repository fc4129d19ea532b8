//! One operation made of several: what is under way on a disk's children for one operation on it.
//!
//! A join gathers, for each child it needs, one vectored operation over all pieces that are
//! consecutive there. It ends when all its parts have ended: with an error if one had one, else
//! with the bytes of all. A part that was short is continued, so that what is told upwards is
//! always a prefix. Where an operation needs more parts or more pieces of memory than there is room
//! for, only its beginning is done, which is a short transfer to the caller; an operation on a
//! range without data is continued here, as nobody looks at its length.
//!
//! Joins are made on demand and used again; once a worker has had its worst moment, nothing is
//! allocated.

use rustix::io::Errno;
use towpath_common::chain::MAX_SEGMENTS;
use towpath_common::mem::Segment;

use super::router::Child;
use super::{Completion, DiskId, MemId, Op, Token, Verb, pieces};
use crate::storage::map::Map;
use crate::storage::stripe::MAX_CHILDREN;

/// Most parts of a join: each child of a stripe once.
const MAX_PARTS: usize = MAX_CHILDREN;

/// Most bytes in one join, so that a result always fits.
const MAX_BYTES: u64 = 1 << 30;

/// How a disk is mapped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan<'a> {
    pub(super) map: &'a Map,
    pub(super) children: &'a [Child],
}

/// An operation without its memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bare {
    verb: Verb,
    disk: DiskId,
    durable: bool,
    offset: u64,
    len: u64,
    mem: MemId,
    /// First segment to use, and bytes of it to leave out.
    from: usize,
    skip: u32,
}

impl Bare {
    /// The operation on `segments`.
    pub(super) fn over<'a>(&self, segments: &'a [Segment]) -> Op<'a> {
        Op {
            verb: self.verb,
            disk: self.disk,
            durable: self.durable,
            offset: self.offset,
            len: self.len,
            mem: self.mem,
            segments: segments.get(self.from..).unwrap_or_default(),
            skip: self.skip,
        }
    }
}

/// What a child does for a join.
#[derive(Debug)]
struct Part {
    child: Child,
    offset: u64,
    len: u64,
    done: u64,
    segments: Vec<Segment>,
}

#[derive(Debug)]
struct Join {
    /// Whose operation it is.
    token: Token,
    disk: DiskId,
    verb: Verb,
    durable: bool,
    mem: MemId,
    /// What is not planned yet of a range without data: from, to.
    rest: (u64, u64),
    /// Bytes of all parts.
    total: u64,
    parts: Vec<Part>,
    /// Parts in use; the others keep their memory.
    used: usize,
    /// Parts that have not ended.
    left: usize,
    /// The first error.
    error: Option<i32>,
}

/// What to do after a part ended.
#[derive(Debug)]
pub(super) enum Next {
    /// Nothing: other parts are under way.
    Wait,
    /// Push the rest of this part.
    Again,
    /// The join ended.
    Done(Completion),
    /// Plan the next stretch of a long range on this disk.
    Further { disk: DiskId },
}

/// All joins of a worker.
#[derive(Debug, Default)]
pub(super) struct Joins {
    joins: Vec<Join>,
    free: Vec<usize>,
}

impl Joins {
    /// Begin a join for `op`; None if not a byte of it is on a child.
    pub(super) fn begin(&mut self, token: Token, op: &Op<'_>, plan: Plan<'_>) -> Option<usize> {
        let index = self.free.pop().unwrap_or(self.joins.len());
        if index == self.joins.len() {
            self.joins.push(Join {
                token,
                disk: op.disk,
                verb: op.verb,
                durable: false,
                mem: op.mem,
                rest: (0, 0),
                total: 0,
                parts: Vec::new(),
                used: 0,
                left: 0,
                error: None,
            });
        }
        let join = self.joins.get_mut(index)?;
        (join.token, join.disk, join.verb) = (token, op.disk, op.verb);
        (join.durable, join.mem) = (op.durable, op.mem);
        join.rest = (op.offset, op.offset.saturating_add(op.len));
        join.error = None;
        join.plan(plan, op.segments, op.skip);
        if join.used == 0 {
            self.free.push(index);
            return None;
        }
        Some(index)
    }

    /// The disk that a join is on.
    pub(super) fn disk(&self, join: usize) -> Option<DiskId> {
        self.joins.get(join).map(|j| j.disk)
    }

    /// Parts of a join.
    pub(super) fn parts(&self, join: usize) -> usize {
        self.joins.get(join).map_or(0, |j| j.used)
    }

    /// What is left of a part, with its segments, which must be put back.
    pub(super) fn take_part(&mut self, join: usize, part: usize) -> Option<(Bare, Vec<Segment>)> {
        let join = self.joins.get_mut(join)?;
        let part = join.parts.get_mut(part)?;
        let (mut from, mut skip) = (0, part.done);
        while let Some(seg) = part.segments.get(from)
            && skip >= u64::from(seg.len())
        {
            skip -= u64::from(seg.len());
            from += 1;
        }
        let bare = Bare {
            verb: join.verb,
            disk: part.child.id,
            durable: join.durable,
            offset: part.offset + part.done,
            len: part.len - part.done,
            mem: join.mem,
            from,
            skip: u32::try_from(skip).unwrap_or(0),
        };
        Some((bare, std::mem::take(&mut part.segments)))
    }

    /// Put back what [`Joins::take_part`] gave.
    pub(super) fn put_back(&mut self, join: usize, part: usize, segments: Vec<Segment>) {
        let part = self.joins.get_mut(join).and_then(|j| j.parts.get_mut(part));
        if let Some(part) = part {
            part.segments = segments;
        }
    }

    /// A part ended with `result`.
    pub(super) fn ended(&mut self, index: usize, part: usize, result: i32) -> Next {
        let Some(join) = self.joins.get_mut(index) else {
            return Next::Wait;
        };
        let Some(part) = join.parts.get_mut(part) else {
            return Next::Wait;
        };
        let transfer = matches!(join.verb, Verb::Read | Verb::Write);
        match u64::try_from(result) {
            Err(_) => {
                join.error.get_or_insert(result);
            }
            Ok(moved) if transfer => {
                let mut done = part.done + moved;
                if done < part.len {
                    done -= done % part.child.block;
                }
                if done <= part.done || done > part.len {
                    join.error.get_or_insert(-Errno::IO.raw_os_error());
                } else {
                    part.done = done;
                    if done < part.len {
                        return Next::Again;
                    }
                }
            }
            Ok(_) => {}
        }
        join.left -= 1;
        if join.left > 0 {
            return Next::Wait;
        }
        if join.error.is_none() && !transfer && join.verb != Verb::Sync && join.rest.0 < join.rest.1
        {
            return Next::Further { disk: join.disk };
        }
        Next::Done(self.finish(index))
    }

    /// Plan the next stretch of a range; the completion if there is none. Without a plan the whole
    /// is to be tried again.
    pub(super) fn go_on(&mut self, index: usize, plan: Option<Plan<'_>>) -> Option<Completion> {
        if let Some(join) = self.joins.get_mut(index) {
            let mut errno = Errno::AGAIN;
            if let Some(plan) = plan {
                join.plan(plan, &[], 0);
                if join.used > 0 {
                    return None;
                }
                errno = Errno::INVAL;
            }
            join.error = Some(-errno.raw_os_error());
        }
        Some(self.finish(index))
    }

    fn finish(&mut self, index: usize) -> Completion {
        self.free.push(index);
        let ended = self.joins.get(index).map(|join| {
            let total = i32::try_from(join.total).unwrap_or(i32::MAX);
            (join.token, join.error.unwrap_or(total))
        });
        let (token, result) = ended.unwrap_or((Token(u32::MAX), 0));
        Completion { token, result }
    }
}

impl Join {
    /// Plan as much of `rest` as there is room for.
    fn plan(&mut self, plan: Plan<'_>, segments: &[Segment], skip: u32) {
        (self.used, self.total) = (0, 0);
        if self.verb == Verb::Sync {
            for child in plan.children.iter().take(MAX_PARTS) {
                self.part(*child, 0, 0);
            }
        } else {
            self.plan_range(plan, segments, skip);
        }
        self.left = self.used;
    }

    fn plan_range(&mut self, plan: Plan<'_>, segments: &[Segment], skip: u32) {
        let transfer = matches!(self.verb, Verb::Read | Verb::Write);
        let (mut rest, mut skip) = (segments, skip);
        while self.rest.0 < self.rest.1 && self.total < MAX_BYTES {
            let Some(run) = plan.map.run(self.rest.0) else {
                break;
            };
            let Some(child) = plan.children.get(run.child) else {
                break;
            };
            let n = run.len.min(self.rest.1 - self.rest.0).min(MAX_BYTES);
            let Some(part) = self.part(*child, run.offset, n) else {
                break;
            };
            if transfer {
                let count = pieces(rest, skip, n).count();
                if part.segments.len() + count > MAX_SEGMENTS {
                    part.len -= n;
                    break;
                }
                part.segments.extend(pieces(rest, skip, n));
                (rest, skip) = after(rest, skip, n);
            }
            self.rest.0 += n;
            self.total += n;
        }
    }

    /// The part that `len` bytes at `offset` of `child` continue, or a new one; None without room.
    fn part(&mut self, child: Child, offset: u64, len: u64) -> Option<&mut Part> {
        let used = self.parts.get(..self.used).unwrap_or_default();
        let adjoins = |p: &Part| p.child.id == child.id && p.offset + p.len == offset && len > 0;
        let index = match used.iter().position(adjoins) {
            Some(index) => index,
            None if self.used == MAX_PARTS => return None,
            None => {
                if self.used == self.parts.len() {
                    self.parts.push(Part {
                        child,
                        offset,
                        len: 0,
                        done: 0,
                        segments: Vec::new(),
                    });
                }
                self.used += 1;
                let part = self.parts.get_mut(self.used - 1)?;
                (part.child, part.offset) = (child, offset);
                (part.len, part.done) = (0, 0);
                part.segments.clear();
                self.used - 1
            }
        };
        let part = self.parts.get_mut(index)?;
        part.len += len;
        Some(part)
    }
}

/// `segments` and the bytes to leave out of the first, `n` bytes further on.
pub(super) fn after(mut segments: &[Segment], mut skip: u32, mut n: u64) -> (&[Segment], u32) {
    while let Some((first, rest)) = segments.split_first() {
        let here = u64::from(first.len().saturating_sub(skip));
        if n < here {
            skip += u32::try_from(n).unwrap_or(0);
            return (segments, skip);
        }
        n -= here;
        (segments, skip) = (rest, 0);
    }
    (segments, 0)
}
