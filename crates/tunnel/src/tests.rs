//! What two nodes do, without sockets.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use bytes::BytesMut;
use proptest::prelude::*;

use crate::batch::Batch;
use crate::testing::node::{Node, exchange, pair};
use crate::testing::{V4, V6, tcp, udp, without_id};
use crate::vnet::VnetHeader;

const ACK: u8 = 0x10;

/// What a host has received, super-packets as they are, without what joining changes.
fn received(node: &mut Node) -> Vec<Vec<u8>> {
    let written = node.written().into_iter();
    let packets = written.map(|frame| without_id(&frame[VnetHeader::LEN..]));
    packets.collect()
}

#[test]
fn what_waits_for_the_handshake_arrives() {
    let [mut a, mut b] = pair();
    let one = udp(V4, b"one");
    let said = a.send(&one);
    assert_eq!(said.packets[0].len(), 148, "an initiation");
    // A second one waits, and begins no second handshake.
    assert!(a.send(&udp(V6, b"second")).is_empty());
    exchange(&mut a, &mut b, said);
    assert_eq!(received(&mut b), [without_id(&one), udp(V6, b"second")]);
    assert!(a.peer.stats().last_handshake.is_some());
    let stats = b.peer.stats();
    assert_eq!(stats.endpoint, Some(a.address), "learned");
    assert!(stats.rx_bytes > 0 && stats.tx_bytes > 0 && stats.last_handshake.is_some());
}

fn connected() -> [Node; 2] {
    let [mut a, mut b] = pair();
    let said = a.send(&udp(V4, b"hello"));
    exchange(&mut a, &mut b, said);
    assert_eq!(received(&mut b).len(), 1);
    [a, b]
}

#[test]
fn packets_are_padded_to_16_bytes_and_no_longer_than_the_path() {
    let [mut a, _] = connected();
    for (payload, padded) in [(0, 32), (4, 32), (5, 48), (1250, 1280), (1252, 1280)] {
        let said = a.send(&udp(V4, &vec![7; payload]));
        assert_eq!(said.packets[0].len(), padded + 32, "{payload}");
    }
}

#[test]
fn a_source_that_is_not_the_peers_is_dropped() {
    let [mut a, mut b] = connected();
    let stranger = crate::testing::Flow {
        from: "10.9.0.7".parse().unwrap(),
        ..V4
    };
    let said = a.send(&udp(stranger, b"it was me"));
    exchange(&mut a, &mut b, said);
    assert!(received(&mut b).is_empty());
    assert_eq!(b.core.counters.not_allowed.load(Ordering::Relaxed), 1);
    // Nor does what nobody is allowed leave.
    let nowhere = crate::testing::Flow {
        to: "10.9.0.7".parse().unwrap(),
        ..V4
    };
    assert!(a.send(&udp(nowhere, b"hello?")).is_empty());
    assert_eq!(a.core.counters.no_peer.load(Ordering::Relaxed), 1);
}

#[test]
fn the_endpoint_follows_only_what_proves_right() {
    let [mut a, mut b] = connected();
    let said = a.send(&udp(V4, b"from elsewhere"));
    let elsewhere: SocketAddr = "[2001:db8::1]:9".parse().unwrap();
    let mut forged = Batch::default();
    let mut bytes = BytesMut::from(&said.packets[0][..]);
    bytes[20] ^= 1;
    forged.push(elsewhere, gotatun::packet::Packet::from_bytes(bytes));
    assert!(b.receive(elsewhere, &forged).is_empty());
    assert_eq!(b.peer.stats().endpoint, Some(a.address));
    b.receive(elsewhere, &said);
    assert_eq!(b.peer.stats().endpoint, Some(elsewhere));
    // The same again is no news.
    b.receive(a.address, &said);
    assert_eq!(b.peer.stats().endpoint, Some(elsewhere));
    assert_eq!(b.core.counters.refused.load(Ordering::Relaxed), 2);
}

#[test]
fn what_the_filter_refuses_goes_nowhere() {
    let [mut a, mut b] = connected();
    let said = a.send(&udp(V4, b"too late"));
    b.gate.closed.store(true, Ordering::Relaxed);
    exchange(&mut a, &mut b, said);
    assert!(received(&mut b).is_empty());
    a.gate.closed.store(true, Ordering::Relaxed);
    assert!(a.send(&udp(V4, b"never")).is_empty());
}

#[test]
fn a_removed_peer_is_not_heard_and_another_key_ends_sessions() {
    let [mut a, mut b] = connected();
    let said = a.send(&udp(V4, b"goodbye"));
    b.core.remove(&b.peer);
    assert!(b.receive(a.address, &said).is_empty());
    assert!(received(&mut b).is_empty());

    let [mut a, mut b] = connected();
    a.core.forget(&mut a.peer.lock());
    let said = a.send(&udp(V4, b"anew"));
    assert_eq!(said.packets[0].len(), 148, "an initiation");
    exchange(&mut a, &mut b, said);
    assert_eq!(received(&mut b), [without_id(&udp(V4, b"anew"))]);
}

#[test]
fn a_super_packet_is_one_again_on_the_other_side() {
    let [mut a, mut b] = connected();
    let payload: Vec<u8> = (0..12_000u32).map(|number| number as u8).collect();
    let whole = tcp(V6, ACK, 5, &payload);
    let vnet = VnetHeader {
        flags: crate::vnet::NEEDS_CSUM,
        gso: crate::vnet::Gso::Tcp6,
        header_len: 0,
        gso_size: 1220,
        csum_start: 40,
        csum_offset: 16,
    };
    let said = a.read(&mut [&vnet.bytes()[..], &whole[..]].concat());
    assert_eq!(said.len(), 10);
    assert_eq!(said.runs.len(), 1);
    exchange(&mut a, &mut b, said);
    let received = received(&mut b);
    assert_eq!(received.len(), 1);
    // Its checksum is left to the device.
    assert_eq!(received[0][..56], whole[..56]);
    assert_eq!(received[0][58..], whole[58..]);
}

#[test]
fn an_idle_peer_has_no_sessions_and_no_timers() {
    let [a, b] = pair();
    let mut due = Batch::default();
    a.core.tick(&mut due);
    assert!(due.is_empty());
    assert!(a.peer.lock().tunn.is_none());
    assert_eq!(b.peer.stats(), Default::default());
}

proptest! {
    #[test]
    fn no_datagram_makes_it_panic(
        datagrams in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..30),
        kinds in proptest::collection::vec(0u8..6, 30),
    ) {
        let [mut a, mut b] = connected();
        let mut batch = Batch::default();
        let said = a.send(&udp(V4, b"true"));
        for (mut datagram, kind) in datagrams.into_iter().zip(kinds) {
            match (kind, datagram.first_chunk_mut::<4>()) {
                // What a session is named by, then anything.
                (5, Some(_)) => datagram.splice(..4, said.packets[0][..16].to_vec()).for_each(drop),
                (kind, Some(first)) => *first = [kind, 0, 0, 0],
                (_, None) => {}
            }
            batch.push(b.address, gotatun::packet::Packet::from_bytes(BytesMut::from(&datagram[..])));
        }
        b.receive(a.address, &batch);
        prop_assert!(received(&mut b).is_empty());
        // It still carries.
        b.receive(a.address, &said);
        prop_assert_eq!(received(&mut b).len(), 1);
    }

    #[test]
    fn no_read_makes_it_panic(
        mut read in proptest::collection::vec(any::<u8>(), 0..2000),
        version in 4u8..7,
        kind in 0usize..4,
    ) {
        let [mut a, _] = connected();
        if read.len() > 40 {
            read[1] = [0, 1, 4, 5][kind];
            read[10] = version << 4 | read[10] & 15;
            // To the peer, so that it is looked at.
            if version == 4 {
                read[26..30].copy_from_slice(&[10, 9, 0, 2]);
            }
        }
        a.read(&mut read);
    }
}
