//! What the filter knows of peers.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

/// A peer, as the filter sees it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Peer {
    /// It may answer, not initiate.
    pub jailed: bool,
    /// When its key expires.
    pub expires: Option<u64>,
}

/// Peers by their allowed IPs; the longest prefix decides, as in WireGuard.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Peers {
    /// By length of prefix.
    by_len: BTreeMap<u8, HashMap<IpNet, Peer>>,
}

impl Peers {
    /// The peer that an address belongs to.
    #[must_use]
    pub fn of(&self, address: IpAddr) -> Option<&Peer> {
        self.by_len.iter().rev().find_map(|(len, peers)| {
            let prefix = IpNet::new(address, *len).ok()?.trunc();
            peers.get(&prefix)
        })
    }

    /// Gives a peer one of its allowed IPs; of several peers with the same one the last has it.
    pub fn add(&mut self, prefix: IpNet, peer: Peer) {
        let peers = self.by_len.entry(prefix.prefix_len()).or_default();
        peers.insert(prefix.trunc(), peer);
    }
}

impl FromIterator<(IpNet, Peer)> for Peers {
    fn from_iter<I: IntoIterator<Item = (IpNet, Peer)>>(entries: I) -> Self {
        let mut peers = Self::default();
        for (prefix, peer) in entries {
            peers.add(prefix, peer);
        }
        peers
    }
}
