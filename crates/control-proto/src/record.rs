//! Records: the byte stream after the handshake, in sealed frames of at most 4096 bytes.
//!
//! ```text
//! byte   0   1               3                    3 + len
//!        | 4 | len: u16, BE  | ciphertext and tag |
//! ```
//!
//! ChaCha20-Poly1305 without associated data; the nonce is four zero bytes and the record's number,
//! **big-endian** (Noise itself says little-endian). Source: control.md 2.3.

use std::io::IoSlice;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use bytes::{Buf as _, BufMut as _, BytesMut};

/// Longest record with its header, in bytes.
pub const MAX_RECORD_LEN: usize = 4096;
/// Length of type and length, in bytes.
pub const HEADER_LEN: usize = 3;
/// Length of the authentication tag, in bytes.
pub const TAG_LEN: usize = 16;
/// Most plaintext in one record, in bytes.
pub const MAX_PLAIN_LEN: usize = MAX_RECORD_LEN - HEADER_LEN - TAG_LEN;

const RECORD_TYPE: u8 = 4;

/// Why the stream is beyond repair: close it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The frame is not a record; holds its type.
    #[error("unexpected Noise frame of type {0}")]
    Type(u8),
    /// Shorter than a tag or longer than [`MAX_RECORD_LEN`]; holds the length without header.
    #[error("Noise record with an impossible length of {0} bytes")]
    Length(usize),
    /// The tag does not match, or an earlier record already failed.
    #[error("Noise record is forged, damaged or out of order")]
    Forged,
    /// 2^64 - 1 records were sent.
    #[error("Noise channel is used up")]
    UsedUp,
}

/// One direction's key and record number.
struct Direction {
    key: LessSafeKey,
    /// Number of the next record; `None` once the channel is broken or used up.
    next: Option<u64>,
}

impl Direction {
    fn new(key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&CHACHA20_POLY1305, key)
            .unwrap_or_else(|_| unreachable!("the key has the length of the cipher"));
        Self {
            key: LessSafeKey::new(key),
            next: Some(0),
        }
    }

    /// Takes the next nonce; 2^64 - 1 is not a valid number.
    fn nonce(&mut self) -> Result<Nonce, RecordError> {
        let number = self
            .next
            .filter(|number| *number != u64::MAX)
            .ok_or(RecordError::UsedUp)?;
        self.next = Some(number + 1);
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&number.to_be_bytes());
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// Seals what we send.
pub struct Sealer(Direction);

impl Sealer {
    /// Starts at record 0 with one of the handshake's keys.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        Self(Direction::new(key))
    }

    /// Appends `plain` to `out` as records; an empty `plain` makes none.
    ///
    /// # Errors
    ///
    /// [`RecordError::UsedUp`]; nothing more may be sent then.
    pub fn seal(&mut self, plain: &[u8], out: &mut BytesMut) -> Result<(), RecordError> {
        self.seal_vectored(&[IoSlice::new(plain)], out).map(|_| ())
    }

    /// Appends the concatenation of `parts` to `out` as records; returns its length in bytes.
    ///
    /// Small parts share a record.
    ///
    /// # Errors
    ///
    /// [`RecordError::UsedUp`]; nothing more may be sent then.
    pub fn seal_vectored(
        &mut self,
        parts: &[IoSlice<'_>],
        out: &mut BytesMut,
    ) -> Result<usize, RecordError> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        out.reserve(total + total.div_ceil(MAX_PLAIN_LEN) * (HEADER_LEN + TAG_LEN));
        let mut parts = parts.iter();
        let mut part: &[u8] = &[];
        let mut left = total;
        while left > 0 {
            let plain_len = left.min(MAX_PLAIN_LEN);
            left -= plain_len;
            self.seal_record(plain_len, out, |out| {
                let mut missing = plain_len;
                while missing > 0 {
                    if part.is_empty() {
                        // Never runs dry: `left` counts what the parts hold.
                        part = parts.next().map_or(&[], |next| next);
                        continue;
                    }
                    let (now, later) = part.split_at(missing.min(part.len()));
                    out.extend_from_slice(now);
                    missing -= now.len();
                    part = later;
                }
            })?;
        }
        Ok(total)
    }

    /// Seals one record of `plain_len` bytes that `fill` appends, in place.
    fn seal_record(
        &mut self,
        plain_len: usize,
        out: &mut BytesMut,
        fill: impl FnOnce(&mut BytesMut),
    ) -> Result<(), RecordError> {
        let nonce = self.0.nonce()?;
        out.put_u8(RECORD_TYPE);
        // At most 4093: a record is no longer than MAX_RECORD_LEN.
        out.put_u16((plain_len + TAG_LEN) as u16);
        let start = out.len();
        fill(out);
        let tag = self
            .0
            .key
            .seal_in_place_separate_tag(nonce, Aad::empty(), &mut out[start..])
            .map_err(|_| RecordError::UsedUp)?;
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }
}

/// Opens what we receive.
pub struct Opener(Direction);

impl Opener {
    /// Starts at record 0 with one of the handshake's keys.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        Self(Direction::new(key))
    }

    /// Splits one record off the front of `input` and decrypts it in place.
    ///
    /// Returns `None` until `input` holds a whole record. The plaintext may be empty.
    ///
    /// # Errors
    ///
    /// [`RecordError`]; every later call fails too.
    pub fn open(&mut self, input: &mut BytesMut) -> Result<Option<BytesMut>, RecordError> {
        let opened = self.try_open(input);
        if opened.is_err() {
            self.0.next = None;
        }
        opened
    }

    fn try_open(&mut self, input: &mut BytesMut) -> Result<Option<BytesMut>, RecordError> {
        if self.0.next.is_none() {
            return Err(RecordError::Forged);
        }
        let Some(len) = record_len(input)? else {
            return Ok(None);
        };
        if input.len() < len {
            return Ok(None);
        }
        let mut record = input.split_to(len);
        record.advance(HEADER_LEN);
        let nonce = self.0.nonce()?;
        let plain = self
            .0
            .key
            .open_in_place(nonce, Aad::empty(), &mut record)
            .map_err(|_| RecordError::Forged)?;
        let plain_len = plain.len();
        record.truncate(plain_len);
        Ok(Some(record))
    }
}

/// How long the record at the front of `input` is with its header; `None` until that can be told.
///
/// # Errors
///
/// [`RecordError`] if it is no record or of impossible length.
pub fn record_len(input: &[u8]) -> Result<Option<usize>, RecordError> {
    match *input {
        [] => Ok(None),
        [RECORD_TYPE] | [RECORD_TYPE, _] => Ok(None),
        [RECORD_TYPE, high, low, ..] => {
            let body = usize::from(u16::from_be_bytes([high, low]));
            if (TAG_LEN..=MAX_RECORD_LEN - HEADER_LEN).contains(&body) {
                Ok(Some(HEADER_LEN + body))
            } else {
                Err(RecordError::Length(body))
            }
        }
        [other, ..] => Err(RecordError::Type(other)),
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer")
            .field("next", &self.0.next)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opener")
            .field("next", &self.0.next)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
