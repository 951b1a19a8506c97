//! See `fuzz::control::early_payload`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::control::early_payload(data));
