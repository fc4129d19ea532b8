//! Time as the workers see it: the processor's cycle counter, read in about 9 ns, and the [`Rate`]
//! that turns cycles into nanoseconds and back.
//!
//! Code that needs the time takes `now: Cycles` as a parameter, so that a test decides what time it
//! is. The few places that must read a clock themselves (the polling loop, the cost of a service)
//! take a [`Clock`]. In tests it may be a `ManualClock`'s, which stands still until told
//! otherwise; that variant does not exist in a daemon, where reading the clock is one `rdtsc`.
//!
//! `quanta` supplies the counter. It checks that the counter is invariant (same speed at every
//! frequency, synchronous on all cores) and falls back on `CLOCK_MONOTONIC` (23 ns) where it is
//! not; a cycle is then a nanosecond. Its first use calibrates the counter against
//! `CLOCK_MONOTONIC` for at least 500 rounds of 1 µs and at most 200 ms: 0.6 ms measured on an idle
//! machine, 5 ms the worst of 25 runs with three busy threads a core. That fits in a start-up of
//! 50 ms, so nothing is done lazily: [`Clock::new`] calibrates, once per process.
//!
//! The counter is no calendar. It stops while the machine is suspended, and a thread that was
//! preempted finds the lost time in its measurements.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub, SubAssign};
#[cfg(any(test, feature = "testing"))]
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use std::time::Duration;

/// Fractional bits of the factors in [`Rate`].
const FRACTION: u32 = 32;

/// Cycles of the counter: a moment (since the counter's zero) or a length of time.
///
/// Arithmetic saturates: a moment before another gives a length of zero, never a huge one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cycles(pub u64);

impl Cycles {
    /// No time at all, or the counter's beginning.
    pub const ZERO: Cycles = Cycles(0);
    /// Later than any moment: for "never".
    pub const MAX: Cycles = Cycles(u64::MAX);

    /// The number of cycles.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The length of time from `earlier` to here; zero if `earlier` is not earlier.
    pub const fn since(self, earlier: Cycles) -> Cycles {
        Cycles(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Cycles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cycles", self.0)
    }
}

impl Add for Cycles {
    type Output = Cycles;
    fn add(self, other: Cycles) -> Cycles {
        Cycles(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Cycles {
    fn add_assign(&mut self, other: Cycles) {
        *self = *self + other;
    }
}

impl Sub for Cycles {
    type Output = Cycles;
    fn sub(self, other: Cycles) -> Cycles {
        self.since(other)
    }
}

impl SubAssign for Cycles {
    fn sub_assign(&mut self, other: Cycles) {
        *self = *self - other;
    }
}

impl Sum for Cycles {
    fn sum<I: Iterator<Item = Cycles>>(lengths: I) -> Cycles {
        lengths.fold(Cycles::ZERO, Add::add)
    }
}

/// How fast the counter runs: converts lengths of time with a multiplication and a shift.
///
/// Results saturate. `ns(cycles(n))` may be one below `n`: both round down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds per cycle, times 2^32.
    ns_per_cycle: u64,
    /// Cycles per nanosecond, times 2^32.
    cycles_per_ns: u64,
}

impl Rate {
    /// One cycle is one nanosecond.
    pub const NANOSECONDS: Rate = Rate {
        ns_per_cycle: 1 << FRACTION,
        cycles_per_ns: 1 << FRACTION,
    };

    /// The rate of a counter that advances `cycles` in `ns` nanoseconds (either zero counts as 1).
    pub fn from_ratio(cycles: u64, ns: u64) -> Rate {
        let (cycles, ns) = (cycles.max(1), ns.max(1));
        Rate {
            ns_per_cycle: ratio(ns, cycles),
            cycles_per_ns: ratio(cycles, ns),
        }
    }

    /// Nanoseconds in `length`.
    pub fn ns(self, length: Cycles) -> u64 {
        scale(length.0, self.ns_per_cycle)
    }

    /// Cycles in `ns` nanoseconds.
    pub fn cycles(self, ns: u64) -> Cycles {
        Cycles(scale(ns, self.cycles_per_ns))
    }

    /// `length` as a [`Duration`].
    pub fn duration(self, length: Cycles) -> Duration {
        Duration::from_nanos(self.ns(length))
    }

    /// Cycles in `duration`, saturating after 584 years.
    pub fn of(self, duration: Duration) -> Cycles {
        self.cycles(saturate(duration.as_nanos()))
    }

    /// Cycles per second.
    pub fn hz(self) -> u64 {
        self.cycles(1_000_000_000).0
    }
}

/// `numerator / denominator`, times 2^32, at least one unit.
fn ratio(numerator: u64, denominator: u64) -> u64 {
    saturate((u128::from(numerator) << FRACTION) / u128::from(denominator)).max(1)
}

/// `value * factor / 2^32`.
fn scale(value: u64, factor: u64) -> u64 {
    saturate((u128::from(value) * u128::from(factor)) >> FRACTION)
}

fn saturate(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// Reads the cycle counter. Cheap to clone; one per thread is customary.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
    rate: Rate,
}

#[derive(Clone, Debug)]
enum Source {
    Counter(quanta::Clock),
    #[cfg(any(test, feature = "testing"))]
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// The machine's clock. The first one in a process calibrates: 0.6 ms, at most 200 ms.
    pub fn new() -> Clock {
        let counter = quanta::Clock::new();
        // The calibration itself is private; converting 2^32 cycles shows it to ten digits.
        const SAMPLE: u64 = 1 << 32;
        let rate = Rate::from_ratio(SAMPLE, counter.delta_as_nanos(0, SAMPLE));
        Clock {
            source: Source::Counter(counter),
            rate,
        }
    }

    /// The time now.
    #[inline]
    pub fn now(&self) -> Cycles {
        match &self.source {
            Source::Counter(counter) => Cycles(counter.raw()),
            #[cfg(any(test, feature = "testing"))]
            Source::Manual(now) => Cycles(now.load(Ordering::Acquire)),
        }
    }

    /// How fast this clock runs.
    pub fn rate(&self) -> Rate {
        self.rate
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new()
    }
}

/// A clock that stands still until a test moves it.
#[cfg(any(test, feature = "testing"))]
#[derive(Clone, Debug)]
pub struct ManualClock {
    now: Arc<AtomicU64>,
    rate: Rate,
}

#[cfg(any(test, feature = "testing"))]
impl ManualClock {
    /// A clock at `start` that converts by `rate`.
    pub fn new(start: Cycles, rate: Rate) -> ManualClock {
        ManualClock {
            now: Arc::new(AtomicU64::new(start.0)),
            rate,
        }
    }

    /// What the code under test reads.
    pub fn clock(&self) -> Clock {
        Clock {
            source: Source::Manual(Arc::clone(&self.now)),
            rate: self.rate,
        }
    }

    /// The time it shows.
    pub fn now(&self) -> Cycles {
        Cycles(self.now.load(Ordering::Acquire))
    }

    /// Moves the clock forward and returns the new time.
    pub fn advance(&self, length: Cycles) -> Cycles {
        let now = self.now() + length;
        self.now.store(now.0, Ordering::Release);
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Instant;

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Cycles(3) - Cycles(5), Cycles::ZERO);
        assert_eq!(Cycles::MAX + Cycles(1), Cycles::MAX);
        assert_eq!(Cycles(7).since(Cycles(4)), Cycles(3));
        assert_eq!(
            [Cycles(1), Cycles(2)].into_iter().sum::<Cycles>(),
            Cycles(3)
        );
        assert_eq!(Rate::NANOSECONDS.ns(Cycles::MAX), u64::MAX);
        assert_eq!(Rate::from_ratio(5, 1).cycles(u64::MAX), Cycles::MAX);
    }

    #[test]
    fn a_gigahertz_counter_and_a_fast_one_convert_exactly() {
        let rate = Rate::from_ratio(2_600_000, 1_000_000);
        assert_eq!(rate.cycles(1_000_000), Cycles(2_599_999));
        assert_eq!(rate.ns(Cycles(2_600_000)), 999_999);
        assert_eq!(
            Rate::NANOSECONDS.of(Duration::from_micros(5)),
            Cycles(5_000)
        );
        assert_eq!(Rate::from_ratio(0, 0), Rate::NANOSECONDS);
    }

    #[test]
    fn the_machine_clock_advances_at_about_the_rate_it_claims() {
        let clock = Clock::new();
        // The counter's interval lies between two of the reference clock's, however the threads
        // are scheduled.
        let (outer, start, inner) = (Instant::now(), clock.now(), Instant::now());
        while inner.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        let (inner, end, outer) = (inner.elapsed(), clock.now(), outer.elapsed());
        let measured = clock.rate().duration(end - start);
        assert!(
            measured.mul_f64(1.01) >= inner,
            "{measured:?}, though {inner:?} passed"
        );
        assert!(
            measured.mul_f64(0.99) <= outer,
            "{measured:?}, though {outer:?} passed"
        );
    }

    #[test]
    fn a_manual_clock_moves_when_told() {
        let manual = ManualClock::new(Cycles(100), Rate::NANOSECONDS);
        let clock = manual.clock();
        assert_eq!((clock.now(), clock.now()), (Cycles(100), Cycles(100)));
        assert_eq!(manual.advance(Cycles(11)), Cycles(111));
        assert_eq!(clock.now(), Cycles(111));
    }

    proptest! {
        #[test]
        fn there_and_back_loses_at_most_a_tick(
            khz in 1_000_000_u64..6_000_000, ns in 0_u64..1 << 50
        ) {
            let rate = Rate::from_ratio(khz, 1_000_000);
            let back = rate.ns(rate.cycles(ns));
            // One tick from rounding, and one part in 2^29 from the factors.
            prop_assert!(back <= ns && ns - back <= 1 + (ns >> 29), "{ns} came back as {back}");
        }
    }
}
