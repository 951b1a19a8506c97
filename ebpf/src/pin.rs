//! Pinning: what the agent relays into WireGuard over `lo` gets the source that the agent has chosen
//! for the peer.
#![expect(
    unsafe_code,
    reason = "direct packet access, and a constant that the loader sets"
)]

use aya_ebpf::{
    bindings::{BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::{classifier, map},
    maps::HashMap,
    programs::TcContext,
};
use ebpf_abi::{PinPorts, PinnedSource};
use packet::{Window as _, protocol};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::frame::Frame;

#[map]
static PIN_SOURCES: HashMap<[u8; 4], PinnedSource> = HashMap::with_max_entries(
    ebpf_abi::PIN_SOURCES.max_entries,
    ebpf_abi::PIN_SOURCES.flags,
);

/// Set by the loader. Its value here is one of its own, as for the other constants.
#[unsafe(no_mangle)]
static PIN: PinPorts = PinPorts {
    wireguard: 0x5049,
    relay: 0x4e50,
};

/// A whole UDP datagram as `lo` has it: Ethernet, IPv4 without options.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Datagram {
    ethernet: [u8; 12],
    ether_type: [u8; 2],
    version_ihl: u8,
    tos: u8,
    len_and_id: [u8; 4],
    fragment: [u8; 2],
    ttl: u8,
    protocol: u8,
    checksum: [u8; 2],
    src: [u8; 4],
    dst: [u8; 4],
    src_port: [u8; 2],
    dst_port: [u8; 2],
    udp_len: [u8; 2],
    udp_checksum: [u8; 2],
}

/// Offsets in a [`Datagram`].
const IP_CHECKSUM: usize = 14 + 10;
const SRC: usize = 14 + 12;
const SRC_PORT: usize = 14 + 20;
const UDP_CHECKSUM: usize = 14 + 26;

/// `BPF_F_MARK_MANGLED_0`: a UDP checksum of 0 means none, and is left alone.
const MARK_MANGLED_0: u64 = 1 << 5;

/// Ingress of `lo`.
#[classifier]
fn pin_source(ctx: TcContext) -> i32 {
    let Some((datagram, source)) = pinned(&ctx) else {
        return TC_ACT_UNSPEC;
    };
    match rewrite(&ctx, datagram, source) {
        Ok(()) => TC_ACT_UNSPEC,
        // Half rewritten it must not arrive. The kernel fails only if it has no memory.
        Err(_) => TC_ACT_SHOT,
    }
}

/// Source and port of a relayed packet, and what to put in their place.
#[inline(always)]
fn pinned(ctx: &TcContext) -> Option<(([u8; 4], [u8; 2]), PinnedSource)> {
    // SAFETY: a constant of the object; volatile, or the compiler would take its value for granted.
    let ports = unsafe { (&raw const PIN).read_volatile() };
    let frame = Frame::new(ctx);
    let datagram: &Datagram = frame.at(0)?;
    let [a, b, ..] = datagram.src;
    let is_relayed = datagram.ether_type == [0x08, 0x00]
        && datagram.version_ihl == 0x45
        && datagram.protocol == protocol::UDP
        && datagram.fragment[0] & 0x3f == 0
        && datagram.fragment[1] == 0
        && a == 127
        && b & 0xc0 == 64
        && datagram.dst == [127, 0, 0, 1]
        && u16::from_be_bytes(datagram.src_port) == ports.relay
        && u16::from_be_bytes(datagram.dst_port) == ports.wireguard;
    if !is_relayed {
        return None;
    }
    // SAFETY: copied at once; only the loader writes to it, in one piece of 8 bytes.
    let source = unsafe { PIN_SOURCES.get(&datagram.src) }.copied()?;
    Some(((datagram.src, datagram.src_port), source))
}

#[inline(always)]
fn rewrite(
    ctx: &TcContext,
    (src, src_port): ([u8; 4], [u8; 2]),
    source: PinnedSource,
) -> Result<(), i64> {
    let address = |bytes: [u8; 4]| u64::from(u32::from_ne_bytes(bytes));
    let port = |bytes: [u8; 2]| u64::from(u16::from_ne_bytes(bytes));
    let (from, to) = (address(src), address(source.address));
    let pseudo_header = 4 | u64::from(BPF_F_PSEUDO_HDR) | MARK_MANGLED_0;
    ctx.l4_csum_replace(UDP_CHECKSUM, from, to, pseudo_header)?;
    let (old, new) = (port(src_port), port(source.port));
    ctx.l4_csum_replace(UDP_CHECKSUM, old, new, 2 | MARK_MANGLED_0)?;
    ctx.l3_csum_replace(IP_CHECKSUM, from, to, 4)?;
    ctx.store(SRC, &source.address, 0)?;
    ctx.store(SRC_PORT, &source.port, 0)
}
