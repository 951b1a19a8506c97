//! Routes: what nodes offer to carry for others, and what of it is approved.
//!
//! Approval is a property of the node and outlives the offer: a router that stops advertising a
//! route and starts again serves it again. Exit routes are approved both or not at all.

use std::collections::BTreeSet;
use std::net::IpAddr;

use control_proto::tailcfg::Hostinfo;
use ipnet::IpNet;
use policy::Network;
use policy::tailnet::{EXIT_ROUTES as EXIT, is_servable};

use super::{Control, ServiceError};
use crate::engine::NodeView;
use crate::model::{Node, NodeId};
use crate::store::StoreError;

/// Characters of what is no route that are repeated to who wrote it.
const MAX_SHOWN: usize = 64;

/// A route that a node offers, or may serve.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Route {
    /// Which.
    pub prefix: IpNet,
    /// The node offers it.
    pub advertised: bool,
    /// It may serve it.
    pub approved: bool,
    /// It does, and no other node is in its place.
    pub serving: bool,
}

impl Control {
    /// The routes of all nodes that have any, or of one node.
    ///
    /// # Errors
    ///
    /// There is no such node.
    pub fn routes(&self, node: Option<&str>) -> Result<Vec<(NodeView, Vec<Route>)>, ServiceError> {
        let nodes = match node {
            Some(text) => vec![self.find_node(text)?],
            None => self.engine.nodes(),
        };
        let listed = nodes.into_iter().map(|view| {
            let routes = self.routes_of(&view.node);
            (view, routes)
        });
        Ok(listed.filter(|(_, routes)| !routes.is_empty()).collect())
    }

    /// What a node offers, and may serve.
    #[must_use]
    pub fn routes_of(&self, node: &Node) -> Vec<Route> {
        let advertised: BTreeSet<IpNet> = advertised(node).into_iter().collect();
        self.engine.with_network(|network| {
            let primaries = network.primaries();
            let route = |prefix: &IpNet| {
                let advertised = advertised.contains(prefix);
                let approved = node.approved_routes.contains(prefix);
                let primary = primaries.get(prefix).is_none_or(|id| *id == node.id);
                Route {
                    prefix: *prefix,
                    advertised,
                    approved,
                    serving: advertised
                        && approved
                        && (EXIT.contains(prefix) || is_servable(prefix) && primary),
                }
            };
            advertised.union(&node.approved_routes).map(route).collect()
        })
    }

    /// Lets a node serve a route, now or as soon as it offers it.
    ///
    /// # Errors
    ///
    /// There is no such node, or that is no route for a node.
    pub async fn approve_route(&self, node: &str, prefix: &str) -> Result<Node, ServiceError> {
        let routes = parse_route(prefix)?;
        let id = self.find_node(node)?.node.id;
        self.change_node(id, None, |node| {
            node.approved_routes.extend(routes);
            Ok(())
        })
        .await
    }

    /// Takes a route from a node.
    ///
    /// # Errors
    ///
    /// There is no such node, or the route was not approved.
    pub async fn remove_route(&self, node: &str, prefix: &str) -> Result<Node, ServiceError> {
        let routes = parse_route(prefix)?;
        let view = self.find_node(node)?;
        let approved = &view.node.approved_routes;
        if !routes.iter().any(|route| approved.contains(route)) {
            return Err(ServiceError::NotFound(format!(
                "{prefix} is not approved on {}: see `tailrace-control nodes routes list {}`",
                view.node.name, view.node.name
            )));
        }
        self.change_node(view.node.id, None, |node| {
            node.approved_routes
                .retain(|approved| !routes.contains(approved));
            Ok(())
        })
        .await
    }

    /// Approves what the policy approves by itself of the routes in a node's `offer`; `None`: of
    /// those that it offers already.
    pub(super) async fn auto_approve(
        &self,
        id: NodeId,
        offer: Option<&Hostinfo>,
    ) -> Result<(), ServiceError> {
        let approving = self.change_node(id, None, |node| {
            let new = match offer {
                None => self.approved_now(node),
                Some(offer) => self.approved_now(&Node {
                    hostinfo: offer.clone(),
                    ..node.clone()
                }),
            };
            if !new.is_empty() {
                tracing::info!(node = %node.name, routes = ?new, "approved by the policy");
            }
            node.approved_routes.extend(new);
            Ok(())
        });
        match approving.await {
            // It was deleted since it offered them.
            Ok(_) | Err(ServiceError::Store(StoreError::Missing)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// What the policy in force approves of what a node offers, for its owner.
    pub(super) fn approved_now(&self, node: &Node) -> Vec<IpNet> {
        self.engine
            .with_network(|network| newly_approved(network, node))
    }

    /// Nodes that get routes approved by a policy that comes in force, and which routes.
    pub(super) fn newly_approved(&self, network: &Network) -> Vec<(Node, Vec<IpNet>)> {
        let nodes = self.engine.nodes().into_iter().map(|view| view.node);
        let changed = nodes.map(|mut node| {
            let new = newly_approved(network, &node);
            node.approved_routes.extend(&new);
            (node, new)
        });
        changed.filter(|(_, new)| !new.is_empty()).collect()
    }
}

/// What the policy approves of what the node offers, and is not approved yet.
fn newly_approved(network: &Network, node: &Node) -> Vec<IpNet> {
    let offered = advertised(node);
    if offered.is_empty() {
        return Vec::new();
    }
    let mut approved = network.auto_approved(&node.owner(), &offered);
    approved.retain(|route| is_routable(route) && !node.approved_routes.contains(route));
    approved
}

/// May a node route this for others?
fn is_routable(route: &IpNet) -> bool {
    EXIT.contains(route) || is_servable(route)
}

/// What the node offers; nodes may leave bits behind the length of a prefix.
fn advertised(node: &Node) -> Vec<IpNet> {
    node.hostinfo
        .routable_ips
        .iter()
        .map(IpNet::trunc)
        .collect()
}

/// A route as people write it; an exit route stands for both.
fn parse_route(text: &str) -> Result<Vec<IpNet>, ServiceError> {
    let text = text.trim();
    let parsed = text.parse::<IpNet>();
    let prefix = parsed.or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let invalid = |reason: String| Err(ServiceError::Invalid(reason));
    let Ok(prefix) = prefix else {
        return invalid(format!(
            "{:?} is not a route: give a prefix such as 192.0.2.0/24, or 0.0.0.0/0 for an exit node",
            text.chars().take(MAX_SHOWN).collect::<String>()
        ));
    };
    if prefix != prefix.trunc() {
        return invalid(format!(
            "{prefix} has bits set behind its length: did you mean {}?",
            prefix.trunc()
        ));
    }
    if !is_routable(&prefix) {
        return invalid(format!(
            "{prefix} cannot be routed by a node: addresses of the overlay or of loopback are in it"
        ));
    }
    Ok(if EXIT.contains(&prefix) {
        EXIT.to_vec()
    } else {
        vec![prefix]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_route_stands_for_both_and_an_address_for_itself() {
        assert_eq!(parse_route("::/0").unwrap(), EXIT);
        assert_eq!(parse_route("0.0.0.0/0").unwrap(), EXIT);
        let one = parse_route(" 192.0.2.7 ").unwrap();
        assert_eq!(one, ["192.0.2.7/32".parse().unwrap()]);
    }

    #[test]
    fn sites_are_routes_though_they_are_in_the_overlays_range() {
        let site = "fd7a:115c:a1e0:b1a:0:7:a00:0/104";
        assert_eq!(parse_route(site).unwrap(), [site.parse().unwrap()]);
    }

    #[test]
    fn what_is_no_route_is_refused_with_a_suggestion() {
        for (bad, said) in [
            ("10.0.0.1/8", "10.0.0.0/8"),
            ("home", "192.0.2.0/24"),
            ("100.64.1.0/24", "overlay"),
            ("100.0.0.0/8", "overlay"),
            ("64.0.0.0/2", "loopback"),
            ("10.0.0.0/33", "prefix"),
        ] {
            let error = parse_route(bad).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains(bad), "{error}");
        }
    }
}
