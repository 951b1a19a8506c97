//! Disco keys: path discovery between nodes; new in every process.

use crate::{OpenError, seal, secret::private_key, text};

text::public_key! {
    /// Public disco key (`discokey:`).
    DiscoPublic, "discokey:", text::short_hex
}
text::point!(DiscoPublic);

private_key! {
    /// Private disco key; lives and dies with the process.
    DiscoPrivate, DiscoPublic
}

impl DiscoPrivate {
    /// Computes the secret shared with `peer`; keep it, one costs a curve multiplication.
    #[must_use]
    pub fn shared(&self, peer: &DiscoPublic) -> DiscoShared {
        DiscoShared(seal::shared(self.as_bytes(), peer.as_bytes()))
    }
}

/// The precomputed secret of two disco keys.
pub struct DiscoShared(crypto_box::SalsaBox);

impl DiscoShared {
    /// Seals `plain`: random 24-byte nonce, then XSalsa20-Poly1305 box.
    #[must_use]
    pub fn seal(&self, plain: &[u8]) -> Vec<u8> {
        seal::seal(&self.0, plain)
    }

    /// Opens nonce and box.
    ///
    /// # Errors
    ///
    /// [`OpenError`] if `sealed` is short or was not made with this shared secret.
    pub fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        seal::open(&self.0, sealed)
    }
}

impl std::fmt::Debug for DiscoShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DiscoShared(redacted)")
    }
}
