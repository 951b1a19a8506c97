//! Names of flows and of fragmented packets: the keys under which a filter remembers them.

use ebpf_abi::Direction;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Content, Datagram, Family, Fragment, header::protocol};

/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000_000_000;
/// A remembered flow is written anew when this much time has passed since it last was, not with
/// every packet: CPUs would fight over it. Nanoseconds.
pub const REFRESH: u64 = SECOND;
/// Nanoseconds after an accepted first fragment in which later ones are accepted.
pub const FRAGMENT_AGE: u64 = 30 * SECOND;

/// Nanoseconds after which a silent flow is forgotten.
///
/// TCP as Linux's conntrack has it, since nothing brings a forgotten connection back; UDP and SCTP
/// are promised 180 s (design.md 3.5), of which the refresh may take one.
#[inline(always)]
#[must_use]
pub const fn idle(protocol: u8) -> u64 {
    match protocol {
        protocol::TCP => 5 * 24 * 3600 * SECOND,
        protocol::ICMP | protocol::ICMPV6 => 60 * SECOND,
        _ => 200 * SECOND,
    }
}

/// A flow as this host sees it: the same in both directions.
///
/// Ports are in network byte order. Of an echo, the side that asks has the identifier for a port
/// and the other 0, so that the two hosts may use the same identifier at once. Protocols without
/// ports have 0 and 0. 16 bytes for IPv4, 40 for IPv6, without padding: usable as a map key.
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
pub struct Flow<A> {
    /// Address on our side: our own, or one that we route for.
    pub ours: A,
    /// Address on the peer's side.
    pub theirs: A,
    /// Port on our side.
    pub our_port: [u8; 2],
    /// Port on the peer's side.
    pub their_port: [u8; 2],
    /// IP protocol, after IPv6 extension headers.
    pub protocol: u8,
    /// Zero: keys are compared byte for byte.
    pad: [u8; 3],
}
const _: () = assert!(size_of::<Flow<[u8; 4]>>() == 16);
const _: () = assert!(size_of::<Flow<[u8; 16]>>() == 40);

/// Fragments of one packet (RFC 791 section 3.2, RFC 8200 section 4.5). 16 bytes for IPv4, 40 for
/// IPv6, without padding.
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
pub struct FragmentKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Identification, network byte order.
    pub id: [u8; 4],
    /// Protocol in IPv4; 0 in IPv6, where later fragments need not tell the right one.
    pub protocol: u8,
    /// Zero: keys are compared byte for byte.
    pad: [u8; 3],
}
const _: () = assert!(size_of::<FragmentKey<[u8; 4]>>() == 16);
const _: () = assert!(size_of::<FragmentKey<[u8; 16]>>() == 40);

impl<A: Family> Flow<A> {
    /// The flow of packets from `src`, ports included, to `dst`, seen in `direction`.
    #[inline(always)]
    pub fn new(protocol: u8, src: (A, u16), dst: (A, u16), direction: Direction) -> Self {
        let (ours, theirs) = match direction {
            Direction::In => (dst, src),
            Direction::Out => (src, dst),
        };
        Self {
            ours: ours.0,
            theirs: theirs.0,
            our_port: ours.1.to_be_bytes(),
            their_port: theirs.1.to_be_bytes(),
            protocol,
            pad: [0; 3],
        }
    }
}

impl<A: Family> Datagram<A> {
    /// The flow that the packet belongs to. Later fragments and ICMP other than echo have none;
    /// for what an ICMP error is about see [`Datagram::quoted`].
    #[inline(always)]
    pub fn flow(&self, direction: Direction) -> Option<Flow<A>> {
        let (src_port, dst_port) = self.content.ports()?;
        Some(Flow::new(
            self.protocol,
            (self.src, src_port),
            (self.dst, dst_port),
            direction,
        ))
    }

    /// The name that all fragments of the packet share; `None` for a whole one.
    #[inline(always)]
    pub fn fragment_key(&self) -> Option<FragmentKey<A>> {
        let id = match self.fragment {
            Fragment::Whole => return None,
            Fragment::First(id) | Fragment::Later(id) => id,
        };
        Some(FragmentKey::new(self.src, self.dst, id, self.protocol))
    }
}

impl<A: Family> FragmentKey<A> {
    /// The name of a packet's fragments, by what their IP headers say.
    #[inline(always)]
    pub fn new(src: A, dst: A, id: u32, protocol: u8) -> Self {
        Self {
            src,
            dst,
            id: id.to_be_bytes(),
            protocol: if size_of::<A>() == 4 { protocol } else { 0 },
            pad: [0; 3],
        }
    }
}

impl Content {
    /// Source and destination port as [`Flow`] means them.
    #[inline(always)]
    pub(crate) fn ports(&self) -> Option<(u16, u16)> {
        match *self {
            Self::Ports { src, dst, .. } => Some((src, dst)),
            Self::Echo { id, reply: false } => Some((id, 0)),
            Self::Echo { id, reply: true } => Some((0, id)),
            Self::Other => Some((0, 0)),
            Self::Icmp | Self::Error { .. } | Self::Later => None,
        }
    }
}
