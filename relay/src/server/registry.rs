//! Which connections there are, and which of them a key's packets go to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::{Bytes, BytesMut};
use derp_proto::{Frame, PeerGoneReason};
use keys::NodePublic;

use super::outbox::Outbox;
use crate::metrics::Metrics;

/// PeerPresent flag of an ordinary client.
const FLAG_REGULAR: u8 = 1;
/// PeerPresent flag of another server of the mesh.
const FLAG_MESH: u8 = 2;
/// PeerPresent flag of a client that only measures.
const FLAG_PROBER: u8 = 4;
/// PeerPresent flag of a client that had to take another server than its region's first.
const FLAG_NOT_IDEAL: u8 = 8;

/// One connection, as others see it.
#[derive(Debug)]
pub(crate) struct Client {
    /// Unique among all connections of this process.
    pub(crate) id: u64,
    pub(crate) key: NodePublic,
    pub(crate) remote: SocketAddr,
    pub(crate) traits: Traits,
    pub(crate) outbox: Outbox,
    /// Whether the key has other connections too.
    contested: AtomicBool,
}

/// What a client is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traits {
    pub(crate) mesh: bool,
    pub(crate) prober: bool,
    pub(crate) not_ideal: bool,
}

impl Traits {
    fn flags(self) -> u8 {
        let base = if self.mesh { FLAG_MESH } else { FLAG_REGULAR };
        let prober = if self.prober { FLAG_PROBER } else { 0 };
        let not_ideal = if self.not_ideal { FLAG_NOT_IDEAL } else { 0 };
        base | prober | not_ideal
    }
}

/// To which connection of which key packets were delivered: who must hear that the sender is gone.
pub(crate) type Delivered = HashMap<NodePublic, u64>;

/// All connections.
#[derive(Debug)]
pub(crate) struct Registry {
    state: RwLock<State>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct State {
    peers: HashMap<NodePublic, Connections>,
    watchers: HashMap<u64, Arc<Client>>,
}

/// The connections of one key; packets go to the active one.
#[derive(Debug)]
struct Connections {
    active: Arc<Client>,
    /// In the order in which they were active.
    standby: Vec<Arc<Client>>,
    /// Left behind by connections of this key that are gone already.
    delivered: Delivered,
}

impl Client {
    pub(crate) fn new(
        id: u64,
        key: NodePublic,
        remote: SocketAddr,
        traits: Traits,
        outbox: Outbox,
    ) -> Self {
        Self {
            id,
            key,
            remote,
            traits,
            outbox,
            contested: AtomicBool::new(false),
        }
    }

    fn present(&self, out: &mut BytesMut) {
        Frame::PeerPresent {
            key: self.key,
            remote: Some(self.remote),
            flags: self.traits.flags(),
        }
        .encode(out);
    }
}

impl Registry {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self {
            state: RwLock::default(),
            metrics,
        }
    }

    /// The connection that packets for `key` go to.
    pub(crate) fn find(&self, key: &NodePublic) -> Option<Arc<Client>> {
        let state = self.read();
        state.peers.get(key).map(|peer| Arc::clone(&peer.active))
    }

    /// Adds a connection; the newest of a key is the active one.
    pub(crate) fn insert(&self, client: &Arc<Client>) {
        let mut state = self.write();
        self.metrics.connections.inc();
        if let Some(peer) = state.peers.get_mut(&client.key) {
            self.metrics.duplicates.inc();
            client.contested.store(true, Ordering::Relaxed);
            peer.active.contested.store(true, Ordering::Relaxed);
            let was = std::mem::replace(&mut peer.active, Arc::clone(client));
            peer.standby.push(was);
            return;
        }
        let peer = Connections {
            active: Arc::clone(client),
            standby: Vec::new(),
            delivered: Delivered::new(),
        };
        state.peers.insert(client.key, peer);
        if !state.watchers.is_empty() {
            let mut frame = BytesMut::new();
            client.present(&mut frame);
            state.tell_watchers(&frame.freeze());
        }
    }

    /// Makes `client` the active connection of its key, because it has just sent a packet.
    pub(crate) fn note_activity(&self, client: &Arc<Client>) {
        if !client.contested.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.write();
        let Some(peer) = state.peers.get_mut(&client.key) else {
            return;
        };
        if let Some(at) = peer.standby.iter().position(|other| other.id == client.id) {
            let chosen = peer.standby.remove(at);
            let was = std::mem::replace(&mut peer.active, chosen);
            peer.standby.push(was);
        }
    }

    /// Removes a connection. If it was its key's last, those who got packets from that key hear
    /// that it is gone.
    pub(crate) fn remove(&self, client: &Arc<Client>, delivered: Delivered) {
        let mut state = self.write();
        self.metrics.connections.dec();
        if state.watchers.remove(&client.id).is_some() {
            self.metrics.watchers.dec();
        }
        let Some(peer) = state.peers.get_mut(&client.key) else {
            return;
        };
        peer.delivered.extend(delivered);
        if peer.active.id == client.id {
            if let Some(next) = peer.standby.pop() {
                peer.active = next;
            }
        } else {
            peer.standby.retain(|other| other.id != client.id);
        }
        if peer.active.id != client.id {
            self.metrics.duplicates.dec();
            let contested = !peer.standby.is_empty();
            peer.active.contested.store(contested, Ordering::Relaxed);
            return;
        }
        let delivered = std::mem::take(&mut peer.delivered);
        state.peers.remove(&client.key);

        let frame = peer_gone(client.key, PeerGoneReason::Disconnected);
        for (key, id) in delivered {
            if let Some(peer) = state.peers.get(&key)
                && let Some(receiver) = peer.all().find(|receiver| receiver.id == id)
            {
                receiver.outbox.push_control(frame.clone());
                self.metrics.gone_disconnected.inc();
            }
        }
        state.tell_watchers(&frame);
    }

    /// Announces all present keys to a mesh connection, and from now on every change.
    pub(crate) fn watch(&self, watcher: &Arc<Client>) {
        let mut state = self.write();
        let known = state.watchers.insert(watcher.id, Arc::clone(watcher));
        if known.is_some() {
            return;
        }
        self.metrics.watchers.inc();
        let mut flood = BytesMut::new();
        for peer in state.peers.values() {
            if peer.active.key != watcher.key {
                peer.active.present(&mut flood);
            }
        }
        if !flood.is_empty() {
            watcher.outbox.push_control(flood.freeze());
        }
    }

    /// Ends all connections of `key`; returns how many.
    pub(crate) fn kick(&self, key: &NodePublic) -> usize {
        let state = self.read();
        let Some(peer) = state.peers.get(key) else {
            return 0;
        };
        let closed = peer.all().map(|client| client.outbox.close()).count();
        self.metrics.kicked.inc_by(closed as u64);
        closed
    }

    /// Ends all connections.
    pub(crate) fn close_all(&self) {
        let state = self.read();
        for client in state.peers.values().flat_map(Connections::all) {
            client.outbox.close();
        }
    }

    /// The keys of ordinary clients, with the address of their active connection.
    pub(crate) fn clients(&self) -> Vec<(NodePublic, SocketAddr)> {
        let state = self.read();
        let active = state.peers.values().map(|peer| &peer.active);
        active
            .filter(|client| !client.traits.mesh)
            .map(|client| (client.key, client.remote))
            .collect()
    }

    /// Whether a connection of `key` has this id.
    pub(crate) fn is_connected(&self, key: &NodePublic, id: u64) -> bool {
        let state = self.read();
        let peer = state.peers.get(key);
        peer.is_some_and(|peer| peer.all().any(|client| client.id == id))
    }

    /// How many keys are connected.
    pub(crate) fn len(&self) -> usize {
        self.read().peers.len()
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tell_watchers(&self, frame: &Bytes) {
        for watcher in self.watchers.values() {
            watcher.outbox.push_control(frame.clone());
        }
    }
}

impl Connections {
    fn all(&self) -> impl Iterator<Item = &Arc<Client>> {
        std::iter::once(&self.active).chain(&self.standby)
    }
}

/// A PeerGone frame.
pub(crate) fn peer_gone(key: NodePublic, reason: PeerGoneReason) -> Bytes {
    let mut frame = BytesMut::new();
    Frame::PeerGone { key, reason }.encode(&mut frame);
    frame.freeze()
}
