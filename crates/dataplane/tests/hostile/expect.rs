//! What the forwarding programs have to do with a packet, said once more and in the simplest way.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use anyhow::{Result, ensure};
use dataplane::{Gso, Offload, OffloadKey, Origin, STACK_INTERVAL};
use packet::{
    SECOND,
    build::{FIN, RST, SYN, checksums_hold},
};

/// MTU of the way to the LAN.
const LAN_MTU: usize = 1500;

/// What has to become of a packet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Expected {
    /// It goes on as it is.
    Untouched,
    /// It goes on; the options of its TCP header may have been changed.
    Clamped,
    /// It leaves, rewritten in this way.
    Leaves(Box<Offload>),
    /// A buffer that says it stands for several and has not even the headers of one: no kernel makes
    /// such; leaves or is dropped.
    Nonsense,
}

/// The forward table, and what the programs remember of it.
#[derive(Default)]
pub(crate) struct Table {
    entries: BTreeMap<OffloadKey, Entry>,
}

struct Entry {
    offload: Offload,
    stacked: u64,
    ended: bool,
}

impl Table {
    /// As [`dataplane::Trial::offload`].
    pub(crate) fn insert(&mut self, offload: Offload, stacked: u64) {
        let entry = Entry {
            offload,
            stacked,
            ended: false,
        };
        self.entries.insert(offload.key, entry);
    }

    /// For a packet that begins with its IP header.
    pub(crate) fn forward(
        &mut self,
        packet: &[u8],
        gso: Gso,
        origin: Origin,
        now: u64,
    ) -> Expected {
        let Some(head) = Head::read(packet, gso, origin) else {
            return Expected::Untouched;
        };
        let stays = if head.flags & SYN != 0 && origin == Origin::Overlay {
            Expected::Clamped
        } else {
            Expected::Untouched
        };
        let Some(entry) = self.entries.get_mut(&head.key) else {
            return stays;
        };
        if head.flags & (SYN | FIN | RST) != 0 {
            self.end(&head.key);
            return stays;
        }
        if entry.ended || head.hop_limit <= 1 {
            return stays;
        }
        let since = now.saturating_sub(entry.stacked);
        if since >= STACK_INTERVAL {
            if since >= entry.offload.idle.as_secs() * SECOND {
                self.end(&head.key);
            } else {
                entry.stacked = now;
            }
            return stays;
        }
        let mtu = match origin {
            Origin::Overlay => LAN_MTU,
            Origin::Lan => entry.offload.mtu.into(),
        };
        if head.size > mtu {
            return stays;
        }
        if head.headers > packet.len() {
            return Expected::Nonsense;
        }
        Expected::Leaves(Box::new(entry.offload))
    }

    fn end(&mut self, key: &OffloadKey) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.ended = true;
        let back = OffloadKey {
            origin: match key.origin {
                Origin::Overlay => Origin::Lan,
                Origin::Lan => Origin::Overlay,
            },
            protocol: key.protocol,
            src: entry.offload.dst,
            dst: entry.offload.src,
        };
        if let Some(entry) = self.entries.get_mut(&back) {
            entry.ended = true;
        }
    }
}

/// Whether the packet is a TCP request or grant whose MSS may be lowered.
pub(crate) fn may_be_clamped(packet: &[u8], gso: Gso) -> bool {
    Head::read(packet, gso, Origin::Overlay).is_some_and(|head| head.flags & SYN != 0)
}

/// What a packet is to the programs.
struct Head {
    key: OffloadKey,
    hop_limit: u8,
    flags: u8,
    /// IP header and transport header.
    headers: usize,
    /// Of the packet, or of one of those that the buffer stands for.
    size: usize,
}

impl Head {
    /// `None` for what takes the stack without a look into the table.
    fn read(packet: &[u8], gso: Gso, origin: Origin) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
        let (protocol, hop_limit, at, stated, src, dst): (_, _, _, _, IpAddr, IpAddr);
        if packet.first()? >> 4 == 4 {
            if packet.len() < 28 || packet[0] != 0x45 || word(6)? & 0x3fff != 0 {
                return None;
            }
            let address = |at: usize| Some(Ipv4Addr::from(*packet[at..].first_chunk()?));
            (protocol, hop_limit, at) = (packet[9], packet[8], 20);
            stated = usize::from(word(2)?);
            (src, dst) = (address(12)?.into(), address(16)?.into());
        } else {
            if packet.len() < 48 || packet[0] >> 4 != 6 {
                return None;
            }
            let address = |at: usize| Some(Ipv6Addr::from(*packet[at..].first_chunk()?));
            (protocol, hop_limit, at) = (packet[6], packet[7], 40);
            stated = 40 + usize::from(word(4)?);
            (src, dst) = (address(8)?.into(), address(24)?.into());
        }
        let (mut ports, mut flags, mut transport) = ((word(at)?, word(at + 2)?), 0, 8);
        match protocol {
            6 => {
                transport = usize::from(packet.get(at + 12)? >> 4) * 4;
                flags = *packet.get(at + 13)?;
                if transport < 20 {
                    return None;
                }
            }
            17 => {}
            1 | 58 => {
                let request = if protocol == 1 { 0x0800 } else { 0x8000 };
                let reply = if protocol == 1 { 0x0000 } else { 0x8100 };
                let id = word(at + 4)?;
                ports = match word(at)? {
                    kind if kind == request => (id, 0),
                    kind if kind == reply => (0, id),
                    _ => return None,
                };
            }
            _ => return None,
        }
        let headers = at + transport;
        let size = if gso.size != 0 {
            headers + gso.size as usize
        } else if headers <= stated && stated <= packet.len() {
            stated
        } else {
            return None;
        };
        Some(Self {
            key: OffloadKey {
                origin,
                protocol,
                src: SocketAddr::new(src, ports.0),
                dst: SocketAddr::new(dst, ports.1),
            },
            hop_limit,
            flags,
            headers,
            size,
        })
    }
}

/// Checks that `out` is the packet as it has to leave: addresses, ports and hop limit of the entry,
/// checksums that hold if they held before, and nothing else.
pub(crate) fn check_leaves(packet: &[u8], gso: Gso, offload: &Offload, out: &[u8]) -> Result<()> {
    let is_v4 = packet[0] >> 4 == 4;
    let (header, stated) = if is_v4 {
        (20, u16::from_be_bytes([packet[2], packet[3]]).into())
    } else {
        (
            40,
            40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])),
        )
    };
    let whole = if gso.size == 0 { stated } else { packet.len() };
    let packet = &packet[..whole];
    let mut expected = packet.to_vec();
    match (offload.src.ip(), offload.dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            expected[8] -= 1;
            expected[12..16].copy_from_slice(&src.octets());
            expected[16..20].copy_from_slice(&dst.octets());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            expected[7] -= 1;
            expected[8..24].copy_from_slice(&src.octets());
            expected[24..40].copy_from_slice(&dst.octets());
        }
        addresses => anyhow::bail!("{addresses:?}"),
    }
    let (src, dst) = (offload.src.port(), offload.dst.port());
    let sum_at = match offload.key.protocol {
        1 | 58 => {
            expected[header + 4..header + 6].copy_from_slice(&(src | dst).to_be_bytes());
            2
        }
        protocol => {
            expected[header..header + 2].copy_from_slice(&src.to_be_bytes());
            expected[header + 2..header + 4].copy_from_slice(&dst.to_be_bytes());
            if protocol == 6 { 16 } else { 6 }
        }
    };
    ensure!(out.len() == expected.len(), "{} bytes", out.len());
    let mut blanked = out.to_vec();
    for bytes in [&mut expected, &mut blanked] {
        bytes[header + sum_at..][..2].fill(0);
        if is_v4 {
            bytes[10..12].fill(0);
        }
    }
    ensure!(blanked == expected, "instead of\n{expected:02x?}");
    ensure!(
        checksums_hold(out) || !checksums_hold(packet),
        "the checksums do not hold any more"
    );
    Ok(())
}

/// Checks that nothing but TCP options and checksum changed, and the checksum holds if it did before.
pub(crate) fn check_clamped(packet: &[u8], out: &[u8]) -> Result<()> {
    let header = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let transport = usize::from(packet[header + 12] >> 4) * 4;
    ensure!(out.len() == packet.len(), "{} bytes", out.len());
    if packet.len() < header + 20 {
        ensure!(out == packet, "there is nothing to clamp");
        return Ok(());
    }
    let (mut before, mut after) = (packet.to_vec(), out.to_vec());
    for bytes in [&mut before, &mut after] {
        let end = (header + transport).min(bytes.len());
        bytes[header + 16..header + 18].fill(0);
        bytes[header + 20..end].fill(0);
    }
    ensure!(before == after, "more than options changed");
    ensure!(
        checksums_hold(out) || !checksums_hold(packet),
        "the checksum does not hold any more"
    );
    Ok(())
}
