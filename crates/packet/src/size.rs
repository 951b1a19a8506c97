//! How many packets, and how many bytes of them, a kernel buffer stands for.

use core::num::NonZeroU32;

use ebpf_abi::Count;

use crate::{
    Window,
    header::{Ipv4, Ipv6, Tcp, UDP_LEN, Version, protocol},
};

/// Segmentation state of a kernel buffer (`gso_size` and `gso_segs` of `__sk_buff`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Gso {
    /// Payload bytes of each packet but the last; 0 if the buffer is one packet.
    pub size: u32,
    /// Number of packets; 0 where the kernel has not counted them, as for buffers from a TUN.
    pub segments: u32,
}

/// Returns the packets that the buffer is on the wire of the overlay, and their IP bytes.
///
/// A buffer before segmentation (GSO) or after merging (GRO) has its headers once, the packets
/// have them each, so `bytes` exceeds the buffer's length. Exact for TCP and UDP over IP without
/// IPv6 extension headers; of other merged protocols the repeated transport headers are left out.
#[inline(always)]
pub fn count<W: Window + ?Sized>(packet: &W, gso: Gso) -> Count {
    let len = packet.len();
    let Some(size) = NonZeroU32::new(gso.size) else {
        return Count {
            packets: 1,
            bytes: len as u64,
        };
    };
    let headers = headers_len(packet);
    let packets = if gso.segments != 0 {
        gso.segments
    } else {
        // At least one packet; saturating, since both numbers come from packets.
        let payload = len.saturating_sub(headers);
        payload.saturating_sub(1) / size + 1
    } as u64;
    Count {
        packets,
        bytes: len as u64 + (packets - 1) * headers as u64,
    }
}

/// Bytes that every packet of the buffer repeats; 0 if they cannot be read.
#[inline(always)]
fn headers_len<W: Window + ?Sized>(packet: &W) -> u32 {
    let Some(version) = packet.at::<Version>(0) else {
        return 0;
    };
    match version.number() {
        4 => packet
            .at::<Ipv4>(0)
            .map_or(0, |ip| with_transport(packet, ip.header_len(), ip.protocol)),
        6 => packet
            .at::<Ipv6>(0)
            .map_or(0, |ip| with_transport(packet, Ipv6::LEN, ip.next_header)),
        _ => 0,
    }
}

#[inline(always)]
fn with_transport<W: Window + ?Sized>(packet: &W, ip_len: u32, number: u8) -> u32 {
    match number {
        protocol::TCP => {
            let tcp = packet.at::<Tcp>(ip_len as usize);
            ip_len + tcp.map_or(0, Tcp::header_len)
        }
        protocol::UDP => ip_len + UDP_LEN,
        _ => ip_len,
    }
}
