//! The map engine: holds one tailnet in memory and turns each change into one small delta.
//!
//! Nothing here waits, spawns or reads a clock, but to measure how long changes wait: callers pass
//! `now`, hold no lock across an await, and own the timers. A change finds its viewers, is rendered once for all that see the same of
//! it, and is in every viewer's queue when the call returns. A stream is registered before its
//! snapshot is taken, in the same critical section, so no change can fall between the two.
//!
//! ```text
//! change ─► nodes that it is about ─► Before: who saw them, and how ─► Network (crate policy)
//!                                                                          │
//!           queues of the streams ◄─ one delta per different answer ◄─ what differs, per viewer
//! ```
//!
//! Who sees whom and what is told of it is the policy's business: [`policy::Network`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use keys::NodePublic;
use policy::compile::PeerView;
use policy::{Network, Policy};
use time::OffsetDateTime;

use crate::model::{ChangeNumber, Node, NodeId, User, UserId};
use crate::store::Loaded;

mod access;
mod announce;
mod changes;
mod delta;
mod known;
mod primaries;
mod reading;
mod render;
mod reports;
mod session;
mod snapshot;
mod streams;
mod tailnet;
#[cfg(test)]
mod tests;
mod wire;

pub use access::Prepared;
use announce::{News, Told};
use primaries::Routers;
pub use reading::{Counts, NodeView};
pub(crate) use render::login_name;
pub use render::{MapSettings, TAGGED_DEVICES};
pub use reports::Report;
pub(crate) use reports::home_derp;
pub use session::{Next, QUEUE_LIMIT, Session};
pub use snapshot::Snapshot;
pub use streams::Absence;

/// One tailnet, in memory.
#[derive(Debug)]
pub struct Engine {
    settings: MapSettings,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    number: ChangeNumber,
    users: BTreeMap<UserId, User>,
    members: BTreeMap<NodeId, Member>,
    by_key: HashMap<NodePublic, NodeId>,
    /// The policy in force, and the tailnet as it sees it; follows `users` and `members`.
    network: Network,
    routers: Routers,
    /// The DERP map, rendered.
    relays: Bytes,
    sessions_opened: u64,
    /// When the nodes of the database that are not back by then count as gone.
    awaits_until: Option<OffsetDateTime>,
    /// Nodes whose reports are not in the database yet.
    unsaved: BTreeSet<NodeId>,
    /// Nodes that have not reported since the server started: what the database says of them may
    /// be older than the end of the server before.
    unheard: BTreeSet<NodeId>,
}

/// A node with what is only in memory.
#[derive(Debug)]
struct Member {
    node: Node,
    online: bool,
    /// It may not have had the time to come back since the server started.
    awaited: bool,
    /// When it was last seen to be absent; for ephemeral nodes.
    absent_since: OffsetDateTime,
    /// How often it lost its last stream.
    absences: u64,
    /// Its disco key changed while it was offline: viewers would not believe it (protocol digest
    /// 4.4) and are told when it is back.
    disco_untold: bool,
    /// Viewers were told that its key is expired.
    told_expired: bool,
    stream: Option<Stream>,
    /// As viewers see it, for each way in which the policy shows it; emptied when it changes.
    renderings: Vec<(PeerView, Bytes)>,
    /// As all viewers see it that have an IPv4 address, if it serves no routes.
    plain: Option<Bytes>,
}

/// A node's open map stream.
#[derive(Debug)]
struct Stream {
    session: Arc<Session>,
    told: Told,
}

impl Engine {
    /// Starts with what the database holds, every node allowed to reach every other one until
    /// [`Engine::put_policy`]; everybody is offline.
    #[must_use]
    pub fn new(settings: MapSettings, loaded: Loaded, now: OffsetDateTime) -> Self {
        let users = loaded
            .users
            .iter()
            .map(|user| tailnet::user(&settings, user));
        let nodes = loaded.nodes.iter();
        let nodes = nodes.map(|node| tailnet::node(node, !node.is_expired(now)));
        let open = Policy {
            domain: Some(settings.base_domain().to_owned()),
            ..Policy::allow_all()
        };
        let mut state = State {
            number: loaded.number,
            network: Network::new(Arc::new(open), users, nodes),
            users: loaded
                .users
                .into_iter()
                .map(|user| (user.id, user))
                .collect(),
            members: BTreeMap::new(),
            by_key: HashMap::new(),
            routers: Routers::default(),
            relays: settings.relays(None),
            sessions_opened: 0,
            awaits_until: Some(now + streams::PATIENCE),
            unsaved: BTreeSet::new(),
            unheard: BTreeSet::new(),
        };
        for node in loaded.nodes {
            state.by_key.insert(node.key, node.id);
            state.unheard.insert(node.id);
            let mut member = Member::new(node, now);
            member.awaited = true;
            state.members.insert(member.node.id, member);
        }
        for node in state.network.nodes() {
            state
                .routers
                .update(node.id, &BTreeSet::new(), &node.routes);
        }
        let routes: Vec<_> = state.routers.routes().copied().collect();
        state.elect(&routes);
        Self {
            settings,
            state: Mutex::new(state),
        }
    }

    /// What all map responses have in common.
    #[must_use]
    pub fn settings(&self) -> &MapSettings {
        &self.settings
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is complete before anything that could panic on behalf of another.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn stream(&mut self, id: NodeId) -> Option<&mut Stream> {
        self.members.get_mut(&id)?.stream.as_mut()
    }

    /// A node as it is told about itself.
    fn own(&self, settings: &MapSettings, id: NodeId) -> Option<Bytes> {
        let node = &self.members.get(&id)?.node;
        let role = self.users.get(&render::owner(node)).map(|user| user.role);
        Some(render::own(settings, node, role, self.network.own_view(id)))
    }

    fn profile(&self, settings: &MapSettings, id: UserId) -> Bytes {
        render::profile(settings, id, self.users.get(&id))
    }

    /// Which of a node's renderings shows it so; made if there is none.
    fn rendering(&mut self, settings: &MapSettings, id: NodeId, view: &PeerView) -> Option<usize> {
        Some(self.members.get_mut(&id)?.rendering(settings, view))
    }

    fn snapshot(&mut self, settings: &MapSettings, id: NodeId) -> Option<Snapshot> {
        let own = self.own(settings, id)?;
        let mut owners = BTreeSet::from([render::owner(&self.members.get(&id)?.node)]);
        let is_plain = self.network.own_view(id).addresses.len() == 2;
        let mut peers = Vec::new();
        for peer in self.network.peers(id) {
            let Some(member) = self.members.get_mut(&peer) else {
                continue;
            };
            owners.insert(render::owner(&member.node));
            if let Some(plain) = member.plain.as_ref().filter(|_| is_plain) {
                peers.push(plain.clone());
                continue;
            }
            let view = self.network.peer_view(id, peer);
            let at = member.rendering(settings, &view);
            let Some((_, rendered)) = member.renderings.get(at) else {
                continue;
            };
            peers.push(rendered.clone());
            if is_plain
                && self
                    .network
                    .node(peer)
                    .is_some_and(|node| !access::serves(node))
            {
                member.plain = Some(rendered.clone());
            }
        }
        Some(Snapshot {
            prelude: settings.prelude.clone(),
            relays: self.relays.clone(),
            own,
            filter: self.network.filter(id),
            ssh: self.network.ssh(id),
            peers,
            profiles: owners
                .into_iter()
                .map(|id| self.profile(settings, id))
                .collect(),
            removed: BTreeSet::new(),
        })
    }
}

impl Member {
    fn new(node: Node, now: OffsetDateTime) -> Self {
        Self {
            online: false,
            awaited: false,
            absent_since: now,
            absences: 0,
            disco_untold: false,
            told_expired: node.is_expired(now),
            stream: None,
            renderings: Vec::new(),
            plain: None,
            node,
        }
    }

    /// Can routes be served by it, as far as anybody knows?
    fn is_available(&self) -> bool {
        (self.online || self.awaited) && !self.told_expired
    }

    fn render(&self, settings: &MapSettings, view: &PeerView) -> Bytes {
        render::peer(settings, &self.node, self.online, self.told_expired, view)
    }

    /// Forgets how others see it.
    fn forget_renderings(&mut self) {
        self.renderings.clear();
        self.plain = None;
    }

    fn rendering(&mut self, settings: &MapSettings, view: &PeerView) -> usize {
        let made = self.renderings.iter().position(|(shown, _)| shown == view);
        made.unwrap_or_else(|| {
            self.renderings
                .push((view.clone(), self.render(settings, view)));
            self.renderings.len() - 1
        })
    }

    fn view(&self) -> NodeView {
        NodeView {
            node: self.node.clone(),
            online: self.online,
        }
    }
}
