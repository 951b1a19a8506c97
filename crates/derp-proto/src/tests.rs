//! Codecs round trip, bounds hold, and the two handshakes meet.

use std::net::SocketAddr;

use keys::{NodePrivate, NodePublic};
use proptest::prelude::*;

use crate::*;

fn frames() -> impl Strategy<Value = (u8, NodePublic, NodePublic, Vec<u8>, u8, u32, u32, [u8; 18])>
{
    (
        0..17u8,
        any::<[u8; 32]>().prop_map(NodePublic::from_bytes),
        any::<[u8; 32]>().prop_map(NodePublic::from_bytes),
        prop::collection::vec(any::<u8>(), 0..2048),
        any::<u8>(),
        any::<u32>(),
        any::<u32>(),
        any::<[u8; 18]>(),
    )
}

fn build<'a>(
    which: u8,
    (a, b): (NodePublic, NodePublic),
    data: &'a [u8],
    text: &'a str,
    byte: u8,
    (x, y): (u32, u32),
    remote: SocketAddr,
) -> Frame<'a> {
    let mut eight = [byte; 8];
    eight[..4].copy_from_slice(&x.to_be_bytes());
    match which {
        0 => Frame::ServerKey(a),
        1 => Frame::ClientInfo {
            key: a,
            sealed: data,
        },
        2 => Frame::ServerInfo(data),
        3 => Frame::SendPacket {
            destination: a,
            packet: data,
        },
        4 => Frame::RecvPacket {
            source: a,
            packet: data,
        },
        5 => Frame::KeepAlive,
        6 => Frame::NotePreferred(byte & 1 == 1),
        7 => Frame::PeerGone {
            key: a,
            reason: PeerGoneReason::from_wire(byte),
        },
        8 => Frame::PeerPresent {
            key: a,
            remote: Some(remote),
            flags: byte,
        },
        9 => Frame::PeerPresent {
            key: a,
            remote: None,
            flags: 0,
        },
        10 => Frame::ForwardPacket {
            source: a,
            destination: b,
            packet: data,
        },
        11 => Frame::WatchConns,
        12 => Frame::ClosePeer(a),
        13 => Frame::Ping(eight),
        14 => Frame::Pong(eight),
        15 => Frame::Health(text),
        _ => Frame::Restarting {
            reconnect_in_ms: x,
            try_for_ms: y,
        },
    }
}

proptest! {
    #[test]
    fn every_frame_comes_back_as_it_was_encoded(
        (which, a, b, data, byte, x, y, addr) in frames(),
        text in ".{0,64}",
    ) {
        let remote = SocketAddr::new(
            std::net::IpAddr::from(<[u8; 16]>::try_from(&addr[..16]).unwrap()).to_canonical(),
            u16::from_be_bytes([addr[16], addr[17]]),
        );
        let frame = build(which, (a, b), &data, &text, byte, (x, y), remote);
        let mut wire = Vec::new();
        frame.encode(&mut wire);

        for cut in [0, 1, 4, 5, wire.len() - 1] {
            if cut < wire.len() {
                prop_assert_eq!(split_frame(&wire[..cut]), Ok(None));
            }
        }
        let raw = split_frame(&wire).unwrap().unwrap();
        prop_assert_eq!(raw.wire_len(), wire.len());
        prop_assert_eq!(Frame::parse(raw), Ok(frame));
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        if let Ok(Some(raw)) = split_frame(&bytes) {
            let _ = Frame::parse(raw);
        }
    }

    #[test]
    fn bytes_after_the_known_fields_are_ignored(extra in prop::collection::vec(any::<u8>(), 1..40)) {
        let key = NodePublic::from_bytes([7; 32]);
        for frame in [
            Frame::ServerKey(key),
            Frame::PeerGone { key, reason: PeerGoneReason::NotHere },
            Frame::ClosePeer(key),
            Frame::Ping([1; 8]),
            Frame::Restarting { reconnect_in_ms: 1, try_for_ms: 2 },
        ] {
            let mut wire = Vec::new();
            frame.encode(&mut wire);
            let body = [&wire[HEADER_LEN..], &extra].concat();
            prop_assert_eq!(Frame::parse(RawFrame { kind: wire[0], body: &body }), Ok(frame));
        }
    }

    #[test]
    fn a_meta_name_gives_its_key_back(bytes in any::<[u8; 32]>()) {
        let key = NodePublic::from_bytes(bytes);
        prop_assert_eq!(meta::key_from_common_name(&meta::common_name(&key)), Some(key));
    }
}

#[test]
fn a_sent_frame_becomes_the_received_one_in_place() {
    let (source, destination) = (
        NodePublic::from_bytes([1; 32]),
        NodePublic::from_bytes([2; 32]),
    );
    let packet = [9; 100];
    let mut sent = Vec::new();
    Frame::SendPacket {
        destination,
        packet: &packet,
    }
    .encode(&mut sent);

    rewrite_send_to_recv(&mut sent, &source);

    let received = Frame::parse(split_frame(&sent).unwrap().unwrap()).unwrap();
    let expected = Frame::RecvPacket {
        source,
        packet: &packet,
    };
    assert_eq!(received, expected);
}

#[test]
fn lengths_are_bounded() {
    let header = |kind: u8, len: u32| [&[kind][..], &len.to_be_bytes()].concat();
    assert_eq!(split_frame(&header(kind::HEALTH, 1 << 20)), Ok(None));
    assert!(split_frame(&header(kind::HEALTH, (1 << 20) + 1)).is_err());

    let body = vec![0; KEY_LEN + MAX_PACKET_LEN + 1];
    for kind in [kind::SEND_PACKET, kind::RECV_PACKET] {
        let fits = RawFrame {
            kind,
            body: &body[1..],
        };
        assert!(Frame::parse(fits).is_ok());
        assert!(Frame::parse(RawFrame { kind, body: &body }).is_err());
    }
    for (kind, body) in [
        (kind::NOTE_PREFERRED, &[][..]),
        (kind::NOTE_PREFERRED, &[1, 1]),
        (kind::WATCH_CONNS, &[0]),
        (kind::PING, &[0; 7]),
        (kind::PEER_GONE, &[0; 31]),
    ] {
        let len = body.len();
        assert_eq!(
            Frame::parse(RawFrame { kind, body }),
            Err(BadFrame::Length { kind, len })
        );
    }
}

#[test]
fn disco_is_told_by_its_magic() {
    let mut packet = [0; 38];
    packet[..6].copy_from_slice("TS💬".as_bytes());
    assert!(is_disco(&packet));
    assert!(!is_disco(&packet[..37]));
    assert!(!is_disco(&[0; 38]));
}

#[test]
fn the_handshakes_meet() {
    let server_key = NodePrivate::generate();
    let client_key = NodePrivate::generate();
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    let mut server = ServerHandshake::new(&server_key, &mut to_client);
    let mut client = ClientHandshake::new(client_key.clone(), ClientInfo::node());

    let greeted = client.handle_input(&to_client, &mut to_server).unwrap();
    let Progress::NeedMore { consumed } = greeted else {
        panic!("done without ServerInfo")
    };
    assert_eq!(consumed, to_client.len());
    to_client.clear();

    for cut in 0..to_server.len() {
        let progress = server.handle_input(&to_server[..cut]).unwrap();
        assert!(matches!(progress, Progress::NeedMore { consumed: 0 }));
    }
    to_server.push(0xEE);
    let progress = server.handle_input(&to_server).unwrap();
    let Progress::Done { consumed, result } = progress else {
        panic!("not done with ClientInfo")
    };
    assert_eq!(consumed, to_server.len() - 1);
    assert_eq!(result, (client_key.public(), ClientInfo::node()));

    server
        .accept(
            &client_key.public(),
            &ServerInfo::unlimited(),
            &mut to_client,
        )
        .unwrap();
    let progress = client.handle_input(&to_client, &mut to_server).unwrap();
    let Progress::Done { result, .. } = progress else {
        panic!("not done with ServerInfo")
    };
    assert_eq!(result, ServerInfo::unlimited());
}

#[test]
fn a_fast_start_ignores_the_greeting() {
    let server_key = NodePrivate::generate();
    let client_key = NodePrivate::generate();
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    let mut client = ClientHandshake::fast_start(
        client_key.clone(),
        ClientInfo::node(),
        server_key.public(),
        &mut to_server,
    )
    .unwrap();
    let mut server = ServerHandshake::new(&server_key, &mut to_client);
    assert!(matches!(
        server.handle_input(&to_server).unwrap(),
        Progress::Done { .. }
    ));
    server
        .accept(
            &client_key.public(),
            &ServerInfo::unlimited(),
            &mut to_client,
        )
        .unwrap();

    let sent = to_server.len();
    let progress = client.handle_input(&to_client, &mut to_server).unwrap();

    assert!(matches!(progress, Progress::Done { .. }));
    assert_eq!(to_server.len(), sent);
}

#[test]
fn a_client_without_the_private_key_is_refused() {
    let server_key = NodePrivate::generate();
    let claimed = NodePrivate::generate().public();
    let sealed = NodePrivate::generate().seal_to(&server_key.public(), b"{\"version\":2}");
    let mut input = Vec::new();
    Frame::ClientInfo {
        key: claimed,
        sealed: &sealed,
    }
    .encode(&mut input);

    let mut server = ServerHandshake::new(&server_key, &mut Vec::new());
    let error = server.handle_input(&input).unwrap_err();
    assert!(matches!(error, HandshakeError::Box(key) if key == claimed));
}

#[test]
fn a_huge_client_info_is_refused_by_its_header() {
    let server_key = NodePrivate::generate();
    let mut server = ServerHandshake::new(&server_key, &mut Vec::new());
    let mut header = vec![kind::CLIENT_INFO];
    header.extend_from_slice(&(256 * 1024 + 1_u32).to_be_bytes());
    assert!(matches!(
        server.handle_input(&header),
        Err(HandshakeError::InfoTooLong(_))
    ));
}

#[test]
fn infos_use_the_field_names_of_the_protocol() {
    let info = ClientInfo {
        mesh_key: "ab".into(),
        is_prober: true,
        ..ClientInfo::node()
    };
    assert_eq!(
        serde_json::to_string(&info).unwrap(),
        r#"{"meshKey":"ab","version":2,"CanAckPings":true,"IsProber":true}"#
    );
    assert_eq!(
        serde_json::to_string(&ClientInfo::node()).unwrap(),
        r#"{"version":2,"CanAckPings":true}"#
    );
    assert_eq!(
        serde_json::to_string(&ServerInfo::unlimited()).unwrap(),
        r#"{"version":2}"#
    );
    let other: ClientInfo =
        serde_json::from_str(r#"{"meshKey":null,"version":2,"CanAckPings":false,"AppName":"x"}"#)
            .unwrap();
    assert_eq!(other.mesh_key, "");
}

#[test]
fn a_mesh_key_is_not_printed() {
    let info = ClientInfo {
        mesh_key: "5ec4e7".into(),
        ..ClientInfo::node()
    };
    assert!(!format!("{info:?}").contains("5ec4e7"));
}

#[test]
fn a_low_order_key_proves_nothing() {
    let server_key = NodePrivate::generate();
    for key in [
        NodePublic::default(),
        NodePublic::from_bytes({
            let mut one = [0; 32];
            one[0] = 1;
            one
        }),
    ] {
        let mut input = Vec::new();
        Frame::ClientInfo {
            key,
            sealed: &[0; 64],
        }
        .encode(&mut input);
        let mut server = ServerHandshake::new(&server_key, &mut Vec::new());
        let error = server.handle_input(&input).unwrap_err();
        assert!(matches!(error, HandshakeError::LowOrderKey));
    }
}
