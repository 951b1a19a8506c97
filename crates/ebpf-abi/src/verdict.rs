//! Why the packet filter drops a packet, under numbers that stay.

/// Why the packet filter drops a packet.
///
/// The numbers continue those of [`Reason`](crate::Reason), whose 2 and 3 mean the same here; 1 is
/// not used. They are in counters, in events and in scripts of operators: append, never reuse.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u32)]
pub enum DropReason {
    /// Neither an IPv4 nor an IPv6 header.
    NotIp = 2,
    /// Shorter than 20 bytes, or than its IP header says.
    Truncated = 3,
    /// The transport header does not fit into the packet, or its first fragment.
    TransportCut = 4,
    /// A later fragment that begins within the first 80 bytes, where headers could be overwritten.
    FragmentTiny = 5,
    /// IPv6 extension headers that are unknown, too many or too long, or a route that goes on.
    ExtensionHeader = 6,
    /// The reserved protocol 255, or TSMP in fragments.
    BadProtocol = 7,
    /// Destination in 224.0.0.0/4 or ff00::/8.
    Multicast = 8,
    /// Destination in 169.254.0.0/16, but for 169.254.169.254, or in fe80::/10.
    LinkLocal = 9,
    /// A later fragment of a packet whose first was not accepted, or not lately.
    Fragment = 10,
    /// The destination is none of our addresses or routes.
    NotLocal = 11,
    /// No rule admits it.
    NoRule = 12,
    /// TCP without SYN, of a connection that neither we opened nor a rule admits.
    NoFlow = 13,
    /// An echo reply that we did not ask for.
    EchoReply = 14,
    /// An ICMP error that quotes no packet of a flow we know.
    IcmpError = 15,
    /// Shields are up: nobody may initiate.
    ShieldsUp = 16,
    /// The peer is jailed: it may not initiate.
    Jailed = 17,
    /// Outbound TSMP, which only the agent may speak.
    TsmpFromHost = 18,
    /// Our own key has expired.
    KeyExpired = 19,
    /// The peer's key has expired.
    PeerExpired = 20,
    /// The agent has put no policy in force yet.
    NoPolicy = 21,
}

impl DropReason {
    /// Every reason, by number.
    pub const ALL: [Self; 20] = [
        Self::NotIp,
        Self::Truncated,
        Self::TransportCut,
        Self::FragmentTiny,
        Self::ExtensionHeader,
        Self::BadProtocol,
        Self::Multicast,
        Self::LinkLocal,
        Self::Fragment,
        Self::NotLocal,
        Self::NoRule,
        Self::NoFlow,
        Self::EchoReply,
        Self::IcmpError,
        Self::ShieldsUp,
        Self::Jailed,
        Self::TsmpFromHost,
        Self::KeyExpired,
        Self::PeerExpired,
        Self::NoPolicy,
    ];

    /// The reason's name in metrics, in `status` and in `debug drops`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotIp => "not_ip",
            Self::Truncated => "truncated",
            Self::TransportCut => "transport_cut",
            Self::FragmentTiny => "fragment_tiny",
            Self::ExtensionHeader => "extension_header",
            Self::BadProtocol => "bad_protocol",
            Self::Multicast => "multicast",
            Self::LinkLocal => "link_local",
            Self::Fragment => "fragment",
            Self::NotLocal => "not_local",
            Self::NoRule => "no_rule",
            Self::NoFlow => "no_flow",
            Self::EchoReply => "echo_reply",
            Self::IcmpError => "icmp_error",
            Self::ShieldsUp => "shields_up",
            Self::Jailed => "jailed",
            Self::TsmpFromHost => "tsmp_from_host",
            Self::KeyExpired => "key_expired",
            Self::PeerExpired => "peer_expired",
            Self::NoPolicy => "no_policy",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reason;

    #[test]
    fn reasons_stand_at_their_numbers() {
        for (number, reason) in (2..).zip(DropReason::ALL) {
            assert_eq!(reason as u32, number);
        }
    }

    #[test]
    fn numbers_shared_with_the_counters_mean_the_same() {
        for counted in Reason::ALL {
            let shared = DropReason::ALL
                .into_iter()
                .find(|reason| *reason as u32 == counted as u32);
            if let Some(shared) = shared {
                assert_eq!(shared.name(), counted.name());
            }
        }
    }
}
