//! Addresses that peers were heard from and did not prove, and whose packets take a detour: [`Claims`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use keys::NodePublic;
use node_core::paths::{Route, Sources};

/// Most addresses in the rules for detours, each of which costs every packet a little; they are there only
/// while paths fail.
const MAX_DETOURS: usize = 64;

/// Sources whose WireGuard packets pass the agent, and the peer that each is taken for.
pub(super) type Arrangement = BTreeMap<SocketAddr, NodePublic>;

/// What must not move the endpoint of its peer. A source says nothing of who sends from it: anybody can repeat
/// a peer's ping from there.
#[derive(Debug, Default)]
pub(super) struct Claims {
    of: BTreeMap<NodePublic, Claim>,
    claimed: u64,
}

/// What one peer says of addresses.
#[derive(Debug, Default)]
struct Claim {
    /// Without proof, each with the number of its claim, the later the higher.
    unproved: BTreeMap<SocketAddr, u64>,
    /// Its own, as far as can be told.
    own: BTreeSet<SocketAddr>,
}

impl Claims {
    /// Makes `sources` those of the peer.
    pub(super) fn set(&mut self, peer: NodePublic, sources: Sources) {
        let before = self.of.remove(&peer).unwrap_or_default();
        if sources == Sources::default() {
            return;
        }
        let unproved = sources.unproved.into_iter().map(|source| {
            let number = before.unproved.get(&source).copied().unwrap_or_else(|| {
                self.claimed += 1;
                self.claimed
            });
            (source, number)
        });
        let claim = Claim {
            unproved: unproved.collect(),
            own: sources.own,
        };
        self.of.insert(peer, claim);
    }

    /// Forgets peers that are gone.
    pub(super) fn retain(&mut self, present: &BTreeSet<NodePublic>) {
        self.of.retain(|peer, _| present.contains(peer));
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.of.clear();
    }

    /// Decides whose packets come from where. Packets of a peer that is reached at an address directly come
    /// straight from there, whoever else claims it: taken for another's, they would move the peer's endpoint to
    /// that one's relay. Beside a relay an address is still its peer's. Who owns it comes before who has only been
    /// heard from there, and who proved it before who did not; of several alike the latest has it.
    pub(super) fn arrange(
        &self,
        routes: &BTreeMap<NodePublic, Route>,
        by_hand: &BTreeMap<NodePublic, SocketAddr>,
    ) -> Arrangement {
        // Another's by better evidence: its own where this one's is not, or proved where this one's is not.
        let is_others = |peer, own: &BTreeSet<SocketAddr>, source| {
            self.of.iter().any(|(other, claim)| {
                let is_better = !own.contains(source) || !claim.unproved.contains_key(source);
                other != peer && claim.own.contains(source) && is_better
            })
        };
        let mut held: BTreeMap<SocketAddr, ((bool, u64), NodePublic)> = BTreeMap::new();
        for (peer, Claim { unproved, own }) in &self.of {
            for (source, number) in unproved {
                let beside = routes.get(peer) == Some(&Route::Both(*source));
                if !beside && is_others(peer, own, source) {
                    continue;
                }
                let claim = ((beside, *number), *peer);
                held.entry(*source)
                    .and_modify(|known| *known = claim.max(*known))
                    .or_insert(claim);
            }
        }
        if held.is_empty() {
            return Arrangement::new();
        }
        for address in by_hand.values() {
            held.remove(address);
        }
        for route in routes.values() {
            match route {
                Route::Direct(address) => {
                    held.remove(address);
                }
                Route::Both(address) if held.get(address).is_some_and(|((own, _), _)| !own) => {
                    held.remove(address);
                }
                Route::Both(_) | Route::Relayed => {}
            }
        }
        // A peer's own way comes first: without the detour its packets would move the endpoint off the relay.
        let mut held: Vec<_> = held.into_iter().collect();
        held.sort_by_key(|(_, claim)| Reverse(*claim));
        held.truncate(MAX_DETOURS);
        let held = held.into_iter();
        held.map(|(source, (_, peer))| (source, peer)).collect()
    }
}

/// Whose an address is for certain: the peer's that is reached there.
pub(super) fn owner(
    source: SocketAddr,
    routes: &BTreeMap<NodePublic, Route>,
    by_hand: &BTreeMap<NodePublic, SocketAddr>,
) -> Option<NodePublic> {
    let by_hand = by_hand.iter().find(|(_, address)| **address == source);
    let by_hand = by_hand.map(|(peer, _)| *peer);
    let routed = |wanted: Route| {
        let mut routes = routes.iter();
        let found = routes.find(|(_, route)| **route == wanted);
        found.map(|(peer, _)| *peer)
    };
    by_hand
        .or_else(|| routed(Route::Direct(source)))
        .or_else(|| routed(Route::Both(source)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: NodePublic = NodePublic::from_bytes([2; 32]);
    const C: NodePublic = NodePublic::from_bytes([3; 32]);

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([203, 0, 113, 1], port))
    }

    /// Heard from these ports, and nothing more.
    fn heard(ports: &[u16]) -> Sources {
        Sources {
            unproved: ports.iter().copied().map(at).collect(),
            own: BTreeSet::new(),
        }
    }

    /// What becomes of `claims` on these routes, with C's endpoint set by hand or not.
    fn arranged(claims: &Claims, routes: &[(NodePublic, Route)], hand: Option<u16>) -> Arrangement {
        let routes = routes.iter().copied().collect();
        let by_hand = hand.map(|port| (C, at(port))).into_iter().collect();
        claims.arrange(&routes, &by_hand)
    }

    #[test]
    fn an_address_where_a_peer_is_reached_is_no_other_peer_s() {
        let mut claims = Claims::default();
        claims.set(B, heard(&[1, 2]));
        let both = Arrangement::from([(at(1), B), (at(2), B)]);
        let rest = Arrangement::from([(at(2), B)]);
        assert_eq!(arranged(&claims, &[(C, Route::Relayed)], None), both);
        assert_eq!(arranged(&claims, &[(C, Route::Direct(at(1)))], None), rest);
        assert_eq!(arranged(&claims, &[(C, Route::Both(at(1)))], None), rest);
        assert_eq!(arranged(&claims, &[], Some(1)), rest);
    }

    #[test]
    fn a_peer_s_own_packets_take_the_detour_while_its_path_is_not_trusted() {
        let mut claims = Claims::default();
        claims.set(C, heard(&[1]));
        // Later, and without a path.
        claims.set(B, heard(&[1]));
        let own = Arrangement::from([(at(1), C)]);
        let untrusted = [(C, Route::Both(at(1)))];
        assert_eq!(arranged(&claims, &untrusted, None), own);
        let trusted = [(C, Route::Direct(at(1)))];
        assert_eq!(arranged(&claims, &trusted, None), Arrangement::new());
        // A third is there.
        assert_eq!(
            arranged(&claims, &[(B, Route::Direct(at(1)))], None),
            Arrangement::new()
        );
    }

    #[test]
    fn of_two_without_proof_the_latest_has_an_address() {
        let mut claims = Claims::default();
        claims.set(C, heard(&[1]));
        claims.set(B, heard(&[1]));
        assert_eq!(arranged(&claims, &[], None)[&at(1)], B);
        // It says nothing new.
        claims.set(C, heard(&[1, 2]));
        assert_eq!(arranged(&claims, &[], None)[&at(1)], B);
        claims.set(B, heard(&[]));
        assert_eq!(arranged(&claims, &[], None)[&at(1)], C);
        claims.set(B, heard(&[1]));
        claims.retain(&BTreeSet::from([C]));
        assert_eq!(arranged(&claims, &[], None)[&at(1)], C);
    }

    #[test]
    fn an_address_that_a_peer_owns_is_not_taken_for_another_s() {
        let owner = |unproved: &[u16]| Sources {
            own: [at(1)].into(),
            ..heard(unproved)
        };
        let mut claims = Claims::default();
        claims.set(C, owner(&[]));
        claims.set(B, heard(&[1, 2]));
        let rest = Arrangement::from([(at(2), B)]);
        assert_eq!(arranged(&claims, &[], None), rest);
        // What is not proved takes the detour, but as its own.
        claims.set(C, owner(&[1]));
        assert_eq!(arranged(&claims, &[], None)[&at(1)], C);
        // Nor for that of somebody who lists it but did not prove it.
        claims.set(C, owner(&[]));
        claims.set(B, owner(&[1]));
        assert_eq!(arranged(&claims, &[], None), Arrangement::new());
        // A NAT may have given the port to the other: who got it last has it.
        claims.set(C, owner(&[1]));
        claims.set(B, heard(&[]));
        claims.set(B, owner(&[1]));
        assert_eq!(arranged(&claims, &[], None)[&at(1)], B);
    }

    #[test]
    fn rules_are_few_and_a_peer_s_own_way_is_among_them() {
        let mut claims = Claims::default();
        let many: Vec<u16> = (0..100).collect();
        claims.set(C, heard(&[1000]));
        claims.set(B, heard(&many));
        let few = arranged(&claims, &[(C, Route::Both(at(1000)))], None);
        assert_eq!(few.len(), MAX_DETOURS);
        assert_eq!(few.get(&at(1000)), Some(&C));
    }

    #[test]
    fn an_address_belongs_to_whom_it_reaches() {
        let routes = BTreeMap::from([(B, Route::Both(at(1))), (C, Route::Direct(at(1)))]);
        let hand = BTreeMap::from([(B, at(2))]);
        assert_eq!(owner(at(1), &routes, &hand), Some(C));
        assert_eq!(owner(at(2), &routes, &hand), Some(B));
        assert_eq!(owner(at(3), &routes, &hand), None);
    }
}
