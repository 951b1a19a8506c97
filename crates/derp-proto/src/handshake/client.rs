//! The client's half: reads ServerKey, sends ClientInfo, reads ServerInfo.

use bytes::BufMut;
use keys::{NodePrivate, NodePublic};

use super::{ClientInfo, HandshakeError, Progress, ServerInfo};
use crate::frame::{BadFrame, Frame, kind, split_frame};
use crate::{KEY_LEN, MAX_BODY_LEN};

/// The client's half of the handshake.
///
/// Give it what the server sent and write what it appends to `out`, until it is done.
#[derive(Debug)]
pub struct ClientHandshake {
    key: NodePrivate,
    info: ClientInfo,
    server: Option<NodePublic>,
}

impl ClientHandshake {
    /// A handshake that waits for the server's key.
    #[must_use]
    pub fn new(key: NodePrivate, info: ClientInfo) -> Self {
        Self {
            key,
            info,
            server: None,
        }
    }

    /// A fast start: `server` was learned from the meta certificate ([`crate::meta`]), and ClientInfo
    /// goes to `out` at once, to be written right behind the HTTP request.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::LowOrderKey`], [`HandshakeError::Json`].
    pub fn fast_start(
        key: NodePrivate,
        info: ClientInfo,
        server: NodePublic,
        out: &mut impl BufMut,
    ) -> Result<Self, HandshakeError> {
        let mut handshake = Self::new(key, info);
        handshake.send_info(server, out)?;
        Ok(handshake)
    }

    /// Takes `input`, all bytes received and not yet consumed; appends what is to be sent to `out`.
    ///
    /// # Errors
    ///
    /// [`HandshakeError`]; close the connection.
    pub fn handle_input(
        &mut self,
        input: &[u8],
        out: &mut impl BufMut,
    ) -> Result<Progress<ServerInfo>, HandshakeError> {
        let mut consumed = 0;
        while let Some(raw) = split_frame(&input[consumed..])? {
            consumed += raw.wire_len();
            // The server greets a fast start too, long after the client knows its key.
            if raw.kind == kind::SERVER_KEY || self.server.is_none() {
                let Frame::ServerKey(server) = Frame::parse(raw)? else {
                    return Err(unexpected(raw.kind, kind::SERVER_KEY));
                };
                if self.server.is_none() {
                    self.send_info(server, out)?;
                }
                continue;
            }
            match Frame::parse(raw)? {
                Frame::ServerInfo(sealed) => {
                    let result = self.open_info(sealed)?;
                    return Ok(Progress::Done { consumed, result });
                }
                Frame::KeepAlive | Frame::Health(_) | Frame::Unknown(_) => {}
                _ => return Err(unexpected(raw.kind, kind::SERVER_INFO)),
            }
        }
        Ok(Progress::NeedMore { consumed })
    }

    fn send_info(
        &mut self,
        server: NodePublic,
        out: &mut impl BufMut,
    ) -> Result<(), HandshakeError> {
        if server.is_low_order() {
            return Err(HandshakeError::LowOrderKey);
        }
        let json = serde_json::to_vec(&self.info).map_err(HandshakeError::Json)?;
        let sealed = self.key.seal_to(&server, &json);
        if KEY_LEN + sealed.len() > MAX_BODY_LEN {
            return Err(HandshakeError::InfoTooLong(sealed.len()));
        }
        Frame::ClientInfo {
            key: self.key.public(),
            sealed: &sealed,
        }
        .encode(out);
        self.server = Some(server);
        Ok(())
    }

    fn open_info(&self, sealed: &[u8]) -> Result<ServerInfo, HandshakeError> {
        let server = self.server.ok_or(BadFrame::Magic)?;
        let json = self
            .key
            .open_from(&server, sealed)
            .map_err(|_| HandshakeError::Box(server))?;
        serde_json::from_slice(&json).map_err(HandshakeError::Json)
    }
}

fn unexpected(found: u8, wanted: u8) -> HandshakeError {
    HandshakeError::Unexpected { found, wanted }
}
