//! Messages round trip, and the leniency that the protocol asks for.

use keys::DiscoPrivate;
use proptest::prelude::*;

use super::*;

fn addresses() -> impl Strategy<Value = SocketAddr> {
    (
        prop_oneof![
            any::<[u8; 4]>().prop_map(IpAddr::from),
            any::<[u8; 16]>().prop_map(|ip| IpAddr::from(ip).to_canonical()),
        ],
        any::<u16>(),
    )
        .prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn messages() -> impl Strategy<Value = Message> {
    let id = || any::<[u8; 12]>().prop_map(TxId);
    prop_oneof![
        (id(), any::<[u8; 32]>(), 0..1500u16).prop_map(|(id, node, padding)| Message::Ping {
            id,
            node: Some(NodePublic::from_bytes(node)),
            padding,
        }),
        id().prop_map(|id| Message::Ping {
            id,
            node: None,
            padding: 0
        }),
        (id(), addresses()).prop_map(|(id, source)| Message::Pong { id, source }),
        prop::collection::vec(addresses(), 0..20)
            .prop_map(|endpoints| Message::CallMeMaybe { endpoints }),
    ]
}

proptest! {
    #[test]
    fn a_message_comes_back_as_it_was_sealed(message in messages()) {
        let (a, b) = (DiscoPrivate::generate(), DiscoPrivate::generate());
        let datagram = seal(&a.public(), &a.shared(&b.public()), &message);

        let envelope = parse_envelope(&datagram).unwrap();

        prop_assert_eq!(envelope.sender, a.public());
        prop_assert_eq!(open(envelope, &b.shared(&a.public())), Ok(message));
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = Message::parse(&bytes);
        let _ = parse_envelope(&bytes);
    }

    #[test]
    fn bytes_after_a_pong_are_ignored(extra in prop::collection::vec(any::<u8>(), 0..40)) {
        let pong = Message::Pong { id: TxId([3; 12]), source: "192.0.2.1:9".parse().unwrap() };
        let inner = [pong.encode(), extra].concat();
        prop_assert_eq!(Message::parse(&inner), Ok(pong));
    }
}

#[test]
fn a_minimal_ping_datagram_has_124_bytes() {
    let (a, b) = (DiscoPrivate::generate(), DiscoPrivate::generate());
    let ping = Message::Ping {
        id: TxId([1; 12]),
        node: Some(NodePublic::from_bytes([2; 32])),
        padding: 0,
    };
    let datagram = seal(&a.public(), &a.shared(&b.public()), &ping);
    assert_eq!(datagram.len(), 124);
}

#[test]
fn a_box_for_another_key_does_not_open() {
    let (a, b, c) = (
        DiscoPrivate::generate(),
        DiscoPrivate::generate(),
        DiscoPrivate::generate(),
    );
    let message = Message::CallMeMaybe { endpoints: vec![] };
    let datagram = seal(&a.public(), &a.shared(&b.public()), &message);
    let envelope = parse_envelope(&datagram).unwrap();
    assert!(matches!(
        open(envelope, &c.shared(&a.public())),
        Err(DiscoError::Open(_))
    ));
}

#[test]
fn odd_lists_and_newer_versions_count_as_empty() {
    let empty = Message::CallMeMaybe { endpoints: vec![] };
    assert_eq!(Message::parse(&[3, 0, 1, 2, 3]), Ok(empty.clone()));
    assert_eq!(
        Message::parse(&[[3, 1].as_slice(), &[0; 18]].concat()),
        Ok(empty)
    );
}

#[test]
fn a_list_of_addresses_is_bounded() {
    let inner = [[3, 0].as_slice(), &vec![0; ADDRESS_LEN * 3000]].concat();
    let Ok(Message::CallMeMaybe { endpoints }) = Message::parse(&inner) else {
        panic!("not a CallMeMaybe")
    };
    assert_eq!(endpoints.len(), MAX_ENDPOINTS);
}

#[test]
fn unknown_types_are_told_not_refused() {
    assert_eq!(
        Message::parse(&[0x42, 0, 1, 2]),
        Ok(Message::Unknown {
            kind: 0x42,
            version: 0
        })
    );
    assert_eq!(
        Message::parse(&[PING, 7]),
        Ok(Message::Unknown {
            kind: PING,
            version: 7
        })
    );
    assert_eq!(Message::parse(&[PING]), Err(DiscoError::Truncated));
    assert_eq!(Message::parse(&[PING, 0, 1]), Err(DiscoError::Truncated));
}
