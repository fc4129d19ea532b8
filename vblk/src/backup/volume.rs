//! Reading and writing a disk of any kind from a thread that may wait: an engine of its own, and
//! one request at a time.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use towpath_common::clock::Cycles;
use towpath_common::mem::{Mem, Region, RegionSpec, Segment};

use super::BackupError;
use super::bitmap::BLOCK;
use crate::disk::Disk;
use crate::engine::router::Router;
use crate::engine::{Choice, DiskId, Guest, MemId};
use crate::io::{Io, Origin, Started};
use crate::request::{Command, Data, Range, Request, Status};

/// Operations in flight: a request on a stripe of many disks is some.
const OPERATIONS: u32 = 64;

/// How often a thread that waits for storage looks up.
const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// Memory for one request, as an engine wants it: a block, and the status.
#[derive(Debug)]
pub(crate) struct Buffer {
    pub(crate) mem: Arc<Mem>,
    pub(super) data: Segment,
    pub(crate) status: Segment,
}

impl Buffer {
    pub(crate) fn new() -> io::Result<Buffer> {
        let len = BLOCK + 4096;
        let file = memfd_create(
            "vblk-volume",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )?;
        ftruncate(&file, len)?;
        let spec = RegionSpec {
            gpa: 0,
            len,
            uva: 0,
            offset: 0,
        };
        let region = Region::map(spec, file).map_err(io::Error::other)?;
        let mem = Arc::new(Mem::new(vec![region]).map_err(io::Error::other)?);
        let find = |at, len| mem.lookup(at, len, &mut 0).unwrap_or_default();
        let data = find(0, u32::try_from(BLOCK).unwrap_or(0));
        let status = find(BLOCK, 1);
        Ok(Buffer { mem, data, status })
    }

    /// Its first `len` bytes.
    pub(super) fn first(&self, len: usize) -> Segment {
        self.data.take(u32::try_from(len).unwrap_or(0))
    }
}

/// `what` failed on `disk` at `at`.
pub(super) fn failed(
    disk: &Disk,
    what: &'static str,
    at: u64,
) -> impl Fn(Errno) -> BackupError + use<> {
    let serial = disk.serial().bytes();
    let name = String::from_utf8_lossy(serial);
    let name = name.trim_end_matches('\0').to_owned();
    move |errno| BackupError::Storage {
        what,
        at,
        disk: name.clone(),
        source: errno.into(),
    }
}

/// A disk, and the means to read and write it here. Not to be moved to another thread.
#[derive(Debug)]
pub struct Volume {
    io: Io<Router<Choice>>,
    disk: Arc<Disk>,
    id: DiskId,
    mem: MemId,
    buffer: Buffer,
}

impl Volume {
    /// Open `disk` for this thread.
    ///
    /// # Errors
    /// If there is no memory, or no engine.
    pub fn new(disk: Arc<Disk>) -> io::Result<Volume> {
        let buffer = Buffer::new()?;
        let mut io = Io::new(Router::new(Choice::new(OPERATIONS)?), 1)?;
        let id = io.attach(&disk)?;
        let mem = io.adopt(&Guest::plain(Arc::clone(&buffer.mem)))?;
        Ok(Volume {
            io,
            disk,
            id,
            mem,
            buffer,
        })
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    fn run(&mut self, command: Command<'_>) -> Result<(), Errno> {
        let request = Request {
            command,
            status: self.buffer.status,
        };
        let origin = Origin::default();
        let verdict = |status: Status, errno: Option<Errno>| match status {
            Status::Ok => Ok(()),
            _ => Err(errno.unwrap_or(Errno::IO)),
        };
        let (mem, id) = (self.mem, self.id);
        match self.io.start(&request, origin, mem, id, Cycles::ZERO) {
            Started::Done(f) | Started::Copied(f) => return verdict(f.status, f.errno),
            Started::InFlight => {}
        }
        let mut end = None;
        loop {
            self.io.submit();
            self.io.reap(|f| end = Some(verdict(f.status, f.errno)));
            if let Some(end) = end {
                return end;
            }
            // Here a failure is told, whatever the disk's policy is for its guest.
            self.io.end_holds(origin.queue);
            if !self.io.arm() {
                let mut fds = [PollFd::from_borrowed_fd(self.io.as_fd(), PollFlags::IN)];
                // Interrupted or too late: it is looked at again.
                let _ = poll(&mut fds, Some(&TICK));
            }
            self.io.disarm();
        }
    }

    fn failed(&self, what: &'static str, at: u64) -> impl Fn(Errno) -> BackupError + use<> {
        failed(&self.disk, what, at)
    }

    /// Read all of `buf` from `at`; at most a block.
    ///
    /// # Errors
    /// What the storage said.
    pub fn read(&mut self, at: u64, buf: &mut [u8]) -> Result<(), BackupError> {
        let seg = [self.buffer.first(buf.len())];
        let data = Data::over(&seg, buf.len() as u64);
        let done = self.run(Command::Read { offset: at, data });
        done.map_err(self.failed("read", at))?;
        let [seg] = seg;
        if self.buffer.mem.read(seg, buf) {
            Ok(())
        } else {
            Err(self.failed("read", at)(Errno::FAULT))
        }
    }

    /// Write all of `buf` at `at`; at most a block.
    ///
    /// # Errors
    /// What the storage said.
    pub fn write(&mut self, at: u64, buf: &[u8]) -> Result<(), BackupError> {
        let seg = self.buffer.first(buf.len());
        if !self.buffer.mem.write(seg, buf) {
            return Err(self.failed("write", at)(Errno::FAULT));
        }
        let segs = [seg];
        let data = Data::over(&segs, buf.len() as u64);
        let done = self.run(Command::Write { offset: at, data });
        done.map_err(self.failed("write", at))
    }

    /// Make `len` bytes from `at` zeroes, by deallocating them where the storage can.
    ///
    /// # Errors
    /// What the storage said.
    pub fn zero(&mut self, at: u64, len: u64) -> Result<(), BackupError> {
        let range = [Range {
            offset: at,
            len: u32::try_from(len).unwrap_or(u32::MAX),
            unmap: true,
        }];
        let done = self.run(Command::WriteZeroes(&range));
        done.map_err(self.failed("zero", at))
    }

    /// Make what was written durable.
    ///
    /// # Errors
    /// What the storage said.
    pub fn flush(&mut self) -> Result<(), BackupError> {
        let done = self.run(Command::Flush);
        done.map_err(self.failed("flush", 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Cache;
    use crate::disk::Spec;

    #[test]
    fn what_is_written_is_read_and_zeroes_are_zeroes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, vec![0; 3 * 262_144]).unwrap();
        for cache in [Cache::Direct, Cache::Buffered] {
            let spec = Spec {
                path: path.clone(),
                read_only: false,
                cache,
                block_size: None,
                serial: None,
            };
            let mut volume = Volume::new(Arc::new(Disk::open(&spec).unwrap())).unwrap();
            let block: Vec<u8> = (0..BLOCK).map(|i| (i % 251).to_le_bytes()[0]).collect();
            volume.write(BLOCK, &block).unwrap();
            volume.flush().unwrap();
            let mut buf = vec![0; block.len()];
            volume.read(BLOCK, &mut buf).unwrap();
            assert!(buf == block, "{cache:?}");
            volume.zero(BLOCK, BLOCK).unwrap();
            volume.read(BLOCK, &mut buf).unwrap();
            assert!(buf.iter().all(|b| *b == 0), "{cache:?}");
            let error = volume.read(3 * BLOCK, &mut buf).unwrap_err().to_string();
            assert!(error.contains("786432"), "{error}");
        }
    }
}
