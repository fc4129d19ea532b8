//! How control and session threads hand work to a worker, which never waits for them.
//!
//! ```text
//!  session ─┐                       ┌─ pending() one load, every loop
//!  control ─┼─ Sender::call ── queue ── take() ── apply ── ReplyTo::send ─┐
//!  timer   ─┘      ↑ parked until the reply, the deadline or the end ─────┘
//! ```
//!
//! Senders may block: they queue behind a mutex and wait while the queue is full. The worker takes
//! no lock. Because senders are serialised, and announce a command only after it is whole, the
//! worker never meets a half-written slot either.
//!
//! **Wake-up.** The worker sleeps on the inbox's eventfd (and other things). Before that it calls
//! [`Inbox::arm`], which marks it asleep and then looks at the announcements once more; a sender
//! announces and then looks at the mark. Both sides use sequentially consistent operations, so at
//! least one of them sees the other: a wake-up can be superfluous, never lost. Only the sender that
//! clears the mark writes the eventfd; a worker that polls costs senders no system call.
//!
//! **End.** When the inbox is dropped (also by a panic that unwinds the worker), the commands left
//! in it are dropped, and every caller that still waits gets [`CallError::Dropped`]; later calls
//! get [`CallError::Closed`].

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use rustix::event::{EventfdFlags, eventfd};

/// Commands a mailbox holds unless told otherwise. Callers wait for their reply, so this is the
/// number of threads that can talk to one worker before one of them waits for room.
pub const CAPACITY: usize = 64;

/// How often a sender looks whether a full queue has room. The worker must not be bothered with
/// waking senders, and a full queue means it is far behind already.
const FULL_RETRY: Duration = Duration::from_millis(1);

/// Why a command did not reach the worker, or its reply did not come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The queue stayed full until the deadline; the command was not posted.
    #[error("the worker's mailbox stayed full ({capacity} commands) for {waited:?}; is it stuck?")]
    Full {
        /// Commands in the queue.
        capacity: usize,
        /// How long the sender waited.
        waited: Duration,
    },
    /// No reply within the deadline. The worker may still carry the command out.
    #[error("the worker did not answer within {waited:?}; the command may still take effect")]
    TimedOut {
        /// How long the caller waited.
        waited: Duration,
    },
    /// The worker has ended; the command was not posted.
    #[error("the worker has ended and takes no more commands")]
    Closed,
    /// The worker dropped the command without a reply: it ended or panicked.
    #[error("the worker ended without answering the command")]
    Dropped,
}

/// A mailbox for at most `capacity` commands (at least one): its sending and its receiving end.
///
/// # Errors
/// If the eventfd cannot be created (out of file descriptors).
pub fn mailbox<C: Send>(capacity: usize) -> io::Result<(Sender<C>, Inbox<C>)> {
    let shared = Arc::new(Shared {
        posted: CachePadded::new(AtomicU64::new(0)),
        asleep: CachePadded::new(AtomicBool::new(false)),
        queue: ArrayQueue::new(capacity.max(1)),
        closed: Mutex::new(false),
        bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
    });
    Ok((
        Sender {
            shared: Arc::clone(&shared),
        },
        Inbox { shared, taken: 0 },
    ))
}

struct Shared<C> {
    /// Commands announced so far. Written by senders, on a line of its own.
    posted: CachePadded<AtomicU64>,
    /// The worker is about to sleep, or asleep, and nobody has rung yet.
    asleep: CachePadded<AtomicBool>,
    queue: ArrayQueue<C>,
    /// Held by senders while they post, and by the inbox while it closes.
    closed: Mutex<bool>,
    bell: OwnedFd,
}

impl<C> Shared<C> {
    /// A sender that panicked while it held the lock left nothing half done: posting is one push.
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the worker if it sleeps.
    fn ring(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            // Fails only if the counter is full, and then it is readable anyway.
            let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
    }
}

/// The end that control and session threads hold. Clone it for each of them.
pub struct Sender<C> {
    shared: Arc<Shared<C>>,
}

impl<C: Send> Sender<C> {
    /// Posts a command that needs no reply, waiting for room at most `patience`.
    ///
    /// # Errors
    /// [`CallError::Full`] or [`CallError::Closed`]; the command is dropped then.
    pub fn post(&self, command: C, patience: Duration) -> Result<(), CallError> {
        let start = Instant::now();
        let mut command = command;
        loop {
            let closed = self.shared.lock();
            if *closed {
                return Err(CallError::Closed);
            }
            match self.shared.queue.push(command) {
                Ok(()) => {
                    self.shared.posted.fetch_add(1, Ordering::SeqCst);
                    drop(closed);
                    self.shared.ring();
                    return Ok(());
                }
                Err(refused) => command = refused,
            }
            drop(closed);
            let waited = start.elapsed();
            if waited >= patience {
                return Err(CallError::Full {
                    capacity: self.shared.queue.capacity(),
                    waited,
                });
            }
            thread::sleep(FULL_RETRY.min(patience - waited));
        }
    }

    /// Posts the command that `build` makes around a [`ReplyTo`], and waits for the reply; both
    /// within `patience`.
    ///
    /// # Errors
    /// Any [`CallError`]. After [`CallError::TimedOut`] the command may still take effect.
    ///
    /// ```
    /// use std::time::Duration;
    /// use towpath_common::mailbox::{ReplyTo, mailbox};
    ///
    /// enum Command { Double(u32, ReplyTo<u32>) }
    ///
    /// let (sender, mut inbox) = mailbox(8)?;
    /// let worker = std::thread::spawn(move || loop {
    ///     if let Some(Command::Double(n, reply)) = inbox.take() {
    ///         break reply.send(2 * n);
    ///     }
    /// });
    /// let answer = sender.call(|reply| Command::Double(21, reply), Duration::from_secs(60))?;
    /// assert_eq!(answer, 42);
    /// # worker.join().unwrap();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn call<T: Send>(
        &self,
        build: impl FnOnce(ReplyTo<T>) -> C,
        patience: Duration,
    ) -> Result<T, CallError> {
        let start = Instant::now();
        let slot = Arc::new(Slot {
            reply: ArrayQueue::new(1),
            settled: AtomicBool::new(false),
            caller: thread::current(),
        });
        self.post(
            build(ReplyTo {
                slot: Arc::clone(&slot),
            }),
            patience,
        )?;
        loop {
            // Settled is set after the reply is in place, so one look at each is enough.
            if slot.settled.load(Ordering::Acquire) {
                return slot.reply.pop().ok_or(CallError::Dropped);
            }
            let waited = start.elapsed();
            if waited >= patience {
                return Err(CallError::TimedOut { waited });
            }
            thread::park_timeout(patience - waited);
        }
    }
}

impl<C> Clone for Sender<C> {
    fn clone(&self) -> Self {
        Sender {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<C> fmt::Debug for Sender<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("queued", &self.shared.queue.len())
            .finish_non_exhaustive()
    }
}

/// The worker's end.
///
/// Its file descriptor becomes readable when a command arrives while the worker is armed; poll it
/// together with whatever else wakes the worker.
pub struct Inbox<C> {
    shared: Arc<Shared<C>>,
    /// Commands taken so far; equal to `posted` when there is nothing to take.
    taken: u64,
}

impl<C> Inbox<C> {
    /// Whether a command waits: one load of a line that only senders write.
    #[inline]
    pub fn pending(&self) -> bool {
        self.shared.posted.load(Ordering::Acquire) != self.taken
    }

    /// The next command, oldest first.
    #[inline]
    pub fn take(&mut self) -> Option<C> {
        if !self.pending() {
            return None;
        }
        let command = self.shared.queue.pop();
        self.taken = self.taken.wrapping_add(u64::from(command.is_some()));
        command
    }

    /// Marks the worker as asleep. `false` if a command waits: do not sleep. After `true` the
    /// worker may block on the file descriptor; it calls [`Inbox::disarm`] when it is back.
    #[must_use = "sleeping with a command pending loses its wake-up"]
    pub fn arm(&self) -> bool {
        self.arm_with(|| ())
    }

    /// [`Inbox::arm`], with what a test wants to happen at the moment that matters.
    fn arm_with(&self, meanwhile: impl FnOnce()) -> bool {
        self.shared.asleep.store(true, Ordering::SeqCst);
        meanwhile();
        if self.shared.posted.load(Ordering::SeqCst) == self.taken {
            return true;
        }
        self.disarm();
        false
    }

    /// Marks the worker as awake, and silences the file descriptor if somebody rang.
    pub fn disarm(&self) {
        if !self.shared.asleep.swap(false, Ordering::SeqCst) {
            // A sender cleared the mark. Its write may still be on its way; the next sleep is
            // then cut short once, which is harmless.
            let _ = rustix::io::read(&self.shared.bell, &mut [0; 8]);
        }
    }
}

impl<C> AsFd for Inbox<C> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.bell.as_fd()
    }
}

impl<C> Drop for Inbox<C> {
    fn drop(&mut self) {
        *self.shared.lock() = true;
        // Nobody can post any more. Dropping a command tells its caller.
        while self.shared.queue.pop().is_some() {}
    }
}

impl<C> fmt::Debug for Inbox<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("taken", &self.taken)
            .finish_non_exhaustive()
    }
}

/// The way back to one caller. Sending never blocks or allocates; dropping it unsent tells the
/// caller so.
pub struct ReplyTo<T> {
    slot: Arc<Slot<T>>,
}

struct Slot<T> {
    /// At most one reply, put there before `settled`.
    reply: ArrayQueue<T>,
    /// There will be no other reply than the one that is there, if any.
    settled: AtomicBool,
    caller: Thread,
}

impl<T> ReplyTo<T> {
    /// Answers the caller and wakes it. If it has given up, the reply goes with the last of the
    /// two ends.
    pub fn send(self, reply: T) {
        // The slot is empty: only this handle fills it, and sending consumes the handle.
        let _ = self.slot.reply.push(reply);
    }
}

impl<T> Drop for ReplyTo<T> {
    fn drop(&mut self) {
        self.slot.settled.store(true, Ordering::Release);
        self.slot.caller.unpark();
    }
}

impl<T> fmt::Debug for ReplyTo<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplyTo")
            .field("caller", &self.slot.caller.id())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
