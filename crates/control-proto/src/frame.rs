//! Frames of the map stream: a length and one JSON document, compressed or not.
//!
//! ```text
//! byte   0               4          4 + len
//!        | len: u32, LE  | payload  |
//! ```
//!
//! The payload is one zstd frame (no dictionary, with content size) if the client asked for it,
//! plain JSON otherwise. Source: control.md 4.2.

use std::{io::Read as _, sync::LazyLock};

use bytes::{Buf as _, BytesMut};

use crate::{
    json::{self, JsonError},
    tailcfg::{Compress, MapResponse},
};

/// Longest payload a client accepts, in bytes.
pub const MAX_PAYLOAD_LEN: usize = 64 << 20;
/// Longest JSON a client accepts after decompression, in bytes.
pub const MAX_JSON_LEN: usize = json::MAX_LEN;

const LEN_LEN: usize = 4;
/// Level 1: maps of hundreds of peers are written while nodes wait.
const LEVEL: i32 = 1;
/// Largest window a client accepts: 2^27 bytes, what the zstd tools accept by default.
const MAX_WINDOW_LOG: u32 = 27;

/// Why the stream of frames is unusable: close it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Empty, or longer than [`MAX_PAYLOAD_LEN`]; holds the length.
    #[error("map frame with an impossible length of {0} bytes")]
    Length(usize),
    /// Longer than [`MAX_JSON_LEN`] when decompressed.
    #[error("map frame unpacks to more than {MAX_JSON_LEN} bytes")]
    Bomb,
    /// zstd failed.
    #[error("map frame cannot be compressed or decompressed")]
    Zstd(#[source] std::io::Error),
    /// Not the JSON expected.
    #[error("unreadable map frame")]
    Json(#[from] JsonError),
}

/// Writes frames; keeps a compression context, so share one among many sessions.
pub struct Encoder {
    zstd: zstd::bulk::Compressor<'static>,
    json: Vec<u8>,
}

impl Encoder {
    /// Makes a compression context.
    ///
    /// # Errors
    ///
    /// [`FrameError::Zstd`] if there is no memory for it.
    pub fn new() -> Result<Self, FrameError> {
        let zstd = zstd::bulk::Compressor::new(LEVEL).map_err(FrameError::Zstd)?;
        Ok(Self {
            zstd,
            json: Vec::new(),
        })
    }

    /// Returns `response` as one frame with its length.
    ///
    /// # Errors
    ///
    /// [`FrameError`] if it is longer than 4 GiB or zstd fails.
    pub fn encode(
        &mut self,
        response: &MapResponse,
        compress: Compress,
    ) -> Result<Vec<u8>, FrameError> {
        let mut json = std::mem::take(&mut self.json);
        json.clear();
        let frame = serde_json::to_writer(&mut json, response)
            .map_err(|error| FrameError::Json(error.into()))
            .and_then(|()| self.encode_json(&json, compress));
        // One huge first frame must not pin its memory for the server's life.
        json.shrink_to(KEPT_JSON_LEN);
        self.json = json;
        frame
    }

    /// Returns JSON that is already written as one frame with its length.
    ///
    /// # Errors
    ///
    /// [`FrameError`] if it is longer than 4 GiB or zstd fails.
    pub fn encode_json(&mut self, json: &[u8], compress: Compress) -> Result<Vec<u8>, FrameError> {
        let mut frame;
        match compress {
            Compress::None => {
                frame = Vec::with_capacity(LEN_LEN + json.len());
                frame.extend_from_slice(&[0; LEN_LEN]);
                frame.extend_from_slice(json);
            }
            Compress::Zstd => {
                frame = vec![0; LEN_LEN + zstd::zstd_safe::compress_bound(json.len())];
                let written = self
                    .zstd
                    .compress_to_buffer(json, &mut frame[LEN_LEN..])
                    .map_err(FrameError::Zstd)?;
                frame.truncate(LEN_LEN + written);
                frame.shrink_to_fit();
            }
        }
        let len = frame.len() - LEN_LEN;
        let len = u32::try_from(len).map_err(|_| FrameError::Length(len))?;
        frame[..LEN_LEN].copy_from_slice(&len.to_le_bytes());
        Ok(frame)
    }
}

/// How much of the JSON buffer an [`Encoder`] keeps, in bytes.
const KEPT_JSON_LEN: usize = 64 << 10;

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encoder")
    }
}

/// The frame `{"KeepAlive":true}`, always the same bytes: Go clients know it by them.
#[must_use]
pub fn keep_alive(compress: Compress) -> &'static [u8] {
    const JSON: &[u8] = br#"{"KeepAlive":true}"#;
    static PLAIN: LazyLock<Vec<u8>> = LazyLock::new(|| with_len(JSON));
    static ZSTD: LazyLock<Vec<u8>> = LazyLock::new(|| {
        // A zstd frame with one raw block (RFC 8878 3.1.1): magic; single segment, content size in
        // one byte; the size; block header (last, raw, size); the bytes.
        let block = 1 | (JSON.len() as u32) << 3;
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x20, JSON.len() as u8];
        frame.extend_from_slice(&block.to_le_bytes()[..3]);
        frame.extend_from_slice(JSON);
        with_len(&frame)
    });
    match compress {
        Compress::None => &PLAIN,
        Compress::Zstd => &ZSTD,
    }
}

fn with_len(payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u32).to_le_bytes(), payload].concat()
}

/// Splits one payload off the front of `input`; `None` until it is whole.
///
/// # Errors
///
/// [`FrameError::Length`] if the length is 0 or above [`MAX_PAYLOAD_LEN`].
pub fn split(input: &mut BytesMut) -> Result<Option<BytesMut>, FrameError> {
    let Some(len) = input.first_chunk::<LEN_LEN>() else {
        return Ok(None);
    };
    let len = u32::from_le_bytes(*len) as usize;
    if !(1..=MAX_PAYLOAD_LEN).contains(&len) {
        return Err(FrameError::Length(len));
    }
    if input.len() < LEN_LEN + len {
        return Ok(None);
    }
    input.advance(LEN_LEN);
    Ok(Some(input.split_to(len)))
}

/// Reads the JSON document in a payload.
///
/// # Errors
///
/// [`FrameError`] if it does not unpack, unpacks to too much, or is not a map response.
pub fn decode(payload: &[u8], compress: Compress) -> Result<MapResponse, FrameError> {
    match compress {
        Compress::None => Ok(json::from_slice(payload)?),
        Compress::Zstd => Ok(json::from_slice(&unpack(payload)?)?),
    }
}

/// Decompresses step by step: the content size in the frame may be missing or a lie.
fn unpack(payload: &[u8]) -> Result<Vec<u8>, FrameError> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(payload)
        .map_err(FrameError::Zstd)?
        .single_frame();
    decoder
        .window_log_max(MAX_WINDOW_LOG)
        .map_err(FrameError::Zstd)?;
    let mut json = Vec::new();
    decoder
        .take(MAX_JSON_LEN as u64 + 1)
        .read_to_end(&mut json)
        .map_err(FrameError::Zstd)?;
    if json.len() > MAX_JSON_LEN {
        return Err(FrameError::Bomb);
    }
    Ok(json)
}

/// Reads frames off a stream.
///
/// Call [`Decoder::push`], then [`Decoder::next`] until it returns `None`.
#[derive(Debug)]
pub struct Decoder {
    compress: Compress,
    input: BytesMut,
}

impl Decoder {
    /// Starts at a frame's first byte.
    #[must_use]
    pub fn new(compress: Compress) -> Self {
        Self {
            compress,
            input: BytesMut::new(),
        }
    }

    /// Takes bytes that arrived. Holds at most one unfinished frame if `next` is called after each.
    pub fn push(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// Whether the bytes so far end with a whole frame.
    #[must_use]
    pub fn is_at_boundary(&self) -> bool {
        self.input.is_empty()
    }

    /// Returns the next frame that is complete.
    ///
    /// # Errors
    ///
    /// [`FrameError`]; close the stream then.
    #[expect(
        clippy::should_implement_trait,
        reason = "fallible and resumable, not an iterator"
    )]
    pub fn next(&mut self) -> Result<Option<MapResponse>, FrameError> {
        let Some(payload) = split(&mut self.input)? else {
            return Ok(None);
        };
        if self.input.is_empty() {
            // Releases the buffer: streams are idle nearly always.
            self.input = BytesMut::new();
        }
        decode(&payload, self.compress).map(Some)
    }
}
