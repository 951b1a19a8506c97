//! Under which numbers the eBPF programs count traffic: [`Numbers`].
//!
//! The programs know one number per prefix and count under that of the longest one. A peer's own addresses
//! have the peer's number, each of its routes one of its own: the peer's traffic is the sum.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv4Addr;

use dataplane::{PeerCounters, PeerIndex};
use ipnet::IpNet;
use keys::NodePublic;
use node_core::Desired;

/// Routes of one peer with numbers of their own, at most. The rest is counted with the peer: it is read twice
/// a second, at two system calls a number.
const MAX_ROUTES: usize = 64;
/// Set in numbers of routes, and in no peer's.
const ROUTE: u32 = 1 << 31;
/// Numbers for routes; all ones stand for nobody in the programs' reports.
const SPAN: u32 = ROUTE - 1;

/// The numbers of routes, and what was counted under those that are gone.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    routes: BTreeMap<(NodePublic, IpNet), PeerIndex>,
    retired: BTreeMap<NodePublic, PeerCounters>,
}

impl Numbers {
    /// Numbers the routes of every peer. A number follows from peer and prefix, so that what is counted goes
    /// on when the agent starts again, and starts at zero when a route goes to another peer.
    ///
    /// What was counted under numbers that go is read from `count`, so that no peer's sum falls.
    pub(super) fn assign(
        &mut self,
        desired: &Desired,
        count: impl Fn(PeerIndex) -> Option<PeerCounters>,
    ) {
        let mut taken = BTreeSet::new();
        let mut routes = BTreeMap::new();
        for (key, peer) in &desired.peers {
            for prefix in peer.routes.iter().take(MAX_ROUTES) {
                let mut number = route_number(key, prefix);
                while !taken.insert(number) {
                    number = (number + 1) % SPAN;
                }
                routes.insert((*key, *prefix), PeerIndex(ROUTE | number));
            }
        }
        let former = std::mem::replace(&mut self.routes, routes);
        for (route, number) in former {
            if self.routes.get(&route) != Some(&number)
                && let Some(counted) = count(number)
            {
                *self.retired.entry(route.0).or_default() += counted;
            }
        }
        self.retired
            .retain(|key, _| desired.peers.contains_key(key));
    }

    /// The sum of what was counted for a peer with this number of its own; `None` if nothing counts.
    pub(super) fn sum(
        &self,
        own: PeerIndex,
        key: &NodePublic,
        count: impl Fn(PeerIndex) -> Option<PeerCounters>,
    ) -> Option<PeerCounters> {
        let numbers = std::iter::once(own).chain(self.routes(key).map(|(_, number)| number));
        let mut sum = numbers.filter_map(count).reduce(|mut sum, more| {
            sum += more;
            sum
        })?;
        sum += self.retired.get(key).copied().unwrap_or_default();
        Some(sum)
    }

    /// Under which number a prefix of the peer with this number is counted.
    pub(super) fn of(&self, peer: PeerIndex, key: &NodePublic, prefix: &IpNet) -> PeerIndex {
        self.routes.get(&(*key, *prefix)).copied().unwrap_or(peer)
    }

    /// Every route that has a number, of whichever peer.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        self.routes.keys().map(|(_, prefix)| *prefix)
    }

    /// The peer's routes that have numbers.
    pub(super) fn routes(&self, key: &NodePublic) -> impl Iterator<Item = (IpNet, PeerIndex)> {
        let first = IpNet::V4(ipnet::Ipv4Net::default());
        let from = self.routes.range((*key, first)..);
        let own = from.take_while(move |((peer, _), _)| peer == key);
        own.map(|((_, prefix), number)| (*prefix, *number))
    }
}

/// The peer's number in the counters: its place in 127.64.0.0/10, stable as its address is.
pub(super) fn peer_index(address: Ipv4Addr) -> PeerIndex {
    PeerIndex(address.to_bits() & 0x3f_ffff)
}

fn route_number(key: &NodePublic, prefix: &IpNet) -> u32 {
    let mut hasher = DefaultHasher::new();
    (key.as_bytes(), prefix).hash(&mut hasher);
    (hasher.finish() % u64::from(SPAN)) as u32
}

#[cfg(test)]
pub(super) mod tests {
    use node_core::DesiredPeer;

    use super::*;

    fn key(number: u8) -> NodePublic {
        NodePublic::from_bytes([number; 32])
    }

    pub(in crate::net) fn desired(peers: &[(u8, &[&str])]) -> Desired {
        let peers = peers.iter().map(|(number, routes)| {
            let routes: Vec<IpNet> = routes.iter().map(|net| net.parse().unwrap()).collect();
            let peer = DesiredPeer {
                id: i64::from(*number),
                name: String::new(),
                allowed_ips: routes.clone(),
                routes,
                disco: None,
                home_derp: None,
                endpoints: Vec::new(),
                hears_disco_key: None,
            };
            (key(*number), peer)
        });
        Desired {
            peers: peers.collect(),
            ..Desired::default()
        }
    }

    fn nothing(_: PeerIndex) -> Option<PeerCounters> {
        None
    }

    #[test]
    fn the_sum_of_a_peer_never_falls_when_a_route_goes() {
        let mut numbers = Numbers::default();
        let own = PeerIndex(1);
        numbers.assign(&desired(&[(1, &["10.0.0.0/8", "::/0"])]), nothing);
        let ten = |_| {
            Some(PeerCounters {
                rx_bytes: 10,
                ..PeerCounters::default()
            })
        };
        let sum = |numbers: &Numbers| numbers.sum(own, &key(1), ten).unwrap().rx_bytes;
        assert_eq!(sum(&numbers), 30);
        numbers.assign(&desired(&[(1, &["::/0"])]), ten);
        assert_eq!(sum(&numbers), 30);
        assert_eq!(numbers.sum(own, &key(1), nothing), None);
        numbers.assign(&desired(&[]), ten);
        numbers.assign(&desired(&[(1, &[])]), ten);
        assert_eq!(sum(&numbers), 10);
    }

    #[test]
    fn a_route_has_one_number_for_each_peer_that_may_have_it_and_no_peers() {
        let mut numbers = Numbers::default();
        let net = "10.0.0.0/8".parse().unwrap();
        let peer = peer_index(Ipv4Addr::new(127, 64, 0, 1));
        numbers.assign(&desired(&[(1, &["10.0.0.0/8", "::/0"]), (2, &[])]), nothing);
        let first = numbers.of(peer, &key(1), &net);
        assert!(first.0 & ROUTE != 0);
        assert_eq!(numbers.routes(&key(1)).count(), 2);
        assert_eq!(numbers.routes(&key(2)).count(), 0);
        assert_eq!(numbers.of(peer, &key(2), &net), peer);

        numbers.assign(&desired(&[(2, &["10.0.0.0/8"])]), nothing);
        assert_ne!(numbers.of(peer, &key(2), &net), first);
        numbers.assign(&desired(&[(0, &["::/0"]), (1, &["10.0.0.0/8"])]), nothing);
        assert_eq!(numbers.of(peer, &key(1), &net), first);
    }

    #[test]
    fn a_peer_with_very_many_routes_has_few_numbers() {
        let nets: Vec<String> = (0..200).map(|i| format!("10.{i}.0.0/16")).collect();
        let nets: Vec<&str> = nets.iter().map(String::as_str).collect();
        let mut numbers = Numbers::default();
        numbers.assign(&desired(&[(1, &nets)]), nothing);
        let all: BTreeSet<PeerIndex> = numbers.routes(&key(1)).map(|(_, number)| number).collect();
        assert_eq!(all.len(), MAX_ROUTES);
    }
}
