//! See `fuzz::control::map_response`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::control::map_response(data));
