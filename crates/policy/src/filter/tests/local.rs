//! Which destinations are ours.

use super::*;

fn destinations(routes: &[&str], interfaces: &[&str]) -> IpSet {
    Local {
        addresses: vec![NETS[0].us, NETS[1].us],
        routes: routes.iter().map(|route| route.parse().unwrap()).collect(),
        interfaces: interfaces.iter().map(|net| net.parse().unwrap()).collect(),
        ..Local::default()
    }
    .destinations()
}

#[track_caller]
fn check(set: &IpSet, ours: &[&str], not_ours: &[&str]) {
    for address in ours {
        assert!(
            set.contains(address.parse().unwrap()),
            "{address} is not ours"
        );
    }
    for address in not_ours {
        assert!(!set.contains(address.parse().unwrap()), "{address} is ours");
    }
}

#[test]
fn own_addresses_and_advertised_routes_are_ours() {
    check(
        &destinations(&["10.1.0.0/16", "fd00:1::/32"], &[]),
        &[
            "100.64.0.1",
            "fd7a:115c:a1e0::1",
            "10.1.255.255",
            "fd00:1::7",
        ],
        &[
            "100.64.0.2",
            "fd7a:115c:a1e0::2",
            "10.2.0.0",
            "fd00:2::7",
            "8.8.8.8",
        ],
    );
}

#[test]
fn an_exit_node_offers_the_internet_and_nothing_private() {
    check(
        &destinations(&["0.0.0.0/0", "::/0"], &[]),
        &[
            "8.8.8.8",
            "2001:db8::1",
            "100.64.0.1",
            "fd7a:115c:a1e0::1",
            "fd12::1",
            "172.32.0.1",
        ],
        &[
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "224.0.0.1",
            "100.64.0.2",
            "fe80::1",
            "ff02::1",
            "fd7a:115c:a1e0::2",
        ],
    );
}

#[test]
fn an_exit_node_keeps_its_networks_but_offers_its_own_public_addresses() {
    check(
        &destinations(
            &["0.0.0.0/0", "::/0"],
            &[
                "203.0.113.7/24",
                "192.168.1.7/24",
                "2001:db8:1::7/64",
                "fd12::7/64",
            ],
        ),
        &[
            "203.0.113.7",
            "2001:db8:1::7",
            "fd12::7",
            "203.0.114.1",
            "fd12:0:0:1::1",
        ],
        &[
            "203.0.113.1",
            "192.168.1.7",
            "192.168.1.1",
            "2001:db8:1::1",
            "fd12::1",
        ],
    );
}

#[test]
fn a_default_route_is_for_its_family_only() {
    check(
        &destinations(&["0.0.0.0/0"], &["2001:db8:1::7/64"]),
        &["8.8.8.8"],
        &["2001:db8:1::7"],
    );
    check(
        &destinations(&["::/0"], &["203.0.113.7/24"]),
        &["2001:db8::1"],
        &["203.0.113.7"],
    );
}

#[test]
fn an_exit_node_may_advertise_its_network_besides() {
    check(
        &destinations(&["0.0.0.0/0", "192.168.1.0/24"], &["192.168.1.7/24"]),
        &["192.168.1.1", "192.168.1.7"],
        &["192.168.2.1"],
    );
}

#[test]
fn services_and_the_permission_to_ask_for_names_are_ours_where_we_offer_them() {
    let mut local = Local::default();
    check(
        &local.destinations(),
        &[],
        &["100.100.1.1", "0.0.0.0", "::"],
    );
    local.services = vec!["100.100.1.1".parse().unwrap()];
    local.app_connector = true;
    check(
        &local.destinations(),
        &["100.100.1.1", "0.0.0.0", "::"],
        &["0.0.0.1", "::1"],
    );
}
