//! What can be seen of a running switch, asked for as an operator does: over the control socket,
//! with guests in this process.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bed;
mod capture;
mod counters;
mod mirror;
mod why;
