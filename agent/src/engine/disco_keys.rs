//! Disco keys that peers told through their sessions: the network map is behind if the server cannot be
//! reached from there (protocol/disco.md §14).

use std::collections::BTreeMap;
use std::sync::Arc;

use control_proto::netmap::NetMap;
use control_proto::tailcfg::Node;
use keys::{DiscoPublic, NodePublic};
use tokio::time::Instant;

use super::core::Engine;
use super::membership::CACHE_DELAY;

/// What peers told, each until the map has another word on it.
#[derive(Debug, Default)]
pub(super) struct ToldKeys(BTreeMap<NodePublic, Told>);

#[derive(Clone, Copy, Debug)]
struct Told {
    key: DiscoPublic,
    /// What the server's map says in its place; once that changes, the server knows better.
    superseded: DiscoPublic,
}

impl ToldKeys {
    /// Writes a peer's word into the map; false if that is not news or there is no such peer.
    fn take(&mut self, map: &mut Arc<NetMap>, peer: NodePublic, key: DiscoPublic) -> bool {
        let known = map.peer_by_key(&peer).map(|node| node.disco_key);
        let Some(present) = known.filter(|known| !key.is_zero() && *known != key) else {
            return false;
        };
        let before = self.0.get(&peer).filter(|told| told.key == present);
        let superseded = before.map_or(present, |told| told.superseded);
        self.0.insert(peer, Told { key, superseded });
        write(map, peer, key);
        true
    }

    /// Writes what was told into the map again, where the server repeated what it had said before.
    fn keep(&mut self, map: &mut Arc<NetMap>) {
        self.0.retain(|peer, told| match map.peer_by_key(peer) {
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
        if !self.told_keys.take(map, peer, key) {
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
        assert!(told.take(&mut known, PEER, disco(2)));
        assert!(told.take(&mut known, PEER, disco(3)));
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
            assert!(!told.take(&mut known, peer, key));
        }
        assert_eq!(known, map(1));
    }
}
