//! An engine that writes down what reaches the storage, and can tell what would be left of it after
//! a power cut at any moment: the worst that a volatile write cache may do.
//!
//! The record is a list of moments. A write is durable at a moment if it completed before and was
//! itself durable, or if a sync was pushed after it completed, and completed, too. Everything else
//! may be lost; the worst is that it is.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use rustix::io::Errno;
use towpath_common::mem::Mem;

use super::{Completions, DiskId, Engine, Guest, MemId, Op, Token, Verb};
use crate::disk::Disk;

/// What happened at one moment.
#[derive(Debug, Clone)]
pub enum Moment {
    /// A write was pushed.
    Write {
        /// Where.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
        /// Durable when it completes.
        durable: bool,
    },
    /// A sync was pushed.
    Sync,
    /// What was pushed at that moment completed, and this many bytes were moved.
    Done(usize, usize),
    /// It failed.
    Failed(usize),
    /// Something else was pushed.
    Other,
}

/// The wrapper.
#[derive(Debug)]
pub struct Recording<E> {
    inner: E,
    mems: HashMap<u16, Arc<Mem>>,
    flying: HashMap<u32, usize>,
    /// All that happened.
    pub moments: Vec<Moment>,
}

impl<E: Engine> Recording<E> {
    /// Records what reaches `inner`.
    pub fn new(inner: E) -> Recording<E> {
        Recording {
            inner,
            mems: HashMap::new(),
            flying: HashMap::new(),
            moments: Vec::new(),
        }
    }

    /// The disk after a power cut just before moment `end`, of a disk of `size` zeroes.
    #[must_use]
    pub fn after_a_power_cut(&self, end: usize, size: usize) -> Vec<u8> {
        let prefix = &self.moments[..end];
        let done: HashMap<usize, (usize, usize)> = (0..)
            .zip(prefix)
            .filter_map(|(at, moment)| match moment {
                Moment::Done(pushed, moved) => Some((*pushed, (at, *moved))),
                _ => None,
            })
            .collect();
        // The last sync that has completed covers what had completed when it was pushed.
        let is_sync = |at: &usize| matches!(prefix[*at], Moment::Sync);
        let covered = done.keys().copied().filter(is_sync).max().unwrap_or(0);
        let mut disk = vec![0; size];
        for (at, moment) in prefix.iter().enumerate() {
            let (
                Moment::Write {
                    offset,
                    bytes,
                    durable,
                },
                Some((when, moved)),
            ) = (moment, done.get(&at))
            else {
                continue;
            };
            if *durable || *when < covered {
                let start = usize::try_from(*offset).unwrap();
                disk[start..start + moved].copy_from_slice(&bytes[..*moved]);
            }
        }
        disk
    }
}

impl<E: Engine> Engine for Recording<E> {
    fn push(&mut self, token: Token, op: &Op<'_>) -> Result<(), Errno> {
        self.inner.push(token, op)?;
        self.flying.insert(token.0, self.moments.len());
        self.moments.push(match op.verb {
            Verb::Sync => Moment::Sync,
            Verb::Write => {
                let mem = &self.mems[&op.mem.0];
                let mut bytes = Vec::new();
                for piece in op.pieces() {
                    let mut part = vec![0; piece.len() as usize];
                    assert!(mem.read(piece, &mut part));
                    bytes.extend(part);
                }
                Moment::Write {
                    offset: op.offset,
                    bytes,
                    durable: op.durable,
                }
            }
            _ => Moment::Other,
        });
        Ok(())
    }

    fn submit(&mut self) -> usize {
        self.inner.submit()
    }

    fn reap(&mut self, done: &mut Completions) {
        let before = done.len();
        self.inner.reap(done);
        for one in &done[before..] {
            let pushed = self.flying.remove(&one.token.0).unwrap();
            self.moments.push(match usize::try_from(one.result) {
                Ok(moved) => Moment::Done(pushed, moved),
                Err(_) => Moment::Failed(pushed),
            });
        }
    }

    fn arm(&mut self) -> bool {
        self.inner.arm()
    }

    fn disarm(&mut self) {
        self.inner.disarm();
    }

    fn set_disk(&mut self, id: DiskId, disk: Option<&Disk>) -> io::Result<()> {
        self.inner.set_disk(id, disk)
    }

    fn set_memory(&mut self, id: MemId, guest: Option<&Guest>) -> io::Result<()> {
        match guest {
            Some(guest) => self.mems.insert(id.0, Arc::clone(guest.mem())),
            None => self.mems.remove(&id.0),
        };
        self.inner.set_memory(id, guest)
    }
}
