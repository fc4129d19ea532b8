//! A token bucket in one atomic word, shared by the workers of a port.
//!
//! The generic cell rate algorithm (ITU-T I.371): instead of a number of tokens, the moment when
//! the bucket will be full again. A bucket is empty when that moment is a full burst away. While
//! one unit is left, any number may be taken, and the moment moves by its cost: a frame larger than
//! what is left, or than the whole burst, passes and delays the next one, so no size is starved
//! and the long-run rate is exact.
//!
//! Time wraps after 2.3 years. A bucket that nothing was taken from for just as long, to the hour,
//! may seem empty for that hour.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Time is counted in 1/256 ns, so that a byte at 100 GB/s still costs more than two.
const TICKS_PER_NS: u64 = 256;
/// Fractional bits of the cost of one unit.
const FRACTION: u32 = 16;
/// The most that is taken at once: a burst of 64 frames of 64 KiB. More counts as this.
const MAX_TAKE: u64 = 1 << 22;
/// The longest time to fill, in ticks (104 days): far from where the clock wraps.
const LONGEST: u64 = 1 << 61;
/// How often a worker tries again when another one was faster. Then the frame passes for free:
/// rather that than a loop whose end others decide.
const TRIES: u32 = 16;

/// So much in a second, and so much at once, of whatever the caller counts.
#[derive(Debug)]
pub struct Limiter {
    /// When the bucket is full again, in ticks, modulo 2^64; 0: it is full.
    full_at: AtomicU64,
    /// Ticks for one unit, times 2^[`FRACTION`].
    unit: u64,
    /// Ticks to fill an empty bucket.
    burst: u64,
}

impl Limiter {
    /// A full bucket that lets `rate` units a second pass, `burst` at once; zero counts as 1.
    #[must_use]
    pub fn new(rate: u64, burst: u64) -> Limiter {
        let second = (1_000_000_000 * TICKS_PER_NS) << FRACTION;
        let mut limiter = Limiter {
            full_at: AtomicU64::new(0),
            unit: (second / rate.max(1)).max(1),
            burst: 0,
        };
        limiter.burst = limiter.cost(burst.max(1));
        limiter
    }

    /// Whether `n` units may pass at `now_ns` (any clock that goes forwards; it may wrap).
    /// If so they are counted, if not they are not.
    #[inline]
    pub fn take(&self, n: u64, now_ns: u64) -> bool {
        let now = now_ns.wrapping_mul(TICKS_PER_NS);
        let (one, most) = (self.cost(1), self.cost(MAX_TAKE));
        let cost = self.cost(n.min(MAX_TAKE));
        let mut full_at = self.full_at.load(Relaxed);
        for _ in 0..TRIES {
            // A moment further away than it can ever be set is one in the past.
            let away = full_at.wrapping_sub(now);
            let is_past = full_at == 0 || away > self.burst + most;
            let away = if is_past { 0 } else { away };
            if away + one > self.burst {
                return false;
            }
            let next = now.wrapping_add(away + cost);
            match self
                .full_at
                .compare_exchange_weak(full_at, next, Relaxed, Relaxed)
            {
                Ok(_) => return true,
                Err(other) => full_at = other,
            }
        }
        true
    }

    /// Ticks for `n` units, at most [`LONGEST`].
    #[inline]
    fn cost(&self, n: u64) -> u64 {
        let ticks = (u128::from(n) * u128::from(self.unit)) >> FRACTION;
        u64::try_from(ticks).map_or(LONGEST, |ticks| ticks.min(LONGEST))
    }
}
