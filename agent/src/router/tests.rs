//! What table 52 should hold.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use keys::NodePublic;
use netlink::links::{Kind, Layer, Link};
use netlink::routes::{Routes, Target};
use node_core::{DEFAULT_MTU, DEFAULT_ROUTES, Desired, DesiredPeer};

use super::lan::Networks;
use super::{Ipv6, Mtus, Wiring, wanted_routes};

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

/// Routes into the device.
fn routed(texts: &[&str]) -> BTreeMap<IpNet, u16> {
    texts.iter().map(|text| (net(text), DEFAULT_MTU)).collect()
}

const INTO: Target = Target::Interface(Some(DEFAULT_MTU as u32));

/// With an exit node that takes longer packets than others; `lan_access` as chosen.
fn captured(lan_access: bool) -> Wiring {
    let mut routes = routed(&["100.64.0.2/32"]);
    routes.extend(DEFAULT_ROUTES.map(|net| (net, 1440)));
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
    let exit = Target::Interface(Some(1440));
    for (lan_access, lan) in [(false, exit), (true, Target::Throw)] {
        let table = wanted_routes(&captured(lan_access), &networks(), DUAL);
        let expected = Routes::from([
            (net("0.0.0.0/0"), exit),
            (net("100.64.0.2/32"), INTO),
            (net("172.17.0.0/16"), Target::Throw),
            (net("192.168.1.0/24"), lan),
            (net("::/0"), exit),
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
        routes: routed(&["10.0.0.0/8"]),
        own: nets(&["10.1.0.0/16", "192.168.7.0/24"]),
        ..Wiring::default()
    };
    let expected = Routes::from([
        (net("10.0.0.0/8"), INTO),
        (net("10.1.0.0/16"), Target::Throw),
    ]);
    assert_eq!(wanted_routes(&wiring, &Networks::default(), DUAL), expected);
}

#[test]
fn packets_are_longer_to_whom_took_them_and_to_nobody_else() {
    let [near, far] = [1, 2].map(|byte| NodePublic::from_bytes([byte; 32]));
    let peer = |text| DesiredPeer {
        id: 1,
        name: String::new(),
        allowed_ips: vec![net(text)],
        routes: Vec::new(),
        disco: None,
        home_derp: None,
        endpoints: Vec::new(),
        hears_disco_key: None,
    };
    let desired = Desired {
        mtu: DEFAULT_MTU,
        routes: vec![net("100.64.0.2/32"), net("100.64.0.3/32")],
        peers: BTreeMap::from([(near, peer("100.64.0.2/32")), (far, peer("100.64.0.3/32"))]),
        ..Desired::default()
    };
    let table = |mtus: &Mtus| {
        let wiring = Wiring::new(&desired, mtus);
        let table = wanted_routes(&wiring, &Networks::default(), DUAL);
        (wiring.mtu, table.into_values().collect::<Vec<_>>())
    };
    let into = |mtu| Target::Interface(Some(mtu));
    let mut mtus = Mtus::default();
    assert_eq!(table(&mtus), (1280, vec![into(1280); 2]));
    assert!(mtus.set(near, 1440) && !mtus.set(near, 1440));
    assert_eq!(table(&mtus), (1440, vec![into(1440), into(1280)]));
    // What one peer's routes are set to on their own is what the whole table has.
    let alone: Vec<_> = mtus.routes_to(&near, &desired).collect();
    assert_eq!(alone, [(net("100.64.0.2/32"), 1440)]);
    assert!(mtus.set(far, 1440));
    assert_eq!(table(&mtus), (1440, vec![into(1440); 2]));
    // The device keeps what it had.
    assert!(mtus.set(near, 1280) && mtus.set(far, 1280) && !mtus.set(far, 1280));
    assert_eq!(table(&mtus), (1440, vec![into(1280); 2]));
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
