//! Which peer a packet of the overlay belongs to.

use ebpf_abi::{Direction, Reason};

use crate::{
    Window,
    header::{Ipv4, Ipv6, Version},
};

/// An address in network byte order, as the prefix tables hold it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Address {
    /// IPv4.
    V4([u8; 4]),
    /// IPv6.
    V6([u8; 16]),
}

/// Returns the overlay address that names the peer: the source of what comes [`Direction::In`],
/// the destination of what goes [`Direction::Out`].
///
/// The version is taken from the first byte, as the kernel does for WireGuard and TUN devices.
///
/// # Errors
///
/// [`Reason::NotIp`] for anything but a well-formed IPv4 or IPv6 header, [`Reason::Truncated`] if
/// the header is cut off or speaks of more bytes than there are.
#[inline(always)]
pub fn remote_address<W: Window + ?Sized>(
    packet: &W,
    direction: Direction,
) -> Result<Address, Reason> {
    let version: &Version = packet.at(0).ok_or(Reason::Truncated)?;
    match version.number() {
        4 => {
            let ip: &Ipv4 = packet.at(0).ok_or(Reason::Truncated)?;
            if (ip.header_len() as usize) < size_of::<Ipv4>() {
                return Err(Reason::NotIp);
            }
            if packet.len() < ip.header_len() || packet.len() < ip.total_len() {
                return Err(Reason::Truncated);
            }
            Ok(Address::V4(match direction {
                Direction::In => ip.src,
                Direction::Out => ip.dst,
            }))
        }
        6 => {
            let ip: &Ipv6 = packet.at(0).ok_or(Reason::Truncated)?;
            if packet.len() < ip.total_len() {
                return Err(Reason::Truncated);
            }
            Ok(Address::V6(match direction {
                Direction::In => ip.src,
                Direction::Out => ip.dst,
            }))
        }
        _ => Err(Reason::NotIp),
    }
}
