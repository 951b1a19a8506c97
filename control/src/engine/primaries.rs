//! Which router serves a route that several nodes have (protocol digest 8.6).

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::model::NodeId;

/// All routers of the tailnet by what they serve. Exit routes are not elected: clients choose.
#[derive(Debug, Default)]
pub(super) struct Routers {
    by_route: BTreeMap<IpNet, BTreeSet<NodeId>>,
}

impl Routers {
    /// Takes in that a node serves `after` instead of `before`.
    pub(super) fn update(&mut self, id: NodeId, before: &BTreeSet<IpNet>, after: &BTreeSet<IpNet>) {
        for route in before.difference(after) {
            if let Some(routers) = self.by_route.get_mut(route) {
                routers.remove(&id);
                if routers.is_empty() {
                    self.by_route.remove(route);
                }
            }
        }
        for route in after.difference(before) {
            self.by_route.entry(*route).or_default().insert(id);
        }
    }

    /// The routers that serve one of these routes.
    pub(super) fn sharing<'a>(
        &self,
        routes: impl IntoIterator<Item = &'a IpNet>,
    ) -> BTreeSet<NodeId> {
        let shared = routes
            .into_iter()
            .filter_map(|route| self.by_route.get(route));
        shared.flatten().copied().collect()
    }

    /// All routes.
    pub(super) fn routes(&self) -> impl Iterator<Item = &IpNet> {
        self.by_route.keys()
    }

    /// Who serves the route: as before if that is possible, else the lowest number of those that
    /// are available. While none is, nothing moves: there is nothing to gain.
    pub(super) fn elect(
        &self,
        route: &IpNet,
        current: Option<NodeId>,
        available: impl Fn(NodeId) -> bool,
    ) -> Option<NodeId> {
        let candidates = self.by_route.get(route)?;
        let current = current.filter(|id| candidates.contains(id));
        current
            .filter(|id| available(*id))
            .or_else(|| candidates.iter().copied().find(|id| available(*id)))
            .or(current)
            .or_else(|| candidates.first().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route() -> IpNet {
        "10.0.0.0/8".parse().unwrap()
    }

    fn routers(ids: &[i64]) -> Routers {
        let mut routers = Routers::default();
        for id in ids {
            routers.update(NodeId(*id), &BTreeSet::new(), &[route()].into());
        }
        routers
    }

    fn elect(routers: &Routers, current: Option<i64>, available: &[i64]) -> Option<i64> {
        let available = |id: NodeId| available.contains(&id.0);
        let elected = routers.elect(&route(), current.map(NodeId), available);
        elected.map(|id| id.0)
    }

    #[test]
    fn the_primary_stays_while_it_can() {
        let routers = routers(&[1, 2, 3]);
        assert_eq!(elect(&routers, None, &[1, 2, 3]), Some(1));
        assert_eq!(elect(&routers, Some(1), &[2, 3]), Some(2));
        assert_eq!(elect(&routers, Some(2), &[1, 2, 3]), Some(2), "sticky");
        assert_eq!(elect(&routers, Some(2), &[]), Some(2), "nobody is better");
        assert_eq!(elect(&routers, None, &[]), Some(1), "somebody must");
    }

    #[test]
    fn who_no_longer_serves_it_is_not_elected() {
        let mut routers = routers(&[1, 2]);
        routers.update(NodeId(1), &[route()].into(), &BTreeSet::new());
        assert_eq!(elect(&routers, Some(1), &[1, 2]), Some(2));
        routers.update(NodeId(2), &[route()].into(), &BTreeSet::new());
        assert_eq!(elect(&routers, Some(2), &[1, 2]), None);
        assert_eq!(routers.routes().count(), 0, "nothing is left behind");
    }
}
