//! UDP datagrams made by hand, for raw sockets.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use super::checksum::{fold, sum};

/// Length of a UDP header.
pub(crate) const HEADER: usize = 8;
/// Longest UDP payload.
pub(crate) const LONGEST: usize = 65_507;
const UDP: u8 = 17;
const TTL: u8 = 64;

/// The address that the kernel sends from to `to`, with the firewall mark `mark`.
///
/// # Errors
///
/// Whatever the system answered: most often that there is no route.
pub(crate) fn source_to(to: SocketAddr, mark: u32) -> io::Result<IpAddr> {
    let probe = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
    probe.set_mark(mark)?;
    probe.connect(&to.into())?;
    match probe.local_addr()?.as_socket() {
        Some(address) => Ok(address.ip()),
        None => Err(io::ErrorKind::AddrNotAvailable.into()),
    }
}

/// A whole packet with its IP header; `None` if the addresses are not of one family or the payload is
/// longer than [`LONGEST`].
pub(crate) fn packet(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    if payload.len() > LONGEST {
        return None;
    }
    let length = u16::try_from(HEADER + payload.len()).ok()?;
    let mut packet = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            // The kernel fills in length, identification and checksum.
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, TTL, UDP, 0, 0];
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(length.to_be_bytes());
            header.extend([UDP, TTL]);
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        _ => return None,
    };
    packet.extend(segment(from, to, payload));
    Some(packet)
}

/// A UDP header with its checksum, and `payload` (at most [`LONGEST`] bytes).
pub(crate) fn segment(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = (HEADER + payload.len()) as u16;
    let mut segment = Vec::with_capacity(usize::from(length));
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend(length.to_be_bytes());
    segment.extend([0, 0]);
    segment.extend(payload);
    let pseudo = sum_of(from.ip()) + sum_of(to.ip()) + u64::from(length) + 17;
    let folded = fold(pseudo + sum(&segment));
    // Zero would say: no checksum.
    let checksum = if folded == 0xffff { 0xffff } else { !folded };
    segment[6..8].copy_from_slice(&checksum.to_be_bytes());
    segment
}

fn sum_of(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    }
}
