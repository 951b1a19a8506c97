//! The text form shared by all keys: prefix and 64 lower-case hex digits.

use crate::{KEY_LEN, KeyTextError};

/// Reads `prefix` + 64 hex digits, upper or lower case.
pub(crate) fn parse(text: &str, prefix: &'static str) -> Result<[u8; KEY_LEN], KeyTextError> {
    let digits = text
        .strip_prefix(prefix)
        .ok_or(KeyTextError::Prefix(prefix))?;
    let mut bytes = [0; KEY_LEN];
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| KeyTextError::Hex(prefix))?;
    Ok(bytes)
}

/// Declares a public key type: 32 bytes with a text prefix of their own.
macro_rules! public_key {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $short:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name([u8; $crate::KEY_LEN]);

        impl $name {
            /// What the text form starts with.
            pub const PREFIX: &'static str = $prefix;

            /// Takes the raw 32 bytes; every value is accepted.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; $crate::KEY_LEN]) -> Self {
                Self(bytes)
            }

            /// Returns the raw 32 bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $crate::KEY_LEN] {
                &self.0
            }

            /// Whether this is the zero key, which stands for "none".
            #[must_use]
            pub fn is_zero(&self) -> bool {
                self.0 == [0; $crate::KEY_LEN]
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str($prefix)?;
                for byte in &self.0 {
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }

        impl std::fmt::Debug for $name {
            /// The short form people see in logs.
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let short: fn(&[u8; $crate::KEY_LEN]) -> String = $short;
                f.write_str(&short(&self.0))
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::KeyTextError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $crate::text::parse(text, $prefix).map(Self)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut text = [0; $prefix.len() + 2 * $crate::KEY_LEN];
                let (prefix, digits) = text.split_at_mut($prefix.len());
                prefix.copy_from_slice($prefix.as_bytes());
                hex::encode_to_slice(self.0, digits).map_err(serde::ser::Error::custom)?;
                serializer
                    .serialize_str(str::from_utf8(&text).map_err(serde::ser::Error::custom)?)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            /// Accepts the text form; null is the zero key, as in Go.
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;

                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str(concat!("`", $prefix, "` followed by 64 hex digits"))
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }

                    fn visit_unit<E: serde::de::Error>(self) -> Result<$name, E> {
                        Ok($name::default())
                    }
                }

                // `any`, not `str`: only so can null be seen.
                deserializer.deserialize_any(Visitor)
            }
        }
    };
}
pub(crate) use public_key;

/// Like [`public_key`], for X25519 points of a lasting identity.
macro_rules! point {
    ($name:ident) => {
        impl $name {
            /// Whether this point has low order: a shared secret with it is all zeros whatever the
            /// other key is, so that anybody could "prove" to own it.
            #[must_use]
            pub fn is_low_order(&self) -> bool {
                crate::secret::is_low_order(&self.0)
            }
        }
    };
}
pub(crate) use point;

/// `[` + first five base64 characters + `]`: the short form of node and machine keys.
pub(crate) fn short_base64(bytes: &[u8; KEY_LEN]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let digits = (0..5).map(|i| char::from(ALPHABET[(bits >> (26 - 6 * i)) as usize & 63]));
    std::iter::once('[')
        .chain(digits)
        .chain(std::iter::once(']'))
        .collect()
}

/// `d:` + first sixteen hex digits: the short form of disco keys.
pub(crate) fn short_hex(bytes: &[u8; KEY_LEN]) -> String {
    format!("d:{}", hex::encode(&bytes[..8]))
}
