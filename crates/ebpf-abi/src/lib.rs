//! Keys, values and names shared by the eBPF programs and their loader.
//!
//! Everything here crosses the kernel boundary by its bytes, and pinned maps outlive the program
//! that made them. So: a change of any layout, name, number or size is a new [`ABI_VERSION`];
//! numbers are appended and never reused.
#![no_std]
#![deny(unsafe_code)]

mod counters;
mod filter;
mod object;
#[cfg(feature = "user")]
mod user;
mod verdict;

pub use counters::{Count, Direction, PeerCounters, PeerIndex, REASON_SLOTS, Reason, total_slot};
pub use filter::{
    Admitted, CLASS_NUMBER, CLASS_OWN, Class, INLINE_RANGES, Nanos, Opened, PEER_JAILED,
    POLICY_SHIELDS_UP, Pair, PeerEntry, Policy, PortBits, PortBlock, PortRange, Ports, SETS, Side,
    address_table,
};
pub use object::*;
pub use verdict::DropReason;
