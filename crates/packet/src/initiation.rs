//! WireGuard's handshake initiations, as they come in from the underlay.
//!
//! Only the plain shape is recognized: UDP over IPv4 without options or over IPv6 without extension
//! headers, whole, of exactly the length of an initiation. WireGuard takes others too (a fragmented one,
//! say); who asks here lets them pass.

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::{
    Window,
    header::{Ipv4, Ipv6, protocol},
};

/// Bytes of an initiation (WireGuard paper, section 5.4.2).
pub const INITIATION_LEN: u32 = 148;
/// Its first word: type 1, then three zero bytes that are reserved.
const INITIATION: [u8; 4] = [1, 0, 0, 0];

/// UDP header, and the first word of what it carries.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Message {
    src: [u8; 2],
    dst: [u8; 2],
    len: [u8; 2],
    checksum: [u8; 2],
    word: [u8; 4],
}

impl Message {
    const LEN: u32 = 8 + INITIATION_LEN;

    #[inline(always)]
    fn is_initiation(&self, port: u16) -> bool {
        u16::from_be_bytes(self.dst) == port
            && u16::from_be_bytes(self.len) as u32 == Self::LEN
            && self.word == INITIATION
    }
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct MessageV4 {
    ip: Ipv4,
    message: Message,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct MessageV6 {
    ip: Ipv6,
    message: Message,
}

/// Where an initiation comes from and goes to; everything in network order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Initiation<A> {
    /// Source address.
    pub src: A,
    /// Source port.
    pub src_port: [u8; 2],
    /// Destination address.
    pub dst: A,
}

/// Address families that initiations come over.
pub trait InitiationFamily: Sized {
    /// Bytes from the beginning of the IP header to the end of an initiation.
    const LEN: u32;
    /// Bytes of these that have to be readable.
    const READ: u32;

    /// Returns the initiation to UDP port `port` whose IP header begins at `start`, if it is one.
    fn initiation<W: Window + ?Sized>(
        packet: &W,
        start: usize,
        port: u16,
    ) -> Option<Initiation<Self>>;
}

impl InitiationFamily for [u8; 4] {
    const LEN: u32 = size_of::<Ipv4>() as u32 + Message::LEN;
    const READ: u32 = size_of::<MessageV4>() as u32;

    #[inline(always)]
    fn initiation<W: Window + ?Sized>(
        packet: &W,
        start: usize,
        port: u16,
    ) -> Option<Initiation<Self>> {
        let MessageV4 { ip, message } = packet.at(start)?;
        let plain = ip.version() == 4
            && ip.header_len() as usize == size_of::<Ipv4>()
            && ip.protocol == protocol::UDP
            && message.is_initiation(port)
            && ip.total_len() == Self::LEN
            && ip.fragment_offset() == 0
            && !ip.more_fragments()
            && packet.len() >= start as u32 + Self::LEN;
        plain.then_some(Initiation {
            src: ip.src,
            src_port: message.src,
            dst: ip.dst,
        })
    }
}

impl InitiationFamily for [u8; 16] {
    const LEN: u32 = Ipv6::LEN + Message::LEN;
    const READ: u32 = size_of::<MessageV6>() as u32;

    #[inline(always)]
    fn initiation<W: Window + ?Sized>(
        packet: &W,
        start: usize,
        port: u16,
    ) -> Option<Initiation<Self>> {
        let MessageV6 { ip, message } = packet.at(start)?;
        let plain = ip.version() == 6
            && ip.next_header == protocol::UDP
            && message.is_initiation(port)
            && ip.total_len() == Self::LEN
            && packet.len() >= start as u32 + Self::LEN;
        plain.then_some(Initiation {
            src: ip.src,
            src_port: message.src,
            dst: ip.dst,
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::net::{Ipv4Addr, Ipv6Addr};
    use std::vec::Vec;

    use super::*;
    use crate::build::{Ip, fragments};

    const PORT: u16 = 41_641;
    const V4: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(203, 0, 113, 7), Ipv4Addr::new(192, 0, 2, 1));

    fn v4() -> Ip {
        Ip::new(V4.0, V4.1)
    }

    fn v6() -> Ip {
        Ip::new(Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED)
    }

    fn message(kind: u8, len: usize) -> Vec<u8> {
        let mut message = Vec::from([kind, 0, 0, 0]);
        message.resize(len, 7);
        message
    }

    fn found(packet: &[u8]) -> bool {
        <[u8; 4]>::initiation(packet, 0, PORT).is_some()
            || <[u8; 16]>::initiation(packet, 0, PORT).is_some()
    }

    #[test]
    fn an_initiation_is_recognized_with_its_ends() {
        let packet = v4().udp(9, PORT, &message(1, 148));
        let expected = Initiation {
            src: V4.0.octets(),
            src_port: 9u16.to_be_bytes(),
            dst: V4.1.octets(),
        };
        assert_eq!(<[u8; 4]>::initiation(&packet[..], 0, PORT), Some(expected));

        let packet = v6().udp(9, PORT, &message(1, 148));
        let found = <[u8; 16]>::initiation(&packet[..], 0, PORT).unwrap();
        assert_eq!(found.src, Ipv6Addr::LOCALHOST.octets());
        assert_eq!(found.dst, [0; 16]);
    }

    #[test]
    fn a_link_header_and_a_trailer_are_none_of_its_business() {
        let mut frame = Vec::from([0xff; 14]);
        frame.extend(v4().udp(9, PORT, &message(1, 148)));
        frame.extend([0; 9]);
        assert!(<[u8; 4]>::initiation(&frame[..], 14, PORT).is_some());
        assert!(<[u8; 4]>::initiation(&frame[..], 13, PORT).is_none());
    }

    #[test]
    fn nothing_else_is_taken_for_one() {
        for ip in [v4(), v6()] {
            assert!(found(&ip.udp(9, PORT, &message(1, 148))));
            for other in [
                ip.udp(9, PORT + 1, &message(1, 148)),
                ip.udp(9, PORT, &message(1, 147)),
                ip.udp(9, PORT, &message(1, 149)),
                ip.udp(9, PORT, &message(2, 92)),
                ip.udp(9, PORT, &message(2, 148)),
                ip.udp(9, PORT, &message(3, 64)),
                ip.udp(9, PORT, &message(4, 148)),
                ip.tcp(9, PORT, 0, &message(1, 148)),
            ] {
                assert!(!found(&other));
            }
            let mut reserved = message(1, 148);
            reserved[3] = 1;
            assert!(!found(&ip.udp(9, PORT, &reserved)));
        }
        let options = v4().options(&[1; 4]);
        assert!(!found(&options.udp(9, PORT, &message(1, 148))));
        let extension = v6().extension(protocol::DESTINATION_OPTIONS, &[]);
        assert!(!found(&extension.udp(9, PORT, &message(1, 148))));
        for fragment in fragments(&v4().udp(9, PORT, &message(1, 148)), 80, 7) {
            assert!(!found(&fragment));
        }
    }

    #[test]
    fn a_cut_one_is_none() {
        for packet in [v4(), v6()].map(|ip| ip.udp(9, PORT, &message(1, 148))) {
            for end in 0..packet.len() {
                assert!(!found(&packet[..end]), "cut at {end}");
            }
        }
    }
}
