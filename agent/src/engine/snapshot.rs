//! Everything there is to know about the node at one moment: [`Snapshot`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use control_proto::netmap::NetMap;
use control_proto::tailcfg::Node;
use keys::NodePublic;

use crate::localapi::{BackendState, PingResult};
use crate::net::NetStatus;
use crate::prefs::Prefs;

/// The node at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// How far the node is.
    pub state: BackendState,
    /// What the operator wants.
    pub prefs: Prefs,
    /// Where a person has to log in.
    pub auth_url: Option<String>,
    /// What is wrong, for people.
    pub health: Vec<String>,
    /// The network map, fresh or cached.
    pub map: Option<Arc<NetMap>>,
    /// Our node key.
    pub node_key: NodePublic,
    /// The data plane, while there is one.
    pub net: Option<NetStatus>,
    /// The coordination server answers.
    pub control_connected: bool,
    /// The map is the cached one of an earlier run.
    pub map_stale: bool,
    /// Since when the map is not confirmed.
    pub map_age: Option<Duration>,
    /// The present, by the server's clock.
    pub now: SystemTime,
}

impl Snapshot {
    /// Returns the first label of a peer's name, or what its host calls itself.
    #[must_use]
    pub fn peer_name(&self, key: &NodePublic) -> Option<String> {
        self.map.as_ref()?.peer_by_key(key).map(node_name)
    }

    /// Returns the node that an address leads to: the longest prefix of its allowed IPs wins.
    #[must_use]
    pub fn node_by_ip(&self, ip: IpAddr) -> Option<&Node> {
        let map = self.map.as_ref()?;
        let covering = |node: &Node| {
            let prefixes = node.allowed_ips().iter().chain(&node.addresses);
            prefixes
                .filter(|prefix| prefix.contains(&ip))
                .map(|prefix| prefix.prefix_len())
                .max()
        };
        std::iter::once(&map.node)
            .chain(map.peers.values())
            .filter_map(|node| Some((covering(node)?, node)))
            .max_by_key(|(len, _)| *len)
            .map(|(_, node)| node)
    }

    /// Whether `node` is the chosen exit node.
    #[must_use]
    pub fn is_exit_node(&self, node: &Node) -> bool {
        self.prefs.exit_node().is_some_and(|chosen| chosen.is(node))
    }

    /// Begins a ping's result: who has the address, and that node's key.
    pub(super) fn ping_target(&self, ip: IpAddr) -> Option<(PingResult, NodePublic)> {
        let node = self.node_by_ip(ip)?;
        let own = self.map.as_ref().is_some_and(|map| map.node.id == node.id);
        let address = node
            .addresses
            .first()
            .map(|prefix| prefix.addr().to_string());
        let result = PingResult {
            ip: ip.to_string(),
            node_ip: address.unwrap_or_default(),
            node_name: node_name(node),
            is_local_ip: own && node.addresses.iter().any(|prefix| prefix.contains(&ip)),
            ..PingResult::default()
        };
        Some((result, node.key))
    }
}

/// Where a node serves its PeerAPI, by what its host tells: on its first address of the family of `ip`.
pub(super) fn peer_api(node: &Node, ip: IpAddr) -> Option<SocketAddr> {
    let proto = if ip.is_ipv4() { "peerapi4" } else { "peerapi6" };
    let mut addresses = node.addresses.iter().map(|prefix| prefix.addr());
    let address = addresses.find(|own| own.is_ipv4() == ip.is_ipv4())?;
    let mut services = node.hostinfo.services.iter();
    let service = services.find(|service| service.proto == proto && service.port != 0)?;
    Some(SocketAddr::new(address, service.port))
}

/// First label of the name; what the host calls itself if it has none.
pub(crate) fn node_name(node: &Node) -> String {
    match node.label() {
        "" => node.hostinfo.hostname.clone(),
        label => label.to_owned(),
    }
}
