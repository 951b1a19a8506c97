//! See `fuzz::disco::stun_message`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::disco::stun_message(data));
