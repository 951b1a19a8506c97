//! Packets of known flows between the overlay and other devices, past the network stack.
//!
//! ```text
//!  peers ─► overlay_in ─► forward_in ─ hit: rewrite, fib lookup ─► bpf_redirect_neigh ─► LAN
//!                              └ else ─► stack: conntrack, NAT, the host's firewall
//!  peers ◄─ overlay_out ◄─ bpf_redirect ◄─ hit: rewrite ─ nic_in ◄─ LAN
//! ```
//!
//! The table says what conntrack decided for the flow; the stack keeps all that only it can do. A
//! packet that takes it is not touched here.
#![expect(
    unsafe_code,
    reason = "kernel helpers; values of hash tables are shared with other CPUs"
)]

mod head;
mod mss;
mod rewrite;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_fib_lookup, bpf_redir_neigh},
    helpers::generated,
    macros::{classifier, map},
    maps::{Array, HashMap, PerCpuArray, ProgramArray},
    programs::TcContext,
};
use ebpf_abi::{
    Count, Direction, FORWARD_ENDED, Forward, ForwardKey, Forwarded, Nanos, Origin, STACK_INTERVAL,
    forwarded_slot, route_slot,
};
use packet::SECOND;

use crate::tables;
use head::{Family, Head};

#[map]
static FORWARDERS: ProgramArray = ProgramArray::with_max_entries(2, 0);
#[map]
static OVERLAY_MTU: Array<u32> = Array::with_max_entries(1, 0);
#[map]
static FORWARDED: PerCpuArray<Count> =
    PerCpuArray::with_max_entries(ebpf_abi::FORWARDED.max_entries, ebpf_abi::FORWARDED.flags);
#[map]
static ROUTE_COUNTS: PerCpuArray<Count> = PerCpuArray::with_max_entries(
    ebpf_abi::ROUTE_COUNTS.max_entries,
    ebpf_abi::ROUTE_COUNTS.flags,
);
#[map]
static FORWARD_V4: HashMap<ForwardKey<[u8; 4]>, Forward<[u8; 4]>> =
    HashMap::with_max_entries(ebpf_abi::FORWARD_V4.max_entries, ebpf_abi::FORWARD_V4.flags);
#[map]
static FORWARD_V6: HashMap<ForwardKey<[u8; 16]>, Forward<[u8; 16]>> =
    HashMap::with_max_entries(ebpf_abi::FORWARD_V6.max_entries, ebpf_abi::FORWARD_V6.flags);

/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;
/// `PACKET_HOST` in `linux/if_packet.h`: addressed to this host on its link.
const PACKET_HOST: u32 = 0;
/// `ETH_P_IP` and `ETH_P_IPV6` in `linux/if_ether.h`.
const IPV4: u32 = 0x0800;
const IPV6: u32 = 0x86dd;
/// `BPF_FIB_LKUP_RET_*` in `linux/bpf.h`: found, with and without the neighbour's link address (which
/// the redirection asks for then); found, but the packet is too large.
const FOUND: i64 = 0;
const NO_NEIGHBOUR: i64 = 7;
const TOO_LARGE: i64 = 8;

/// Goes on with the program for this direction, if the node forwards. Only if not it returns.
#[inline(always)]
pub(crate) fn go_on(ctx: &TcContext, direction: Direction) {
    // SAFETY: the caller has nothing to drop; the program gets the packet as it is.
    unsafe { FORWARDERS.tail_call(ctx, direction as u32) }
}

/// A packet from a peer that may pass.
#[classifier]
fn forward_in(ctx: TcContext) -> i32 {
    head::reach(&ctx, 0);
    match head::version(&ctx) {
        4 => from_overlay::<[u8; 4]>(&ctx),
        6 => from_overlay::<[u8; 16]>(&ctx),
        _ => TC_ACT_UNSPEC,
    }
}

/// A packet for a peer that may pass.
#[classifier]
fn forward_out(ctx: TcContext) -> i32 {
    head::reach(&ctx, 0);
    match head::version(&ctx) {
        4 => mss::clamp_request::<[u8; 4]>(&ctx),
        6 => mss::clamp_request::<[u8; 16]>(&ctx),
        _ => {}
    }
    TC_ACT_UNSPEC
}

/// Ingress of an Ethernet device.
#[classifier]
fn nic_in(ctx: TcContext) -> i32 {
    let skb = head::skb(&ctx);
    // A frame of a VLAN belongs to another device, one for another host to nobody.
    if skb.vlan_present != 0 || skb.pkt_type != PACKET_HOST {
        return TC_ACT_UNSPEC;
    }
    match u16::from_be(skb.protocol as u16).into() {
        IPV4 => from_lan::<[u8; 4]>(&ctx, ETHERNET),
        IPV6 => from_lan::<[u8; 16]>(&ctx, ETHERNET),
        _ => TC_ACT_UNSPEC,
    }
}

/// Ingress of a device without a link layer.
#[classifier]
fn nic_in_ip(ctx: TcContext) -> i32 {
    head::reach(&ctx, 0);
    match head::version(&ctx) {
        4 => from_lan::<[u8; 4]>(&ctx, 0),
        6 => from_lan::<[u8; 16]>(&ctx, 0),
        _ => TC_ACT_UNSPEC,
    }
}

#[inline(always)]
fn from_overlay<A: Family>(ctx: &TcContext) -> i32 {
    let Some(head) = Head::<A>::read(ctx, 0, Origin::Overlay) else {
        return TC_ACT_UNSPEC;
    };
    if head.opens() {
        mss::clamp(ctx, A::IP_LEN, head.transport);
    }
    let Some(known) = Known::find(&head) else {
        return TC_ACT_UNSPEC;
    };
    let way = known
        .may_pass(&head, Origin::Overlay)
        .and_then(|()| way(ctx, &head, &known.forward));
    match way {
        Err(outcome) => {
            known.count(ctx, 0, &head, Origin::Overlay, outcome);
            TC_ACT_UNSPEC
        }
        Ok(way) => {
            known.count(ctx, 0, &head, Origin::Overlay, Forwarded::Past);
            let rewritten = rewrite::rewrite(ctx, 0, &head, &known.forward);
            // The redirection wants a link layer's header, and takes it off again.
            if rewritten.is_none() || rewrite::push(ctx, ETHERNET).is_none() {
                return failed(&head, Origin::Overlay);
            }
            way.take()
        }
    }
}

#[inline(always)]
fn from_lan<A: Family>(ctx: &TcContext, base: u32) -> i32 {
    head::reach(ctx, base);
    let Some(head) = Head::<A>::read(ctx, base, Origin::Lan) else {
        return TC_ACT_UNSPEC;
    };
    let Some(known) = Known::find(&head) else {
        return TC_ACT_UNSPEC;
    };
    if let Err(outcome) = known.may_pass(&head, Origin::Lan) {
        known.count(ctx, base, &head, Origin::Lan, outcome);
        return TC_ACT_UNSPEC;
    }
    known.count(ctx, base, &head, Origin::Lan, Forwarded::Past);
    if rewrite::rewrite(ctx, base, &head, &known.forward).is_none() {
        return failed(&head, Origin::Lan);
    }
    // SAFETY: a kernel helper; it takes the link layer's header off.
    unsafe { generated::bpf_redirect(known.forward.ifindex, 0) as i32 }
}

/// An entry of the table.
struct Known<A: Family> {
    entry: *mut Forward<A>,
    /// As it was when the packet came.
    forward: Forward<A>,
}

impl<A: Family> Known<A> {
    #[inline(always)]
    fn find(head: &Head<A>) -> Option<Self> {
        let entry = A::table().get_ptr_mut(&head.key)?;
        // SAFETY: the map returned the pointer, which is valid until the program ends. The kernel may
        // give a removed entry's memory to another flow while it is read here; then one packet goes
        // astray, as one does that is under way while a route changes.
        let forward = unsafe { entry.read_volatile() };
        Some(Self { entry, forward })
    }

    /// Whether the packet may go past the stack, as far as the flow and the size are concerned.
    #[inline(always)]
    fn may_pass(&self, head: &Head<A>, origin: Origin) -> Result<(), Forwarded> {
        if head.is_control() {
            self.end(head, origin);
            return Err(Forwarded::Control);
        }
        if self.forward.flags & FORWARD_ENDED != 0 {
            return Err(Forwarded::Ended);
        }
        if head.hop_limit <= 1 {
            return Err(Forwarded::HopLimit);
        }
        let now = tables::now();
        let since = now.saturating_sub(self.forward.stacked);
        if since >= STACK_INTERVAL {
            if since >= self.forward.idle as Nanos * SECOND {
                self.end(head, origin);
                return Err(Forwarded::Ended);
            }
            // SAFETY: as in `find`; a word, which CPUs write at once.
            unsafe { (&raw mut (*self.entry).stacked).write_volatile(now) }
            return Err(Forwarded::Turn);
        }
        if self.forward.mtu != 0 && head.size > self.forward.mtu as u32 {
            return Err(Forwarded::TooLarge);
        }
        Ok(())
    }

    /// Counts the packets that the buffer stands for.
    #[inline(always)]
    fn count(
        &self,
        ctx: &TcContext,
        base: u32,
        head: &Head<A>,
        origin: Origin,
        outcome: Forwarded,
    ) {
        let count = size(ctx, base, head);
        add(origin, outcome, count);
        if let Some(slot) = route_slot(self.forward.flags, origin)
            && let Some(total) = ROUTE_COUNTS.get_ptr_mut(slot)
        {
            // SAFETY: as in `add`.
            unsafe { *total += count };
        }
    }

    /// Sends all further packets of both directions to the stack.
    #[inline(always)]
    fn end(&self, head: &Head<A>, origin: Origin) {
        end(self.entry);
        let back = ForwardKey {
            src: self.forward.dst,
            dst: self.forward.src,
            src_port: self.forward.dst_port,
            dst_port: self.forward.src_port,
            protocol: head.key.protocol,
            origin: 1 - origin as u8,
            padding: [0; 2],
        };
        if let Some(entry) = A::table().get_ptr_mut(&back) {
            end(entry);
        }
    }
}

#[inline(always)]
fn end<A>(entry: *mut Forward<A>) {
    // SAFETY: as in `Known::find`; no other flag is ever set by a program.
    unsafe {
        let flags = &raw mut (*entry).flags;
        flags.write_volatile(flags.read_volatile() | FORWARD_ENDED);
    }
}

/// The way to the next hop.
struct Way {
    ifindex: u32,
    next_hop: bpf_redir_neigh,
}

impl Way {
    /// Sends the packet there when the program has ended.
    #[inline(always)]
    fn take(mut self) -> i32 {
        let len = size_of::<bpf_redir_neigh>() as i32;
        // SAFETY: a kernel helper, which copies the next hop.
        unsafe { generated::bpf_redirect_neigh(self.ifindex, &mut self.next_hop, len, 0) as i32 }
    }
}

/// Asks the routes, as the stack would before it translates the source.
#[inline(always)]
fn way<A: Family>(ctx: &TcContext, head: &Head<A>, forward: &Forward<A>) -> Result<Way, Forwarded> {
    let ingress = head::skb(ctx).ifindex;
    // SAFETY: plain numbers, for which 0 is a value.
    let mut query: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    query.family = A::FAMILY;
    query.l4_protocol = head.key.protocol;
    query.sport = u16::from_ne_bytes(head.key.src_port);
    query.dport = u16::from_ne_bytes(forward.dst_port);
    // Has the kernel compare it with the route's MTU, and with what is known of the path's.
    query.__bindgen_anon_1.tot_len = u16::try_from(head.size).map_err(|_| Forwarded::TooLarge)?;
    query.ifindex = ingress;
    A::ask(&mut query, head, &forward.dst);
    let len = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: a kernel helper with a query of the size that it is told.
    let answer = unsafe { generated::bpf_fib_lookup(ctx.as_ptr(), &mut query, len, 0) };
    match answer as i64 {
        FOUND | NO_NEIGHBOUR => {}
        TOO_LARGE => return Err(Forwarded::TooLarge),
        _ => return Err(Forwarded::NoRoute),
    }
    let expected = forward.ifindex == 0 || forward.ifindex == query.ifindex;
    if !expected || query.ifindex == ingress {
        return Err(Forwarded::OtherWay);
    }
    // SAFETY: as above. IPv4 may go by an IPv6 neighbour (RFC 5549): the answer says so.
    let mut next_hop: bpf_redir_neigh = unsafe { core::mem::zeroed() };
    next_hop.nh_family = query.family.into();
    // SAFETY: every bit pattern is a value of all variants of these unions.
    next_hop.__bindgen_anon_1.ipv6_nh = unsafe { query.__bindgen_anon_4.ipv6_dst };
    Ok(Way {
        ifindex: query.ifindex,
        next_hop,
    })
}

/// The packets that the buffer stands for.
#[inline(always)]
fn size<A: Family>(ctx: &TcContext, base: u32, head: &Head<A>) -> Count {
    let skb = head::skb(ctx);
    let mut count = Count {
        packets: 1,
        bytes: head.size as u64,
    };
    if skb.gso_size != 0 {
        let headers = A::IP_LEN + head.transport;
        let payload = skb.len.saturating_sub(base + headers);
        // A TUN device counts no segments.
        let packets = match skb.gso_segs {
            0 => payload.saturating_sub(1) / skb.gso_size + 1,
            segments => segments,
        };
        count = Count {
            packets: packets as u64,
            bytes: payload as u64 + packets as u64 * headers as u64,
        };
    }
    count
}

#[inline(always)]
fn add(origin: Origin, outcome: Forwarded, count: Count) {
    if let Some(total) = FORWARDED.get_ptr_mut(forwarded_slot(origin, outcome)) {
        // SAFETY: the map returned the pointer, to this CPU's own value; programs of one CPU do not
        // interrupt each other.
        unsafe { *total += count };
    }
}

/// Drops a packet that is half rewritten.
#[inline(always)]
fn failed<A: Family>(head: &Head<A>, origin: Origin) -> i32 {
    let count = Count {
        packets: 1,
        bytes: head.size as u64,
    };
    add(origin, Forwarded::Failed, count);
    TC_ACT_SHOT
}
