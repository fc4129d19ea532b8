//! What the fuzzers run, as plain functions: `tests/fuzz/` calls them with what libFuzzer invents,
//! and the tests beside this with fixed seeds and a small corpus.
//!
//! All panic if the code under test breaks a promise; anything else is fine, whatever the input.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "an input that cannot be set up has failed"
)]

pub(crate) mod api;
pub(crate) mod configs;
pub(crate) mod frames;
pub(crate) mod keep;
pub(crate) mod vhost;
