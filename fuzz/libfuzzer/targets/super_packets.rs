//! See `fuzz::tunnel::super_packets`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::tunnel::super_packets(data));
