//! The command line's side of the local API: [`Client`].

use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{ErrorBody, HOST, Notify, PREFIX};

/// Longest answer that is read, in bytes: the status of some ten thousand peers.
const MAX_ANSWER: usize = 64 << 20;
/// Longest line of the notification stream, in bytes.
const MAX_LINE: usize = 1 << 20;

/// A daemon on this host, by its socket. Every request opens a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// Why the daemon did not do what it was asked. The message names cause and fix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no tailrace daemon answers on {socket}: start one with `tailrace daemon --state-dir DIR`, \
         or name its socket with --socket"
    )]
    NoDaemon {
        /// Where we asked.
        socket: PathBuf,
    },
    /// The socket may not be used.
    #[error("cannot connect to {socket}: {source}")]
    Connect {
        /// Where we asked.
        socket: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The daemon went away, or speaks something else.
    #[error("the daemon's answer broke off ({0}): see its log, it may have been stopped")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The daemon refused.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// The daemon's own words.
        message: String,
    },
}

impl ClientError {
    fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Broken(error.into())
    }
}

impl Client {
    /// Names a daemon; nothing is opened yet.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Sends a request and reads the JSON answer.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let answer = self.request(method, path, body).await?;
        serde_json::from_slice(&answer).map_err(ClientError::broken)
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Bytes, ClientError> {
        let response = self.send(method, path, body).await?;
        let status = response.status();
        let body = whole(response).await?;
        if status.is_success() {
            return Ok(body);
        }
        Err(refused(status, &body))
    }

    /// Opens the notification stream; its first line is the present state.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn watch(&self) -> Result<Lines<Notify>, ClientError> {
        self.lines("watch-ipn-bus?mask=2").await
    }

    /// Opens a stream of lines, each an object of JSON.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn lines<T: DeserializeOwned>(&self, path: &str) -> Result<Lines<T>, ClientError> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(Lines {
                body: response.into_body(),
                buffer: BytesMut::new(),
                kind: PhantomData,
            });
        }
        Err(refused(status, &whole(response).await?))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| {
            let socket = self.socket.clone();
            match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    ClientError::NoDaemon { socket }
                }
                _ => ClientError::Connect { socket, source },
            }
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(ClientError::broken)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(format!("{PREFIX}{path}"))
            .header(header::HOST, HOST)
            .body(Full::new(body))
            .map_err(ClientError::broken)?;
        sender
            .send_request(request)
            .await
            .map_err(ClientError::broken)
    }
}

async fn whole(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect();
    Ok(body.await.map_err(ClientError::Broken)?.to_bytes())
}

fn refused(status: StatusCode, body: &[u8]) -> ClientError {
    let message = match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => body.error,
        Err(_) => String::from_utf8_lossy(body).trim().to_owned(),
    };
    ClientError::Refused { status, message }
}

/// What the daemon tells as it happens, one JSON object a line.
#[derive(Debug)]
pub struct Lines<T> {
    body: Incoming,
    buffer: BytesMut,
    kind: PhantomData<T>,
}

impl<T: DeserializeOwned> Lines<T> {
    /// Waits for the next line; `None` when the daemon ends. Safe to cancel.
    ///
    /// # Errors
    ///
    /// [`ClientError::Broken`].
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(ClientError::broken);
            }
            if self.buffer.len() > MAX_LINE {
                return Err(ClientError::broken("a line is too long"));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame.map_err(ClientError::broken)?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}
