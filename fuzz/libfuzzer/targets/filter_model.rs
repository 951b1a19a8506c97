//! See `fuzz::filter::filter_model`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::filter::filter_model(data));
