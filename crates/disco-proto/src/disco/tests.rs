//! Messages round trip, and the leniency that the protocol asks for.

use std::time::Duration;

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
        relay_messages().prop_map(|message| Message::Relay(Box::new(message))),
    ]
}

fn relay_messages() -> impl Strategy<Value = RelayMessage> {
    let key = || any::<[u8; 32]>().prop_map(DiscoPublic::from_bytes);
    let handshake = || {
        (any::<(u32, u32)>(), key(), any::<[u8; 32]>()).prop_map(
            |((vni, generation), remote, challenge)| Handshake {
                vni,
                generation,
                remote,
                challenge,
            },
        )
    };
    let endpoint = || {
        let times = any::<(u64, u64)>();
        let addresses = prop::collection::vec(addresses(), 1..5);
        ([key(), key(), key()], any::<(u64, u32)>(), times, addresses).prop_map(
            |([server, first, second], (lamport, vni), (bind, steady), addresses)| RelayEndpoint {
                server,
                clients: [first, second],
                lamport,
                vni,
                bind_lifetime: Duration::from_nanos(bind),
                steady_lifetime: Duration::from_nanos(steady),
                addresses,
            },
        )
    };
    prop_oneof![
        handshake().prop_map(RelayMessage::Bind),
        handshake().prop_map(RelayMessage::Challenge),
        handshake().prop_map(RelayMessage::Answer),
        endpoint().prop_map(RelayMessage::CallMeMaybeVia),
        ([key(), key()], any::<u32>()).prop_map(|(clients, generation)| {
            RelayMessage::AllocateRequest {
                clients,
                generation,
            }
        }),
        (any::<u32>(), endpoint()).prop_map(|(generation, endpoint)| {
            RelayMessage::AllocateResponse {
                generation,
                endpoint,
            }
        }),
    ]
}

/// What the official library, 1.98.9, writes for the values of the test.
const CHALLENGE: &str = "0500000102030a0b0c0d\
    1111111111111111111111111111111111111111111111111111111111111111\
    2222222222222222222222222222222222222222222222222222222222222222";
const REQUEST: &str = "0800\
    0202020202020202020202020202020202020202020202020202020202020202\
    030303030303030303030303030303030303030303030303030303030303030300000005";
const ENDPOINT: &str = "\
    0101010101010101010101010101010101010101010101010101010101010101\
    0202020202020202020202020202020202020202020202020202020202020202\
    0303030303030303030303030303030303030303030303030303030303030303\
    01020304050607080000000900000006fc23ac0000000045d964b800\
    00000000000000000000ffffc0000201000720010db80000000000000000000000010008";

fn hex(message: &RelayMessage) -> String {
    let bytes = Message::Relay(Box::new(message.clone())).encode();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn messages_about_relays_are_written_as_by_official_nodes() {
    let key = |byte| DiscoPublic::from_bytes([byte; 32]);
    let clients = [key(2), key(3)];
    let generation = 5;
    let challenge = RelayMessage::Challenge(Handshake {
        vni: 0x0001_0203,
        generation: 0x0a0b_0c0d,
        remote: key(0x11),
        challenge: [0x22; 32],
    });
    assert_eq!(hex(&challenge), CHALLENGE);
    let request = RelayMessage::AllocateRequest {
        clients,
        generation,
    };
    assert_eq!(hex(&request), REQUEST);
    let endpoint = RelayEndpoint {
        server: key(1),
        clients,
        lamport: 0x0102_0304_0506_0708,
        vni: 9,
        bind_lifetime: Duration::from_secs(30),
        steady_lifetime: Duration::from_secs(300),
        addresses: vec![
            "192.0.2.1:7".parse().unwrap(),
            "[2001:db8::1]:8".parse().unwrap(),
        ],
    };
    let via = RelayMessage::CallMeMaybeVia(endpoint.clone());
    assert_eq!(hex(&via), format!("0700{ENDPOINT}"));
    let response = RelayMessage::AllocateResponse {
        generation,
        endpoint,
    };
    assert_eq!(hex(&response), format!("090000000005{ENDPOINT}"));
}

#[test]
fn messages_about_relays_have_the_lengths_of_the_protocol() {
    let lengths = |kind: u8, wanted: usize| {
        for len in [wanted - 1, wanted] {
            let inner = [vec![kind, 0], vec![7; len]].concat();
            let parsed = Message::parse(&inner);
            match len == wanted {
                true => assert!(
                    matches!(parsed, Ok(Message::Relay(_))),
                    "{kind}: {parsed:?}"
                ),
                false => assert_eq!(parsed, Err(DiscoError::Truncated), "{kind}"),
            }
        }
    };
    for handshake in [0x04, 0x05, 0x06] {
        lengths(handshake, 72);
    }
    // An endpoint has at least one address, and nothing behind the last.
    lengths(0x07, 142);
    lengths(0x07, 160);
    lengths(0x08, 68);
    lengths(0x09, 146);
    let inner = [vec![0x07, 0], vec![7; 143]].concat();
    assert_eq!(Message::parse(&inner), Err(DiscoError::Truncated));
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
