//! The map engine: holds one tailnet in memory and turns each change into one small delta.
//!
//! Nothing here waits, spawns or reads a clock: callers pass `now`, hold no lock across an await,
//! and own the timers. A change finds its viewers, is rendered once, and is in every viewer's
//! queue when the call returns. A stream is registered before its snapshot is taken, in the same
//! critical section, so no change can fall between the two.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use control_proto::tailcfg::{Compress, Hostinfo, PeerChange, RegionId};
use keys::{DiscoPublic, MachinePublic, NodePublic};
use time::OffsetDateTime;

use crate::model::{ChangeNumber, Node, NodeId, User, UserId};
use crate::store::Loaded;

mod delta;
mod render;
mod session;
mod snapshot;
#[cfg(test)]
mod tests;
mod wire;

use delta::{Delta, Parts};
pub(crate) use render::login_name;
pub use render::{MapSettings, TAGGED_DEVICES};
pub use session::{Next, QUEUE_LIMIT, Session};
pub use snapshot::Snapshot;

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
    /// Viewers were told that its key is expired.
    told_expired: bool,
    session: Option<Arc<Session>>,
    /// Rendered for viewers; always up to date.
    peer: Bytes,
}

/// A node and whether it is online.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// The node.
    pub node: Node,
    /// It has a map stream, or had one within the grace period.
    pub online: bool,
}

/// What a node says about itself; `None` and empty values leave the stored ones alone.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Capability version of the request.
    pub capver: u16,
    /// All of it: there is no partial form.
    pub hostinfo: Option<Hostinfo>,
    /// All of them.
    pub endpoints: Option<Vec<SocketAddr>>,
    /// Not zero.
    pub disco: Option<DiscoPublic>,
}

/// A node lost its last stream and has some time to come back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Absence {
    node: NodeId,
    number: u64,
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

    // ---- Reading ----

    /// Sizes as of now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let state = self.state();
        Counts {
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
                .filter(|member| member.session.is_some())
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
    pub fn taken(&self) -> (BTreeSet<String>, BTreeSet<std::net::Ipv4Addr>) {
        let state = self.state();
        state
            .members
            .values()
            .map(|member| (member.node.name.clone(), member.node.addresses.v4))
            .unzip()
    }

    // ---- Changes that were committed ----

    /// Takes note of a change that no map shows, such as an auth key.
    pub fn put_nothing(&self, number: ChangeNumber) {
        self.state().number = number;
    }

    /// Takes in a new user.
    pub fn put_user(&self, number: ChangeNumber, user: User) {
        let mut state = self.state();
        state.number = number;
        state.users.insert(user.id, user);
    }

    /// Forgets a user, who has no nodes.
    pub fn remove_user(&self, number: ChangeNumber, id: UserId) {
        let mut state = self.state();
        state.number = number;
        state.users.remove(&id);
    }

    /// Takes in a new node, or a node that was renamed, tagged, re-keyed, expired or given to
    /// another owner. What it reported meanwhile is kept as the engine has it.
    pub fn put_node(&self, number: ChangeNumber, node: Node, now: OffsetDateTime) {
        let mut state = self.state();
        state.number = number;
        let id = node.id;
        state.by_key.insert(node.key, id);
        if let Some(member) = state.members.get_mut(&id) {
            let old_key = member.node.key;
            let rekeyed = old_key != node.key;
            member.node = Node {
                endpoints: std::mem::take(&mut member.node.endpoints),
                disco: member.node.disco,
                home_derp: member.node.home_derp,
                last_seen: member.node.last_seen,
                ..node
            };
            member.told_expired = member.node.is_expired(now);
            member.rendered(&self.settings, now);
            if rekeyed {
                // Its stream speaks for the old key; the node opens another with the new one.
                if let Some(session) = member.session.take() {
                    session.end();
                }
                state.by_key.remove(&old_key);
            } else if let Some(session) = &member.session {
                session.push_own(render::own(&self.settings, &member.node));
            }
        } else {
            let member = Member::new(&self.settings, node, now);
            state.members.insert(id, member);
        }
        state.announce_whole(&self.settings, id);
    }

    /// Forgets a node. Its own stream is told that its key is expired, so that it asks for a new
    /// login instead of retrying (pitfall 18), and then ends.
    pub fn remove_node(&self, number: ChangeNumber, id: NodeId, now: OffsetDateTime) {
        let mut state = self.state();
        state.number = number;
        state.unsaved.remove(&id);
        state.unheard.remove(&id);
        let Some(member) = state.members.remove(&id) else {
            return;
        };
        state.by_key.remove(&member.node.key);
        state.removals.push_back(id);
        if state.removals.len() > REMOVALS_KEPT {
            state.removals.pop_front();
            state.removals_forgotten += 1;
        }
        if let Some(session) = &member.session {
            let gone = Node {
                expires: Some(now - time::Duration::seconds(1)),
                ..member.node
            };
            session.push_own(render::own(&self.settings, &gone));
            session.end();
        }
        let parts = Parts {
            removed: [id].into(),
            ..Parts::default()
        };
        state.announce(id, parts);
    }

    // ---- Changes that are written behind ----

    /// Has the node not reported since the server started?
    #[must_use]
    pub fn is_unheard(&self, id: NodeId) -> bool {
        self.state().unheard.contains(&id)
    }

    /// Takes in what a node says about itself; tells viewers what really changed.
    pub fn report(&self, id: NodeId, report: Report, now: OffsetDateTime) {
        let mut state = self.state();
        // A registration brings no disco key; it is not the report that peers wait for.
        if report.disco.is_some() {
            state.unheard.remove(&id);
        }
        let Some(member) = state.members.get_mut(&id) else {
            return;
        };
        let before = member.node.clone();
        let node = &mut member.node;
        node.capver = report.capver;
        if let Some(mut hostinfo) = report.hostinfo {
            // No NetInfo does not mean that the home relay is lost (pitfall 35).
            if hostinfo.net_info.is_none() {
                hostinfo.net_info = node.hostinfo.net_info.take();
            }
            node.home_derp = home_derp(&hostinfo).unwrap_or(node.home_derp);
            node.hostinfo = hostinfo;
        }
        if let Some(endpoints) = report.endpoints {
            node.endpoints = endpoints;
        }
        if let Some(disco) = report.disco {
            node.disco = Some(disco);
        }
        if *node == before {
            return;
        }

        let whole = node.capver != before.capver
            || render::peer_hostinfo(&node.hostinfo) != render::peer_hostinfo(&before.hostinfo);
        let mut patch = PeerChange {
            node_id: id,
            ..PeerChange::default()
        };
        if node.endpoints != before.endpoints {
            patch.endpoints = Some(node.endpoints.clone());
        }
        if node.home_derp != before.home_derp {
            patch.derp_region = node.home_derp;
        }
        if node.disco != before.disco {
            // Clients ignore a key that comes without an honest word on liveness (4.4).
            patch.disco_key = node.disco;
            patch.online = Some(member.online);
            patch.last_seen = if member.online {
                None
            } else {
                node.last_seen.map(render::timestamp)
            };
        }
        let visible = patch
            != PeerChange {
                node_id: id,
                ..PeerChange::default()
            };
        if whole || visible {
            member.rendered(&self.settings, now);
        }
        state.unsaved.insert(id);
        if whole {
            state.announce_whole(&self.settings, id);
        } else if visible {
            state.announce(
                id,
                Parts {
                    patches: [(id, patch)].into(),
                    ..Parts::default()
                },
            );
        }
    }

    /// Takes the nodes whose reports have to be written.
    #[must_use]
    pub fn take_unsaved(&self) -> Vec<Node> {
        let mut state = self.state();
        let ids = std::mem::take(&mut state.unsaved);
        let saved = ids.iter().filter_map(|id| state.members.get(id));
        saved.map(|member| member.node.clone()).collect()
    }

    /// Puts nodes back whose reports could not be written.
    pub fn put_back_unsaved(&self, nodes: &[Node]) {
        self.state()
            .unsaved
            .extend(nodes.iter().map(|node| node.id));
    }

    // ---- Streams ----

    /// Opens a node's stream, superseding its older one, and takes the first frame's snapshot.
    #[must_use]
    pub fn connect(
        &self,
        id: NodeId,
        compress: Compress,
        now: OffsetDateTime,
    ) -> Option<(Arc<Session>, Snapshot)> {
        let mut state = self.state();
        state.sessions_opened += 1;
        let removals = state.removals_forgotten + state.removals.len() as u64;
        let session = Arc::new(Session::new(id, state.sessions_opened, removals, compress));
        let member = state.members.get_mut(&id)?;
        if let Some(older) = member.session.replace(Arc::clone(&session)) {
            older.end();
        }
        if !member.online {
            member.online = true;
            member.rendered(&self.settings, now);
            let patch = PeerChange {
                node_id: id,
                online: Some(true),
                ..PeerChange::default()
            };
            state.announce(
                id,
                Parts {
                    patches: [(id, patch)].into(),
                    ..Parts::default()
                },
            );
        }
        let snapshot = state.snapshot(&self.settings, id)?;
        Some((session, snapshot))
    }

    /// What a node would be told now, for a one-shot request.
    #[must_use]
    pub fn snapshot(&self, id: NodeId) -> Option<Snapshot> {
        self.state().snapshot(&self.settings, id)
    }

    /// A fresh full frame for a stream that fell behind; `None` if it has to reconnect.
    #[must_use]
    pub fn resync(&self, session: &Session) -> Option<Snapshot> {
        let state = self.state();
        let current = state.members.get(&session.node)?.session.as_ref()?;
        if current.number != session.number {
            return None;
        }
        let mut snapshot = state.snapshot(&self.settings, session.node)?;
        if snapshot.is_lonely() {
            // An empty list of peers clears nothing: name those that are gone (pitfall 24).
            let skip = session
                .removals_seen
                .checked_sub(state.removals_forgotten)?;
            let skip = usize::try_from(skip).ok()?;
            snapshot.removed = state.removals.iter().skip(skip).copied().collect();
        }
        Some(snapshot)
    }

    /// Closes a stream. If the node has none now, returns its absence: hand that to
    /// [`Engine::end_grace`] when the grace period is over.
    #[must_use]
    pub fn disconnect(&self, session: &Session, now: OffsetDateTime) -> Option<Absence> {
        let mut state = self.state();
        let member = state.members.get_mut(&session.node)?;
        if member
            .session
            .as_ref()
            .is_some_and(|current| current.number == session.number)
        {
            member.session = None;
        }
        // A stream that was ended on re-keying is gone from here already.
        if member.session.is_some() || !member.online {
            return None;
        }
        member.node.last_seen = Some(now);
        member.absent_since = now;
        member.absences += 1;
        let absence = Absence {
            node: session.node,
            number: member.absences,
        };
        state.unsaved.insert(session.node);
        Some(absence)
    }

    /// The grace period is over: unless the node has been back since, viewers are told that it is
    /// offline.
    pub fn end_grace(&self, absence: Absence, now: OffsetDateTime) {
        let mut state = self.state();
        let id = absence.node;
        let Some(member) = state.members.get_mut(&id) else {
            return;
        };
        if !member.online || member.session.is_some() || member.absences != absence.number {
            return;
        }
        member.online = false;
        member.rendered(&self.settings, now);
        let patch = PeerChange {
            node_id: id,
            online: Some(false),
            last_seen: member.node.last_seen.map(render::timestamp),
            ..PeerChange::default()
        };
        state.announce(
            id,
            Parts {
                patches: [(id, patch)].into(),
                ..Parts::default()
            },
        );
    }

    // ---- Time ----

    /// Tells viewers of keys that expired by themselves since the last call. Returns those keys.
    pub fn announce_expired(&self, now: OffsetDateTime) -> Vec<NodePublic> {
        let mut state = self.state();
        let expired: Vec<NodeId> = state
            .members
            .values()
            .filter(|member| !member.told_expired && member.node.is_expired(now))
            .map(|member| member.node.id)
            .collect();
        let mut keys = Vec::with_capacity(expired.len());
        for id in expired {
            if let Some(member) = state.members.get_mut(&id) {
                member.told_expired = true;
                member.rendered(&self.settings, now);
                keys.push(member.node.key);
                state.announce_whole(&self.settings, id);
            }
        }
        keys
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

    /// Ends all streams, for a clean shutdown.
    pub fn end_sessions(&self) {
        for member in self.state().members.values() {
            if let Some(session) = &member.session {
                session.end();
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is complete before anything that could panic on behalf of another.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The home relay that a host tells of; none is not "no home" (pitfall 35).
pub(crate) fn home_derp(hostinfo: &Hostinfo) -> Option<RegionId> {
    hostinfo
        .net_info
        .as_ref()
        .map(|net| net.preferred_derp)
        .filter(|region| *region > 0)
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
