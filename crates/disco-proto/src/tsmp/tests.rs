//! TSMP as it stands in disco.md section 14, byte for byte.

use proptest::prelude::*;

use super::*;

fn reject() -> Reject {
    Reject {
        protocol: 6,
        reason: Reason::Filter,
        source_port: 40_000,
        destination_port: 22,
        maybe_broken: false,
    }
}

#[test]
fn messages_look_as_the_official_client_has_them() {
    let data = *b"12345678";
    let key = DiscoPublic::from_bytes([7; 32]);
    let pong = Message::Pong {
        data,
        peer_api_port: 0x1234,
    };
    let broken = Reject {
        maybe_broken: true,
        ..reject()
    };
    let cases = [
        (
            Message::Reject(reject()),
            b"!\x06A\x9c\x40\x00\x16".to_vec(),
        ),
        (
            Message::Reject(broken),
            b"!\x06A\x9c\x40\x00\x16\x01".to_vec(),
        ),
        (Message::Ping(data), b"p12345678".to_vec()),
        (pong, b"o12345678\x12\x34".to_vec()),
        (Message::DiscoKey(key), [&b"a"[..], &[7; 32]].concat()),
    ];
    for (message, bytes) in cases {
        assert_eq!(message.encode(), bytes, "{message:?}");
        assert_eq!(Message::parse(&bytes), Ok(message));
        let longer = [&bytes[..], b"\0more"].concat();
        if bytes.len() != 7 {
            assert_eq!(
                Message::parse(&longer),
                Ok(message),
                "what follows is ignored"
            );
        }
        // What may be absent: the reject's flags, the pong's port.
        let least = match message {
            Message::Reject(_) => 7,
            Message::Pong { .. } => 9,
            _ => bytes.len(),
        };
        for length in 0..least {
            let cut = Message::parse(&bytes[..length]);
            assert_eq!(cut, Err(TsmpError::Truncated), "{message:?} to {length}");
        }
    }
}

#[test]
fn a_pong_without_a_port_comes_from_a_peer_that_serves_nothing() {
    let pong = Message::Pong {
        data: *b"12345678",
        peer_api_port: 0,
    };
    assert_eq!(Message::parse(b"o12345678"), Ok(pong));
}

#[test]
fn every_reason_keeps_its_letter() {
    for byte in 0..=u8::MAX {
        assert_eq!(Reason::from_byte(byte).to_byte(), byte);
    }
    assert_eq!(Reason::from_byte(b'S'), Reason::ShieldsUp);
    assert_eq!(Reason::from_byte(b'?'), Reason::Other(b'?'));
}

#[test]
fn an_unknown_type_is_named() {
    assert_eq!(Message::parse(b"z"), Err(TsmpError::Unknown(b'z')));
}

proptest! {
    #[test]
    fn what_is_read_is_written_alike(bytes in proptest::collection::vec(any::<u8>(), 0..48)) {
        if let Ok(message) = Message::parse(&bytes) {
            prop_assert_eq!(Message::parse(&message.encode()), Ok(message));
        }
    }
}
