//! Telling a driver that something is done, without ever waiting for it.
//!
//! A call eventfd belongs to the front-end as much as to us: it may clear O_NONBLOCK, which is a
//! flag of the open file that both share, and fill the counter. A write(2) then blocks for ever,
//! and to look first (poll, F_GETFL) only narrows the gap. But the kernel signals eventfds by
//! itself too, and that never waits: a full counter stays full, and readable. One such signaller is
//! an io_uring with an eventfd registered, each time a completion is posted.
//!
//! So a queue has a ring of its own, of one entry, with its call eventfd registered, and to notify
//! is to submit a NOP. That is one system call, `io_uring_enter`, where write(2) would be one too
//! (0.6 µs against 0.36, measured in a virtual machine); completions stand in shared memory, and to
//! take them costs none. A bell that is aimed at nothing makes no system call. A bell is a file
//! descriptor and a few pages; to make one takes tens of microseconds, so those of rings that are
//! gone are kept for the next.
//!
//! Where io_uring is forbidden, Linux AIO (`aio.rs`) does the same. Where both are, there is no
//! bell: to write is what this is there to avoid.

// UNSAFETY: pushing a submission. It is a NOP, which names no memory and no file.
#![expect(unsafe_code, reason = "io_uring cannot know what a submission names")]

mod aio;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode};

use aio::Aio;

/// Signals one eventfd at a time.
#[derive(Debug)]
pub struct Bell(Kind);

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "the usual one is the large one, and stays without an indirection"
)]
enum Kind {
    Ring(Ring),
    Aio(Aio),
}

/// A ring, and whether it signals anything.
struct Ring {
    ring: IoUring,
    aimed: bool,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("aimed", &self.aimed)
            .finish_non_exhaustive()
    }
}

impl Bell {
    /// A bell that signals nothing yet.
    ///
    /// # Errors
    /// If the kernel gives no ring (memory, file descriptors), or neither a ring nor AIO.
    pub fn new() -> io::Result<Bell> {
        let refused = match IoUring::new(1) {
            Ok(ring) => return Ok(Bell(Kind::Ring(Ring { ring, aimed: false }))),
            Err(error) => error,
        };
        match refused.raw_os_error() {
            // How hosts forbid it.
            Some(libc::EPERM | libc::ENOSYS | libc::EACCES) => Bell::aio(),
            _ => Err(refused),
        }
    }

    fn aio() -> io::Result<Bell> {
        Ok(Bell(Kind::Aio(Aio::new().map_err(|error| {
            let text = format!(
                "drivers cannot be notified: this host forbids io_uring, and AIO as well \
                 ({error}); allow one (kernel.io_uring_disabled, fs.aio-max-nr, the container's \
                 seccomp profile)"
            );
            io::Error::new(error.kind(), text)
        })?)))
    }

    /// Signal `fd` from now on, or nothing. The open file is kept; `fd` may be closed.
    ///
    /// # Errors
    /// If `fd` is not an eventfd; nothing is signalled then.
    pub fn aim(&mut self, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        match &mut self.0 {
            Kind::Ring(ring) => ring.aim(fd),
            Kind::Aio(aio) => aio.aim(fd),
        }
    }

    /// Signal the eventfd. Never waits.
    #[inline]
    pub fn ring(&mut self) {
        match &mut self.0 {
            Kind::Ring(ring) => ring.ring(),
            Kind::Aio(aio) => aio.ring(),
        }
    }
}

impl Ring {
    fn aim(&mut self, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        if std::mem::take(&mut self.aimed) {
            self.ring.submitter().unregister_eventfd()?;
        }
        if let Some(fd) = fd {
            self.ring.submitter().register_eventfd(fd.as_raw_fd())?;
            self.aimed = true;
        }
        Ok(())
    }

    #[inline]
    fn ring(&mut self) {
        if !self.aimed {
            return;
        }
        // Completions of earlier signals, so that their queue never fills.
        self.ring.completion().for_each(drop);
        let nop = opcode::Nop::new().build();
        // SAFETY: a NOP names no memory that would have to live on, and no file.
        // A full queue holds a NOP that the kernel would not take; submitted now, it does as well.
        let _ = unsafe { self.ring.submission().push(&nop) };
        // Refused only without memory for a request, and then the next signal takes it along.
        let _ = self.ring.submit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::os::fd::AsFd;

    fn count(fd: &impl AsFd) -> u64 {
        let mut word = [0; 8];
        rustix::io::read(fd, &mut word).unwrap();
        u64::from_ne_bytes(word)
    }

    /// A bell of each kind.
    fn bells() -> [Bell; 2] {
        [Bell::new().unwrap(), Bell::aio().unwrap()]
    }

    #[test]
    fn each_signal_counts_one_where_the_bell_is_aimed() {
        for mut bell in bells() {
            let [a, b] = [0; 2].map(|n| eventfd(n, EventfdFlags::CLOEXEC).unwrap());
            bell.ring(); // at nothing
            bell.aim(Some(a.as_fd())).unwrap();
            // More than there is room for completions.
            for _ in 0..500 {
                bell.ring();
            }
            bell.aim(Some(b.as_fd())).unwrap();
            bell.ring();
            bell.aim(None).unwrap();
            bell.ring();
            assert_eq!((count(&a), count(&b)), (500, 1), "{bell:?}");
        }
    }

    #[test]
    fn a_full_and_blocking_eventfd_does_not_hold_it_up() {
        for mut bell in bells() {
            let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
            bell.aim(Some(fd.as_fd())).unwrap();
            for _ in 0..5 {
                bell.ring(); // write(2) would not come back
            }
            assert!(count(&fd) >= u64::MAX - 1);
        }
    }

    #[test]
    fn nothing_but_an_eventfd_is_taken() {
        for mut bell in bells() {
            let file = tempfile::tempfile().unwrap();
            assert!(bell.aim(Some(file.as_fd())).is_err());
        }
    }
}
