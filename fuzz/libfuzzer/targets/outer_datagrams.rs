//! See `fuzz::tunnel::outer_datagrams`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::tunnel::outer_datagrams(data));
