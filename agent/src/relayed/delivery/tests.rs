//! Shapes of packets, and the socket against a stand-in for WireGuard's.

use std::net::{Ipv6Addr, SocketAddr};

use tokio::net::UdpSocket;

use super::*;
use crate::relayed::Beside;

#[test]
fn only_wireguard_shapes_reach_wireguard() {
    for (kind, len, expected) in [
        (1, 148, true),
        (1, 149, false),
        (2, 92, true),
        (3, 64, true),
        (4, 31, false),
        (4, 32, true),
        (4, 1452, true),
        (5, 148, false),
        (0, 148, false),
    ] {
        let mut packet = vec![0; len];
        packet[0] = kind;
        assert_eq!(is_wireguard(&packet), expected, "type {kind}, {len} bytes");
    }
    assert!(!is_wireguard(&[
        4, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0
    ]));
    assert!(!is_wireguard(&[]));
}

#[tokio::test]
async fn packets_come_from_the_peers_own_address_whatever_their_sizes() {
    let wireguard = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = wireguard.local_addr().unwrap().port();
    let relayed = Arc::new(Relayed::bind(None, port, tunnel::Inlet::default()).unwrap());
    let peers = Peers::default();
    let (alice, bob) = (key(1), key(2));
    peers.replace([(alice, 2), (bob, 3)].into_iter().map(|(key, last)| {
        crate::net::peers::Peer::new(key, Ipv4Addr::new(127, 64, 0, last), None, None)
    }));
    let inbound = Inbound {
        relayed: relayed.clone(),
        peers,
        paths: crate::paths::channel().0,
        junk: Tally::default(),
    };

    let mut delivery = inbound.delivery(RegionId(1));
    let sent = [
        (alice, 100),
        (alice, 100),
        (alice, 60),
        (bob, 60),
        (alice, 80),
        (key(9), 50),
    ];
    for (number, (source, len)) in sent.iter().enumerate() {
        delivery.handle(*source, packet(number, *len)).await;
    }
    delivery.flush().await;
    assert_eq!(inbound.junk.read().unknown_sender, 1);

    let mut buffer = [0; 2048];
    for (number, (source, len)) in sent[..5].iter().enumerate() {
        let (received, from) = wireguard.recv_from(&mut buffer).await.unwrap();
        assert_eq!(buffer[..received], packet(number, *len));
        let last = if *source == alice { 2 } else { 3 };
        let expected = SocketAddr::from((Ipv4Addr::new(127, 64, 0, last), relayed.port()));
        assert_eq!(from, expected);
    }
}

#[tokio::test]
async fn packets_of_a_direct_peer_look_as_if_they_had_come_straight() {
    for (local, endpoint) in [
        (
            SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            "203.0.113.7:41641",
        ),
        (
            SocketAddr::from((Ipv6Addr::LOCALHOST, 0)),
            "[2001:db8::7]:41641",
        ),
    ] {
        let wireguard = UdpSocket::bind(local).await.unwrap();
        let to = wireguard.local_addr().unwrap();
        let relayed = Arc::new(Relayed::bind(None, to.port(), tunnel::Inlet::default()).unwrap());
        let peers = Peers::default();
        let address = Ipv4Addr::new(127, 64, 0, 2);
        let peer = crate::net::peers::Peer::new(key(1), address, None, None);
        peers.replace(std::iter::once(peer));
        let from: SocketAddr = endpoint.parse().unwrap();
        relayed.set_beside(address, Some(Beside::Source { from, to }));
        let inbound = Inbound {
            relayed,
            peers,
            paths: crate::paths::channel().0,
            junk: Tally::default(),
        };
        let mut delivery = inbound.delivery(RegionId(1));
        for number in 0..3 {
            delivery.handle(key(1), packet(number, 61)).await;
        }
        delivery.flush().await;
        let mut buffer = [0; 2048];
        for number in 0..3 {
            let (received, source) = wireguard.recv_from(&mut buffer).await.unwrap();
            assert_eq!(buffer[..received], packet(number, 61));
            assert_eq!(source, from);
        }
    }
}

fn key(number: u8) -> NodePublic {
    NodePublic::from_bytes([number; 32])
}

fn packet(number: usize, len: usize) -> BytesMut {
    let mut packet = BytesMut::from(&vec![number as u8; len][..]);
    packet[..4].copy_from_slice(&[4, 0, 0, 0]);
    packet
}
