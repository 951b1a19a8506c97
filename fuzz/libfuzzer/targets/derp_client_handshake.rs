//! See `fuzz::derp::derp_client_handshake`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::derp::derp_client_handshake(data));
