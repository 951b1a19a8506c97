//! Keys, values and names shared by the eBPF programs and their loader.
//!
//! Everything here crosses the kernel boundary by its bytes, and pinned maps outlive the program
//! that made them. So: a change of any layout, name, number or size is a new [`ABI_VERSION`];
//! numbers are appended and never reused.
#![no_std]
#![deny(unsafe_code)]

mod counters;
mod object;
#[cfg(feature = "user")]
mod user;

pub use counters::{Count, Direction, PeerCounters, PeerIndex, REASON_SLOTS, Reason, total_slot};
pub use object::{
    ABI_VERSION, ABI_VERSION_SECTION, BPF_F_NO_PREALLOC, BPF_MAP_TYPE_LPM_TRIE,
    BPF_MAP_TYPE_PERCPU_ARRAY, BPF_MAP_TYPE_PERCPU_HASH, MAPS, MapSpec, PEER_COUNTS, PEERS_V4,
    PEERS_V6, PROGRAM_BARE, PROGRAM_IN, PROGRAM_OUT, PROGRAMS, TOTALS,
};
