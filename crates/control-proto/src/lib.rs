//! ts2021, both ends, sans-IO: Noise handshake, records, map frames, wire types, map session.
//!
//! ```text
//! noise   initiation / response      -> two raw keys
//! record  type 4 frames <= 4096      -> a byte stream (HTTP/2 runs in it)
//! early   optional payload in front of the server's bytes
//! frame   u32 LE + zstd JSON         -> tailcfg::MapResponse
//! netmap  MapResponse                -> NetMap and what changed
//! ```
//!
//! Nothing here reads a clock, opens a socket or spawns; `noise-io` is the shell around it.
#![forbid(unsafe_code)]

pub mod capver;
pub mod early;
pub mod frame;
pub mod json;
pub mod netmap;
pub mod noise;
pub mod presence;
pub mod record;
pub mod tailcfg;
pub mod timestamp;

pub use presence::Presence;
pub use timestamp::Timestamp;
