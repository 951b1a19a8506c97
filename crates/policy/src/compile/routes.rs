//! Subnet routes: who serves them to whom (control.md 8.6).

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::Network;
use super::bits::Bits;
use super::class::Class;
use super::index::Entry;
use super::rules::Program;
use crate::tailnet::{EXIT_ROUTES, Node, NodeId};

/// An approved route.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    /// Nodes that serve it.
    pub(super) routers: BTreeSet<NodeId>,
    /// Rules with some of it among their sources.
    from: Bits,
    /// Rules with some of it among their targets.
    to: Bits,
    /// The same, for rules with `via`.
    via: Bits,
}

impl Route {
    pub(super) fn new(program: &Program, net: &IpNet) -> Self {
        Self {
            routers: BTreeSet::new(),
            from: program.sources_in(net),
            to: program.targets_in(net),
            via: program.via_targets_in(net),
        }
    }
}

impl Network {
    /// Says which of several routers serves a route; `None`: nobody. A route that only one node has
    /// is served by it without being told. The election itself is the server's (control.md 8.6).
    pub fn set_primary(&mut self, route: IpNet, router: Option<NodeId>) {
        match router {
            Some(router) => self.primaries.insert(route, router),
            None => self.primaries.remove(&route),
        };
    }

    /// Which node serves each route that several nodes have, as told by [`Network::set_primary`].
    #[must_use]
    pub fn primaries(&self) -> &BTreeMap<IpNet, NodeId> {
        &self.primaries
    }

    /// Who serves a route to those who do not have to go through a given router.
    pub(super) fn primary(&self, net: &IpNet) -> Option<NodeId> {
        let routers = &self.routes.get(net)?.routers;
        if routers.len() == 1 {
            return routers.first().copied();
        }
        self.primaries
            .get(net)
            .copied()
            .filter(|id| routers.contains(id))
    }

    /// The routes of a router that a viewer is told of.
    pub(super) fn routes_through(&self, viewer: &Class, peer: &Entry) -> Vec<IpNet> {
        let router = self.class(peer);
        let routes = router.key.routes.iter().copied();
        let mut told: Vec<_> = routes
            .filter(|net| self.is_told(viewer, peer.node.id, net))
            .collect();
        if peer.node.exit && self.may_exit(viewer, router) {
            told.extend(EXIT_ROUTES);
        }
        told
    }

    fn is_told(&self, viewer: &Class, router: NodeId, net: &IpNet) -> bool {
        let Some(route) = self.routes.get(net) else {
            return false;
        };
        let is_primary = || self.primary(net) == Some(router);
        // Other routers of the same subnet hear of it, whether or not they may use it.
        if viewer.from.meets(&route.to) || viewer.key.routes.contains(net) {
            return is_primary();
        }
        let via = viewer.from.and(&route.via);
        if !via.is_empty() {
            return self.elected(&route.routers, net, &via) == Some(router);
        }
        // Answers must find their way back.
        route.from.meets(&viewer.to) && is_primary()
    }

    /// Which of the routers that rules with `via` prescribe serves a subnet: its primary if that is
    /// one of them, otherwise the first one that is online.
    fn elected(&self, routers: &BTreeSet<NodeId>, net: &IpNet, via: &Bits) -> Option<NodeId> {
        let entries = routers.iter().filter_map(|id| self.nodes.get(id));
        let eligible = entries.filter(|it| self.class(it).to.meets(via));
        let primary = self.primary(net);
        let rank = |node: &Node| (Some(node.id) != primary, !node.online, node.id);
        eligible.map(|it| rank(&it.node)).min().map(|(_, _, id)| id)
    }

    fn may_exit(&self, viewer: &Class, router: &Class) -> bool {
        let program = &self.program;
        viewer.from.meets(&program.exit_rules)
            || viewer.from.and(&router.to).meets(&program.exit_via_rules)
    }
}
