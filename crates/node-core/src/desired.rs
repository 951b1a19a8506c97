//! The desired state of this node: [`Desired`], computed from the network map.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use control_proto::Timestamp;
use control_proto::netmap::NetMap;
use control_proto::tailcfg::Node;
use ipnet::IpNet;
use keys::{DiscoPublic, NodePublic};

use crate::derp::{DerpMap, RegionId};

/// MTU of the overlay device in bytes (protocol/disco.md §15).
pub const DEFAULT_MTU: u16 = 1280;

/// What the network map leaves to this host.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// MTU of the overlay device in bytes.
    pub mtu: u16,
    /// The present, for key expiry.
    pub now: SystemTime,
}

/// How this host should look.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Desired {
    /// Addresses of the overlay device, /32 and /128.
    pub addresses: Vec<IpNet>,
    /// MTU of the overlay device in bytes.
    pub mtu: u16,
    /// Peers of the tunnel.
    pub peers: BTreeMap<NodePublic, DesiredPeer>,
    /// Destinations that are routed into the overlay device; sorted, each once.
    pub routes: Vec<IpNet>,
    /// Relays this node may use.
    pub derp_map: DerpMap,
}

/// One peer of the tunnel.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DesiredPeer {
    /// Node number in the network map.
    pub id: i64,
    /// Name for people.
    pub name: String,
    /// Inner addresses that belong to this peer; each prefix belongs to one peer only; sorted.
    pub allowed_ips: Vec<IpNet>,
    /// Key for disco messages, if the peer has one.
    pub disco: Option<DiscoPublic>,
    /// Region by which the peer is reached.
    pub home_derp: Option<RegionId>,
}

impl Desired {
    /// Computes the desired state from a network map.
    ///
    /// Left out are peers whose key expired, peers that nothing could reach (no disco key and no
    /// home relay), and prefixes beyond a peer's own addresses: subnet and exit routes need the
    /// operator's consent. Where two peers claim a prefix, the lower node number has it
    /// (protocol/disco.md §17.7).
    #[must_use]
    pub fn from_netmap(netmap: &NetMap, options: &Options) -> Self {
        let addresses = host_prefixes(&netmap.node.addresses);
        let derp_map = DerpMap::from_wire(&netmap.derp_map);
        Self::from_nodes(addresses, netmap.peers.values(), derp_map, options)
    }

    fn from_nodes<'a>(
        addresses: Vec<IpNet>,
        peers: impl Iterator<Item = &'a Node>,
        derp_map: DerpMap,
        options: &Options,
    ) -> Self {
        let now = Timestamp::from(options.now);
        let mut nodes: Vec<&Node> = peers.filter(|node| is_usable(node, now)).collect();
        nodes.sort_by_key(|node| node.id);
        // Our own addresses never belong to a peer.
        let mut taken: BTreeSet<IpNet> = addresses.iter().copied().collect();
        let mut desired = Self {
            addresses,
            mtu: options.mtu,
            derp_map,
            ..Self::default()
        };
        for node in nodes {
            let mut allowed_ips = host_prefixes(&node.addresses);
            allowed_ips.retain(|prefix| node.allowed_ips().contains(prefix));
            allowed_ips.retain(|prefix| taken.insert(*prefix));
            desired.routes.extend(&allowed_ips);
            let peer = DesiredPeer {
                id: node.id.0,
                name: node.name.trim_end_matches('.').to_owned(),
                allowed_ips,
                disco: Some(node.disco_key).filter(|key| !key.is_zero()),
                home_derp: home(node),
            };
            // The same key under two numbers is an error of the server; the first one stands.
            desired.peers.entry(node.key).or_insert(peer);
        }
        desired.routes.sort_unstable();
        desired
    }
}

/// True if the peer's key is valid and something can carry packets to it.
fn is_usable(node: &Node, now: Timestamp) -> bool {
    let reachable = !node.disco_key.is_zero() || home(node).is_some();
    // Plain WireGuard peers have no relay path; they need an endpoint of their own (not built).
    !node.key.is_zero() && !node.is_expired(now) && !node.is_wireguard_only && reachable
}

fn home(node: &Node) -> Option<RegionId> {
    let region = u16::try_from(node.home_derp()?).ok()?;
    Some(RegionId(region))
}

/// Returns the prefixes of single addresses; sorted, each once.
fn host_prefixes(prefixes: &[IpNet]) -> Vec<IpNet> {
    let hosts: BTreeSet<IpNet> = prefixes
        .iter()
        .filter(|prefix| prefix.prefix_len() == prefix.max_prefix_len())
        .copied()
        .collect();
    hosts.into_iter().collect()
}

#[cfg(test)]
mod tests;
