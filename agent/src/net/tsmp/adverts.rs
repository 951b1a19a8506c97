//! Which peers are told our disco key, and when: after each handshake.
//!
//! The kernel's WireGuard tells of no handshakes, so the tunnel is asked; only for peers that are in use
//! and want to hear it, so that an idle node, or one whose peers are older, never pays for it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use disco_proto::tsmp::Message;
use ipnet::IpNet;
use keys::NodePublic;

use super::of_family;
use crate::net::inner::Inner;
use crate::tunnel::PeerState;

/// Looks in a row at the handshakes of a peer that has just come into use: its session is about to begin.
const EAGER: u32 = 10;
/// Looks at the traffic for each look at handshakes after that: sessions last two minutes, and with each
/// look the kernel lists all peers.
const EVERY: u32 = 10;
/// Times of one handshake that are read twice differ by less: the embedded tunnel tells how long ago it was.
const SAME: Duration = Duration::from_secs(1);

/// What peers have been told.
#[derive(Debug, Default)]
pub(in crate::net) struct Adverts {
    peers: BTreeMap<NodePublic, Known>,
    looks: u32,
}

#[derive(Debug, Default)]
struct Known {
    /// The handshake after which it was told.
    told: Option<SystemTime>,
    /// Looks since it came into use; 0 while it is not.
    looks: u32,
}

impl Adverts {
    /// Whether to ask the tunnel for handshakes, now that `active` peers are in use. Others are
    /// remembered, if they are still `present`.
    fn look(&mut self, active: &[NodePublic], present: impl Fn(&NodePublic) -> bool) -> bool {
        self.looks = self.looks.wrapping_add(1);
        self.peers.retain(|peer, known| {
            if !active.contains(peer) {
                known.looks = 0;
            }
            present(peer)
        });
        let mut eager = false;
        for peer in active {
            let known = self.peers.entry(*peer).or_default();
            known.looks = known.looks.saturating_add(1);
            eager |= known.looks <= EAGER;
        }
        !active.is_empty() && (eager || self.looks.is_multiple_of(EVERY))
    }

    /// Whether a handshake with a peer is one that it has not been told after; then it has to be.
    fn is_news(&self, peer: &NodePublic, handshake: SystemTime) -> bool {
        let told = self.peers.get(peer).and_then(|known| known.told);
        told.is_none_or(|told| {
            let later = handshake.duration_since(told);
            later.unwrap_or_else(|earlier| earlier.duration()) > SAME
        })
    }

    fn told(&mut self, peer: NodePublic, handshake: SystemTime) {
        self.peers.entry(peer).or_default().told = Some(handshake);
    }
}

impl Inner {
    /// Hears TSMP on the device that is there now.
    pub(in crate::net) fn arrange_tsmp(&self) {
        if let Err(error) = self.tsmp.listen_on(self.guard.device()) {
            tracing::warn!(%error, "peers' agents are not heard inside the tunnel (TSMP)");
        }
    }

    /// Those of the `active` peers that want to hear our disco key, if it is time to look for handshakes.
    pub(in crate::net) fn hearers(
        &self,
        adverts: &mut Adverts,
        active: &[NodePublic],
    ) -> Vec<NodePublic> {
        let Some(applied) = &self.applied else {
            return Vec::new();
        };
        let peers = &applied.desired.peers;
        let hears = |peer: &&NodePublic| {
            let known = peers.get(peer);
            known.is_some_and(|peer| peer.hears_disco_key.is_some())
        };
        let active: Vec<NodePublic> = active.iter().filter(hears).copied().collect();
        let due = adverts.look(&active, |peer| peers.contains_key(peer));
        if due { active } else { Vec::new() }
    }

    /// Tells those `peers` our disco key with whom there was a handshake since they heard it last.
    pub(in crate::net) fn advertise(
        &self,
        adverts: &mut Adverts,
        peers: Vec<NodePublic>,
        states: &BTreeMap<NodePublic, PeerState>,
    ) {
        let Some(desired) = self.applied.as_ref().map(|applied| &applied.desired) else {
            return;
        };
        let hears = |peer: &NodePublic| desired.peers.get(peer)?.hears_disco_key;
        let ours: Vec<IpAddr> = desired.addresses.iter().map(IpNet::addr).collect();
        for peer in peers {
            let state = states.get(&peer);
            let handshake = state.and_then(|state| state.stats.last_handshake);
            let Some(handshake) = handshake.filter(|at| adverts.is_news(&peer, *at)) else {
                continue;
            };
            match hears(&peer).map(|to| self.tsmp.advertise(&ours, to)) {
                Some(Err(error)) => tracing::debug!(%error, "a peer is not told our disco key"),
                _ => adverts.told(peer, handshake),
            }
        }
    }
}

impl super::Tsmp {
    /// Tells the peer with the address `to` our disco key; one of `ours` has to be of its family.
    fn advertise(&self, ours: &[IpAddr], to: IpAddr) -> std::io::Result<()> {
        match of_family(ours, to) {
            Some(from) => self.send(from, to, &Message::DiscoKey(self.0.disco)),
            // It could not reach us there either.
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> NodePublic {
        NodePublic::from_bytes([number; 32])
    }

    #[test]
    fn a_peer_that_comes_into_use_is_watched_and_later_looked_at_now_and_then() {
        let mut adverts = Adverts::default();
        let mut look = |active: &[NodePublic]| adverts.look(active, |_| true);
        let eager = (0..100).filter(|_| look(&[key(1)])).count();
        assert_eq!(eager, 10 + 9);
        assert!((0..100).all(|_| !look(&[])), "nobody is in use");
        assert_eq!((0..10).filter(|_| look(&[key(1)])).count(), 10);
    }

    #[test]
    fn each_handshake_is_told_once_and_a_new_process_tells_after_the_old_one_s() {
        let mut adverts = Adverts::default();
        let at = SystemTime::now();
        assert!(adverts.is_news(&key(1), at));
        adverts.told(key(1), at);
        let read_again = at + Duration::from_millis(3);
        assert!(!adverts.is_news(&key(1), read_again));
        assert!(!adverts.is_news(&key(1), at - Duration::from_millis(3)));
        assert!(adverts.is_news(&key(1), at + Duration::from_secs(120)));
        assert!(adverts.is_news(&key(2), at));
    }

    #[test]
    fn what_an_idle_peer_was_told_is_remembered_until_it_is_gone() {
        let mut adverts = Adverts::default();
        let at = SystemTime::now();
        adverts.look(&[key(1)], |_| true);
        adverts.told(key(1), at);
        adverts.look(&[], |_| true);
        assert!(!adverts.is_news(&key(1), at));
        adverts.look(&[], |_| false);
        assert!(adverts.is_news(&key(1), at));
    }
}
