//! The coordination server.
//!
//! ```text
//! nodes ── TCP/TLS ── http ── Noise + h2 ──┐                 ┌── store (SQLite)
//!                                          ├── service ──────┤
//! administrators ── unix socket ── admin ──┘   one layer     └── engine ── map streams
//! ```
//!
//! `service` commits a change to the `store`, gets its number and hands it to the `engine`, which
//! puts one small delta into the queue of every node that is affected.
#![forbid(unsafe_code)]

pub mod address;
pub mod admin;
pub mod config;
pub mod derp;
pub mod engine;
pub mod http;
pub mod login;
pub mod metrics;
pub mod model;
pub mod names;
pub mod policy_file;
mod server;
pub mod service;
pub mod state;
pub mod store;

pub use config::ServeConfig;
pub use server::{ServeError, run};
