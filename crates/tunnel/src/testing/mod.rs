//! For tests and fuzz targets: packets, and nodes without sockets.

pub(crate) mod node;
mod pair;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use crate::packets::{Flow, tcp, udp};
pub use pair::Pair;

/// From the first node of a [`Pair`] to the second.
pub const V4: Flow = Flow {
    from: IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1)),
    to: IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2)),
    port: 40_000,
};

/// The same over IPv6.
pub const V6: Flow = Flow {
    from: IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)),
    to: IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)),
    port: 40_000,
};

/// A packet without its IPv4 ID, which joining and splitting count up, and without what depends on it.
#[must_use]
pub fn without_id(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}
