//! Joins decrypted packets into super-packets for the TUN device: [`Joiner`].

use std::io::IoSlice;

use gotatun::packet::Packet;

use crate::checksum::{fold, ipv4_header, pseudo, store, sum};
use crate::split::{TCP, UDP};
use crate::vnet::{Gso, NEEDS_CSUM, VnetHeader};

const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
/// How many of the newest items are searched for the flow of a packet.
const SEARCH: usize = 16;
/// A kernel before 6.9 refuses a super-packet of more datagrams.
pub(crate) const UDP_SEGMENTS: u32 = 64;
/// More parts are never written at once; the kernel takes 1 024.
const MAX_SEGMENTS: usize = 256;
const NONE: u32 = u32::MAX;

/// What must be equal for two packets to be of one flow: version, protocol, addresses, ports.
type Flow = [u8; 38];

/// Where the parts of a packet lie that can be joined.
#[derive(Debug)]
struct Layout {
    flow: Flow,
    l4: usize,
    headers: usize,
    payload: usize,
    /// May begin a super-packet, or become part of one.
    joinable: bool,
}

#[derive(Debug)]
struct Item {
    layout: Layout,
    head: u32,
    tail: u32,
    segments: u32,
    total: usize,
    next_sequence: u32,
    open: bool,
    /// The last packet has PSH set.
    pushed: bool,
}

/// Gathers packets and hands them on as few super-packets, in order within each flow.
///
/// Nothing is copied: a super-packet is a list of slices, the headers of its first packet, changed so that
/// they describe the whole, and every payload.
#[derive(Debug, Default)]
pub(crate) struct Joiner {
    packets: Vec<Packet>,
    /// For each packet the one that follows it in its item.
    next: Vec<u32>,
    items: Vec<Item>,
    /// What is joined.
    tcp: bool,
    udp: bool,
}

impl Joiner {
    /// Says what is joined from now on: TCP, datagrams; nothing before.
    pub(crate) fn join(&mut self, tcp: bool, udp: bool) {
        (self.tcp, self.udp) = (tcp, udp);
    }

    /// Takes a packet that begins with its IP header and ends where that says.
    pub(crate) fn push(&mut self, packet: Packet) {
        let layout = layout(&packet, self.tcp, self.udp);
        let index = self.packets.len() as u32;
        if layout.joinable && self.append(&layout, &packet, index) {
            self.packets.push(packet);
            self.next.push(NONE);
            return;
        }
        let tcp = layout.joinable && layout.flow[1] == TCP;
        let pushed = tcp && packet[layout.l4 + 13] & PSH != 0;
        let mut next_sequence = 0;
        if tcp {
            next_sequence = sequence(&packet, layout.l4).wrapping_add(layout.payload as u32);
        }
        let open = layout.joinable && !pushed;
        self.items.push(Item {
            layout,
            head: index,
            tail: index,
            segments: 1,
            total: packet.len(),
            next_sequence,
            open,
            pushed,
        });
        self.packets.push(packet);
        self.next.push(NONE);
    }

    /// Makes packet `index` part of the newest item of its flow, if it continues that.
    fn append(&mut self, layout: &Layout, packet: &[u8], index: u32) -> bool {
        let newest = self.items.iter_mut().rev().take(SEARCH);
        let Some(item) = newest
            .into_iter()
            .find(|item| item.layout.flow == layout.flow)
        else {
            return false;
        };
        let first = &self.packets[item.head as usize];
        if !item.open || !follows(item, first, layout, packet) {
            return false;
        }
        if layout.flow[1] == TCP {
            item.pushed = packet[layout.l4 + 13] & PSH != 0;
            item.next_sequence = item.next_sequence.wrapping_add(layout.payload as u32);
        }
        // A short one is the last.
        item.open = !item.pushed && layout.payload == item.layout.payload;
        item.total += layout.payload;
        item.segments += 1;
        self.next[item.tail as usize] = index;
        item.tail = index;
        true
    }

    /// Hands everything on: to `write` each super-packet, its `virtio_net_hdr` first, with the number of
    /// packets in it.
    pub(crate) fn flush(&mut self, mut write: impl FnMut(&[IoSlice<'_>], u32)) {
        for item in &self.items {
            let first = &mut self.packets[item.head as usize];
            if item.segments == 1 {
                let vnet = VnetHeader::PLAIN.bytes();
                write(&[IoSlice::new(&vnet), IoSlice::new(first)], 1);
                continue;
            }
            let vnet = finish(item, first).bytes();
            let mut parts = [IoSlice::new(&[]); 1 + MAX_SEGMENTS];
            parts[0] = IoSlice::new(&vnet);
            parts[1] = IoSlice::new(&self.packets[item.head as usize]);
            let mut count = 2;
            let mut at = self.next[item.head as usize];
            while at != NONE {
                parts[count] = IoSlice::new(&self.packets[at as usize][item.layout.headers..]);
                count += 1;
                at = self.next[at as usize];
            }
            write(&parts[..count], item.segments);
        }
        self.items.clear();
        self.packets.clear();
        self.next.clear();
    }
}

/// Length of an IP packet by its header; `None` if that is more than there is, or no IP.
pub(crate) fn ip_len(packet: &[u8]) -> Option<usize> {
    let word = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    let len = match packet.first()? >> 4 {
        4 if packet.len() >= 20 => word(2),
        6 if packet.len() >= 40 => word(4) + 40,
        _ => return None,
    };
    (len >= 20 && len <= packet.len()).then_some(len)
}

fn layout(packet: &[u8], tcp: bool, udp: bool) -> Layout {
    let mut flow = [0; 38];
    flow[0] = packet[0] >> 4;
    let (l4, protocol, addresses, plain) = if flow[0] == 4 {
        // Options and fragments are handed on as they are.
        let plain = packet[0] == 0x45 && packet[6] & 0x3f == 0 && packet[7] == 0;
        (20, packet[9], 12..20, plain)
    } else {
        (40, packet[6], 8..40, true)
    };
    flow[1] = protocol;
    flow[2..2 + addresses.len()].copy_from_slice(&packet[addresses]);
    let mut layout = Layout {
        flow,
        l4,
        headers: l4,
        payload: 0,
        joinable: false,
    };
    let headers = match protocol {
        TCP if plain && packet.len() >= l4 + 20 => l4 + usize::from(packet[l4 + 12] >> 4) * 4,
        UDP if plain && packet.len() >= l4 + 8 => l4 + 8,
        _ => return layout,
    };
    layout.flow[34..38].copy_from_slice(&packet[l4..l4 + 4]);
    if headers < packet.len() && headers >= l4 + 8 {
        layout.headers = headers;
        layout.payload = packet.len() - headers;
        let fits = match protocol {
            TCP => tcp && packet[l4 + 13] & !PSH == ACK && headers >= l4 + 20,
            _ => {
                let len = u16::from_be_bytes([packet[l4 + 4], packet[l4 + 5]]);
                udp && packet[l4 + 6..l4 + 8] != [0, 0] && usize::from(len) == packet.len() - l4
            }
        };
        layout.joinable = fits && checksum_valid(packet, l4, protocol);
    }
    layout
}

/// The kernel computes the checksums of a super-packet's parts anew: what was damaged before it was encrypted
/// must not become part of one.
fn checksum_valid(packet: &[u8], l4: usize, protocol: u8) -> bool {
    let pseudo = pseudo(packet, protocol, packet.len() - l4);
    fold(sum(&packet[l4..], pseudo)) == 0xffff
}

fn sequence(packet: &[u8], l4: usize) -> u32 {
    let field = &packet[l4 + 4..l4 + 8];
    u32::from_be_bytes([field[0], field[1], field[2], field[3]])
}

/// Whether `packet` continues `item`, whose first packet is `first`.
fn follows(item: &Item, first: &[u8], layout: &Layout, packet: &[u8]) -> bool {
    let l4 = layout.l4;
    let same_ip = if layout.flow[0] == 4 {
        // TOS, DF, TTL. Not the ID: the kernel counts up from the first one.
        first[1] == packet[1] && first[6] == packet[6] && first[8] == packet[8]
    } else {
        first[..4] == packet[..4] && first[7] == packet[7]
    };
    let same_l4 = match layout.flow[1] {
        TCP => {
            // Acknowledgement, data offset; window; options.
            sequence(packet, l4) == item.next_sequence
                && layout.headers == item.layout.headers
                && first[l4 + 8..l4 + 13] == packet[l4 + 8..l4 + 13]
                && first[l4 + 14..l4 + 16] == packet[l4 + 14..l4 + 16]
                && first[l4 + 20..layout.headers] == packet[l4 + 20..layout.headers]
        }
        _ => item.segments < UDP_SEGMENTS,
    };
    same_ip
        && same_l4
        && layout.payload <= item.layout.payload
        && item.total + layout.payload <= 65_535
        && item.segments < MAX_SEGMENTS as u32
}

/// Changes the headers of the first packet so that they describe the whole super-packet.
fn finish(item: &Item, first: &mut [u8]) -> VnetHeader {
    let Layout {
        l4,
        headers,
        payload,
        ..
    } = item.layout;
    let l4_total = item.total - l4;
    let protocol = item.layout.flow[1];
    let v4 = item.layout.flow[0] == 4;
    if v4 {
        first[2..4].copy_from_slice(&(item.total as u16).to_be_bytes());
        ipv4_header(first);
    } else {
        first[4..6].copy_from_slice(&(l4_total as u16).to_be_bytes());
    }
    let csum_offset = if protocol == TCP {
        // It ended the item where it was set, so it can only be on the last packet.
        first[l4 + 13] |= if item.pushed { PSH } else { 0 };
        16
    } else {
        first[l4 + 4..l4 + 6].copy_from_slice(&(l4_total as u16).to_be_bytes());
        6
    };
    // The field holds the pseudo header's sum, folded and not inverted.
    let partial = fold(pseudo(first, protocol, l4_total));
    store(&mut first[l4 + csum_offset..], partial);
    VnetHeader {
        flags: NEEDS_CSUM,
        gso: match (protocol, v4) {
            (UDP, _) => Gso::Udp,
            (_, true) => Gso::Tcp4,
            (_, false) => Gso::Tcp6,
        },
        header_len: headers as u16,
        gso_size: payload as u16,
        csum_start: l4 as u16,
        csum_offset: csum_offset as u16,
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;
    use crate::split::split;
    use crate::testing::{Flow, V4, V6, tcp, udp, without_id};

    fn joiner(packets: &[Vec<u8>]) -> Joiner {
        let mut joiner = Joiner::default();
        joiner.join(true, true);
        for packet in packets {
            joiner.push(Packet::from_bytes(BytesMut::from(&packet[..])));
        }
        joiner
    }

    /// What is written for these packets: of each super-packet its number of packets, and those that the kernel
    /// makes of it.
    fn written(packets: &[Vec<u8>]) -> Vec<(u32, Vec<Vec<u8>>)> {
        let mut written = Vec::new();
        joiner(packets).flush(|parts, segments| {
            let bytes: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
            let (vnet, packet) = bytes.split_first_chunk().unwrap();
            let mut packet = packet.to_vec();
            let mut made = Vec::new();
            split(
                VnetHeader::parse(vnet).unwrap(),
                &mut packet,
                |headers, payload| {
                    made.push([headers, payload].concat());
                },
            )
            .unwrap();
            written.push((segments, made));
        });
        written
    }

    fn segments(flow: Flow, count: u32, size: u32) -> Vec<Vec<u8>> {
        let segment = |number| {
            let payload = vec![number as u8; size as usize];
            tcp(flow, ACK, 1000 + number * size, &payload)
        };
        (0..count).map(segment).collect()
    }

    fn counts(packets: &[Vec<u8>]) -> Vec<u32> {
        written(packets).iter().map(|(count, _)| *count).collect()
    }

    #[test]
    fn a_train_of_tcp_is_one_super_packet_and_comes_apart_as_it_was() {
        for flow in [V4, V6] {
            let mut packets = segments(flow, 40, 1200);
            packets.push(tcp(flow, ACK | PSH, 1000 + 40 * 1200, &[9; 700]));
            let written = written(&packets);
            assert_eq!(written.len(), 1);
            assert_eq!(written[0].0, 41);
            let expected: Vec<_> = packets.iter().map(|packet| without_id(packet)).collect();
            let made: Vec<_> = written[0]
                .1
                .iter()
                .map(|packet| without_id(packet))
                .collect();
            assert_eq!(made, expected);
        }
    }

    #[test]
    fn datagrams_join_up_to_the_first_short_one() {
        let mut packets: Vec<_> = (0..10).map(|number| udp(V4, &[number; 100])).collect();
        packets.insert(5, udp(V4, &[5; 99]));
        assert_eq!(counts(&packets), [6, 5]);
        let packets: Vec<_> = (0..100).map(|number| udp(V6, &[number; 10])).collect();
        assert_eq!(counts(&packets), [64, 36]);
    }

    #[test]
    fn what_differs_in_more_than_its_place_is_not_joined() {
        let base = segments(V4, 2, 100);
        let changes: [(usize, u8); 4] = [(1, 4), (8, 63), (6, 0), (20 + 14, 9)];
        for (at, value) in changes {
            let mut second = base[1].clone();
            second[at] = value;
            // The checksum is right: it is the difference that counts.
            second[20 + 16..20 + 18].fill(0);
            let value = !fold(sum(&second[20..], pseudo(&second, TCP, second.len() - 20)));
            store(&mut second[20 + 16..], value);
            assert_eq!(counts(&[base[0].clone(), second]), [1, 1], "{at}");
        }
        let gap = [base[0].clone(), tcp(V4, ACK, 1000 + 101, &[0; 100])];
        assert_eq!(counts(&gap), [1, 1]);
        let fin = [base[0].clone(), tcp(V4, ACK | 1, 1100, &[0; 100])];
        assert_eq!(counts(&fin), [1, 1]);
    }

    #[test]
    fn a_damaged_packet_stays_damaged() {
        let mut packets = segments(V6, 3, 500);
        packets[1][100] ^= 1;
        let written = written(&packets);
        assert_eq!(written.len(), 3);
        assert_eq!(written[1].1[0], packets[1]);
    }

    #[test]
    fn flows_that_alternate_are_joined_each_for_itself() {
        let other = Flow { port: 40_001, ..V4 };
        let (a, b) = (segments(V4, 5, 100), segments(other, 5, 100));
        let packets: Vec<_> = a.into_iter().zip(b).flat_map(|(a, b)| [a, b]).collect();
        assert_eq!(counts(&packets), [5, 5]);
    }

    #[test]
    fn what_is_switched_off_is_not_joined() {
        let mut packets = segments(V4, 3, 100);
        packets.extend((0..3).map(|number| udp(V6, &[number; 100])));
        for (tcp, udp, items) in [(true, false, 4), (false, true, 4), (false, false, 6)] {
            let mut joiner = Joiner::default();
            joiner.join(tcp, udp);
            for packet in &packets {
                joiner.push(Packet::from_bytes(BytesMut::from(&packet[..])));
            }
            let mut count = 0;
            joiner.flush(|_, _| count += 1);
            assert_eq!(count, items, "{tcp} {udp}");
        }
    }

    /// Any traffic of some flows: trains of TCP and UDP with gaps, ends and damage.
    fn traffic() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let packet = (0u8..4, 0u16..3, 0u8..12, 0usize..400, any::<u8>());
        proptest::collection::vec(packet, 0..120).prop_map(|choices| {
            let mut sequences = [0u32; 12];
            let mut packets = Vec::new();
            for (kind, port, what, size, fill) in choices {
                let base = if kind % 2 == 0 { V4 } else { V6 };
                let flow = Flow {
                    port: 40_000 + port,
                    ..base
                };
                // Mostly of one size, so that there is something to join.
                let size = if what < 9 { 300 } else { size };
                let payload = vec![fill; size];
                let mut packet = if kind < 2 {
                    let at = &mut sequences[usize::from(port) + 3 * usize::from(kind)];
                    let flags = if what == 8 { ACK | PSH } else { ACK };
                    let gap = u32::from(what == 7);
                    let packet = tcp(flow, flags, at.wrapping_add(gap), &payload);
                    *at = at.wrapping_add(gap + size as u32);
                    packet
                } else {
                    udp(flow, &payload)
                };
                if what == 6 {
                    let last = packet.len() - 1;
                    packet[last] ^= 0x10;
                }
                packets.push(packet);
            }
            packets
        })
    }

    /// Version, protocol, and port: which flow of [`traffic`] it is.
    fn flow_of(packet: &[u8]) -> (u8, u8, u8) {
        match packet[0] >> 4 {
            4 => (4, packet[9], packet[21]),
            _ => (6, packet[6], packet[41]),
        }
    }

    proptest! {
        #[test]
        fn every_flow_arrives_whole_and_in_order(packets in traffic()) {
            let made: Vec<Vec<u8>> = written(&packets).into_iter().flat_map(|(_, made)| made).collect();
            prop_assert_eq!(made.len(), packets.len());
            let mut flows: Vec<_> = packets.iter().map(|packet| flow_of(packet)).collect();
            flows.sort_unstable();
            flows.dedup();
            for flow in flows {
                let of = |packets: &[Vec<u8>]| -> Vec<Vec<u8>> {
                    let packets = packets.iter().filter(|packet| flow_of(packet) == flow);
                    packets.map(|packet| without_id(packet)).collect()
                };
                prop_assert_eq!(of(&made), of(&packets));
            }
        }

        #[test]
        fn no_packet_makes_it_panic(packets in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..200), 0..20,
        )) {
            let whole = packets.iter().filter_map(|packet| {
                let mut packet = packet.clone();
                // Most random bytes are no IP at all.
                if let Some(first) = packet.first_mut() {
                    *first = if *first & 1 == 0 { 0x45 } else { 0x60 };
                }
                let len = ip_len(&packet)?;
                packet.truncate(len);
                Some(packet)
            });
            let whole: Vec<_> = whole.collect();
            let mut count = 0;
            joiner(&whole).flush(|_, segments| count += segments as usize);
            prop_assert_eq!(count, whole.len());
        }
    }
}
