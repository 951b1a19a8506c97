//! Packets for tests and fuzz corpora, and the few that the agent makes itself, with right lengths and
//! checksums.
//!
//! ```
//! use core::net::Ipv4Addr;
//! use packet::build::{Ip, SYN, fragments};
//!
//! let ip = Ip::new(Ipv4Addr::new(100, 64, 0, 2), Ipv4Addr::new(100, 64, 0, 1));
//! let syn = ip.tcp(40_000, 22, SYN, b"");
//! let [first, later] = &fragments(&ip.udp(40_000, 53, &[0; 200]), 128, 7)[..] else { panic!() };
//! # assert_eq!((syn.len(), first.len(), later.len()), (40, 148, 100));
//! ```

extern crate alloc;

use alloc::vec::Vec;
use core::net::IpAddr;

use crate::protocol;

/// TCP flag.
pub const FIN: u8 = 0x01;
/// TCP flag.
pub const SYN: u8 = 0x02;
/// TCP flag.
pub const RST: u8 = 0x04;
/// TCP flag.
pub const ACK: u8 = 0x10;

/// An IP header in the making; the methods named after protocols make whole packets.
#[derive(Clone, Debug)]
pub struct Ip {
    src: IpAddr,
    dst: IpAddr,
    ttl: u8,
    id: u32,
    options: Vec<u8>,
    extensions: Vec<(u8, Vec<u8>)>,
}

impl Ip {
    /// From `src` to `dst`.
    ///
    /// # Panics
    ///
    /// If the addresses are not of one family.
    #[must_use]
    pub fn new(src: impl Into<IpAddr>, dst: impl Into<IpAddr>) -> Self {
        let (src, dst) = (src.into(), dst.into());
        assert_eq!(
            src.is_ipv4(),
            dst.is_ipv4(),
            "{src} and {dst} differ in family"
        );
        Self {
            src,
            dst,
            ttl: 64,
            id: 0,
            options: Vec::new(),
            extensions: Vec::new(),
        }
    }

    /// Of the packets that answer these.
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            ..self.clone()
        }
    }

    /// With another time to live.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// With an identification: of IPv4 the lower 16 bits, in IPv6 of a fragment header added later.
    #[must_use]
    pub fn id(mut self, id: u32) -> Self {
        self.id = id;
        self
    }

    /// With IPv4 options, a multiple of 4 bytes up to 40.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// With one more IPv6 extension header: its number and its bytes from the third on. They are
    /// filled with zeros to a multiple of 8.
    #[must_use]
    pub fn extension(mut self, number: u8, body: &[u8]) -> Self {
        let len = (2 + body.len()).next_multiple_of(8);
        let mut header = Vec::from([0, (len / 8 - 1) as u8]);
        header.extend(body);
        header.resize(len, 0);
        self.extensions.push((number, header));
        self
    }

    /// With an IPv6 fragment header, of any offset (in units of 8 bytes) over any content.
    #[must_use]
    pub fn fragment_header(mut self, offset: u16, more: bool) -> Self {
        let mut header = Vec::from([0, 0]);
        header.extend(((offset << 3) | u16::from(more)).to_be_bytes());
        header.extend(self.id.to_be_bytes());
        self.extensions.push((protocol::FRAGMENT, header));
        self
    }

    /// A TCP segment without options.
    #[must_use]
    pub fn tcp(&self, src: u16, dst: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut segment = ports(src, dst);
        segment.extend([0, 0, 0, 1, 0, 0, 0, if flags & ACK != 0 { 1 } else { 0 }]);
        segment.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend(payload);
        self.summed(protocol::TCP, 16, segment)
    }

    /// A UDP datagram.
    #[must_use]
    pub fn udp(&self, src: u16, dst: u16, payload: &[u8]) -> Vec<u8> {
        let mut datagram = ports(src, dst);
        datagram.extend((8 + payload.len() as u16).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        self.summed(protocol::UDP, 6, datagram)
    }

    /// An SCTP packet, its chunks given; the CRC is left 0.
    #[must_use]
    pub fn sctp(&self, src: u16, dst: u16, chunks: &[u8]) -> Vec<u8> {
        let mut packet = ports(src, dst);
        packet.extend([0; 8]);
        packet.extend(chunks);
        self.raw(protocol::SCTP, &packet)
    }

    /// A message of the family's own ICMP: type, code, the 4 bytes after the checksum, the rest.
    #[must_use]
    pub fn icmp(&self, kind: u8, code: u8, word: [u8; 4], rest: &[u8]) -> Vec<u8> {
        let mut message = Vec::from([kind, code, 0, 0]);
        message.extend(word);
        message.extend(rest);
        let number = self.by_family(protocol::ICMP, protocol::ICMPV6);
        self.summed(number, 2, message)
    }

    /// An echo request.
    #[must_use]
    pub fn echo_request(&self, id: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
        self.icmp(self.by_family(8, 128), 0, echo_word(id, sequence), payload)
    }

    /// An echo reply.
    #[must_use]
    pub fn echo_reply(&self, id: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
        self.icmp(self.by_family(0, 129), 0, echo_word(id, sequence), payload)
    }

    /// "Destination unreachable" about `packet`, of which `quoted` bytes at most come along.
    #[must_use]
    pub fn unreachable(&self, packet: &[u8], quoted: usize) -> Vec<u8> {
        let quote = packet.get(..quoted).unwrap_or(packet);
        self.icmp(self.by_family(3, 1), 1, [0; 4], quote)
    }

    /// "Packet too big" about `packet`: the path takes `mtu` bytes.
    #[must_use]
    pub fn too_big(&self, packet: &[u8], mtu: u16) -> Vec<u8> {
        let [high, low] = mtu.to_be_bytes();
        let quote = &packet[..packet.len().min(128)];
        self.icmp(
            self.by_family(3, 2),
            self.by_family(4, 0),
            [0, 0, high, low],
            quote,
        )
    }

    /// A TSMP message; the first byte is its type.
    #[must_use]
    pub fn tsmp(&self, message: &[u8]) -> Vec<u8> {
        self.raw(protocol::TSMP, message)
    }

    /// Any protocol, with a payload as it is.
    #[must_use]
    pub fn raw(&self, number: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let header_len = 20 + self.options.len();
                let total = (header_len + payload.len()) as u16;
                let mut packet = Vec::from([0x40 | (header_len / 4) as u8, 0]);
                packet.extend(total.to_be_bytes());
                packet.extend((self.id as u16).to_be_bytes());
                packet.extend([0, 0, self.ttl, number, 0, 0]);
                packet.extend(src.octets());
                packet.extend(dst.octets());
                packet.extend(&self.options);
                sum_header(&mut packet);
                packet
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let extensions: usize = self.extensions.iter().map(|(_, bytes)| bytes.len()).sum();
                let mut packet = Vec::from([0x60, 0, 0, 0]);
                packet.extend(((extensions + payload.len()) as u16).to_be_bytes());
                packet.extend([number, self.ttl]);
                packet.extend(src.octets());
                packet.extend(dst.octets());
                let mut next = 6;
                for (number, header) in &self.extensions {
                    packet[next] = *number;
                    next = packet.len();
                    packet.extend(header);
                }
                packet[next] = number;
                packet
            }
            _ => unreachable!("one family, by `new`"),
        };
        packet.extend(payload);
        packet
    }

    /// A payload whose checksum, over itself and but for ICMP over the pseudo header, is at `at`.
    fn summed(&self, number: u8, at: usize, mut payload: Vec<u8>) -> Vec<u8> {
        let mut total = sum(&payload);
        if number != protocol::ICMP {
            total += match (self.src, self.dst) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => sum(&src.octets()) + sum(&dst.octets()),
                (IpAddr::V6(src), IpAddr::V6(dst)) => sum(&src.octets()) + sum(&dst.octets()),
                _ => unreachable!("one family, by `new`"),
            };
            total += u32::from(number) + payload.len() as u32;
        }
        let checksum = match !folded(total) {
            // 0 would say that there is none.
            0 if number == protocol::UDP => 0xffff,
            checksum => checksum,
        };
        payload[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        self.raw(number, &payload)
    }

    fn by_family<T>(&self, v4: T, v6: T) -> T {
        if self.src.is_ipv4() { v4 } else { v6 }
    }
}

/// Cuts a packet without IPv6 extension headers into fragments of `size` bytes of payload, a
/// multiple of 8, each but the last. All get the identification, IPv4 its lower 16 bits.
///
/// # Panics
///
/// If the packet is not IP, or `size` no multiple of 8.
#[must_use]
pub fn fragments(packet: &[u8], size: usize, id: u32) -> Vec<Vec<u8>> {
    assert!(
        size > 0 && size.is_multiple_of(8),
        "{size} is no multiple of 8"
    );
    let v4 = packet[0] >> 4 == 4;
    let (header, payload) = packet.split_at(if v4 {
        usize::from(packet[0] & 0xf) * 4
    } else {
        40
    });
    let count = payload.len().div_ceil(size);
    let chunks = payload.chunks(size).enumerate();
    let fragment = |(index, chunk): (usize, &[u8])| {
        let offset = (index * size / 8) as u16;
        let more = index + 1 < count;
        let mut fragment = header.to_vec();
        if v4 {
            let total = (header.len() + chunk.len()) as u16;
            let word = offset | if more { 0x2000 } else { 0 };
            fragment[2..4].copy_from_slice(&total.to_be_bytes());
            fragment[4..6].copy_from_slice(&(id as u16).to_be_bytes());
            fragment[6..8].copy_from_slice(&word.to_be_bytes());
            sum_header(&mut fragment);
        } else {
            fragment[4..6].copy_from_slice(&(8 + chunk.len() as u16).to_be_bytes());
            fragment.extend([header[6], 0]);
            fragment[6] = protocol::FRAGMENT;
            fragment.extend(((offset << 3) | u16::from(more)).to_be_bytes());
            fragment.extend(id.to_be_bytes());
        }
        fragment.extend(chunk);
        fragment
    };
    chunks.map(fragment).collect()
}

/// Whether the checksums of a whole packet are right: the IPv4 header's, and that of TCP, UDP and
/// ICMP. Of anything else says yes. For IPv6 without extension headers.
///
/// # Panics
///
/// If the packet is not IP.
#[must_use]
pub fn checksums_hold(packet: &[u8]) -> bool {
    let v4 = packet[0] >> 4 == 4;
    let (header, payload) = packet.split_at(if v4 {
        usize::from(packet[0] & 0xf) * 4
    } else {
        40
    });
    let (number, addresses) = if v4 {
        (header[9], &header[12..20])
    } else {
        (header[6], &header[8..40])
    };
    let pseudo = match number {
        protocol::TCP | protocol::UDP | protocol::ICMPV6 => {
            sum(addresses) + u32::from(number) + payload.len() as u32
        }
        protocol::ICMP => 0,
        _ => return true,
    };
    let header_holds = !v4 || folded(sum(header)) == 0xffff;
    header_holds && folded(sum(payload) + pseudo) == 0xffff
}

fn ports(src: u16, dst: u16) -> Vec<u8> {
    [src.to_be_bytes(), dst.to_be_bytes()].concat()
}

fn echo_word(id: u16, sequence: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (id.to_be_bytes(), sequence.to_be_bytes());
    [a, b, c, d]
}

/// Puts the checksum into an IPv4 header.
fn sum_header(header: &mut [u8]) {
    header[10..12].fill(0);
    let checksum = !folded(sum(header));
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// One's complement sum (RFC 1071), not yet folded; exact for packets, which are below 64 KiB.
fn sum(bytes: &[u8]) -> u32 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let sum: u32 = pairs
        .iter()
        .map(|pair| u32::from(u16::from_be_bytes(*pair)))
        .sum();
    sum + rest.first().map_or(0, |last| u32::from(*last) << 8)
}

fn folded(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}
