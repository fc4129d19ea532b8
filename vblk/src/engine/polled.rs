//! Devices that are polled: a second ring for their reads and writes, beside the one for all else.
//!
//! A ring that polls takes nothing but reads and writes, so a polled disk has its place in both
//! rings: FLUSH and deallocation go through the ordinary one. The contract holds across the two: a
//! sync covers what completed before it was pushed, and a completion was reaped by then, whichever
//! ring it came from.
//!
//! - A ring that polls is made when the first disk asks for one, and learns then what memory there
//!   is. A worker without polled disks pays one comparison an operation and one a batch.
//! - Nothing wakes a worker up for what it has to ask for: it does not sleep while operations are
//!   in flight there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use super::{
    Completions, DiskId, Engine, Guest, MAX_MEM_PLACES, MAX_PLACES, MemId, Op, Token, Verb,
};
use crate::config::Polling;
use crate::disk::Disk;

/// A ring that polls.
#[derive(Debug)]
struct Ring<E> {
    how: Polling,
    engine: E,
    in_flight: u32,
}

/// An engine, and more of its kind that poll.
pub struct Polled<E> {
    plain: E,
    rings: Vec<Ring<E>>,
    make: Box<dyn Fn(Polling) -> io::Result<E>>,
    at: Box<[Polling]>,
    guests: Vec<Option<Guest>>,
}

impl<E: std::fmt::Debug> std::fmt::Debug for Polled<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Polled")
            .field("plain", &self.plain)
            .field("rings", &self.rings)
            .finish_non_exhaustive()
    }
}

impl<E: Engine> Polled<E> {
    /// Over `plain`; `make` makes an engine that polls in the way it is told.
    pub fn new(plain: E, make: impl Fn(Polling) -> io::Result<E> + 'static) -> Polled<E> {
        Polled {
            plain,
            rings: Vec::new(),
            make: Box::new(make),
            at: vec![Polling::Off; MAX_PLACES as usize].into(),
            guests: (0..MAX_MEM_PLACES).map(|_| None).collect(),
        }
    }

    /// The ring that polls the disk at `id`, if one does.
    #[inline]
    fn ring_of(&mut self, id: DiskId) -> Option<&mut Ring<E>> {
        match self.at.get(usize::from(id.0)) {
            None | Some(Polling::Off) => None,
            Some(how) => self.rings.iter_mut().find(|ring| ring.how == *how),
        }
    }

    fn make_ring(&mut self, how: Polling) -> io::Result<()> {
        if self.rings.iter().any(|ring| ring.how == how) {
            return Ok(());
        }
        let mut engine = (self.make)(how)?;
        for (id, guest) in (0..).zip(&self.guests) {
            if guest.is_some() {
                engine.set_memory(MemId(id), guest.as_ref())?;
            }
        }
        self.rings.push(Ring {
            how,
            engine,
            in_flight: 0,
        });
        Ok(())
    }

    fn set_polled(&mut self, id: DiskId, disk: &Disk) -> io::Result<()> {
        self.make_ring(disk.polling())?;
        let place = self.at.get_mut(usize::from(id.0));
        *place.ok_or(io::ErrorKind::InvalidInput)? = disk.polling();
        match self.ring_of(id) {
            Some(ring) => ring.engine.set_disk(id, Some(disk)),
            None => Ok(()),
        }
    }

    /// Take from the rings that poll.
    #[cold]
    fn reap_polled(&mut self, done: &mut Completions) {
        for ring in self.rings.iter_mut().filter(|ring| ring.in_flight > 0) {
            let before = done.len();
            ring.engine.reap(done);
            let ended = u32::try_from(done.len() - before).unwrap_or(0);
            ring.in_flight -= ended.min(ring.in_flight);
        }
    }
}

impl<E: Engine> Engine for Polled<E> {
    #[inline]
    fn push(&mut self, token: Token, op: &Op<'_>) -> Result<(), Errno> {
        if self.rings.is_empty() || !matches!(op.verb, Verb::Read | Verb::Write) {
            return self.plain.push(token, op);
        }
        match self.ring_of(op.disk) {
            None => self.plain.push(token, op),
            Some(ring) => {
                ring.engine.push(token, op)?;
                ring.in_flight += 1;
                Ok(())
            }
        }
    }

    #[inline]
    fn submit(&mut self) -> usize {
        let rings = self.rings.iter_mut().filter(|ring| ring.in_flight > 0);
        let queued: usize = rings.map(|ring| ring.engine.submit()).sum();
        self.plain.submit() + queued
    }

    #[inline]
    fn reap(&mut self, done: &mut Completions) {
        self.plain.reap(done);
        if !self.rings.is_empty() {
            self.reap_polled(done);
        }
    }

    fn arm(&mut self) -> bool {
        let asks = self.rings.iter().any(|ring| ring.in_flight > 0);
        self.plain.arm() || asks
    }

    fn disarm(&mut self) {
        self.plain.disarm();
    }

    fn set_disk(&mut self, id: DiskId, disk: Option<&Disk>) -> io::Result<()> {
        if let Some(ring) = self.ring_of(id) {
            ring.engine.set_disk(id, None)?;
        }
        if let Some(here) = self.at.get_mut(usize::from(id.0)) {
            *here = Polling::Off;
        }
        self.plain.set_disk(id, disk)?;
        let Some(disk) = disk.filter(|disk| disk.polling() != Polling::Off) else {
            return Ok(());
        };
        self.set_polled(id, disk).inspect_err(|_| {
            if let Some(here) = self.at.get_mut(usize::from(id.0)) {
                *here = Polling::Off;
            }
            // It was set a moment ago; clearing it cannot fail where setting did not.
            let _ = self.plain.set_disk(id, None);
        })
    }

    fn set_file(&mut self, id: DiskId, file: BorrowedFd<'_>) -> io::Result<()> {
        if let Some(here) = self.at.get_mut(usize::from(id.0)) {
            *here = Polling::Off;
        }
        self.plain.set_file(id, file)
    }

    fn set_memory(&mut self, id: MemId, guest: Option<&Guest>) -> io::Result<()> {
        for ring in &mut self.rings {
            ring.engine.set_memory(id, guest)?;
        }
        self.plain.set_memory(id, guest)?;
        if let Some(here) = self.guests.get_mut(usize::from(id.0)) {
            *here = guest.cloned();
        }
        Ok(())
    }
}

impl<E: AsFd> AsFd for Polled<E> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.plain.as_fd()
    }
}

#[cfg(test)]
mod tests;
