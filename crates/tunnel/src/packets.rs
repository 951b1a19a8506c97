//! Packets made by hand, for trials and tests: [`tcp`], [`udp`].

use std::net::{IpAddr, Ipv6Addr};

use crate::checksum::{fold, ipv4_header, pseudo, store, sum};
use crate::split::{TCP, UDP};

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

/// Destination ports.
const TCP_PORT: u16 = 443;
pub(crate) const UDP_PORT: u16 = 53;

/// A TCP segment with these flags and this sequence number.
#[must_use]
pub fn tcp(flow: Flow, flags: u8, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut header = [0; 20];
    header[..2].copy_from_slice(&flow.port.to_be_bytes());
    header[2..4].copy_from_slice(&TCP_PORT.to_be_bytes());
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
    header[2..4].copy_from_slice(&UDP_PORT.to_be_bytes());
    header[4..6].copy_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    packet(flow, UDP, &header, 6, payload)
}

fn packet(flow: Flow, protocol: u8, header: &[u8], csum_at: usize, payload: &[u8]) -> Vec<u8> {
    let l4_len = header.len() + payload.len();
    let mut packet = if let (IpAddr::V4(from), IpAddr::V4(to)) = (flow.from, flow.to) {
        let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
        ip[2..4].copy_from_slice(&(20 + l4_len as u16).to_be_bytes());
        ip.extend(from.octets());
        ip.extend(to.octets());
        ipv4_header(&mut ip);
        ip
    } else {
        let mut ip = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
        ip[4..6].copy_from_slice(&(l4_len as u16).to_be_bytes());
        ip.extend(v6(flow.from).octets());
        ip.extend(v6(flow.to).octets());
        ip
    };
    let l4 = packet.len();
    packet.extend(header);
    packet.extend(payload);
    let value = !fold(sum(&packet[l4..], pseudo(&packet, protocol, l4_len)));
    let value = if value == 0 { 0xffff } else { value };
    store(&mut packet[l4 + csum_at..], value);
    packet
}

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}
