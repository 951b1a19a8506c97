//! The key by which servers of one region know each other.

use std::fmt;
use std::str::FromStr;

/// A mesh key: 32 bytes, shared by the servers of a region.
#[derive(Clone)]
pub struct MeshKey([u8; 32]);

/// A text that is no mesh key.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a mesh key is 64 hex digits")]
pub struct MeshKeyError;

impl MeshKey {
    /// Whether `offered` (hex, as in ClientInfo) is this key; takes the same time for any key.
    pub(crate) fn matches(&self, offered: &str) -> bool {
        let Ok(offered) = offered.parse::<Self>() else {
            return false;
        };
        let difference = std::iter::zip(self.0, offered.0).fold(0, |acc, (a, b)| acc | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

impl FromStr for MeshKey {
    type Err = MeshKeyError;

    fn from_str(text: &str) -> Result<Self, MeshKeyError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.trim(), &mut bytes).map_err(|_| MeshKeyError)?;
        Ok(Self(bytes))
    }
}

impl fmt::Debug for MeshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MeshKey(redacted)")
    }
}
