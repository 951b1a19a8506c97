//! For tests and fuzz targets: packets, and nodes without sockets.

pub(crate) mod node;
mod pair;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::{fold, ipv4_header, pseudo, store, sum};
use crate::split::{TCP, UDP};

pub use pair::Pair;

/// Addresses of both ends of a flow, and its source port.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Source.
    pub from: IpAddr,
    /// Destination.
    pub to: IpAddr,
    /// Source port.
    pub port: u16,
}

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

/// A TCP segment with these flags and this sequence number.
#[must_use]
pub fn tcp(flow: Flow, flags: u8, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut header = [0; 20];
    header[..2].copy_from_slice(&flow.port.to_be_bytes());
    header[2..4].copy_from_slice(&443u16.to_be_bytes());
    header[4..8].copy_from_slice(&sequence.to_be_bytes());
    header[8..12].copy_from_slice(&77u32.to_be_bytes());
    header[12] = 5 << 4;
    header[13] = flags;
    header[14..16].copy_from_slice(&501u16.to_be_bytes());
    packet(flow, TCP, &header, 16, payload)
}

/// A datagram.
#[must_use]
pub fn udp(flow: Flow, payload: &[u8]) -> Vec<u8> {
    let mut header = [0; 8];
    header[..2].copy_from_slice(&flow.port.to_be_bytes());
    header[2..4].copy_from_slice(&53u16.to_be_bytes());
    header[4..6].copy_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    packet(flow, UDP, &header, 6, payload)
}

fn packet(flow: Flow, protocol: u8, header: &[u8], csum_at: usize, payload: &[u8]) -> Vec<u8> {
    let l4_len = header.len() + payload.len();
    let mut packet = match (flow.from, flow.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
            ip[2..4].copy_from_slice(&(20 + l4_len as u16).to_be_bytes());
            ip.extend(from.octets());
            ip.extend(to.octets());
            ipv4_header(&mut ip);
            ip
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut ip = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
            ip[4..6].copy_from_slice(&(l4_len as u16).to_be_bytes());
            ip.extend(from.octets());
            ip.extend(to.octets());
            ip
        }
        _ => panic!("both ends are of one family"),
    };
    let l4 = packet.len();
    packet.extend(header);
    packet.extend(payload);
    let value = !fold(sum(&packet[l4..], pseudo(&packet, protocol, l4_len)));
    let value = if value == 0 { 0xffff } else { value };
    store(&mut packet[l4 + csum_at..], value);
    packet
}

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
