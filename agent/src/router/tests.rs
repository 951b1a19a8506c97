//! What table 52 should hold.

use std::collections::BTreeSet;

use ipnet::IpNet;
use netlink::links::{Kind, Layer, Link};
use netlink::routes::{Routes, Target};
use node_core::DEFAULT_ROUTES;

use super::lan::Networks;
use super::{Ipv6, Wiring, wanted_routes};

const DUAL: Ipv6 = Ipv6 {
    host: true,
    device: true,
};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| net(text)).collect()
}

/// With an exit node; `lan_access` as chosen.
fn captured(lan_access: bool) -> Wiring {
    let mut routes = nets(&["100.64.0.2/32"]);
    routes.extend(DEFAULT_ROUTES);
    Wiring {
        routes,
        captured: Some(lan_access),
        ..Wiring::default()
    }
}

fn networks() -> Networks {
    Networks {
        outside: nets(&["192.168.1.0/24", "2001:db8::/64"]),
        inside: nets(&["172.17.0.0/16"]),
    }
}

#[test]
fn an_exit_node_takes_the_lan_unless_it_may_be_reached() {
    for (lan_access, lan) in [(false, Target::Interface), (true, Target::Throw)] {
        let table = wanted_routes(&captured(lan_access), &networks(), DUAL);
        let expected = Routes::from([
            (net("0.0.0.0/0"), Target::Interface),
            (net("100.64.0.2/32"), Target::Interface),
            (net("172.17.0.0/16"), Target::Throw),
            (net("192.168.1.0/24"), lan),
            (net("::/0"), Target::Interface),
            (net("2001:db8::/64"), lan),
        ]);
        assert_eq!(table, expected);
    }
}

#[test]
fn ipv6_that_the_device_cannot_take_is_refused_and_does_not_leak() {
    let ipv6 = Ipv6 {
        host: true,
        device: false,
    };
    let table = wanted_routes(&captured(false), &networks(), ipv6);
    assert_eq!(table.get(&net("::/0")), Some(&Target::Unreachable));
    assert_eq!(table.get(&net("2001:db8::/64")), None);
    let none = Ipv6 {
        host: false,
        device: false,
    };
    let table = wanted_routes(&captured(true), &networks(), none);
    assert!(table.keys().all(|net| net.addr().is_ipv4()), "{table:?}");
}

#[test]
fn a_router_keeps_its_own_network_out_of_wider_routes() {
    let wiring = Wiring {
        routes: nets(&["10.0.0.0/8"]),
        own: nets(&["10.1.0.0/16", "192.168.7.0/24"]),
        ..Wiring::default()
    };
    let expected = Routes::from([
        (net("10.0.0.0/8"), Target::Interface),
        (net("10.1.0.0/16"), Target::Throw),
    ]);
    assert_eq!(wanted_routes(&wiring, &Networks::default(), DUAL), expected);
}

#[test]
fn a_bridge_is_inside_until_it_has_a_port_to_the_outside() {
    let link = |index, kind, master| Link {
        index,
        name: format!("i{index}"),
        kind,
        mtu: 1500,
        up: true,
        loopback: index == 1,
        master,
        layer: Layer::Ethernet,
    };
    let addresses = [
        (1, net("127.0.0.1/8")),
        (2, net("192.168.1.7/24")),
        (3, net("172.17.0.1/16")),
        (5, net("203.0.113.9/32")),
    ];
    let mut links = vec![
        link(1, Kind::Other, None),
        link(2, Kind::Other, None),
        link(3, Kind::Bridge, None),
        link(4, Kind::Veth, Some(3)),
        link(5, Kind::Other, None),
    ];
    let networks = Networks::of_host(&links, &addresses);
    assert_eq!(networks.outside, nets(&["192.168.1.0/24"]));
    assert_eq!(networks.inside, nets(&["172.17.0.0/16"]));

    links.push(link(6, Kind::Other, Some(3)));
    let networks = Networks::of_host(&links, &addresses);
    assert_eq!(networks.outside, nets(&["172.17.0.0/16", "192.168.1.0/24"]));
    assert_eq!(networks.inside, BTreeSet::new());
}
