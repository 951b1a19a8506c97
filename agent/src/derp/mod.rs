//! DERP from the node's side: connections to relay regions, and the choice of the home region.
//!
//! [`Manager`] keeps the home region connected and dials others on demand; [`home`] picks the home
//! from what [`crate::netcheck`] measured. Source: protocol/derp.md §1–5, protocol/disco.md §9, §12.

mod address;
mod bucket;
mod client;
mod held;
pub(crate) mod home;
mod manager;
mod queue;
mod region;
pub(crate) mod tls;

pub(crate) use address::addresses;
pub(crate) use client::{host_header, open_tls};
pub(crate) use manager::{Manager, Notice};
