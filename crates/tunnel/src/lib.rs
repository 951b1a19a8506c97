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
//! (`virtio_net_hdr`), the socket sends and receives in batches. One thread carries both directions of a queue, a
//! second one helps while both are busy; each peer has a lock of its own. WireGuard's handshakes, sessions and timers
//! are those of gotatun. Packets of one flow stay in order.
//!
//! Kernels whose offloads do not do what they say are found out before any is used, by `trial.rs`.
//!
//! Everything but `sys.rs` is safe code, and everything but `sys.rs`, `signal.rs`, `threads.rs` and `trial.rs` does
//! without system calls.
#![deny(unsafe_code)]

mod allowed;
mod batch;
mod checksum;
mod core;
mod device;
mod filter;
mod inbound;
mod join;
mod offloads;
mod outbound;
#[cfg_attr(
    not(any(test, feature = "testing")),
    expect(unreachable_pub, reason = "tests and fuzz targets have it")
)]
mod packets;
mod peer;
mod relay;
mod signal;
mod split;
mod sys;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod threads;
mod trial;
mod vnet;
mod worker;
mod write;

pub use device::{Config, Counters, Device, Update};
pub use filter::{Direction, Filter};
pub use offloads::{Offload, OffloadState, Verdict, Verdicts};
pub use peer::PeerStats;
pub use relay::{Datagrams, Inlet, Relay, Relaying};
pub use trial::verdicts;
