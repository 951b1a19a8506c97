//! See `fuzz::keys::key_text`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::keys::key_text(data));
