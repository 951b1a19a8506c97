//! The packet filter's tables: what the loader compiles rules into, and what programs remember.
//!
//! ```text
//! source ──HOSTS, else NETS──► class ─┐
//!                                     ├─ PAIRS (class, class, protocol) ──► port ranges ─► PORT_LISTS
//! destination ──HOSTS, else NETS──► class
//! ```
//!
//! Where that would take more pairs than fit ([`POLICY_LINEAR`]), the pair names the destination's
//! class alone and leads to a piece of `ENDS`, the rule ends that cover it, which are tried one after
//! the other; `MEMBERS` says whether the source's class is in the source list of an end.
//!
//! Rule tables come in two sets, 0 and 1. The loader fills the set that is not in use and then
//! replaces the one map in `POLICY`, which names the set: programs see the old rules or the new.
//! What they remember of flows is good for one generation, the number in `GENERATION`: the loader
//! takes it away before it replaces `POLICY` and writes the new one after that.
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
    /// How many rules there are: `RULE_HITS` has so many values for each CPU.
    pub rules: u32,
    /// Under [`POLICY_LINEAR`]: words of `MEMBERS` for each class of sources.
    pub member_words: u32,
    /// Zero.
    pub padding: u32,
}
const _: () = assert!(size_of::<Policy>() == 40);

/// In [`Policy::flags`]: peers may answer but not initiate.
pub const POLICY_SHIELDS_UP: u32 = 1;
/// In [`Policy::flags`]: rule ends are tried one after the other.
pub const POLICY_LINEAR: u32 = 2;

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

/// Ports, both ends included and in host order, and the first rule that admits them.
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
pub struct RulePorts {
    /// The ports. Not empty in lists.
    pub ports: PortRange,
    /// Number of the rule.
    pub rule: u32,
}
const _: () = assert!(size_of::<RulePorts>() == 8);

impl RulePorts {
    /// No port.
    pub const NONE: Self = Self {
        ports: PortRange::NONE,
        rule: 0,
    };
}

/// Ranges that stand in a [`Ports`] itself.
pub const INLINE_RANGES: usize = 4;

/// Value of `PAIRS`: the destination ports that rules admit.
#[derive(Clone, Copy, Debug, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct Ports {
    /// Where the list begins, in `PORT_LISTS` or `ENDS`.
    pub first: u32,
    /// How many values the list has; 0: `ranges` is all there is. Otherwise `ranges` is empty.
    pub len: u32,
    /// Ranges in ascending order that have no port in common, then empty ones.
    pub ranges: [RulePorts; INLINE_RANGES],
}
const _: () = assert!(size_of::<Ports>() == 40);

/// Value of `ENDS`: a rule's end, in lists by class of destinations and protocol, in the order of rules.
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
pub struct ListedEnd {
    /// Its ports.
    pub ports: PortRange,
    /// Number of the rule.
    pub rule: u32,
    /// Number of the rule's source list.
    pub sources: u32,
}
const _: () = assert!(size_of::<ListedEnd>() == 12);

/// Most ends in a list of `ENDS`: how long a packet of an unknown flow may take.
pub const MAX_LISTED_ENDS: u32 = 1 << 14;

/// Returns the index in `MEMBERS` of the word, and in the word the bit, that says whether a class of
/// sources is in a source list.
#[inline(always)]
#[must_use]
pub const fn member_bit(class: Class, list: u32, words: u32) -> (u32, u32) {
    (class.wrapping_mul(words).wrapping_add(list / 64), list % 64)
}

/// What is remembered of a flow (`OPENED_*`, which our side opened, `ADMITTED_*`, which a rule admits)
/// and of a packet whose first fragment was accepted (`FRAGMENTS_*`).
///
/// All but `seen` is good for one generation: in it, the flow's other end belongs to `peer`, our end is
/// ours, and both keys hold until `expires`.
#[derive(
    Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq,
)]
#[repr(C)]
pub struct Known {
    /// [`Policy::generation`] of the rest; 0 if there is nothing but `seen`.
    pub generation: u64,
    /// When it was last seen, give or take the time between refreshes.
    pub seen: Nanos,
    /// When our own key or the peer's expires, whichever is first; `u64::MAX` for never.
    pub expires: Nanos,
    /// The peer, if `KNOWN_PEER` is set.
    pub peer: PeerIndex,
    /// `KNOWN_*`.
    pub flags: u32,
    /// Number of the rule that admits it, if `KNOWN_RULE` is set.
    pub rule: u32,
    /// [`Policy::rules`].
    pub rules: u32,
}
const _: () = assert!(size_of::<Known>() == 40);

/// Flows that a [`Bucket`] holds.
pub const WAYS: usize = 4;
/// Buckets of a family: a power of two.
pub const BUCKETS: u32 = crate::FLOWS / WAYS as u32;
const _: () = assert!(BUCKETS.is_power_of_two());

/// Value of `ADMITTED_*`: the flows whose hashes begin alike. What a look-up and an insertion go
/// through stands together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Bucket<K> {
    /// The flows' hashes; 0 where there is none yet.
    pub hashes: [u64; WAYS],
    /// [`Known::seen`] of each.
    pub seen: [Nanos; WAYS],
    /// The flows.
    pub ways: [Way<K>; WAYS],
}

/// A flow in a [`Bucket`] and what is known of it but for when it was seen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Way<K> {
    /// The flow (`packet::Flow`).
    pub flow: K,
    /// Sum over all the rest (`packet::cache::check`): CPUs write without locks.
    pub check: u64,
    /// [`Known::generation`].
    pub generation: u64,
    /// [`Known::expires`].
    pub expires: Nanos,
    /// [`Known::peer`], then [`Known::flags`].
    pub peer: [u32; 2],
    /// [`Known::rule`], then [`Known::rules`].
    pub rule: [u32; 2],
}
const _: () = assert!(size_of::<Bucket<[u8; 16]>>() == 288 && size_of::<Bucket<[u8; 40]>>() == 384);

/// In [`Known::flags`]: the set of rule tables, 0 or 1.
pub const KNOWN_SET: u32 = 1;
/// In [`Known::flags`]: some peer has the address.
pub const KNOWN_PEER: u32 = 2;
/// In [`Known::flags`]: a rule admits it.
pub const KNOWN_RULE: u32 = 4;

/// Returns the index in `RULE_HITS` of what this CPU counts for a rule.
#[inline(always)]
#[must_use]
pub const fn rule_slot(cpu: u32, rule: u32, rules: u32) -> u32 {
    cpu.wrapping_mul(rules).wrapping_add(rule)
}

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
