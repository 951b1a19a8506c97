//! See `fuzz::disco::disco_open`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::disco::disco_open(data));
