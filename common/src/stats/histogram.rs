//! Latency histograms with logarithmic octaves and linear steps inside them, as HdrHistogram's.
//!
//! Values are nanoseconds. Every power of two from 64 ns to 137 s is divided into 16 buckets, so a
//! value is known to within 1/16 of itself; shorter ones share the first bucket, longer ones the
//! last. Recording is a count of leading zeros, a shift and three additions to memory that is
//! likely in cache. 4 KiB a histogram.
//!
//! The row of an octave is the unit of publishing: recording marks it, publishing visits marked
//! rows only, and costs nothing for a histogram at rest.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::store;

/// log2 of the steps in an octave.
const STEP_BITS: u32 = 4;
/// Steps in an octave; buckets in a row.
const STEPS: usize = 1 << STEP_BITS;
/// log2 of the lowest value that is told apart from shorter ones: 64 ns, about two clock readings.
const LOWEST_BITS: u32 = 6;
/// log2 of the value from which on all are one: 137 s, longer than any guest waits for a disk.
const HIGHEST_BITS: u32 = 37;
/// Rows: one for each octave; the values of 137 s and more are in the last.
const ROWS: usize = (HIGHEST_BITS - LOWEST_BITS + 1) as usize;
const BUCKETS: usize = ROWS * STEPS;
/// How far the array is shifted so that the values below 64 ns are bucket 0.
const SHIFT: usize = STEPS - 1;
/// What shorter values are taken for: it falls in bucket 0.
const FLOOR: u64 = (1 << LOWEST_BITS) - 1;
/// What longer values are taken for: it falls in the last bucket in use.
const CEILING: u64 = 1 << HIGHEST_BITS;

/// The bucket of a value.
#[inline]
fn bucket(ns: u64) -> usize {
    let ns = ns.clamp(FLOOR, CEILING);
    let octave = ns.ilog2();
    let step = (ns >> (octave - STEP_BITS)) as usize % STEPS;
    (octave + 1 - LOWEST_BITS) as usize * STEPS + step - SHIFT
}

/// The highest value that falls in a bucket.
fn highest(bucket: usize) -> u64 {
    let next = bucket + 1 + SHIFT;
    let (row, step) = (next / STEPS, next % STEPS);
    if bucket >= self::bucket(CEILING) {
        return u64::MAX;
    }
    (((STEPS + step) as u64) << row << (LOWEST_BITS - 1 - STEP_BITS)) - 1
}

/// A histogram as its worker keeps it: plain, fixed, no heap.
#[derive(Clone)]
pub struct Histogram {
    buckets: [[u64; STEPS]; ROWS],
    sum: u64,
    max: u64,
    /// Rows that changed since the last publication.
    changed: u32,
}

const _: () = assert!(ROWS <= u32::BITS as usize);

impl Histogram {
    /// An empty histogram.
    pub const fn new() -> Self {
        Histogram {
            buckets: [[0; STEPS]; ROWS],
            sum: 0,
            max: 0,
            changed: 0,
        }
    }

    /// Counts one value, in nanoseconds.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        self.record_many(ns, 1);
    }

    /// Counts a value `times` times: a burst whose requests waited alike.
    #[inline]
    pub fn record_many(&mut self, ns: u64, times: u64) {
        let bucket = bucket(ns);
        let (row, step) = (bucket / STEPS, bucket % STEPS);
        self.buckets[row][step] += times;
        // Prometheus takes a counter that went back for a restart; a frozen one would lie.
        self.sum = self.sum.wrapping_add(ns.wrapping_mul(times));
        self.max = self.max.max(ns);
        self.changed |= 1 << row;
    }

    /// Stores what changed since the last call in `shared`, which must be the same each time.
    pub fn publish(&mut self, shared: &SharedHistogram) {
        if self.changed == 0 {
            return;
        }
        for row in 0..ROWS {
            if self.changed & (1 << row) != 0 {
                for (cell, &count) in shared.buckets[row].iter().zip(&self.buckets[row]) {
                    store(cell, count);
                }
            }
        }
        store(&shared.sum, self.sum);
        store(&shared.max, self.max);
        self.changed = 0;
    }

    /// The values so far.
    pub fn snapshot(&self) -> HistogramSnapshot {
        let buckets = self.buckets.iter().flatten().copied().collect();
        HistogramSnapshot {
            buckets,
            sum: self.sum,
            max: self.max,
        }
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.snapshot().fmt(f)
    }
}

/// The published copy of one worker's histogram.
#[repr(align(64))]
pub struct SharedHistogram {
    buckets: [[AtomicU64; STEPS]; ROWS],
    sum: AtomicU64,
    max: AtomicU64,
}

impl SharedHistogram {
    /// An empty one.
    pub const fn new() -> Self {
        SharedHistogram {
            buckets: [const { [const { AtomicU64::new(0) }; STEPS] }; ROWS],
            sum: AtomicU64::new(0),
            max: AtomicU64::new(0),
        }
    }

    /// The histogram as published last.
    pub fn snapshot(&self) -> HistogramSnapshot {
        let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        HistogramSnapshot {
            buckets: self.buckets.iter().flatten().map(load).collect(),
            sum: load(&self.sum),
            max: load(&self.max),
        }
    }
}

impl Default for SharedHistogram {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SharedHistogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.snapshot().fmt(f)
    }
}

/// A histogram at rest, for control: to merge, summarise and render.
#[derive(Clone, PartialEq, Eq)]
pub struct HistogramSnapshot {
    buckets: Vec<u64>,
    sum: u64,
    max: u64,
}

impl HistogramSnapshot {
    /// No values: where merging starts.
    pub fn new() -> Self {
        HistogramSnapshot {
            buckets: vec![0; BUCKETS],
            sum: 0,
            max: 0,
        }
    }

    /// Adds the values of another.
    pub fn merge(&mut self, other: &HistogramSnapshot) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.sum = self.sum.wrapping_add(other.sum);
        self.max = self.max.max(other.max);
    }

    /// How many values there are: the sum of the buckets.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The sum of the values in nanoseconds; wraps after 584 years.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The highest value in nanoseconds; zero if there is none.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The average in nanoseconds; zero if there are no values.
    pub fn mean(&self) -> u64 {
        self.sum / self.count().max(1)
    }

    /// A value that `percent` (0 to 100) of the values do not exceed, in nanoseconds; zero if there
    /// are none. Never too low, at most a sixteenth too high.
    pub fn percentile(&self, percent: f64) -> u64 {
        let count = self.count();
        // Rank 1 is the lowest value. Out of range and NaN end at the nearest end.
        let rank = (count as f64 * percent / 100.0)
            .ceil()
            .clamp(1.0, (count as f64).max(1.0));
        let mut below = 0_u64;
        for (bucket, &here) in self.buckets.iter().enumerate() {
            below += here;
            if here > 0 && below as f64 >= rank {
                return highest(bucket).min(self.max.max(1));
            }
        }
        self.max
    }

    /// For each of the ascending `bounds`, in nanoseconds, how many values are at most that: what
    /// Prometheus calls cumulative buckets. Values within a sixteenth below a bound may be counted
    /// above it.
    pub fn cumulative(&self, bounds: &[u64]) -> Vec<u64> {
        let (mut bucket, mut below) = (0, 0);
        let mut counts = Vec::with_capacity(bounds.len());
        for &bound in bounds {
            while bucket < BUCKETS && highest(bucket) <= bound {
                below += self.buckets[bucket];
                bucket += 1;
            }
            counts.push(below);
        }
        counts
    }
}

impl Default for HistogramSnapshot {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for HistogramSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count())
            .field("p50", &self.percentile(50.0))
            .field("p99", &self.percentile(99.0))
            .field("max", &self.max)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: &[u64]) -> Histogram {
        let mut histogram = Histogram::new();
        values.iter().for_each(|&ns| histogram.record(ns));
        histogram
    }

    /// Values of every magnitude.
    fn any_value() -> impl Strategy<Value = u64> {
        (any::<u64>(), 0_u32..64).prop_map(|(value, bits)| value >> bits)
    }

    #[test]
    fn the_ends_of_the_scale() {
        assert_eq!([0, 1, 63].map(bucket), [0; 3]);
        assert_eq!([64, 67, 68, 127, 128].map(bucket), [1, 1, 2, 16, 17]);
        assert_eq!(highest(0), 63);
        let last = bucket(u64::MAX);
        assert_eq!(bucket(CEILING), last);
        assert!(last < BUCKETS);
        assert_eq!((highest(last - 1), highest(last)), (CEILING - 1, u64::MAX));
    }

    #[test]
    fn an_empty_histogram_is_all_zero() {
        let none = HistogramSnapshot::new();
        assert_eq!(
            (none.count(), none.sum(), none.max(), none.mean()),
            (0, 0, 0, 0)
        );
        assert_eq!(none.percentile(99.0), 0);
        assert_eq!(none.cumulative(&[1, 1_000]), [0, 0]);
    }

    #[test]
    fn publishing_copies_what_changed_since() {
        let shared = SharedHistogram::new();
        let mut mine = of(&[100, 5_000]);
        mine.publish(&shared);
        assert_eq!(shared.snapshot(), mine.snapshot());
        mine.record_many(1_000_000, 3);
        assert_eq!(shared.snapshot().count(), 2);
        mine.publish(&shared);
        mine.publish(&shared);
        assert_eq!(shared.snapshot(), mine.snapshot());
        assert_eq!(shared.snapshot().count(), 5);
    }

    #[test]
    fn a_thousand_equal_steps_have_the_expected_percentiles() {
        let values: Vec<u64> = (1..=1_000).map(|us| us * 1_000).collect();
        let snapshot = of(&values).snapshot();
        for (percent, exact) in [(50.0, 500_000), (90.0, 900_000), (99.9, 999_000)] {
            let found = snapshot.percentile(percent);
            assert!(
                found >= exact && found <= exact + exact / 16,
                "p{percent} is {found}"
            );
        }
        assert_eq!(snapshot.percentile(100.0), 1_000_000);
        assert_eq!(snapshot.mean(), 500_500);
    }

    proptest! {
        #[test]
        fn every_value_lies_in_its_bucket(ns in any_value()) {
            let bucket = bucket(ns);
            prop_assert!(ns <= highest(bucket));
            prop_assert!(bucket == 0 || ns > highest(bucket - 1));
            if (64..CEILING).contains(&ns) {
                prop_assert!(highest(bucket) - ns <= ns / 16);
            }
        }

        #[test]
        fn percentiles_bound_the_exact_ones(
            mut values in prop::collection::vec(64_u64..1 << 36, 1..200), percent in 0.0..=100.0_f64
        ) {
            let found = of(&values).snapshot().percentile(percent);
            values.sort_unstable();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 200")]
            let rank = (values.len() as f64 * percent / 100.0).ceil().max(1.0) as usize;
            let exact = values[rank - 1];
            prop_assert!(found >= exact && found - exact <= exact / 16, "{found} for {exact}");
        }

        #[test]
        fn merging_is_recording_in_one(
            a in prop::collection::vec(0_u64..1 << 40, 0..50),
            b in prop::collection::vec(0_u64..1 << 40, 0..50)
        ) {
            let mut merged = of(&a).snapshot();
            merged.merge(&of(&b).snapshot());
            prop_assert_eq!(merged, of(&[a, b].concat()).snapshot());
        }

        #[test]
        fn cumulative_counts_grow_and_lie_within_a_bucket_of_the_exact_ones(
            values in prop::collection::vec(0_u64..1 << 38, 0..200),
            mut bounds in prop::collection::vec(any_value(), 1..20)
        ) {
            bounds.sort_unstable();
            let counts = of(&values).snapshot().cumulative(&bounds);
            for (&bound, &count) in bounds.iter().zip(&counts) {
                let at_most = |limit: u64| values.iter().filter(|&&ns| ns <= limit).count() as u64;
                prop_assert!(count <= at_most(bound));
                if (64..CEILING).contains(&bound) {
                    prop_assert!(count >= at_most(bound - bound / 16 - 1));
                }
            }
            prop_assert!(counts.is_sorted());
        }
    }
}
