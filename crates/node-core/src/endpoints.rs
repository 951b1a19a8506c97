//! Synthetic endpoints: one loopback address per peer, by which WireGuard reaches it through the agent.
//!
//! 127.64.0.0/10 is local on every host without any set-up. A different *address* per peer keeps
//! WireGuard's handshake limiter, which counts per source address, fair (protocol/disco.md §17.3).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use keys::NodePublic;

/// First address handed out.
const FIRST: u32 = u32::from_be_bytes([127, 64, 0, 2]);
/// Last address of 127.64.0.0/10 that is handed out.
const LAST: u32 = u32::from_be_bytes([127, 127, 255, 254]);

/// Gives each peer its own stable address out of 127.64.0.0/10.
///
/// An address of a peer that left is handed out again only after all others were used: packets that
/// are still under way to it must not reach another peer.
#[derive(Debug)]
pub struct Endpoints {
    by_peer: BTreeMap<NodePublic, Ipv4Addr>,
    taken: BTreeSet<Ipv4Addr>,
    next: u32,
    last: u32,
}

impl Default for Endpoints {
    fn default() -> Self {
        Self::with_range(FIRST, LAST)
    }
}

impl Endpoints {
    fn with_range(first: u32, last: u32) -> Self {
        Self {
            by_peer: BTreeMap::new(),
            taken: BTreeSet::new(),
            next: first,
            last,
        }
    }

    /// Takes over an address that a running WireGuard device already uses for a peer.
    ///
    /// Ignored if it lies outside the range, or if the peer or the address is taken.
    pub fn adopt(&mut self, peer: NodePublic, address: Ipv4Addr) {
        if !(FIRST..=self.last).contains(&address.to_bits())
            || self.by_peer.contains_key(&peer)
            || self.taken.contains(&address)
        {
            return;
        }
        self.insert(peer, address);
        self.next = self.next.max(address.to_bits() + 1);
    }

    /// Returns the peer's address, giving it one if it has none.
    ///
    /// # Errors
    ///
    /// [`Exhausted`] with more than four million peers.
    pub fn assign(&mut self, peer: NodePublic) -> Result<Ipv4Addr, Exhausted> {
        if let Some(address) = self.by_peer.get(&peer) {
            return Ok(*address);
        }
        let capacity = (self.last - FIRST + 1) as usize;
        if self.taken.len() >= capacity {
            return Err(Exhausted);
        }
        loop {
            if self.next > self.last {
                self.next = FIRST;
            }
            let address = Ipv4Addr::from_bits(self.next);
            self.next += 1;
            if !self.taken.contains(&address) {
                self.insert(peer, address);
                return Ok(address);
            }
        }
    }

    /// Frees the addresses of all peers that are not in `peers`.
    pub fn retain(&mut self, peers: &BTreeSet<NodePublic>) {
        let taken = &mut self.taken;
        self.by_peer.retain(|peer, address| {
            let stays = peers.contains(peer);
            if !stays {
                taken.remove(address);
            }
            stays
        });
    }

    /// Returns the address of a peer, if it has one.
    #[must_use]
    pub fn address(&self, peer: &NodePublic) -> Option<Ipv4Addr> {
        self.by_peer.get(peer).copied()
    }

    fn insert(&mut self, peer: NodePublic, address: Ipv4Addr) {
        self.by_peer.insert(peer, address);
        self.taken.insert(address);
    }
}

/// More peers than 127.64.0.0/10 has addresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("127.64.0.0/10 has no free address for another peer")]
pub struct Exhausted;

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u8) -> NodePublic {
        NodePublic::from_bytes([number; 32])
    }

    #[test]
    fn a_peer_keeps_its_address_and_shares_it_with_nobody() {
        let mut endpoints = Endpoints::default();
        let first = endpoints.assign(peer(1)).unwrap();
        let second = endpoints.assign(peer(2)).unwrap();

        assert_eq!(first, Ipv4Addr::new(127, 64, 0, 2));
        assert_ne!(first, second);
        assert_eq!(endpoints.assign(peer(1)).unwrap(), first);
        assert_eq!(endpoints.address(&peer(2)), Some(second));
    }

    #[test]
    fn a_freed_address_is_reused_last() {
        let mut endpoints = Endpoints::with_range(FIRST, FIRST + 2);
        let freed = endpoints.assign(peer(1)).unwrap();
        endpoints.assign(peer(2)).unwrap();
        endpoints.retain(&BTreeSet::from([peer(2)]));

        assert_ne!(endpoints.assign(peer(3)).unwrap(), freed);
        assert_eq!(endpoints.assign(peer(4)).unwrap(), freed);
        assert_eq!(endpoints.assign(peer(5)), Err(Exhausted));
    }

    #[test]
    fn an_adopted_address_stays_with_its_peer() {
        let mut endpoints = Endpoints::default();
        let used = Ipv4Addr::new(127, 64, 0, 7);
        endpoints.adopt(peer(1), used);
        endpoints.adopt(peer(2), used);
        endpoints.adopt(peer(3), Ipv4Addr::new(10, 0, 0, 1));

        assert_eq!(endpoints.assign(peer(1)).unwrap(), used);
        assert_eq!(endpoints.address(&peer(2)), None);
        assert_eq!(endpoints.address(&peer(3)), None);
        assert_ne!(endpoints.assign(peer(2)).unwrap(), used);
    }
}
