//! Addresses, ports and hop limit of a packet made those of the way out.
//!
//! Everything goes through the kernel's helpers: they know of checksums that are still to be computed
//! (`CHECKSUM_PARTIAL`), and of buffers that are shared. Writing directly would have the kernel copy
//! shared headers of every packet that the program sees, hit or not.

use core::ffi::c_void;

use aya_ebpf::{helpers::generated, programs::TcContext};
use ebpf_abi::Forward;
use packet::protocol;

use super::{
    Family, Head,
    head::{self},
};

/// `BPF_F_PSEUDO_HDR`: the sum also covers what is not in the transport's part of the packet.
const PSEUDO_HEADER: u64 = 0x10;
/// `BPF_F_MARK_MANGLED_0`: a sum of 0 means none (UDP): it stays, and none becomes 0.
const ZERO_IS_NONE: u64 = 0x20;

/// Offsets of the checksum in its header, of the identifier in an echo, of TTL and of hop limit.
const TCP_CHECKSUM: u32 = 16;
const UDP_CHECKSUM: u32 = 6;
const ICMP_CHECKSUM: u32 = 2;
const ECHO_ID: u32 = 4;
const TTL: u32 = 8;
const HOP_LIMIT: u32 = 7;

/// Rewrites the packet behind `base` bytes of a link layer. `None` if the kernel did not do it all.
#[inline(always)]
pub(super) fn rewrite<A: Family>(
    ctx: &TcContext,
    base: u32,
    head: &Head<A>,
    forward: &Forward<A>,
) -> Option<()> {
    let skb = head::skb(ctx);
    if skb.gso_size == 0 && base + head.size < skb.len {
        // What Ethernet filled the frame up with.
        // SAFETY: a kernel helper; the packet is not read in place after it.
        done(unsafe { generated::bpf_skb_change_tail(ctx.skb.skb, base + head.size, 0) })?;
    }
    let number = head.key.protocol;
    let at = base + A::IP_LEN;
    let (checksum, zero) = match number {
        protocol::TCP => (at + TCP_CHECKSUM, 0),
        protocol::UDP => (at + UDP_CHECKSUM, ZERO_IS_NONE),
        _ => (at + ICMP_CHECKSUM, 0),
    };
    let moved = head.key.src != forward.src || head.key.dst != forward.dst;
    let difference = head.key.src.difference(&forward.src) + head.key.dst.difference(&forward.dst);
    if moved && number != protocol::ICMP {
        let flags = PSEUDO_HEADER | zero;
        sum(ctx, checksum, 0, fold(difference).into(), flags)?;
    }
    if head.key.src_port != forward.src_port || head.key.dst_port != forward.dst_port {
        let (old, new) = (&head.key, forward);
        if number == protocol::TCP || number == protocol::UDP {
            let old = both(old.src_port, old.dst_port);
            let new = both(new.src_port, new.dst_port);
            sum(ctx, checksum, old.into(), new.into(), 4 | zero)?;
            store(ctx, at, &new.to_ne_bytes())?;
        } else {
            // One of the two is the identifier, the other is 0.
            let old = both(old.src_port, [0; 2]) | both(old.dst_port, [0; 2]);
            let new = both(new.src_port, [0; 2]) | both(new.dst_port, [0; 2]);
            let (old, new) = (old as u16, new as u16);
            sum(ctx, checksum, old.into(), new.into(), 2)?;
            store(ctx, at + ECHO_ID, &new.to_le_bytes())?;
        }
    }
    if A::IS_V4 {
        store(
            ctx,
            base + TTL,
            &Ipv4::<A>::after(head, forward, difference),
        )
    } else if moved {
        let header = Ipv6 {
            hop_limit: head.hop_limit - 1,
            src: forward.src,
            dst: forward.dst,
        };
        store(ctx, base + HOP_LIMIT, &header)
    } else {
        store(ctx, base + HOP_LIMIT, &[head.hop_limit - 1])
    }
}

/// Prepends `len` zeros.
#[inline(always)]
pub(super) fn push(ctx: &TcContext, len: u32) -> Option<()> {
    // SAFETY: a kernel helper; the packet is not read in place after it.
    done(unsafe { generated::bpf_skb_change_head(ctx.skb.skb, len, 0) })
}

/// The end of an IPv4 header, from the TTL on.
#[repr(C, packed)]
struct Ipv4<A> {
    ttl: u8,
    protocol: u8,
    checksum: u16,
    src: A,
    dst: A,
}

impl<A: Family> Ipv4<A> {
    /// The header with its checksum brought up to date (RFC 1624).
    #[inline(always)]
    fn after(head: &Head<A>, forward: &Forward<A>, difference: u64) -> Self {
        let ttl = head.hop_limit - 1;
        let half = |ttl| u16::from_ne_bytes([ttl, head.key.protocol]);
        let sum = !head.checksum as u64
            + fold(difference) as u64
            + !half(head.hop_limit) as u64
            + half(ttl) as u64;
        let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        Self {
            ttl,
            protocol: head.key.protocol,
            checksum: !(sum as u16),
            src: forward.src,
            dst: forward.dst,
        }
    }
}

/// The end of an IPv6 header, from the hop limit on.
#[repr(C, packed)]
struct Ipv6<A> {
    hop_limit: u8,
    src: A,
    dst: A,
}

#[inline(always)]
fn both(src: [u8; 2], dst: [u8; 2]) -> u32 {
    u32::from_ne_bytes([src[0], src[1], dst[0], dst[1]])
}

/// One's complement of 32 bits.
#[inline(always)]
fn fold(sum: u64) -> u32 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}

/// Brings the transport's checksum up to date.
#[inline(always)]
pub(super) fn sum(ctx: &TcContext, at: u32, old: u64, new: u64, flags: u64) -> Option<()> {
    // SAFETY: a kernel helper; the packet is not read in place after it.
    done(unsafe { generated::bpf_l4_csum_replace(ctx.skb.skb, at, old, new, flags) })
}

/// Writes the bytes of `value`.
#[inline(always)]
pub(super) fn store<T>(ctx: &TcContext, at: u32, value: &T) -> Option<()> {
    let (from, len) = (&raw const *value, size_of::<T>() as u32);
    // SAFETY: as in `sum`; the kernel reads as many bytes as the value has.
    done(unsafe { generated::bpf_skb_store_bytes(ctx.skb.skb, at, from.cast::<c_void>(), len, 0) })
}

#[inline(always)]
fn done(result: i64) -> Option<()> {
    (result == 0).then_some(())
}
