//! TCP segments that fit the overlay: the MSS option of SYN and SYN-ACK, in both directions.
//!
//! Path MTU discovery would come to the same, where nobody on the way drops ICMP.

use core::ffi::c_void;

use aya_ebpf::{bindings::__sk_buff, helpers::generated, programs::TcContext};
use ebpf_abi::Origin;

use super::{Family, Head, OVERLAY_MTU, rewrite};

const TCP_LEN: u32 = 20;
const TCP_CHECKSUM: u32 = 16;
/// Option kinds (RFC 9293 section 3.2).
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MSS: u8 = 2;
/// Options that are looked at: MSS is the first, as a rule.
const MOST_OPTIONS: u32 = 20;

/// As [`clamp`], of a packet that has not been read.
#[inline(always)]
pub(super) fn clamp_request<A: Family>(ctx: &TcContext) {
    if let Some(head) = Head::<A>::read(ctx, 0, Origin::Overlay)
        && head.opens()
    {
        clamp(ctx, A::IP_LEN, head.transport);
    }
}

/// Lowers the MSS to what the overlay carries. The TCP header, of `len` bytes, follows an IP header of
/// `ip_len`, with which the packet begins.
#[inline(always)]
pub(super) fn clamp(ctx: &TcContext, ip_len: u32, len: u32) {
    let mtu = OVERLAY_MTU.get(0).copied().unwrap_or_default();
    let Ok(most @ 1..) = u16::try_from(mtu.saturating_sub(ip_len + TCP_LEN)) else {
        return;
    };
    let mut search = Search {
        skb: ctx.skb.skb,
        tcp: ip_len,
        offset: TCP_LEN,
        len,
        mss: 0,
    };
    // SAFETY: the kernel calls the function with the pointer, which lives through the call. A loop
    // written out would be verified for every way through every option.
    unsafe {
        let step: unsafe extern "C" fn(u64, *mut Search) -> i64 = try_option;
        generated::bpf_loop(
            MOST_OPTIONS,
            step as *mut c_void,
            (&raw mut search).cast::<c_void>(),
            0,
        );
    }
    lower(ctx, ip_len, search.offset, search.mss as u16, most);
}

/// A search for the MSS option.
#[repr(C)]
struct Search {
    skb: *mut __sk_buff,
    /// Where the TCP header begins.
    tcp: u32,
    /// Where in it the next option begins.
    offset: u32,
    /// Its length.
    len: u32,
    /// What was found at `offset`; 0 for nothing.
    mss: u32,
}

/// Looks at one option. Returns 1 if it is the last to look at.
#[inline(never)]
unsafe extern "C" fn try_option(_: u64, search: *mut Search) -> i64 {
    // SAFETY: by `clamp`, nobody else uses it meanwhile.
    let search = unsafe { &mut *search };
    if search.offset + 4 > search.len {
        return 1;
    }
    let mut option = [0_u8; 4];
    // SAFETY: a kernel helper, which writes as many bytes as it is told.
    let result = unsafe {
        generated::bpf_skb_load_bytes(
            search.skb.cast(),
            search.tcp + search.offset,
            option.as_mut_ptr().cast(),
            option.len() as u32,
        )
    };
    let [kind, size, high, low] = option;
    if result != 0 || kind == END {
        return 1;
    }
    if kind == NO_OPERATION {
        search.offset += 1;
        return 0;
    }
    if kind == MSS {
        search.mss = u16::from_be_bytes([high, low]).into();
        return 1;
    }
    search.offset += size as u32;
    // Shorter than its own kind and size: no option at all.
    (size < 2).into()
}

#[inline(always)]
fn lower(ctx: &TcContext, ip_len: u32, offset: u32, mss: u16, most: u16) {
    if mss <= most {
        return;
    }
    let (old, new) = (mss.to_be(), most.to_be());
    // At an odd offset its bytes belong to two of the words that the checksum adds up.
    let swap = |value: u16| {
        if offset & 1 == 0 {
            value
        } else {
            value.swap_bytes()
        }
    };
    let checksum = ip_len + TCP_CHECKSUM;
    let (from, to) = (swap(old).into(), swap(new).into());
    // Stored first: a packet whose checksum is wrong would be dropped, and sent again as it was.
    if rewrite::store(ctx, ip_len + offset + 2, &new).is_some() {
        let _ = rewrite::sum(ctx, checksum, from, to, 2);
    }
}
