//! The limit: one thread, `io_uring` on the file, no virtqueue, no guest.
//!
//! It uses what the kernel offers to the fastest single thread: a registered file, registered
//! buffers, one `io_uring_enter` per burst that submits and waits, completions run in the
//! submitter. Buffers are a memfd's pages, as a guest's are.

// UNSAFETY: io_uring reads and writes buffers behind the compiler's back (`push`,
// `register_buffers`), and rustix has no sched_setscheduler.
#![expect(
    unsafe_code,
    reason = "io_uring submission and sched_setscheduler have no safe form"
)]

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use io_uring::{IoUring, opcode, types};
use towpath_common::mem::{Mapping, Window};

use crate::load::{Aim, Sample};
use crate::plan::Workload;

/// A file with a ring and buffers of its own, ready to run one workload.
///
/// Fields drop in order: the ring goes, and with it the kernel's hold on the buffers, before the
/// buffers do; [`Raw::run`] leaves nothing in flight.
#[derive(Debug)]
pub struct Raw {
    ring: Ring,
    buffers: Arc<Mapping>,
    aim: Aim,
    workload: Workload,
    files: u32,
    layout: Layout,
    /// Completions that each slot waits for.
    waits: Vec<u32>,
}

/// How a disk lies on files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Chunks of so many bytes in turn; one file is a stripe of any chunk. Requests are whole
    /// chunks, or lie within one.
    Stripe(u64),
    /// The same on each: written to all, read from one after the other.
    Mirror,
}

/// `IoUring` cannot be printed.
struct Ring(IoUring);

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Ring").field(&self.0.as_raw_fd()).finish()
    }
}

impl Raw {
    /// Registers `file`, of `size` bytes, and a buffer for each request in flight.
    pub fn new(file: &File, size: u64, workload: Workload) -> Result<Self> {
        Self::over(&[file.as_raw_fd()], Layout::Stripe(size), size, workload)
    }

    /// The same on several files, which live as long as this; `size` is that of the disk.
    pub fn over(files: &[RawFd], layout: Layout, size: u64, workload: Workload) -> Result<Self> {
        let parts = match layout {
            Layout::Stripe(chunk) => u64::from(workload.block).div_ceil(chunk.max(1)),
            Layout::Mirror => files.len() as u64,
        };
        let depth = u32::from(workload.depth) * u32::try_from(parts)?;
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(depth.next_power_of_two())
            .context("io_uring_setup")?;
        ring.submitter()
            .register_files(files)
            .context("register_files")?;
        let len = u64::from(workload.block) * u64::from(workload.depth);
        let (buffers, _) = Mapping::memfd("towpath-raw", len)?;
        let buffers = Arc::new(buffers);
        ensure!(fill(&Window::new(&buffers), len), "buffers of {len} bytes");
        let mut this = Self {
            ring: Ring(ring),
            buffers,
            aim: Aim::new(&workload, size)?,
            workload,
            files: u32::try_from(files.len())?,
            layout,
            waits: vec![0; workload.depth.into()],
        };
        this.register()?;
        Ok(this)
    }

    fn register(&mut self) -> Result<()> {
        let mut vectors = Vec::with_capacity(self.workload.depth.into());
        for slot in 0..self.workload.depth {
            let iov_base = self.buffer(slot).cast();
            vectors.push(libc::iovec {
                iov_base,
                iov_len: self.workload.block as usize,
            });
        }
        // SAFETY: the vectors lie in `self.buffers`, which outlives the ring (field order above).
        unsafe { self.ring.0.submitter().register_buffers(&vectors) }
            .context("cannot register buffers; raise RLIMIT_MEMLOCK")
    }

    fn buffer(&self, slot: u16) -> *mut u8 {
        let len = u64::from(self.workload.block);
        self.buffers.host(u64::from(slot) * len, len)
    }

    /// Runs for `duration`, then waits for what is in flight (not counted).
    pub fn run(&mut self, duration: Duration) -> Result<Sample> {
        let start = Instant::now();
        let mut idle: Vec<u16> = (0..self.workload.depth).collect();
        let (mut requests, mut time) = (0, Duration::ZERO);
        while time < duration {
            for slot in idle.drain(..) {
                let block = self.aim.next_block();
                self.push(slot, block)?;
            }
            self.ring.0.submit_and_wait(1).context("io_uring_enter")?;
            self.reap(&mut idle)?;
            requests += idle.len() as u64;
            time = start.elapsed();
        }
        while idle.len() < usize::from(self.workload.depth) {
            self.ring.0.submit_and_wait(1).context("io_uring_enter")?;
            self.reap(&mut idle)?;
        }
        Ok(Sample { requests, time })
    }

    /// Asks for one block: of each file it lies on.
    fn push(&mut self, slot: u16, block: u64) -> Result<()> {
        let len = u64::from(self.workload.block);
        let at = block * len;
        match self.layout {
            Layout::Stripe(chunk) => {
                let part = len.min(chunk);
                for skip in (0..len).step_by(usize::try_from(part)?) {
                    let (index, within) = ((at + skip) / chunk, (at + skip) % chunk);
                    let files = u64::from(self.files);
                    let file = u32::try_from(index % files)?;
                    self.part(slot, file, index / files * chunk + within, skip, part)?;
                }
            }
            Layout::Mirror if self.workload.write => {
                for file in 0..self.files {
                    self.part(slot, file, at, 0, len)?;
                }
            }
            Layout::Mirror => self.part(slot, u32::from(slot) % self.files, at, 0, len)?,
        }
        Ok(())
    }

    fn part(&mut self, slot: u16, file: u32, at: u64, skip: u64, len: u64) -> Result<()> {
        let buffer = self.buffer(slot).wrapping_add(usize::try_from(skip)?);
        let (file, len) = (types::Fixed(file), u32::try_from(len)?);
        let entry = if self.workload.write {
            opcode::WriteFixed::new(file, buffer, len, slot)
                .offset(at)
                .build()
        } else {
            opcode::ReadFixed::new(file, buffer, len, slot)
                .offset(at)
                .build()
        };
        self.waits[usize::from(slot)] += 1;
        let entry = entry.user_data(u64::from(slot) | u64::from(len) << 32);
        // SAFETY: `skip` and `len` lie within the slot's own part of `self.buffers` (`push`), which
        // outlives the ring, and no reference to it exists.
        unsafe { self.ring.0.submission().push(&entry) }.context("submission queue full")
    }

    fn reap(&mut self, idle: &mut Vec<u16>) -> Result<()> {
        for entry in self.ring.0.completion() {
            let slot = u16::try_from(entry.user_data() & 0xffff)?;
            if u64::try_from(entry.result()) != Ok(entry.user_data() >> 32) {
                bail!("raw request returned {}", entry.result());
            }
            let waits = self.waits.get_mut(usize::from(slot));
            let waits = waits.context("foreign completion")?;
            *waits -= 1;
            if *waits == 0 {
                idle.push(slot);
            }
        }
        Ok(())
    }
}

/// Bytes that are not all zero, so that nothing under the file can take a short cut.
fn fill(buffers: &Window, len: u64) -> bool {
    const PAGE: u64 = 4096;
    let page: Vec<u8> = (0..PAGE)
        .map(|i| u8::try_from(i % 251).unwrap_or(0))
        .collect();
    (0..len / PAGE).all(|i| buffers.write(i * PAGE, &page))
}

/// Runs `work` with this thread at the lowest priority: it yields to anything at once.
///
/// For rows on a real disk, where a generator that spins would starve the kernel thread which
/// completes the back-end's requests on this very core.
pub fn yielding<T>(yes: bool, work: impl FnOnce() -> T) -> Result<T> {
    if !yes {
        return Ok(work());
    }
    set_policy(libc::SCHED_IDLE)?;
    let result = work();
    set_policy(libc::SCHED_OTHER)?;
    Ok(result)
}

fn set_policy(policy: libc::c_int) -> Result<()> {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: `param` is a live sched_param; pid 0 is the calling thread.
    let rc = unsafe { libc::sched_setscheduler(0, policy, &raw const param) };
    ensure!(
        rc == 0,
        "sched_setscheduler: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_of_a_file_is_written_and_read_back_whole() {
        let file = tempfile::tempfile().unwrap();
        let size = 64 * 4096;
        file.set_len(size).unwrap();
        let mut workload = Workload {
            write: true,
            sequential: true,
            block: 4096,
            depth: 8,
            queues: 1,
        };
        let mut raw = Raw::new(&file, size, workload).unwrap();
        while raw.run(Duration::from_millis(1)).unwrap().requests == 0 {}
        workload.write = false;
        let sample = Raw::new(&file, size, workload)
            .unwrap()
            .run(Duration::from_millis(1));
        assert!(sample.unwrap().rate() > 0.0);
        // A file shorter than promised is an error, not a fast disk.
        file.set_len(0).unwrap();
        assert!(
            Raw::new(&file, size, workload)
                .unwrap()
                .run(Duration::from_millis(1))
                .is_err()
        );
    }

    #[test]
    fn a_disk_on_several_files_is_written_where_it_lies() {
        let files: Vec<_> = (0..2).map(|_| tempfile::tempfile().unwrap()).collect();
        let fds: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let workload = Workload {
            write: true,
            sequential: true,
            block: 8192,
            depth: 2,
            queues: 1,
        };
        let length = |at: usize| files[at].metadata().unwrap().len();
        let size = 8 * 8192;
        // Chunks of 4 KiB: each block lies on both.
        let mut stripe = Raw::over(&fds, Layout::Stripe(4096), size, workload).unwrap();
        let tries = 0..1000;
        tries.clone().for_each(|_| {
            if length(1) < size / 2 {
                stripe.run(Duration::from_millis(1)).unwrap();
            }
        });
        assert_eq!((length(0), length(1)), (size / 2, size / 2));
        let mut mirror = Raw::over(&fds, Layout::Mirror, size, workload).unwrap();
        tries.for_each(|_| {
            if length(1) < size {
                mirror.run(Duration::from_millis(1)).unwrap();
            }
        });
        assert_eq!((length(0), length(1)), (size, size));
    }

    #[test]
    fn priority_is_lowered_for_the_work_alone() {
        assert_eq!(yielding(true, || 7).unwrap(), 7);
        assert_eq!(yielding(false, || 8).unwrap(), 8);
    }
}
