//! A disk that is made of parts of others, by a map that may be replaced while it is used.

use std::sync::Arc;

use crate::engine::join::Plan;
use crate::engine::{DiskId, Verb};
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
    /// Of pinned extents: whether the map holds, and the map to use when it does not.
    pub(super) pinned: Option<(Arc<Watch>, Map)>,
}

impl Mapped {
    /// The map, as it is now.
    #[inline]
    pub(super) fn current(&mut self) -> &Map {
        if self
            .pinned
            .as_ref()
            .is_some_and(|(watch, _)| watch.is_broken())
        {
            self.fall_back();
        }
        &self.map
    }

    #[cold]
    fn fall_back(&mut self) {
        if let Some((_, map)) = self.pinned.take() {
            self.map = map;
            // What was written through the old map before must be synced as well.
            self.synced = self.children.len();
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
