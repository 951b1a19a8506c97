//! `#[serde(with = "keys::private_text")]`: private keys as text, for state files only.
//!
//! Private keys have no `Serialize` of their own, so that none can slip into a message or a log.

use std::{fmt, marker::PhantomData, str::FromStr};

use serde::{Deserializer, Serializer, de};
use zeroize::Zeroizing;

use crate::{DiscoPrivate, KeyTextError, MachinePrivate, NodePrivate};

/// A private key that may be written to a state file.
pub trait PrivateText: FromStr<Err = KeyTextError> {
    /// Returns `privkey:` + 64 hex digits, wiped when dropped.
    fn private_text(&self) -> Zeroizing<String>;
}

macro_rules! private_text {
    ($($name:ident),*) => {$(
        impl PrivateText for $name {
            fn private_text(&self) -> Zeroizing<String> {
                self.to_text()
            }
        }
    )*};
}
private_text!(MachinePrivate, NodePrivate, DiscoPrivate);

/// Writes the key as text.
///
/// # Errors
///
/// What the serializer reports.
pub fn serialize<K: PrivateText, S: Serializer>(key: &K, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&key.private_text())
}

/// Reads the key from text; the error never quotes it.
///
/// # Errors
///
/// If the text is not `privkey:` + 64 hex digits.
pub fn deserialize<'de, K: PrivateText, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<K, D::Error> {
    struct Visitor<K>(PhantomData<K>);

    impl<K: PrivateText> de::Visitor<'_> for Visitor<K> {
        type Value = K;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("`privkey:` followed by 64 hex digits")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<K, E> {
            text.parse().map_err(E::custom)
        }
    }

    deserializer.deserialize_str(Visitor(PhantomData))
}
