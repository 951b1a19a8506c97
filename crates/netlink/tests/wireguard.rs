//! The WireGuard module against a real kernel; an independent library reads back what was set.

#![allow(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

mod namespace;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use keys::{NodePrivate, NodePublic};
use namespace::in_namespace;
use netlink::wireguard::{self, Change, Device, Peer};
use netlink::{Error, Netlink, links};

const NAME: &str = "wg0";

#[test]
fn five_thousand_peers_are_set_once_and_read_back() {
    with_device(
        "five_thousand_peers_are_set_once_and_read_back",
        async |netlink| {
            let mut desired = device(5_000);
            let cidrs = (0..2_000u32).map(|n| host(0x0b00_0000 + n)).collect();
            desired.peers.get_mut(&key(17)).unwrap().allowed_ips = cidrs;

            reach(netlink, &desired).await;

            assert_eq!(oracle(), desired.peers);
        },
    );
}

#[test]
fn a_change_of_one_peer_leaves_the_others_alone() {
    with_device(
        "a_change_of_one_peer_leaves_the_others_alone",
        async |netlink| {
            let mut desired = device(20);
            reach(netlink, &desired).await;

            desired.peers.remove(&key(1));
            let moved = desired.peers.get_mut(&key(2)).unwrap();
            let prefix = moved.allowed_ips.pop_first().unwrap();
            moved.endpoint = Some(SocketAddr::from(([192, 0, 2, 1], 41641)));
            desired
                .peers
                .get_mut(&key(3))
                .unwrap()
                .allowed_ips
                .insert(prefix);
            let actual = wireguard::dump(netlink, NAME).await.unwrap().device;
            assert!(wireguard::plan(&desired, &actual).len() <= 4);
            reach(netlink, &desired).await;

            assert_eq!(oracle(), desired.peers);
        },
    );
}

#[test]
fn moving_the_endpoint_of_a_removed_peer_does_not_bring_it_back() {
    let name = "moving_the_endpoint_of_a_removed_peer_does_not_bring_it_back";
    with_device(name, async |netlink| {
        let endpoint = SocketAddr::from(([192, 0, 2, 1], 41641));
        let change = Change::SetEndpoint(key(1), endpoint);
        wireguard::apply(netlink, NAME, &[change]).await.unwrap();
        assert!(oracle().is_empty());
    });
}

#[test]
fn an_absent_device_is_named() {
    with_device("an_absent_device_is_named", async |netlink| {
        let error = wireguard::dump(netlink, "absent0").await.unwrap_err();
        assert!(matches!(&error, Error::NoDevice { name, .. } if name == "absent0"));
    });
}

/// Plans and applies, and checks that a second plan is empty.
async fn reach(netlink: &Netlink, desired: &Device) {
    let actual = wireguard::dump(netlink, NAME).await.unwrap().device;
    let changes = wireguard::plan(desired, &actual);
    wireguard::apply(netlink, NAME, &changes).await.unwrap();
    let actual = wireguard::dump(netlink, NAME).await.unwrap().device;
    assert!(wireguard::plan(desired, &actual).is_empty());
}

/// Runs a test with a WireGuard device, or says why not.
fn with_device(name: &str, test: impl AsyncFnOnce(&Netlink) + Send) {
    in_namespace(name, async || {
        let netlink = Netlink::open().unwrap();
        match links::create_wireguard(&netlink, NAME).await {
            Ok(()) => test(&netlink).await,
            Err(Error::NoWireGuard { .. }) => {
                println!("\nSKIP {name}: kernel has no WireGuard");
            }
            Err(error) => panic!("{error:?}"),
        }
    });
}

/// What wireguard-control reads. It reports a peer that the kernel splits several times over.
fn oracle() -> BTreeMap<NodePublic, Peer> {
    use wireguard_control::{Backend, InterfaceName};
    let name: InterfaceName = NAME.parse().unwrap();
    let device = wireguard_control::Device::get(&name, Backend::Kernel).unwrap();
    let mut peers: BTreeMap<NodePublic, Peer> = BTreeMap::new();
    for found in device.peers {
        let peer = peers
            .entry(NodePublic::from_bytes(found.config.public_key.0))
            .or_default();
        peer.endpoint = found.config.endpoint.or(peer.endpoint);
        let ips = found.config.allowed_ips.iter();
        peer.allowed_ips
            .extend(ips.map(|ip| IpNet::new(ip.address, ip.cidr).unwrap()));
    }
    peers
}

fn device(peers: u32) -> Device {
    let peers = (0..peers).map(|number| {
        let peer = Peer {
            endpoint: Some(SocketAddr::from((
                (0x7f40_0002 + number).to_be_bytes(),
                41642,
            ))),
            allowed_ips: BTreeSet::from([host(0x6440_0000 + number)]),
        };
        (key(number), peer)
    });
    Device {
        private_key: Some(NodePrivate::from_bytes([7; 32])),
        listen_port: 41641,
        fwmark: 0x8_0000,
        peers: peers.collect(),
    }
}

fn key(number: u32) -> NodePublic {
    let mut bytes = [1; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    NodePublic::from_bytes(bytes)
}

fn host(bits: u32) -> IpNet {
    IpNet::from(IpAddr::from(bits.to_be_bytes()))
}
