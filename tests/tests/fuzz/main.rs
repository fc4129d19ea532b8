//! The fuzzers' bodies over fixed seeds and a small corpus, so that every test run has them.
//!
//! Seeds are shaped, or nothing would get past the first check.

#![allow(
    clippy::unwrap_used,
    reason = "a seed that cannot be shaped has failed"
)]

mod bodies;
mod numbers;
mod text;
mod vhost;
mod wire;
