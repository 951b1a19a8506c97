//! What the filter enforces, in the words of whoever sets it.

use std::{net::IpAddr, sync::Arc};

use ebpf_abi::{Count, PortRange};
use ipnet::IpNet;

/// One rule: these sources may reach these destinations by these protocols.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rule {
    /// What the caller knows it by; several may be known by the same.
    pub id: u32,
    /// Senders. Rules with the same senders are cheaper if they share the list.
    pub sources: Arc<[IpNet]>,
    /// Receivers and the ports of each. Ports mean something to TCP, UDP and SCTP; a rule admits
    /// other protocols only with [`PortRange::ALL`].
    pub destinations: Vec<(IpNet, PortRange)>,
    /// IP protocol numbers. ICMP (in either family its own) passes wherever a rule admits anything.
    pub protocols: Vec<u8>,
}

/// Everything that the filter is told. There are no deny rules: what nothing admits is dropped.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rules {
    /// What peers may initiate, in any order.
    pub rules: Vec<Rule>,
    /// This node's own addresses.
    pub addresses: Vec<IpAddr>,
    /// What else packets from peers may be addressed to: routes that this node serves.
    pub routes: Vec<IpNet>,
    /// Peers may answer but not initiate, whatever the rules say.
    pub shields_up: bool,
    /// TCP ports of PeerAPI on our IPv4 and IPv6 addresses, open to all peers.
    pub peer_api: [Option<u16>; 2],
}

/// What a rule has admitted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RuleHits {
    /// [`Rule::id`].
    pub id: u32,
    /// Packets that this rule admits and none before it.
    pub count: Count,
}
