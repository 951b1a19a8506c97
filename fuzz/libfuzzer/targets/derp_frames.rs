//! See `fuzz::derp::derp_frames`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::derp::derp_frames(data));
