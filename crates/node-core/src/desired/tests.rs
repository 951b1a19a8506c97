//! What a network map becomes: who is a peer, which prefixes it gets.

use std::time::{Duration, UNIX_EPOCH};

use control_proto::Timestamp;
use control_proto::tailcfg::{Node, NodeId};

use super::*;

const NOW: Duration = Duration::from_secs(1_000_000_000);

#[test]
fn a_peer_gets_its_own_addresses_and_nothing_more() {
    let mut router = node(1);
    router.allowed_ips = Some(nets(&["100.64.0.1/32", "10.0.0.0/8", "0.0.0.0/0"]));

    let desired = desired(&[router]);

    let peer = &desired.peers[&key(1)];
    assert_eq!(peer.allowed_ips, nets(&["100.64.0.1/32"]));
    assert_eq!(desired.routes, nets(&["100.64.0.1/32"]));
}

#[test]
fn an_expired_peer_has_no_tunnel() {
    let mut by_flag = node(1);
    by_flag.expired = true;
    let mut by_clock = node(2);
    by_clock.key_expiry = Timestamp::from(UNIX_EPOCH + NOW - Duration::from_secs(1));
    let mut valid = node(3);
    valid.key_expiry = Timestamp::from(UNIX_EPOCH + NOW + Duration::from_secs(1));

    let desired = desired(&[by_flag, by_clock, valid]);

    assert_eq!(desired.peers.keys().copied().collect::<Vec<_>>(), [key(3)]);
}

#[test]
fn a_peer_that_nothing_reaches_is_left_out() {
    let mut unreachable = node(1);
    unreachable.disco_key = DiscoPublic::default();
    unreachable.home_derp = 0;
    let mut by_relay = node(2);
    by_relay.disco_key = DiscoPublic::default();
    let mut by_disco = node(3);
    by_disco.home_derp = 0;

    let desired = desired(&[unreachable, by_relay, by_disco]);

    assert!(!desired.peers.contains_key(&key(1)));
    assert_eq!(desired.peers[&key(2)].home_derp, Some(RegionId(900)));
    assert_eq!(desired.peers[&key(2)].disco, None);
    assert_eq!(desired.peers[&key(3)].home_derp, None);
}

#[test]
fn a_prefix_that_two_peers_claim_goes_to_the_lower_number() {
    let mut second = node(2);
    second.addresses = nets(&["100.64.0.1/32", "100.64.0.2/32"]);

    let desired = desired(&[second, node(1)]);

    assert_eq!(desired.peers[&key(1)].allowed_ips, nets(&["100.64.0.1/32"]));
    assert_eq!(desired.peers[&key(2)].allowed_ips, nets(&["100.64.0.2/32"]));
}

#[test]
fn no_peer_takes_our_own_address() {
    let mut thief = node(1);
    thief.addresses = nets(&["100.64.0.99/32", "100.64.0.1/32"]);

    let desired = desired(&[thief]);

    assert_eq!(desired.addresses, nets(&["100.64.0.99/32"]));
    assert_eq!(desired.peers[&key(1)].allowed_ips, nets(&["100.64.0.1/32"]));
}

fn desired(peers: &[Node]) -> Desired {
    let options = Options {
        mtu: DEFAULT_MTU,
        now: UNIX_EPOCH + NOW,
    };
    let addresses = nets(&["100.64.0.99/32"]);
    Desired::from_nodes(addresses, peers.iter(), DerpMap::default(), &options)
}

fn node(number: u8) -> Node {
    Node {
        id: NodeId(i64::from(number)),
        key: key(number),
        disco_key: DiscoPublic::from_bytes([number; 32]),
        addresses: nets(&[&format!("100.64.0.{number}/32")]),
        home_derp: 900,
        ..Node::default()
    }
}

fn key(number: u8) -> NodePublic {
    NodePublic::from_bytes([number; 32])
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}
