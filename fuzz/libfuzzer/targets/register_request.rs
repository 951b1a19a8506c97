//! See `fuzz::control::register_request`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::control::register_request(data));
