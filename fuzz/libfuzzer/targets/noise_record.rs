//! See `fuzz::control::noise_record`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::control::noise_record(data));
