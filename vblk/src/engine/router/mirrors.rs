//! The mirrors of a worker, which push to their disks through the router they are in.

use std::io;

use rustix::io::Errno;

use super::{Completion, DiskId, Engine, MAX_PLACES, MIRROR, MemId, OWN, Op, Place, Router, Token};
use crate::engine::mirror::{Mirror, WHAT_BITS};
use crate::storage::mirror::Mirror as Storage;
use towpath_common::mem::Mem;

/// Most mirrors of a worker, those included that hung up: as many as a token can name.
const MAX_MIRRORS: usize = 1 << 8;

impl<E: Engine> Router<E> {
    /// An operation ended without the engine inside.
    pub(in crate::engine) fn done(&mut self, one: Completion) {
        self.ready.push_back(one);
    }

    /// Push an operation on a file that was set as such, which no place knows of.
    pub(in crate::engine) fn push_file(&mut self, token: Token, op: &Op<'_>) -> Result<(), Errno> {
        self.inner.push(token, op)
    }

    /// The memory at a place.
    pub(in crate::engine) fn memory(&self, id: MemId) -> Option<&Mem> {
        self.mems.get(usize::from(id.0))?.as_deref()
    }

    /// Let mirror `number` do something with the router it is in.
    pub(super) fn with_mirror<R>(
        &mut self,
        number: usize,
        does: impl FnOnce(&mut Mirror, &mut Router<E>) -> R,
    ) -> Option<R> {
        let mut mirror = self.mirrors.get_mut(number)?.take()?;
        let result = does(&mut mirror, self);
        if mirror.is_gone() {
            self.forget_mirror(mirror);
        } else if let Some(place) = self.mirrors.get_mut(number) {
            *place = Some(mirror);
        }
        Some(result)
    }

    /// A part of `storage`.
    pub(super) fn set_mirror(&mut self, storage: &Storage) -> io::Result<Place> {
        let many = || {
            io::Error::other(format!(
                "more than {MAX_MIRRORS} mirrors or {MAX_PLACES} places for disks on a worker"
            ))
        };
        let number = self.mirrors.iter().position(Option::is_none);
        let number = number.unwrap_or(self.mirrors.len());
        let count = Mirror::places(storage);
        let first = self.vacant.len().checked_sub(count).ok_or_else(many)?;
        let mem = self.vacant_mems.last().copied().ok_or_else(many)?;
        if number >= MAX_MIRRORS {
            return Err(many());
        }
        // Taken first: disks that are exports need places, too.
        let places = self.vacant.split_off(first).into_iter().rev();
        let places: Vec<DiskId> = places.map(DiskId).collect();
        self.vacant_mems.pop();
        let base = u32::try_from(number << WHAT_BITS).map_err(|_| many())?;
        let base = OWN | MIRROR | base;
        let mirror = Mirror::new(self, storage, &places, MemId(mem), base);
        let mirror = mirror.inspect_err(|_| {
            self.forget_places(places.iter().copied());
            let _ = self.inner.set_memory(MemId(mem), None);
            self.vacant_mems.push(mem);
        })?;
        if number == self.mirrors.len() {
            self.mirrors.push(None);
        }
        if let Some(place) = self.mirrors.get_mut(number) {
            *place = Some(Box::new(mirror));
        }
        Ok(Place::Mirror(number))
    }

    fn forget_places(&mut self, places: impl Iterator<Item = DiskId>) {
        for place in places {
            let _ = self.clear(place);
            let _ = self.inner.set_disk(place, None);
            self.vacant.push(place.0);
        }
    }

    fn forget_mirror(&mut self, mut mirror: Box<Mirror>) {
        self.composed -= 1;
        let places: Vec<DiskId> = mirror.all_places().collect();
        self.forget_places(places.into_iter());
        let _ = self.inner.set_memory(mirror.memory(), None);
        if let Some(place) = self.mems.get_mut(usize::from(mirror.memory().0)) {
            *place = None;
        }
        self.vacant_mems.push(mirror.memory().0);
        mirror.give_back();
    }

    /// An operation of a mirror's own ended.
    pub(super) fn mirror_ended(&mut self, token: Token, result: i32) {
        let rest = token.0 & !(OWN | MIRROR);
        let (number, what) = (rest >> WHAT_BITS, rest & ((1 << WHAT_BITS) - 1));
        self.with_mirror(number as usize, |m, r| m.ended(r, what, result));
    }

    /// Let every mirror push what it can.
    pub(super) fn pump_mirrors(&mut self) {
        for number in 0..self.mirrors.len() {
            let unsettled = |m: &Option<Box<Mirror>>| m.as_ref().is_some_and(|m| m.is_unsettled());
            if self.mirrors.get(number).is_some_and(unsettled) {
                self.with_mirror(number, Mirror::pump);
            }
        }
    }
}
