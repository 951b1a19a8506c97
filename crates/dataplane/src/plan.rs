//! What must change in the maps so that they hold the desired peers.

use std::collections::{BTreeMap, BTreeSet};

use ebpf_abi::{PeerEntry, PeerIndex};
use ipnet::IpNet;

/// Prefixes of the overlay and the peers they belong to.
pub(crate) type Routes = BTreeMap<IpNet, PeerEntry>;

/// One change of the maps.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Change {
    /// Gives the peer counters, all zero, whatever it had before.
    StartCounting(PeerIndex),
    /// Points the prefix at the peer.
    SetRoute(IpNet, PeerEntry),
    /// Takes the prefix away.
    RemoveRoute(IpNet),
    /// Takes the peer's counters away.
    StopCounting(PeerIndex),
}

/// Returns the changes that lead from `actual` routes and `counted` peers to `desired`. Pure.
///
/// Their order is safe while packets pass: a peer has counters before a prefix leads to it and
/// until none does. An index that keeps none of its prefixes has gone to another peer, whose
/// counters start at zero.
pub(crate) fn plan(
    desired: &Routes,
    actual: &Routes,
    counted: &BTreeSet<PeerIndex>,
) -> Vec<Change> {
    let wanted: BTreeSet<PeerIndex> = desired.values().map(|peer| peer.index).collect();
    let kept: BTreeSet<PeerIndex> = desired
        .iter()
        .filter(|(prefix, peer)| {
            let before = actual.get(*prefix);
            before.is_some_and(|before| before.index == peer.index)
        })
        .map(|(_, peer)| peer.index)
        .collect();

    let start = wanted
        .iter()
        .filter(|peer| !counted.contains(*peer) || !kept.contains(*peer))
        .map(|peer| Change::StartCounting(*peer));
    let set = desired
        .iter()
        .filter(|(prefix, peer)| actual.get(*prefix) != Some(*peer))
        .map(|(prefix, peer)| Change::SetRoute(*prefix, *peer));
    let remove = actual
        .keys()
        .filter(|prefix| !desired.contains_key(*prefix))
        .map(|prefix| Change::RemoveRoute(*prefix));
    let stop = counted
        .difference(&wanted)
        .map(|peer| Change::StopCounting(*peer));

    start.chain(set).chain(remove).chain(stop).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PeerIndex = PeerIndex(1);
    const B: PeerIndex = PeerIndex(2);

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn entry(index: PeerIndex) -> PeerEntry {
        PeerEntry {
            index,
            ..PeerEntry::default()
        }
    }

    fn routes(entries: &[(&str, PeerIndex)]) -> Routes {
        entries
            .iter()
            .map(|(prefix, peer)| (net(prefix), entry(*peer)))
            .collect()
    }

    #[test]
    fn counters_exist_before_the_first_prefix_leads_to_them() {
        let desired = routes(&[("100.64.0.1/32", A), ("fd7a::1/128", A)]);
        assert_eq!(
            plan(&desired, &Routes::new(), &BTreeSet::new()),
            [
                Change::StartCounting(A),
                Change::SetRoute(net("100.64.0.1/32"), entry(A)),
                Change::SetRoute(net("fd7a::1/128"), entry(A)),
            ]
        );
    }

    #[test]
    fn what_holds_already_is_left_alone() {
        let desired = routes(&[("100.64.0.1/32", A), ("fd7a::1/128", A)]);
        assert_eq!(plan(&desired, &desired, &BTreeSet::from([A])), []);
    }

    #[test]
    fn a_prefix_that_changes_hands_keeps_both_peers_counts() {
        let actual = routes(&[
            ("10.0.0.0/8", A),
            ("100.64.0.1/32", A),
            ("100.64.0.2/32", B),
        ]);
        let desired = routes(&[
            ("10.0.0.0/8", B),
            ("100.64.0.1/32", A),
            ("100.64.0.2/32", B),
        ]);
        assert_eq!(
            plan(&desired, &actual, &BTreeSet::from([A, B])),
            [Change::SetRoute(net("10.0.0.0/8"), entry(B))]
        );
    }

    #[test]
    fn a_peer_that_leaves_loses_its_prefixes_before_its_counters() {
        let actual = routes(&[("100.64.0.1/32", A), ("100.64.0.2/32", B)]);
        let desired = routes(&[("100.64.0.1/32", A)]);
        assert_eq!(
            plan(&desired, &actual, &BTreeSet::from([A, B])),
            [
                Change::RemoveRoute(net("100.64.0.2/32")),
                Change::StopCounting(B)
            ]
        );
    }

    #[test]
    fn an_index_reused_for_another_peer_starts_at_zero() {
        let actual = routes(&[("100.64.0.1/32", A)]);
        let desired = routes(&[("100.64.0.9/32", A)]);
        assert_eq!(
            plan(&desired, &actual, &BTreeSet::from([A])),
            [
                Change::StartCounting(A),
                Change::SetRoute(net("100.64.0.9/32"), entry(A)),
                Change::RemoveRoute(net("100.64.0.1/32")),
            ]
        );
    }

    #[test]
    fn a_key_that_expires_later_changes_the_prefixes_and_no_counts() {
        let actual = routes(&[("100.64.0.1/32", A)]);
        let later = PeerEntry {
            expires: 7,
            ..entry(A)
        };
        let desired = Routes::from([(net("100.64.0.1/32"), later)]);
        assert_eq!(
            plan(&desired, &actual, &BTreeSet::from([A])),
            [Change::SetRoute(net("100.64.0.1/32"), later)]
        );
    }
}
