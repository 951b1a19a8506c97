//! One HTTP/2 connection inside one Noise channel: every request to the server shares it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use control_proto::capver;
use control_proto::tailcfg::{MapRequest, RegisterRequest, RegisterResponse};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use keys::{MachinePrivate, MachinePublic};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::dial::{self, DIAL_TIMEOUT};
use super::{ControlError, ServerUrl};

/// Longest answer other than the map stream, in bytes (protocol/control.md §3.2).
const MAX_ANSWER: usize = 1 << 20;
/// As much of an error's text as is shown, in bytes.
const MAX_ERROR_TEXT: usize = 200;
/// A server that is gone without a word is noticed after the sum of these two.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection; clones share it, the last one closes it.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    authority: String,
    /// Changes (or closes) when the connection ended.
    ended: watch::Receiver<()>,
    _driver: Arc<Driver>,
}

#[derive(Debug)]
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connection {
    /// Dials the server, upgrades, and proves who we are.
    ///
    /// # Errors
    ///
    /// Any [`ControlError`] of the way there, [`ControlError::Noise`] if `server_key` is not the server's.
    pub(super) async fn open(
        server: &ServerUrl,
        server_key: &MachinePublic,
        machine: &MachinePrivate,
    ) -> Result<Self, ControlError> {
        match tokio::time::timeout(DIAL_TIMEOUT, Self::dial(server, server_key, machine)).await {
            Ok(result) => result,
            Err(_) => Err(ControlError::Timeout {
                server: server.to_string(),
                limit: DIAL_TIMEOUT,
            }),
        }
    }

    async fn dial(
        server: &ServerUrl,
        server_key: &MachinePublic,
        machine: &MachinePrivate,
    ) -> Result<Self, ControlError> {
        let stream = dial::dial(server).await?;
        let channel = noise_io::upgrade_client(
            stream,
            &server.authority(),
            machine,
            server_key,
            capver::CURRENT.0,
        )
        .await
        .map_err(|source| ControlError::Noise {
            server: server.to_string(),
            source: source.into(),
        })?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(channel))
            .await
            .map_err(ControlError::broken)?;
        let (alive, ended) = watch::channel(());
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the coordination server ended");
            }
            drop(alive);
        });
        Ok(Self {
            sender,
            authority: server.authority(),
            ended,
            _driver: Arc::new(Driver(driver)),
        })
    }

    /// Waits until the connection is of no use any more.
    pub(super) async fn closed(&self) {
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }

    /// Sends a register request.
    ///
    /// # Errors
    ///
    /// [`ControlError`]; what the server decides is in the answer.
    pub(super) async fn register(
        &self,
        request: &RegisterRequest,
    ) -> Result<RegisterResponse, ControlError> {
        const NAME: &str = "/machine/register";
        let response = self.post(NAME, request).await?;
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(ControlError::broken)?
            .to_bytes();
        control_proto::json::from_slice(&body).map_err(|source| ControlError::Answer {
            request: NAME,
            source: source.into(),
        })
    }

    /// Opens the map stream and returns its body.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub(super) async fn map(&self, request: &MapRequest) -> Result<Incoming, ControlError> {
        Ok(self.post("/machine/map", request).await?.into_body())
    }

    /// Sends a lite update; its answer says nothing.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub(super) async fn update(&self, request: &MapRequest) -> Result<(), ControlError> {
        let response = self.post("/machine/map", request).await?;
        Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map(drop)
            .map_err(ControlError::broken)
    }

    /// Sends any request to a path; the answer's status is the caller's to judge.
    ///
    /// # Errors
    ///
    /// [`ControlError::Broken`].
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ControlError> {
        // Inside the tunnel the scheme is always https (protocol/control.md §0).
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.authority))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(ControlError::broken)?;
        let mut sender = self.sender.clone();
        sender.ready().await.map_err(ControlError::broken)?;
        sender
            .send_request(request)
            .await
            .map_err(ControlError::broken)
    }

    async fn post<T: Serialize>(
        &self,
        path: &'static str,
        body: &T,
    ) -> Result<Response<Incoming>, ControlError> {
        let body = serde_json::to_vec(body).map_err(|source| ControlError::Answer {
            request: path,
            source: source.into(),
        })?;
        let response = self.send(Method::POST, path, Bytes::from(body)).await?;
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(response);
        }
        let text = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_or_else(|_| Bytes::new(), |body| body.to_bytes());
        let text = String::from_utf8_lossy(&text[..text.len().min(MAX_ERROR_TEXT)]);
        // The text is not ours: keep it from steering a terminal.
        let body = text.trim().replace(char::is_control, " ");
        Err(ControlError::Status {
            request: path,
            status,
            body,
        })
    }
}
