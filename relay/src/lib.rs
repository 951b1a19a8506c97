//! DERP and STUN server: a library for control, a binary of its own.
//!
//! ```text
//! listener ─▶ tls ─▶ http front ─▶ Server::serve ─▶ handshake ─▶ admission ─▶ connection
//!                      │ probes, /generate_204                                 │  ▲
//!                      ▼                                                       ▼  │ outbox
//!                   answered                                       registry: key ─▶ connection
//! ```
//!
//! One task per client reads frames into large chunks, rewrites runs of packets in place and puts
//! them, uncopied, into the outbox of their destination; the destination's task gathers them into
//! large writes. Protocol bytes are `derp-proto`'s and `disco-proto`'s affair.
#![forbid(unsafe_code)]

pub mod admission;
pub mod derp_map;
pub mod files;
pub mod http;
pub mod metrics;
pub mod net;
pub mod server;
pub mod stun;
pub mod tls;

pub use admission::Admission;
pub use server::{Server, ServerConfig};
