//! The map engine: holds one tailnet in memory and turns each change into one small delta.
//!
//! Nothing here waits, spawns or reads a clock: callers pass `now`, hold no lock across an await,
//! and own the timers. A change finds its viewers, is rendered once, and is in every viewer's
//! queue when the call returns. A stream is registered before its snapshot is taken, in the same
//! critical section, so no change can fall between the two.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use keys::NodePublic;
use time::OffsetDateTime;

use crate::model::{ChangeNumber, Node, NodeId, User, UserId};
use crate::store::Loaded;

mod changes;
#[cfg(test)]
mod convergence;
mod delta;
mod reading;
mod render;
mod session;
mod snapshot;
mod streams;
#[cfg(test)]
mod tests;
mod wire;

pub use changes::Report;
pub(crate) use changes::home_derp;
use delta::{Delta, Parts};
pub use reading::{Counts, NodeView};
pub(crate) use render::login_name;
pub use render::{MapSettings, TAGGED_DEVICES};
pub use session::{Next, QUEUE_LIMIT, Session};
pub use snapshot::Snapshot;
pub use streams::Absence;

/// Deletions remembered for streams that may need them in a full frame; older streams are closed.
const REMOVALS_KEPT: usize = 4096;

/// One tailnet, in memory.
#[derive(Debug)]
pub struct Engine {
    settings: MapSettings,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    number: ChangeNumber,
    users: BTreeMap<UserId, User>,
    members: BTreeMap<NodeId, Member>,
    by_key: HashMap<NodePublic, NodeId>,
    /// Deleted nodes, newest last, with the count of all deletions before them.
    removals: VecDeque<NodeId>,
    removals_forgotten: u64,
    sessions_opened: u64,
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
    /// When it was last seen to be absent; for ephemeral nodes.
    absent_since: OffsetDateTime,
    /// How often it lost its last stream.
    absences: u64,
    /// Its disco key changed while it was offline: viewers would not believe it (protocol digest
    /// 4.4) and are told when it is back.
    disco_untold: bool,
    /// Viewers were told that its key is expired.
    told_expired: bool,
    session: Option<Arc<Session>>,
    /// Rendered for viewers; always up to date.
    peer: Bytes,
}

impl Engine {
    /// Starts with what the database holds; everybody is offline.
    #[must_use]
    pub fn new(settings: MapSettings, loaded: Loaded, now: OffsetDateTime) -> Self {
        let mut state = State {
            number: loaded.number,
            users: loaded
                .users
                .into_iter()
                .map(|user| (user.id, user))
                .collect(),
            ..State::default()
        };
        for node in loaded.nodes {
            state.by_key.insert(node.key, node.id);
            state.unheard.insert(node.id);
            let member = Member::new(&settings, node, now);
            state.members.insert(member.node.id, member);
        }
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
    /// The nodes that see `id`. Under the default policy everybody sees everybody.
    fn viewers(&self, id: NodeId) -> impl Iterator<Item = &Arc<Session>> {
        let others = self
            .members
            .values()
            .filter(move |member| member.node.id != id);
        others.filter_map(|member| member.session.as_ref())
    }

    fn announce(&self, id: NodeId, parts: Parts) {
        let delta = Arc::new(Delta::new(parts));
        for session in self.viewers(id) {
            session.push(&delta);
        }
    }

    fn announce_whole(&self, settings: &MapSettings, id: NodeId) {
        let Some(member) = self.members.get(&id) else {
            return;
        };
        let owner = render::owner(&member.node);
        let parts = Parts {
            changed: [(id, member.peer.clone())].into(),
            profiles: [(owner, self.profile(settings, owner))].into(),
            ..Parts::default()
        };
        self.announce(id, parts);
    }

    /// Tells a node of itself, if it has a stream.
    fn tell_own(&self, settings: &MapSettings, id: NodeId) {
        if let Some(member) = self.members.get(&id)
            && let Some(session) = &member.session
        {
            session.push_own(self.own(settings, &member.node));
        }
    }

    fn own(&self, settings: &MapSettings, node: &Node) -> session::Own {
        let owner = render::owner(node);
        session::Own {
            node: render::own(settings, node),
            owner: (owner, self.profile(settings, owner)),
        }
    }

    fn profile(&self, settings: &MapSettings, id: UserId) -> Bytes {
        render::profile(settings, id, self.users.get(&id))
    }

    fn snapshot(&self, settings: &MapSettings, id: NodeId) -> Option<Snapshot> {
        let own = &self.members.get(&id)?.node;
        let peers = || self.members.values().filter(|member| member.node.id != id);
        let mut owners: BTreeSet<UserId> =
            peers().map(|member| render::owner(&member.node)).collect();
        owners.insert(render::owner(own));
        Some(Snapshot {
            prelude: settings.prelude.clone(),
            own: render::own(settings, own),
            peers: peers().map(|member| member.peer.clone()).collect(),
            profiles: owners
                .into_iter()
                .map(|id| self.profile(settings, id))
                .collect(),
            removed: Vec::new(),
        })
    }
}

impl Member {
    fn new(settings: &MapSettings, node: Node, now: OffsetDateTime) -> Self {
        let mut member = Self {
            online: false,
            absent_since: now,
            absences: 0,
            disco_untold: false,
            told_expired: node.is_expired(now),
            session: None,
            peer: Bytes::new(),
            node,
        };
        member.rendered(settings, now);
        member
    }

    fn rendered(&mut self, settings: &MapSettings, now: OffsetDateTime) {
        self.peer = render::peer(settings, &self.node, self.online, now);
    }

    fn view(&self) -> NodeView {
        NodeView {
            node: self.node.clone(),
            online: self.online,
        }
    }
}
