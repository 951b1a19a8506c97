//! From a network map to the desired state of a node: pure, no sockets, no clock.
//!
//! [`Desired::from_netmap`] turns what the coordination server sent into what this host should look
//! like (addresses, peers, routes, relays); the agent's shells make it so. [`endpoints`] gives each
//! peer the synthetic endpoint by which WireGuard reaches it through the agent; [`paths`] finds and proves
//! the direct way to each.
#![forbid(unsafe_code)]

pub mod derp;
mod desired;
pub mod endpoints;
pub mod paths;

pub use derp::{DerpMap, RegionId};
pub use desired::{DEFAULT_MTU, DEFAULT_ROUTES, Desired, DesiredPeer, Exit, ExitNode, Options};
