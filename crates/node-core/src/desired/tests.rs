//! What a network map becomes: who is a peer, which prefixes it gets.

use std::time::{Duration, UNIX_EPOCH};

use control_proto::Timestamp;
use control_proto::capver::CapabilityVersion;
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
fn only_a_peer_of_a_version_that_hears_them_is_told_disco_keys() {
    let mut older = node(1);
    older.cap = CapabilityVersion(143);
    let mut newer = node(2);
    newer.cap = CapabilityVersion(144);

    let desired = desired(&[older, newer]);

    assert_eq!(desired.peers[&key(1)].hears_disco_key, None);
    let first = nets(&["100.64.0.2/32"])[0].addr();
    assert_eq!(desired.peers[&key(2)].hears_disco_key, Some(first));
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

#[test]
fn accepted_routes_go_to_their_router_but_default_routes_do_not() {
    let router = router(1, &["10.0.0.0/8", "fd00:1::/64", "0.0.0.0/0", "::/0"]);

    let desired = desired_with(&[router], &accepting());

    let expected = nets(&["10.0.0.0/8", "100.64.0.1/32", "fd00:1::/64"]);
    assert_eq!(desired.peers[&key(1)].allowed_ips, expected);
    assert_eq!(desired.routes, expected);
    assert_eq!(desired.exit, None);
}

#[test]
fn a_route_of_two_routers_goes_to_the_lower_number() {
    let routers = [router(2, &["10.0.0.0/8"]), router(1, &["10.0.0.0/8"])];

    let desired = desired_with(&routers, &accepting());

    assert!(
        desired.peers[&key(1)]
            .allowed_ips
            .contains(&nets(&["10.0.0.0/8"])[0])
    );
    assert_eq!(desired.peers[&key(2)].allowed_ips, nets(&["100.64.0.2/32"]));
}

#[test]
fn no_router_takes_another_peers_address() {
    let nodes = [router(1, &["100.64.0.2/32"]), node(2)];

    let desired = desired_with(&nodes, &accepting());

    assert_eq!(desired.peers[&key(1)].allowed_ips, nets(&["100.64.0.1/32"]));
    assert_eq!(desired.peers[&key(2)].allowed_ips, nets(&["100.64.0.2/32"]));
}

#[test]
fn only_the_chosen_exit_node_gets_the_default_routes() {
    let exits = [
        router(1, &["0.0.0.0/0", "::/0"]),
        router(2, &["0.0.0.0/0", "::/0"]),
    ];
    for chosen in [
        ExitNode::Id(StableNodeId("n2".into())),
        ExitNode::Ip("100.64.0.2".parse().unwrap()),
    ] {
        let options = Options {
            exit_node: Some(chosen),
            allow_lan_access: true,
            ..options()
        };

        let desired = desired_with(&exits, &options);

        assert_eq!(desired.peers[&key(1)].allowed_ips, nets(&["100.64.0.1/32"]));
        assert_eq!(
            desired.peers[&key(2)].allowed_ips,
            nets(&["0.0.0.0/0", "100.64.0.2/32", "::/0"])
        );
        assert_eq!(
            desired.exit,
            Some(Exit {
                peer: Some(key(2)),
                allow_lan_access: true
            })
        );
    }
}

#[test]
fn an_exit_node_that_is_not_there_captures_everything_all_the_same() {
    let mut expired = router(1, &["0.0.0.0/0", "::/0"]);
    expired.expired = true;
    let without_ipv6 = router(2, &["0.0.0.0/0"]);
    let no_exit = router(3, &[]);
    let nodes = [expired, without_ipv6, no_exit];
    for (chosen, peer) in [
        ("n1", None),
        ("n2", Some(key(2))),
        ("n3", None),
        ("n9", None),
    ] {
        let options = Options {
            exit_node: Some(ExitNode::Id(StableNodeId(chosen.into()))),
            ..options()
        };

        let desired = desired_with(&nodes, &options);

        assert_eq!(desired.exit.unwrap().peer, peer, "{chosen}");
        for default in DEFAULT_ROUTES {
            assert!(desired.routes.contains(&default), "{chosen}");
        }
    }
}

#[test]
fn routes_are_served_once_offered_and_approved() {
    let options = Options {
        advertised: nets(&["10.1.0.0/16", "10.2.0.0/16", "0.0.0.0/0", "::/0"]),
        ..options()
    };

    let desired = desired_of(
        &own(&["10.1.0.0/16", "10.3.0.0/16", "0.0.0.0/0"]),
        &[],
        &options,
    );

    assert_eq!(desired.served_routes, nets(&["0.0.0.0/0", "10.1.0.0/16"]));
    assert_eq!(desired.local_routes, nets(&["10.1.0.0/16", "10.2.0.0/16"]));
    assert_eq!(desired.routes, []);
}

#[test]
fn a_network_of_our_own_is_not_reached_through_another_router() {
    let options = Options {
        advertised: nets(&["10.1.0.0/16"]),
        ..accepting()
    };

    let desired = desired_with(&[router(1, &["10.1.0.0/16", "10.2.0.0/16"])], &options);

    assert_eq!(desired.routes, nets(&["10.2.0.0/16", "100.64.0.1/32"]));
}

fn desired(peers: &[Node]) -> Desired {
    desired_with(peers, &options())
}

fn desired_with(peers: &[Node], options: &Options) -> Desired {
    desired_of(&own(&[]), peers, options)
}

fn desired_of(own: &Node, peers: &[Node], options: &Options) -> Desired {
    Desired::from_nodes(own, peers.iter(), DerpMap::default(), options)
}

fn options() -> Options {
    Options::new(DEFAULT_MTU, UNIX_EPOCH + NOW)
}

fn accepting() -> Options {
    Options {
        accept_routes: true,
        ..options()
    }
}

/// This node, with these routes approved.
fn own(approved: &[&str]) -> Node {
    let addresses = nets(&["100.64.0.99/32"]);
    let mut allowed_ips = addresses.clone();
    allowed_ips.extend(nets(approved));
    Node {
        addresses,
        allowed_ips: Some(allowed_ips),
        ..Node::default()
    }
}

/// A peer with these routes.
fn router(number: u8, routes: &[&str]) -> Node {
    let mut router = node(number);
    let mut allowed_ips = router.addresses.clone();
    allowed_ips.extend(nets(routes));
    router.allowed_ips = Some(allowed_ips);
    router.stable_id = StableNodeId(format!("n{number}"));
    router
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
