//! Frames onto the wire: headers into buffers, payloads left where they are where possible.

use std::net::{IpAddr, SocketAddr};

use bytes::BufMut;
use keys::NodePublic;

use crate::frame::{Frame, kind};
use crate::{HEADER_LEN, MAGIC, MAX_BODY_LEN, PACKET_HEADER_LEN};

/// Appends one frame of `kind` whose body is the concatenation of `parts`.
///
/// # Panics
///
/// If the body is longer than [`MAX_BODY_LEN`]: the other end would close the connection.
pub fn put_frame(out: &mut impl BufMut, kind: u8, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    assert!(len <= MAX_BODY_LEN, "DERP frame body of {len} bytes");
    out.put_u8(kind);
    #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
    out.put_u32(len as u32);
    for part in parts {
        out.put_slice(part);
    }
}

/// Turns the SendPacket frame at the front of `frame` into the RecvPacket frame that its
/// destination gets, in place: both have the same length and layout.
///
/// # Panics
///
/// If `frame` is shorter than [`PACKET_HEADER_LEN`].
pub fn rewrite_send_to_recv(frame: &mut [u8], source: &NodePublic) {
    frame[0] = kind::RECV_PACKET;
    frame[HEADER_LEN..PACKET_HEADER_LEN].copy_from_slice(source.as_bytes());
}

impl Frame<'_> {
    /// Appends the frame to `out`; payloads are copied.
    ///
    /// # Panics
    ///
    /// If a payload exceeds [`MAX_BODY_LEN`].
    pub fn encode(&self, out: &mut impl BufMut) {
        match *self {
            Self::ServerKey(key) => put_frame(out, kind::SERVER_KEY, &[&MAGIC, key.as_bytes()]),
            Self::ClientInfo { key, sealed } => {
                put_frame(out, kind::CLIENT_INFO, &[key.as_bytes(), sealed]);
            }
            Self::ServerInfo(sealed) => put_frame(out, kind::SERVER_INFO, &[sealed]),
            Self::SendPacket {
                destination,
                packet,
            } => put_frame(out, kind::SEND_PACKET, &[destination.as_bytes(), packet]),
            Self::RecvPacket { source, packet } => {
                put_frame(out, kind::RECV_PACKET, &[source.as_bytes(), packet]);
            }
            Self::KeepAlive => put_frame(out, kind::KEEP_ALIVE, &[]),
            Self::NotePreferred(home) => put_frame(out, kind::NOTE_PREFERRED, &[&[home.into()]]),
            Self::PeerGone { key, reason } => {
                put_frame(out, kind::PEER_GONE, &[key.as_bytes(), &[reason.to_wire()]]);
            }
            Self::PeerPresent { key, remote, flags } => match remote {
                Some(remote) => {
                    let address = encode_address(remote);
                    put_frame(
                        out,
                        kind::PEER_PRESENT,
                        &[key.as_bytes(), &address, &[flags]],
                    );
                }
                None => put_frame(out, kind::PEER_PRESENT, &[key.as_bytes()]),
            },
            Self::ForwardPacket {
                source,
                destination,
                packet,
            } => put_frame(
                out,
                kind::FORWARD_PACKET,
                &[source.as_bytes(), destination.as_bytes(), packet],
            ),
            Self::WatchConns => put_frame(out, kind::WATCH_CONNS, &[]),
            Self::ClosePeer(key) => put_frame(out, kind::CLOSE_PEER, &[key.as_bytes()]),
            Self::Ping(data) => put_frame(out, kind::PING, &[&data]),
            Self::Pong(data) => put_frame(out, kind::PONG, &[&data]),
            Self::Health(text) => put_frame(out, kind::HEALTH, &[text.as_bytes()]),
            Self::Restarting {
                reconnect_in_ms,
                try_for_ms,
            } => put_frame(
                out,
                kind::RESTARTING,
                &[&reconnect_in_ms.to_be_bytes(), &try_for_ms.to_be_bytes()],
            ),
            Self::Unknown(kind) => put_frame(out, kind, &[]),
        }
    }
}

fn encode_address(address: SocketAddr) -> [u8; 18] {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut bytes = [0; 18];
    bytes[..16].copy_from_slice(&ip.octets());
    bytes[16..].copy_from_slice(&address.port().to_be_bytes());
    bytes
}
