//! All relay connections of the node: [`Manager`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use derp_proto::Frame;
use keys::{NodePrivate, NodePublic};
use node_core::{DerpMap, RegionId};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::held::Held;
use super::region::{self, Link};
use crate::net::{RelayStatus, traffic};
use crate::relayed::Inbound;

/// Notices that may wait for whoever reads them.
const MAX_NOTICES: usize = 64;

/// What happened to a relay connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Notice {
    /// The relay admitted us.
    Connected(RegionId),
    /// The connection ended and was not meant to, or could not be made.
    Lost(RegionId),
    /// The relay says that it is unwell, or well again: see [`Manager::status`].
    Health(RegionId),
}

/// Keeps the home region connected and dials other regions when there is something to send.
#[derive(Clone, Debug)]
pub(crate) struct Manager {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Where connections run: whoever sends may be no task.
    runtime: Handle,
    pub(super) inbound: Inbound,
    notices: mpsc::Sender<Notice>,
}

#[derive(Debug, Default)]
struct State {
    key: Option<NodePrivate>,
    map: DerpMap,
    home: Option<RegionId>,
    links: BTreeMap<RegionId, Arc<Link>>,
    /// Peers that were last heard on another region than their home.
    routes: HashMap<NodePublic, RegionId>,
    /// What waits for a home to be chosen.
    held: Held,
}

impl Manager {
    /// Makes a manager without key and map: it connects nothing yet. Call it from a task, beside which its
    /// connections will run.
    pub(crate) fn new(inbound: Inbound) -> (Self, mpsc::Receiver<Notice>) {
        let (notices, receiver) = mpsc::channel(MAX_NOTICES);
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            runtime: Handle::current(),
            inbound,
            notices,
        });
        (Self { shared }, receiver)
    }

    /// Sets key and map. A new key reconnects all regions; a changed region reconnects itself.
    pub(crate) fn configure(&self, key: &NodePrivate, map: &DerpMap) {
        let mut state = self.shared.lock();
        let same_key = state
            .key
            .as_ref()
            .is_some_and(|old| old.as_bytes() == key.as_bytes());
        let State {
            links, map: old, ..
        } = &mut *state;
        links.retain(|id, link| {
            let keep = same_key && old.regions.get(id) == map.regions.get(id);
            if !keep {
                link.stop();
            }
            keep
        });
        state
            .routes
            .retain(|_, region| map.regions.contains_key(region));
        state.key = Some(key.clone());
        state.map = map.clone();
        if let Some(home) = state.home {
            self.ensure(&mut state, home);
        }
    }

    /// Makes a region the home: connected at all times, and told that it is.
    pub(crate) fn set_home(&self, home: Option<RegionId>) {
        let mut state = self.shared.lock();
        let old = std::mem::replace(&mut state.home, home);
        if old == home {
            return;
        }
        if let Some(link) = old.and_then(|old| state.links.get(&old)) {
            link.queue.push_control(Frame::NotePreferred(false));
        }
        let Some((home, link)) = home.and_then(|home| Some((home, self.ensure(&mut state, home)?)))
        else {
            return;
        };
        if link.is_connected() {
            link.queue.push_control(Frame::NotePreferred(true));
        }
        let peers = &self.shared.inbound.peers;
        for (key, packet) in state.held.take(Instant::now()) {
            if let Some(peer) = peers.snapshot().by_key(&key) {
                link.send(key, [&packet[..]]);
                traffic::note_sent(&peers.regions.of(home), &peer.relayed, [&packet[..]]);
            }
        }
    }

    /// Has connections from an address that is none of `ours` any more made anew at once.
    pub(crate) fn keep_from(&self, ours: &BTreeSet<IpAddr>) {
        let state = self.shared.lock();
        for link in state.links.values().filter(|link| !link.is_from(ours)) {
            link.handle_move(ours);
        }
    }

    /// Packets leave another way than before, from `sources`: connections from other addresses are made anew at
    /// once, the others have to show that they live, and what is being dialled is dialled again.
    pub(crate) fn handle_move(&self, sources: &BTreeSet<IpAddr>) {
        for link in self.shared.lock().links.values() {
            link.handle_move(sources);
        }
    }

    /// Closes every connection and forgets key and map.
    pub(crate) fn stop(&self) {
        let mut state = self.shared.lock();
        for link in state.links.values() {
            link.stop();
        }
        *state = State::default();
    }

    /// Queues packets for a peer on the connection by which it is reached: its home region if that is
    /// open, else one on which it was heard, else its home region, dialled now. Returns that region, if there is
    /// one; before we have a home ourselves, the newest packets of such peers wait for it.
    ///
    /// Queued under the lock, so that a connection with something to send is never given up.
    pub(crate) fn send<'a>(
        &self,
        peer: &NodePublic,
        home: Option<RegionId>,
        packets: impl IntoIterator<Item = &'a [u8]>,
    ) -> Option<RegionId> {
        let mut state = self.shared.lock();
        let Some((region, link)) = self.link_to(&mut state, peer, home) else {
            if home.is_none() && state.home.is_none() {
                state.held.push(*peer, packets, Instant::now());
            }
            return None;
        };
        link.send(*peer, packets);
        Some(region)
    }

    fn link_to(
        &self,
        state: &mut State,
        peer: &NodePublic,
        home: Option<RegionId>,
    ) -> Option<(RegionId, Arc<Link>)> {
        let open = |region: &RegionId| {
            let link = state.links.get(region)?;
            link.is_connected().then(|| (*region, link.clone()))
        };
        if let Some(link) = home.as_ref().and_then(open) {
            return Some(link);
        }
        if let Some(link) = state.routes.get(peer).and_then(open) {
            return Some(link);
        }
        // A peer that has only just joined has told nobody where it listens: it may well be where we
        // do, and a lost handshake costs 5 s.
        let home = home.or(state.home)?;
        Some((home, self.ensure(state, home)?))
    }

    /// When a frame last came from a region.
    pub(crate) fn last_heard(&self, region: RegionId) -> Option<Instant> {
        self.shared.lock().links.get(&region)?.last_heard()
    }

    /// The home region and its code.
    pub(crate) fn home(&self) -> Option<(RegionId, String)> {
        let state = self.shared.lock();
        let home = state.home?;
        Some((home, state.map.code(home).to_owned()))
    }

    /// The code of a region.
    pub(crate) fn code(&self, region: RegionId) -> String {
        self.shared.lock().map.code(region).to_owned()
    }

    /// True if the home region is connected, or there is none to connect to.
    pub(crate) fn is_home_connected(&self) -> bool {
        let state = self.shared.lock();
        state.home.is_none_or(|home| {
            let link = state.links.get(&home);
            link.is_some_and(|link| link.is_connected())
        })
    }

    /// Returns every connection, in order of regions.
    pub(crate) fn status(&self) -> Vec<RelayStatus> {
        let state = self.shared.lock();
        let links = state.links.iter();
        links
            .map(|(id, link)| RelayStatus {
                region: *id,
                code: state.map.code(*id).to_owned(),
                connected: link.is_connected(),
                problem: link.problem(),
                dropped: link.queue.dropped(),
            })
            .collect()
    }

    /// Returns the connection of a region and starts it if there is none.
    fn ensure(&self, state: &mut State, id: RegionId) -> Option<Arc<Link>> {
        if let Some(link) = state.links.get(&id) {
            return Some(link.clone());
        }
        let key = state.key.clone()?;
        let region = state.map.regions.get(&id)?.clone();
        let link = region::start(region, key, self.shared.clone(), &self.shared.runtime);
        state.links.insert(id, link.clone());
        Some(link)
    }
}

impl Shared {
    pub(super) fn is_home(&self, region: RegionId) -> bool {
        self.lock().home == Some(region)
    }

    /// Notes that a peer was heard on `region`, which is not its home.
    pub(super) fn learn_route(&self, peer: NodePublic, region: RegionId) {
        self.lock().routes.insert(peer, region);
    }

    /// Forgets that a peer was heard on `region`.
    pub(super) fn forget_route(&self, peer: &NodePublic, region: RegionId) {
        let mut state = self.lock();
        if state.routes.get(peer) == Some(&region) {
            state.routes.remove(peer);
        }
    }

    pub(super) fn forget_routes(&self, region: RegionId) {
        self.lock().routes.retain(|_, route| *route != region);
    }

    /// Removes a connection that is not needed any more; false if it is needed after all.
    pub(super) fn retire(&self, region: RegionId, link: &Arc<Link>) -> bool {
        let mut state = self.lock();
        let present = state.links.get(&region);
        if !present.is_some_and(|present| Arc::ptr_eq(present, link)) {
            // Another one has taken its place.
            return true;
        }
        let needed = state.home == Some(region) || !link.queue.is_empty();
        if !needed {
            state.links.remove(&region);
        }
        !needed
    }

    pub(super) fn notify(&self, notice: Notice) {
        // A full channel means that its reader looks at the whole status soon anyway.
        if self.notices.try_send(notice).is_err() {
            tracing::trace!("relay notice dropped");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use node_core::derp::Region;

    use super::*;
    use crate::net::peers::Peers;
    use crate::relayed::Relayed;

    const REGION: RegionId = RegionId(900);

    fn manager() -> Manager {
        let inbound = Inbound {
            relayed: Arc::new(Relayed::bind(None, 41641, tunnel::Inlet::default()).unwrap()),
            peers: Peers::default(),
            paths: crate::paths::channel().0,
            junk: crate::paths::Tally::default(),
        };
        Manager::new(inbound).0
    }

    /// A region that cannot be dialled.
    fn map() -> DerpMap {
        let region = Region {
            id: REGION,
            code: "lab".into(),
            name: "Lab".into(),
            never_home: false,
            nodes: Vec::new(),
        };
        DerpMap {
            regions: BTreeMap::from([(REGION, region)]),
            scores: BTreeMap::new(),
        }
    }

    fn link(manager: &Manager) -> Option<Arc<Link>> {
        manager.shared.lock().links.get(&REGION).cloned()
    }

    #[tokio::test]
    async fn a_retired_connection_does_not_take_its_successor_along() {
        let (manager, peer) = (manager(), NodePublic::from_bytes([1; 32]));
        manager.configure(&NodePrivate::generate(), &map());
        assert_eq!(manager.send(&peer, Some(REGION), [&b"1"[..]]), Some(REGION));
        let old = link(&manager).unwrap();

        manager.configure(&NodePrivate::generate(), &map());
        assert_eq!(manager.send(&peer, Some(REGION), [&b"2"[..]]), Some(REGION));
        let new = link(&manager).unwrap();
        new.queue.clear_packets();

        assert!(manager.shared.retire(REGION, &old));
        assert!(Arc::ptr_eq(&link(&manager).unwrap(), &new));
        assert!(manager.shared.retire(REGION, &new));
        assert!(link(&manager).is_none());
    }

    #[tokio::test]
    async fn a_connection_with_something_to_send_is_kept() {
        let (manager, peer) = (manager(), NodePublic::from_bytes([1; 32]));
        manager.configure(&NodePrivate::generate(), &map());
        assert_eq!(manager.send(&peer, Some(REGION), [&b"1"[..]]), Some(REGION));
        let link = link(&manager).unwrap();

        assert!(!manager.shared.retire(REGION, &link));
        link.queue.clear_packets();
        assert!(manager.shared.retire(REGION, &link));
    }

    #[tokio::test]
    async fn a_region_that_is_not_in_the_map_takes_nothing() {
        let (manager, peer) = (manager(), NodePublic::from_bytes([1; 32]));
        manager.configure(&NodePrivate::generate(), &map());
        assert_eq!(manager.send(&peer, Some(RegionId(1)), [&b"1"[..]]), None);
        assert_eq!(manager.send(&peer, None, [&b"1"[..]]), None);
    }
}
