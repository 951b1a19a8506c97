//! The daemon's side of the local API: [`Server`].

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::sync::watch;

use super::debug;
use super::query::Query;
use super::slots::Slots;
use super::{ErrorBody, NetcheckResult, Notify, PREFIX, StartOptions, ping, sample, status, whois};
use crate::engine::{Handle, Notice, Refusal};
use crate::error_text::error_text;
use crate::metrics;

/// Longest request body, in bytes.
const MAX_REQUEST: usize = 1 << 20;
/// How long a client may take to send its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

type Body = BoxBody<Bytes, Infallible>;

/// A bound socket; its file goes away with it.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    file: SocketFile,
}

/// The socket's place in the file system; removed on drop.
#[derive(Debug)]
struct SocketFile(PathBuf);

/// Why the socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon answers there.
    #[error(
        "another daemon answers on {0}: stop it, or give this one its own --device (or --socket)"
    )]
    InUse(PathBuf),
    /// Something else lies there.
    #[error("{0} is there and is not a socket: move it away, or name another place with --socket")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot listen on {path}: {source}; name another place with --socket")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}

impl Server {
    /// Binds the socket, replacing one that a killed daemon left behind.
    ///
    /// # Errors
    ///
    /// Any [`BindError`].
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let io = |source| BindError::Io {
            path: path.to_owned(),
            source,
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(io)?;
        }
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
            Ok(found) if !found.file_type().is_socket() => {
                return Err(BindError::NotASocket(path.to_owned()));
            }
            Ok(_) if has_listener(path).map_err(io)? => {
                return Err(BindError::InUse(path.to_owned()));
            }
            Ok(_) => std::fs::remove_file(path).map_err(io)?,
        }
        let listener = UnixListener::bind(path).map_err(io)?;
        listener.set_nonblocking(true).map_err(io)?;
        // Everybody may ask; who may change things is decided by who is asking.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(io)?;
        Ok(Self {
            listener,
            file: SocketFile(path.to_owned()),
        })
    }

    /// Serves until dropped. `writers` are the user ids that may change things beside the operator.
    pub async fn serve(self, engine: Handle, writers: BTreeSet<u32>) {
        let Self {
            listener,
            file: _file,
        } = self;
        let listener = match tokio::net::UnixListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "the local API is not served");
                return;
            }
        };
        let slots = Slots::new(writers);
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors: give the others time to close theirs.
                    tracing::warn!(%error, "cannot accept on the local API socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let uid = match stream.peer_cred() {
                Ok(peer) => peer.uid(),
                Err(error) => {
                    tracing::debug!(%error, "local API connection of an unknown user");
                    continue;
                }
            };
            let Some(slot) = slots.take(uid) else {
                tracing::debug!(uid, "local API connection refused: this user has too many");
                continue;
            };
            let caller = Caller {
                uid,
                is_writer: slots.is_writer(uid),
            };
            let engine = engine.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let engine = engine.clone();
                    async move { Ok::<_, Infallible>(answer(request, &engine, caller).await) }
                });
                let served = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                if let Err(error) = served {
                    tracing::debug!(%error, "local API connection ended");
                }
                drop(slot);
            });
        }
    }
}

/// Whether a process listens on the socket; never waits for it.
fn has_listener(path: &Path) -> io::Result<bool> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(true),
        // Its queue is full.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        Err(error) => Err(error),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(%error, path = %self.0.display(), "cannot remove the socket");
        }
    }
}

/// Who is asking, as the kernel says.
#[derive(Clone, Copy, Debug)]
struct Caller {
    uid: u32,
    is_writer: bool,
}

impl Caller {
    async fn check_write(self, engine: &Handle) -> Result<(), Failure> {
        if self.is_writer {
            return Ok(());
        }
        let operator = engine.snapshot().await?.prefs.operator_user;
        match nix::unistd::User::from_name(&operator) {
            Ok(Some(user)) if !operator.is_empty() && user.uid.as_raw() == self.uid => Ok(()),
            _ => Err(Failure {
                status: StatusCode::FORBIDDEN,
                message: format!(
                    "access denied: user {} may not change this node; use sudo, or once as root: \
                     tailrace set --operator=USER",
                    self.uid
                ),
            }),
        }
    }
}

/// An answer that is not a success.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    message: String,
}

impl Failure {
    pub(super) fn bad_request(message: impl ToString) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            message: message.to_string(),
        }
    }

    fn not_found(message: impl ToString) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            message: message.to_string(),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let status = match &refusal {
            Refusal::Prefs(_) | Refusal::NoServer => StatusCode::BAD_REQUEST,
            Refusal::UnknownPeer(_) => StatusCode::NOT_FOUND,
            Refusal::CutShort => StatusCode::CONFLICT,
            Refusal::Busy | Refusal::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Server(_) => StatusCode::BAD_GATEWAY,
            Refusal::State(_) | Refusal::Net(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self {
            status,
            message: error_text(&refusal),
        }
    }
}

async fn answer(request: Request<Incoming>, engine: &Handle, caller: Caller) -> Response<Body> {
    match route(request, engine, caller).await {
        Ok(response) => response,
        Err(failure) => {
            let mut response = json(&ErrorBody {
                error: failure.message,
            });
            *response.status_mut() = failure.status;
            response
        }
    }
}

async fn route(
    request: Request<Incoming>,
    engine: &Handle,
    caller: Caller,
) -> Result<Response<Body>, Failure> {
    let Some(path) = request.uri().path().strip_prefix(PREFIX).map(str::to_owned) else {
        return Err(Failure::not_found("the local API is below /localapi/v0/"));
    };
    let query = Query::parse(request.uri().query().unwrap_or_default());
    match (path.as_str(), request.method()) {
        ("status", &Method::GET) => {
            let with_peers = query.get("peers") != Some("false");
            Ok(json(&status(&engine.snapshot().await?, with_peers)))
        }
        ("prefs", &Method::GET) => Ok(json(&engine.snapshot().await?.prefs)),
        ("prefs", &Method::PATCH) => {
            caller.check_write(engine).await?;
            let masked = body(request).await?;
            Ok(json(&engine.edit_prefs(masked).await?))
        }
        ("start", &Method::POST) => {
            caller.check_write(engine).await?;
            let options: StartOptions = body(request).await?;
            engine.start(options).await?;
            Ok(no_content())
        }
        ("login-interactive", &Method::POST) => {
            caller.check_write(engine).await?;
            engine.login_interactive().await?;
            Ok(no_content())
        }
        ("logout", &Method::POST) => {
            caller.check_write(engine).await?;
            engine.logout().await?;
            Ok(no_content())
        }
        ("ping", &Method::POST) => Ok(json(&ping::ping(&query, engine).await?)),
        ("netcheck", &Method::GET) => {
            let check = engine.netcheck().await?;
            Ok(json(&NetcheckResult::from(&check)))
        }
        ("debug-endpoint", &Method::POST) => {
            caller.check_write(engine).await?;
            set_endpoint(&query, engine).await?;
            Ok(no_content())
        }
        ("debug-drops", &Method::GET) => {
            // They tell who talks to whom.
            caller.check_write(engine).await?;
            let lines = debug::drops(engine).await?;
            let mut response = Response::new(BodyExt::boxed(StreamBody::new(Box::pin(lines))));
            set_json(&mut response);
            Ok(response)
        }
        ("debug-rules", &Method::GET) => Ok(json(&debug::rules(engine).await?)),
        ("whois", &Method::GET) => {
            let address = query
                .get("addr")
                .ok_or_else(|| Failure::bad_request("addr is missing"))?;
            whois(&engine.snapshot().await?, address)
                .map(|found| json(&found))
                .ok_or_else(|| Failure::not_found(format!("no node has the address {address}")))
        }
        ("tailrace-top", &Method::GET) => Ok(json(&sample(&engine.snapshot().await?))),
        // Nothing is served or funnelled; upstream's `status` asks.
        ("serve-config", &Method::GET) => Ok(json(&serde_json::json!({}))),
        ("watch-ipn-bus", &Method::GET) => Ok(watch_bus(engine.notices())),
        ("metrics" | "usermetrics", &Method::GET) => {
            let (snapshot, measures) = engine.measure().await?;
            let text = metrics::render(&snapshot, measures.as_ref());
            let mut response = Response::new(Full::new(Bytes::from(text)).boxed());
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                header::HeaderValue::from_static(metrics::CONTENT_TYPE),
            );
            Ok(response)
        }
        (
            "status" | "prefs" | "start" | "login-interactive" | "logout" | "ping" | "netcheck"
            | "whois" | "debug-endpoint" | "debug-drops" | "debug-rules" | "tailrace-top"
            | "serve-config" | "watch-ipn-bus" | "metrics" | "usermetrics",
            method,
        ) => Err(Failure {
            status: StatusCode::METHOD_NOT_ALLOWED,
            message: format!("{method} is not supported here"),
        }),
        _ => Err(Failure::not_found(format!(
            "{path} is not supported by this version of tailrace"
        ))),
    }
}

/// The address that a query is about.
pub(super) fn address(query: &Query) -> Result<IpAddr, Failure> {
    let text = query
        .get("ip")
        .ok_or_else(|| Failure::bad_request("ip is missing"))?;
    text.parse()
        .map_err(|_| Failure::bad_request("ip is not an address"))
}

async fn set_endpoint(query: &Query, engine: &Handle) -> Result<(), Failure> {
    let endpoint = match query.get("endpoint") {
        None => return Err(Failure::bad_request("endpoint is missing")),
        Some("none") => None,
        Some(text) => Some(text.parse().map_err(|_| {
            Failure::bad_request(format!("endpoint {text:?} is not ADDRESS:PORT or none"))
        })?),
    };
    Ok(engine.set_endpoint(address(query)?, endpoint).await?)
}

/// Streams one line per change, beginning with the present.
fn watch_bus(notices: watch::Receiver<Notice>) -> Response<Body> {
    let lines = stream::unfold((notices, true), |(mut notices, first)| async move {
        if !first {
            notices.changed().await.ok()?;
        }
        let notify = {
            let notice = notices.borrow_and_update();
            Notify {
                version: crate::VERSION.to_owned(),
                err_message: notice.error.clone(),
                state: Some(notice.state.number()),
                browse_to_url: notice.auth_url.clone(),
            }
        };
        let mut line = serde_json::to_vec(&notify).ok()?;
        line.push(b'\n');
        Some((Ok(Frame::data(Bytes::from(line))), (notices, false)))
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(lines)));
    set_json(&mut response);
    response
}

async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Failure> {
    let body = Limited::new(request.into_body(), MAX_REQUEST)
        .collect()
        .await
        .map_err(Failure::bad_request)?
        .to_bytes();
    serde_json::from_slice(&body)
        .map_err(|error| Failure::bad_request(format!("the request is not understood: {error}")))
}

fn json<T: Serialize>(value: &T) -> Response<Body> {
    match serde_json::to_vec_pretty(value) {
        Ok(text) => {
            let mut response = Response::new(Full::new(Bytes::from(text)).boxed());
            set_json(&mut response);
            response
        }
        Err(error) => {
            let mut response = Response::new(Full::new(Bytes::from(error.to_string())).boxed());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    }
}

fn set_json(response: &mut Response<Body>) {
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
}

fn no_content() -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::new()).boxed());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}
