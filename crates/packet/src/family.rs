//! IPv4 and IPv6, as far as they differ for the filter.

use crate::header::protocol;

/// An address in network byte order, and what its family calls things.
pub trait Family: Copy + Eq {
    /// Protocol number of the family's own ICMP; that of the other family means nothing here.
    const ICMP: u8;
    /// ICMP type of an echo request.
    const ECHO_REQUEST: u8;
    /// ICMP type of an echo reply.
    const ECHO_REPLY: u8;

    /// Whether an ICMP type is an error, which quotes the packet that it is about.
    fn is_icmp_error(kind: u8) -> bool;

    /// Whether the address is a multicast one.
    fn is_multicast(&self) -> bool;

    /// Whether the address is link-local unicast, but for 169.254.169.254: clouds serve their
    /// metadata there, which a subnet router may pass on.
    fn is_link_local(&self) -> bool;
}

impl Family for [u8; 4] {
    const ICMP: u8 = protocol::ICMP;
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;

    /// Unreachable, time exceeded, parameter problem (RFC 792).
    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        matches!(kind, 3 | 11 | 12)
    }

    #[inline(always)]
    fn is_multicast(&self) -> bool {
        self[0] & 0xf0 == 0xe0
    }

    #[inline(always)]
    fn is_link_local(&self) -> bool {
        self[0] == 169 && self[1] == 254 && !(self[2] == 169 && self[3] == 254)
    }
}

impl Family for [u8; 16] {
    const ICMP: u8 = protocol::ICMPV6;
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;

    /// Unreachable, too big, time exceeded, parameter problem (RFC 4443).
    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        matches!(kind, 1..=4)
    }

    #[inline(always)]
    fn is_multicast(&self) -> bool {
        self[0] == 0xff
    }

    #[inline(always)]
    fn is_link_local(&self) -> bool {
        self[0] == 0xfe && self[1] & 0xc0 == 0x80
    }
}
