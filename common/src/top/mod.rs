//! `top`: what ports or disks do right now, from two readings of the control API.
//!
//! ```text
//!             ┌ thread: ask the API, every interval ┐
//!  daemon ────┤  Reading, or why there is none      ├──▶ Watch ──▶ Sample ──┬─▶ screen (View)
//!             └─────────────────────────────────────┘   compare             └─▶ lines (text, JSON)
//! ```
//!
//! A daemon names its [`Column`]s and turns an answer of its API into a [`Reading`] of totals;
//! everything else is the same for all: rates ([`Watch`]), what is written ([`text`], [`json`]),
//! and the screen. Nothing is asked of the daemon but what `stats` asks, so no worker notices.
//!
//! **Totals that shrink.** A daemon that was restarted counts from zero, or goes on from what it
//! kept; a disk that was configured anew does. A rate over that moment would be a guess, so there
//! is none: the row says `-` until there are two readings of the same count.
//!
//! **State.** A row says in a word how the port or disk is now ([`State`]): one without traffic may
//! be without a guest, or broken. It is no rate, so it is there after a restart, too.
//!
//! **Ceiling.** Workers count the time they spend on work. The work of an interval divided by that
//! time is what a worker would do if it were busy all the time *with work of this kind*; the best
//! of the intervals seen, times the workers, is called the ceiling. It is measured on this machine
//! and with this traffic, and it is no promise: larger bursts are cheaper each, so it grows with
//! load.

mod live;
mod options;
mod rate;
mod sample;
mod screen;
mod watch;
mod write;

pub use live::{Subject, TopError, run};
pub use options::{BadInterval, Interval, Options, TopArgs};
pub use rate::{Span, percentile_ns};
pub use sample::{
    Column, Format, Load, Measure, Order, Reading, Row, Sample, State, Thing, Tone, UnknownColumn,
};
pub use sample::{Efficiency, WorkerTotals};
pub use screen::{Next, View};
pub use watch::Watch;
pub use write::{Words, json, text};

#[cfg(test)]
mod tests;
