//! The desired state of this node: [`Desired`], computed from the network map.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::SystemTime;

use control_proto::netmap::NetMap;
use control_proto::tailcfg::{Node, StableNodeId};
use control_proto::{Timestamp, capver};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use keys::{DiscoPublic, NodePublic};

use crate::derp::{DerpMap, RegionId};

/// MTU of the overlay device in bytes (protocol/disco.md §15).
pub const DEFAULT_MTU: u16 = 1280;

/// Both default routes: what an exit node offers, and what is captured for one.
pub const DEFAULT_ROUTES: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
];

/// What the network map leaves to this host.
#[derive(Clone, Debug)]
pub struct Options {
    /// MTU of the overlay device in bytes.
    pub mtu: u16,
    /// The present, for key expiry.
    pub now: SystemTime,
    /// Subnets behind peers are reached through them.
    pub accept_routes: bool,
    /// Routes that this host offers to the others.
    pub advertised: Vec<IpNet>,
    /// The peer that carries everything that has no better route.
    pub exit_node: Option<ExitNode>,
    /// While an exit node is chosen, this host's own networks stay reachable.
    pub allow_lan_access: bool,
    /// This host's forwarding switches may be set.
    pub enable_forwarding: bool,
}

impl Options {
    /// Accepts nothing and offers nothing.
    #[must_use]
    pub fn new(mtu: u16, now: SystemTime) -> Self {
        Self {
            mtu,
            now,
            accept_routes: false,
            advertised: Vec::new(),
            exit_node: None,
            allow_lan_access: false,
            enable_forwarding: false,
        }
    }
}

/// How an exit node is named.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ExitNode {
    /// By its stable id.
    Id(StableNodeId),
    /// By one of its overlay addresses, as long as the id is not known.
    Ip(IpAddr),
}

impl ExitNode {
    /// Whether `node` is meant.
    #[must_use]
    pub fn is(&self, node: &Node) -> bool {
        match self {
            Self::Id(id) => node.stable_id == *id,
            Self::Ip(ip) => host_prefixes(&node.addresses).contains(&IpNet::from(*ip)),
        }
    }
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
    /// Routes that this host forwards: offered by us and approved by the server; sorted.
    pub served_routes: Vec<IpNet>,
    /// Networks that are attached to this host by its own word, approved or not: never routed into
    /// the overlay device, whatever wider route is; sorted.
    pub local_routes: Vec<IpNet>,
    /// Set if an exit node is chosen: the default routes are among `routes`.
    pub exit: Option<Exit>,
    /// The host's forwarding switches are set while it serves routes.
    pub enable_forwarding: bool,
}

/// The chosen exit node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Exit {
    /// The peer; `None` if the map has no such exit node, so that nothing carries the captured packets.
    pub peer: Option<NodePublic>,
    /// This host's own networks stay reachable.
    pub allow_lan_access: bool,
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
    /// Those of them that are not its own addresses but lie behind it; sorted.
    pub routes: Vec<IpNet>,
    /// Key for disco messages, if the peer has one.
    pub disco: Option<DiscoPublic>,
    /// Region by which the peer is reached.
    pub home_derp: Option<RegionId>,
    /// Where it may be reached without a relay, as the network map has it.
    pub endpoints: Vec<SocketAddr>,
    /// Its first overlay address, if it wants to be told our disco key there after each handshake.
    pub hears_disco_key: Option<IpAddr>,
}

impl Desired {
    /// Computes the desired state from a network map.
    ///
    /// Left out are peers whose key expired, and peers that nothing could reach (no disco key and no
    /// home relay). Beyond a peer's own addresses its subnets belong to it if routes are accepted,
    /// and default routes if it is the chosen exit node. Where two peers claim a prefix, its owner
    /// comes before a router of it, then the lower node number has it (protocol/filter.md §19).
    ///
    /// A chosen exit node captures all traffic even if it is not there: nothing leaks past it.
    #[must_use]
    pub fn from_netmap(netmap: &NetMap, options: &Options) -> Self {
        let derp_map = DerpMap::from_wire(&netmap.derp_map);
        Self::from_nodes(&netmap.node, netmap.peers.values(), derp_map, options)
    }

    fn from_nodes<'a>(
        own: &Node,
        peers: impl Iterator<Item = &'a Node>,
        derp_map: DerpMap,
        options: &Options,
    ) -> Self {
        let now = Timestamp::from(options.now);
        let mut nodes: Vec<&Node> = peers.filter(|node| is_usable(node, now)).collect();
        nodes.sort_by_key(|node| node.id);
        let advertised: BTreeSet<IpNet> = options.advertised.iter().copied().collect();
        let approved: BTreeSet<IpNet> = own.allowed_ips().iter().copied().collect();
        let addresses = host_prefixes(&own.addresses);
        let mut desired = Self {
            mtu: options.mtu,
            derp_map,
            served_routes: advertised.intersection(&approved).copied().collect(),
            local_routes: advertised
                .into_iter()
                .filter(|net| !is_default(net))
                .collect(),
            exit: options.exit_node.as_ref().map(|chosen| Exit {
                peer: nodes
                    .iter()
                    .find(|node| chosen.is(node) && node.allowed_ips().iter().any(is_default))
                    .map(|node| node.key),
                allow_lan_access: options.allow_lan_access,
            }),
            enable_forwarding: options.enable_forwarding,
            ..Self::default()
        };
        // Our own addresses never belong to a peer, nor do networks that we are attached to.
        let mut taken: BTreeSet<IpNet> = addresses.iter().copied().collect();
        taken.extend(&desired.local_routes);
        desired.addresses = addresses;
        for node in &nodes {
            let mut allowed_ips = host_prefixes(&node.addresses);
            allowed_ips.retain(|prefix| node.allowed_ips().contains(prefix));
            allowed_ips.retain(|prefix| taken.insert(*prefix));
            let peer = DesiredPeer {
                id: node.id.0,
                name: node.name.trim_end_matches('.').to_owned(),
                allowed_ips,
                routes: Vec::new(),
                disco: Some(node.disco_key).filter(|key| !key.is_zero()),
                home_derp: home(node),
                endpoints: node.endpoints.clone(),
                hears_disco_key: Some(node)
                    .filter(|node| node.cap >= capver::TSMP_DISCO_KEY)
                    .and_then(|node| node.addresses.first())
                    .map(IpNet::addr),
            };
            // The same key under two numbers is an error of the server; the first one stands.
            desired.peers.entry(node.key).or_insert(peer);
        }
        for node in &nodes {
            desired.give_routes(node, options, &mut taken);
        }
        desired.collect_routes();
        desired
    }

    /// Gives a peer the routes that it offers and that nobody has yet.
    fn give_routes(&mut self, node: &Node, options: &Options, taken: &mut BTreeSet<IpNet>) {
        let is_exit = self.exit.is_some_and(|exit| exit.peer == Some(node.key));
        let Some(peer) = self.peers.get_mut(&node.key) else {
            return;
        };
        if peer.id != node.id.0 {
            return;
        }
        let offered = node.allowed_ips().iter().map(IpNet::trunc);
        let wanted = offered.filter(|net| match is_default(net) {
            true => is_exit,
            false => options.accept_routes && !node.addresses.contains(net),
        });
        peer.routes = wanted.filter(|net| taken.insert(*net)).collect();
        peer.routes.sort_unstable();
        peer.allowed_ips.extend(&peer.routes);
        peer.allowed_ips.sort_unstable();
    }

    fn collect_routes(&mut self) {
        let mut routes: BTreeSet<IpNet> = BTreeSet::new();
        for peer in self.peers.values() {
            routes.extend(&peer.allowed_ips);
        }
        if self.exit.is_some() {
            routes.extend(DEFAULT_ROUTES);
        }
        self.routes = routes.into_iter().collect();
    }
}

/// Whether the route takes everything of its family.
fn is_default(net: &IpNet) -> bool {
    net.prefix_len() == 0
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
