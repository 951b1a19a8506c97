//! What nodes are told of each other and of themselves (control.md 8.5, 8.6).

use std::sync::Arc;

use control_proto::tailcfg::CapMap;
use ipnet::IpNet;

use super::Network;
use super::class::Class;
use super::index::own_nets;
use crate::tailnet::{EXIT_ROUTES, NodeId};

/// What a node is told of a peer, as far as the policy decides it. Equal for most viewers of a
/// peer, so that what is rendered for one serves the others.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PeerView {
    /// Its own addresses, /32 first; without the IPv4 one where `disable-ipv4` says so.
    pub addresses: Vec<IpNet>,
    /// Beyond the addresses: routes that the viewer may use through it (control.md 8.6).
    pub routes: Vec<IpNet>,
    /// Those routes of which it is the primary router.
    pub primary_routes: Vec<IpNet>,
    /// Names of attributes that the viewer is told (flags).
    pub attributes: Vec<String>,
}

/// What a node is told of itself, as far as the policy decides it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct OwnView {
    /// Its own addresses.
    pub addresses: Vec<IpNet>,
    /// Beyond the addresses: all of its approved routes.
    pub routes: Vec<IpNet>,
    /// Those of which it is the primary router.
    pub primary_routes: Vec<IpNet>,
    /// Attributes set by the policy, flags with a null value.
    pub attributes: CapMap,
}

impl Network {
    /// Does each know of the other? Symmetric, never true of a node and itself (control.md 8.5).
    #[must_use]
    pub fn sees(&self, a: NodeId, b: NodeId) -> bool {
        let (Some(a_entry), Some(b_entry)) = (self.nodes.get(&a), self.nodes.get(&b)) else {
            return false;
        };
        a != b && self.class(a_entry).sees(&self.program, self.class(b_entry))
    }

    /// All nodes that see `id`, by number.
    #[must_use]
    pub fn peers(&self, id: NodeId) -> Vec<NodeId> {
        let Some(entry) = self.nodes.get(&id) else {
            return Vec::new();
        };
        let class = self.class(entry);
        let peers = class.peers.get_or_init(|| self.seen_by(class));
        peers.iter().copied().filter(|peer| *peer != id).collect()
    }

    fn seen_by(&self, class: &Class) -> Arc<[NodeId]> {
        let classes = self.classes.iter().flatten();
        let seen = classes.filter(|other| class.sees(&self.program, other));
        let mut peers: Vec<_> = seen
            .flat_map(|other| other.members.iter().copied())
            .collect();
        peers.sort_unstable();
        peers.into()
    }

    /// What `viewer` is told of `peer`, which it sees.
    #[must_use]
    pub fn peer_view(&self, viewer: NodeId, peer: NodeId) -> PeerView {
        let (Some(viewer), Some(peer)) = (self.nodes.get(&viewer), self.nodes.get(&peer)) else {
            return PeerView::default();
        };
        let routes = self.routes_through(self.class(viewer), peer);
        let subnets = routes.iter().filter(|net| !EXIT_ROUTES.contains(net));
        PeerView {
            addresses: own_nets(&peer.node, viewer.has_no_v4() || peer.has_no_v4()),
            primary_routes: subnets.copied().collect(),
            routes,
            attributes: peer.for_peers.clone(),
        }
    }

    /// What a node is told of itself.
    #[must_use]
    pub fn own_view(&self, id: NodeId) -> OwnView {
        let Some(entry) = self.nodes.get(&id) else {
            return OwnView::default();
        };
        let subnets = &self.class(entry).key.routes;
        let primary = subnets.iter().filter(|net| self.primary(net) == Some(id));
        let exit = EXIT_ROUTES.into_iter().filter(|_| entry.node.exit);
        OwnView {
            addresses: own_nets(&entry.node, entry.has_no_v4()),
            routes: subnets.iter().copied().chain(exit).collect(),
            primary_routes: primary.copied().collect(),
            attributes: entry.attributes.clone(),
        }
    }
}
