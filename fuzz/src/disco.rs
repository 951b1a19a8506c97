//! Targets of `disco-proto`.

use disco_proto::disco::{self, Message};
use disco_proto::stun;
use keys::DiscoPrivate;

/// The receiver's key in the corpora; a secret of nobody.
#[must_use]
pub fn receiver_key() -> DiscoPrivate {
    DiscoPrivate::from_bytes([17; 32])
}

/// A datagram that may be a STUN message of either kind.
pub fn stun_message(data: &[u8]) {
    if let Ok(id) = stun::parse_request(data) {
        assert!(stun::is_stun(data));
        let source = std::net::SocketAddr::from(([192, 0, 2, 1], 7));
        let told = stun::parse_response(&stun::response(id, source));
        assert_eq!(told, Ok((id, source)));
    }
    let _ = stun::parse_response(data);
}

/// A disco datagram, sealed; and the same bytes as if they had been inside the box.
pub fn disco_open(data: &[u8]) {
    if let Some(envelope) = disco::parse_envelope(data)
        && !envelope.sender.is_low_order()
    {
        let _ = disco::open(envelope, &receiver_key().shared(&envelope.sender));
    }
    if let Ok(message) = Message::parse(data) {
        assert_eq!(Message::parse(&message.encode()), Ok(message));
    }
}
