//! See `fuzz::derp::derp_server_handshake`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::derp::derp_server_handshake(data));
