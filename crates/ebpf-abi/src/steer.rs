//! Steering of what is for tailnet addresses to the agent's own sockets.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_SOCKMAP, MapSpec};

/// Program that chooses the socket, attached to a network namespace.
pub const PROGRAM_STEER: &str = "steer";

/// Constant of the object: number of the overlay device. What comes in elsewhere is not steered.
pub const GLOBAL_STEER_DEVICE: &str = "STEER_DEVICE";

/// Key of `STEER_TO`: what is steered.
#[derive(Clone, Copy, Debug, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct SteerKey {
    /// Destination address, network order; of IPv4 the first four bytes.
    pub address: [u8; 16],
    /// Destination port, host order.
    pub port: u16,
    /// IP protocol: TCP or UDP.
    pub protocol: u8,
    /// 4 or 6.
    pub version: u8,
}
const _: () = assert!(size_of::<SteerKey>() == 20);

/// Sockets that can be steered to.
pub const STEER_SLOTS: u32 = 256;

/// [`SteerKey`] to a slot of `STEER_SOCKETS`.
pub const STEER_TO: MapSpec = MapSpec {
    name: "STEER_TO",
    map_type: BPF_MAP_TYPE_HASH,
    key_size: size_of::<SteerKey>() as u32,
    value_size: size_of::<u32>() as u32,
    max_entries: STEER_SLOTS,
    flags: 0,
    inner: None,
};

/// Sockets. The kernel takes one out when it is closed.
pub const STEER_SOCKETS: MapSpec = MapSpec {
    name: "STEER_SOCKETS",
    map_type: BPF_MAP_TYPE_SOCKMAP,
    key_size: 4,
    value_size: 4,
    max_entries: STEER_SLOTS,
    flags: 0,
    inner: None,
};
