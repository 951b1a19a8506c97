//! Packets through the whole filter.

mod flows;
mod fragments;
mod inbound;
mod invariants;
mod local;
mod outbound;
mod packets;
mod rules;
mod vectors;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use control_proto::tailcfg::{FilterRule, NetPortRange, PortRange};
use packet::SECOND;
use packet::build::Ip;

use super::*;

/// Any time: a filter has no beginning of its own.
const NOW: u64 = 1_000_000 * SECOND;

const ACL: Verdict = Verdict::Accept(AcceptReason::Rule);
const OPENED: Verdict = Verdict::Accept(AcceptReason::Opened);
const OUTBOUND: Verdict = Verdict::Accept(AcceptReason::Outbound);

fn dropped(reason: DropReason) -> Verdict {
    Verdict::Drop(reason)
}

/// Addresses of one family.
#[derive(Clone, Copy, Debug)]
struct Net {
    /// This node.
    us: IpAddr,
    /// A peer that most rules of these tests let in.
    peer: IpAddr,
    /// Another peer.
    other: IpAddr,
    /// A host in a network that we advertise a route to.
    lan: IpAddr,
    /// A host that is neither ours nor a peer.
    foreign: IpAddr,
}

const NETS: [Net; 2] = [
    Net {
        us: v4([100, 64, 0, 1]),
        peer: v4([100, 64, 0, 2]),
        other: v4([100, 64, 0, 3]),
        lan: v4([10, 1, 2, 3]),
        foreign: v4([10, 2, 0, 1]),
    },
    Net {
        us: v6(0xfd7a_115c_a1e0_0000, 1),
        peer: v6(0xfd7a_115c_a1e0_0000, 2),
        other: v6(0xfd7a_115c_a1e0_0000, 3),
        lan: v6(0xfd00_0001_0000_0000, 3),
        foreign: v6(0xfd00_0002_0000_0000, 1),
    },
];

const fn v4([a, b, c, d]: [u8; 4]) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(network: u64, host: u64) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_bits((network as u128) << 64 | host as u128))
}

impl Net {
    /// Packets from the peer to us.
    fn inbound(&self) -> Ip {
        Ip::new(self.peer, self.us)
    }

    /// Packets from us to the peer.
    fn outbound(&self) -> Ip {
        Ip::new(self.us, self.peer)
    }

    /// A rule that lets the peer reach these ports of ours.
    fn allow(&self, first: u16, last: u16, protocols: &[i32]) -> FilterRule {
        rule(
            &[&self.peer.to_string()],
            &[(&self.us.to_string(), first, last)],
            protocols,
        )
    }
}

fn rule(sources: &[&str], destinations: &[(&str, u16, u16)], protocols: &[i32]) -> FilterRule {
    let port = |(ip, first, last): &(&str, u16, u16)| NetPortRange {
        ip: (*ip).to_owned(),
        bits: None,
        ports: PortRange {
            first: *first,
            last: *last,
        },
    };
    FilterRule {
        src_ips: sources.iter().map(|source| (*source).to_owned()).collect(),
        dst_ports: destinations.iter().map(port).collect(),
        ip_proto: protocols.to_vec(),
        ..FilterRule::default()
    }
}

fn parsed(rules: &[FilterRule]) -> Rules {
    Rules::parse(rules, |_| Vec::new(), &[]).unwrap()
}

/// This node, which advertises a route in each family.
fn local() -> Local {
    Local {
        addresses: NETS.iter().map(|net| net.us).collect(),
        routes: vec![
            "10.1.0.0/16".parse().unwrap(),
            "fd00:1::/32".parse().unwrap(),
        ],
        ..Local::default()
    }
}

fn filter(rules: &[FilterRule]) -> Filter {
    Filter::new(local(), Peers::default(), parsed(rules))
}
