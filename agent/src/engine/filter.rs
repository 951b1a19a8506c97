//! From the network map to the packet filter: [`read`]. Pure.

use std::net::IpAddr;
use std::time::SystemTime;

use control_proto::Timestamp;
use control_proto::netmap::NetMap;
use control_proto::tailcfg::FilterRule;
use ipnet::IpNet;
use policy::filter::{Local, Rules};

use super::core::Clock;
use crate::net::filter::hosts;
use crate::net::{PacketFilter, Restriction};

/// What the map does not say of this node.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// Nobody may initiate.
    pub(super) shields_up: bool,
    /// Routes that this node serves.
    pub(super) served_routes: Vec<IpNet>,
    /// Addresses of the host's own interfaces, each with the length of its network.
    pub(super) interfaces: Vec<IpNet>,
    /// How the server's clock differs from ours.
    pub(super) clock: Clock,
}

/// What becomes of the map's filter: what is to be enforced, and what is wrong with it, for people.
pub(super) fn read(map: &NetMap, facts: Facts) -> (PacketFilter, Vec<String>) {
    let (rules, warnings) = rules(map);
    let ours = |time: Timestamp| facts.clock.ours(SystemTime::from(time));
    let restrictions = map.peers.values().filter_map(|peer| {
        let restriction = Restriction {
            jailed: peer.is_jailed,
            expires: peer.key_expiry().map(ours),
        };
        (restriction != Restriction::default()).then_some((peer.key, restriction))
    });
    let filter = PacketFilter {
        restrictions: restrictions.collect(),
        expires: map.node.key_expiry().map(ours),
        local: Local {
            addresses: hosts(&map.node.addresses),
            routes: facts.served_routes,
            interfaces: facts.interfaces,
            shields_up: facts.shields_up,
            ..Local::default()
        },
        rules,
    };
    (filter, warnings)
}

fn rules(map: &NetMap) -> (Rules, Vec<String>) {
    let rules: Vec<FilterRule> = map.packet_filter().cloned().collect();
    let capable = |name: &str| -> Vec<IpAddr> {
        let peers = map.peers.values();
        peers
            .filter(|peer| {
                peer.cap_map.contains_key(name) || peer.capabilities.iter().any(|cap| cap == name)
            })
            .flat_map(|peer| hosts(&peer.addresses))
            .collect()
    };
    let unsigned: Vec<IpNet> = map
        .peers
        .values()
        .filter(|peer| peer.unsigned_peer_api_only)
        .flat_map(|peer| peer.allowed_ips().iter().copied())
        .collect();
    match Rules::parse(&rules, capable, &unsigned) {
        Ok(rules) => {
            let warnings = rules.invalid().iter().map(ToString::to_string).collect();
            (rules, warnings)
        }
        // Nothing is admitted then.
        Err(error) => (Rules::default(), vec![error.to_string()]),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use control_proto::Presence;
    use control_proto::tailcfg::{MapResponse, Node, NodeId};
    use keys::NodePublic;

    use super::*;

    fn key(number: u8) -> NodePublic {
        NodePublic::from_bytes([number; 32])
    }

    fn node(number: u8) -> Node {
        let address: IpNet = format!("100.64.0.{number}/32").parse().unwrap();
        Node {
            id: NodeId(number.into()),
            key: key(number),
            addresses: vec![address],
            allowed_ips: Some(vec![address]),
            ..Node::default()
        }
    }

    fn map(rules: Vec<FilterRule>, peers: Vec<Node>) -> NetMap {
        let response = MapResponse {
            node: Some(node(1)),
            peers: Presence::Value(peers),
            packet_filters: Presence::Value(BTreeMap::from([("base".to_owned(), Some(rules))])),
            ..MapResponse::default()
        };
        let now = Timestamp::from(SystemTime::now());
        NetMap::first(key(1), response, now).unwrap().0
    }

    #[test]
    fn jailed_and_expiring_peers_are_restricted_by_our_clock() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
        let peer = Node {
            is_jailed: true,
            key_expiry: Timestamp::from(at),
            ..node(2)
        };
        let map = map(vec![FilterRule::allow_all()], vec![peer, node(3)]);
        let ahead = Duration::from_secs(100);
        let facts = Facts {
            clock: Clock::Ahead(ahead),
            ..Facts::default()
        };
        let (filter, warnings) = read(&map, facts);
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(filter.rules.matches().len(), 1);
        let restriction = Restriction {
            jailed: true,
            expires: Some(at - ahead),
        };
        assert_eq!(filter.restrictions, BTreeMap::from([(key(2), restriction)]));
        assert_eq!(filter.local.addresses, hosts(&map.node.addresses));
    }

    #[test]
    fn an_unreadable_entry_is_told_and_an_unsigned_peer_spoils_everything() {
        let broken = FilterRule {
            src_ips: vec!["100.64.0.2".to_owned(), "elsewhere".to_owned()],
            ..FilterRule::allow_all()
        };
        let (filter, warnings) = read(&map(vec![broken], Vec::new()), Facts::default());
        assert_eq!(filter.rules.matches().len(), 1);
        assert!(warnings[0].contains("elsewhere"), "{warnings:?}");

        let unsigned = Node {
            unsigned_peer_api_only: true,
            ..node(2)
        };
        let map = map(vec![FilterRule::allow_all()], vec![unsigned]);
        let (filter, warnings) = read(&map, Facts::default());
        assert!(filter.rules.matches().is_empty());
        assert!(warnings[0].contains("nothing is admitted"), "{warnings:?}");
    }
}
