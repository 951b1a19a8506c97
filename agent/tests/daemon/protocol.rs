//! The wire of the scripted server: `/key`, the upgrade to ts2021, registration and map streams.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use control_proto::frame::Encoder;
use control_proto::tailcfg::{MapRequest, RegisterRequest, RegisterResponse, ServerKeys};
use futures_util::stream;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use keys::{MachinePrivate, MachinePublic};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::server::Tailnet;

type Body = BoxBody<Bytes, Infallible>;
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What every connection needs.
pub(crate) struct Front {
    pub(crate) noise_key: MachinePrivate,
    pub(crate) tailnet: watch::Sender<Tailnet>,
}

impl Front {
    /// Serves until the runtime ends.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener, tls: Option<TlsAcceptor>) {
        while let Ok((socket, _)) = listener.accept().await {
            let (front, tls) = (Arc::clone(&self), tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => front.http1(socket).await,
                    Some(tls) => match tls.accept(socket).await {
                        Ok(socket) => front.http1(socket).await,
                        Err(error) => println!("server: TLS: {error}"),
                    },
                }
            });
        }
    }

    async fn http1(self: Arc<Self>, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(move |request| {
            let front = Arc::clone(&self);
            async move { Ok::<_, Infallible>(front.plain(request)) }
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(io), service);
        if let Err(error) = connection.with_upgrades().await {
            println!("server: {error}");
        }
    }

    fn plain(self: Arc<Self>, mut request: Request<Incoming>) -> Response<Body> {
        if request.uri().path() == "/key" {
            return json(&ServerKeys {
                public_key: self.noise_key.public(),
                ..ServerKeys::default()
            });
        }
        let initiation = request
            .headers()
            .get(noise_io::HANDSHAKE_HEADER)
            .and_then(|value| noise_io::decode_handshake_header(value.as_bytes()));
        let Some(initiation) = initiation else {
            return status(StatusCode::NOT_FOUND);
        };
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let served = async {
                let io = TokioIo::new(upgraded.await?);
                let accepted =
                    noise_io::server_accept(io, &self.noise_key, &initiation, None).await?;
                let machine = accepted.machine;
                let service = service_fn(move |request| {
                    let front = Arc::clone(&self);
                    async move { Ok::<_, Infallible>(front.inner(machine, request).await) }
                });
                http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(accepted.stream), service)
                    .await?;
                Ok::<_, Failure>(())
            };
            if let Err(error) = served.await {
                println!("server: {error}");
            }
        });
        let mut answer = status(StatusCode::SWITCHING_PROTOCOLS);
        let protocol = HeaderValue::from_static(noise_io::UPGRADE_PROTOCOL);
        answer.headers_mut().insert(header::UPGRADE, protocol);
        let upgrade = HeaderValue::from_static("upgrade");
        answer.headers_mut().insert(header::CONNECTION, upgrade);
        answer
    }

    async fn inner(&self, machine: MachinePublic, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let Ok(body) = request.into_body().collect().await else {
            return status(StatusCode::BAD_REQUEST);
        };
        let body = body.to_bytes();
        let answered = match path.as_str() {
            "/machine/register" => serde_json::from_slice(&body)
                .map(|request: RegisterRequest| self.register(machine, &request)),
            "/machine/map" => serde_json::from_slice(&body).map(|request| self.map(&request)),
            _ => return status(StatusCode::NOT_FOUND),
        };
        answered.unwrap_or_else(|error| {
            println!("server: {path}: {error}");
            status(StatusCode::BAD_REQUEST)
        })
    }

    fn register(&self, machine: MachinePublic, request: &RegisterRequest) -> Response<Body> {
        let key = request.node_key;
        let node_key_expired = self.tailnet.borrow().expired.contains(&key);
        if !node_key_expired {
            self.tailnet
                .send_modify(|tailnet| tailnet.register(machine, key));
        }
        json(&RegisterResponse {
            node_key_expired,
            machine_authorized: !self.tailnet.borrow().unapproved,
            ..RegisterResponse::default()
        })
    }

    fn map(&self, request: &MapRequest) -> Response<Body> {
        let (key, disco) = (request.node_key, request.disco_key);
        if !request.stream {
            return status(StatusCode::OK);
        }
        self.tailnet.send_if_modified(|tailnet| {
            let nodes = tailnet.nodes.iter_mut();
            let node = nodes.into_iter().find(|node| node.key == key);
            node.is_some_and(|node| std::mem::replace(&mut node.disco, disco) != disco)
        });
        let mut changes = self.tailnet.subscribe();
        changes.mark_changed();
        let compress = request.compress;
        let frames = stream::unfold((changes, true), move |(mut changes, first)| async move {
            changes.changed().await.ok()?;
            let frame = changes.borrow_and_update().frame(&key, first)?;
            let bytes = Encoder::new().ok()?.encode(&frame, compress).ok()?;
            Some((Ok(Frame::data(Bytes::from(bytes))), (changes, false)))
        });
        Response::new(BodyExt::boxed(StreamBody::new(frames)))
    }
}

fn json(value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(text) => Response::new(Full::new(Bytes::from(text)).boxed()),
        Err(_) => status(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::new()).boxed());
    *response.status_mut() = status;
    response
}
