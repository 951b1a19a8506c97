//! The HTTP front: one request per connection, which DERP then takes over.
//!
//! Raw and small on purpose: fast-start clients send DERP frames right behind the request and want
//! no response, so the connection must change hands with every buffered byte.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::server::Server;
use crate::{metrics, net};
use request::{HeadError, MAX_HEAD_LEN, Request};
use response::Answer;

mod request;
mod response;

/// Time for the TLS handshake and the request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Time to deliver an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause after an error of accept that will not go away by itself, such as no file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections on `listener`, with TLS if `tls` is given, and serves DERP and the small
/// HTTP endpoints on them, for ever; drop the future to stop accepting.
///
/// Connections that became DERP's go on after that: [`Server::close`] ends them.
pub async fn listen(listener: TcpListener, tls: Option<Arc<rustls::ServerConfig>>, server: Server) {
    let tls = tls.map(TlsAcceptor::from);
    loop {
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        tokio::spawn(handle(stream, remote, tls.clone(), server.clone()));
    }
}

async fn handle(stream: TcpStream, remote: SocketAddr, tls: Option<TlsAcceptor>, server: Server) {
    if let Err(error) = net::tune(&stream) {
        tracing::debug!(%remote, %error, "connection was dead on arrival");
        return;
    }
    match tls {
        None => front(stream, remote, &server).await,
        Some(tls) => {
            let accepted = Box::pin(timeout(HEAD_TIMEOUT, tls.accept(stream))).await;
            match accepted.map_err(io::Error::from).flatten() {
                Ok(stream) => front(stream, remote, &server).await,
                Err(error) => {
                    server.metrics().failed_handshakes.inc();
                    tracing::debug!(%remote, %error, "no TLS");
                }
            }
        }
    }
}

/// Reads the request and answers it, or hands the connection over to DERP.
async fn front<T>(mut io: T, remote: SocketAddr, server: &Server)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let opened = Box::pin(open(&mut io, remote, server)).await;
    let Some(derp) = opened else { return };
    let buffered = derp.buffered.freeze();
    match server
        .serve_hinted(io, remote, buffered, derp.not_ideal)
        .await
    {
        Ok(ended) => tracing::debug!(%remote, %ended, "DERP connection ended"),
        Err(error) => tracing::info!(%remote, %error, "no DERP connection"),
    }
}

/// A connection that DERP takes over.
struct Derp {
    buffered: BytesMut,
    not_ideal: bool,
}

/// Everything before DERP; `None` if the connection is done with.
async fn open<T>(io: &mut T, remote: SocketAddr, server: &Server) -> Option<Derp>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut buffered = BytesMut::new();
    let head = timeout(HEAD_TIMEOUT, read_head(io, &mut buffered)).await;
    let answer = match head.map_err(|_| HeadError::Timeout).flatten() {
        Ok(request) => {
            let answer = response::answer(&request, &server.public_key());
            let derp = Derp {
                buffered,
                not_ideal: request.ideal_node,
            };
            match answer {
                Answer::FastStart => return Some(derp),
                Answer::Upgrade(bytes) => {
                    let sent = timeout(ANSWER_TIMEOUT, send(io, &bytes)).await;
                    return matches!(sent, Ok(Ok(()))).then_some(derp);
                }
                Answer::Close(bytes) => bytes,
            }
        }
        Err(error) => {
            server.metrics().failed_handshakes.inc();
            tracing::debug!(%remote, %error, "no HTTP request");
            response::refusal(&error)?
        }
    };
    let finished = timeout(ANSWER_TIMEOUT, async {
        send(io, &answer).await?;
        io.shutdown().await
    });
    if let Ok(Err(error)) = finished.await {
        tracing::debug!(%remote, %error, "HTTP answer not delivered");
    }
    None
}

async fn send<T: AsyncWrite + Unpin>(io: &mut T, bytes: &[u8]) -> io::Result<()> {
    io.write_all(bytes).await?;
    io.flush().await
}

/// Reads until the head is whole; what follows it stays in `buffered`.
async fn read_head<T: AsyncRead + Unpin>(
    io: &mut T,
    buffered: &mut BytesMut,
) -> Result<Request, HeadError> {
    loop {
        if let Some((request, len)) = request::parse(buffered)? {
            bytes::Buf::advance(buffered, len);
            return Ok(request);
        }
        if buffered.len() >= MAX_HEAD_LEN {
            return Err(HeadError::TooLong);
        }
        buffered.reserve(2048);
        if io.read_buf(buffered).await? == 0 {
            return Err(HeadError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

/// Serves `metrics` as plain HTTP on `listener`, for ever: the separate address for Prometheus.
pub async fn listen_metrics(listener: TcpListener, metrics: metrics::Metrics) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let metrics = metrics.clone();
        tokio::spawn(timeout(HEAD_TIMEOUT, async move {
            let mut buffered = BytesMut::new();
            let answer = match read_head(&mut stream, &mut buffered).await {
                Ok(request) => Some(response::metrics(&request, &metrics)),
                Err(error) => response::refusal(&error),
            };
            if let Some(answer) = answer
                && let Err(error) = send(&mut stream, &answer).await
            {
                tracing::debug!(%error, "metrics not delivered");
            }
        }));
    }
}
