//! Disco messages: sealing, opening, and what is inside.
//!
//! ```text
//! byte   0       6              38       62
//!        | magic | sender's key | nonce  | box: type u8, version u8, payload |
//! ```
//!
//! Source: disco.md sections 1, 2 and 4.

mod relay;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use keys::{DiscoPublic, DiscoShared, NodePublic};

pub use relay::{Handshake, RelayEndpoint, RelayMessage};

/// First bytes of every disco datagram: "TS" and U+1F4AC.
pub const MAGIC: [u8; 6] = [0x54, 0x53, 0xF0, 0x9F, 0x92, 0xAC];

const KEY_LEN: usize = 32;
const ENVELOPE_LEN: usize = MAGIC.len() + KEY_LEN;
const ADDRESS_LEN: usize = 18;

/// Most addresses that a CallMeMaybe is read for; more than any node has, fewer than a datagram
/// of 64 KiB could make us ping.
pub const MAX_ENDPOINTS: usize = 100;

/// Length in bytes of a datagram with a ping that names a node and has no padding.
pub const PING_LEN: u16 = 124;
const PING: u8 = 0x01;
const PONG: u8 = 0x02;
const CALL_ME_MAYBE: u8 = 0x03;

/// The only version there is.
const VERSION: u8 = 0;

/// Transaction id: random, it pairs a pong with its ping.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TxId(pub [u8; 12]);

/// What nodes say to each other.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Message {
    /// Are you there, on this path?
    Ping {
        /// Pairs it with its pong.
        id: TxId,
        /// The sender's node key; a hint only, and absent from very old nodes.
        node: Option<NodePublic>,
        /// Bytes of padding behind the node key, to prove a path's MTU.
        padding: u16,
    },
    /// I am.
    Pong {
        /// The ping's.
        id: TxId,
        /// Where the ping seemed to come from; over DERP `127.3.3.40:<region id>`.
        source: SocketAddr,
    },
    /// Over DERP only: here is where I may be reached, ping me there.
    CallMeMaybe {
        /// At most [`MAX_ENDPOINTS`].
        endpoints: Vec<SocketAddr>,
    },
    /// About a UDP relay that a peer offers.
    Relay(Box<RelayMessage>),
    /// A type or version that this version does not know: ignore it.
    Unknown {
        /// Message type.
        kind: u8,
        /// Message version.
        version: u8,
    },
}

/// A disco-shaped datagram, not opened yet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Envelope<'a> {
    /// The disco key it claims to come from; only opening proves it.
    pub sender: DiscoPublic,
    /// Nonce and box.
    pub sealed: &'a [u8],
}

/// Why a datagram held no message; ignore it silently.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoError {
    /// The box does not open with this secret.
    #[error(transparent)]
    Open(#[from] keys::OpenError),
    /// The message is shorter than its type demands.
    #[error("disco message is cut off")]
    Truncated,
}

/// Reads the envelope of a disco-shaped datagram: whom to look up before anything is opened.
///
/// `None` if `datagram` is something else.
#[must_use]
pub fn parse_envelope(datagram: &[u8]) -> Option<Envelope<'_>> {
    let rest = datagram.strip_prefix(&MAGIC)?;
    let (sender, sealed) = rest.split_first_chunk::<KEY_LEN>()?;
    Some(Envelope {
        sender: DiscoPublic::from_bytes(*sender),
        sealed,
    })
}

/// Builds the datagram that carries `message` from the owner of `sender` to the other key of
/// `shared`.
#[must_use]
pub fn seal(sender: &DiscoPublic, shared: &DiscoShared, message: &Message) -> Vec<u8> {
    let sealed = shared.seal(&message.encode());
    let mut datagram = Vec::with_capacity(ENVELOPE_LEN + sealed.len());
    datagram.extend_from_slice(&MAGIC);
    datagram.extend_from_slice(sender.as_bytes());
    datagram.extend_from_slice(&sealed);
    datagram
}

/// Opens an envelope with the secret shared with its sender.
///
/// # Errors
///
/// [`DiscoError`]; ignore the datagram.
pub fn open(envelope: Envelope<'_>, shared: &DiscoShared) -> Result<Message, DiscoError> {
    Message::parse(&shared.open(envelope.sealed)?)
}

impl Message {
    /// The bytes inside the box.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Ping { id, node, padding } => {
                let mut out = vec![PING, VERSION];
                out.extend_from_slice(&id.0);
                if let Some(node) = node {
                    out.extend_from_slice(node.as_bytes());
                    out.resize(out.len() + usize::from(*padding), 0);
                }
                out
            }
            Self::Pong { id, source } => {
                let mut out = vec![PONG, VERSION];
                out.extend_from_slice(&id.0);
                out.extend_from_slice(&encode_address(*source));
                out
            }
            Self::CallMeMaybe { endpoints } => {
                let mut out = vec![CALL_ME_MAYBE, VERSION];
                for endpoint in endpoints {
                    out.extend_from_slice(&encode_address(*endpoint));
                }
                out
            }
            Self::Relay(message) => {
                let mut out = Vec::new();
                message.encode(VERSION, &mut out);
                out
            }
            Self::Unknown { kind, version } => vec![*kind, *version],
        }
    }

    /// Reads the bytes inside the box; bytes after the fields known here are ignored.
    ///
    /// # Errors
    ///
    /// [`DiscoError::Truncated`].
    pub fn parse(inner: &[u8]) -> Result<Self, DiscoError> {
        let (&[kind, version], payload) = inner.split_first_chunk().ok_or(DiscoError::Truncated)?;
        match (kind, version) {
            (PING, VERSION) => {
                let (id, rest) = take_id(payload)?;
                let Some((node, padding)) = rest.split_first_chunk::<KEY_LEN>() else {
                    return Ok(Self::Ping {
                        id,
                        node: None,
                        padding: 0,
                    });
                };
                Ok(Self::Ping {
                    id,
                    node: Some(NodePublic::from_bytes(*node)),
                    padding: u16::try_from(padding.len()).unwrap_or(u16::MAX),
                })
            }
            (PONG, VERSION) => {
                let (id, rest) = take_id(payload)?;
                let address = rest.first_chunk().ok_or(DiscoError::Truncated)?;
                Ok(Self::Pong {
                    id,
                    source: parse_address(address),
                })
            }
            // A list of odd length or of another version counts as empty, not as an error.
            (CALL_ME_MAYBE, VERSION) if payload.len() % ADDRESS_LEN == 0 => {
                let (addresses, _) = payload.as_chunks::<ADDRESS_LEN>();
                let endpoints = addresses.iter().take(MAX_ENDPOINTS).map(parse_address);
                Ok(Self::CallMeMaybe {
                    endpoints: endpoints.collect(),
                })
            }
            (CALL_ME_MAYBE, _) => Ok(Self::CallMeMaybe {
                endpoints: Vec::new(),
            }),
            (kind, VERSION) => match RelayMessage::parse(kind, payload) {
                Some(message) => Ok(Self::Relay(Box::new(message?))),
                None => Ok(Self::Unknown {
                    kind,
                    version: VERSION,
                }),
            },
            (kind, version) => Ok(Self::Unknown { kind, version }),
        }
    }
}

fn take_id(payload: &[u8]) -> Result<(TxId, &[u8]), DiscoError> {
    let (id, rest) = payload.split_first_chunk().ok_or(DiscoError::Truncated)?;
    Ok((TxId(*id), rest))
}

/// 16 bytes of IPv6 (IPv4 mapped into it) and a port.
fn parse_address(bytes: &[u8; ADDRESS_LEN]) -> SocketAddr {
    let mut ip = [0; 16];
    ip.copy_from_slice(&bytes[..16]);
    let ip = IpAddr::V6(Ipv6Addr::from(ip)).to_canonical();
    SocketAddr::new(ip, u16::from_be_bytes([bytes[16], bytes[17]]))
}

fn encode_address(address: SocketAddr) -> [u8; ADDRESS_LEN] {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut bytes = [0; ADDRESS_LEN];
    bytes[..16].copy_from_slice(&ip.octets());
    bytes[16..].copy_from_slice(&address.port().to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests;
