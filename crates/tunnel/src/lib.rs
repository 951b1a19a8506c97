//! WireGuard in user space, on a TUN device: for hosts whose kernel has none, and for bulk TCP.
//!
//! ```text
//!            threads.rs                                        sys.rs
//! TUN ──► split.rs ──► outbound.rs ──► gotatun::noise ──► batch.rs ──► sendmmsg + UDP_SEGMENT
//! TUN ◄── join.rs ◄─── inbound.rs ◄─── gotatun::noise ◄────────────── recvmmsg + UDP_GRO
//! ```
//!
//! Datagrams of relayed peers take no socket: `relay.rs` hands them to a [`Relay`] of this process, and takes its.
//!
//! The kernel hands over up to 64 KiB of one flow at a time and takes as much back: the device has offloads
//! (`virtio_net_hdr`), the socket sends and receives in batches. One thread carries each direction; each peer has
//! a lock of its own. WireGuard's handshakes, sessions and timers are those of gotatun. Packets of one flow stay in
//! order.
//!
//! Everything but `sys.rs` is safe code, and everything but `sys.rs` and `threads.rs` does without system calls.
#![deny(unsafe_code)]

mod allowed;
mod batch;
mod checksum;
mod core;
mod device;
mod filter;
mod inbound;
mod join;
mod outbound;
mod peer;
mod relay;
mod split;
mod sys;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod threads;
mod vnet;

pub use device::{Config, Counters, Device, Offloads, Update};
pub use filter::{Direction, Filter};
pub use peer::PeerStats;
pub use relay::{Datagrams, Inlet, Relay, Relaying};
