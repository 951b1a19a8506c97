//! One fuzz target per parser, and the replay of their corpora.
//!
//! A target takes any bytes and must not panic, hang or allocate without bound. `cargo test -p fuzz`
//! replays `corpus/<target>/`; `libfuzzer/` (outside the workspace) feeds the same functions to
//! cargo-fuzz. Add a target: a function in the module of its protocol, a line in [`TARGETS`], a few
//! files in its corpus, a file in `libfuzzer/targets/`.
#![forbid(unsafe_code)]

pub mod control;
pub mod derp;
pub mod disco;
pub mod filter;
pub mod keys;
pub mod packet;
pub mod policy;
pub mod tunnel;

/// A function that takes any bytes.
pub type Target = fn(&[u8]);

/// Every target by the name of its corpus folder.
pub const TARGETS: &[(&str, Target)] = &[
    ("key_text", keys::key_text),
    ("noise_initiation", control::noise_initiation),
    ("noise_response", control::noise_response),
    ("noise_record", control::noise_record),
    ("early_payload", control::early_payload),
    ("map_frame", control::map_frame),
    ("map_response", control::map_response),
    ("map_request", control::map_request),
    ("register_request", control::register_request),
    ("overlay_packet", packet::overlay_packet),
    ("filter_model", filter::filter_model),
    ("derp_frames", derp::derp_frames),
    ("derp_client_handshake", derp::derp_client_handshake),
    ("derp_server_handshake", derp::derp_server_handshake),
    ("policy_file", policy::policy_file),
    ("stun_message", disco::stun_message),
    ("disco_open", disco::disco_open),
    ("outer_datagrams", tunnel::outer_datagrams),
    ("super_packets", tunnel::super_packets),
];
