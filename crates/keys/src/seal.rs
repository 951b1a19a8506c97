//! NaCl boxes (X25519, XSalsa20-Poly1305) with the nonce in front.

use crypto_box::{PublicKey, SalsaBox, SecretKey, aead::AeadInPlace as _};
use rand::RngCore as _;

use crate::{KEY_LEN, OpenError};

/// Length of the nonce in front of a box, in bytes.
pub const NONCE_LEN: usize = 24;
/// How much longer a sealed message is than its plaintext: nonce and tag, in bytes.
pub const SEAL_OVERHEAD: usize = NONCE_LEN + TAG_LEN;

const TAG_LEN: usize = 16;

pub(crate) fn shared(private: &[u8; KEY_LEN], public: &[u8; KEY_LEN]) -> SalsaBox {
    SalsaBox::new(
        &PublicKey::from_bytes(*public),
        &SecretKey::from_bytes(*private),
    )
}

/// ```text
/// byte   0       24          40
///        | nonce | tag (16)  | ciphertext ... |
/// ```
pub(crate) fn seal(shared: &SalsaBox, plain: &[u8]) -> Vec<u8> {
    let mut sealed = vec![0; SEAL_OVERHEAD + plain.len()];
    let (nonce, boxed) = sealed.split_at_mut(NONCE_LEN);
    rand::rng().fill_bytes(nonce);
    let (tag, text) = boxed.split_at_mut(TAG_LEN);
    text.copy_from_slice(plain);
    let made = shared
        .encrypt_in_place_detached((&*nonce).into(), b"", text)
        .unwrap_or_else(|_| unreachable!("XSalsa20-Poly1305 fails only beyond 256 GiB"));
    tag.copy_from_slice(&made);
    sealed
}

pub(crate) fn open(shared: &SalsaBox, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
    let (nonce, boxed) = sealed
        .split_at_checked(NONCE_LEN)
        .ok_or(OpenError::TooShort)?;
    let (tag, text) = boxed.split_at_checked(TAG_LEN).ok_or(OpenError::TooShort)?;
    let mut plain = text.to_vec();
    shared
        .decrypt_in_place_detached(nonce.into(), b"", &mut plain, tag.into())
        .map_err(|_| OpenError::Forged)?;
    Ok(plain)
}
