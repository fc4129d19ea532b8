//! Frames through a switch: the generator, the switches it is pointed at, and what is measured.
//!
//! [`traffic`] is the generator: [`port`]s of one [`shape`] with lean drivers ([`queue`]) that send
//! [`frame`]s;
//! [`mirror`] is what it reaches when nobody forwards, [`latency`] is one frame at a time.
//! [`switch`] starts vswitch and its peers, [`copy`] is the machine's own ceiling. [`plan`] names
//! rows and goals, [`runner`] measures them.

pub mod copy;
pub mod frame;
pub mod latency;
pub mod mirror;
pub mod plan;
pub mod port;
pub mod queue;
pub mod runner;
pub mod shape;
pub mod switch;
pub mod traffic;
