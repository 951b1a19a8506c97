//! Frames: splitting them off a byte stream, and what their bodies mean.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use keys::NodePublic;

use crate::{HEADER_LEN, KEY_LEN, MAGIC, MAX_BODY_LEN, MAX_PACKET_LEN};

/// Frame types as they stand on the wire.
pub mod kind {
    #![expect(missing_docs, reason = "each is described at its variant of `Frame`")]
    pub const SERVER_KEY: u8 = 0x01;
    pub const CLIENT_INFO: u8 = 0x02;
    pub const SERVER_INFO: u8 = 0x03;
    pub const SEND_PACKET: u8 = 0x04;
    pub const RECV_PACKET: u8 = 0x05;
    pub const KEEP_ALIVE: u8 = 0x06;
    pub const NOTE_PREFERRED: u8 = 0x07;
    pub const PEER_GONE: u8 = 0x08;
    pub const PEER_PRESENT: u8 = 0x09;
    pub const FORWARD_PACKET: u8 = 0x0A;
    pub const WATCH_CONNS: u8 = 0x10;
    pub const CLOSE_PEER: u8 = 0x11;
    pub const PING: u8 = 0x12;
    pub const PONG: u8 = 0x13;
    pub const HEALTH: u8 = 0x14;
    pub const RESTARTING: u8 = 0x15;
}

/// A header announced a body longer than [`MAX_BODY_LEN`]: close the connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("DERP frame of type 0x{kind:02x} announces {len} bytes, more than {MAX_BODY_LEN}")]
pub struct FrameTooLong {
    /// Frame type.
    pub kind: u8,
    /// Announced body length in bytes.
    pub len: u32,
}

/// One frame off the stream, its body not yet looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RawFrame<'a> {
    /// Frame type, see [`kind`]; any value.
    pub kind: u8,
    /// Body, borrowed from the input.
    pub body: &'a [u8],
}

impl RawFrame<'_> {
    /// Bytes that the frame takes on the stream, header included.
    #[must_use]
    pub fn wire_len(&self) -> usize {
        HEADER_LEN + self.body.len()
    }
}

/// Splits one DERP frame off the front of `input`.
///
/// ```text
/// byte   0      1               5              5 + len
///        | type | len: u32, BE  | body ...     |
/// ```
///
/// Returns `None` until `input` holds a whole frame; skip [`RawFrame::wire_len`] bytes to get at
/// the next one. Nothing is allocated.
///
/// # Errors
///
/// [`FrameTooLong`] as soon as the header is there: the stream is out of step, so close it.
///
/// # Source
///
/// derp.md section 3; `FrameHeaderLen` in tailscale/tailscale `derp/derp.go`.
pub fn split_frame(input: &[u8]) -> Result<Option<RawFrame<'_>>, FrameTooLong> {
    let Some((header, rest)) = input.split_first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let [kind, length @ ..] = *header;
    let len = u32::from_be_bytes(length);
    if len as usize > MAX_BODY_LEN {
        return Err(FrameTooLong { kind, len });
    }
    Ok(rest.get(..len as usize).map(|body| RawFrame { kind, body }))
}

/// Why a peer is gone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PeerGoneReason {
    /// It was connected here and left.
    Disconnected,
    /// It is not connected here.
    NotHere,
    /// A reason that this version does not know.
    Other(u8),
}

impl PeerGoneReason {
    /// The reason of a wire value.
    #[must_use]
    pub fn from_wire(value: u8) -> Self {
        match value {
            0x00 => Self::Disconnected,
            0x01 => Self::NotHere,
            other => Self::Other(other),
        }
    }

    /// The wire value.
    #[must_use]
    pub fn to_wire(self) -> u8 {
        match self {
            Self::Disconnected => 0x00,
            Self::NotHere => 0x01,
            Self::Other(value) => value,
        }
    }
}

/// A frame with its body understood; payloads borrow from the input.
///
/// Bytes after the fields named here are ignored on the way in, as later versions may add some.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Frame<'a> {
    /// Server → client, first frame: the server's public key.
    ServerKey(NodePublic),
    /// Client → server: the client's key and its boxed [`crate::ClientInfo`].
    ClientInfo {
        /// The client's node key.
        key: NodePublic,
        /// Nonce (24 bytes) and NaCl box of the JSON.
        sealed: &'a [u8],
    },
    /// Server → client: nonce (24 bytes) and NaCl box of the [`crate::ServerInfo`] JSON.
    ServerInfo(&'a [u8]),
    /// Client → server: a packet for `destination`.
    SendPacket {
        /// Whom it is for.
        destination: NodePublic,
        /// At most [`MAX_PACKET_LEN`] bytes.
        packet: &'a [u8],
    },
    /// Server → client: a packet from `source`.
    RecvPacket {
        /// Who sent it.
        source: NodePublic,
        /// At most [`MAX_PACKET_LEN`] bytes.
        packet: &'a [u8],
    },
    /// Server → client, every minute: the connection lives.
    KeepAlive,
    /// Client → server: whether this is the client's home region.
    NotePreferred(bool),
    /// Server → client: packets for this peer do not arrive.
    PeerGone {
        /// The peer.
        key: NodePublic,
        /// Why.
        reason: PeerGoneReason,
    },
    /// Server → mesh client: a peer is connected here.
    PeerPresent {
        /// The peer.
        key: NodePublic,
        /// Where it connects from, if the server says.
        remote: Option<SocketAddr>,
        /// 1 regular client, 2 mesh peer, 4 prober, 8 not its ideal node; 0 if the server is older.
        flags: u8,
    },
    /// Mesh client → server: a packet that another server of the region received.
    ForwardPacket {
        /// Who sent it.
        source: NodePublic,
        /// Whom it is for.
        destination: NodePublic,
        /// At most [`MAX_PACKET_LEN`] bytes.
        packet: &'a [u8],
    },
    /// Mesh client → server: announce all peers, now and from now on.
    WatchConns,
    /// Mesh client → server: close this peer's connections.
    ClosePeer(NodePublic),
    /// Either way: answer with a Pong of the same bytes.
    Ping([u8; 8]),
    /// Either way: the answer to a Ping.
    Pong([u8; 8]),
    /// Server → client: what is wrong with this region; empty when healthy again.
    Health(&'a str),
    /// Server → client: the server restarts.
    Restarting {
        /// Reconnect after this many milliseconds.
        reconnect_in_ms: u32,
        /// Keep trying for this many milliseconds.
        try_for_ms: u32,
    },
    /// A type that this version does not know: skip it.
    Unknown(u8),
}

/// A frame of a known type whose body cannot be right.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BadFrame {
    /// The body has a length that its type does not allow.
    #[error("DERP frame of type 0x{kind:02x} cannot have a body of {len} bytes")]
    Length {
        /// Frame type.
        kind: u8,
        /// Body length in bytes.
        len: usize,
    },
    /// ServerKey does not begin with [`MAGIC`]: the other end does not speak DERP.
    #[error("the first frame does not carry the DERP magic: the other end is not a DERP server")]
    Magic,
    /// Health text is not UTF-8.
    #[error("DERP health frame is not UTF-8")]
    HealthText,
}

impl<'a> Frame<'a> {
    /// Reads the body of `raw`.
    ///
    /// # Errors
    ///
    /// [`BadFrame`] if a known type has an impossible body; close the connection.
    ///
    /// # Source
    ///
    /// derp.md section 3.
    pub fn parse(raw: RawFrame<'a>) -> Result<Self, BadFrame> {
        let RawFrame { kind, body } = raw;
        let bad = BadFrame::Length {
            kind,
            len: body.len(),
        };
        match kind {
            kind::SERVER_KEY => {
                let (magic, rest) = body.split_first_chunk().ok_or(bad)?;
                if *magic != MAGIC {
                    return Err(BadFrame::Magic);
                }
                let (key, _) = take_key(rest).ok_or(bad)?;
                Ok(Self::ServerKey(key))
            }
            kind::CLIENT_INFO => {
                let (key, sealed) = take_key(body).ok_or(bad)?;
                Ok(Self::ClientInfo { key, sealed })
            }
            kind::SERVER_INFO => Ok(Self::ServerInfo(body)),
            kind::SEND_PACKET => {
                let (destination, packet) = take_packet(body).ok_or(bad)?;
                Ok(Self::SendPacket {
                    destination,
                    packet,
                })
            }
            kind::RECV_PACKET => {
                let (source, packet) = take_packet(body).ok_or(bad)?;
                Ok(Self::RecvPacket { source, packet })
            }
            kind::KEEP_ALIVE => Ok(Self::KeepAlive),
            kind::NOTE_PREFERRED => match body {
                [home] => Ok(Self::NotePreferred(*home != 0)),
                _ => Err(bad),
            },
            kind::PEER_GONE => {
                let (key, rest) = take_key(body).ok_or(bad)?;
                let reason = PeerGoneReason::from_wire(rest.first().copied().unwrap_or(0));
                Ok(Self::PeerGone { key, reason })
            }
            kind::PEER_PRESENT => {
                let (key, rest) = take_key(body).ok_or(bad)?;
                let (remote, flags) = match rest.split_first_chunk::<18>() {
                    Some((address, rest)) => (
                        Some(parse_address(address)),
                        rest.first().copied().unwrap_or(0),
                    ),
                    None => (None, 0),
                };
                Ok(Self::PeerPresent { key, remote, flags })
            }
            kind::FORWARD_PACKET => {
                let (source, rest) = take_key(body).ok_or(bad)?;
                let (destination, packet) = take_packet(rest).ok_or(bad)?;
                Ok(Self::ForwardPacket {
                    source,
                    destination,
                    packet,
                })
            }
            kind::WATCH_CONNS if body.is_empty() => Ok(Self::WatchConns),
            kind::WATCH_CONNS => Err(bad),
            kind::CLOSE_PEER => Ok(Self::ClosePeer(take_key(body).ok_or(bad)?.0)),
            kind::PING => Ok(Self::Ping(*body.first_chunk().ok_or(bad)?)),
            kind::PONG => Ok(Self::Pong(*body.first_chunk().ok_or(bad)?)),
            kind::HEALTH => std::str::from_utf8(body)
                .map(Self::Health)
                .map_err(|_| BadFrame::HealthText),
            kind::RESTARTING => {
                let (reconnect, rest) = body.split_first_chunk().ok_or(bad)?;
                let (try_for, _) = rest.split_first_chunk().ok_or(bad)?;
                Ok(Self::Restarting {
                    reconnect_in_ms: u32::from_be_bytes(*reconnect),
                    try_for_ms: u32::from_be_bytes(*try_for),
                })
            }
            unknown => Ok(Self::Unknown(unknown)),
        }
    }
}

fn take_key(body: &[u8]) -> Option<(NodePublic, &[u8])> {
    let (key, rest) = body.split_first_chunk::<KEY_LEN>()?;
    Some((NodePublic::from_bytes(*key), rest))
}

fn take_packet(body: &[u8]) -> Option<(NodePublic, &[u8])> {
    take_key(body).filter(|(_, packet)| packet.len() <= MAX_PACKET_LEN)
}

/// 16 bytes of IPv6 (IPv4 mapped into it) and a port.
fn parse_address(bytes: &[u8; 18]) -> SocketAddr {
    let mut ip = [0; 16];
    ip.copy_from_slice(&bytes[..16]);
    let ip = IpAddr::V6(Ipv6Addr::from(ip)).to_canonical();
    SocketAddr::new(ip, u16::from_be_bytes([bytes[16], bytes[17]]))
}
