//! `/ts2021`: HTTP/1.1 upgrade, Noise handshake, HTTP/2 inside (protocol digest 2.2–2.5).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use control_proto::early::EarlyPayload;
use control_proto::noise::INITIATION_LEN;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use keys::ChallengePublic;

use super::body::Bodies;
use super::{Front, HANDSHAKE_TIMEOUT, Place, machine};

/// A client has one connection for its map stream, updates and long polls (protocol digest 2.5).
const MAX_STREAMS: u32 = 256;
/// A node that sleeps leaves a half-open connection; pings find out (pitfall 46).
const PING_INTERVAL: Duration = Duration::from_secs(40);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests are small: what a client may have under way, per stream and in all.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 512 << 10;
const MAX_HEADERS: u32 = 32 << 10;

impl Front {
    /// Answers the upgrade request; the rest happens once the answer has left.
    pub(super) fn upgrade(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        place: Arc<Place>,
    ) -> Response<Body> {
        let initiation = match initiation(&request) {
            Ok(initiation) => initiation,
            Err(reason) => return text(StatusCode::BAD_REQUEST, reason),
        };
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            if let Err(error) = self.noise(upgraded, &initiation, &place).await {
                tracing::debug!(%error, "ts2021 connection ended");
            }
        });
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = answer.headers_mut();
        headers.insert(
            UPGRADE,
            HeaderValue::from_static(noise_io::UPGRADE_PROTOCOL),
        );
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        answer
    }

    async fn noise(
        &self,
        upgraded: OnUpgrade,
        initiation: &[u8; INITIATION_LEN],
        place: &Place,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let metrics = self.control.metrics();
        // Clients take the challenge in and never answer it.
        let early = EarlyPayload {
            node_key_challenge: ChallengePublic::from_bytes(rand::random()),
        };
        let handshake = async {
            let io = TokioIo::new(upgraded.await?);
            let accepted =
                noise_io::server_accept(io, &self.noise_key, initiation, Some(&early)).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(accepted)
        };
        let accepted = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(accepted)) => accepted,
            Ok(Err(error)) => {
                metrics.handshakes_failed.inc();
                return Err(error);
            }
            Err(late) => {
                metrics.handshakes_failed.inc();
                return Err(late.into());
            }
        };
        metrics.handshakes.inc();
        place.leave();

        let machine = accepted.machine;
        let control = Arc::clone(&self.control);
        let bodies = Arc::new(Bodies::new(self.long_bodies.clone()));
        let service = service_fn(move |request: Request<Incoming>| {
            let (control, bodies) = (Arc::clone(&control), Arc::clone(&bodies));
            async move {
                let answer = machine::answer(&control, machine, &bodies, request).await;
                Ok::<_, Infallible>(answer)
            }
        });
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADERS)
            .serve_connection(TokioIo::new(accepted.stream), service)
            .await?;
        Ok(())
    }
}

fn initiation(request: &Request<Incoming>) -> Result<[u8; INITIATION_LEN], &'static str> {
    if !matches!(*request.method(), http::Method::GET | http::Method::POST) {
        return Err("use POST to upgrade\n");
    }
    if request.version() != http::Version::HTTP_11 {
        return Err("only HTTP/1.1 can be upgraded\n");
    }
    let protocol = request.headers().get(UPGRADE).map(HeaderValue::as_bytes);
    match protocol {
        Some(name) if name == noise_io::UPGRADE_PROTOCOL.as_bytes() => {}
        Some(name) if name.eq_ignore_ascii_case(b"websocket") => {
            return Err("this server does not serve WebSocket clients yet\n");
        }
        Some(_) | None => return Err("expected Upgrade: tailscale-control-protocol\n"),
    }
    request
        .headers()
        .get(noise_io::HANDSHAKE_HEADER)
        .and_then(|value| noise_io::decode_handshake_header(value.as_bytes()))
        .ok_or("expected the Noise initiation in X-Tailscale-Handshake\n")
}

fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut answer = Response::new(Body::from(text));
    *answer.status_mut() = status;
    answer
}
