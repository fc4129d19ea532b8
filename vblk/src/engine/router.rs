//! The engine workers have: every kind of storage over one engine for files and devices.
//!
//! What a disk needs is decided once, when it gets its place. A file or a device is
//! [`Place::Plain`]: its operations go to the engine inside as they are, with nothing added but one
//! look at the place. Everything else is composed of operations on children, which have places of
//! their own above [`MAX_DISKS`]; what is under way for one composed operation is a
//! [`Join`](super::join).
//!
//! A token with the top bit set names an operation of the router's own. Its completion is never
//! shown to the caller; it moves a join on, which in the end completes the caller's token (or that
//! of another join, where composed disks stand on composed disks).
//!
//! A worker that serves plain disks only pays one comparison a batch of completions.

mod clients;
mod mapped;
mod mirrors;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::io::Errno;
use towpath_common::mem::Mem;

pub(super) use mapped::Child;
use mapped::{Flying, Mapped, Watched};

use super::join::{Joins, Next};
use super::mirror::Mirror;
use super::nbd::{Client, What, Wire};
use super::{
    Completion, Completions, DiskId, Engine, Guest, MAX_DISKS, MAX_MEM_PLACES, MAX_MEMS,
    MAX_PLACES, MemId, Op, Token, Verb,
};
use crate::disk::Disk;
use crate::storage::Storage;
use crate::storage::map::{Map, Run};

/// Set in the tokens of the router's own operations.
const OWN: u32 = 1 << 31;

/// Set in own tokens that are a client's.
const CLIENT: u32 = 1 << 30;

/// Set in own tokens that are a mirror's.
const MIRROR: u32 = 1 << 29;

/// Bits of a client's token that say which of its operations it is.
const WHAT_BITS: u32 = 8;

/// Bits of an own token that say which part of a join it is.
const PART_BITS: u32 = 6;

/// What stands at a place.
#[derive(Debug)]
enum Place {
    Empty,
    /// The engine inside has it under the same number.
    Plain,
    /// Parts of it are on children.
    Mapped(Box<Mapped>),
    /// A server has it; the number of the client.
    Client(usize),
    /// Several disks have it, each all of it; the number of the mirror.
    Mirror(usize),
}

/// The router over an engine `E`.
#[derive(Debug)]
pub struct Router<E: Engine> {
    inner: E,
    places: Vec<Place>,
    /// Clients, those included that hung up and have operations in flight.
    clients: Vec<Option<Client>>,
    /// Mirrors, likewise.
    mirrors: Vec<Option<Box<Mirror>>>,
    /// All memory that operations may name.
    mems: Vec<Option<Arc<Mem>>>,
    /// Numbers for own memory that are free.
    vacant_mems: Vec<u16>,
    /// Numbers for children that are free.
    vacant: Vec<u16>,
    /// Places that are not plain, and clients: without any, no completion can be ours.
    composed: usize,
    joins: Joins,
    /// Operations by maps that may break, those in parts aside.
    flying: Flying,
    /// Operations that ended without the engine inside.
    ready: VecDeque<Completion>,
    /// Parts of joins that found no room.
    stalled: VecDeque<Token>,
}

fn token_of(join: usize, part: usize) -> Token {
    let number = join << PART_BITS | part;
    Token(OWN | u32::try_from(number).unwrap_or(0) & !OWN)
}

impl<E: Engine> Router<E> {
    /// A router over `inner`, which serves nothing yet.
    pub fn new(inner: E) -> Router<E> {
        let numbers = |all: std::ops::Range<u32>| -> Vec<u16> {
            all.rev().filter_map(|n| u16::try_from(n).ok()).collect()
        };
        Router {
            inner,
            places: Vec::new(),
            clients: Vec::new(),
            mirrors: Vec::new(),
            mems: Vec::new(),
            vacant_mems: numbers(MAX_MEMS..MAX_MEM_PLACES),
            vacant: numbers(MAX_DISKS..MAX_PLACES),
            composed: 0,
            joins: Joins::default(),
            flying: Flying::default(),
            ready: VecDeque::new(),
            stalled: VecDeque::new(),
        }
    }

    /// The engine inside.
    #[cfg(test)]
    pub(crate) fn inner_mut(&mut self) -> &mut E {
        &mut self.inner
    }

    fn put(&mut self, id: DiskId, place: Place) {
        let index = usize::from(id.0);
        if self.places.len() <= index {
            self.places.resize_with(index + 1, || Place::Empty);
        }
        if let Some(here) = self.places.get_mut(index) {
            *here = place;
        }
    }

    fn clear(&mut self, id: DiskId) -> io::Result<()> {
        let here = self.places.get_mut(usize::from(id.0));
        match here.map_or(Place::Empty, |p| std::mem::replace(p, Place::Empty)) {
            Place::Empty => Ok(()),
            Place::Plain => self.inner.set_disk(id, None),
            Place::Mapped(mapped) => {
                self.composed -= 1;
                self.clear_children(&mapped.children);
                Ok(())
            }
            Place::Client(number) => {
                self.composed -= 1;
                if let Some(Some(client)) = self.clients.get_mut(number) {
                    client.hang_up();
                }
                Ok(())
            }
            Place::Mirror(number) => {
                self.with_mirror(number, |m, _| m.hang_up());
                Ok(())
            }
        }
    }

    fn is_unsettled(&self) -> bool {
        self.clients.iter().flatten().any(Client::is_unsettled)
            || self.mirrors.iter().flatten().any(|m| m.is_unsettled())
    }

    /// An operation on a disk that is not plain.
    #[inline(never)]
    fn push_composed(&mut self, token: Token, op: &Op<'_>) -> Result<(), Errno> {
        let mapped = match self.places.get_mut(usize::from(op.disk.0)) {
            Some(Place::Mapped(mapped)) => mapped,
            Some(Place::Client(number)) => {
                let client = self.clients.get_mut(*number).and_then(Option::as_mut);
                return client.ok_or(Errno::NODEV)?.push(token, op);
            }
            Some(Place::Mirror(number)) => {
                let number = *number;
                let pushed = self.with_mirror(number, |m, r| m.push(r, token, op));
                return pushed.unwrap_or(Err(Errno::NODEV));
            }
            Some(Place::Plain) => return self.inner.push(token, op),
            Some(Place::Empty) | None => return Err(Errno::NODEV),
        };
        if !mapped.is_ready() {
            return Err(Errno::AGAIN);
        }
        let watched = mapped.watched.is_some();
        let run = match op.verb {
            // What is a part of another operation cannot be told by its token.
            _ if watched && token.0 & OWN != 0 => None,
            Verb::Sync => None,
            _ => mapped.map.run(op.offset).filter(|r| op.len <= r.len),
        };
        if let Some(run) = run {
            let child = mapped.children.get(run.child).ok_or(Errno::NODEV)?;
            let part = Op {
                disk: child.id,
                offset: run.offset,
                ..*op
            };
            if watched {
                mapped.begin();
                return self.push_watched(token, &part, op.disk);
            }
            return self.push(token, &part);
        }
        let plan = mapped.plan(op.verb);
        let join = self.joins.begin(token, op, plan).ok_or(Errno::INVAL)?;
        mapped.begin();
        self.push_parts(join);
        Ok(())
    }

    fn push_parts(&mut self, join: usize) {
        for part in 0..self.joins.parts(join) {
            self.push_part(token_of(join, part));
        }
    }

    /// Push what is left of a part.
    fn push_part(&mut self, token: Token) {
        let (join, part) = split(token);
        let Some((op, segments)) = self.joins.take_part(join, part) else {
            return;
        };
        let cut = self.is_cut(join);
        let pushed = if cut {
            Err(Errno::AGAIN)
        } else {
            self.push(token, &op.over(&segments))
        };
        self.joins.put_back(join, part, segments);
        match pushed {
            Ok(()) => {}
            Err(Errno::AGAIN) if !cut => self.stalled.push_back(token),
            Err(errno) => self.ready.push_back(Completion {
                token,
                result: -errno.raw_os_error(),
            }),
        }
    }

    /// An operation of our own ended.
    fn advance(&mut self, one: Completion) {
        if one.token.0 & CLIENT != 0 {
            let number = one.token.0 & !(OWN | CLIENT);
            let what = What::of(number & ((1 << WHAT_BITS) - 1));
            self.client((number >> WHAT_BITS) as usize, Some((what, one.result)));
            return;
        }
        if one.token.0 & MIRROR != 0 {
            self.mirror_ended(one.token, one.result);
            return;
        }
        let (join, part) = split(one.token);
        let ended = match self.joins.ended(join, part, one.result) {
            Next::Wait => return,
            Next::Again => return self.push_part(one.token),
            Next::Done(completion) => completion,
            Next::Further { disk } => {
                let Some(Place::Mapped(mapped)) = self.places.get(usize::from(disk.0)) else {
                    return;
                };
                let plan = (!mapped.is_broken()).then(|| mapped.plan(Verb::Punch));
                match self.joins.go_on(join, plan) {
                    None => return self.push_parts(join),
                    Some(completion) => completion,
                }
            }
        };
        if let Some(disk) = self.joins.disk(join) {
            self.landed(disk);
        }
        self.ready.push_back(ended);
    }

    /// Take the router's own completions out of `done`, move joins on, and add those that ended.
    #[cold]
    fn sort(&mut self, done: &mut Completions) {
        let mut at = 0;
        while let Some(one) = done.get(at) {
            if one.token.0 & OWN == 0 {
                if let Some(place) = self.flying.take(one.token) {
                    self.landed(place);
                }
                at += 1;
                continue;
            }
            let one = done.swap_remove(at);
            self.ready.push_back(one);
        }
        for _ in 0..self.stalled.len() {
            if let Some(token) = self.stalled.pop_front() {
                self.push_part(token);
            }
        }
        // Each turn ends a part or a join; both are finite, and nothing new comes in meanwhile.
        while let Some(one) = self.ready.pop_front() {
            if one.token.0 & OWN != 0 {
                self.advance(one);
            } else if done.is_full() {
                self.ready.push_front(one);
                break;
            } else {
                done.push(one);
            }
        }
        self.pump();
        self.inner.submit();
    }
}

fn split(token: Token) -> (usize, usize) {
    let number = token.0 & !OWN;
    let part = number & ((1 << PART_BITS) - 1);
    ((number >> PART_BITS) as usize, part as usize)
}

impl<E: Engine> Engine for Router<E> {
    #[inline]
    fn push(&mut self, token: Token, op: &Op<'_>) -> Result<(), Errno> {
        match self.places.get(usize::from(op.disk.0)) {
            Some(Place::Plain) => self.inner.push(token, op),
            _ => self.push_composed(token, op),
        }
    }

    #[inline]
    fn submit(&mut self) -> usize {
        if self.composed > 0 {
            self.pump();
        }
        self.inner.submit()
    }

    #[inline]
    fn reap(&mut self, done: &mut Completions) {
        self.inner.reap(done);
        if self.composed > 0 {
            self.sort(done);
        }
    }

    fn arm(&mut self) -> bool {
        let waiting = !self.ready.is_empty() || !self.stalled.is_empty() || self.is_unsettled();
        self.inner.arm() || waiting
    }

    fn disarm(&mut self) {
        self.inner.disarm();
    }

    fn is_patient(&self) -> bool {
        self.inner.is_patient()
    }

    fn set_disk(&mut self, id: DiskId, disk: Option<&Disk>) -> io::Result<()> {
        self.clear(id)?;
        let Some(disk) = disk else {
            return Ok(());
        };
        let place = match disk.storage() {
            Storage::Null | Storage::Ram | Storage::File(_) | Storage::Device(_) => {
                self.inner.set_disk(id, Some(disk))?;
                Place::Plain
            }
            Storage::Stripe(stripe) => {
                let disks = stripe.children().iter().map(|d| &**d);
                let mapped = Mapped {
                    map: stripe.map().clone(),
                    children: self.set_children(disks)?,
                    synced: stripe.children().len(),
                    watched: None,
                };
                self.composed += 1;
                Place::Mapped(Box::new(mapped))
            }
            Storage::Segments(segments) => {
                let disks = segments.disks().iter().map(|d| &**d);
                let fallback = segments.fallback(disk.size());
                let mapped = Mapped {
                    map: segments.map().clone(),
                    children: self.set_children(disks)?,
                    synced: segments.physical(),
                    watched: Some(Watched::new(segments.watch(), fallback)),
                };
                self.composed += 1;
                Place::Mapped(Box::new(mapped))
            }
            Storage::Pinned(pinned) => {
                let whole = Run {
                    child: 1,
                    offset: 0,
                    len: disk.size(),
                };
                let disks = [&**pinned.device(), &**pinned.file()];
                let mapped = Mapped {
                    map: pinned.map().clone(),
                    children: self.set_children(disks.into_iter())?,
                    synced: 1,
                    watched: Some(Watched::new(pinned.watch(), Map::table([whole]))),
                };
                self.composed += 1;
                Place::Mapped(Box::new(mapped))
            }
            Storage::Mirror(mirror) => {
                self.composed += 1;
                self.set_mirror(mirror)
                    .inspect_err(|_| self.composed -= 1)?
            }
            Storage::Nbd(export) => {
                self.composed += 1;
                self.set_client(export)
                    .inspect_err(|_| self.composed -= 1)?
            }
        };
        self.put(id, place);
        Ok(())
    }

    fn set_file(&mut self, id: DiskId, file: BorrowedFd<'_>) -> io::Result<()> {
        self.inner.set_file(id, file)
    }

    fn set_memory(&mut self, id: MemId, guest: Option<&Guest>) -> io::Result<()> {
        let index = usize::from(id.0);
        if self.mems.len() <= index {
            self.mems.resize_with(index + 1, || None);
        }
        self.inner.set_memory(id, guest)?;
        if let Some(place) = self.mems.get_mut(index) {
            *place = guest.map(|g| Arc::clone(g.mem()));
        }
        Ok(())
    }
}

impl<E: Engine> Drop for Router<E> {
    fn drop(&mut self) {
        // The engine inside waits for what is in flight: let that end.
        self.clients.iter_mut().flatten().for_each(Client::hang_up);
        self.mirrors.iter_mut().flatten().for_each(|m| m.hang_up());
    }
}

impl<E: Engine + AsFd> AsFd for Router<E> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

#[cfg(test)]
mod devices;
#[cfg(test)]
mod tests;
