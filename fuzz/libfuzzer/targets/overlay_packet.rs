//! See `fuzz::packet::overlay_packet`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::packet::overlay_packet(data));
