//! From totals to rates.

use std::time::Duration;

use crate::control::exposition::approximate;

/// The time between two readings.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    seconds: f64,
}

/// Readings closer than this say nothing; it is also what keeps rates finite.
const SHORTEST: Duration = Duration::from_millis(1);

impl Span {
    /// As long as `elapsed`.
    pub fn new(elapsed: Duration) -> Self {
        Self {
            seconds: elapsed.max(SHORTEST).as_secs_f64(),
        }
    }

    /// How much a total grew a second; one that shrank did not.
    pub fn rate(self, before: u64, now: u64) -> f64 {
        approximate(now.saturating_sub(before)) / self.seconds
    }

    /// Of a total of nanoseconds: how many a nanosecond, which is a share of time, or a mean number
    /// of things under way.
    pub fn share(self, before: u64, now: u64) -> f64 {
        self.rate(before, now) / 1e9
    }
}

/// The time that `share` (0 to 1) of the samples between two readings did not exceed, in ns;
/// `None` without samples. A histogram is a list of upper bounds and how many samples are at or
/// below each, ascending, and the number of all: those above the last bound are only known to be
/// above it, and are taken to be there.
pub fn percentile_ns(
    before: (&[(u64, u64)], u64),
    now: (&[(u64, u64)], u64),
    share: f64,
) -> Option<f64> {
    let total = now.1.checked_sub(before.1).filter(|total| *total > 0)?;
    let rank = approximate(total) * share;
    let (mut low, mut below) = (0, 0.0);
    for (index, &(bound, count)) in now.0.iter().enumerate() {
        let old = before.0.get(index).map_or(0, |&(_, count)| count);
        let count = approximate(count.saturating_sub(old));
        if count >= rank && count > below {
            // As if the samples in a bucket lay evenly: what Prometheus does.
            let part = ((rank - below) / (count - below)).clamp(0.0, 1.0);
            return Some(approximate(low) + part * approximate(bound - low));
        }
        (low, below) = (bound, count);
    }
    Some(approximate(low))
}
