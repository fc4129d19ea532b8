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

// UNSAFETY: pushing a submission. It is a NOP, which names no memory and no file.
#![expect(unsafe_code, reason = "io_uring cannot know what a submission names")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode};

/// Signals one eventfd at a time.
pub struct Bell {
    ring: IoUring,
    aimed: bool,
}

impl std::fmt::Debug for Bell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bell")
            .field("aimed", &self.aimed)
            .finish_non_exhaustive()
    }
}

impl Bell {
    /// A bell that signals nothing yet.
    ///
    /// # Errors
    /// If the kernel gives no ring (memory, file descriptors).
    pub fn new() -> io::Result<Bell> {
        let ring = IoUring::new(1)?;
        Ok(Bell { ring, aimed: false })
    }

    /// Signal `fd` from now on, or nothing. The kernel keeps the open file; `fd` may be closed.
    ///
    /// # Errors
    /// If `fd` is not an eventfd; nothing is signalled then.
    pub fn aim(&mut self, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        if std::mem::take(&mut self.aimed) {
            self.ring.submitter().unregister_eventfd()?;
        }
        if let Some(fd) = fd {
            self.ring.submitter().register_eventfd(fd.as_raw_fd())?;
            self.aimed = true;
        }
        Ok(())
    }

    /// Signal the eventfd. Never waits.
    #[inline]
    pub fn ring(&mut self) {
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

    #[test]
    fn each_signal_counts_one_where_the_bell_is_aimed() {
        let [a, b] = [0; 2].map(|n| eventfd(n, EventfdFlags::CLOEXEC).unwrap());
        let mut bell = Bell::new().unwrap();
        bell.ring(); // at nothing
        bell.aim(Some(a.as_fd())).unwrap();
        for _ in 0..5 {
            bell.ring();
        }
        bell.aim(Some(b.as_fd())).unwrap();
        bell.ring();
        bell.aim(None).unwrap();
        bell.ring();
        assert_eq!((count(&a), count(&b)), (5, 1));
    }

    #[test]
    fn a_full_and_blocking_eventfd_does_not_hold_it_up() {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let mut bell = Bell::new().unwrap();
        bell.aim(Some(fd.as_fd())).unwrap();
        for _ in 0..5 {
            bell.ring(); // write(2) would not come back
        }
        assert!(count(&fd) >= u64::MAX - 1);
    }

    #[test]
    fn nothing_but_an_eventfd_is_taken() {
        let file = tempfile::tempfile().unwrap();
        assert!(Bell::new().unwrap().aim(Some(file.as_fd())).is_err());
    }
}
