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
const UDP_SEGMENTS: u32 = 64;
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
    /// Whether datagrams are joined too; TCP always is.
    udp: bool,
}

impl Joiner {
    /// Joins TCP, and with `udp` datagrams.
    pub(crate) fn new(udp: bool) -> Joiner {
        Joiner {
            udp,
            ..Joiner::default()
        }
    }

    /// Takes a packet that begins with its IP header and ends where that says.
    pub(crate) fn push(&mut self, packet: Packet) {
        let layout = layout(&packet, self.udp);
        let index = self.packets.len() as u32;
        if layout.joinable && self.join(&layout, &packet, index) {
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
    fn join(&mut self, layout: &Layout, packet: &[u8], index: u32) -> bool {
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

fn layout(packet: &[u8], udp: bool) -> Layout {
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
            TCP => packet[l4 + 13] & !PSH == ACK && headers >= l4 + 20,
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
