//! The shield of WireGuard's port: in a flood of handshake initiations, lets trusted ones pass and few
//! others. One judgement for XDP and for tcx.
#![expect(
    unsafe_code,
    reason = "direct packet access, a constant that the loader sets, shared numbers, a helper"
)]

use core::{marker::PhantomData, mem};

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
        BPF_FIB_LKUP_RET_UNSUPP_LWT, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_fib_lookup as FibLookup,
        xdp_action::{XDP_DROP, XDP_PASS},
    },
    helpers::generated::bpf_fib_lookup,
    macros::{classifier, map, xdp},
    maps::{Array, HashMap, PerCpuArray},
    programs::{TcContext, XdpContext},
};
use ebpf_abi::{
    Nanos, SHIELD_HOLD, SHIELD_WINDOW, ShieldConfig, ShieldReason, ShieldSource, ShieldState,
};
use packet::{Initiation, InitiationFamily, Window};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::tables;

#[map]
static SHIELD_TRUST: HashMap<ShieldSource, u8> = HashMap::with_max_entries(
    ebpf_abi::SHIELD_TRUST.max_entries,
    ebpf_abi::SHIELD_TRUST.flags,
);

#[map]
static SHIELD_STATE: Array<ShieldState> = Array::with_max_entries(1, 0);

#[map]
static SHIELD_COUNTS: PerCpuArray<u64> =
    PerCpuArray::with_max_entries(ebpf_abi::SHIELD_COUNTS.max_entries, 0);

/// Set by the loader. Its value here is one of its own, as for the other constants.
#[unsafe(no_mangle)]
static SHIELD: ShieldConfig = ShieldConfig {
    port: 0x5348_4945,
    link_header: 14,
    flood: 0,
    interval: 0,
    tolerance: 0,
};

#[inline(always)]
fn config() -> ShieldConfig {
    // SAFETY: a constant of the object; volatile, or the compiler would take its value for granted.
    unsafe { (&raw const SHIELD).read_volatile() }
}

/// `AF_INET` and `AF_INET6`.
const INET: u8 = 2;
const INET6: u8 = 10;
/// Ethernet's numbers of IPv4 and IPv6.
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Bytes by which a frame may be longer than its packet: Ethernet's padding, a switch's trailer.
const TRAILER: u32 = 64;

/// Ingress of an underlay device, behind the driver.
#[classifier]
fn shield_tcx(ctx: TcContext) -> i32 {
    // SAFETY: the kernel passes a valid context.
    if unsafe { (*ctx.skb.skb).vlan_present } != 0 {
        return TC_ACT_UNSPEC;
    }
    let config = config();
    let verdict = match Linear::new(ctx.data(), ctx.data_end(), ctx.len()).kind(&config) {
        Some(Kind::V4) => judge_skb::<[u8; 4]>(&ctx, &config),
        Some(Kind::V6) => judge_skb::<[u8; 16]>(&ctx, &config),
        None => None,
    };
    match verdict {
        Some(ShieldReason::Dropped) => TC_ACT_SHOT,
        Some(_) | None => TC_ACT_UNSPEC,
    }
}

/// Ingress of an underlay device, in its driver.
#[xdp(frags)]
fn shield_xdp(ctx: XdpContext) -> u32 {
    let config = config();
    let frame = || {
        let (start, end) = (ctx.data(), ctx.data_end());
        Linear::new(start, end, (end - start) as u32)
    };
    let verdict = match frame().kind(&config) {
        Some(Kind::V4) => judge::<[u8; 4], _>(&ctx, &frame(), &config),
        Some(Kind::V6) => judge::<[u8; 16], _>(&ctx, &frame(), &config),
        None => None,
    };
    match verdict {
        Some(ShieldReason::Dropped) => XDP_DROP,
        Some(_) | None => XDP_PASS,
    }
}

/// Judges the frame, which may have to be brought into reach. That is tried with frames of an
/// initiation's length only: it costs.
#[inline(always)]
fn judge_skb<A: ShieldFamily>(ctx: &TcContext, config: &ShieldConfig) -> Option<ShieldReason> {
    let frame = || Linear::new(ctx.data(), ctx.data_end(), ctx.len());
    let spare = ctx.len().wrapping_sub(config.link_header + A::LEN);
    if spare > TRAILER {
        return None;
    }
    let wanted = config.link_header + A::READ;
    if ctx.data() + wanted as usize > ctx.data_end() && ctx.pull_data(wanted).is_err() {
        return None;
    }
    judge::<A, _>(ctx, &frame(), config)
}

/// What becomes of the frame, if it is an initiation to our port.
#[inline(always)]
fn judge<A: ShieldFamily, C: Ingress>(
    ctx: &C,
    frame: &Linear<'_>,
    config: &ShieldConfig,
) -> Option<ShieldReason> {
    let start = config.link_header as usize;
    let initiation = A::initiation(frame, start, config.port as u16)?;
    let reason = decide(ctx, &initiation, config);
    if let Some(count) = SHIELD_COUNTS.get_ptr_mut(reason as u32) {
        // SAFETY: the map returned the pointer, to this CPU's own value; programs on the way in do not
        // interrupt each other, and nobody else writes to it.
        unsafe { *count = (*count).wrapping_add(1) };
    }
    Some(reason)
}

#[inline(always)]
fn decide<A: ShieldFamily, C: Ingress>(
    ctx: &C,
    initiation: &Initiation<A>,
    config: &ShieldConfig,
) -> ShieldReason {
    let Some(state) = State::get() else {
        return ShieldReason::Calm;
    };
    let now = tables::now();
    if !state.flooded(now, config) {
        return ShieldReason::Calm;
    }
    let trusts = |port| {
        let source = A::source(initiation.src, port);
        // SAFETY: only whether there is a value matters.
        unsafe { SHIELD_TRUST.get(&source) }.is_some()
    };
    if trusts(initiation.src_port) || trusts([0; 2]) {
        ShieldReason::Trusted
    } else if state.takes_token(now, config) {
        ShieldReason::Spared
    } else if A::is_forwarded(ctx, initiation) {
        ShieldReason::Forwarded
    } else {
        ShieldReason::Dropped
    }
}

/// A context that knows where its frame came in.
trait Ingress: EbpfContext {
    /// Number of the device.
    fn device(&self) -> u32;
}

impl Ingress for TcContext {
    #[inline(always)]
    fn device(&self) -> u32 {
        // SAFETY: the kernel passes a valid context.
        unsafe { (*self.skb.skb).ifindex }
    }
}

impl Ingress for XdpContext {
    #[inline(always)]
    fn device(&self) -> u32 {
        self.ingress_ifindex() as u32
    }
}

/// [`ShieldState`] in its map.
///
/// CPUs that judge in the same nanoseconds may lose what one of them writes, for the compiler offers no
/// atomic addition here: a flood is noticed a little later, or a token taken by each of them. So a flood
/// gets no more than the bucket's rate for each CPU, even if it hit that moment with every packet.
struct State {
    shared: *mut ShieldState,
    /// As this packet found it.
    found: ShieldState,
}

impl State {
    #[inline(always)]
    fn get() -> Option<Self> {
        let shared = SHIELD_STATE.get_ptr_mut(0)?;
        // SAFETY: the map returned the pointer; volatile, for other CPUs write there. Every number is
        // read and written in one piece.
        let found = unsafe { shared.read_volatile() };
        Some(Self { shared, found })
    }

    /// Counts an initiation. Returns whether there is a flood.
    #[inline(always)]
    fn flooded(&self, now: Nanos, config: &ShieldConfig) -> bool {
        // Clocks of CPUs differ by a tick: a window that begins in the future goes on.
        let is_over = now.saturating_sub(self.found.window) >= SHIELD_WINDOW;
        let arrived = if is_over { 0 } else { self.found.arrived };
        let is_flood = arrived >= config.flood;
        // SAFETY: as in `get`.
        unsafe {
            if is_over {
                (&raw mut (*self.shared).window).write_volatile(now);
            }
            (&raw mut (*self.shared).arrived).write_volatile(arrived + 1);
            if is_flood {
                (&raw mut (*self.shared).flood_until).write_volatile(now + SHIELD_HOLD);
            }
        }
        is_flood || now < self.found.flood_until
    }

    /// Takes a token from the bucket, which is kept as the time when it will be full again.
    #[inline(always)]
    fn takes_token(&self, now: Nanos, config: &ShieldConfig) -> bool {
        let full_at = self.found.full_at;
        if config.interval == 0 || full_at > now.saturating_add(config.tolerance) {
            return false;
        }
        let then = full_at.max(now).saturating_add(config.interval);
        // SAFETY: as in `get`.
        unsafe { (&raw mut (*self.shared).full_at).write_volatile(then) };
        true
    }
}

/// Address families, as far as they differ here.
trait ShieldFamily: InitiationFamily + Copy {
    fn source(address: Self, port: [u8; 2]) -> ShieldSource;

    /// Fills in the ends of a way, and their family.
    fn fill(lookup: &mut FibLookup, src: Self, dst: Self);

    /// Whether this host would send the packet on to another. To ask takes long, and is done for
    /// packets only that would be dropped.
    #[inline(always)]
    fn is_forwarded<C: Ingress>(ctx: &C, initiation: &Initiation<Self>) -> bool {
        // SAFETY: numbers all, of which zero is one.
        let mut lookup: FibLookup = unsafe { mem::zeroed() };
        Self::fill(&mut lookup, initiation.src, initiation.dst);
        lookup.l4_protocol = packet::protocol::UDP;
        lookup.ifindex = ctx.device();
        let (way, size) = (&raw mut lookup, size_of::<FibLookup>() as i32);
        // SAFETY: the structure is the helper's own and as large as it is told.
        let answer = unsafe { bpf_fib_lookup(ctx.as_ptr(), way, size, 0) };
        // For what is for this host, and where it forwards nothing, there are other answers.
        [
            BPF_FIB_LKUP_RET_SUCCESS,
            BPF_FIB_LKUP_RET_NO_NEIGH,
            BPF_FIB_LKUP_RET_UNSUPP_LWT,
            BPF_FIB_LKUP_RET_FRAG_NEEDED,
        ]
        .contains(&(answer as u32))
    }
}

impl ShieldFamily for [u8; 4] {
    #[inline(always)]
    fn source(address: Self, port: [u8; 2]) -> ShieldSource {
        ShieldSource::v4(address, port)
    }

    #[inline(always)]
    fn fill(lookup: &mut FibLookup, src: Self, dst: Self) {
        lookup.family = INET;
        lookup.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(src);
        lookup.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(dst);
    }
}

impl ShieldFamily for [u8; 16] {
    #[inline(always)]
    fn source(address: Self, port: [u8; 2]) -> ShieldSource {
        ShieldSource::v6(address, port)
    }

    #[inline(always)]
    fn fill(lookup: &mut FibLookup, src: Self, dst: Self) {
        lookup.family = INET6;
        lookup.__bindgen_anon_3.ipv6_src = zerocopy::transmute!(src);
        lookup.__bindgen_anon_4.ipv6_dst = zerocopy::transmute!(dst);
    }
}

/// What a frame carries, by its link layer or, where it has none, by its first byte.
enum Kind {
    V4,
    V6,
}

/// The linear part of a frame. Nothing may move the frame meanwhile.
struct Linear<'a> {
    start: usize,
    end: usize,
    len: u32,
    frame: PhantomData<&'a ()>,
}

impl Linear<'_> {
    #[inline(always)]
    fn new(start: usize, end: usize, len: u32) -> Self {
        Self {
            start,
            end,
            len,
            frame: PhantomData,
        }
    }

    #[inline(always)]
    fn kind(&self, config: &ShieldConfig) -> Option<Kind> {
        if config.link_header == 0 {
            let first: [u8; 2] = *self.at(0)?;
            return match first[0] >> 4 {
                4 => Some(Kind::V4),
                6 => Some(Kind::V6),
                _ => None,
            };
        }
        match *self.at(12)? {
            IPV4 => Some(Kind::V4),
            IPV6 => Some(Kind::V6),
            _ => None,
        }
    }
}

impl Window for Linear<'_> {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.len
    }

    #[inline(always)]
    fn at<T: FromBytes + Immutable + KnownLayout + Unaligned>(&self, offset: usize) -> Option<&T> {
        let start = self.start + offset;
        if start + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: in bounds by the check above, hence not null; `T` accepts any bytes at any alignment.
        unsafe {
            core::hint::assert_unchecked(start != 0);
            Some(&*(start as *const T))
        }
    }

    #[inline(always)]
    fn words<const N: usize>(&self) -> Option<[u32; N]> {
        None
    }
}
