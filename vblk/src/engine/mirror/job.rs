//! What a mirror has under way: a request, or something of its own.

use towpath_common::clock::Cycles;
use towpath_common::mem::Segment;

use super::pool::Buffer;
use crate::engine::{MemId, Token, Verb};
use crate::storage::mirror::record::MAX_MEMBERS;

/// What a job is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A read, from one disk after the other until one does it.
    Read,
    /// A write or a deallocation, on all disks.
    Change,
    /// A flush of all disks.
    Sync,
    /// A flush of all disks, after which these regions can be unmarked.
    Settle,
    /// A flush of a disk that has caught up.
    Finish(usize),
    /// A part of a region that some disks have to catch up with.
    Copy,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nobody has it.
    Free,
    /// For another one on the same bytes, or for a buffer.
    Waiting,
    /// For its regions to be marked.
    Marking,
    /// For disks.
    Flying,
    /// For the record to say who missed it.
    Acking,
    /// The caller was told; a disk that failed still has its buffer.
    Lingering,
}

/// A job.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) kind: Kind,
    pub(super) stage: Stage,
    /// Whose operation it is, if it is somebody's.
    pub(super) token: Option<Token>,
    pub(super) verb: Verb,
    pub(super) durable: bool,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) mem: MemId,
    pub(super) segments: Vec<Segment>,
    pub(super) skip: u32,
    pub(super) buffer: Option<Buffer>,
    /// Disks that have an operation of it, that did theirs, and that could not, one bit each.
    pub(super) flying: u8,
    pub(super) good: u8,
    pub(super) bad: u8,
    /// Disks that do not know the verb.
    pub(super) unable: u8,
    /// Bytes each disk has done.
    pub(super) done: [u64; MAX_MEMBERS],
    pub(super) errno: i32,
    pub(super) tries: u16,
    /// When its last operation was pushed.
    pub(super) since: Cycles,
    /// Disks that a copy is for.
    pub(super) targets: u8,
}

impl Job {
    pub(super) fn free(mem: MemId) -> Job {
        Job {
            kind: Kind::Sync,
            stage: Stage::Free,
            token: None,
            verb: Verb::Sync,
            durable: false,
            offset: 0,
            len: 0,
            mem,
            segments: Vec::new(),
            skip: 0,
            buffer: None,
            flying: 0,
            good: 0,
            bad: 0,
            unable: 0,
            done: [0; MAX_MEMBERS],
            errno: 0,
            tries: 0,
            since: Cycles::ZERO,
            targets: 0,
        }
    }

    /// Make it a new one.
    pub(super) fn begin(&mut self, kind: Kind, token: Option<Token>, verb: Verb) {
        (self.kind, self.stage, self.token) = (kind, Stage::Waiting, token);
        (self.verb, self.durable, self.skip) = (verb, false, 0);
        (self.offset, self.len) = (0, 0);
        (self.flying, self.good, self.bad, self.unable) = (0, 0, 0, 0);
        (self.errno, self.tries, self.targets) = (0, 0, 0);
        self.buffer = None;
        self.done = [0; MAX_MEMBERS];
        self.segments.clear();
    }

    /// True if it must not be carried out while another one on the same bytes is.
    pub(super) fn is_exclusive(&self) -> bool {
        let holds = matches!(
            self.stage,
            Stage::Waiting | Stage::Marking | Stage::Flying | Stage::Acking
        );
        holds && matches!(self.kind, Kind::Change | Kind::Copy)
    }

    pub(super) fn overlaps(&self, other: &Job) -> bool {
        self.offset < other.offset.saturating_add(other.len)
            && other.offset < self.offset.saturating_add(self.len)
    }

    /// Bytes that disk `index` has done.
    pub(super) fn done(&self, index: usize) -> u64 {
        self.done.get(index).copied().unwrap_or(0)
    }
}
