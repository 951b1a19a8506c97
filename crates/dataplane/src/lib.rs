//! The only owner of aya: loads, attaches, pins, fills and reads the eBPF programs.
//!
//! ```text
//!                     set_peers: prefix -> peer          read: peer -> packets, bytes
//!                              |                                   ^
//!                     PEERS_V4, PEERS_V6                     PEER_COUNTS, TOTALS
//!                              |                                   ^
//!  peers -> [ overlay device -> overlay_in  ] -> host    (source names the peer)
//!  peers <- [ overlay device <- overlay_out ] <- host    (destination names the peer)
//! ```
//!
//! With a pin folder, programs and maps outlive the process: the next [`Counters::attach`] takes
//! the maps over with all they have counted and replaces the programs without a gap.
//!
//! Kernel: Linux 6.1 or newer. From 6.6 the programs are attached by tcx links, below it by
//! clsact filters.
#![deny(unsafe_code)]

mod attach;
mod census;
mod counters;
mod dataplane;
#[expect(
    unsafe_code,
    reason = "packet sockets are made by functions of the C library"
)]
mod direct;
mod drops;
mod error;
mod filter;
mod forward;
#[cfg(feature = "ebpf-log")]
mod log;
#[expect(
    unsafe_code,
    reason = "the allocator is told by functions of the C library"
)]
mod memory;
mod object;
mod peer;
mod pin;
mod pins;
mod plan;
mod shield;
mod steer;
mod tables;
mod trial;

pub use attach::Attachment;
pub use census::{Census, MapUse};
pub use counters::Counters;
pub use dataplane::Dataplane;
pub use direct::Direct;
pub use drops::{Dropped, Drops, why_dropped};
pub use ebpf_abi::{
    ABI_VERSION, Count, Direction, DropReason, Forwarded, Origin, PeerCounters, PeerIndex,
    PortRange, Reason, STACK_INTERVAL, ShieldReason,
};
pub use error::DataplaneError;
pub use filter::{Rule, RuleHits, Rules, TooLarge};
pub use forward::{Forward, Layer, Nic, Offload, OffloadKey};
pub use object::{is_embedded, probe};
pub use peer::{Peer, boot_clock, since_boot};
pub use pin::Pinning;
pub use pins::pin_folder;
pub use shield::{Shield, ShieldKind, ShieldLimits, ShieldProgram, ShieldTrial, Trusted};
pub use steer::{Steer, Transport};
pub use trial::{Gso, Outcome, Program, Trial, TrialKind};
