//! Node keys: the WireGuard and DERP identity of a node.

use crate::{OpenError, seal, secret::private_key, text};

text::public_key! {
    /// Public node key (`nodekey:`).
    NodePublic, "nodekey:", text::short_base64
}
text::point!(NodePublic);

private_key! {
    /// Private node key; wiped from memory when dropped.
    NodePrivate, NodePublic
}

impl NodePrivate {
    /// Seals `plain` for `peer` into a NaCl box with a random 24-byte nonce in front.
    ///
    /// Used once per DERP connection; see [`crate::DiscoShared`] for many boxes to one peer.
    #[must_use]
    pub fn seal_to(&self, peer: &NodePublic, plain: &[u8]) -> Vec<u8> {
        seal::seal(&seal::shared(self.as_bytes(), peer.as_bytes()), plain)
    }

    /// Opens what the owner of `peer` sealed for us: nonce, then box.
    ///
    /// # Errors
    ///
    /// [`OpenError`] if `sealed` is short or was not made by `peer` for this key.
    pub fn open_from(&self, peer: &NodePublic, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        seal::open(&seal::shared(self.as_bytes(), peer.as_bytes()), sealed)
    }
}
