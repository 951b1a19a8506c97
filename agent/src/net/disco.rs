//! Disco over relays: answers pings, matches pongs with our own pings (protocol/disco.md §4).
//!
//! Until direct paths come, a disco message travels by DERP only, so the DERP source names the peer.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use disco_proto::disco::{self, Message, TxId};
use keys::{DiscoPrivate, DiscoPublic, NodePublic};
use node_core::RegionId;
use tokio::sync::oneshot;

use super::peers::Peer;

/// Address by which a relayed path is written; the port is the region.
const DERP_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 3, 3, 40);
/// Pings of ours that may be under way.
const MAX_PENDING: usize = 1024;

/// Our disco identity and the pings under way.
#[derive(Debug)]
pub(crate) struct Disco {
    private: DiscoPrivate,
    public: DiscoPublic,
    pending: Mutex<HashMap<TxId, Pending>>,
}

#[derive(Debug)]
struct Pending {
    peer: NodePublic,
    answered: oneshot::Sender<RegionId>,
}

/// A ping under way; forgotten when dropped.
#[derive(Debug)]
pub(crate) struct Ping<'a> {
    disco: &'a Disco,
    id: TxId,
    /// The datagram to send.
    pub(crate) datagram: Vec<u8>,
    /// Resolves to the region by which the pong came.
    pub(crate) answered: oneshot::Receiver<RegionId>,
}

impl Drop for Ping<'_> {
    fn drop(&mut self) {
        self.disco.lock().remove(&self.id);
    }
}

impl Disco {
    /// Takes our key.
    pub(crate) fn new(private: DiscoPrivate) -> Self {
        let public = private.public();
        Self {
            private,
            public,
            pending: Mutex::default(),
        }
    }

    /// Starts a ping to a peer; `None` if it has no disco key or too many pings are under way.
    pub(crate) fn ping(&self, peer: &Peer, our_key: NodePublic) -> Option<Ping<'_>> {
        let shared = peer.shared(&self.private)?;
        let id = TxId(rand::random());
        let message = Message::Ping {
            id,
            node: Some(our_key),
            padding: 0,
        };
        let datagram = disco::seal(&self.public, shared, &message);
        let (sender, answered) = oneshot::channel();
        let mut pending = self.lock();
        if pending.len() >= MAX_PENDING {
            return None;
        }
        let entry = Pending {
            peer: peer.key,
            answered: sender,
        };
        pending.insert(id, entry);
        drop(pending);
        Some(Ping {
            disco: self,
            id,
            datagram,
            answered,
        })
    }

    /// Handles a disco datagram that a relay delivered from `peer`; returns the answer to send back.
    pub(crate) fn handle(&self, region: RegionId, peer: &Peer, datagram: &[u8]) -> Option<Vec<u8>> {
        let envelope = disco::parse_envelope(datagram)?;
        if peer.disco != Some(envelope.sender) {
            tracing::debug!(peer = ?peer.key, "disco message under another key than the map's");
            return None;
        }
        let shared = peer.shared(&self.private)?;
        match disco::open(envelope, shared) {
            Ok(Message::Ping { id, .. }) => {
                let source = SocketAddr::from((DERP_ADDRESS, region.0));
                let pong = Message::Pong { id, source };
                Some(disco::seal(&self.public, shared, &pong))
            }
            Ok(Message::Pong { id, .. }) => {
                self.handle_pong(region, peer, id);
                None
            }
            // Direct paths are not built: where the peer may be reached is of no use yet.
            Ok(Message::CallMeMaybe { .. } | Message::Unknown { .. }) => None,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(peer = ?peer.key, error, "disco message not understood");
                None
            }
        }
    }

    fn handle_pong(&self, region: RegionId, peer: &Peer, id: TxId) {
        let mut pending = self.lock();
        if pending.get(&id).is_some_and(|ping| ping.peer == peer.key)
            && let Some(ping) = pending.remove(&id)
        {
            // Whoever waited may have given up.
            let _ = ping.answered.send(region);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TxId, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: RegionId = RegionId(900);

    #[tokio::test]
    async fn a_ping_is_answered_and_its_pong_matched() {
        let (alice, bob) = (
            Disco::new(DiscoPrivate::generate()),
            Disco::new(DiscoPrivate::generate()),
        );
        let (alice_key, bob_key) = (
            NodePublic::from_bytes([1; 32]),
            NodePublic::from_bytes([2; 32]),
        );
        let to_bob = peer(bob_key, &bob);
        let to_alice = peer(alice_key, &alice);

        let mut ping = alice.ping(&to_bob, alice_key).unwrap();
        let pong = bob.handle(REGION, &to_alice, &ping.datagram).unwrap();
        assert_eq!(alice.handle(REGION, &to_bob, &pong), None);

        assert_eq!((&mut ping.answered).await, Ok(REGION));
    }

    #[test]
    fn a_pong_of_another_peer_does_not_count() {
        let (alice, eve) = (
            Disco::new(DiscoPrivate::generate()),
            Disco::new(DiscoPrivate::generate()),
        );
        let bob_disco = Disco::new(DiscoPrivate::generate());
        let alice_key = NodePublic::from_bytes([1; 32]);
        let bob = peer(NodePublic::from_bytes([2; 32]), &bob_disco);
        let eve_peer = peer(NodePublic::from_bytes([3; 32]), &eve);
        let mut ping = alice.ping(&bob, alice_key).unwrap();

        let forged = Message::Pong {
            id: ping.id,
            source: SocketAddr::from((DERP_ADDRESS, 1)),
        };
        let shared = eve.private.shared(&alice.public);
        let datagram = disco::seal(&eve.public, &shared, &forged);
        alice.handle(REGION, &eve_peer, &datagram);

        assert!(ping.answered.try_recv().is_err());
    }

    #[test]
    fn a_key_other_than_the_maps_is_ignored() {
        let (alice, bob) = (
            Disco::new(DiscoPrivate::generate()),
            Disco::new(DiscoPrivate::generate()),
        );
        let to_bob = peer(NodePublic::from_bytes([2; 32]), &bob);
        let ping = alice
            .ping(&to_bob, NodePublic::from_bytes([1; 32]))
            .unwrap();
        let stale = peer(NodePublic::from_bytes([1; 32]), &bob);

        assert_eq!(bob.handle(REGION, &stale, &ping.datagram), None);
    }

    fn peer(key: NodePublic, disco: &Disco) -> Peer {
        Peer::new(key, Ipv4Addr::LOCALHOST, Some(REGION), Some(disco.public))
    }
}
