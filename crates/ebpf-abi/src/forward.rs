//! The forward table: flows whose packets go from one device to the other past the network stack.
//!
//! The loader fills it with what conntrack decided when a flow's first packets took the stack. Each
//! direction of a flow is an entry. What programs write is when a packet last took the stack, and that
//! a flow is over.

use crate::Nanos;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Where a packet came in.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum Origin {
    /// On the overlay device, from a peer.
    Overlay = 0,
    /// On another device.
    Lan = 1,
}

impl Origin {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Overlay, Self::Lan];
}

/// Key of `FORWARD_V4` and `FORWARD_V6`: packets as they come in. 16 bytes for IPv4, 40 for IPv6.
///
/// Ports are in network order. Of an echo, the side that asks has the identifier for a port and the
/// other 0.
#[derive(
    Clone,
    Copy,
    Debug,
    Eq,
    FromBytes,
    Hash,
    Immutable,
    IntoBytes,
    KnownLayout,
    Ord,
    PartialEq,
    PartialOrd,
)]
#[repr(C)]
pub struct ForwardKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port.
    pub src_port: [u8; 2],
    /// Destination port.
    pub dst_port: [u8; 2],
    /// IP protocol: TCP, UDP, ICMP or ICMPv6.
    pub protocol: u8,
    /// [`Origin`].
    pub origin: u8,
    /// Zero: keys are compared byte for byte.
    pub padding: [u8; 2],
}
const _: () = assert!(size_of::<ForwardKey<[u8; 4]>>() == 16);
const _: () = assert!(size_of::<ForwardKey<[u8; 16]>>() == 40);

/// Value of `FORWARD_V4` and `FORWARD_V6`: what becomes of the packets. 32 bytes for IPv4, 56 for IPv6.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Forward<A> {
    /// Source address from here on.
    pub src: A,
    /// Destination address from here on.
    pub dst: A,
    /// Source port from here on, network order.
    pub src_port: [u8; 2],
    /// Destination port from here on, network order.
    pub dst_port: [u8; 2],
    /// Device on which they leave. From the overlay, 0 stands for whatever the routes say.
    pub ifindex: u32,
    /// Bytes that an IP packet may have there; from the overlay, 0 leaves that to the routes.
    pub mtu: u16,
    /// `FORWARD_*`.
    pub flags: u16,
    /// Seconds without a packet on the stack after which conntrack may have forgotten the flow.
    pub idle: u32,
    /// When a packet last took the stack.
    pub stacked: Nanos,
}
const _: () = assert!(size_of::<Forward<[u8; 4]>>() == 32);
const _: () = assert!(size_of::<Forward<[u8; 16]>>() == 56);

/// In [`Forward::flags`]: the flow ends, or has been silent for too long. Programs set it, in both
/// directions, and all packets take the stack until the loader writes a new entry.
pub const FORWARD_ENDED: u16 = 1;

/// In [`Forward::flags`] from this bit on: number of the served route that packets are counted for, below
/// [`COUNTED_ROUTES`]; 0 for none.
pub const FORWARD_ROUTE_SHIFT: u16 = 8;

/// Served routes that are counted one by one, and number 0, which is none.
pub const COUNTED_ROUTES: u32 = 64;

/// Returns the index in `ROUTE_COUNTS` of packets from `origin` of a flow with these flags; `None` if it
/// belongs to no route that is counted.
#[inline(always)]
#[must_use]
pub const fn route_slot(flags: u16, origin: Origin) -> Option<u32> {
    match (flags >> FORWARD_ROUTE_SHIFT) as u32 % COUNTED_ROUTES {
        0 => None,
        route => Some(route * 2 + origin as u32),
    }
}

/// Nanoseconds after which one packet of each direction takes the stack, so that conntrack and the
/// neighbours' reachability stay alive.
pub const STACK_INTERVAL: Nanos = 5_000_000_000;

/// What became of a packet of a flow in the table. The numbers are in counters: append, never reuse.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u32)]
pub enum Forwarded {
    /// Went past the stack.
    Past = 0,
    /// Took the stack because it was time for one that does.
    Turn = 1,
    /// Took the stack: TCP with SYN, FIN or RST.
    Control = 2,
    /// Took the stack: the flow has ended.
    Ended = 3,
    /// Took the stack: its hop limit ends here.
    HopLimit = 4,
    /// Took the stack: larger than the way out.
    TooLarge = 5,
    /// Took the stack: the routes have no way for it.
    NoRoute = 6,
    /// Took the stack: the routes lead elsewhere than the flow went so far.
    OtherWay = 7,
    /// Dropped: the kernel could not rewrite it.
    Failed = 8,
}

impl Forwarded {
    /// Every outcome, by number.
    pub const ALL: [Self; 9] = [
        Self::Past,
        Self::Turn,
        Self::Control,
        Self::Ended,
        Self::HopLimit,
        Self::TooLarge,
        Self::NoRoute,
        Self::OtherWay,
        Self::Failed,
    ];

    /// The outcome's name in metrics and in `status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Past => "past_the_stack",
            Self::Turn => "turn",
            Self::Control => "control",
            Self::Ended => "ended",
            Self::HopLimit => "hop_limit",
            Self::TooLarge => "too_large",
            Self::NoRoute => "no_route",
            Self::OtherWay => "other_way",
            Self::Failed => "failed",
        }
    }
}

/// Slots per [`Origin`] in `FORWARDED`; leaves room for outcomes to come without a new layout.
pub const FORWARDED_SLOTS: u32 = 16;
const _: () = assert!(Forwarded::ALL.len() <= FORWARDED_SLOTS as usize);

/// Returns the index in `FORWARDED` of packets from `origin` with this outcome.
#[inline(always)]
#[must_use]
pub const fn forwarded_slot(origin: Origin, outcome: Forwarded) -> u32 {
    origin as u32 * FORWARDED_SLOTS + outcome as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_stand_at_their_numbers_in_slots_of_their_own() {
        for (number, outcome) in Forwarded::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, number);
            assert_eq!(forwarded_slot(Origin::Overlay, outcome) as usize, number);
            assert_eq!(forwarded_slot(Origin::Lan, outcome) as usize, 16 + number);
        }
    }

    #[test]
    fn routes_have_slots_of_their_own_and_no_route_has_none() {
        let flags = |route: u16| route << FORWARD_ROUTE_SHIFT | FORWARD_ENDED;
        assert_eq!(route_slot(flags(0), Origin::Lan), None);
        assert_eq!(route_slot(flags(1), Origin::Overlay), Some(2));
        assert_eq!(route_slot(flags(63), Origin::Lan), Some(127));
    }
}
