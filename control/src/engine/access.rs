//! The policy in force, and keeping its network up to date with the tailnet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use policy::{Network, Policy};

use super::announce::Post;
use super::known::Before;
use super::{Engine, MapSettings, News, State, tailnet};
use crate::model::{ChangeNumber, NodeId};

/// The tailnet under a policy that is not in force yet, its answers worked out.
#[derive(Debug)]
pub struct Prepared(Network);

impl Prepared {
    /// The tailnet as it was when it was prepared.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.0
    }
}

impl Engine {
    /// Works out what a policy means for all nodes: up to seconds with tens of thousands of them,
    /// without the lock. Call it where that may take its time.
    #[must_use]
    pub fn prepare_policy(&self, policy: Arc<Policy>) -> Prepared {
        let mut next = self.with_network(Network::clone);
        next.set_policy(policy);
        // Answers are kept: what is asked for here is ready when the lock is held.
        let ids: Vec<NodeId> = next.nodes().map(|node| node.id).collect();
        for id in ids {
            drop((next.filter(id), next.ssh(id), next.peers(id)));
        }
        Prepared(next)
    }

    /// Puts a policy in force for the tailnet as it is now. Every stream for which something
    /// differs is told in one frame.
    pub fn put_policy(&self, number: ChangeNumber, Prepared(mut next): Prepared) {
        let mut state = self.state();
        let state = &mut *state;
        state.number = number;
        catch_up(&mut next, &state.network);
        let before = std::mem::replace(&mut state.network, next);
        let before = Before::all(before, &state.network);
        let relays = &state.network.policy().options.derp_map;
        let relays = self.settings.relays(relays.as_ref());
        let mut post = Post::new(&self.settings, None);
        post.new_relays = relays != state.relays;
        state.relays = relays;
        for member in state.members.values_mut() {
            member.forget_renderings();
        }
        state.follow(post, &before);
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> Arc<Policy> {
        self.with_network(|network| Arc::clone(network.policy()))
    }

    /// Lets `ask` look at what the policy in force says of the tailnet. Everything else waits
    /// meanwhile: clone the network for long questions.
    pub fn with_network<T>(&self, ask: impl FnOnce(&Network) -> T) -> T {
        ask(&self.state().network)
    }
}

/// Takes in what changed in the tailnet while `next` was made, and the primary routers.
fn catch_up(next: &mut Network, current: &Network) {
    let known: BTreeMap<_, _> = next.users().map(|user| (user.id, user.clone())).collect();
    let users: BTreeMap<_, _> = current.users().map(|user| (user.id, user)).collect();
    for id in known.keys().filter(|id| !users.contains_key(id)) {
        next.remove_user(*id);
    }
    for (id, user) in users {
        if known.get(&id) != Some(user) {
            next.put_user(user.clone());
        }
    }
    let known: Vec<NodeId> = next.nodes().map(|node| node.id).collect();
    for id in known {
        if current.node(id).is_none() {
            next.remove_node(id);
        }
    }
    for node in current.nodes() {
        if next.node(node.id) != Some(node) {
            next.put_node(node.clone());
        }
    }
    let known = next.primaries().clone();
    for route in known
        .keys()
        .filter(|route| !current.primaries().contains_key(route))
    {
        next.set_primary(*route, None);
    }
    for (route, router) in current.primaries() {
        next.set_primary(*route, Some(*router));
    }
}

impl State {
    /// Takes in a node that was changed in `members`, and tells its viewers and everybody else for
    /// whom something follows from it.
    pub(super) fn changed(&mut self, settings: &MapSettings, id: NodeId, news: &News) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        member.forget_renderings();
        let new = tailnet::node(&member.node, member.is_available());
        let old = self.network.node(id).cloned();
        if let Some(old) = &old
            && is_alike(old, &new)
        {
            if *old != new {
                self.network.put_node(new);
            }
            self.announce(settings, id, news);
            self.tell_own(settings, id);
            return;
        }
        let old_routes = old.map(|old| old.routes).unwrap_or_default();
        let routes: BTreeSet<IpNet> = old_routes.union(&new.routes).copied().collect();
        let before = self.before(self.touched(id, &routes));
        self.routers.update(id, &old_routes, &new.routes);
        self.network.put_node(new);
        self.elect(&routes);
        self.follow(Post::new(settings, Some((id, news))), &before);
    }

    /// Forgets a node that is no longer in `members`, and tells everybody concerned.
    pub(super) fn removed(&mut self, settings: &MapSettings, id: NodeId) {
        let Some(old) = self.network.node(id).cloned() else {
            return;
        };
        let before = self.before(self.touched(id, &old.routes));
        self.routers.update(id, &old.routes, &BTreeSet::new());
        self.network.remove_node(id);
        self.elect(&old.routes);
        self.follow(Post::new(settings, None), &before);
    }

    /// Makes sure that every one of these routes has its primary router.
    pub(super) fn elect<'a>(&mut self, routes: impl IntoIterator<Item = &'a IpNet>) {
        for route in routes {
            let current = self.network.primaries().get(route).copied();
            let available = |id| self.members.get(&id).is_some_and(|m| m.is_available());
            let elected = self.routers.elect(route, current, available);
            if elected != current {
                self.network.set_primary(*route, elected);
            }
        }
    }

    /// The nodes that somebody may see in another way after a change of `id`: itself, and the
    /// routers that serve the same routes before or after it, of which the policy or
    /// [`State::elect`] may choose another.
    fn touched(&self, id: NodeId, routes: &BTreeSet<IpNet>) -> BTreeSet<NodeId> {
        let mut touched = self.routers.sharing(routes);
        touched.insert(id);
        touched
    }
}

/// Does the node serve any routes?
pub(super) fn serves(node: &policy::tailnet::Node) -> bool {
    node.exit || !node.routes.is_empty()
}

/// Do two states of a node mean the same to every policy? Its name does not count, and whether it
/// is online only with routes.
fn is_alike(old: &policy::tailnet::Node, new: &policy::tailnet::Node) -> bool {
    let routes = serves(old) || serves(new);
    let new = policy::tailnet::Node {
        name: old.name.clone(),
        online: if routes { new.online } else { old.online },
        ..new.clone()
    };
    *old == new
}
