//! TSMP: what the agents at both ends of a tunnel say to each other inside it.
//!
//! IP protocol 99, the message right behind the IP header, in one piece. Nothing is sealed: the
//! tunnel is.
//!
//! ```text
//! byte   0     1            2        3             5                  7
//! reject | '!' | protocol   | reason | source port | destination port | flags, may be absent |
//! ping   | 'p' | data, 8 bytes |
//! pong   | 'o' | data, 8 bytes | port of the PeerAPI, may be absent |
//! disco  | 'a' | key, 32 bytes |
//! ```
//!
//! Source: disco.md section 14.

use keys::DiscoPublic;

const REJECT: u8 = b'!';
const PING: u8 = b'p';
const PONG: u8 = b'o';
const DISCO_KEY: u8 = b'a';

/// Flag of a reject: the refusal may be a fault rather than a decision.
const MAYBE_BROKEN: u8 = 1;

/// What a ping carries and its pong repeats: nobody else can guess it.
pub type PingData = [u8; 8];

/// What agents say to each other through the tunnel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Message {
    /// The connection that you asked for is refused.
    Reject(Reject),
    /// Are you there, at the other end of the tunnel?
    Ping(PingData),
    /// I am.
    Pong {
        /// The ping's.
        data: PingData,
        /// Port of the sender's PeerAPI in this family; 0 if it serves none.
        peer_api_port: u16,
    },
    /// This is my disco key, whatever the network map says.
    DiscoKey(DiscoPublic),
}

/// A refused connection, by the packet that asked for it. A reject goes the other way: from that packet's
/// destination to its source.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reject {
    /// IP protocol of the packet.
    pub protocol: u8,
    /// Why it was refused.
    pub reason: Reason,
    /// Source port of the packet.
    pub source_port: u16,
    /// Destination port of the packet.
    pub destination_port: u16,
    /// It may be a fault of the refusing host.
    pub maybe_broken: bool,
}

/// Why a connection was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    /// No rule of the packet filter admits it.
    Filter,
    /// The host takes no connections.
    ShieldsUp,
    /// The host was to forward it and does not forward.
    ForwardingOff,
    /// A firewall of the host.
    HostFirewall,
    /// An app connector does not know the transit address.
    UnknownTransit,
    /// A reason unknown here.
    Other(u8),
}

/// Why a packet holds no message; ignore it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TsmpError {
    /// The message is shorter than its type demands.
    #[error("TSMP message is cut off")]
    Truncated,
    /// A type that this version does not know.
    #[error("TSMP message of the unknown type {0:#04x}")]
    Unknown(u8),
}

impl Message {
    /// The bytes behind the IP header.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Reject(reject) => reject.encode(),
            Self::Ping(data) => [&[PING], &data[..]].concat(),
            Self::Pong {
                data,
                peer_api_port,
            } => [&[PONG], &data[..], &peer_api_port.to_be_bytes()].concat(),
            Self::DiscoKey(key) => [&[DISCO_KEY], &key.as_bytes()[..]].concat(),
        }
    }

    /// Reads the bytes behind the IP header; bytes after the fields known here are ignored.
    ///
    /// # Errors
    ///
    /// [`TsmpError`]; ignore the packet.
    pub fn parse(payload: &[u8]) -> Result<Self, TsmpError> {
        let (kind, rest) = payload.split_first().ok_or(TsmpError::Truncated)?;
        match *kind {
            REJECT => Reject::parse(rest).map(Self::Reject),
            PING => Ok(Self::Ping(take(rest)?.0)),
            PONG => {
                let (data, rest) = take(rest)?;
                let port = rest.first_chunk().copied().unwrap_or_default();
                Ok(Self::Pong {
                    data,
                    peer_api_port: u16::from_be_bytes(port),
                })
            }
            DISCO_KEY => Ok(Self::DiscoKey(DiscoPublic::from_bytes(take(rest)?.0))),
            other => Err(TsmpError::Unknown(other)),
        }
    }
}

impl Reject {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![REJECT, self.protocol, self.reason.to_byte()];
        out.extend(self.source_port.to_be_bytes());
        out.extend(self.destination_port.to_be_bytes());
        if self.maybe_broken {
            out.push(MAYBE_BROKEN);
        }
        out
    }

    fn parse(rest: &[u8]) -> Result<Self, TsmpError> {
        let ([protocol, reason], rest) = take(rest)?;
        let (source, rest) = take(rest)?;
        let (destination, flags) = take(rest)?;
        Ok(Self {
            protocol,
            reason: Reason::from_byte(reason),
            source_port: u16::from_be_bytes(source),
            destination_port: u16::from_be_bytes(destination),
            maybe_broken: flags.first().is_some_and(|flags| flags & MAYBE_BROKEN != 0),
        })
    }
}

impl Reason {
    fn to_byte(self) -> u8 {
        match self {
            Self::Filter => b'A',
            Self::ShieldsUp => b'S',
            Self::ForwardingOff => b'F',
            Self::HostFirewall => b'W',
            Self::UnknownTransit => b'T',
            Self::Other(byte) => byte,
        }
    }

    fn from_byte(byte: u8) -> Self {
        match byte {
            b'A' => Self::Filter,
            b'S' => Self::ShieldsUp,
            b'F' => Self::ForwardingOff,
            b'W' => Self::HostFirewall,
            b'T' => Self::UnknownTransit,
            other => Self::Other(other),
        }
    }
}

fn take<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), TsmpError> {
    let (taken, rest) = bytes.split_first_chunk().ok_or(TsmpError::Truncated)?;
    Ok((*taken, rest))
}

#[cfg(test)]
mod tests;
