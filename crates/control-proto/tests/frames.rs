//! Frames of the map stream and the early payload: both ends, and bounds.

use bytes::BytesMut;
use control_proto::{
    early::{self, Early, EarlyError, EarlyPayload},
    frame::{self, Decoder, Encoder, FrameError, keep_alive},
    tailcfg::{Compress, MapResponse},
};
use keys::ChallengePublic;
use proptest::prelude::*;

const BOTH: [Compress; 2] = [Compress::None, Compress::Zstd];

#[test]
fn frames_are_length_little_endian_and_payload() {
    let frame = Encoder::new()
        .unwrap()
        .encode(&MapResponse::default(), Compress::None)
        .unwrap();

    assert_eq!(frame, b"\x02\0\0\0{}");
}

#[test]
fn zstd_payloads_carry_their_content_size_and_no_dictionary() {
    let json = vec![b' '; 3000];
    let frame = Encoder::new()
        .unwrap()
        .encode_json(&json, Compress::Zstd)
        .unwrap();

    let size = zstd::zstd_safe::get_frame_content_size(&frame[4..]).unwrap();

    assert_eq!(size, Some(3000));
    assert_eq!(zstd::decode_all(&frame[4..]).unwrap(), json);
    // RFC 8878 3.1.1.1.1: single segment, no dictionary id.
    assert_eq!(frame[8] & 0b0010_0011, 0b0010_0000);
}

#[test]
fn keepalives_are_the_very_bytes_go_knows() {
    assert_eq!(keep_alive(Compress::None)[4..], *br#"{"KeepAlive":true}"#);
    let zstd = keep_alive(Compress::Zstd);

    assert_eq!(
        zstd::decode_all(&zstd[4..]).unwrap(),
        br#"{"KeepAlive":true}"#
    );
    assert_eq!(zstd.as_ptr(), keep_alive(Compress::Zstd).as_ptr());
    for compress in BOTH {
        let mut decoder = Decoder::new(compress);
        decoder.push(keep_alive(compress));
        assert_eq!(decoder.next().unwrap(), Some(MapResponse::keep_alive()));
    }
}

#[test]
fn impossible_lengths_are_refused_before_anything_is_kept() {
    for (len, refused) in [
        (0, true),
        (1, false),
        (frame::MAX_PAYLOAD_LEN, false),
        (frame::MAX_PAYLOAD_LEN + 1, true),
    ] {
        let mut decoder = Decoder::new(Compress::None);
        decoder.push(&u32::try_from(len).unwrap().to_le_bytes());
        assert_eq!(decoder.next().is_err(), refused, "{len}");
    }
}

#[test]
fn a_bomb_is_refused() {
    // 256 MiB of spaces in a few kilobytes, without a content size.
    let mut bomb = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    let spaces = vec![b' '; 1 << 20];
    for _ in 0..256 {
        std::io::Write::write_all(&mut bomb, &spaces).unwrap();
    }
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 64 << 10);

    assert!(matches!(
        frame::decode(&bomb, Compress::Zstd),
        Err(FrameError::Bomb)
    ));
}

#[test]
fn frames_without_content_size_are_understood() {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_contentsize(false).unwrap();
    std::io::Write::write_all(&mut encoder, br#"{"Domain":"x"}"#).unwrap();
    let payload = encoder.finish().unwrap();

    assert_eq!(frame::decode(&payload, Compress::Zstd).unwrap().domain, "x");
}

#[test]
fn cut_and_foreign_payloads_are_errors() {
    let frame = Encoder::new()
        .unwrap()
        .encode(&MapResponse::keep_alive(), Compress::Zstd)
        .unwrap();
    for len in 0..frame.len() - 4 {
        assert!(
            frame::decode(&frame[4..4 + len], Compress::Zstd).is_err(),
            "{len}"
        );
    }
    assert!(frame::decode(b"{}", Compress::Zstd).is_err());
    assert!(frame::decode(&frame[4..], Compress::None).is_err());
}

#[test]
fn an_early_payload_is_taken_off_the_front() {
    let payload = EarlyPayload {
        node_key_challenge: ChallengePublic::from_bytes([1; 32]),
    };
    let encoded = payload.encode().unwrap();
    assert_eq!(encoded[..9], *b"\xff\xff\xffTS\0\0\0\x5f");
    let whole = [&encoded[..], b"PRI"].concat();

    for len in 0..encoded.len() {
        let mut input = BytesMut::from(&whole[..len]);
        assert!(
            matches!(early::split(&mut input), Ok(Early::NeedMore)),
            "{len}"
        );
        assert_eq!(input.len(), len);
    }
    let mut input = BytesMut::from(&whole[..]);
    let Ok(Early::Payload(found)) = early::split(&mut input) else {
        panic!("there is one")
    };
    assert_eq!(found, payload);
    assert_eq!(input[..], *b"PRI");
}

#[test]
fn http2_in_front_is_no_early_payload() {
    let settings = b"\0\0\x06\x04\0\0\0\0\0";

    let mut input = BytesMut::from(&settings[..]);

    assert!(matches!(early::split(&mut input), Ok(Early::None)));
    assert_eq!(input[..], *settings);
}

#[test]
fn early_payloads_are_bounded() {
    let mut input = BytesMut::from(&b"\xff\xff\xffTS\0\x01\0\x01"[..]);

    assert!(matches!(
        early::split(&mut input),
        Err(EarlyError::TooLong(65537))
    ));
}

proptest! {
    #[test]
    fn frames_arrive_in_any_pieces(domains: Vec<String>, piece in 1..100_usize, zstd: bool) {
        let compress = BOTH[usize::from(zstd)];
        let mut encoder = Encoder::new().unwrap();
        let responses: Vec<_> = domains
            .into_iter()
            .map(|domain| MapResponse { domain, ..MapResponse::default() })
            .collect();
        let wire: Vec<u8> =
            responses.iter().flat_map(|r| encoder.encode(r, compress).unwrap()).collect();

        let mut decoder = Decoder::new(compress);
        let mut found = Vec::new();
        for bytes in wire.chunks(piece) {
            decoder.push(bytes);
            while let Some(response) = decoder.next().unwrap() {
                found.push(response);
            }
        }

        prop_assert_eq!(found, responses);
        prop_assert!(decoder.is_at_boundary());
    }
}
