//! A disk that is made of parts of others, by a map that may break while it is used.
//!
//! Once a map broke, nothing new is done by it: new operations wait in their slots until those in
//! flight ended, what is left of an operation in parts is not pushed any more, and the operation is
//! done anew from its beginning by the other map.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;

use super::{Place, Router};
use crate::disk::Disk;
use crate::engine::join::Plan;
use crate::engine::{DiskId, Engine, MAX_PLACES, Op, Token, Verb};
use crate::storage::map::Map;
use crate::storage::pinned::Watch;

/// A disk under another disk.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine) struct Child {
    /// Its place.
    pub(in crate::engine) id: DiskId,
    /// What a short transfer is cut down to: a direct transfer goes on only from a whole block.
    pub(in crate::engine) block: u64,
}

/// A disk whose parts are on children.
#[derive(Debug)]
pub(super) struct Mapped {
    pub(super) map: Map,
    pub(super) children: Box<[Child]>,
    /// How many of the children a sync is for.
    pub(super) synced: usize,
    /// Of a map that may break.
    pub(super) watched: Option<Watched>,
}

/// A map that may break, and what to do then.
#[derive(Debug)]
pub(super) struct Watched {
    /// Whether it holds.
    watch: Arc<Watch>,
    /// The map to use when it does not.
    fallback: Map,
    /// Operations in flight by it.
    flying: u32,
}

impl Watched {
    pub(super) fn new(watch: &Arc<Watch>, fallback: Map) -> Watched {
        Watched {
            watch: Arc::clone(watch),
            fallback,
            flying: 0,
        }
    }
}

impl Mapped {
    /// True if the map is one for new operations; else they wait for those in flight by a map that
    /// broke.
    #[inline]
    pub(super) fn is_ready(&mut self) -> bool {
        !self.is_broken() || self.fall_back()
    }

    /// True if the map broke and another one is not used yet: nothing new is done by it.
    #[inline]
    pub(super) fn is_broken(&self) -> bool {
        let broken = |w: &Watched| w.watch.is_broken();
        self.watched.as_ref().is_some_and(broken)
    }

    #[cold]
    fn fall_back(&mut self) -> bool {
        if self.watched.as_ref().is_some_and(|w| w.flying > 0) {
            return false;
        }
        if let Some(watched) = self.watched.take() {
            self.map = watched.fallback;
            // What was written through the old map before must be synced as well.
            self.synced = self.children.len();
        }
        true
    }

    /// An operation begins.
    #[inline]
    pub(super) fn begin(&mut self) {
        if let Some(watched) = &mut self.watched {
            watched.flying += 1;
        }
    }

    /// An operation ended.
    #[inline]
    pub(super) fn end(&mut self) {
        if let Some(watched) = &mut self.watched {
            watched.flying = watched.flying.saturating_sub(1);
        }
    }

    pub(super) fn plan(&self, verb: Verb) -> Plan<'_> {
        let count = if verb == Verb::Sync {
            self.synced
        } else {
            self.children.len()
        };
        Plan {
            map: &self.map,
            children: self.children.get(..count).unwrap_or_default(),
        }
    }
}

/// Which operations of a caller are in flight by a map that may break, by their tokens.
#[derive(Debug, Default)]
pub(super) struct Flying {
    places: Vec<Option<DiskId>>,
    count: usize,
}

impl Flying {
    /// The operation `token` on the disk at `place` is in flight.
    #[inline]
    pub(super) fn add(&mut self, token: Token, place: DiskId) {
        let index = token.0 as usize;
        if self.places.len() <= index {
            // Tokens are numbers of slots: this ends with the highest.
            self.places.resize(index + 1, None);
        }
        if let Some(here) = self.places.get_mut(index) {
            (*here, self.count) = (Some(place), self.count + 1);
        }
    }

    /// The operation `token` ended; the place it was on, if it was one of these.
    #[inline]
    pub(super) fn take(&mut self, token: Token) -> Option<DiskId> {
        if self.count == 0 {
            return None;
        }
        let place = self.places.get_mut(token.0 as usize)?.take()?;
        self.count -= 1;
        Some(place)
    }
}

impl<E: Engine> Router<E> {
    /// Give `disks` places of their own.
    pub(super) fn set_children<'a>(
        &mut self,
        disks: impl Iterator<Item = &'a Disk>,
    ) -> io::Result<Box<[Child]>> {
        let mut children: Vec<Child> = Vec::new();
        for disk in disks {
            let set = self.vacant.pop().ok_or_else(|| {
                io::Error::other(format!(
                    "more than {MAX_PLACES} places for disks on a worker"
                ))
            });
            let set = set.map(DiskId).and_then(|id| {
                self.set_disk(id, Some(disk))
                    .inspect_err(|_| self.vacant.push(id.0))?;
                Ok(id)
            });
            let block = if disk.direct() {
                disk.block().bytes()
            } else {
                1
            };
            match set {
                Ok(id) => children.push(Child {
                    id,
                    block: block.into(),
                }),
                Err(error) => {
                    self.clear_children(&children);
                    return Err(error);
                }
            }
        }
        Ok(children.into())
    }

    pub(super) fn clear_children(&mut self, children: &[Child]) {
        for child in children {
            // Nothing to be done about a place that cannot be cleared; it is not used again.
            if self.set_disk(child.id, None).is_ok() {
                self.vacant.push(child.id.0);
            }
        }
    }

    pub(super) fn push_watched(
        &mut self,
        token: Token,
        op: &Op<'_>,
        place: DiskId,
    ) -> Result<(), Errno> {
        let pushed = self.push(token, op);
        match pushed {
            Ok(()) => self.flying.add(token, place),
            Err(_) => self.landed(place),
        }
        pushed
    }

    /// An operation on the mapped disk at `place` ended.
    pub(super) fn landed(&mut self, place: DiskId) {
        if let Some(Place::Mapped(mapped)) = self.places.get_mut(usize::from(place.0)) {
            mapped.end();
        }
    }

    /// True if a join is on a disk whose map broke.
    pub(super) fn is_cut(&self, join: usize) -> bool {
        let place = self.joins.disk(join);
        let place = place.and_then(|disk| self.places.get(usize::from(disk.0)));
        matches!(place, Some(Place::Mapped(mapped)) if mapped.is_broken())
    }
}
