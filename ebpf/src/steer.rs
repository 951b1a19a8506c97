//! Steering: what comes in over the overlay for an address and port of the agent's goes to the agent's
//! socket, whoever else listens there.
#![expect(
    unsafe_code,
    reason = "the kernel's context, and a constant that the loader sets"
)]

use aya_ebpf::{
    bindings::sk_action::SK_PASS,
    macros::{map, sk_lookup},
    maps::{HashMap, SockMap},
    programs::SkLookupContext,
};
use ebpf_abi::{STEER_SLOTS, SteerKey};
use zerocopy::transmute;

#[map]
static STEER_TO: HashMap<SteerKey, u32> = HashMap::with_max_entries(STEER_SLOTS, 0);

#[map]
static STEER_SOCKETS: SockMap = SockMap::with_max_entries(STEER_SLOTS, 0);

/// Set by the loader. Its value here is one of its own, as for the other constants.
#[unsafe(no_mangle)]
static STEER_DEVICE: u32 = 0x5354_4552;

/// `AF_INET` and `AF_INET6`.
const INET: u32 = 2;
const INET6: u32 = 10;

/// Asked before the kernel looks for a socket by itself, which it does if none is assigned here.
#[sk_lookup]
fn steer(ctx: SkLookupContext) -> u32 {
    if let Some(slot) = slot(&ctx) {
        // No socket there: it is closed, and the kernel's choice is the next best. One assigned already,
        // by another's program: that was asked first.
        let _assigned = STEER_SOCKETS.redirect_sk_lookup(&ctx, slot, 0);
    }
    SK_PASS
}

#[inline(always)]
fn slot(ctx: &SkLookupContext) -> Option<u32> {
    let lookup = ctx.lookup;
    // SAFETY: the kernel passes a valid context, of which it permits reads of 4 bytes: volatile, so that
    // they stay that; the constant as elsewhere.
    unsafe {
        let device = (&raw const STEER_DEVICE).read_volatile();
        if (&raw const (*lookup).ingress_ifindex).read_volatile() != device {
            return None;
        }
        let (words, version): ([u32; 4], u8) = match (&raw const (*lookup).family).read_volatile() {
            INET => {
                let address = (&raw const (*lookup).local_ip4).read_volatile();
                ([address, 0, 0, 0], 4)
            }
            INET6 => {
                let words = (&raw const (*lookup).local_ip6).cast::<u32>();
                let word = |i| words.add(i).read_volatile();
                ([word(0), word(1), word(2), word(3)], 6)
            }
            _ => return None,
        };
        let key = SteerKey {
            address: transmute!(words),
            port: (&raw const (*lookup).local_port).read_volatile() as u16,
            protocol: (&raw const (*lookup).protocol).read_volatile() as u8,
            version,
        };
        STEER_TO.get(&key).copied()
    }
}
