//! I/O through io_uring: one ring for all disks of a worker.
//!
//! - One `io_uring_enter` submits a whole burst. Completions that the kernel has ready are taken
//!   from shared memory without a call; only when it says, by the TASKRUN flag, that some wait to
//!   be made is it entered for them. A worker that spins on [`Uring::reap`] sees a completion as
//!   soon as there is one.
//! - Polling the ring's own fd does not wake a worker whose completions wait to be made (seen on
//!   6.18), so an eventfd does. It is silent, and costs nothing, until armed.
//! - Nothing can overflow: at most `capacity` operations are in flight, and the completion queue
//!   has room for them all. A full submission queue is submitted and then filled further.
//! - What the kernel refuses to take now (EAGAIN, EBUSY, EINTR) stays in the submission queue, and
//!   goes with the next call.
//! - What may wait for a server and cannot say so (NFS, FUSE: [`Disk::waits`]) goes to a thread of
//!   the kernel's at once. Tried first in `io_uring_enter`, as all else is, it would hold up every
//!   disk of the worker.
//!
//! Why it is sound, whatever callers and guests do. Memory that the kernel reaches is of two kinds:
//! guest memory, named by segments that [`Mem::host`] checks against the very snapshot whose `Arc`
//! stands in `mems` and is not dropped while its `in_flight` is above zero; and iovecs, which stand
//! in `arena`, a vector that never grows past its first allocation and is emptied only when the
//! kernel has consumed every submission (IORING_FEAT_SUBMIT_STABLE, which `new` insists on). The
//! kernel gives `user_data` back as it got it, so `in_flight` counts right. A `Uring` dropped with
//! operations in flight waits for them, and leaks the memory if they do not end.

// UNSAFETY: pushing submissions that name raw memory, iovecs, and fds.
#![expect(unsafe_code, reason = "io_uring takes raw addresses")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::EventfdFlags;
use rustix::io::Errno;
use towpath_common::mem::{Mem, Segment};

use super::uring_donor::{Buffers, MAX_BUFFERS};
use super::uring_limits;
use super::uring_setup::{self, MAX_SQ, SETUPS, Setup};
use super::{
    Completion, Completions, DiskId, Engine, Guest, MAX_MEM_PLACES, MAX_PLACES, MemId, Op, Token,
    Verb,
};
use crate::config::Polling;
use crate::disk::Disk;

/// Room for iovecs: two for each submission of a full queue and always a longest one more.
const ARENA: usize = 2 * MAX_SQ as usize + MAX_IOVECS;

/// Most pieces of memory in one operation: what a descriptor chain can have.
const MAX_IOVECS: usize = towpath_common::chain::MAX_SEGMENTS;

/// Most operations in flight the kernel allows for (IORING_MAX_CQ_ENTRIES).
const MAX_CAPACITY: u32 = 65536;

/// How often one `reap` enters the kernel at most: each call runs some 20 completions.
const REAP_CALLS: usize = 4;

/// Stands for the place of a memory map in the tag of an operation that uses none.
const NO_MEM: u32 = u32::MAX;

/// How long a dropped engine waits for one more completion, in seconds.
const DRAIN_SECONDS: u64 = 10;

/// fallocate modes (include/uapi/linux/falloc.h).
mod mode {
    const KEEP_SIZE: i32 = 0x01;
    const PUNCH_HOLE: i32 = 0x02;
    /// Refused by kernels that no longer have it (6.12), and then remembered as unsupported.
    const NO_HIDE_STALE: i32 = 0x04;
    const ZERO_RANGE: i32 = 0x10;
    pub(super) const PUNCH: i32 = PUNCH_HOLE | KEEP_SIZE;
    pub(super) const ZERO: i32 = ZERO_RANGE | KEEP_SIZE;
    pub(super) const DISCARD: i32 = PUNCH_HOLE | KEEP_SIZE | NO_HIDE_STALE;
}

/// A guest's memory the kernel may be using.
struct Adopted {
    mem: Arc<Mem>,
    /// Where it is in the ring's buffer table, if it is registered.
    buffers: Option<Buffers>,
    in_flight: u32,
}

impl Adopted {
    /// Our address of `piece`, and the registered buffer that holds it.
    #[inline]
    fn address(&self, piece: Segment) -> Result<(*mut u8, Option<u16>), Errno> {
        let addr = self.mem.host(piece);
        if addr.is_null() {
            return Err(Errno::FAULT);
        }
        let buffers = self.buffers.as_ref();
        Ok((addr, buffers.and_then(|b| b.holding(piece, addr.addr()))))
    }
}

/// An io_uring with the memory it works on.
pub struct Uring {
    ring: IoUring,
    mems: Vec<Option<Adopted>>,
    /// Places of disks whose reads and writes are for the kernel's threads.
    waits: Box<[bool]>,
    /// Places in the ring's buffer table that are taken; no place at all on old kernels.
    places: Vec<bool>,
    /// The kernel has READV_FIXED and WRITEV_FIXED (6.15).
    fixed_vectors: bool,
    arena: Vec<libc::iovec>,
    /// The kernel's eventfd: signalled by completions while armed.
    wake: OwnedFd,
    armed: bool,
    in_flight: u32,
    capacity: u32,
    enters: u64,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("params", self.ring.params())
            .field("in_flight", &self.in_flight)
            .field("capacity", &self.capacity)
            .field("enters", &self.enters)
            .finish_non_exhaustive()
    }
}

impl Uring {
    /// A ring for at most `capacity` operations in flight. Call it on the thread that will use it.
    ///
    /// # Errors
    /// What the kernel said: ENOSYS or EPERM if io_uring is not there or not allowed, EINVAL if
    /// `capacity` is zero or above 65536.
    pub fn new(capacity: u32) -> io::Result<Uring> {
        Uring::with(capacity, &SETUPS)
    }

    /// A ring for reads and writes whose completions are found by polling the device, and for
    /// nothing else.
    ///
    /// # Errors
    /// As [`Uring::new`].
    pub fn polling(how: Polling, capacity: u32) -> io::Result<Uring> {
        let setups: &[Setup] = match how {
            Polling::Off => return Uring::new(capacity),
            Polling::Device => &uring_setup::POLLED,
            Polling::Thread => &uring_setup::POLLED_BY_THREAD,
        };
        Uring::with(capacity, setups)
    }

    fn with(capacity: u32, setups: &[Setup]) -> io::Result<Uring> {
        if !(1..=MAX_CAPACITY).contains(&capacity) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (mut ring, disabled) = uring_setup::build(capacity, setups)?;
        if !ring.params().is_feature_submit_stable() || !ring.params().is_feature_nodrop() {
            let old = "io_uring is too old: SUBMIT_STABLE or NODROP is missing (Linux 5.5)";
            return Err(io::Error::new(io::ErrorKind::Unsupported, old));
        }
        let submitter = ring.submitter();
        uring_setup::reserve_files(&submitter)?;
        let table = submitter.register_buffers_sparse(u32::from(MAX_BUFFERS));
        let places = table.map_or(0, |()| usize::from(MAX_BUFFERS));
        uring_setup::free_io_workers(&ring);
        uring_setup::many_io_workers(&ring, capacity);
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = rustix::event::eventfd(0, flags)?;
        ring.submitter().register_eventfd(wake.as_raw_fd())?;
        ring.completion().disable_eventfd();
        let fixed_vectors = uring_setup::has_fixed_vectors(&ring);
        uring_limits::enable(&ring, disabled, fixed_vectors)?;
        Ok(Uring {
            places: vec![false; places],
            fixed_vectors,
            mems: (0..MAX_MEM_PLACES).map(|_| None).collect(),
            waits: vec![false; MAX_PLACES as usize].into(),
            arena: Vec::with_capacity(ARENA),
            wake,
            armed: false,
            in_flight: 0,
            capacity,
            enters: 0,
            ring,
        })
    }

    /// How often the kernel was entered.
    #[must_use]
    pub fn enters(&self) -> u64 {
        self.enters
    }

    /// Hand the submission queue to the kernel and let it make completions, if it has some to
    /// make. What it does not take stays queued; how much that is.
    fn enter(&mut self) -> usize {
        self.enters += 1;
        // EAGAIN, EBUSY and EINTR mean "not now". No other error is possible for a ring that was
        // set up, and nothing could be done about one but to try again.
        let _ = self.ring.submit();
        let queued = self.ring.submission().len();
        if queued == 0 {
            self.arena.clear();
        }
        queued
    }

    /// The submission for a read or write.
    fn transfer(&mut self, op: &Op<'_>) -> Result<squeue::Entry, Errno> {
        let adopted = self.mems.get(usize::from(op.mem.0));
        let adopted = adopted.and_then(Option::as_ref).ok_or(Errno::FAULT)?;
        let fd = types::Fixed(u32::from(op.disk.0));
        let (read, at) = (op.verb == Verb::Read, op.offset);
        let rw = if op.durable && !read {
            libc::RWF_DSYNC
        } else {
            0
        };
        let mut pieces = op.pieces();
        let first = pieces.next().ok_or(Errno::INVAL)?;
        let Some(second) = pieces.next() else {
            let ((base, buffer), len) = (adopted.address(first)?, first.len());
            return Ok(match (read, buffer) {
                (true, None) => opcode::Read::new(fd, base, len).offset(at).build(),
                (true, Some(b)) => opcode::ReadFixed::new(fd, base, len, b).offset(at).build(),
                (false, None) => opcode::Write::new(fd, base, len)
                    .offset(at)
                    .rw_flags(rw)
                    .build(),
                (false, Some(b)) => opcode::WriteFixed::new(fd, base, len, b)
                    .offset(at)
                    .rw_flags(rw)
                    .build(),
            });
        };
        let start = self.arena.len();
        let mut shared = None;
        for piece in [first, second].into_iter().chain(pieces) {
            if self.arena.len() == ARENA {
                self.arena.truncate(start);
                return Err(Errno::AGAIN);
            }
            let (base, buffer) = adopted
                .address(piece)
                .inspect_err(|_| self.arena.truncate(start))?;
            shared = if self.arena.len() == start {
                buffer
            } else {
                shared.filter(|_| shared == buffer)
            };
            self.arena.push(libc::iovec {
                iov_base: base.cast(),
                iov_len: piece.len() as usize,
            });
        }
        let list = self.arena.as_ptr().wrapping_add(start);
        let n = u32::try_from(self.arena.len() - start).map_err(|_| Errno::INVAL)?;
        let shared = shared.filter(|_| self.fixed_vectors);
        Ok(match (read, shared) {
            (true, None) => opcode::Readv::new(fd, list, n).offset(at).build(),
            (true, Some(b)) => opcode::ReadvFixed::new(fd, list, n, b).offset(at).build(),
            (false, None) => opcode::Writev::new(fd, list, n)
                .offset(at)
                .rw_flags(rw)
                .build(),
            (false, Some(b)) => opcode::WritevFixed::new(fd, list, n, b)
                .offset(at)
                .rw_flags(rw)
                .build(),
        })
    }

    /// Take over the registration of `guest`'s memory, if it has one and there is room for it.
    fn borrow_buffers(&mut self, guest: &Guest) -> Option<Buffers> {
        let donor = guest.donor()?;
        let count = usize::from(donor.count());
        let free = |run: &[bool]| run.iter().all(|taken| !taken);
        let first = self.places.windows(count).position(free)?;
        let at = u16::try_from(first).ok()?;
        match donor.lend(&self.ring.submitter(), at) {
            Ok(buffers) => {
                self.places.get_mut(buffers.places())?.fill(true);
                Some(buffers)
            }
            Err(error) => {
                tracing::warn!(%error, "registered guest memory cannot be used by this worker");
                None
            }
        }
    }
}

impl Engine for Uring {
    #[inline]
    fn push(&mut self, token: Token, op: &Op<'_>) -> Result<(), Errno> {
        if self.in_flight >= self.capacity {
            return Err(Errno::AGAIN);
        }
        if self.ring.submission().is_full() || ARENA - self.arena.len() < MAX_IOVECS {
            self.enter();
        }
        let fd = types::Fixed(u32::from(op.disk.0));
        let fallocate = |mode| {
            opcode::Fallocate::new(fd, op.len)
                .offset(op.offset)
                .mode(mode)
                .build()
        };
        let entry = match op.verb {
            Verb::Read | Verb::Write => self.transfer(op)?,
            Verb::Sync => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Verb::Punch => fallocate(mode::PUNCH),
            Verb::Zero => fallocate(mode::ZERO),
            Verb::Discard => fallocate(mode::DISCARD),
        };
        let transfer = matches!(op.verb, Verb::Read | Verb::Write);
        let mem = if transfer {
            u32::from(op.mem.0)
        } else {
            NO_MEM
        };
        let mut entry = entry.user_data(u64::from(token.0) | u64::from(mem) << 32);
        if self.waits.get(usize::from(op.disk.0)) == Some(&true) {
            entry = entry.flags(squeue::Flags::ASYNC);
        }
        // SAFETY: the memory `entry` names is kept by `mems` (counted below) and `arena`, as the
        // head of this file argues; a fixed file that is not set is an error of the operation.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| Errno::AGAIN)?;
        self.in_flight += 1;
        if transfer && let Some(Some(adopted)) = self.mems.get_mut(usize::from(op.mem.0)) {
            adopted.in_flight += 1;
        }
        Ok(())
    }

    #[inline]
    fn submit(&mut self) -> usize {
        if self.ring.submission().is_empty() {
            return 0;
        }
        self.enter()
    }

    #[inline]
    fn reap(&mut self, done: &mut Completions) {
        for _ in 0..REAP_CALLS {
            if self.in_flight == 0 {
                return;
            }
            let sq = self.ring.submission();
            let more = sq.taskrun() || sq.cq_overflow();
            drop(sq);
            let polls = self.ring.params().is_setup_iopoll();
            let more = more || polls;
            if more {
                self.enter();
            }
            for cqe in self.ring.completion().take(done.remaining_capacity()) {
                let tag = cqe.user_data();
                self.in_flight -= 1;
                let mem = usize::try_from(tag >> 32).unwrap_or(usize::MAX);
                if let Some(Some(adopted)) = self.mems.get_mut(mem) {
                    adopted.in_flight -= 1;
                }
                let low = u32::try_from(tag & u64::from(u32::MAX)).unwrap_or(0);
                done.push(Completion {
                    token: Token(low),
                    result: cqe.result(),
                });
            }
            if !more || polls || done.is_full() {
                return;
            }
        }
    }

    fn arm(&mut self) -> bool {
        if self.in_flight == 0 {
            return false;
        }
        self.armed = true;
        self.ring.completion().enable_eventfd();
        // The kernel makes a completion visible and then looks at the flag just written; one of
        // the two sees the other's.
        fence(Ordering::SeqCst);
        let made = !self.ring.completion().is_empty();
        let sq = self.ring.submission();
        made || !sq.is_empty() || sq.taskrun() || sq.cq_overflow()
    }

    fn disarm(&mut self) {
        if std::mem::take(&mut self.armed) {
            self.ring.completion().disable_eventfd();
            // EAGAIN: no signal came.
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        }
    }

    fn set_disk(&mut self, id: DiskId, disk: Option<&Disk>) -> io::Result<()> {
        let fd = match disk {
            None => -1,
            Some(disk) => match disk.file() {
                Some(file) => file.as_raw_fd(),
                None => return Err(io::ErrorKind::Unsupported.into()),
            },
        };
        if let Some(waits) = self.waits.get_mut(usize::from(id.0)) {
            *waits = disk.is_some_and(Disk::waits);
        }
        let set = self
            .ring
            .submitter()
            .register_files_update(u32::from(id.0), &[fd]);
        set.map(drop)
    }

    fn set_file(&mut self, id: DiskId, file: BorrowedFd<'_>) -> io::Result<()> {
        if let Some(waits) = self.waits.get_mut(usize::from(id.0)) {
            *waits = false;
        }
        let set = self
            .ring
            .submitter()
            .register_files_update(u32::from(id.0), &[file.as_raw_fd()]);
        set.map(drop)
    }

    fn set_memory(&mut self, id: MemId, guest: Option<&Guest>) -> io::Result<()> {
        let index = usize::from(id.0);
        let place = self.mems.get(index).ok_or(io::ErrorKind::InvalidInput)?;
        if let Some(old) = place {
            if old.in_flight > 0 {
                return Err(io::ErrorKind::ResourceBusy.into());
            }
            if let Some(buffers) = &old.buffers {
                buffers.give_back(&self.ring.submitter())?;
                self.places
                    .get_mut(buffers.places())
                    .unwrap_or_default()
                    .fill(false);
            }
        }
        self.mems[index] = guest.map(|g| Adopted {
            mem: Arc::clone(g.mem()),
            buffers: self.borrow_buffers(g),
            in_flight: 0,
        });
        Ok(())
    }
}

impl AsFd for Uring {
    /// Readable, while armed, once there are completions to reap: what an idle worker waits on.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let second = types::Timespec::new().sec(1);
        let mut silent = 0;
        while self.in_flight > 0 && silent < DRAIN_SECONDS {
            let before = self.in_flight;
            let args = types::SubmitArgs::new().timespec(&second);
            let _ = self.ring.submitter().submit_with_args(1, &args);
            self.reap(&mut Completions::new());
            silent = if self.in_flight < before {
                0
            } else {
                silent + 1
            };
        }
        if self.in_flight == 0 {
            // The kernel takes a ring apart in the background; the files are closed now.
            let _ = self.ring.submitter().unregister_files();
            return;
        }
        // Storage that does not answer: the kernel may still write there.
        std::mem::forget(std::mem::take(&mut self.mems));
        std::mem::forget(std::mem::take(&mut self.arena));
    }
}

#[cfg(test)]
mod tests;
