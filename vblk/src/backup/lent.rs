//! Reading a disk that only its worker may read: the worker does it (`crate::plane::loan`).

use std::io;
use std::sync::Arc;

use rustix::io::Errno;
use towpath_common::worker::Handle;

use super::BackupError;
use super::volume::{Buffer, Volume, failed};
use crate::disk::Disk;
use crate::engine::Guest;
use crate::plane::{Change, DiskKey, Fetch};

/// A disk that its worker reads for us, a block at a time.
#[derive(Debug)]
pub(super) struct Lent {
    worker: Handle<Change>,
    key: DiskKey,
    disk: Arc<Disk>,
    buffer: Buffer,
}

/// Where a copy is read from.
#[derive(Debug)]
pub(super) enum Source {
    /// A disk that we read ourselves.
    Own(Box<Volume>),
    /// A disk that its worker reads.
    Lent(Lent),
}

impl Source {
    /// `disk`, through `worker` if only that may read it.
    ///
    /// # Errors
    /// If there is no memory, or no engine.
    pub(super) fn new(
        disk: &Arc<Disk>,
        worker: Option<(Handle<Change>, DiskKey)>,
    ) -> io::Result<Source> {
        let disk = Arc::clone(disk);
        Ok(match worker {
            None => Source::Own(Box::new(Volume::new(disk)?)),
            Some((worker, key)) => Source::Lent(Lent {
                worker,
                key,
                disk,
                buffer: Buffer::new()?,
            }),
        })
    }

    /// Read all of `buf` from `at`; at most a block. False if there is no room for it now: it is
    /// to be tried again.
    ///
    /// # Errors
    /// What the storage said, or that the worker is gone.
    pub(super) fn read(&mut self, at: u64, buf: &mut [u8]) -> Result<bool, BackupError> {
        match self {
            Source::Own(volume) => volume.read(at, buf).map(|()| true),
            Source::Lent(lent) => lent.read(at, buf),
        }
    }
}

impl Lent {
    fn read(&self, at: u64, buf: &mut [u8]) -> Result<bool, BackupError> {
        let data = self.buffer.first(buf.len());
        let fetch = Fetch {
            guest: Guest::plain(Arc::clone(&self.buffer.mem)),
            offset: at,
            data,
            status: self.buffer.status,
        };
        let failed = failed(&self.disk, "read", at);
        let answer = self
            .worker
            .call(|reply| Change::Fetch(self.key, fetch, reply));
        match answer.map_err(|_| BackupError::Cancelled)? {
            Err(Errno::BUSY) => Ok(false),
            Err(errno) => Err(failed(errno)),
            Ok(()) if self.buffer.mem.read(data, buf) => Ok(true),
            Ok(()) => Err(failed(Errno::FAULT)),
        }
    }
}
