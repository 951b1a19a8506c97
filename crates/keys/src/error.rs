//! Why a key or a sealed box was refused.

/// A text that is not a key of the expected kind.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyTextError {
    /// The text starts with something else; holds the prefix that was expected.
    #[error("expected a key that starts with `{0}`")]
    Prefix(&'static str),
    /// The part after the prefix is not 64 hex digits; holds the prefix.
    #[error("expected `{0}` followed by 64 hex digits")]
    Hex(&'static str),
}

/// A sealed box did not open: forged, damaged, or meant for another key.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Shorter than nonce and tag together.
    #[error("sealed box is too short")]
    TooShort,
    /// The authentication tag does not match.
    #[error("sealed box was not made by this peer for this key")]
    Forged,
}
