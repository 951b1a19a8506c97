//! Packets as a hostile peer or neighbour would make them: real ones, and then bent.

use std::net::IpAddr;

use dataplane::Direction;
use packet::build::{ACK, FIN, Ip, RST, SYN, fragments};

use super::{
    gateway::Flow,
    random::{Random, v4, v6},
};

/// The longest packet: the kernel takes a little less than a page.
const LONGEST: usize = 1600;
/// Numbers that headers are given: protocols and extensions, known and unknown.
const NUMBERS: [u8; 18] = [
    0, 1, 2, 6, 17, 41, 43, 44, 47, 50, 51, 58, 59, 60, 99, 132, 135, 255,
];

/// Addresses that have no business there.
const STRANGERS: [[IpAddr; 8]; 2] = [
    [
        v4(0, 0, 0, 0),
        v4(127, 0, 0, 1),
        v4(169, 254, 169, 254),
        v4(224, 0, 0, 1),
        v4(255, 255, 255, 255),
        v4(10, 77, 0, 255),
        v4(100, 64, 0, 1),
        v4(8, 8, 8, 8),
    ],
    [
        IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        // ::ffff:100.64.0.2
        IpAddr::V6(std::net::Ipv6Addr::new(
            0, 0, 0, 0, 0, 0xffff, 0x6440, 0x0002,
        )),
        IpAddr::V6(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
        IpAddr::V6(std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)),
        v6(0x11, 1),
        v6(0x11, 2),
        v6(9, 9),
    ],
];

/// Makes packets one after the other.
pub(crate) struct Shapes {
    flows: Vec<Flow>,
    /// Packets that have been seen, to be sent again, quoted, or answered.
    past: Vec<Vec<u8>>,
    /// Fragments still to come.
    pending: Vec<(Direction, Vec<u8>)>,
}

impl Shapes {
    /// About `flows`, and others.
    pub(crate) fn new(flows: Vec<Flow>) -> Self {
        Self {
            flows,
            past: Vec::new(),
            pending: Vec::new(),
        }
    }

    /// A packet from the peers (`In`), or for them.
    pub(crate) fn next(&mut self, random: &mut Random) -> (Direction, Vec<u8>) {
        if let Some(pending) = self.pending.pop() {
            return pending;
        }
        let direction = random.pick(&Direction::ALL);
        let mut packet = self.real(random, direction);
        if random.one_in(12) {
            let (size, id) = (
                random.pick(&[8, 16, 24, 64, 128]),
                random.below(1 << 16) as u32,
            );
            let mut parts = if packet.len() > 80 && !has_extensions(&packet) {
                fragments(&packet, size, id)
            } else {
                Vec::new()
            };
            if random.one_in(3) {
                parts.reverse();
            }
            parts.truncate(8);
            let bent = random.below(3);
            self.pending = parts
                .into_iter()
                .map(|part| (direction, bend_times(part, bent, random)))
                .collect();
        }
        let times = random.pick(&[0, 0, 1, 1, 1, 2, 3, 6]);
        packet = bend_times(packet, times, random);
        if self.past.len() < 64 {
            self.past.push(packet.clone());
        } else {
            let slot = random.below(64);
            self.past[slot].clone_from(&packet);
        }
        (direction, packet)
    }

    fn real(&self, random: &mut Random, direction: Direction) -> Vec<u8> {
        let flow = random.pick(&self.flows);
        let payload = [0x5a; 1300];
        let most = random.pick(&[1, 64, 64, 64, 1300]);
        let payload = &payload[..random.below(most)];
        if random.one_in(10) && !self.past.is_empty() {
            return self.past[random.below(self.past.len())].clone();
        }
        let (near, far) = (flow.host, flow.peer);
        let mut ip = match direction {
            Direction::In => Ip::new(far.ip(), near.ip()),
            Direction::Out => Ip::new(near.ip(), far.ip()),
        }
        .ttl(random.pick(&[0, 1, 2, 64, 64, 64, 255]))
        .id(random.below(1 << 16) as u32);
        if random.one_in(8) {
            ip = with_extras(ip, near.is_ipv4(), random);
        }
        let (src, dst) = match direction {
            Direction::In => (far.port(), near.port()),
            Direction::Out => (near.port(), far.port()),
        };
        let src = if random.one_in(6) {
            random.below(1 << 16) as u16
        } else {
            src
        };
        match random.below(24) {
            0 => ip.sctp(src, dst, payload),
            1 => ip.raw(random.pick(&NUMBERS), payload),
            2 => ip.tsmp(payload),
            3 => ip.icmp(
                random.below(256) as u8,
                random.below(4) as u8,
                [0; 4],
                payload,
            ),
            4 | 5 if !self.past.is_empty() => {
                let quoted = &self.past[random.below(self.past.len())];
                if random.one_in(2) {
                    ip.unreachable(quoted, random.below(quoted.len().min(600) + 1))
                } else {
                    ip.too_big(quoted, random.below(1 << 16) as u16)
                }
            }
            6 => syn_with_options(&ip, (src, dst), random),
            _ => match flow.protocol {
                6 => {
                    let flags =
                        random.pick(&[ACK, ACK, ACK, ACK, SYN, SYN | ACK, FIN | ACK, RST, 0]);
                    ip.tcp(src, dst, flags, payload)
                }
                17 => ip.udp(src, dst, payload),
                _ if direction == Direction::In => ip.echo_request(far.port(), 7, payload),
                _ => ip.echo_reply(far.port(), 7, payload),
            },
        }
    }
}

/// IPv4 options, or IPv6 extension headers, of any kind.
fn with_extras(ip: Ip, is_v4: bool, random: &mut Random) -> Ip {
    if is_v4 {
        let options: Vec<u8> = (0..4 * (1 + random.below(10)))
            .map(|_| random.pick(&[0, 1, 7, 68, 130, 131, 137, 148, 255, 4, 40]))
            .collect();
        return ip.options(&options);
    }
    let body = [1, 4, 0, 0, 0, 0, 0xc2, 4, 0, 0, 0xff, 0xff];
    let mut ip = ip;
    for _ in 0..1 + random.below(12) {
        ip = match random.below(5) {
            0 => ip.fragment_header(random.pick(&[0, 0, 1, 8191]), random.one_in(2)),
            _ => {
                let number = random.pick(&[0, 43, 50, 51, 60, 60, 135, 139, 140]);
                ip.extension(number, &body[..random.pick(&[0, 6, 6, 12])])
            }
        };
    }
    ip
}

/// A SYN whose options are partly nonsense.
fn syn_with_options(ip: &Ip, (src, dst): (u16, u16), random: &mut Random) -> Vec<u8> {
    let words = random.below(11);
    let mut options = Vec::new();
    while options.len() < words * 4 {
        match random.below(6) {
            0 => options.extend([2, 4, random.below(256) as u8, random.below(256) as u8]),
            1 => options.push(1),
            2 => options.extend([3, 3, 7]),
            3 => options.extend([random.below(256) as u8, random.below(5) as u8]),
            4 => options.extend([8, 10, 0, 0, 0, 1, 0, 0, 0, 0]),
            _ => options.push(random.below(256) as u8),
        }
    }
    options.truncate(words * 4);
    let flags = random.pick(&[SYN, SYN | ACK]);
    let mut packet = ip.tcp(src, dst, flags, &options);
    // The options are what stood behind the header; the checksum is no longer right then.
    let at = packet.len() - options.len() - 20;
    packet[at + 12] = ((5 + words) << 4) as u8;
    packet
}

fn bend_times(mut packet: Vec<u8>, times: usize, random: &mut Random) -> Vec<u8> {
    for _ in 0..times {
        packet = bend(packet, random);
    }
    packet.truncate(LONGEST);
    packet
}

/// Changes one thing.
fn bend(mut packet: Vec<u8>, random: &mut Random) -> Vec<u8> {
    let len = packet.len();
    if len < 20 {
        packet.resize(20 + random.below(60), random.below(256) as u8);
        return packet;
    }
    let is_v4 = packet[0] >> 4 == 4;
    let word = |random: &mut Random| {
        let near = (len as u16)
            .wrapping_add(random.below(5) as u16)
            .wrapping_sub(2);
        random.pick(&[0, 1, 19, 20, 40, near, near, 0x7fff, 0xffff])
    };
    match random.below(16) {
        // Any bit, mostly of headers.
        0 | 1 => {
            let most = random.pick(&[4, 48, 80, 80, 2000]);
            let at = random.below(len.min(most));
            packet[at] ^= 1 << random.below(8);
        }
        2 => {
            let at = random.below(len.min(80));
            packet[at] = random.below(256) as u8;
        }
        3 => packet.truncate(random.below(len)),
        // What it says of its length.
        4 => {
            let at = if is_v4 { 2 } else { 4 };
            packet[at..at + 2].copy_from_slice(&word(random).to_be_bytes());
        }
        5 if is_v4 => packet[0] = 0x40 | random.below(16) as u8,
        5 => packet[0] = (random.below(16) << 4) as u8,
        // Fragments that are none, overlap, or end beyond 65 535.
        6 if is_v4 => {
            let field =
                random.pick(&[0x2000, 0x4000, 0x8000, 1, 2, 0x1fff, 0x3fff, 0x2001, 0xffff]);
            packet[6..8].copy_from_slice(&u16::to_be_bytes(field));
        }
        7 => {
            let at = if is_v4 { 9 } else { 6 };
            packet[at] = random.pick(&NUMBERS);
        }
        // TTL or hop limit.
        8 => {
            let at = if is_v4 { 8 } else { 7 };
            packet[at] = random.pick(&[0, 1, 2, 255]);
        }
        9 => {
            let stranger = random.pick(&STRANGERS[usize::from(!is_v4)]);
            let first = random.one_in(2);
            match stranger {
                IpAddr::V4(address) => {
                    let at = if first { 12 } else { 16 };
                    packet[at..at + 4].copy_from_slice(&address.octets());
                }
                IpAddr::V6(address) if len >= 40 => {
                    let at = if first { 8 } else { 24 };
                    packet[at..at + 16].copy_from_slice(&address.octets());
                }
                IpAddr::V6(_) => {}
            }
        }
        // To itself, or back.
        10 => {
            let (at, size) = if is_v4 { (12, 4) } else { (8, 16) };
            if len >= at + 2 * size {
                let (src, dst) = packet[at..at + 2 * size].split_at_mut(size);
                if random.one_in(2) {
                    src.copy_from_slice(dst);
                } else {
                    src.swap_with_slice(dst);
                }
            }
        }
        // The transport's own lies: data offset and flags, length, checksum.
        11 | 12 => {
            let header = if is_v4 {
                usize::from(packet[0] & 0xf) * 4
            } else {
                40
            };
            let at = header + random.pick(&[4, 5, 6, 7, 12, 12, 13, 13, 16]);
            if at < len {
                packet[at] = random.below(256) as u8;
            }
        }
        13 => packet.extend(vec![0xee; 1 + random.below(100)]),
        // A header more, without its being said in the length.
        14 if !is_v4 && len >= 40 => {
            let number = random.pick(&NUMBERS);
            let header = [packet[6], random.pick(&[0, 0, 1, 4, 255]), 0, 0, 0, 0, 0, 0];
            packet[6] = number;
            packet.splice(40..40, header);
        }
        15 => {
            for byte in &mut packet[1..] {
                *byte = random.below(256) as u8;
            }
        }
        _ => {}
    }
    packet
}

fn has_extensions(packet: &[u8]) -> bool {
    match packet[0] >> 4 {
        4 => packet[0] != 0x45 || packet[6] & 0x3f != 0 || packet[7] != 0,
        _ => ![6, 17, 58, 132, 99].contains(&packet[6]),
    }
}
