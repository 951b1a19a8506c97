//! The headers of a packet, as far as forwarding needs them.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_fib_lookup},
    maps::HashMap,
    programs::TcContext,
};
use ebpf_abi::{Forward, ForwardKey, Origin};
use packet::protocol;

use super::{FORWARD_V4, FORWARD_V6};

/// IPv6 and TCP without options: no more is read.
const HEADERS: u32 = 40 + 20;
const TCP_LEN: u32 = 20;
const UDP_LEN: u32 = 8;
/// Offset of data offset and flags in a TCP header.
const TCP_FLAGS: u32 = 12;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
/// ICMP and ICMPv6 types, with code 0.
const REQUEST: u32 = 8;
const REPLY: u32 = 0;
const REQUEST_V6: u32 = 128;
const REPLY_V6: u32 = 129;

/// An address family.
pub(super) trait Family: Copy + Eq + Sized + 'static {
    /// Bytes of its header; packets with more take the stack.
    const IP_LEN: u32;
    /// `AF_INET` or `AF_INET6`.
    const FAMILY: u8;
    /// The header that its checksum over ports and payload takes in besides ICMP's own.
    const IS_V4: bool;

    /// The forward table.
    fn table() -> &'static HashMap<ForwardKey<Self>, Forward<Self>>;
    /// Reads a whole packet without options or extension headers, of a kind that is forwarded.
    fn read(ctx: &TcContext, base: u32, origin: Origin) -> Option<Head<Self>>;
    /// What one address for the other makes of a checksum, before folding.
    fn difference(&self, new: &Self) -> u64;
    /// Puts addresses and class of traffic into a question about routes.
    fn ask(query: &mut bpf_fib_lookup, head: &Head<Self>, dst: &Self);
}

/// What is read of a packet.
pub(super) struct Head<A> {
    pub(super) key: ForwardKey<A>,
    /// TTL or hop limit.
    pub(super) hop_limit: u8,
    /// The first word: version, class of traffic, and length or flow label.
    pub(super) first: u32,
    /// Checksum of the IPv4 header, as it lies in memory.
    pub(super) checksum: u16,
    /// TCP flags; 0 for others.
    flags: u8,
    /// Bytes of the transport header.
    pub(super) transport: u32,
    /// Bytes of the IP packet; of a buffer that stands for several, of one of them.
    pub(super) size: u32,
}

impl<A: Family> Head<A> {
    #[inline(always)]
    pub(super) fn read(ctx: &TcContext, base: u32, origin: Origin) -> Option<Self> {
        A::read(ctx, base, origin)
    }

    /// TCP that asks for a connection or grants one.
    #[inline(always)]
    pub(super) fn opens(&self) -> bool {
        self.flags & SYN != 0
    }

    /// TCP that changes the state of the connection.
    #[inline(always)]
    pub(super) fn is_control(&self) -> bool {
        self.flags & (SYN | FIN | RST) != 0
    }
}

/// Transport header: ports, TCP flags, length.
struct Transport {
    src_port: [u8; 2],
    dst_port: [u8; 2],
    flags: u8,
    len: u32,
}

impl Transport {
    /// `words` are the header's first two, in little endian.
    #[inline(always)]
    fn read(ctx: &TcContext, at: u32, number: u8, words: [u32; 2]) -> Option<Self> {
        let (src_port, dst_port) = (words[0] as u16, (words[0] >> 16) as u16);
        let id = words[1] as u16;
        let (src_port, dst_port, flags, len) = match number {
            protocol::TCP => {
                let [offset, flags] = bytes(ctx, at + TCP_FLAGS)?;
                let len = (offset >> 4) as u32 * 4;
                (src_port, dst_port, flags, len)
            }
            protocol::UDP => (src_port, dst_port, 0, UDP_LEN),
            protocol::ICMP => match words[0] & 0xffff {
                REQUEST => (id, 0, 0, UDP_LEN),
                REPLY => (0, id, 0, UDP_LEN),
                _ => return None,
            },
            protocol::ICMPV6 => match words[0] & 0xffff {
                REQUEST_V6 => (id, 0, 0, UDP_LEN),
                REPLY_V6 => (0, id, 0, UDP_LEN),
                _ => return None,
            },
            _ => return None,
        };
        let least = if number == protocol::TCP {
            TCP_LEN
        } else {
            UDP_LEN
        };
        (len >= least).then_some(Self {
            src_port: src_port.to_le_bytes(),
            dst_port: dst_port.to_le_bytes(),
            flags,
            len,
        })
    }
}

/// Bytes of one packet, if `stated`, what its header says, is all there; and of a buffer that stands
/// for several of one of them.
#[inline(always)]
fn size(ctx: &TcContext, base: u32, headers: u32, stated: u32) -> Option<u32> {
    let skb = skb(ctx);
    if skb.gso_size != 0 {
        return Some(headers + skb.gso_size);
    }
    (headers <= stated && base + stated <= skb.len).then_some(stated)
}

impl Family for [u8; 4] {
    const IP_LEN: u32 = 20;
    const FAMILY: u8 = 2;
    const IS_V4: bool = true;

    #[inline(always)]
    fn table() -> &'static HashMap<ForwardKey<Self>, Forward<Self>> {
        &FORWARD_V4
    }

    #[inline(always)]
    fn read(ctx: &TcContext, base: u32, origin: Origin) -> Option<Head<Self>> {
        let words: [u32; 7] = words(ctx, base)?;
        let [first, fragment, third, src, dst, ..] = words.map(u32::from_le);
        let is_plain = first & 0xff == 0x45;
        let is_whole = fragment & 0xff3f_0000 == 0;
        if !is_plain || !is_whole {
            return None;
        }
        let number = (third >> 8) as u8;
        let at = base + Self::IP_LEN;
        let transport = Transport::read(ctx, at, number, [words[5], words[6]])?;
        let stated = u32::from(((first >> 16) as u16).swap_bytes());
        Some(Head {
            key: ForwardKey {
                src: src.to_le_bytes(),
                dst: dst.to_le_bytes(),
                src_port: transport.src_port,
                dst_port: transport.dst_port,
                protocol: number,
                origin: origin as u8,
                padding: [0; 2],
            },
            hop_limit: third as u8,
            first,
            checksum: (third >> 16) as u16,
            flags: transport.flags,
            transport: transport.len,
            size: size(ctx, base, Self::IP_LEN + transport.len, stated)?,
        })
    }

    #[inline(always)]
    fn difference(&self, new: &Self) -> u64 {
        !u32::from_ne_bytes(*self) as u64 + u32::from_ne_bytes(*new) as u64
    }

    #[inline(always)]
    fn ask(query: &mut bpf_fib_lookup, head: &Head<Self>, dst: &Self) {
        query.__bindgen_anon_2.tos = (head.first >> 8) as u8;
        query.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(head.key.src);
        query.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(*dst);
    }
}

impl Family for [u8; 16] {
    const IP_LEN: u32 = 40;
    const FAMILY: u8 = 10;
    const IS_V4: bool = false;

    #[inline(always)]
    fn table() -> &'static HashMap<ForwardKey<Self>, Forward<Self>> {
        &FORWARD_V6
    }

    #[inline(always)]
    fn read(ctx: &TcContext, base: u32, origin: Origin) -> Option<Head<Self>> {
        let words: [u32; 12] = words(ctx, base)?;
        let [first, second, a, b, c, d, e, f, g, h, ..] = words.map(u32::from_le);
        if first & 0xf0 != 0x60 {
            return None;
        }
        let number = (second >> 16) as u8;
        let at = base + Self::IP_LEN;
        let transport = Transport::read(ctx, at, number, [words[10], words[11]])?;
        let stated = Self::IP_LEN + u32::from((second as u16).swap_bytes());
        Some(Head {
            key: ForwardKey {
                src: address([a, b, c, d]),
                dst: address([e, f, g, h]),
                src_port: transport.src_port,
                dst_port: transport.dst_port,
                protocol: number,
                origin: origin as u8,
                padding: [0; 2],
            },
            hop_limit: (second >> 24) as u8,
            first,
            checksum: 0,
            flags: transport.flags,
            transport: transport.len,
            size: size(ctx, base, Self::IP_LEN + transport.len, stated)?,
        })
    }

    #[inline(always)]
    fn difference(&self, new: &Self) -> u64 {
        let mut sum = 0;
        for (old, new) in halves(self).into_iter().zip(halves(new)) {
            sum += !old as u64 + new as u64;
        }
        sum
    }

    #[inline(always)]
    fn ask(query: &mut bpf_fib_lookup, head: &Head<Self>, dst: &Self) {
        query.__bindgen_anon_2.flowinfo = head.first.to_le() & 0x0fff_ffff_u32.to_be();
        query.__bindgen_anon_3.ipv6_src = halves(&head.key.src);
        query.__bindgen_anon_4.ipv6_dst = halves(dst);
    }
}

#[inline(always)]
fn address(words: [u32; 4]) -> [u8; 16] {
    zerocopy::transmute!(words.map(u32::to_le))
}

/// The words of an address as they lie in memory.
#[inline(always)]
fn halves(address: &[u8; 16]) -> [u32; 4] {
    zerocopy::transmute!(*address)
}

/// IP version of a packet that begins with its IP header; 0 for none.
#[inline(always)]
pub(super) fn version(ctx: &TcContext) -> u8 {
    // Two bytes: the verifier takes no comparison with the end for proof that there is one.
    bytes::<2>(ctx, 0).map_or(0, |[first, _]| first >> 4)
}

/// Has the headers where they can be read, behind `base` bytes of a link layer. Drivers and tunnels put
/// them there, as a rule.
#[inline(always)]
pub(super) fn reach(ctx: &TcContext, base: u32) {
    let wanted = ctx.len().min(base + HEADERS);
    if ctx.data() + wanted as usize > ctx.data_end() {
        // If not, they are found unreadable, and the packet takes the stack.
        let _ = ctx.pull_data(wanted);
    }
}

#[inline(always)]
pub(super) fn skb(ctx: &TcContext) -> &__sk_buff {
    // SAFETY: the kernel passes a valid context, which lives as long as the program runs.
    unsafe { &*ctx.skb.skb }
}

#[inline(always)]
fn bytes<const N: usize>(ctx: &TcContext, at: u32) -> Option<[u8; N]> {
    let start = ctx.data() + at as usize;
    if start + N > ctx.data_end() {
        return None;
    }
    // SAFETY: in bounds by the check above.
    Some(unsafe { *(start as *const [u8; N]) })
}

/// Words as they lie in memory.
#[inline(always)]
fn words<const N: usize>(ctx: &TcContext, at: u32) -> Option<[u32; N]> {
    let start = ctx.data() + at as usize;
    if start + size_of::<[u32; N]>() > ctx.data_end() {
        return None;
    }
    // SAFETY: in bounds by the check above. The kernel takes word loads from packets on machines that
    // need no alignment; the verifier refuses the program on others.
    Some(unsafe { *(start as *const [u32; N]) })
}
