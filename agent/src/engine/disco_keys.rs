//! Disco keys that peers told through their sessions: the network map is behind if the server cannot be
//! reached from there (protocol/disco.md §14).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use control_proto::netmap::NetMap;
use control_proto::tailcfg::Node;
use keys::{DiscoPublic, NodePublic};
use tokio::time::Instant;

use super::core::Engine;
use super::membership::CACHE_DELAY;

/// Keys that a peer may tell in short order: one that crashes a few times.
const BURST: u32 = 3;
/// Until it may tell another: for each the whole map is applied, and written.
const EVERY: Duration = Duration::from_secs(30);

/// What peers told, each until the map has another word on it.
#[derive(Debug, Default)]
pub(super) struct ToldKeys {
    told: BTreeMap<NodePublic, Told>,
    /// When each peer will have made up for what it told, at one in [`EVERY`].
    even: BTreeMap<NodePublic, Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    key: DiscoPublic,
    /// What the server's map says in its place; once that changes, the server knows better.
    superseded: DiscoPublic,
}

impl ToldKeys {
    /// Writes a peer's word into the map; false if that is not news, the peer has told too many or there is no
    /// such peer.
    fn take(
        &mut self,
        map: &mut Arc<NetMap>,
        peer: NodePublic,
        key: DiscoPublic,
        now: Instant,
    ) -> bool {
        let known = map.peer_by_key(&peer).map(|node| node.disco_key);
        let Some(present) = known.filter(|known| !key.is_zero() && *known != key) else {
            return false;
        };
        if !self.is_due(peer, now) {
            let peer = peer.to_string();
            tracing::debug!(peer, "tells more disco keys than are taken");
            return false;
        }
        let before = self.told.get(&peer).filter(|told| told.key == present);
        let superseded = before.map_or(present, |told| told.superseded);
        self.told.insert(peer, Told { key, superseded });
        write(map, peer, key);
        true
    }

    /// Whether the peer may tell one more, which is counted.
    fn is_due(&mut self, peer: NodePublic, now: Instant) -> bool {
        self.even.retain(|_, even| *even > now);
        let even = self.even.get(&peer).map_or(now, |even| *even);
        if even > now + EVERY * (BURST - 1) {
            return false;
        }
        self.even.insert(peer, even + EVERY);
        true
    }

    /// Writes what was told into the map again, where the server repeated what it had said before.
    fn keep(&mut self, map: &mut Arc<NetMap>) {
        self.told.retain(|peer, told| match map.peer_by_key(peer) {
            Some(node) if node.disco_key == told.key => true,
            Some(node) if node.disco_key == told.superseded => {
                write(map, *peer, told.key);
                true
            }
            _ => false,
        });
    }
}

fn write(map: &mut Arc<NetMap>, peer: NodePublic, key: DiscoPublic) {
    let mut nodes = Arc::make_mut(map).peers.values_mut();
    if let Some(node) = nodes.find(|node: &&mut Node| node.key == peer) {
        node.disco_key = key;
    }
}

impl Engine {
    /// Takes over a disco key that a peer told: into the map first, so that nothing undoes it.
    pub(super) async fn take_disco_key(&mut self, peer: NodePublic, key: DiscoPublic) {
        let Some(map) = &mut self.map else { return };
        if !self.told_keys.take(map, peer, key, Instant::now()) {
            return;
        }
        let peer_text = peer.to_string();
        tracing::info!(
            peer = peer_text,
            "a peer restarted, and tells its new disco key"
        );
        // Before the map is applied: there a new key would end the session that it came through.
        if let Some(net) = self.net.read().await.as_ref() {
            net.take_disco_key(peer, key).await;
        }
        self.dirty = true;
        self.cache_at.get_or_insert(Instant::now() + CACHE_DELAY);
    }

    /// Has what peers told outlast what the server repeats; called with each frame of the map.
    pub(super) fn keep_told_keys(&mut self) {
        if let Some(map) = &mut self.map {
            self.told_keys.keep(map);
        }
    }
}

#[cfg(test)]
mod tests {
    use control_proto::tailcfg::NodeId;

    use super::*;

    fn disco(number: u8) -> DiscoPublic {
        DiscoPublic::from_bytes([number; 32])
    }

    const PEER: NodePublic = NodePublic::from_bytes([9; 32]);

    fn map(key: u8) -> Arc<NetMap> {
        let node = Node {
            id: NodeId(2),
            key: PEER,
            disco_key: disco(key),
            ..Node::default()
        };
        Arc::new(NetMap {
            peers: BTreeMap::from([(node.id, node)]),
            ..NetMap::default()
        })
    }

    fn present(map: &NetMap) -> DiscoPublic {
        map.peer_by_key(&PEER).unwrap().disco_key
    }

    #[test]
    fn a_told_key_outlasts_what_the_server_repeats_and_yields_to_what_it_learns() {
        let (mut told, mut known) = (ToldKeys::default(), map(1));
        let now = Instant::now();
        assert!(told.take(&mut known, PEER, disco(2), now));
        assert!(told.take(&mut known, PEER, disco(3), now));
        assert_eq!(present(&known), disco(3));
        // The whole map again, by a server that has heard nothing.
        let mut repeated = map(1);
        told.keep(&mut repeated);
        assert_eq!(present(&repeated), disco(3));
        let mut learned = map(4);
        told.keep(&mut learned);
        assert_eq!(present(&learned), disco(4));
        // It counts for no more.
        let mut back = map(1);
        told.keep(&mut back);
        assert_eq!(present(&back), disco(1));
    }

    #[test]
    fn a_known_key_an_empty_one_and_a_stranger_s_are_no_news() {
        let (mut told, mut known) = (ToldKeys::default(), map(1));
        let stranger = NodePublic::from_bytes([8; 32]);
        for (peer, key) in [(PEER, disco(1)), (PEER, disco(0)), (stranger, disco(2))] {
            assert!(!told.take(&mut known, peer, key, Instant::now()));
        }
        assert_eq!(known, map(1));
    }

    #[test]
    fn a_peer_that_tells_ever_new_keys_is_heard_a_few_times_and_then_now_and_then() {
        let (mut told, mut known) = (ToldKeys::default(), map(1));
        let begin = Instant::now();
        let mut tell = |number, seconds| {
            let at = begin + Duration::from_secs(seconds);
            told.take(&mut known, PEER, disco(number), at)
        };
        // One in each second.
        let heard: Vec<u64> = (0..100)
            .filter(|second| tell(2 + *second as u8, *second))
            .collect();
        assert_eq!(heard, [0, 1, 2, 30, 60, 90]);
        // It keeps quiet long enough.
        assert!((200..203).all(|second| tell(second as u8, second)));
        assert!(!tell(203, 203));
    }
}
