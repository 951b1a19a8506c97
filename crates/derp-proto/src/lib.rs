//! DERP frames and handshakes, both ends, sans-IO.
//!
//! DERP relays packets between nodes that are addressed by their node keys, over one TCP (normally
//! TLS) connection per node. This crate turns bytes into [`Frame`]s and back and runs the two
//! handshakes; sockets, clocks, queues and routing belong to its users.
//!
//! ```text
//! client                                                server
//!   ── HTTP/1.1 GET /derp, Upgrade: DERP ───────────────▶
//!   ◀──────────────── 101 (left out after a fast start) ──
//!   ◀──────────────────────────────────────── ServerKey ──   [`ServerHandshake`]
//!   ── ClientInfo (boxed) ──────────────────────────────▶    [`ClientHandshake`]
//!   ◀─────────────────────────────── ServerInfo (boxed) ──
//!   ── SendPacket{destination} ──▶      ── RecvPacket{source} ──▶ the other client
//! ```
//!
//! Source: DERP protocol version 2, as spoken by tailscale/tailscale `derp/`.
#![forbid(unsafe_code)]

mod encode;
mod frame;
mod handshake;
pub mod http;
pub mod meta;

pub use encode::{put_frame, rewrite_send_to_recv};
pub use frame::{BadFrame, Frame, FrameTooLong, PeerGoneReason, RawFrame, kind, split_frame};
pub use handshake::{
    ClientHandshake, ClientInfo, HandshakeError, Progress, ServerHandshake, ServerInfo,
};

/// The protocol version spoken here, in the infos and as serial number of the meta certificate.
pub const PROTOCOL_VERSION: u8 = 2;

/// Bytes of a frame header: type u8, body length u32 big-endian.
pub const HEADER_LEN: usize = 5;

/// Bytes of a public key on the wire.
pub const KEY_LEN: usize = 32;

/// Bytes in front of the packet in SendPacket and RecvPacket: header and key.
pub const PACKET_HEADER_LEN: usize = HEADER_LEN + KEY_LEN;

/// Largest body of any frame, in bytes; a longer one means that the stream is out of step.
pub const MAX_BODY_LEN: usize = 1 << 20;

/// Largest packet that a relay carries, in bytes.
pub const MAX_PACKET_LEN: usize = 64 << 10;

/// Largest ClientInfo body that a server reads, in bytes.
pub const MAX_CLIENT_INFO_LEN: usize = 256 << 10;

/// First bytes of the ServerKey body: "DERP" and U+1F511.
pub const MAGIC: [u8; 8] = [0x44, 0x45, 0x52, 0x50, 0xF0, 0x9F, 0x94, 0x91];

/// First bytes of every disco message: "TS" and U+1F4AC.
const DISCO_MAGIC: [u8; 6] = [0x54, 0x53, 0xF0, 0x9F, 0x92, 0xAC];

/// Smallest disco-shaped packet, in bytes: the magic and the sender's disco key.
const MIN_DISCO_LEN: usize = 38;

/// Whether `packet` looks like a disco message: the only thing a relay reads of a payload, so that
/// path discovery keeps a queue of its own.
#[must_use]
pub fn is_disco(packet: &[u8]) -> bool {
    packet.len() >= MIN_DISCO_LEN && packet.starts_with(&DISCO_MAGIC)
}

#[cfg(test)]
mod tests;
