//! What [`crate::lease`] needs of locks, atomics and the scheduler: the standard library's. The
//! model test (`common/tests/lease_model.rs`) builds that file with loom's in their place.

use std::time::Duration;

pub(crate) use std::hint::spin_loop;
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard, TryLockError};
pub(crate) use std::thread::yield_now;

/// Tries before a waiting thread lets others run. A pause is 40 to 140 cycles, so this is some
/// microseconds: a burst of 64 frames.
pub(crate) const SPINS: u32 = 100;

/// Let a thread that may sleep do so, for about a burst or two of whoever holds the lease.
pub(crate) fn nap() {
    std::thread::sleep(Duration::from_micros(50));
}
