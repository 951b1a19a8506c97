//! Targets of `control-proto`.

use bytes::BytesMut;
use control_proto::{
    Timestamp, early, frame, json,
    netmap::{MapSession, NetMap},
    noise::{self, INITIATION_LEN, Initiator, Responder},
    record::{MAX_PLAIN_LEN, Opener},
    tailcfg::{Compress, MapRequest, MapResponse, RegisterRequest},
};
use keys::{MachinePrivate, NodePrivate, NodePublic};

/// The server's key in the corpora; a secret of nobody.
#[must_use]
pub fn server_key() -> MachinePrivate {
    MachinePrivate::from_bytes([7; 32])
}

/// The node's key in the corpora; a secret of nobody.
#[must_use]
pub fn node_key() -> NodePublic {
    NodePrivate::from_bytes([9; 32]).public()
}

/// Key of the sealed records in the corpus.
pub const RECORD_KEY: [u8; 32] = [3; 32];

/// What a server reads first.
pub fn noise_initiation(data: &[u8]) {
    let mut initiation = [0; INITIATION_LEN];
    let len = data.len().min(INITIATION_LEN);
    initiation[..len].copy_from_slice(&data[..len]);
    if let Ok(responder) = Responder::new(&server_key(), &initiation) {
        assert!(!responder.machine().is_low_order());
        assert!(responder.respond().is_ok());
    }
}

/// What a client reads first.
pub fn noise_response(data: &[u8]) {
    if let Some(header) = data.first_chunk()
        && let Ok(len) = noise::server_message_len(*header)
    {
        assert!(len <= noise::HEADER_LEN + noise::MAX_ERROR_LEN);
    }
    let server = server_key().public();
    let Ok((initiator, _)) = Initiator::new(&server_key(), &server, 117) else {
        return;
    };
    assert!(
        initiator.finish(data).is_err(),
        "the ephemeral key is fresh: nothing can match"
    );
}

/// A stream of records.
pub fn noise_record(data: &[u8]) {
    let mut opener = Opener::new(&RECORD_KEY);
    let mut input = BytesMut::from(data);
    while let Ok(Some(plain)) = opener.open(&mut input) {
        assert!(plain.len() <= MAX_PLAIN_LEN);
    }
}

/// The start of a client's plaintext.
pub fn early_payload(data: &[u8]) {
    let mut input = BytesMut::from(data);
    if let Ok(early::Early::Payload(payload)) = early::split(&mut input) {
        assert!(payload.encode().is_ok());
    }
}

/// A stream of map frames; the first byte says how they are compressed and how they arrive.
pub fn map_frame(data: &[u8]) {
    let Some((first, data)) = data.split_first() else {
        return;
    };
    let compress = if first & 1 == 0 {
        Compress::None
    } else {
        Compress::Zstd
    };
    let mut decoder = frame::Decoder::new(compress);
    for chunk in data.chunks(1 + usize::from(first >> 1)) {
        decoder.push(chunk);
        while let Some(response) = match decoder.next() {
            Ok(response) => response,
            Err(_) => return,
        } {
            drop(response);
        }
    }
}

/// Lines of JSON, each a frame of one map session.
pub fn map_response(data: &[u8]) {
    let mut session = MapSession::new(node_key());
    for line in data.split(|byte| *byte == b'\n') {
        let Ok(response) = json::from_slice::<MapResponse>(line) else {
            continue;
        };
        let before = session.map().cloned();
        let now = Timestamp::from_unix_seconds(1_800_000_000);
        if session.apply(response, now).is_err() {
            assert_eq!(
                session.map(),
                before.as_ref(),
                "a refused frame changes nothing"
            );
        }
    }
    if let Some(map) = session.map() {
        assert_eq!(map.node.key, node_key());
        let _ = (
            map.needs_filter(),
            map.magic_dns_suffix(),
            map.node.home_derp(),
        );
        let cached = json::to_vec(map).and_then(|text| json::from_slice::<NetMap>(&text));
        assert!(
            cached.is_ok(),
            "what was applied can be cached and read back"
        );
    }
}

/// A node's request for its map.
pub fn map_request(data: &[u8]) {
    if let Ok(request) = json::from_slice::<MapRequest>(data) {
        let text = json::to_vec(&request);
        assert!(
            text.and_then(|text| json::from_slice::<MapRequest>(&text))
                .is_ok()
        );
    }
}

/// A node's request to join.
pub fn register_request(data: &[u8]) {
    if let Ok(request) = json::from_slice::<RegisterRequest>(data) {
        let text = json::to_vec(&request);
        assert!(
            text.and_then(|text| json::from_slice::<RegisterRequest>(&text))
                .is_ok()
        );
    }
}
