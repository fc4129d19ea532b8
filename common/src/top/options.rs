//! What is asked for on the command line.

use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

/// Shortest and longest time between two readings, in seconds: a reading of a thousand ports costs
/// the daemon's control thread some milliseconds, and workers publish what they count now and then.
const SECONDS: std::ops::RangeInclusive<f64> = 0.1..=3600.0;

/// The time between two readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval(Duration);

impl Interval {
    /// As a length of time.
    pub fn get(self) -> Duration {
        self.0
    }

    /// Twice as long, or half; within what is possible.
    pub(super) fn scaled(self, factor: f64) -> Self {
        let seconds = self.0.as_secs_f64() * factor;
        Self(Duration::from_secs_f64(
            seconds.clamp(*SECONDS.start(), *SECONDS.end()),
        ))
    }
}

/// No length of time.
#[derive(Debug, thiserror::Error)]
#[error("interval {0:?}: use seconds, 0.1 to 3600")]
pub struct BadInterval(String);

impl FromStr for Interval {
    type Err = BadInterval;

    fn from_str(text: &str) -> Result<Self, BadInterval> {
        let seconds = text
            .parse()
            .ok()
            .filter(|seconds| SECONDS.contains(seconds));
        let seconds = seconds.ok_or_else(|| BadInterval(text.to_owned()))?;
        Ok(Self(Duration::from_secs_f64(seconds)))
    }
}

/// How to show it.
#[derive(Clone, Debug, Args)]
pub struct TopArgs {
    /// Seconds between two readings, 0.1 to 3600.
    #[arg(long, value_name = "SECONDS", default_value = "1")]
    pub interval: Interval,
    /// Sort by this column, largest first, or by name.
    #[arg(long, value_name = "COLUMN")]
    pub sort: Option<String>,
    /// Sort the other way round.
    #[arg(long)]
    pub reverse: bool,
    /// Print a table after each interval, for scripts; so it does when its output is no terminal.
    #[arg(long)]
    pub batch: bool,
    /// Print this many tables and end.
    #[arg(short = 'n', long, value_name = "N")]
    pub count: Option<NonZeroU32>,
    /// Print one table and end.
    #[arg(long, conflicts_with = "count")]
    pub once: bool,
}

/// What is wanted, complete.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The time between two readings.
    pub interval: Interval,
    /// Samples to print; `None`: until interrupted.
    pub count: Option<u32>,
    /// Print instead of drawing.
    pub batch: bool,
    /// Print JSON, one object a line.
    pub json: bool,
}

impl TopArgs {
    /// What that means, where output goes to a terminal or not.
    pub fn options(&self, json: bool, terminal: bool) -> Options {
        let count = if self.once {
            Some(1)
        } else {
            self.count.map(NonZeroU32::get)
        };
        Options {
            interval: self.interval,
            count,
            batch: self.batch || json || count.is_some() || !terminal,
            json,
        }
    }
}
