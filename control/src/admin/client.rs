//! The other end of the admin socket.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::api::ErrorJson;
use super::api::policy::DiagnosticsJson;
use crate::policy_file::ReadError;
use crate::state;

/// A running server, through its socket.
#[derive(Debug)]
pub(super) struct Client {
    path: PathBuf,
}

/// What the command line prints when it fails.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no server.
    #[error(
        "no server answers on {path}: start it with `tailrace-control serve`, or give its \
         --state-dir ({source})"
    )]
    NoServer {
        /// Of the socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Not our socket.
    #[error("the admin socket {0} belongs to another user: run this as the server's user or root")]
    NotPermitted(PathBuf),
    /// The connection failed.
    #[error("the server broke off: {0}")]
    Http(#[from] hyper::Error),
    /// The server says no.
    #[error("{0}")]
    Refused(String),
    /// The server says what is wrong with the policy.
    #[error("{}", .0.error)]
    Policy(Box<Refusal>),
    /// The policy file.
    #[error(transparent)]
    File(#[from] ReadError),
    /// Another version, perhaps.
    #[error("the server's answer makes no sense: {0}; is it of another version?")]
    Answer(#[from] serde_json::Error),
    /// The path cannot be in a URL.
    #[error("that name cannot be used: {0}")]
    Name(#[from] http::Error),
}

/// All that is wrong with a policy.
#[derive(Debug)]
pub struct Refusal {
    /// In one line.
    pub(super) error: String,
    pub(super) diagnostics: DiagnosticsJson,
}

impl ClientError {
    /// The places in the policy that are wrong, marked, for people.
    #[must_use]
    pub fn excerpts(&self) -> Option<&str> {
        match self {
            Self::Policy(refusal) => Some(&refusal.diagnostics.excerpts),
            _ => None,
        }
    }
}

impl Client {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self {
            path: state::socket(state_dir),
        }
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    pub(super) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(Method::DELETE, path, Bytes::new()).await
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.send(Method::POST, path, serde_json::to_vec(body)?.into())
            .await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let socket = UnixStream::connect(&self.path).await.map_err(|source| {
            if source.kind() == io::ErrorKind::PermissionDenied {
                ClientError::NotPermitted(self.path.clone())
            } else {
                ClientError::NoServer {
                    path: self.path.clone(),
                    source,
                }
            }
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "tailrace-control")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        driver.abort();
        if status.is_success() {
            return Ok(serde_json::from_slice(&body)?);
        }
        Err(match serde_json::from_slice::<ErrorJson>(&body) {
            Ok(ErrorJson {
                error,
                diagnostics: Some(diagnostics),
            }) => ClientError::Policy(Box::new(Refusal { error, diagnostics })),
            Ok(refusal) => ClientError::Refused(refusal.error),
            Err(_) => ClientError::Refused(format!("{status}: {}", String::from_utf8_lossy(&body))),
        })
    }
}

/// One segment of a path: what is not plain is percent-encoded.
pub(super) fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
