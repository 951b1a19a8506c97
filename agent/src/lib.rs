//! The node: daemon and command line.
//!
//! ```text
//! cli ──unix socket──► localapi ──► engine ──► control   ts2021 client: joins, streams the network map
//!                                     │  ▲
//!                                     ▼  └──── events of both
//!                                    net      tunnel, relays, addresses, routes
//! ```
//!
//! [`engine`] is the one task that decides: it owns preferences, network map and data plane. Everything
//! else hands it messages or reads the status it answers with.
#![forbid(unsafe_code)]

mod backoff;
pub mod bench;
mod blocking;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
mod derp;
pub mod engine;
mod error_text;
pub mod firewall;
mod icmp;
pub mod localapi;
pub mod metrics;
pub mod net;
mod netcheck;
pub mod offload;
mod paths;
mod portmap;
pub mod prefs;
pub mod privileges;
mod relayed;
mod router;
mod shield;
pub mod state;
mod tunnel;
mod underlay;

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
