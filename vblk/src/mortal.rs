//! Fail points: places where a test has the daemon die, as `kill -9` would have it.
//!
//! With `TOWPATH_VBLK_DIE=POINT:N` in its environment a worker sends its process SIGKILL when it
//! comes to POINT for the Nth time with something in hand. What is shared with the guest (rings,
//! in-flight tables) then stands exactly as it does at that point, which killing from outside meets
//! only by chance. Without the variable it is a few comparisons a step.
//!
//! | point | what is in hand |
//! |---|---|
//! | `working` | requests of one queue; it aborts, as a fault in handling them would have it |
//! | `fetched` | requests popped and marked in flight, nothing submitted |
//! | `submitted` | requests with the kernel, none completed yet as far as is known |
//! | `completed` | requests that are done, written to the used ring, its index not moved |
//! | `used` | the index moved, the driver not notified |

use rustix::process::{Signal, getpid, kill_process};

/// Names the variable.
pub const VARIABLE: &str = "TOWPATH_VBLK_DIE";

/// Where to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// At work on a queue.
    Working,
    /// Popped, not submitted.
    Fetched,
    /// Submitted, not reaped.
    Submitted,
    /// Reaped, not published.
    Completed,
    /// Published, not notified.
    Used,
}

impl Point {
    /// All of them.
    pub const ALL: [Point; 5] = [
        Point::Working,
        Point::Fetched,
        Point::Submitted,
        Point::Completed,
        Point::Used,
    ];

    /// Its name in [`VARIABLE`].
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Point::Working => "working",
            Point::Fetched => "fetched",
            Point::Submitted => "submitted",
            Point::Completed => "completed",
            Point::Used => "used",
        }
    }
}

/// A death to come, or none.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Mortal {
    end: Option<(Point, u64)>,
}

impl Mortal {
    /// As the environment says.
    #[must_use]
    pub fn of_environment() -> Mortal {
        let text = std::env::var(VARIABLE).unwrap_or_default();
        let mortal = Mortal::parse(&text);
        if mortal != Mortal::default() {
            tracing::warn!(VARIABLE, text, "a test has this daemon kill itself");
        }
        mortal
    }

    fn parse(text: &str) -> Mortal {
        let parts = text.split_once(':').and_then(|(name, count)| {
            let point = Point::ALL.into_iter().find(|point| point.name() == name)?;
            Some((point, count.parse().ok().filter(|n| *n > 0)?))
        });
        Mortal { end: parts }
    }

    /// The worker is at `point` with something in hand.
    #[inline]
    pub fn at(&mut self, point: Point) {
        if let Some((end, left)) = &mut self.end
            && *end == point
        {
            *left -= 1;
            if *left == 0 {
                die(point);
            }
        }
    }
}

#[cold]
fn die(point: Point) -> ! {
    if point == Point::Working {
        std::process::abort();
    }
    loop {
        // Cannot fail: one may kill oneself.
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_death_is_a_point_and_a_number() {
        let mortal = Mortal::parse("used:3");
        assert_eq!(mortal.end, Some((Point::Used, 3)));
        for text in ["", "used", "used:", "used:0", "used:x", "late:3"] {
            assert_eq!(Mortal::parse(text), Mortal::default(), "{text}");
        }
    }

    #[test]
    fn other_points_do_not_count() {
        let mut mortal = Mortal::parse("used:2");
        mortal.at(Point::Fetched);
        mortal.at(Point::Used);
        mortal.at(Point::Completed);
        assert_eq!(mortal.end, Some((Point::Used, 1)));
    }
}
