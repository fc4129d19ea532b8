//! One thing, used by one of several workers for the length of a burst: a port's transmit side.
//!
//! ```text
//!  worker 0 ── hold ─┐                        ┌─ lock ── session: take the ring out,
//!                    ├──▶ Lease<Option<Ring>> ◀┘          put another in
//!  worker 1 ── hold ─┘      one holder at a time
//! ```
//!
//! A worker holds at most one lease at a time, for one burst, so leases cannot deadlock, and the
//! longest wait for one is the bursts of the other workers. A session thread holds it for as long
//! as it takes to exchange the value: it prepares and drops what it exchanges outside.
//!
//! **Nobody waits in the kernel for a lease**, and so nobody has to be woken: taking one is a
//! compare-and-swap and giving it back a swap, never a system call. A worker that finds it taken
//! spins for about a burst and then yields the processor between tries, since the holder may be a
//! thread that was preempted; a session thread sleeps between tries. Whoever comes next is decided
//! by chance, not by order: under load each release is a new draw.
//!
//! **Panics.** A holder that panics leaves the value as it is at that moment, and it is handed on:
//! a ring checks each access anew, and may at worst lose the buffers of one burst. That is not for
//! long: a daemon ends once a worker is dead.
//!
//! # What is proven
//!
//! `common/tests/lease_model.rs` runs this file under loom, which tries every order in which the
//! threads' operations can take effect, for: two workers, each with its own ingress queue, which
//! forward to one shared ring, while a session takes that ring out and puts another in. In every
//! order each frame is in exactly one ring or counted as discarded; frames of one ingress queue
//! stand in their order, in the old ring before the new; and once the session has the old ring, no
//! worker touches its memory, nor had any write to it left unseen. Two egresses in opposite order
//! do not deadlock. Loom knows the memory model, so the last is about visibility as well.
//!
//! Not proven: anything of more than two workers or longer queues than the model's; fairness, and
//! hence an upper bound on waiting; what a value does inside; the standard library's mutex, for
//! which loom has its own; a change of the worker that owns an ingress queue, which is the
//! mailbox's business.

use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::sync::{
    AtomicU64, Mutex, MutexGuard, Ordering, SPINS, TryLockError, nap, spin_loop, yield_now,
};

/// A value that one thread uses at a time. On cache lines of its own (two, since processors fetch
/// them in pairs), so that neighbours in a table do not slow each other down.
#[repr(align(128))]
pub struct Lease<T> {
    value: Mutex<T>,
    /// Times that a worker found it taken.
    contended: AtomicU64,
}

impl<T> Lease<T> {
    /// Let `value` be shared in turns.
    pub fn new(value: T) -> Lease<T> {
        Lease {
            value: Mutex::new(value),
            contended: AtomicU64::new(0),
        }
    }

    /// The value, if nobody has it now.
    #[inline]
    #[must_use]
    pub fn try_hold(&self) -> Option<Held<'_, T>> {
        let guard = match self.value.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(Held { guard })
    }

    /// The value, for a worker that has a burst for it: as soon as whoever has it gives it back.
    /// Never sleeps. The caller holds no other lease.
    #[inline]
    pub fn hold(&self) -> Held<'_, T> {
        self.try_hold().unwrap_or_else(|| {
            self.contended.fetch_add(1, Ordering::Relaxed);
            self.wait(yield_now)
        })
    }

    /// The value, for a thread that may sleep and wants to change it. To be given back at once:
    /// workers wait for it.
    pub fn lock(&self) -> Held<'_, T> {
        self.try_hold().unwrap_or_else(|| self.wait(nap))
    }

    #[cold]
    fn wait(&self, pause: fn()) -> Held<'_, T> {
        loop {
            for _ in 0..SPINS {
                spin_loop();
                if let Some(held) = self.try_hold() {
                    return held;
                }
            }
            pause();
        }
    }

    /// How often [`Lease::hold`] had to wait so far.
    #[must_use]
    pub fn contended(&self) -> u64 {
        self.contended.load(Ordering::Relaxed)
    }
}

impl<T> fmt::Debug for Lease<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").finish_non_exhaustive()
    }
}

/// A leased value, given back when dropped.
#[must_use]
pub struct Held<'a, T> {
    guard: MutexGuard<'a, T>,
}

impl<T> Deref for Held<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for Held<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T: fmt::Debug> fmt::Debug for Held<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
