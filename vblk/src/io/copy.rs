//! Reads that need neither a slot nor the engine: their pages are at hand.

use super::{Cycles, Finished, Io, Origin};
use crate::engine::{DiskId, Engine, MemId};
use crate::request::{Command, Data, Kind, Request, Status};

impl<E: Engine> Io<E> {
    /// Carry out a read by copying resident pages, if they are.
    #[inline]
    pub(super) fn copy(&self, request: &Request<'_>, mem: MemId, disk: DiskId) -> bool {
        let Command::Read { offset, data } = &request.command else {
            return false;
        };
        let resident = self.disks.get(disk.0).resident();
        resident.is_some_and(|r| r.read(*offset, data, self.mems.get(mem.0)))
    }

    /// How such a read ends.
    #[inline]
    pub(super) fn copied<'a>(
        &'a self,
        request: &Request<'a>,
        origin: Origin,
        mem: MemId,
        started: Cycles,
    ) -> Finished<'a> {
        let dirty = match &request.command {
            Command::Read { data, .. } => *data,
            _ => Data::default(),
        };
        Finished {
            origin,
            kind: Kind::Read,
            status: Status::Ok,
            status_at: request.status,
            written: u32::try_from(dirty.len() + 1).unwrap_or(u32::MAX),
            bytes: dirty.len(),
            errno: None,
            started,
            mem: self.mems.get(mem.0),
            dirty,
        }
    }
}
