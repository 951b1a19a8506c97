//! JSON as Go's `encoding/json` reads it: names in any case, null for any field.
//!
//! Written JSON needs no help: serde_json writes what the types say.

mod adapter;

use serde::{Serialize, de::DeserializeOwned};

/// Largest document that is looked at, in bytes; callers put tighter bounds on what they accept.
pub const MAX_LEN: usize = 128 << 20;

/// A document that is not what it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// Longer than [`MAX_LEN`].
    #[error("JSON of {0} bytes is too long")]
    TooLong(usize),
    /// Not JSON, nested deeper than 128 levels, or a field of the wrong type.
    #[error("unexpected JSON")]
    Syntax(#[from] serde_json::Error),
}

/// Decodes one document.
///
/// - Field names match in any ASCII case; unknown ones are skipped. A name that comes twice is an
///   error (Go takes the last one, no server sends that).
/// - Null is the default of a field, except where its type ([`Option`], [`crate::Presence`],
///   [`serde_json::Value`]) can tell null itself.
///
/// # Errors
///
/// [`JsonError`] as described there.
pub fn from_slice<T: DeserializeOwned>(json: &[u8]) -> Result<T, JsonError> {
    if json.len() > MAX_LEN {
        return Err(JsonError::TooLong(json.len()));
    }
    let mut input = serde_json::Deserializer::from_slice(json);
    let value = T::deserialize(adapter::GoLike(&mut input))?;
    input.end()?;
    Ok(value)
}

/// Encodes one document.
///
/// # Errors
///
/// None for the types of this crate; [`JsonError::Syntax`] for maps whose keys are not texts.
pub fn to_vec<T: Serialize>(value: &T) -> Result<Vec<u8>, JsonError> {
    Ok(serde_json::to_vec(value)?)
}
