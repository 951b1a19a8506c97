//! A second, naive implementation of Noise IK, after the Noise specification revision 34: the
//! judge of ours. Its own judge is a published vector (see `noise.rs`).

use blake2::{Blake2s256, Digest as _};
use chacha20poly1305::{
    ChaCha20Poly1305, KeyInit as _,
    aead::{Aead as _, Payload},
};

const PROTOCOL: &[u8] = b"Noise_IK_25519_ChaChaPoly_BLAKE2s";

/// CipherState and SymmetricState of the specification's section 5, with nonce 0 throughout: in IK
/// every handshake key encrypts once.
pub(crate) struct Symmetric {
    chaining_key: [u8; 32],
    pub(crate) hash: [u8; 32],
    key: [u8; 32],
}

impl Symmetric {
    pub(crate) fn new(prologue: &[u8], responder_static: &[u8; 32]) -> Self {
        // 33 bytes: longer than a hash, so hashed.
        let hash = blake2s(&[PROTOCOL]);
        let mut state = Self {
            chaining_key: hash,
            hash,
            key: [0; 32],
        };
        state.mix_hash(prologue);
        state.mix_hash(responder_static);
        state
    }

    pub(crate) fn mix_hash(&mut self, data: &[u8]) {
        self.hash = blake2s(&[&self.hash, data]);
    }

    pub(crate) fn mix_key(&mut self, secret: &[u8; 32]) {
        (self.chaining_key, self.key) = hkdf(&self.chaining_key, secret);
    }

    pub(crate) fn encrypt_and_hash(&mut self, plain: &[u8]) -> Vec<u8> {
        let payload = Payload {
            msg: plain,
            aad: &self.hash,
        };
        let sealed = self.cipher().encrypt(&[0; 12].into(), payload).unwrap();
        self.mix_hash(&sealed);
        sealed
    }

    pub(crate) fn decrypt_and_hash(&mut self, sealed: &[u8]) -> Vec<u8> {
        let payload = Payload {
            msg: sealed,
            aad: &self.hash,
        };
        let plain = self.cipher().decrypt(&[0; 12].into(), payload).unwrap();
        self.mix_hash(sealed);
        plain
    }

    /// Initiator's sending key, then responder's.
    pub(crate) fn split(&self) -> ([u8; 32], [u8; 32]) {
        hkdf(&self.chaining_key, &[])
    }

    fn cipher(&self) -> ChaCha20Poly1305 {
        ChaCha20Poly1305::new(&self.key.into())
    }
}

/// An initiator: `-> e, es, s, ss`, then `<- e, ee, se`.
pub(crate) struct Initiator {
    pub(crate) symmetric: Symmetric,
    pub(crate) private_static: [u8; 32],
    pub(crate) private_ephemeral: [u8; 32],
}

impl Initiator {
    pub(crate) fn write(&mut self, responder_static: &[u8; 32], payload: &[u8]) -> Vec<u8> {
        let ephemeral = public(&self.private_ephemeral);
        self.symmetric.mix_hash(&ephemeral);
        self.symmetric
            .mix_key(&dh(&self.private_ephemeral, responder_static));
        let sealed_static = self
            .symmetric
            .encrypt_and_hash(&public(&self.private_static));
        self.symmetric
            .mix_key(&dh(&self.private_static, responder_static));
        let sealed_payload = self.symmetric.encrypt_and_hash(payload);
        [&ephemeral[..], &sealed_static, &sealed_payload].concat()
    }

    pub(crate) fn read(&mut self, message: &[u8]) -> Vec<u8> {
        let ephemeral: [u8; 32] = message[..32].try_into().unwrap();
        self.symmetric.mix_hash(&ephemeral);
        self.symmetric
            .mix_key(&dh(&self.private_ephemeral, &ephemeral));
        self.symmetric
            .mix_key(&dh(&self.private_static, &ephemeral));
        self.symmetric.decrypt_and_hash(&message[32..])
    }
}

/// A responder, which may answer with any ephemeral key it likes.
pub(crate) struct Responder {
    pub(crate) symmetric: Symmetric,
    initiator_ephemeral: [u8; 32],
    pub(crate) initiator_static: [u8; 32],
}

impl Responder {
    pub(crate) fn read(mut symmetric: Symmetric, private_static: [u8; 32], message: &[u8]) -> Self {
        let initiator_ephemeral: [u8; 32] = message[..32].try_into().unwrap();
        symmetric.mix_hash(&initiator_ephemeral);
        symmetric.mix_key(&dh(&private_static, &initiator_ephemeral));
        let initiator_static = symmetric
            .decrypt_and_hash(&message[32..80])
            .try_into()
            .unwrap();
        symmetric.mix_key(&dh(&private_static, &initiator_static));
        symmetric.decrypt_and_hash(&message[80..]);
        Self {
            symmetric,
            initiator_ephemeral,
            initiator_static,
        }
    }

    pub(crate) fn write(&mut self, private_ephemeral: &[u8; 32], payload: &[u8]) -> Vec<u8> {
        let ephemeral = public(private_ephemeral);
        let ee = dh(private_ephemeral, &self.initiator_ephemeral);
        let se = dh(private_ephemeral, &self.initiator_static);
        self.write_with(&ephemeral, &ee, &se, payload)
    }

    /// Answers with shared secrets of the caller's choice: a forger's tool.
    pub(crate) fn write_with(
        &mut self,
        ephemeral: &[u8; 32],
        ee: &[u8; 32],
        se: &[u8; 32],
        payload: &[u8],
    ) -> Vec<u8> {
        self.symmetric.mix_hash(ephemeral);
        self.symmetric.mix_key(ee);
        self.symmetric.mix_key(se);
        [&ephemeral[..], &self.symmetric.encrypt_and_hash(payload)].concat()
    }
}

/// One transport record with the big-endian nonce of ts2021, header included.
pub(crate) fn seal_record(key: &[u8; 32], number: u64, plain: &[u8]) -> Vec<u8> {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    let sealed = ChaCha20Poly1305::new(&(*key).into())
        .encrypt(&nonce.into(), plain)
        .unwrap();
    let len = u16::try_from(sealed.len()).unwrap();
    [&[4], &len.to_be_bytes()[..], &sealed].concat()
}

pub(crate) fn public(private: &[u8; 32]) -> [u8; 32] {
    x25519_dalek::x25519(*private, x25519_dalek::X25519_BASEPOINT_BYTES)
}

pub(crate) fn dh(private: &[u8; 32], public: &[u8; 32]) -> [u8; 32] {
    x25519_dalek::x25519(*private, *public)
}

fn blake2s(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Blake2s256::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize().into()
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let pad = |with: u8| {
        let mut block = [with; 64];
        block
            .iter_mut()
            .zip(key)
            .for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = blake2s(&[&[&pad(0x36)[..]], parts].concat());
    blake2s(&[&pad(0x5c), &inner])
}

fn hkdf(chaining_key: &[u8; 32], input: &[u8]) -> ([u8; 32], [u8; 32]) {
    let temp = hmac(chaining_key, &[input]);
    let first = hmac(&temp, &[&[1]]);
    let second = hmac(&temp, &[&first, &[2]]);
    (first, second)
}
