//! The packet filter's tables: what the loader compiles rules into, and what programs remember.
//!
//! ```text
//! source ──HOSTS, else NETS──► class ─┐
//!                                     ├─ PAIRS (class, class, protocol) ──► port ranges ─► PORT_LISTS
//! destination ──HOSTS, else NETS──► class
//! ```
//!
//! Rule tables come in two sets, 0 and 1. The loader fills the set that is not in use and then
//! replaces the one map in `POLICY`, which names the set: programs see the old rules or the new.
//! Address families have maps of their own, since IPv4 keys are cheaper to hash.

use crate::PeerIndex;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Nanoseconds by the clock of `bpf_ktime_get_boot_ns`: since boot, suspension included.
pub type Nanos = u64;

/// Two sets of rule tables: one in use, one to be filled.
pub const SETS: u32 = 2;

/// Which end of a packet an address table is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum Side {
    /// Senders: peers and what is behind them.
    Source = 0,
    /// What packets may be addressed to: this node and what is behind it.
    Destination = 1,
}

/// Returns the index in `HOSTS_*` and `NETS_*` of a set's table for one side.
#[inline(always)]
#[must_use]
pub const fn address_table(set: u32, side: Side) -> u32 {
    (set % SETS) * 2 + side as u32
}

/// Class of an address: all addresses of a class are treated alike by all rules.
pub type Class = u32;

/// In a destination's class: one of this node's own addresses, at which PeerAPI is served.
pub const CLASS_OWN: Class = 1 << 31;
/// The class number below the flag. Number 0 has no rules.
pub const CLASS_NUMBER: Class = CLASS_OWN - 1;

/// The one value of the map in `POLICY`.
#[derive(
    Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq,
)]
#[repr(C)]
pub struct Policy {
    /// Number of this policy, never 0: what was admitted under another has to be admitted anew.
    pub generation: u64,
    /// When our own key expires: from then on nothing passes. `u64::MAX` for never.
    pub expires: Nanos,
    /// Set of rule tables in use: 0 or 1.
    pub set: u32,
    /// `POLICY_*`.
    pub flags: u32,
    /// TCP port of PeerAPI on our IPv4 addresses, network order; 0 for none.
    pub peer_api_v4: [u8; 2],
    /// TCP port of PeerAPI on our IPv6 addresses, network order; 0 for none.
    pub peer_api_v6: [u8; 2],
    /// Zero.
    pub padding: [u8; 4],
}
const _: () = assert!(size_of::<Policy>() == 32);

/// In [`Policy::flags`]: peers may answer but not initiate.
pub const POLICY_SHIELDS_UP: u32 = 1;

/// Key of `PAIRS`.
#[derive(
    Clone,
    Copy,
    Debug,
    Eq,
    FromBytes,
    Hash,
    Immutable,
    IntoBytes,
    KnownLayout,
    Ord,
    PartialEq,
    PartialOrd,
)]
#[repr(C)]
pub struct Pair {
    /// Class number of the source.
    pub source: Class,
    /// Class number of the destination.
    pub destination: Class,
    /// IP protocol number. Under the family's own ICMP every pair that a rule joins has an entry:
    /// who may reach anything may ping it.
    pub protocol: u32,
}
const _: () = assert!(size_of::<Pair>() == 12);

/// First and last of a range of ports, host order. Empty if the first is above the last.
#[derive(
    Clone,
    Copy,
    Debug,
    Eq,
    FromBytes,
    Hash,
    Immutable,
    IntoBytes,
    KnownLayout,
    Ord,
    PartialEq,
    PartialOrd,
)]
#[repr(C)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}
const _: () = assert!(size_of::<PortRange>() == 4);

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self {
        first: 0,
        last: u16::MAX,
    };
    /// No port.
    pub const NONE: Self = Self { first: 1, last: 0 };
}

/// Ranges that stand in a [`Ports`] itself.
pub const INLINE_RANGES: usize = 8;

/// Value of `PAIRS`: the destination ports that rules admit.
#[derive(Clone, Copy, Debug, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct Ports {
    /// 0: `ranges` is all there is. Otherwise: the list in `PORT_LISTS`, and `ranges` is empty.
    pub list: u32,
    /// Ranges in ascending order, then empty ones.
    pub ranges: [PortRange; INLINE_RANGES],
}
const _: () = assert!(size_of::<Ports>() == 36);

/// Key of `PORT_LISTS`: 512 ports of a list.
#[derive(
    Clone,
    Copy,
    Debug,
    Eq,
    FromBytes,
    Hash,
    Immutable,
    IntoBytes,
    KnownLayout,
    Ord,
    PartialEq,
    PartialOrd,
)]
#[repr(C)]
pub struct PortBlock {
    /// [`Ports::list`].
    pub list: u32,
    /// Port divided by 512.
    pub block: u32,
}
const _: () = assert!(size_of::<PortBlock>() == 8);

/// Value of `PORT_LISTS`: one bit per port, port `p` at bit `p % 64` of word `p / 64 % 8`.
pub type PortBits = [u64; 8];

/// Value of `OPENED_*`: a flow that our side opened.
#[derive(
    Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq,
)]
#[repr(C)]
pub struct Opened {
    /// When it was last seen, give or take the time between refreshes.
    pub seen: Nanos,
    /// [`Policy::generation`] under which our end of the flow was last found to be ours; 0 at first.
    pub ours: u64,
}
const _: () = assert!(size_of::<Opened>() == 16);

/// Value of `ADMITTED_*`, a flow that a rule admits, and of `FRAGMENTS_*`, a packet whose first
/// fragment was accepted.
#[derive(
    Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq,
)]
#[repr(C)]
pub struct Admitted {
    /// [`Policy::generation`] by which it was admitted.
    pub generation: u64,
    /// When it was last seen, give or take the time between refreshes.
    pub seen: Nanos,
}
const _: () = assert!(size_of::<Admitted>() == 16);

/// Value of `PEERS_*`: whose prefix it is.
#[derive(
    Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, PartialEq,
)]
#[repr(C)]
pub struct PeerEntry {
    /// The peer.
    pub index: PeerIndex,
    /// `PEER_*`.
    pub flags: u32,
    /// When its key expires, in seconds by the clock of [`Nanos`]; 0 for never. From then on nothing
    /// passes from it or to it.
    pub expires: u32,
}
const _: () = assert!(size_of::<PeerEntry>() == 12);

/// In [`PeerEntry::flags`]: the peer may answer but not initiate.
pub const PEER_JAILED: u32 = 1;
