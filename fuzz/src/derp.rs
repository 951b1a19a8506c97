//! Targets of `derp-proto`.

use derp_proto::{
    ClientHandshake, ClientInfo, Frame, MAX_BODY_LEN, Progress, ServerHandshake, split_frame,
};
use keys::NodePrivate;

/// The relay's key in the corpora; a secret of nobody.
#[must_use]
pub fn relay_key() -> NodePrivate {
    NodePrivate::from_bytes([11; 32])
}

/// The client's key in the corpora; a secret of nobody.
#[must_use]
pub fn client_key() -> NodePrivate {
    NodePrivate::from_bytes([13; 32])
}

/// A stream of frames, either way: what parses encodes to something that parses alike.
pub fn derp_frames(data: &[u8]) {
    let mut rest = data;
    while let Ok(Some(raw)) = split_frame(rest) {
        assert!(raw.body.len() <= MAX_BODY_LEN);
        if let Ok(frame) = Frame::parse(raw) {
            let mut wire = Vec::new();
            frame.encode(&mut wire);
            let again = split_frame(&wire).ok().flatten().map(Frame::parse);
            assert_eq!(again, Some(Ok(frame)));
        }
        rest = &rest[raw.wire_len()..];
    }
}

/// What a client reads from a server before the first packet.
pub fn derp_client_handshake(data: &[u8]) {
    let mut out = Vec::new();
    let mut handshake = ClientHandshake::new(client_key(), ClientInfo::node());
    let mut rest = data;
    // A handshake that took nothing waits for more.
    while let Ok(Progress::NeedMore {
        consumed: taken @ 1..,
    }) = handshake.handle_input(rest, &mut out)
    {
        rest = &rest[taken..];
    }
    assert!(
        out.len() < 4096,
        "a server makes us send {} bytes",
        out.len()
    );
}

/// What a server reads from a client before it admits it.
pub fn derp_server_handshake(data: &[u8]) {
    let key = relay_key();
    let mut out = Vec::new();
    let mut handshake = ServerHandshake::new(&key, &mut out);
    if let Ok(Progress::Done { consumed, result }) = handshake.handle_input(data) {
        assert!(consumed <= data.len());
        assert!(!result.0.is_low_order());
    }
}
