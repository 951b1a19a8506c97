//! The early payload: what a server may say before HTTP/2 starts.
//!
//! ```text
//! byte   0               5               9
//!        | ff ff ff 54 53 | len: u32, BE | JSON ... |
//! ```
//!
//! The first bytes of a stream without it are HTTP/2's, whose frames never start with `ff ff ff`.
//! Source: control.md 2.4.

use bytes::{Buf as _, BytesMut};
use keys::ChallengePublic;
use serde::{Deserialize, Serialize};

use crate::json::{self, JsonError};

/// Longest payload that is accepted, in bytes; today's are about 90.
pub const MAX_LEN: usize = 64 << 10;

const MAGIC: [u8; 5] = *b"\xff\xff\xffTS";
const HEADER_LEN: usize = MAGIC.len() + 4;

/// What the payload says.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct EarlyPayload {
    /// A key to prove something to; nobody answers it today.
    #[serde(rename = "nodeKeyChallenge")]
    pub node_key_challenge: ChallengePublic,
}

impl EarlyPayload {
    /// The payload with its header, ready to be sealed.
    ///
    /// # Errors
    ///
    /// None in practice: see [`json::to_vec`].
    pub fn encode(&self) -> Result<Vec<u8>, JsonError> {
        let json = json::to_vec(self)?;
        let len = u32::try_from(json.len()).map_err(|_| JsonError::TooLong(json.len()))?;
        Ok([&MAGIC[..], &len.to_be_bytes(), &json].concat())
    }
}

/// Why the start of a stream is unusable: close it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EarlyError {
    /// Longer than [`MAX_LEN`].
    #[error("early payload of {0} bytes is too long")]
    TooLong(usize),
    /// Not the JSON expected.
    #[error("unreadable early payload")]
    Json(#[from] JsonError),
}

/// What stands at the start of a stream.
#[derive(Debug)]
pub enum Early {
    /// Cannot be told yet.
    NeedMore,
    /// No payload: the bytes belong to HTTP/2.
    None,
    /// A payload, taken off the input; HTTP/2 follows.
    Payload(EarlyPayload),
}

/// Looks for a payload at the start of `input` and takes it off.
///
/// # Errors
///
/// [`EarlyError`] if there is one that is too long or unreadable.
pub fn split(input: &mut BytesMut) -> Result<Early, EarlyError> {
    let seen = input.len().min(MAGIC.len());
    if input[..seen] != MAGIC[..seen] {
        return Ok(Early::None);
    }
    let Some(&[.., a, b, c, d]) = input.first_chunk::<HEADER_LEN>() else {
        return Ok(Early::NeedMore);
    };
    let len = u32::from_be_bytes([a, b, c, d]) as usize;
    if len > MAX_LEN {
        return Err(EarlyError::TooLong(len));
    }
    if input.len() < HEADER_LEN + len {
        return Ok(Early::NeedMore);
    }
    input.advance(HEADER_LEN);
    let json = input.split_to(len);
    Ok(Early::Payload(json::from_slice(&json)?))
}
