//! From the workers' time to the calendar's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use towpath_common::clock::{Clock, Cycles, Rate};

/// A moment on both clocks. Made anew for each look at what workers recorded: then neither the
/// drift of the cycle counter nor a step of the calendar accumulates.
#[derive(Clone, Copy, Debug)]
pub struct Anchor {
    /// The moment on the workers' clock.
    pub cycles: Cycles,
    /// The same moment: time since 1970-01-01 00:00:00 UTC.
    pub wall: Duration,
    /// How fast the workers' clock runs.
    pub rate: Rate,
}

impl Anchor {
    /// Now.
    #[must_use]
    pub fn new(clock: &Clock) -> Anchor {
        Anchor {
            cycles: clock.now(),
            wall: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
            rate: clock.rate(),
        }
    }

    /// A moment on the workers' clock, as time since 1970-01-01 00:00:00 UTC.
    #[must_use]
    pub fn wall(&self, time: Cycles) -> Duration {
        let ago = self.rate.duration(self.cycles.since(time));
        let ahead = self.rate.duration(time.since(self.cycles));
        self.wall.saturating_sub(ago).saturating_add(ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_before_and_after_are_converted() {
        let anchor = Anchor {
            cycles: Cycles(2_000),
            wall: Duration::from_nanos(500),
            rate: Rate::from_ratio(2, 1),
        };
        let wall = |cycles| anchor.wall(Cycles(cycles)).as_nanos();
        assert_eq!([2_000, 2_200, 1_800, 0].map(wall), [500, 600, 400, 0]);
    }
}
