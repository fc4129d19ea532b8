//! I/O without io_uring: a bounded pool of threads a worker, which wait for storage in its stead.
//!
//! For hosts that forbid io_uring (`kernel.io_uring_disabled`, the seccomp profiles of container
//! runtimes, gVisor). A burst costs the worker one write(2) to a semaphore, and each operation two
//! system calls and two changes of thread: several times what io_uring costs, and at most
//! [`THREADS`] operations reach the storage at once. The worker itself takes no lock and makes no
//! call that waits.
//!
//! - `jobs` and `done` are bounded queues without locks, with room for all that may be in flight,
//!   so that neither ever refuses. A job goes back and forth between them and is allocated once.
//! - `work` counts the jobs that may be taken, and is what idle threads read; a count is written
//!   after its job was queued, so that whoever read one finds one.
//! - A thread makes a completion visible and then looks whether the worker is armed; the worker
//!   arms and then looks for completions. One of the two sees the other's.
//! - A job holds the file and the memory it works on, so that a `Threads` dropped while its storage
//!   does not answer leaves nothing dangling: its threads end when the storage does.
//!
//! After `kill -9` a thread that waits for storage holds the file, and with it the image's lock,
//! until it is done, as io_uring's requests do.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use rustix::io::{Errno, read, write};
use towpath_common::mem::{Mem, Segment};

use super::threads_sys::{Vector, Way};
use super::{
    Completion, Completions, DiskId, Engine, Guest, MAX_MEM_PLACES, MAX_PLACES, MemId, Op, Token,
    Verb,
};
use crate::disk::Disk;

/// Threads of an engine, hence most operations that storage sees at once: what QEMU's pool has.
pub const THREADS: usize = 64;

/// Most operations in flight, as with io_uring.
const MAX_CAPACITY: u32 = 65536;

/// Bytes of a thread's stack: it holds a vector's address and little else.
const STACK: usize = 128 << 10;

/// How long a dropped engine waits for storage.
const DRAIN: Duration = Duration::from_secs(10);

/// How often it looks meanwhile.
const LOOK: Duration = Duration::from_millis(1);

/// One operation, on its way to a thread or back.
#[derive(Debug)]
struct Job {
    token: Token,
    verb: Verb,
    durable: bool,
    offset: u64,
    len: u64,
    file: Option<Arc<OwnedFd>>,
    /// Whose memory, of reads and writes.
    mem: Option<(MemId, Arc<Mem>)>,
    /// Grows to the longest list it has carried, which a chain bounds.
    pieces: Vec<Segment>,
    result: i32,
}

impl Job {
    fn new() -> Box<Job> {
        Box::new(Job {
            token: Token(0),
            verb: Verb::Sync,
            durable: false,
            offset: 0,
            len: 0,
            file: None,
            mem: None,
            pieces: Vec::new(),
            result: 0,
        })
    }

    /// Do it, however long that takes.
    fn run(&self, vector: &mut Vector) -> Result<usize, Errno> {
        let file = self.file.as_ref().ok_or(Errno::BADF)?;
        let deallocate = |how| {
            let how = how | FallocateFlags::KEEP_SIZE;
            fallocate(file, how, self.offset, self.len).map(|()| 0)
        };
        match self.verb {
            Verb::Read | Verb::Write => {
                let (_, mem) = self.mem.as_ref().ok_or(Errno::FAULT)?;
                let way = match self.verb {
                    Verb::Read => Way::Read,
                    _ => Way::Write {
                        durable: self.durable,
                    },
                };
                vector.transfer((mem, &self.pieces), file.as_fd(), self.offset, way)
            }
            Verb::Sync => fdatasync(file).map(|()| 0),
            Verb::Punch => deallocate(FallocateFlags::PUNCH_HOLE),
            Verb::Zero => deallocate(FallocateFlags::ZERO_RANGE),
            // Refused by kernels that no longer have it (6.12), and then remembered as unsupported.
            Verb::Discard => deallocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::NO_HIDE_STALE),
        }
    }
}

/// What a worker shares with its threads.
#[derive(Debug)]
struct Pool {
    jobs: ArrayQueue<Box<Job>>,
    done: ArrayQueue<Box<Job>>,
    /// A semaphore: how many jobs may be taken.
    work: OwnedFd,
    /// Signalled by a completion while armed.
    wake: OwnedFd,
    armed: AtomicBool,
    stop: AtomicBool,
}

impl Pool {
    /// A thread's life.
    fn serve(&self) {
        let mut vector = Vector::new();
        loop {
            match read(&self.work, &mut [0; 8]) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(_) => return,
            }
            let Some(mut job) = self.jobs.pop() else {
                if self.stop.load(Ordering::Acquire) {
                    return;
                }
                continue;
            };
            job.result = match job.run(&mut vector) {
                Ok(n) => i32::try_from(n).unwrap_or(i32::MAX),
                Err(errno) => -errno.raw_os_error(),
            };
            // Room for all that may be in flight.
            let _ = self.done.push(job);
            fence(Ordering::SeqCst);
            if self.armed.load(Ordering::Relaxed) && self.armed.swap(false, Ordering::Relaxed) {
                let _ = write(&self.wake, &1u64.to_ne_bytes());
            }
        }
    }
}

/// A guest's memory that threads may be using.
#[derive(Debug)]
struct Adopted {
    mem: Arc<Mem>,
    in_flight: u32,
}

/// An engine of threads.
#[derive(Debug)]
pub struct Threads {
    pool: Arc<Pool>,
    threads: Vec<JoinHandle<()>>,
    /// Jobs that carry nothing.
    #[expect(
        clippy::vec_box,
        reason = "a job stays where it is while it goes round"
    )]
    free: Vec<Box<Job>>,
    /// Jobs queued and not yet allowed to be taken.
    fresh: u64,
    files: Vec<Option<Arc<OwnedFd>>>,
    mems: Vec<Option<Adopted>>,
    in_flight: u32,
}

/// Let this thread run wherever the process may: it was begun by a worker, which is pinned.
fn unpin() {
    // The main thread is never pinned.
    let main = rustix::process::getpid();
    let set = rustix::thread::sched_getaffinity(Some(main));
    // Pinned, it works as well, if slower.
    let _ = set.and_then(|set| rustix::thread::sched_setaffinity(None, &set));
}

impl Threads {
    /// An engine for at most `capacity` operations in flight.
    ///
    /// # Errors
    /// If there are no threads or file descriptors to be had; [`io::ErrorKind::InvalidInput`] if
    /// `capacity` is zero or above 65536.
    pub fn new(capacity: u32) -> io::Result<Threads> {
        if !(1..=MAX_CAPACITY).contains(&capacity) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let room = capacity as usize;
        let pool = Arc::new(Pool {
            jobs: ArrayQueue::new(room),
            done: ArrayQueue::new(room),
            work: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::SEMAPHORE)?,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            armed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut engine = Threads {
            pool,
            threads: Vec::with_capacity(THREADS),
            free: (0..capacity).map(|_| Job::new()).collect(),
            fresh: 0,
            files: (0..MAX_PLACES).map(|_| None).collect(),
            mems: (0..MAX_MEM_PLACES).map(|_| None).collect(),
            in_flight: 0,
        };
        for n in 0..THREADS.min(room) {
            let pool = Arc::clone(&engine.pool);
            let thread = std::thread::Builder::new()
                .name(format!("io{n}"))
                .stack_size(STACK)
                .spawn(move || {
                    unpin();
                    pool.serve();
                })?;
            engine.threads.push(thread);
        }
        Ok(engine)
    }

    /// Fill `job`; on an error it carries nothing that matters.
    fn fill(&self, job: &mut Job, token: Token, op: &Op<'_>) -> Result<(), Errno> {
        job.mem = None;
        job.pieces.clear();
        if matches!(op.verb, Verb::Read | Verb::Write) {
            let adopted = self.mems.get(usize::from(op.mem.0));
            let adopted = adopted.and_then(Option::as_ref).ok_or(Errno::FAULT)?;
            for piece in op.pieces() {
                if job.pieces.len() == Vector::MOST {
                    return Err(Errno::INVAL);
                }
                if adopted.mem.host(piece).is_null() {
                    return Err(Errno::FAULT);
                }
                job.pieces.push(piece);
            }
            if job.pieces.is_empty() {
                return Err(Errno::INVAL);
            }
            job.mem = Some((op.mem, Arc::clone(&adopted.mem)));
        }
        job.file = self.files.get(usize::from(op.disk.0)).cloned().flatten();
        job.token = token;
        job.verb = op.verb;
        job.durable = op.durable;
        job.offset = op.offset;
        job.len = op.len;
        Ok(())
    }
}

impl Engine for Threads {
    fn push(&mut self, token: Token, op: &Op<'_>) -> Result<(), Errno> {
        let mut job = self.free.pop().ok_or(Errno::AGAIN)?;
        if let Err(errno) = self.fill(&mut job, token, op) {
            self.free.push(job);
            return Err(errno);
        }
        let mem = job.mem.as_ref().map(|(id, _)| *id);
        if let Err(job) = self.pool.jobs.push(job) {
            self.free.push(job);
            return Err(Errno::AGAIN);
        }
        if let Some(id) = mem
            && let Some(Some(adopted)) = self.mems.get_mut(usize::from(id.0))
        {
            adopted.in_flight += 1;
        }
        self.fresh += 1;
        self.in_flight += 1;
        Ok(())
    }

    fn submit(&mut self) -> usize {
        if self.fresh > 0 && write(&self.pool.work, &self.fresh.to_ne_bytes()).is_ok() {
            self.fresh = 0;
        }
        usize::try_from(self.fresh).unwrap_or(0)
    }

    fn reap(&mut self, done: &mut Completions) {
        while !done.is_full() {
            let Some(mut job) = self.pool.done.pop() else {
                return;
            };
            self.in_flight -= 1;
            job.file = None;
            if let Some((id, _)) = job.mem.take()
                && let Some(Some(adopted)) = self.mems.get_mut(usize::from(id.0))
            {
                adopted.in_flight -= 1;
            }
            done.push(Completion {
                token: job.token,
                result: job.result,
            });
            self.free.push(job);
        }
    }

    fn arm(&mut self) -> bool {
        if self.in_flight == 0 {
            return false;
        }
        self.pool.armed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !self.pool.done.is_empty() || self.fresh > 0
    }

    fn disarm(&mut self) {
        self.pool.armed.store(false, Ordering::Relaxed);
        // EAGAIN: no signal came. One that still comes wakes the worker once for nothing.
        let _ = read(&self.pool.wake, &mut [0; 8]);
    }

    fn is_patient(&self) -> bool {
        self.in_flight > 0
    }

    fn set_disk(&mut self, id: DiskId, disk: Option<&Disk>) -> io::Result<()> {
        let place = self.files.get_mut(usize::from(id.0));
        let place = place.ok_or(io::ErrorKind::InvalidInput)?;
        *place = None;
        if let Some(disk) = disk {
            let file = disk.file().ok_or(io::ErrorKind::Unsupported)?;
            *place = Some(Arc::new(file.try_clone_to_owned()?));
        }
        Ok(())
    }

    fn set_file(&mut self, _id: DiskId, _file: BorrowedFd<'_>) -> io::Result<()> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "NBD and mirrors need io_uring, and this daemon works without (engine = \"threads\"); \
             allow it (sysctl kernel.io_uring_disabled=0, the container's seccomp profile), or \
             serve a file or block device",
        ))
    }

    fn set_memory(&mut self, id: MemId, guest: Option<&Guest>) -> io::Result<()> {
        let place = self.mems.get_mut(usize::from(id.0));
        let place = place.ok_or(io::ErrorKind::InvalidInput)?;
        if place.as_ref().is_some_and(|old| old.in_flight > 0) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        *place = guest.map(|g| Adopted {
            mem: Arc::clone(g.mem()),
            in_flight: 0,
        });
        Ok(())
    }
}

impl AsFd for Threads {
    /// Readable, while armed, once there are completions to reap.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pool.wake.as_fd()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.submit();
        let mut since = Instant::now();
        while self.in_flight > 0 && since.elapsed() < DRAIN {
            let before = self.in_flight;
            self.reap(&mut Completions::new());
            if self.in_flight < before {
                since = Instant::now();
            } else {
                std::thread::sleep(LOOK);
            }
        }
        self.pool.stop.store(true, Ordering::Release);
        let all = (self.threads.len() as u64).to_ne_bytes();
        let _ = write(&self.pool.work, &all);
        // One that waits for storage that does not answer is left to it.
        if self.in_flight == 0 {
            for thread in self.threads.drain(..) {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::contract;

    contract::contract!(|capacity| Threads::new(capacity).unwrap());

    #[test]
    fn a_capacity_has_bounds() {
        assert!(Threads::new(0).is_err() && Threads::new(MAX_CAPACITY + 1).is_err());
    }

    #[test]
    fn sockets_and_eventfds_are_refused_with_the_remedy() {
        let mut engine = Threads::new(4).unwrap();
        let file = tempfile::tempfile().unwrap();
        let error = engine.set_file(DiskId(0), file.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert!(error.to_string().contains("kernel.io_uring_disabled=0"));
    }

    #[test]
    fn storage_that_does_not_answer_holds_up_its_own_operations_only() {
        // An eventfd nobody signals stands for it. All threads but one are made to wait.
        let mut engine = Threads::new(2 * u32::try_from(THREADS).unwrap()).unwrap();
        let stuck = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let ram = crate::testing::Ram::new(4096);
        let guest = Guest::plain(Arc::clone(&ram.mem));
        engine.set_memory(MemId(0), Some(&guest)).unwrap();
        engine.files[0] = Some(Arc::clone(&stuck));
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), [7; 512]).unwrap();
        engine.files[1] = Some(Arc::new(path.reopen().unwrap().into()));
        let segments = [ram.at(0, 8)];
        let op = |disk, offset| Op {
            verb: Verb::Read,
            disk: DiskId(disk),
            durable: false,
            offset,
            len: 8,
            mem: MemId(0),
            segments: &segments,
            skip: 0,
        };
        let waits = u32::try_from(THREADS).unwrap() - 1;
        for n in 0..waits {
            // An offset of -1 is the file's own position: what an eventfd is read with.
            engine.push(Token(n), &op(0, u64::MAX)).unwrap();
        }
        engine.submit();
        engine.push(Token(1000), &op(1, 0)).unwrap();
        engine.submit();
        let mut done = Completions::new();
        while done.is_empty() {
            engine.reap(&mut done);
            std::thread::yield_now();
        }
        let good = Completion {
            token: Token(1000),
            result: 8,
        };
        assert_eq!(done.as_slice(), [good]);
        assert_eq!(engine.in_flight, waits);
        // The storage comes back, and everything ends, once.
        for _ in 0..waits {
            write(&*stuck, &1u64.to_ne_bytes()).unwrap();
            let mut done = Completions::new();
            while done.is_empty() {
                engine.reap(&mut done);
                std::thread::yield_now();
            }
            assert!(done.iter().all(|c| c.result == 8), "{done:?}");
        }
        assert_eq!(engine.in_flight, 0);
    }
}
