//! libFuzzer invents the input of `session_messages`.
#![no_main]

#[path = "../../tests/fuzz/bodies/mod.rs"]
#[allow(dead_code, reason = "the other targets' bodies")]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::vhost::session_messages(data));
