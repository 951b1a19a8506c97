//! The server's half: sends ServerKey, reads ClientInfo, sends ServerInfo once it admits the client.

use bytes::BufMut;
use keys::{NodePrivate, NodePublic};

use super::{ClientInfo, HandshakeError, Progress, ServerInfo};
use crate::frame::{Frame, kind, split_frame};
use crate::{HEADER_LEN, MAX_CLIENT_INFO_LEN};

/// The server's half of the handshake.
///
/// Admission sits between its two steps: [`ServerHandshake::handle_input`] tells who the client is,
/// [`ServerHandshake::accept`] lets it in.
#[derive(Debug)]
pub struct ServerHandshake<'a> {
    key: &'a NodePrivate,
}

impl<'a> ServerHandshake<'a> {
    /// Greets the client: appends ServerKey to `out`.
    pub fn new(key: &'a NodePrivate, out: &mut impl BufMut) -> Self {
        Frame::ServerKey(key.public()).encode(out);
        Self { key }
    }

    /// Takes `input`, all bytes received and not yet consumed.
    ///
    /// Done means that the client has proved to hold the private key of the [`NodePublic`].
    ///
    /// # Errors
    ///
    /// [`HandshakeError`], as soon as a header announces more than [`MAX_CLIENT_INFO_LEN`] bytes;
    /// close the connection.
    pub fn handle_input(
        &mut self,
        input: &[u8],
    ) -> Result<Progress<(NodePublic, ClientInfo)>, HandshakeError> {
        if let Some((&found, _)) = input.split_first()
            && found != kind::CLIENT_INFO
        {
            return Err(HandshakeError::Unexpected {
                found,
                wanted: kind::CLIENT_INFO,
            });
        }
        if let Some([_, a, b, c, d]) = input.first_chunk::<HEADER_LEN>() {
            let len = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            if len > MAX_CLIENT_INFO_LEN {
                return Err(HandshakeError::InfoTooLong(len));
            }
        }
        let Some(raw) = split_frame(input)? else {
            return Ok(Progress::NeedMore { consumed: 0 });
        };
        let Frame::ClientInfo { key, sealed } = Frame::parse(raw)? else {
            return Err(HandshakeError::Unexpected {
                found: raw.kind,
                wanted: kind::CLIENT_INFO,
            });
        };
        if key.is_low_order() {
            return Err(HandshakeError::LowOrderKey);
        }
        let json = self
            .key
            .open_from(&key, sealed)
            .map_err(|_| HandshakeError::Box(key))?;
        let info = serde_json::from_slice(&json).map_err(HandshakeError::Json)?;
        Ok(Progress::Done {
            consumed: raw.wire_len(),
            result: (key, info),
        })
    }

    /// Lets the client in: appends ServerInfo to `out`.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::Json`].
    pub fn accept(
        self,
        client: &NodePublic,
        info: &ServerInfo,
        out: &mut impl BufMut,
    ) -> Result<(), HandshakeError> {
        let json = serde_json::to_vec(info).map_err(HandshakeError::Json)?;
        Frame::ServerInfo(&self.key.seal_to(client, &json)).encode(out);
        Ok(())
    }
}
