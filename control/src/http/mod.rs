//! The listener for nodes and browsers: a few plain pages, and the upgrade to ts2021.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use keys::MachinePrivate;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::service::Control;
use body::LongBodies;

mod body;
mod machine;
mod pages;
mod stream;
pub mod tls;
mod ts2021;

/// For the TLS handshake, the head of a request, the Noise handshake: each.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For a connection that is not upgraded, in all.
const PLAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections that have not completed the Noise handshake; anybody can open them.
const MAX_UNAUTHENTICATED: usize = 1024;

/// What every connection needs.
#[derive(Debug)]
pub struct Front {
    control: Arc<Control>,
    noise_key: MachinePrivate,
    pages: Router,
    unauthenticated: Arc<Semaphore>,
    long_bodies: LongBodies,
}

/// A connection's place among the unauthenticated; given up once it is authenticated.
#[derive(Debug)]
struct Place(Mutex<Option<OwnedSemaphorePermit>>);

impl Place {
    fn leave(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Front {
    /// Speaks for `control` with the server's Noise key.
    #[must_use]
    pub fn new(control: Arc<Control>, noise_key: MachinePrivate) -> Arc<Self> {
        Arc::new(Self {
            pages: pages::router(Arc::clone(&control), noise_key.public()),
            control,
            noise_key,
            unauthenticated: Arc::new(Semaphore::new(MAX_UNAUTHENTICATED)),
            long_bodies: LongBodies::new(),
        })
    }

    /// Serves connections until dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, tls: Option<TlsAcceptor>) {
        loop {
            let (socket, remote) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of files, most likely: let some connections end first.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&self.unauthenticated).try_acquire_owned() else {
                self.control.metrics().connections_refused.inc();
                continue;
            };
            let front = Arc::clone(&self);
            let tls = tls.clone();
            tokio::spawn(async move {
                if let Err(error) = front.connection(socket, tls, permit).await {
                    tracing::debug!(%remote, %error, "connection ended");
                }
            });
        }
    }

    async fn connection(
        self: Arc<Self>,
        socket: TcpStream,
        tls: Option<TlsAcceptor>,
        permit: OwnedSemaphorePermit,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        // Deltas are small and must leave at once.
        socket.set_nodelay(true)?;
        match tls {
            None => self.http1(socket, permit).await,
            Some(tls) => {
                let accepting = tls.accept(socket);
                let socket = tokio::time::timeout(HANDSHAKE_TIMEOUT, accepting).await??;
                self.http1(socket, permit).await
            }
        }
    }

    /// HTTP/1.1 only: HTTP/2 cannot switch protocols.
    async fn http1<S>(
        self: Arc<Self>,
        socket: S,
        permit: OwnedSemaphorePermit,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let place = Arc::new(Place(Mutex::new(Some(permit))));
        let front = Arc::clone(&self);
        let service = service_fn(move |request: Request<Incoming>| {
            let (front, place) = (Arc::clone(&front), Arc::clone(&place));
            async move { Ok::<_, Infallible>(front.answer(request, place).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HANDSHAKE_TIMEOUT)
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(socket), service)
            .with_upgrades();
        Ok(tokio::time::timeout(PLAIN_TIMEOUT, connection).await??)
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        place: Arc<Place>,
    ) -> Response<Body> {
        if request.uri().path() == noise_io::PATH {
            return self.upgrade(request, place);
        }
        let answer = self.pages.clone().oneshot(request.map(Body::new)).await;
        answer.unwrap_or_else(|never| match never {})
    }
}
