//! Packets for peers that no region is known for yet: [`Held`].

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use keys::NodePublic;

/// Most packets of one peer that wait, and of all.
const MAX_OF_PEER: usize = 4;
const MAX_PACKETS: usize = 64;
/// After this long WireGuard begins its handshake anew (its REKEY_TIMEOUT): what is older is of no use.
pub(super) const LONGEST: Duration = Duration::from_secs(5);

/// The newest packets of each peer. A handshake that goes out late costs nothing, one that is lost 5 s.
#[derive(Debug, Default)]
pub(super) struct Held(VecDeque<(Instant, NodePublic, Box<[u8]>)>);

impl Held {
    /// Keeps packets of a peer, in place of its oldest.
    pub(super) fn push<'a>(
        &mut self,
        peer: NodePublic,
        packets: impl IntoIterator<Item = &'a [u8]>,
        now: Instant,
    ) {
        for packet in packets {
            let of_peer = self.0.iter().filter(|(_, other, _)| *other == peer);
            if of_peer.count() >= MAX_OF_PEER
                && let Some(oldest) = self.0.iter().position(|(_, other, _)| *other == peer)
            {
                self.0.remove(oldest);
            }
            if self.0.len() >= MAX_PACKETS {
                self.0.pop_front();
            }
            self.0.push_back((now, peer, packet.into()));
        }
    }

    /// Gives all that is not too old, in order.
    pub(super) fn take(&mut self, now: Instant) -> impl Iterator<Item = (NodePublic, Box<[u8]>)> {
        let all = std::mem::take(&mut self.0).into_iter();
        let fresh = all.filter(move |(since, ..)| now.duration_since(*since) < LONGEST);
        fresh.map(|(_, peer, packet)| (peer, packet))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: usize) -> NodePublic {
        NodePublic::from_bytes([number as u8; 32])
    }

    fn taken(held: &mut Held, now: Instant) -> Vec<(NodePublic, u8)> {
        held.take(now)
            .map(|(peer, packet)| (peer, packet[0]))
            .collect()
    }

    #[test]
    fn the_newest_of_a_peer_wait_and_no_other_peers_go_for_them() {
        let (mut held, now) = (Held::default(), Instant::now());
        held.push(peer(1), [&[100][..]], now);
        for number in 0..=MAX_OF_PEER as u8 {
            held.push(peer(2), [&[number][..]], now);
        }
        let expected = (1..=MAX_OF_PEER as u8)
            .map(|number| (peer(2), number))
            .collect();
        let expected = [vec![(peer(1), 100)], expected].concat();
        assert_eq!(taken(&mut held, now), expected);
        assert!(taken(&mut held, now).is_empty());
    }

    #[test]
    fn all_together_are_bounded_and_none_waits_longer_than_it_is_of_use() {
        let (mut held, now) = (Held::default(), Instant::now());
        for number in 0..2 * MAX_PACKETS {
            held.push(peer(number), [&[number as u8][..]], now);
        }
        assert_eq!(held.0.len(), MAX_PACKETS);
        held.push(peer(1), [&[7][..]], now + LONGEST / 2);
        assert_eq!(taken(&mut held, now + LONGEST), [(peer(1), 7)]);
    }
}
