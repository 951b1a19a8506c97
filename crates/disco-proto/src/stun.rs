//! STUN binding requests and responses (RFC 8489), as far as nodes and relays speak it.
//!
//! ```text
//! request   0001 len cookie txid | SOFTWARE "tailnode" | FINGERPRINT
//! response  0101 len cookie txid | XOR-MAPPED-ADDRESS
//! ```
//!
//! Requests name their software and end in a fingerprint, and a relay answers no others: it is of
//! no use to anybody else, least of all for reflection. Source: disco.md section 8.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const HEADER_LEN: usize = 20;
/// What follows type and length in every message (RFC 8489 §5).
pub const COOKIE: [u8; 4] = [0x21, 0x12, 0xA4, 0x42];
const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
const BINDING_RESPONSE: [u8; 2] = [0x01, 0x01];

const MAPPED_ADDRESS: u16 = 0x0001;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// XOR-MAPPED-ADDRESS under the number that early servers used.
const XOR_MAPPED_ADDRESS_EARLY: u16 = 0x8020;
const SOFTWARE: u16 = 0x8022;
const FINGERPRINT: u16 = 0x8028;
const FINGERPRINT_XOR: u32 = 0x5354_554E;
const SOFTWARE_NAME: &[u8; 8] = b"tailnode";

const FAMILY_V4: u8 = 1;
const FAMILY_V6: u8 = 2;

/// Bytes of every request that we send.
pub const REQUEST_LEN: usize = 40;

/// UDP port of STUN servers unless the DERP map says otherwise.
pub const DEFAULT_PORT: u16 = 3478;

/// Transaction id: random, it pairs a response with its request.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TxId(pub [u8; 12]);

/// Why a datagram is not the STUN message it was taken for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StunError {
    /// No STUN header, or of another kind than wanted.
    #[error("not a STUN message of the kind wanted")]
    NotStun,
    /// An attribute runs over the end.
    #[error("STUN attributes are cut off")]
    Truncated,
    /// The request names no software, or not a node's.
    #[error("STUN request does not come from a node")]
    Software,
    /// The fingerprint is absent, wrong, or not the last attribute.
    #[error("STUN fingerprint is absent or wrong")]
    Fingerprint,
    /// The response carries no address.
    #[error("STUN response carries no address")]
    NoAddress,
}

/// Whether `datagram` is STUN and nothing else that shares a node's UDP port.
///
/// The second byte keeps it apart from Geneve (disco.md section 3).
#[must_use]
pub fn is_stun(datagram: &[u8]) -> bool {
    datagram.len() >= HEADER_LEN
        && datagram[0] & 0xC0 == 0
        && datagram[1] == 0x01
        && datagram[4..8] == COOKIE
}

/// Builds a binding request.
#[must_use]
pub fn request(id: TxId) -> [u8; REQUEST_LEN] {
    let mut out = [0; REQUEST_LEN];
    put_header(&mut out, BINDING_REQUEST, id);
    put_attribute(&mut out[20..], SOFTWARE, SOFTWARE_NAME);
    let fingerprint = fingerprint(&out[..32]);
    put_attribute(&mut out[32..], FINGERPRINT, &fingerprint.to_be_bytes());
    out
}

/// Reads a binding request of a node.
///
/// # Errors
///
/// [`StunError`]: leave it unanswered.
pub fn parse_request(datagram: &[u8]) -> Result<TxId, StunError> {
    let (id, attributes) = split(datagram, BINDING_REQUEST)?;
    let mut software = false;
    let mut rest = attributes;
    while !rest.is_empty() {
        let at = datagram.len() - rest.len();
        let (kind, value, after) = take_attribute(rest)?;
        match kind {
            SOFTWARE if value == SOFTWARE_NAME => software = true,
            SOFTWARE => return Err(StunError::Software),
            FINGERPRINT => {
                let right = value == fingerprint(&datagram[..at]).to_be_bytes();
                return match (right && after.is_empty(), software) {
                    (true, true) => Ok(id),
                    (true, false) => Err(StunError::Software),
                    (false, _) => Err(StunError::Fingerprint),
                };
            }
            _ => {}
        }
        rest = after;
    }
    Err(StunError::Fingerprint)
}

/// Builds the response that tells `source`, the address a request came from.
#[must_use]
pub fn response(id: TxId, source: SocketAddr) -> Vec<u8> {
    let mask = xor_mask(id);
    let (family, mut ip) = match source.ip().to_canonical() {
        IpAddr::V4(ip) => (FAMILY_V4, ip.octets().to_vec()),
        IpAddr::V6(ip) => (FAMILY_V6, ip.octets().to_vec()),
    };
    ip.iter_mut()
        .zip(mask)
        .for_each(|(byte, mask)| *byte ^= mask);
    let port = source.port() ^ u16::from_be_bytes([COOKIE[0], COOKIE[1]]);

    let mut value = vec![0, family];
    value.extend_from_slice(&port.to_be_bytes());
    value.extend_from_slice(&ip);
    let mut out = vec![0; HEADER_LEN + 4 + value.len()];
    put_header(&mut out, BINDING_RESPONSE, id);
    put_attribute(&mut out[HEADER_LEN..], XOR_MAPPED_ADDRESS, &value);
    out
}

/// Reads a binding response: which request it answers and the address it tells.
///
/// # Errors
///
/// [`StunError`].
pub fn parse_response(datagram: &[u8]) -> Result<(TxId, SocketAddr), StunError> {
    let (id, mut rest) = split(datagram, BINDING_RESPONSE)?;
    let mut plain = None;
    while !rest.is_empty() {
        let (kind, value, after) = take_attribute(rest)?;
        match kind {
            XOR_MAPPED_ADDRESS | XOR_MAPPED_ADDRESS_EARLY => {
                if let Some(address) = parse_address(value, xor_mask(id)) {
                    return Ok((id, address));
                }
            }
            MAPPED_ADDRESS => plain = parse_address(value, [0; 16]),
            _ => {}
        }
        rest = after;
    }
    plain
        .map(|address| (id, address))
        .ok_or(StunError::NoAddress)
}

fn put_header(out: &mut [u8], kind: [u8; 2], id: TxId) {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "messages we build are short"
    )]
    let len = (out.len() - HEADER_LEN) as u16;
    out[..2].copy_from_slice(&kind);
    out[2..4].copy_from_slice(&len.to_be_bytes());
    out[4..8].copy_from_slice(&COOKIE);
    out[8..HEADER_LEN].copy_from_slice(&id.0);
}

/// `value` must be a multiple of four bytes: nothing here needs padding.
fn put_attribute(out: &mut [u8], kind: u16, value: &[u8]) {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "attributes we build are short"
    )]
    let len = value.len() as u16;
    out[..2].copy_from_slice(&kind.to_be_bytes());
    out[2..4].copy_from_slice(&len.to_be_bytes());
    out[4..4 + value.len()].copy_from_slice(value);
}

/// CRC-32 of the message so far, its length field already counting the fingerprint (RFC 8489 §14.7).
fn fingerprint(message: &[u8]) -> u32 {
    crc32fast::hash(message) ^ FINGERPRINT_XOR
}

/// Checks the header for `kind`; returns id and attributes, exactly as many bytes as announced.
fn split(datagram: &[u8], kind: [u8; 2]) -> Result<(TxId, &[u8]), StunError> {
    let (header, rest) = datagram
        .split_first_chunk::<HEADER_LEN>()
        .ok_or(StunError::NotStun)?;
    if header[..2] != kind || header[4..8] != COOKIE {
        return Err(StunError::NotStun);
    }
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if len != rest.len() {
        return Err(StunError::Truncated);
    }
    let mut id = [0; 12];
    id.copy_from_slice(&header[8..]);
    Ok((TxId(id), rest))
}

/// Splits type and value off the front; values are padded to four bytes.
fn take_attribute(attributes: &[u8]) -> Result<(u16, &[u8], &[u8]), StunError> {
    let (header, rest) = attributes
        .split_first_chunk::<4>()
        .ok_or(StunError::Truncated)?;
    let kind = u16::from_be_bytes([header[0], header[1]]);
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let value = rest.get(..len).ok_or(StunError::Truncated)?;
    let after = rest
        .get(len.next_multiple_of(4)..)
        .ok_or(StunError::Truncated)?;
    Ok((kind, value, after))
}

/// Cookie and id: IPv6 addresses are masked with all of it, IPv4 with the cookie.
fn xor_mask(id: TxId) -> [u8; 16] {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&COOKIE);
    mask[4..].copy_from_slice(&id.0);
    mask
}

fn parse_address(value: &[u8], mask: [u8; 16]) -> Option<SocketAddr> {
    let ([_, family, port_high, port_low], ip) = value.split_first_chunk::<4>()?;
    let port = u16::from_be_bytes([port_high ^ mask[0], port_low ^ mask[1]]);
    let ip: IpAddr = match *family {
        FAMILY_V4 => {
            let mut octets = *ip.first_chunk::<4>()?;
            octets
                .iter_mut()
                .zip(mask)
                .for_each(|(byte, mask)| *byte ^= mask);
            Ipv4Addr::from(octets).into()
        }
        FAMILY_V6 => {
            let mut octets = *ip.first_chunk::<16>()?;
            octets
                .iter_mut()
                .zip(mask)
                .for_each(|(byte, mask)| *byte ^= mask);
            Ipv6Addr::from(octets).into()
        }
        _ => return None,
    };
    // A server whose socket is for both families, as derper's is, may tell `::ffff:192.0.2.1`.
    Some(SocketAddr::new(ip.to_canonical(), port))
}

#[cfg(test)]
mod tests;
