//! Which way each peer is reached: the shell around [`node_core::paths`].
//!
//! ```text
//! WireGuard's port ──► [Wire] ─┬─ STUN ──► netcheck ──► our own endpoints ─┐
//! relays ──► disco messages ───┴─ disco ─► [Core: node_core::paths] ◄──────┘
//!                                             │ disco by Wire or relay    │ routes
//!                                             ▼                           ▼
//!                                           peers               WireGuard's endpoints, pins
//! ```

mod core;
mod detours;
mod endpoints;
mod junk;
mod wire;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use keys::{DiscoPublic, NodePublic};
use node_core::RegionId;
use node_core::paths::{PeerPaths, Route, Sources, Via};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::net::NetError;

pub(crate) use core::{Core, Surroundings};
pub use endpoints::Kind;
pub(crate) use endpoints::{Endpoints, Found};
pub use junk::Junk;
pub(crate) use junk::Tally;
pub(crate) use wire::Wire;

/// Why a ping ends without having begun.
const NO_WAY: NetError =
    NetError::Unreachable("the peer has no disco key, or too many pings are under way");
/// Events that may wait.
const MAX_EVENTS: usize = 1024;

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// Who we are and who our peers are.
    Peers {
        node: NodePublic,
        peers: Vec<(NodePublic, PeerPaths)>,
    },
    /// A former process of this node reached a peer this way.
    Adopted(NodePublic, SocketAddr),
    /// A disco message came straight.
    Datagram { from: SocketAddr, datagram: Vec<u8> },
    /// A disco message came over a relay.
    Relayed {
        region: RegionId,
        from: NodePublic,
        datagram: Vec<u8>,
    },
    /// A peer told its disco key through its live session.
    DiscoKey(NodePublic, DiscoPublic),
    /// WireGuard sent to this peer.
    Sent(NodePublic),
    /// WireGuard sends to this peer, and nothing comes back.
    Unanswered(NodePublic),
    /// Somebody asks whose traffic has to be told.
    Active(oneshot::Sender<Vec<NodePublic>>),
    /// Somebody asks for round trips.
    Latencies(oneshot::Sender<HashMap<NodePublic, Duration>>),
    /// Where we can be reached.
    OwnEndpoints(Vec<SocketAddr>),
    /// The host's own networks changed.
    UnderlayChanged,
    /// Somebody pings a peer.
    Ping {
        peer: NodePublic,
        padding: u16,
        answer: oneshot::Sender<Result<Pong, NetError>>,
    },
}

/// What the data plane has to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Order {
    /// Reach the peer this way.
    Route(NodePublic, Route),
    /// The peer's packets may come from these addresses, too, which must not move its endpoint.
    Detour(NodePublic, Sources),
    /// Packets of the overlay to the peer may be so long, in bytes.
    Mtu(NodePublic, u16),
    /// Forget the session with the peer, which restarted.
    Reset(NodePublic),
}

impl Order {
    /// The peer that it is about.
    pub(crate) fn peer(&self) -> NodePublic {
        match self {
            Self::Route(peer, _)
            | Self::Detour(peer, _)
            | Self::Mtu(peer, _)
            | Self::Reset(peer) => *peer,
        }
    }
}

/// A ping's answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Pong {
    /// The way that ping and pong went.
    pub(crate) via: Via,
    /// Round trip.
    pub(crate) latency: Duration,
}

/// Tells [`Core`] what happens; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Handle(mpsc::Sender<Event>);

/// A handle, and what [`Core::run`] reads.
pub(crate) fn channel() -> (Handle, mpsc::Receiver<Event>) {
    let (sender, receiver) = mpsc::channel(MAX_EVENTS);
    (Handle(sender), receiver)
}

impl Handle {
    /// Tells of something that may get lost like any packet; false if it was.
    pub(crate) fn try_tell(&self, event: Event) -> bool {
        self.0.try_send(event).is_ok()
    }

    /// Tells of something that must not get lost.
    pub(crate) async fn tell(&self, event: Event) {
        if self.0.send(event).await.is_err() {
            tracing::trace!("nobody looks after paths any more");
        }
    }

    /// The peers whose traffic has to be told, whatever their route.
    pub(crate) async fn active(&self) -> Vec<NodePublic> {
        let (answer, answered) = oneshot::channel();
        self.tell(Event::Active(answer)).await;
        answered.await.unwrap_or_default()
    }

    /// The round trips of peers on the way by which each is reached, as far as they were measured.
    pub(crate) async fn latencies(&self) -> HashMap<NodePublic, Duration> {
        let (answer, answered) = oneshot::channel();
        self.tell(Event::Latencies(answer)).await;
        answered.await.unwrap_or_default()
    }

    /// Pings a peer on the way by which it is reached, or on every way if there is no direct one, and
    /// waits for the first pong.
    ///
    /// # Errors
    ///
    /// [`NetError::PingTimeout`]; [`NetError::Unreachable`] if there is nothing to wait for, and
    /// [`NetError::PingNotSent`] if it left on no way.
    pub(crate) async fn ping(
        &self,
        peer: NodePublic,
        padding: u16,
        wait: Duration,
    ) -> Result<Pong, NetError> {
        let (answer, answered) = oneshot::channel();
        self.tell(Event::Ping {
            peer,
            padding,
            answer,
        })
        .await;
        match timeout(wait, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(NO_WAY),
            Err(_) => Err(NetError::PingTimeout(wait)),
        }
    }
}
