//! See `fuzz::control::map_request`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::control::map_request(data));
