//! libFuzzer invents the input of `keep_records`.
#![no_main]

#[path = "../../tests/fuzz/bodies/mod.rs"]
#[allow(dead_code, reason = "the other targets' bodies")]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::keep::keep_records(data));
