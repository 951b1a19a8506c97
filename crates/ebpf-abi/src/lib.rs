//! Keys, values and names shared by the eBPF programs and their loader.
//!
//! Everything here crosses the kernel boundary by its bytes, and pinned maps outlive the program
//! that made them. So: a change of any layout, name, number or size is a new [`ABI_VERSION`];
//! numbers are appended and never reused.
#![no_std]
#![deny(unsafe_code)]

mod counters;
mod event;
mod filter;
mod forward;
mod object;
mod part;
mod pin;
mod shield;
mod steer;
#[cfg(feature = "user")]
mod user;
mod verdict;

pub use counters::{Count, Direction, PeerCounters, PeerIndex, REASON_SLOTS, Reason, total_slot};
pub use event::{DropEvent, NOBODY, SYNS_A_SECOND};
pub use filter::*;
pub use forward::{
    COUNTED_ROUTES, FORWARD_ENDED, FORWARD_ROUTE_SHIFT, FORWARDED_SLOTS, Forward, ForwardKey,
    Forwarded, Origin, STACK_INTERVAL, forwarded_slot, route_slot,
};
pub use object::*;
pub use part::{PARTS, Part, ProgramKind};
pub use pin::*;
pub use shield::*;
pub use steer::*;
pub use verdict::DropReason;
