//! Messages about UDP relays that peers offer: read and written here, used by nobody yet.
//!
//! Source: disco.md sections 2 and 13.

use std::net::SocketAddr;
use std::time::Duration;

use keys::DiscoPublic;

use super::{ADDRESS_LEN, DiscoError, KEY_LEN, MAX_ENDPOINTS, encode_address, parse_address};

const BIND: u8 = 0x04;
const CHALLENGE: u8 = 0x05;
const ANSWER: u8 = 0x06;
const CALL_ME_MAYBE_VIA: u8 = 0x07;
const ALLOCATE_REQUEST: u8 = 0x08;
const ALLOCATE_RESPONSE: u8 = 0x09;

/// What clients of a relay, its server and peers say to each other about it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RelayMessage {
    /// To the server: let me use the endpoint. The challenge is of no meaning.
    Bind(Handshake),
    /// From the server: show that you hear me where you are.
    Challenge(Handshake),
    /// To the server: the challenge comes back.
    Answer(Handshake),
    /// Over DERP, to a peer: ping me by this relay.
    CallMeMaybeVia(RelayEndpoint),
    /// Over DERP, to the server: give these two an endpoint.
    AllocateRequest {
        /// Disco keys of the two, in order of their bytes.
        clients: [DiscoPublic; 2],
        /// Comes back in the answer.
        generation: u32,
    },
    /// Over DERP, from the server: there it is.
    AllocateResponse {
        /// The request's.
        generation: u32,
        /// What was allocated.
        endpoint: RelayEndpoint,
    },
}

/// A step of a client's handshake with the server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Handshake {
    /// The endpoint's number on that server; has to be that of the Geneve header.
    pub vni: u32,
    /// The client's, other than 0, another for each handshake.
    pub generation: u32,
    /// Disco key of the other client.
    pub remote: DiscoPublic,
    /// Chosen by the server.
    pub challenge: [u8; 32],
}

/// An endpoint at a relay, for two clients.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RelayEndpoint {
    /// Disco key of the server.
    pub server: DiscoPublic,
    /// Disco keys of the two, in order of their bytes.
    pub clients: [DiscoPublic; 2],
    /// The higher the newer, of one server.
    pub lamport: u64,
    /// The endpoint's number on that server.
    pub vni: u32,
    /// Time to shake hands.
    pub bind_lifetime: Duration,
    /// How long it lives without packets, once both have.
    pub steady_lifetime: Duration,
    /// Where the server listens: at least one, at most [`MAX_ENDPOINTS`].
    pub addresses: Vec<SocketAddr>,
}

impl RelayMessage {
    /// Reads the payload of a message of this type; `None` if it is none of these types. Bytes after the fields
    /// known here are ignored, but where addresses end the message.
    pub(super) fn parse(kind: u8, payload: &[u8]) -> Option<Result<Self, DiscoError>> {
        Some(match kind {
            BIND => Handshake::parse(payload).map(Self::Bind),
            CHALLENGE => Handshake::parse(payload).map(Self::Challenge),
            ANSWER => Handshake::parse(payload).map(Self::Answer),
            CALL_ME_MAYBE_VIA => RelayEndpoint::parse(payload).map(Self::CallMeMaybeVia),
            ALLOCATE_REQUEST => parse_request(payload),
            ALLOCATE_RESPONSE => parse_response(payload),
            _ => return None,
        })
    }

    /// Appends type, version and payload.
    pub(super) fn encode(&self, version: u8, out: &mut Vec<u8>) {
        let mut head = |kind| out.extend_from_slice(&[kind, version]);
        match self {
            Self::Bind(handshake) => {
                head(BIND);
                handshake.encode(out);
            }
            Self::Challenge(handshake) => {
                head(CHALLENGE);
                handshake.encode(out);
            }
            Self::Answer(handshake) => {
                head(ANSWER);
                handshake.encode(out);
            }
            Self::CallMeMaybeVia(endpoint) => {
                head(CALL_ME_MAYBE_VIA);
                endpoint.encode(out);
            }
            Self::AllocateRequest {
                clients,
                generation,
            } => {
                head(ALLOCATE_REQUEST);
                encode_keys(clients, out);
                out.extend_from_slice(&generation.to_be_bytes());
            }
            Self::AllocateResponse {
                generation,
                endpoint,
            } => {
                head(ALLOCATE_RESPONSE);
                out.extend_from_slice(&generation.to_be_bytes());
                endpoint.encode(out);
            }
        }
    }
}

fn parse_request(mut payload: &[u8]) -> Result<RelayMessage, DiscoError> {
    Ok(RelayMessage::AllocateRequest {
        clients: [take_key(&mut payload)?, take_key(&mut payload)?],
        generation: u32::from_be_bytes(take(&mut payload)?),
    })
}

fn parse_response(mut payload: &[u8]) -> Result<RelayMessage, DiscoError> {
    Ok(RelayMessage::AllocateResponse {
        generation: u32::from_be_bytes(take(&mut payload)?),
        endpoint: RelayEndpoint::parse(payload)?,
    })
}

impl Handshake {
    fn parse(mut payload: &[u8]) -> Result<Self, DiscoError> {
        Ok(Self {
            vni: u32::from_be_bytes(take(&mut payload)?),
            generation: u32::from_be_bytes(take(&mut payload)?),
            remote: take_key(&mut payload)?,
            challenge: take(&mut payload)?,
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.vni.to_be_bytes());
        out.extend_from_slice(&self.generation.to_be_bytes());
        out.extend_from_slice(self.remote.as_bytes());
        out.extend_from_slice(&self.challenge);
    }
}

impl RelayEndpoint {
    fn parse(mut payload: &[u8]) -> Result<Self, DiscoError> {
        let server = take_key(&mut payload)?;
        let clients = [take_key(&mut payload)?, take_key(&mut payload)?];
        let lamport = u64::from_be_bytes(take(&mut payload)?);
        let vni = u32::from_be_bytes(take(&mut payload)?);
        let mut lifetime = || -> Result<Duration, DiscoError> {
            Ok(Duration::from_nanos(u64::from_be_bytes(take(
                &mut payload,
            )?)))
        };
        let (bind_lifetime, steady_lifetime) = (lifetime()?, lifetime()?);
        let (addresses, rest) = payload.as_chunks::<ADDRESS_LEN>();
        if addresses.is_empty() || !rest.is_empty() {
            return Err(DiscoError::Truncated);
        }
        let addresses = addresses.iter().take(MAX_ENDPOINTS).map(parse_address);
        Ok(Self {
            server,
            clients,
            lamport,
            vni,
            bind_lifetime,
            steady_lifetime,
            addresses: addresses.collect(),
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.server.as_bytes());
        encode_keys(&self.clients, out);
        out.extend_from_slice(&self.lamport.to_be_bytes());
        out.extend_from_slice(&self.vni.to_be_bytes());
        for lifetime in [self.bind_lifetime, self.steady_lifetime] {
            let nanos = u64::try_from(lifetime.as_nanos()).unwrap_or(u64::MAX);
            out.extend_from_slice(&nanos.to_be_bytes());
        }
        for address in &self.addresses {
            out.extend_from_slice(&encode_address(*address));
        }
    }
}

fn encode_keys(keys: &[DiscoPublic], out: &mut Vec<u8>) {
    for key in keys {
        out.extend_from_slice(key.as_bytes());
    }
}

fn take_key(payload: &mut &[u8]) -> Result<DiscoPublic, DiscoError> {
    Ok(DiscoPublic::from_bytes(take::<KEY_LEN>(payload)?))
}

fn take<const N: usize>(payload: &mut &[u8]) -> Result<[u8; N], DiscoError> {
    let (taken, rest) = payload.split_first_chunk().ok_or(DiscoError::Truncated)?;
    *payload = rest;
    Ok(*taken)
}
