//! What streams knew before a change, so that each is told what differs for it and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use policy::Network;
use policy::compile::PeerView;

use super::State;
use crate::model::NodeId;

/// What was known before a change.
pub(super) enum Before {
    /// Of the nodes that the change is about.
    Nodes(BTreeMap<NodeId, Known>),
    /// Of all: the whole policy is another.
    All(Box<Everything>),
}

/// What was known of one node, and what it knew.
pub(super) struct Known {
    /// As those saw it that have a stream.
    shown: BTreeMap<NodeId, PeerView>,
    /// What it saw, if it has a stream itself.
    seen: BTreeMap<NodeId, PeerView>,
}

/// Everything that was known.
pub(super) struct Everything {
    network: Network,
    /// Nodes that some may see in another way than before; all others look the same to whoever saw
    /// them and still does.
    suspects: BTreeSet<NodeId>,
    /// Nodes that may see any peer in another way than before.
    changed_eyes: BTreeSet<NodeId>,
}

/// What a change does to the peers of one viewer.
#[derive(Default)]
pub(super) struct Edits {
    /// No longer seen.
    pub(super) removed: Vec<NodeId>,
    /// New, or shown in another way.
    pub(super) changed: Vec<Edit>,
    /// Of the nodes that the change is about: those seen as before, as far as the policy goes.
    pub(super) same: Vec<NodeId>,
}

/// A peer that is new or shown in another way.
pub(super) struct Edit {
    pub(super) peer: NodeId,
    pub(super) view: PeerView,
    pub(super) is_new: bool,
}

impl State {
    /// Notes what is known of and by these nodes.
    pub(super) fn before(&self, nodes: impl IntoIterator<Item = NodeId>) -> Before {
        let known = |id| (id, self.known(id));
        Before::Nodes(nodes.into_iter().map(known).collect())
    }

    fn known(&self, id: NodeId) -> Known {
        let peers = self.network.peers(id);
        let has_stream = |id: &NodeId| self.members.get(id).is_some_and(|m| m.stream.is_some());
        let shown = peers.iter().copied().filter(has_stream);
        let seen = peers.iter().copied().filter(|_| has_stream(&id));
        Known {
            shown: shown
                .map(|viewer| (viewer, self.network.peer_view(viewer, id)))
                .collect(),
            seen: seen
                .map(|peer| (peer, self.network.peer_view(id, peer)))
                .collect(),
        }
    }
}

impl Before {
    /// Everything that was known under the policy of `before`.
    pub(super) fn all(before: Network, after: &Network) -> Self {
        let changed_eyes: BTreeSet<NodeId> = after
            .nodes()
            .filter(|node| {
                let (old, new) = (before.own_view(node.id), after.own_view(node.id));
                (old.addresses, old.attributes) != (new.addresses, new.attributes)
            })
            .map(|node| node.id)
            .collect();
        let routers = after
            .nodes()
            .filter(|node| node.exit || !node.routes.is_empty());
        let mut suspects = changed_eyes.clone();
        suspects.extend(routers.map(|node| node.id));
        Self::All(Box::new(Everything {
            network: before,
            suspects,
            changed_eyes,
        }))
    }

    /// May the change affect what this node is told of itself?
    pub(super) fn covers(&self, id: NodeId) -> bool {
        match self {
            Self::Nodes(nodes) => nodes.contains_key(&id),
            Self::All(_) => true,
        }
    }

    /// What the change does to the peers of `viewer`.
    pub(super) fn edits(&self, after: &Network, viewer: NodeId) -> Edits {
        match self {
            Self::Nodes(nodes) => edits_of_nodes(nodes, after, viewer),
            Self::All(everything) => everything.edits(after, viewer),
        }
    }
}

fn edits_of_nodes(nodes: &BTreeMap<NodeId, Known>, after: &Network, viewer: NodeId) -> Edits {
    let mut edits = Edits::default();
    let own = nodes.get(&viewer);
    for (id, known) in nodes.iter().filter(|(id, _)| **id != viewer) {
        let before = known.shown.get(&viewer);
        if !after.sees(viewer, *id) {
            edits.removed.extend(before.map(|_| *id));
        } else if !edits.add(after, viewer, *id, before) {
            edits.same.push(*id);
        }
    }
    if let Some(own) = own {
        let others = after
            .peers(viewer)
            .into_iter()
            .filter(|id| !nodes.contains_key(id));
        for id in others {
            edits.add(after, viewer, id, own.seen.get(&id));
        }
        let lost = own.seen.keys().copied();
        edits
            .removed
            .extend(lost.filter(|id| !nodes.contains_key(id) && !after.sees(viewer, *id)));
    }
    edits
}

impl Everything {
    fn edits(&self, after: &Network, viewer: NodeId) -> Edits {
        let mut edits = Edits::default();
        let (old, new) = (self.network.peers(viewer), after.peers(viewer));
        let suspicious = self.changed_eyes.contains(&viewer);
        let mut old = old.into_iter().peekable();
        for id in new {
            while let Some(gone) = old.next_if(|peer| *peer < id) {
                edits.removed.push(gone);
            }
            if old.next_if_eq(&id).is_none() {
                edits.add(after, viewer, id, None);
            } else if suspicious || self.suspects.contains(&id) {
                edits.add(after, viewer, id, Some(&self.network.peer_view(viewer, id)));
            }
        }
        edits.removed.extend(old);
        edits
    }
}

impl Edits {
    /// Takes in a peer that is seen now; `false` if it looks as before.
    fn add(
        &mut self,
        after: &Network,
        viewer: NodeId,
        peer: NodeId,
        before: Option<&PeerView>,
    ) -> bool {
        let view = after.peer_view(viewer, peer);
        let differs = before != Some(&view);
        if differs {
            let is_new = before.is_none();
            self.changed.push(Edit { peer, view, is_new });
        }
        differs
    }
}
