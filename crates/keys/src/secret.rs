//! The private half shared by all roles: a clamped X25519 scalar that never prints.

use rand::RngCore as _;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{KEY_LEN, KeyTextError, text};

/// What the text form of every private key starts with, whatever its role.
pub(crate) const PRIVATE_PREFIX: &str = "privkey:";

/// A clamped X25519 scalar.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct Secret([u8; KEY_LEN]);

impl Secret {
    /// Draws a fresh key from the operating system's generator.
    pub(crate) fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        rand::rng().fill_bytes(bytes.as_mut());
        Self::from_bytes(*bytes)
    }

    /// Clamps `bytes` as RFC 7748 section 5 demands.
    pub(crate) fn from_bytes(mut bytes: [u8; KEY_LEN]) -> Self {
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;
        let secret = Self(bytes);
        bytes.zeroize();
        secret
    }

    pub(crate) fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    pub(crate) fn public(&self) -> [u8; KEY_LEN] {
        PublicKey::from(&StaticSecret::from(self.0)).to_bytes()
    }

    pub(crate) fn to_text(&self) -> Zeroizing<String> {
        let digits = Zeroizing::new(hex::encode(self.0));
        // Reserved in full: growing would leave a copy of the key behind in freed memory.
        let mut text = Zeroizing::new(String::with_capacity(PRIVATE_PREFIX.len() + 2 * KEY_LEN));
        text.push_str(PRIVATE_PREFIX);
        text.push_str(&digits);
        text
    }

    pub(crate) fn parse(text: &str) -> Result<Self, KeyTextError> {
        text::parse(text, PRIVATE_PREFIX).map(Self::from_bytes)
    }
}

/// Whether X25519 with this point gives all zeros for every clamped scalar (RFC 7748 section 6.1).
///
/// Clamped scalars are multiples of the cofactor, so one probe with any of them tells.
pub(crate) fn is_low_order(point: &[u8; KEY_LEN]) -> bool {
    x25519_dalek::x25519([0x40; KEY_LEN], *point) == [0; KEY_LEN]
}

/// Declares the private key type of one role.
macro_rules! private_key {
    ($(#[$doc:meta])* $name:ident, $public:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name($crate::secret::Secret);

        impl $name {
            /// Draws a fresh key from a generator seeded by the operating system.
            #[must_use]
            pub fn generate() -> Self {
                Self($crate::secret::Secret::generate())
            }

            /// Takes 32 raw bytes and clamps them (RFC 7748 section 5).
            #[must_use]
            pub fn from_bytes(bytes: [u8; $crate::KEY_LEN]) -> Self {
                Self($crate::secret::Secret::from_bytes(bytes))
            }

            /// Returns the clamped scalar: handle with care.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; $crate::KEY_LEN] {
                self.0.as_bytes()
            }

            /// Computes the public half.
            #[must_use]
            pub fn public(&self) -> $public {
                $public::from_bytes(self.0.public())
            }

            /// Returns `privkey:` + 64 hex digits, wiped when dropped.
            #[must_use]
            pub fn to_text(&self) -> zeroize::Zeroizing<String> {
                self.0.to_text()
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($name), "(redacted)"))
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::KeyTextError;

            /// Reads `privkey:` + 64 hex digits.
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $crate::secret::Secret::parse(text).map(Self)
            }
        }
    };
}
pub(crate) use private_key;
