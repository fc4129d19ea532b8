//! A disk in memory: the simplest engine that keeps its promises. It does its work in `submit` and
//! tells about it in `reap`, so that what stands on it is tested without a kernel.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use towpath_common::mem::{Mem, Segment};

use super::{Completion, Completions, DiskId, Engine, Guest, MemId, Op, Token, Verb};
use crate::disk::Disk;

/// An operation that waits for `submit`.
#[derive(Debug)]
struct Queued {
    token: Token,
    verb: Verb,
    disk: usize,
    offset: u64,
    len: u64,
    mem: Option<Arc<Mem>>,
    pieces: Vec<Segment>,
}

/// RAM disks.
#[derive(Debug, Default)]
pub struct Memory {
    disks: Vec<Option<Vec<u8>>>,
    /// Eventfds, of which eight bytes are read at a time, and what waits for them.
    files: Vec<Option<OwnedFd>>,
    waiting: Vec<Queued>,
    mems: Vec<Option<Arc<Mem>>>,
    queued: Vec<Queued>,
    done: VecDeque<Completion>,
}

impl Memory {
    /// No disk yet.
    #[must_use]
    pub fn new() -> Memory {
        Memory::default()
    }

    /// The bytes of a disk.
    #[must_use]
    pub fn bytes(&mut self, id: DiskId) -> Option<&mut Vec<u8>> {
        self.disks.get_mut(usize::from(id.0))?.as_mut()
    }

    fn file(&self, index: usize) -> Option<&OwnedFd> {
        self.files.get(index)?.as_ref()
    }

    /// End reads of eventfds that are readable.
    fn look(&mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|op| {
            let Some(file) = self.file(op.disk) else {
                return false;
            };
            let mut ready = [PollFd::new(file, PollFlags::IN)];
            let now = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            if poll(&mut ready, Some(&now)) != Ok(1) {
                return true;
            }
            let mut bytes = [0; 8];
            let read = rustix::io::read(file, &mut bytes);
            let result = read.map_or_else(|e| -e.raw_os_error(), |_| 8);
            if let (Some(mem), Some(piece)) = (&op.mem, op.pieces.first()) {
                let _ = mem.write(*piece, &bytes);
            }
            let token = op.token;
            self.done.push_back(Completion { token, result });
            false
        });
        self.waiting = waiting;
    }

    fn run(&mut self, op: &Queued) -> Result<u64, Errno> {
        let disk = self.disks.get_mut(op.disk).and_then(Option::as_mut);
        let disk = disk.ok_or(Errno::BADF)?;
        let start = usize::try_from(op.offset).map_err(|_| Errno::INVAL)?;
        let mut at = disk.get_mut(start..).ok_or(Errno::NOSPC)?;
        match op.verb {
            Verb::Sync => return Ok(0),
            Verb::Punch | Verb::Zero | Verb::Discard => {
                let len = usize::try_from(op.len).map_err(|_| Errno::INVAL)?;
                at.get_mut(..len).ok_or(Errno::NOSPC)?.fill(0);
                return Ok(0);
            }
            Verb::Read | Verb::Write => {}
        }
        let mem = op.mem.as_ref().ok_or(Errno::FAULT)?;
        let mut moved = 0;
        for piece in &op.pieces {
            let n = at.len().min(piece.len() as usize);
            let (now, rest) = at.split_at_mut(n);
            let ok = if op.verb == Verb::Read {
                mem.write(*piece, now)
            } else {
                mem.read(*piece, now)
            };
            if !ok {
                return Err(Errno::FAULT);
            }
            moved += n as u64;
            at = rest;
        }
        Ok(moved)
    }
}

fn place<T>(places: &mut Vec<Option<T>>, index: u16, value: Option<T>) {
    let index = usize::from(index);
    if places.len() <= index {
        places.resize_with(index + 1, || None);
    }
    places[index] = value;
}

impl Engine for Memory {
    fn push(&mut self, token: Token, op: &Op<'_>) -> Result<(), Errno> {
        self.queued.push(Queued {
            token,
            verb: op.verb,
            disk: usize::from(op.disk.0),
            offset: op.offset,
            len: op.len,
            mem: self.mems.get(usize::from(op.mem.0)).cloned().flatten(),
            pieces: op.pieces().collect(),
        });
        Ok(())
    }

    fn submit(&mut self) -> usize {
        let queued = std::mem::take(&mut self.queued);
        for op in queued {
            if self.file(op.disk).is_some() {
                self.waiting.push(op);
                continue;
            }
            let op = &op;
            let result = match self.run(op) {
                Ok(n) => i32::try_from(n).unwrap_or(i32::MAX),
                Err(e) => -e.raw_os_error(),
            };
            let token = op.token;
            self.done.push_back(Completion { token, result });
        }
        0
    }

    fn reap(&mut self, done: &mut Completions) {
        if !self.waiting.is_empty() {
            self.look();
        }
        while !done.is_full() {
            let Some(one) = self.done.pop_front() else {
                return;
            };
            done.push(one);
        }
    }

    fn arm(&mut self) -> bool {
        !self.queued.is_empty() || !self.done.is_empty()
    }

    fn disarm(&mut self) {}

    fn set_disk(&mut self, id: DiskId, disk: Option<&Disk>) -> io::Result<()> {
        let bytes = match disk {
            None => None,
            // Whatever stands behind it: its size is all that counts here.
            Some(d) => {
                let size = usize::try_from(d.size()).map_err(io::Error::other)?;
                Some(vec![0; size])
            }
        };
        place(&mut self.disks, id.0, bytes);
        place(&mut self.files, id.0, None);
        Ok(())
    }

    fn set_file(&mut self, id: DiskId, file: BorrowedFd<'_>) -> io::Result<()> {
        let file = file.try_clone_to_owned()?;
        place(&mut self.files, id.0, Some(file));
        Ok(())
    }

    fn set_memory(&mut self, id: MemId, guest: Option<&Guest>) -> io::Result<()> {
        place(&mut self.mems, id.0, guest.map(|g| Arc::clone(g.mem())));
        Ok(())
    }
}
