//! The ts2021 Noise channel over any `AsyncRead + AsyncWrite`, both ends.
//!
//! [`upgrade_client`] and [`server_accept`] do the handshake and end in a [`NoiseStream`], a byte
//! stream in which HTTP/2 runs. The protocol itself is in `control-proto`; here are only buffers.
#![forbid(unsafe_code)]

mod handshake;
mod stream;
mod upgrade;

pub use handshake::{Accepted, HandshakeError, server_accept};
pub use stream::NoiseStream;
pub use upgrade::{
    HANDSHAKE_HEADER, PATH, UPGRADE_PROTOCOL, UpgradeError, decode_handshake_header, upgrade_client,
};
