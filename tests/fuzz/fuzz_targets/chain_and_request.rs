//! libFuzzer invents the input of `chain_and_request`.
#![no_main]

#[path = "../../tests/hostile/bodies.rs"]
#[allow(dead_code, reason = "the other target's body")]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::chain_and_request(data));
