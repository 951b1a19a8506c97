//! The handshake that follows the HTTP upgrade, both ends (derp.md section 4).

mod client;
mod info;
mod server;

pub use client::ClientHandshake;
pub use info::{ClientInfo, ServerInfo};
pub use server::ServerHandshake;

use crate::frame::{BadFrame, FrameTooLong};

/// What a handshake made of its input.
#[derive(Debug)]
pub enum Progress<T> {
    /// Drop `consumed` bytes of the input and come again with more.
    NeedMore {
        /// Bytes of the input that are done with.
        consumed: usize,
    },
    /// Finished: bytes after `consumed` belong to the frames that follow.
    Done {
        /// Bytes of the input that are done with.
        consumed: usize,
        /// What the handshake learned.
        result: T,
    },
}

/// Why a handshake failed; close the connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The stream is out of step.
    #[error(transparent)]
    FrameTooLong(#[from] FrameTooLong),
    /// A frame's body cannot be right.
    #[error(transparent)]
    BadFrame(#[from] BadFrame),
    /// Another frame was due.
    #[error("DERP frame of type 0x{found:02x} where 0x{wanted:02x} was due")]
    Unexpected {
        /// Frame type that came.
        found: u8,
        /// Frame type that was due.
        wanted: u8,
    },
    /// The info frame is larger than allowed.
    #[error("DERP info of {0} bytes is too long")]
    InfoTooLong(usize),
    /// The other end sent a point of low order, whose boxes anybody can make.
    #[error("the other end sent a key that proves nothing (a point of low order)")]
    LowOrderKey,
    /// The box does not open: the other end does not hold the key that it claims.
    #[error("the other end does not hold the private key of {0}")]
    Box(keys::NodePublic),
    /// The box holds something else than the info's JSON.
    #[error("DERP info is not the JSON that it should be")]
    Json(#[source] serde_json::Error),
}
