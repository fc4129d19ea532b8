//! Making an io_uring: the best flags this kernel has, and what it can do beyond.

// UNSAFETY: the processor set of the kernel's I/O workers.
#![expect(unsafe_code, reason = "sched_getaffinity fills a C structure")]

use std::io;

use io_uring::{IoUring, Submitter, opcode};
use towpath_common::limits::raise_open_files;

use super::MAX_PLACES;

/// Longest submission queue. Longer ones only fall out of the cache.
pub(super) const MAX_SQ: u32 = 256;

/// Asks for a ring's flags.
pub(super) type Setup = fn(&mut io_uring::Builder);

/// Flags to try in turn; each older kernel refuses one set more with EINVAL.
pub(super) const SETUPS: [Setup; 4] = [
    // 6.6
    |b| {
        b.setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_no_sqarray();
    },
    // 6.1
    |b| {
        b.setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all();
    },
    // 5.19
    |b| {
        b.setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all();
    },
    |_| {},
];

/// The same for a ring that polls: devices are asked when the worker enters the kernel to reap.
pub(super) const POLLED: [Setup; 3] = [
    |b| {
        b.setup_iopoll();
        SETUPS[0](b);
    },
    |b| {
        b.setup_iopoll();
        SETUPS[1](b);
    },
    |b| {
        b.setup_iopoll();
    },
];

/// Milliseconds after which a kernel's thread without work sleeps.
const THREAD_IDLE: u32 = 20;

/// The same for a ring that a thread of the kernel's serves.
pub(super) const POLLED_BY_THREAD: [Setup; 1] = [|b| {
    b.setup_iopoll().setup_sqpoll(THREAD_IDLE);
}];

/// Most threads in which the kernel waits for storage on a ring's behalf: as many as requests in
/// flight on a worker.
const MAX_WORKERS: u32 = 1024;

/// Make the ring with the best flags this kernel has; whether it is disabled, to be limited and
/// enabled ([`super::uring_limits`]).
pub(super) fn build(capacity: u32, setups: &[Setup]) -> io::Result<(IoUring, bool)> {
    let mut last = io::ErrorKind::Unsupported.into();
    // 5.10 has disabled rings.
    let disabled = setups.iter().map(|setup| (setup, true));
    for (setup, disabled) in disabled.chain(setups.last().map(|setup| (setup, false))) {
        let mut builder = IoUring::builder();
        builder
            .dontfork()
            .setup_cqsize(capacity.max(MAX_SQ).next_power_of_two());
        setup(&mut builder);
        if disabled {
            builder.setup_r_disabled();
        }
        match builder.build(capacity.min(MAX_SQ).next_power_of_two()) {
            Ok(ring) => return Ok((ring, disabled)),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => last = e,
            Err(e) => return Err(e),
        }
    }
    Err(last)
}

/// Make the table of files, with [`MAX_PLACES`] empty places. The kernel wants it to be no larger
/// than the limit of open files, which this process raises at its start, but not others that run
/// this code.
pub(super) fn reserve_files(ring: &Submitter<'_>) -> io::Result<()> {
    let reserve = || ring.register_files(&[-1; MAX_PLACES as usize]);
    let few = |e: &io::Error| e.raw_os_error() == Some(libc::EMFILE);
    match reserve() {
        Err(e) if few(&e) => {
            raise_open_files();
            reserve().map_err(|e| match few(&e) {
                true => io::Error::other(format!(
                    "io_uring's table of files needs a limit of {MAX_PLACES} open files or more \
                     (LimitNOFILE= of the unit, ulimit -Hn)"
                )),
                false => e,
            })
        }
        other => other,
    }
}

/// Does this kernel take vectors of pieces of one registered buffer?
pub(super) fn has_fixed_vectors(ring: &IoUring) -> bool {
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe).is_ok()
        && probe.is_supported(opcode::ReadvFixed::CODE)
        && probe.is_supported(opcode::WritevFixed::CODE)
}

/// Let the kernel have an I/O worker for each of `capacity` operations that wait, up to
/// [`MAX_WORKERS`]. By default it has four a processor: so many requests to a server that is gone
/// would hold up every other disk's.
pub(super) fn many_io_workers(ring: &IoUring, capacity: u32) {
    // Zero leaves the other kind, of sockets and the like, as it is. An old kernel (before 5.15)
    // has no such call, and its limit.
    let mut most = [capacity.min(MAX_WORKERS), 0];
    let _ = ring.submitter().register_iowq_max_workers(&mut most);
}

/// Let the kernel's own I/O workers run wherever the process may: they would inherit the one
/// processor a polling worker is pinned to, and starve there.
pub(super) fn free_io_workers(ring: &IoUring) {
    // SAFETY: a cpu_set_t is an array of integers, for which zero is valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // The main thread is never pinned; its id is the process's.
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: `set` is writable and as large as said.
    let rc = unsafe { libc::sched_getaffinity(pid, size_of_val(&set), &raw mut set) };
    if rc == 0 {
        // An old kernel has no such call; its workers are not pinned either.
        let _ = ring.submitter().register_iowq_aff(&set);
    }
}
