//! Pinning: relayed packets enter WireGuard with the source that the agent has chosen for their peer, so
//! that roaming never moves the peer's endpoint behind the agent's back.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{BPF_F_NO_PREALLOC, BPF_MAP_TYPE_HASH, MapSpec};

/// Program on the ingress of `lo`.
pub const PROGRAM_PIN: &str = "pin_source";

/// Constant of the object that holds the [`PinPorts`].
pub const GLOBAL_PIN: &str = "PIN";

/// Between which ports packets are relayed.
#[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct PinPorts {
    /// WireGuard's, on 127.0.0.1, host order.
    pub wireguard: u16,
    /// The agent's, on every address of 127.64.0.0/10, host order.
    pub relay: u16,
}
const _: () = assert!(size_of::<PinPorts>() == 4);

/// Value of `PIN_SOURCES`: an IPv4 endpoint, in network order.
#[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct PinnedSource {
    /// The address.
    pub address: [u8; 4],
    /// The UDP port.
    pub port: [u8; 2],
    /// Zero.
    pub padding: [u8; 2],
}
const _: () = assert!(size_of::<PinnedSource>() == 8);

/// A peer's address in 127.64.0.0/10, network order, to its [`PinnedSource`].
pub const PIN_SOURCES: MapSpec = MapSpec {
    name: "PIN_SOURCES",
    map_type: BPF_MAP_TYPE_HASH,
    key_size: 4,
    value_size: size_of::<PinnedSource>() as u32,
    max_entries: 1 << 16,
    flags: BPF_F_NO_PREALLOC,
    inner: None,
};
