//! Frames through a switch: the generator, the switches it is pointed at, and what is measured.
//!
//! [`traffic`] is the generator: [`port`]s with lean drivers ([`queue`]) that send [`frame`]s.

pub mod copy;
pub mod frame;
pub mod mirror;
pub mod plan;
pub mod port;
pub mod queue;
pub mod switch;
pub mod traffic;
