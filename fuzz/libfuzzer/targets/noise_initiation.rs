//! See `fuzz::control::noise_initiation`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::control::noise_initiation(data));
