//! The loader's side: what may be copied through the map system calls.
#![expect(unsafe_code, reason = "`aya::Pod` is an unsafe marker trait")]

use crate::{
    Count, DropEvent, Forward, ForwardKey, Known, ListedEnd, Pair, PeerCounters, PeerEntry,
    PeerIndex, PinPorts, PinnedSource, Policy, Ports, RulePorts, ShieldConfig, ShieldSource,
    ShieldState, SteerKey,
};

// SAFETY: `IntoBytes` and `FromBytes` hold for the type: no padding, every bit pattern is valid.
unsafe impl aya::Pod for PeerIndex {}
// SAFETY: as above.
unsafe impl aya::Pod for PeerCounters {}
// SAFETY: as above.
unsafe impl aya::Pod for Count {}
// SAFETY: as above.
unsafe impl aya::Pod for Known {}
// SAFETY: as above.
unsafe impl aya::Pod for ListedEnd {}
// SAFETY: as above.
unsafe impl aya::Pod for Pair {}
// SAFETY: as above.
unsafe impl aya::Pod for Policy {}
// SAFETY: as above.
unsafe impl aya::Pod for RulePorts {}
// SAFETY: as above.
unsafe impl aya::Pod for DropEvent {}
// SAFETY: as above.
unsafe impl aya::Pod for Ports {}
// SAFETY: as above.
unsafe impl aya::Pod for PeerEntry {}
// SAFETY: as above.
unsafe impl aya::Pod for ShieldConfig {}
// SAFETY: as above.
unsafe impl aya::Pod for ShieldSource {}
// SAFETY: as above.
unsafe impl aya::Pod for ShieldState {}
// SAFETY: as above.
unsafe impl aya::Pod for SteerKey {}
// SAFETY: as above.
unsafe impl aya::Pod for PinPorts {}
// SAFETY: as above.
unsafe impl aya::Pod for PinnedSource {}
// SAFETY: as above.
unsafe impl aya::Pod for ForwardKey<[u8; 4]> {}
// SAFETY: as above.
unsafe impl aya::Pod for ForwardKey<[u8; 16]> {}
// SAFETY: no padding, as its size says, and every bit pattern is valid.
unsafe impl aya::Pod for Forward<[u8; 4]> {}
// SAFETY: as above.
unsafe impl aya::Pod for Forward<[u8; 16]> {}
