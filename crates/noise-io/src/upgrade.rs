//! The HTTP/1.1 upgrade in front of the handshake (control.md 2.2).

use std::io;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::BytesMut;
use control_proto::noise::{INITIATION_LEN, Initiator, NoiseError};
use keys::{MachinePrivate, MachinePublic};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::{HandshakeError, NoiseStream, handshake};

/// Path of the upgrade, always at the root of the server.
pub const PATH: &str = "/ts2021";
/// Value of the `Upgrade` header, compared exactly.
pub const UPGRADE_PROTOCOL: &str = "tailscale-control-protocol";
/// Header (and query parameter of the WebSocket form) with the initiation in standard base64.
pub const HANDSHAKE_HEADER: &str = "X-Tailscale-Handshake";

/// Longest head of an HTTP response that is read, in bytes.
const MAX_HEAD_LEN: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
/// Longest part of an error body that is shown, in bytes.
const MAX_TEXT_LEN: usize = 200;

/// Why the server did not upgrade.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpgradeError {
    /// The connection failed or ended.
    #[error("connection failed during the upgrade to the Noise protocol")]
    Io(#[from] io::Error),
    /// What came is no HTTP/1 response of bounded size.
    #[error("the server does not answer with HTTP/1.1: is the server URL right?")]
    NotHttp,
    /// Another status than 101; the text is not authenticated.
    #[error("the server answered {PATH} with HTTP status {status}: {text}")]
    Status {
        /// HTTP status.
        status: u16,
        /// What follows the head, cut and made printable.
        text: String,
    },
    /// Status 101, but for another protocol.
    #[error("the server upgraded to another protocol than {UPGRADE_PROTOCOL}")]
    OtherProtocol,
    /// The host contains what cannot stand in a header.
    #[error("the server's host name is not valid in HTTP")]
    Host,
    /// The handshake failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
}

impl From<NoiseError> for UpgradeError {
    fn from(error: NoiseError) -> Self {
        Self::Handshake(error.into())
    }
}

/// Client: upgrades a fresh HTTP/1.1 connection to the Noise channel.
///
/// `host` is the value of the `Host` header (`name` or `name:port`). Bytes behind the head of the
/// response are handed on. Give it a time limit; dropping the future abandons the connection.
///
/// # Errors
///
/// [`UpgradeError`]; texts in it are unauthenticated.
pub async fn upgrade_client<T: AsyncRead + AsyncWrite + Unpin>(
    mut io: T,
    host: &str,
    machine: &MachinePrivate,
    server: &MachinePublic,
    version: u16,
) -> Result<NoiseStream<T>, UpgradeError> {
    if host.is_empty() || !host.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(UpgradeError::Host);
    }
    let (initiator, initiation) = Initiator::new(machine, server, version)?;
    let request = format!(
        "POST {PATH} HTTP/1.1\r\nHost: {host}\r\nUpgrade: {UPGRADE_PROTOCOL}\r\n\
         Connection: upgrade\r\n{HANDSHAKE_HEADER}: {}\r\nContent-Length: 0\r\n\r\n",
        STANDARD.encode(initiation),
    );
    io.write_all(request.as_bytes()).await?;
    io.flush().await?;

    let mut buffered = BytesMut::with_capacity(1024);
    let head_len = loop {
        if io.read_buf(&mut buffered).await? == 0 {
            return Err(UpgradeError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        if let Some(head_len) = parse_head(&buffered)? {
            break head_len;
        }
        if buffered.len() > MAX_HEAD_LEN {
            return Err(UpgradeError::NotHttp);
        }
    };
    let _head = buffered.split_to(head_len);
    Ok(handshake::finish(io, initiator, buffered).await?)
}

/// Returns the length of the response's head once it is whole and says what it must.
fn parse_head(input: &[u8]) -> Result<Option<usize>, UpgradeError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let head_len = match response.parse(input) {
        Ok(httparse::Status::Complete(head_len)) => head_len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(UpgradeError::NotHttp),
    };
    let status = response.code.unwrap_or(0);
    if status != 101 {
        let body = &input[head_len..];
        let text = String::from_utf8_lossy(&body[..body.len().min(MAX_TEXT_LEN)]);
        let text = text
            .trim()
            .chars()
            .map(|c| if c.is_control() { '\u{fffd}' } else { c });
        return Err(UpgradeError::Status {
            status,
            text: text.collect(),
        });
    }
    let upgrade = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("Upgrade"))
        .is_some_and(|header| header.value == UPGRADE_PROTOCOL.as_bytes());
    if upgrade {
        Ok(Some(head_len))
    } else {
        Err(UpgradeError::OtherProtocol)
    }
}

/// Server: reads the initiation out of the value of [`HANDSHAKE_HEADER`]; `None` if it is not one.
#[must_use]
pub fn decode_handshake_header(value: &[u8]) -> Option<[u8; INITIATION_LEN]> {
    STANDARD.decode(value).ok()?.try_into().ok()
}
