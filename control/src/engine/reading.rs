//! What the engine knows, for everybody who asks.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use keys::{MachinePublic, NodePublic};
use time::OffsetDateTime;

use super::{Engine, Member};
use crate::model::{ChangeNumber, Node, NodeId, User, UserId};

/// A node and whether it is online.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// The node.
    pub node: Node,
    /// It has a map stream, or had one within the grace period.
    pub online: bool,
}

/// Sizes, for status and metrics.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Number of the last change.
    pub number: ChangeNumber,
    /// Users.
    pub users: usize,
    /// Nodes.
    pub nodes: usize,
    /// Nodes that are online.
    pub online: usize,
    /// Open map streams.
    pub sessions: usize,
    /// Changes that wait in the queues of all streams.
    pub queued: usize,
    /// Changes that wait in the longest of them.
    pub queued_most: usize,
    /// Nodes whose reports are not in the database yet.
    pub unsaved: usize,
}

impl Engine {
    /// Sizes as of now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let state = self.state();
        let streams = state.members.values();
        let streams = streams.filter_map(|member| member.stream.as_ref());
        let backlogs = streams.map(|stream| stream.session.backlog());
        let (queued, queued_most) =
            backlogs.fold((0, 0), |(all, most), one| (all + one, one.max(most)));
        Counts {
            queued,
            queued_most,
            unsaved: state.unsaved.len(),
            number: state.number,
            users: state.users.len(),
            nodes: state.members.len(),
            online: state
                .members
                .values()
                .filter(|member| member.online)
                .count(),
            sessions: state
                .members
                .values()
                .filter(|member| member.stream.is_some())
                .count(),
        }
    }

    /// All users.
    #[must_use]
    pub fn users(&self) -> Vec<User> {
        self.state().users.values().cloned().collect()
    }

    /// The user with this number.
    #[must_use]
    pub fn user(&self, id: UserId) -> Option<User> {
        self.state().users.get(&id).cloned()
    }

    /// The user with this name.
    #[must_use]
    pub fn user_named(&self, name: &str) -> Option<User> {
        self.state()
            .users
            .values()
            .find(|user| user.name == name)
            .cloned()
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeView> {
        self.state().members.values().map(Member::view).collect()
    }

    /// The node with this number.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<NodeView> {
        self.state().members.get(&id).map(Member::view)
    }

    /// The node that has this key.
    #[must_use]
    pub fn node_by_key(&self, key: &NodePublic) -> Option<Node> {
        let state = self.state();
        let id = state.by_key.get(key)?;
        state.members.get(id).map(|member| member.node.clone())
    }

    /// Number and machine of the node that has this key: all that a map request needs.
    #[must_use]
    pub fn identity(&self, key: &NodePublic) -> Option<(NodeId, MachinePublic)> {
        let state = self.state();
        let id = state.by_key.get(key)?;
        state
            .members
            .get(id)
            .map(|member| (*id, member.node.machine))
    }

    /// May this key use the relay: is it the unexpired key of a node?
    #[must_use]
    pub fn admits(&self, key: &NodePublic, now: OffsetDateTime) -> bool {
        let state = self.state();
        state
            .by_key
            .get(key)
            .and_then(|id| state.members.get(id))
            .is_some_and(|member| !member.node.is_expired(now))
    }

    /// The nodes of a machine.
    #[must_use]
    pub fn nodes_of_machine(&self, machine: &MachinePublic) -> Vec<Node> {
        let state = self.state();
        let of_machine = state
            .members
            .values()
            .filter(|member| member.node.machine == *machine);
        of_machine.map(|member| member.node.clone()).collect()
    }

    /// Has a node this overlay address?
    #[must_use]
    pub fn node_at(&self, address: IpAddr) -> Option<NodeView> {
        let has = |node: &Node| match address {
            IpAddr::V4(v4) => node.addresses.v4 == v4,
            IpAddr::V6(v6) => node.addresses.v6 == v6,
        };
        self.state()
            .members
            .values()
            .find(|member| has(&member.node))
            .map(Member::view)
    }

    /// The node with this name.
    #[must_use]
    pub fn node_named(&self, name: &str) -> Option<NodeView> {
        self.state()
            .members
            .values()
            .find(|member| member.node.name == name)
            .map(Member::view)
    }

    /// All names and IPv4 addresses that are taken.
    #[must_use]
    pub fn taken(&self) -> (BTreeSet<String>, BTreeSet<Ipv4Addr>) {
        let state = self.state();
        state
            .members
            .values()
            .map(|member| (member.node.name.clone(), member.node.addresses.v4))
            .unzip()
    }

    /// Ephemeral nodes that have been offline since before `deadline`.
    #[must_use]
    pub fn abandoned(&self, deadline: OffsetDateTime) -> Vec<NodeId> {
        let state = self.state();
        let abandoned = state.members.values().filter(|member| {
            member.node.ephemeral && !member.online && member.absent_since <= deadline
        });
        abandoned.map(|member| member.node.id).collect()
    }
}
