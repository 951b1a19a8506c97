//! Which way each peer is reached: probes, trust and choice, as magicsock does it on the wire.
//!
//! [`Paths`] owns every peer's path. Events go in with the time at which they happened, [`Command`]s
//! come out of [`Paths::next_command`], and [`Paths::next_timeout`] says when to call
//! [`Paths::timeout`]. Nothing here sends, sleeps or draws random numbers. An idle peer has no
//! timer and costs nothing. Source: protocol/disco.md §4–§6 and §17.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use disco_proto::disco::{Message, TxId};
use keys::{DiscoPublic, NodePublic};

use crate::RegionId;

mod candidates;
mod choice;
mod peer;

pub use candidates::{MAX_CANDIDATES, MAX_DETOURED, MAX_OWN};
use peer::{Context, Peer};

/// How old our own endpoints may be when a CallMeMaybe offers them.
const ENDPOINTS_FRESH: Duration = Duration::from_secs(27);
/// A re-STUN that has not reported by then is asked for again.
const RESTUN_PATIENCE: Duration = Duration::from_secs(5);

/// Virtual time: how long after the start something happened.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Now(pub Duration);

impl Now {
    /// Returns how long ago `earlier` was; zero if it is still to come.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for Now {
    type Output = Self;

    fn add(self, after: Duration) -> Self {
        Self(self.0.saturating_add(after))
    }
}

/// What the network map says of a peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerPaths {
    /// Its disco key; without one it is reached through relays only.
    pub disco: Option<DiscoPublic>,
    /// Its home relay.
    pub home: Option<RegionId>,
    /// Its endpoints, the map's and configured ones.
    pub endpoints: Vec<SocketAddr>,
}

/// Where a disco datagram came from, or goes to.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Via {
    /// Straight, by UDP.
    Udp(SocketAddr),
    /// Through a relay region, from or to the node of this key.
    Derp(RegionId, NodePublic),
}

/// How WireGuard reaches a peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Route {
    /// The synthetic endpoint; the agent forwards to the peer's relay, if one is known.
    Relayed,
    /// The synthetic endpoint; the agent sends each packet to the relay *and* to this address.
    Both(SocketAddr),
    /// This address is the kernel's endpoint.
    Direct(SocketAddr),
}

/// Where a peer's packets come from straight, besides a proved route.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Sources {
    /// Not proved: what comes from there must not move the peer's endpoint, but be handed over as if a relay had
    /// brought it. At most [`MAX_DETOURED`].
    pub unproved: Vec<SocketAddr>,
    /// The peer answers from there, or pings from there and lists it or was reached there: whoever else seems to ping
    /// from there most likely is somebody who repeats pings. At most [`MAX_OWN`].
    pub own: BTreeSet<SocketAddr>,
}

/// What a shell has to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Command {
    /// Seal `message` to `disco` and send it.
    Send {
        /// Whereto.
        via: Via,
        /// The receiver's disco key.
        disco: DiscoPublic,
        /// What to say.
        message: Message,
    },
    /// Reach the peer's WireGuard this way from now on. Said again with each heartbeat: WireGuard moves
    /// to wherever the peer's packets come from (disco.md §17.1).
    SetRoute {
        /// The peer.
        peer: NodePublic,
        /// The way.
        route: Route,
    },
    /// The peer's WireGuard packets may come straight from these addresses, too. Replaces what was
    /// said before.
    Detour {
        /// The peer.
        peer: NodePublic,
        /// Which.
        sources: Sources,
    },
    /// Packets of the overlay to this peer may be so long from now on, in bytes; [`DEFAULT_MTU`](crate::DEFAULT_MTU)
    /// until more was shown both ways.
    SetMtu {
        /// The peer.
        peer: NodePublic,
        /// Bytes.
        mtu: u16,
    },
    /// Learn our own endpoints anew, then call [`Paths::own_endpoints`], changed or not.
    ReStun,
    /// The peer's process restarted: drop its WireGuard session.
    ResetSession(NodePublic),
    /// A ping that somebody asked for was answered.
    PingAnswered {
        /// As [`Paths::ping`] was told.
        ping: u64,
        /// The peer.
        peer: NodePublic,
        /// The path that answered.
        via: Via,
        /// Round trip.
        latency: Duration,
    },
    /// A ping that somebody asked for was not answered on any path in ten seconds.
    PingExpired {
        /// As [`Paths::ping`] was told.
        ping: u64,
        /// The peer.
        peer: NodePublic,
    },
}

/// Disco messages that led to nothing, by reason.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Ignored {
    /// From a disco key, or over a relay from a node, that no peer has.
    pub unknown_sender: u64,
    /// A pong that no outstanding ping waits for: late, repeated or forged.
    pub unmatched_pong: u64,
    /// A ping that came from the same address before.
    pub repeated_ping: u64,
    /// A CallMeMaybe by UDP, or not from the node's current disco key.
    pub misplaced: u64,
    /// A message of a type unknown here.
    pub unknown_type: u64,
}

/// How much is kept.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Load {
    /// Candidate addresses of the peer that has most of them.
    pub candidates: usize,
    /// Pings on their way to the peer that has most of them.
    pub pings: usize,
    /// Peers with a timer.
    pub timers: usize,
    /// Commands not taken yet.
    pub commands: usize,
}

/// Our own endpoints, and how fresh they are.
#[derive(Debug, Default)]
struct Own {
    endpoints: Vec<SocketAddr>,
    learned: Option<Now>,
    asked: Option<Now>,
    /// Peers whose CallMeMaybe waits for a re-STUN.
    waiting: BTreeSet<NodePublic>,
}

/// The paths to all peers.
pub struct Paths {
    node: NodePublic,
    ids: Box<dyn FnMut() -> TxId + Send>,
    own: Own,
    peers: BTreeMap<NodePublic, Peer>,
    /// One disco key can belong to several nodes.
    by_disco: BTreeMap<DiscoPublic, BTreeSet<NodePublic>>,
    timers: BTreeSet<(Now, NodePublic)>,
    commands: VecDeque<Command>,
    ignored: Ignored,
}

impl std::fmt::Debug for Paths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Paths")
            .field("peers", &self.peers.len())
            .field("timers", &self.timers.len())
            .field("ignored", &self.ignored)
            .finish_non_exhaustive()
    }
}

impl Paths {
    /// Starts without peers. `node` is our own key, `ids` draws transaction ids that nobody can guess.
    pub fn new(node: NodePublic, ids: impl FnMut() -> TxId + Send + 'static) -> Self {
        Self {
            node,
            ids: Box::new(ids),
            own: Own::default(),
            peers: BTreeMap::new(),
            by_disco: BTreeMap::new(),
            timers: BTreeSet::new(),
            commands: VecDeque::new(),
            ignored: Ignored::default(),
        }
    }

    /// Takes another node key of ours, which later pings name.
    pub fn set_node(&mut self, node: NodePublic) {
        self.node = node;
    }

    /// Adds a peer, or takes over what a newer map says of it.
    ///
    /// Another disco key means that the peer's process restarted: its paths and its session start
    /// anew (disco.md §5.7).
    pub fn set_peer(&mut self, now: Now, key: NodePublic, peer: PeerPaths) {
        let changed = self
            .peers
            .get(&key)
            .is_some_and(|known| known.disco() != peer.disco);
        let had_disco = self.peers.get(&key).is_some_and(|p| p.disco().is_some());
        self.index(key, peer.disco);
        self.peers.entry(key).or_insert_with(|| Peer::new(key));
        self.with(now, key, |known, context| known.configure(context, peer));
        if changed && had_disco {
            self.commands.push_back(Command::ResetSession(key));
        }
    }

    /// Takes over a disco key that the peer told through its live session (TSMP): its paths start
    /// anew, the session stays (disco.md §14). An all-zero key is ignored.
    pub fn disco_key_told(&mut self, now: Now, key: NodePublic, disco: DiscoPublic) {
        if disco.is_zero() || !self.peers.contains_key(&key) {
            return;
        }
        self.index(key, Some(disco));
        self.with(now, key, |peer, context| {
            peer.set_disco(context, Some(disco))
        });
    }

    /// Forgets a peer; pings that somebody waits for expire.
    pub fn remove_peer(&mut self, key: NodePublic) {
        self.index(key, None);
        self.own.waiting.remove(&key);
        let Some(peer) = self.peers.remove(&key) else {
            return;
        };
        if let Some(at) = peer.armed {
            self.timers.remove(&(at, key));
        }
        let expired = peer
            .pings_asked()
            .map(|ping| Command::PingExpired { ping, peer: key });
        self.commands.extend(expired);
        if peer.is_detoured() {
            let sources = Sources::default();
            let command = Command::Detour { peer: key, sources };
            self.commands.push_back(command);
        }
    }

    /// Every peer's key.
    pub fn peers(&self) -> impl Iterator<Item = NodePublic> {
        self.peers.keys().copied()
    }

    /// Says whether a datagram from this disco key is worth opening.
    #[must_use]
    pub fn knows(&self, disco: &DiscoPublic) -> bool {
        self.by_disco.contains_key(disco)
    }

    /// Takes an opened message of the owner of `sender`.
    pub fn message(&mut self, now: Now, via: Via, sender: DiscoPublic, message: Message) {
        let Some(owners) = self.by_disco.get(&sender) else {
            self.ignored.unknown_sender += 1;
            return;
        };
        match message {
            Message::Ping { id, node, padding } => {
                let owners = owners.clone();
                self.ping_received(now, via, sender, (id, padding, node), &owners);
            }
            Message::Pong { id, .. } => {
                let mut asked = owners.iter();
                let asked = asked.find(|key| self.peers.get(key).is_some_and(|p| p.asked(id)));
                match asked.copied() {
                    Some(key) => self.with(now, key, |peer, context| peer.pong(context, id, via)),
                    None => self.ignored.unmatched_pong += 1,
                }
            }
            Message::CallMeMaybe { endpoints } => match via {
                Via::Derp(_, key) if owners.contains(&key) => {
                    self.with(now, key, |peer, context| peer.called(context, &endpoints));
                }
                _ => self.ignored.misplaced += 1,
            },
            // Relays of peers are not used yet.
            Message::Relay(_) | Message::Unknown { .. } => self.ignored.unknown_type += 1,
        }
    }

    /// A packet for this peer was sent by WireGuard, last at `sent`. What goes to an idle peer takes the
    /// synthetic endpoint, where the agent sees it; of an [active](Self::active) one only counters tell.
    pub fn activity(&mut self, now: Now, key: NodePublic, sent: Now) {
        self.with(now, key, |peer, context| peer.active(context, sent));
    }

    /// Packets go to this peer and none come back: its direct path is probed at once, and unless it
    /// answers the relay is used as well before trust would have ended by itself.
    pub fn unanswered(&mut self, now: Now, key: NodePublic) {
        self.with(now, key, Peer::suspect);
    }

    /// Takes over the direct path that a former process of this node used: trusted like one that has
    /// just been proved, since a dead one costs less than a live one forgotten.
    pub fn adopt(&mut self, now: Now, key: NodePublic, address: SocketAddr) {
        self.with(now, key, |peer, context| peer.adopt(context, address));
    }

    /// Peers whose packets have to be counted, whatever their route, and activity told: those that
    /// packets were lately sent to, and those that ping us. The kernel answers the latter where their
    /// packets came from, past the synthetic endpoint.
    pub fn active(&self) -> impl Iterator<Item = NodePublic> {
        let is_active = |key: &NodePublic| self.peers.get(key).is_some_and(Peer::is_active);
        self.timers.iter().map(|(_, key)| *key).filter(is_active)
    }

    /// Takes our own endpoints, in the order in which they are offered; also the answer to
    /// [`Command::ReStun`].
    pub fn own_endpoints(&mut self, now: Now, endpoints: Vec<SocketAddr>) {
        self.own.endpoints = endpoints;
        self.own.learned = Some(now);
        self.own.asked = None;
        for key in std::mem::take(&mut self.own.waiting) {
            self.with(now, key, Peer::call_me_maybe);
        }
    }

    /// Our network or our own disco key changed: nothing measured holds any longer (disco.md §5.7).
    pub fn underlay_changed(&mut self, now: Now) {
        self.own.learned = None;
        self.own.asked = Some(now);
        self.commands.push_back(Command::ReStun);
        let keys: Vec<NodePublic> = self.peers.keys().copied().collect();
        for key in keys {
            self.with(now, key, Peer::restart);
        }
    }

    /// Pings a peer for somebody who asked; `size` is the padding in bytes. Ends in
    /// [`Command::PingAnswered`] or [`Command::PingExpired`].
    pub fn ping(&mut self, now: Now, key: NodePublic, ping: u64, size: u16) {
        if !self.peers.contains_key(&key) {
            self.commands
                .push_back(Command::PingExpired { ping, peer: key });
            return;
        }
        self.with(now, key, |peer, context| {
            peer.ping_asked(context, ping, size)
        });
    }

    /// Does what is due at `now`.
    pub fn timeout(&mut self, now: Now) {
        while let Some(&(at, key)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.armed = None;
            }
            self.with(now, key, Peer::timeout);
        }
    }

    /// Returns when [`Paths::timeout`] is next due; `None` while all peers are idle.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Now> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Takes the next command.
    pub fn next_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// Returns how a peer is reached.
    #[must_use]
    pub fn route(&self, key: &NodePublic) -> Option<Route> {
        self.peers.get(key).map(|peer| peer.route)
    }

    /// Returns the round trip of the last answer on the way by which each peer is reached, as far as one
    /// was measured: straight while that is trusted, else over a relay within the last minute. Looks at
    /// every peer.
    pub fn latencies(&self, now: Now) -> impl Iterator<Item = (NodePublic, Duration)> {
        let peers = self.peers.iter();
        peers.filter_map(move |(key, peer)| Some((*key, peer.latency(now)?)))
    }

    /// Returns how many messages led to nothing.
    #[must_use]
    pub fn ignored(&self) -> Ignored {
        self.ignored
    }

    /// Returns how much is kept; looks at every peer.
    #[must_use]
    pub fn load(&self) -> Load {
        let mut load = Load {
            timers: self.timers.len(),
            commands: self.commands.len(),
            ..Load::default()
        };
        for peer in self.peers.values() {
            let (candidates, pings) = peer.load();
            load.candidates = load.candidates.max(candidates);
            load.pings = load.pings.max(pings);
        }
        load
    }

    fn ping_received(
        &mut self,
        now: Now,
        via: Via,
        sender: DiscoPublic,
        (id, padding, node): (TxId, u16, Option<NodePublic>),
        owners: &BTreeSet<NodePublic>,
    ) {
        if let Via::Derp(_, from) = via
            && !self.peers.contains_key(&from)
        {
            self.ignored.unknown_sender += 1;
            return;
        }
        // Over DERP the pong names the relay as its address.
        let source = match via {
            Via::Udp(source) => source,
            Via::Derp(region, _) => SocketAddr::from(([127, 3, 3, 40], region.0)),
        };
        // Who asks again makes a new ping: this one was recorded and sent once more, or the network doubled it.
        let mut known = owners.iter().filter_map(|key| self.peers.get(key));
        if let Via::Udp(source) = via
            && known.any(|peer| peer.was_pinged(source, id))
        {
            self.ignored.repeated_ping += 1;
            return;
        }
        self.commands.push_back(Command::Send {
            via,
            disco: sender,
            message: Message::Pong { id, source },
        });
        if let Via::Udp(source) = via {
            let named = node.filter(|node| owners.contains(node));
            for key in owners {
                let is_it = named.is_none_or(|named| named == *key);
                self.with(now, *key, |peer, context| {
                    peer.pinged(context, source, (id, padding), is_it)
                });
            }
        }
    }

    fn index(&mut self, key: NodePublic, disco: Option<DiscoPublic>) {
        if let Some(old) = self.peers.get(&key).and_then(Peer::disco)
            && let Some(owners) = self.by_disco.get_mut(&old)
        {
            owners.remove(&key);
            if owners.is_empty() {
                self.by_disco.remove(&old);
            }
        }
        if let Some(disco) = disco {
            self.by_disco.entry(disco).or_default().insert(key);
        }
    }

    /// Lets `act` work on one peer, then sets its timer anew.
    fn with(&mut self, now: Now, key: NodePublic, act: impl FnOnce(&mut Peer, &mut Context<'_>)) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let mut context = Context {
            now,
            node: self.node,
            ids: &mut *self.ids,
            own: &mut self.own,
            commands: &mut self.commands,
        };
        act(peer, &mut context);
        peer.settle(&mut context);
        let due = peer.due(now);
        if due != peer.armed {
            if let Some(at) = peer.armed {
                self.timers.remove(&(at, key));
            }
            if let Some(at) = due {
                self.timers.insert((at, key));
            }
            peer.armed = due;
        }
    }
}

#[cfg(test)]
mod tests;
