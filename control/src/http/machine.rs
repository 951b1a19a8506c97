//! What nodes ask inside the Noise channel: `/machine/…`.

use std::sync::Arc;

use axum::body::Body;
use control_proto::capver::{self, CapabilityVersion};
use control_proto::json;
use control_proto::tailcfg::{MapRequest, RegisterRequest};
use http::{HeaderValue, Method, StatusCode, header};
use hyper::body::Incoming;
use hyper::{Request, Response};
use keys::MachinePublic;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::body::{Bodies, BodyError};
use super::stream;
use crate::model::NodeId;
use crate::service::{Control, MapRefusal, RegisterRefusal, now};

/// Where the policy sends nodes that must ask before they let a session in.
const SSH_ACTION: &str = "/machine/ssh/action/";

/// An HTTP error, with a text that clients show.
struct Refusal(StatusCode, String);

/// Answers one request of the machine that the handshake authenticated. Only the path counts:
/// the authority may be anything.
pub(super) async fn answer(
    control: &Arc<Control>,
    machine: MachinePublic,
    bodies: &Bodies,
    request: Request<Incoming>,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let answered = match (&head.method, head.uri.path()) {
        (&Method::POST, "/machine/register") => register(control, machine, bodies, body).await,
        (&Method::POST, "/machine/map") => map(control, machine, bodies, body).await,
        (&Method::GET, path) if path.starts_with(SSH_ACTION) => ssh_action(control, machine, path),
        (_, path) if path.starts_with("/machine/") => Err(Refusal(
            StatusCode::NOT_IMPLEMENTED,
            "not implemented by this server".into(),
        )),
        _ => Err(Refusal(StatusCode::NOT_FOUND, "not found".into())),
    };
    answered.unwrap_or_else(|Refusal(status, text)| {
        let mut response = Response::new(Body::from(text));
        *response.status_mut() = status;
        response
    })
}

async fn register(
    control: &Arc<Control>,
    machine: MachinePublic,
    bodies: &Bodies,
    body: Incoming,
) -> Result<Response<Body>, Refusal> {
    let request: RegisterRequest = read(bodies, body).await?;
    check_version(request.version)?;
    let answer = control.register(machine, request).await?;
    json_response(&answer)
}

/// `/machine/ssh/action/SOURCE/to/DESTINATION`, both the numbers of nodes: the URL that the policy
/// tells nodes to ask.
fn ssh_action(
    control: &Control,
    machine: MachinePublic,
    path: &str,
) -> Result<Response<Body>, Refusal> {
    let ends = path.strip_prefix(SSH_ACTION);
    let destination = ends.and_then(|ends| ends.split_once("/to/")?.1.parse().ok());
    let destination = destination.map(NodeId).ok_or_else(|| {
        let text = "not an SSH action: expected SOURCE/to/DESTINATION, the numbers of nodes";
        Refusal(StatusCode::BAD_REQUEST, text.into())
    })?;
    json_response(&control.ssh_action(machine, destination)?)
}

fn json_response(answer: &impl Serialize) -> Result<Response<Body>, Refusal> {
    let json = json::to_vec(answer)
        .map_err(|error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let mut response = Response::new(Body::from(json));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// By (Stream, OmitPeers): a stream, a lite update, or one full frame (protocol digest 4.1).
async fn map(
    control: &Arc<Control>,
    machine: MachinePublic,
    bodies: &Bodies,
    body: Incoming,
) -> Result<Response<Body>, Refusal> {
    let request: MapRequest = read(bodies, body).await?;
    check_version(request.version)?;
    let id = control.identify(machine, &request)?;
    let compress = request.compress;
    if request.stream {
        control.catch_up(id, &request).await?;
        let stream = stream::open(control, id, compress).ok_or(MapRefusal::UnknownNode)?;
        return Ok(Response::new(stream));
    }
    if !request.read_only {
        control.metrics().lite_updates.inc();
        let omit_peers = request.omit_peers;
        control.lite_update(id, request).await?;
        if omit_peers {
            return Ok(Response::new(Body::empty()));
        }
    }
    let snapshot = control
        .engine()
        .snapshot(id)
        .ok_or(MapRefusal::UnknownNode)?;
    let frame = snapshot.frame(compress, now());
    let frame = frame.ok_or_else(|| {
        Refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            "out of memory; try again".into(),
        )
    })?;
    Ok(Response::new(Body::from(frame)))
}

async fn read<T: DeserializeOwned>(bodies: &Bodies, body: Incoming) -> Result<T, Refusal> {
    let bytes = bodies.read(body).await?;
    json::from_slice(&bytes).map_err(|error| {
        Refusal(
            StatusCode::BAD_REQUEST,
            format!("bad request body: {error}"),
        )
    })
}

fn check_version(version: CapabilityVersion) -> Result<(), Refusal> {
    if version >= capver::MINIMUM {
        return Ok(());
    }
    let text = format!(
        "this client is too old for the server: it has capability version {version}, and {} or \
         newer is needed; update the client",
        capver::MINIMUM
    );
    Err(Refusal(StatusCode::BAD_REQUEST, text))
}

impl<E: std::fmt::Display> From<BodyError<E>> for Refusal {
    fn from(error: BodyError<E>) -> Self {
        let status = match &error {
            BodyError::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
            BodyError::TooSlow => StatusCode::REQUEST_TIMEOUT,
            BodyError::Broken(_) => StatusCode::BAD_REQUEST,
        };
        Refusal(status, error.to_string())
    }
}

impl From<RegisterRefusal> for Refusal {
    fn from(error: RegisterRefusal) -> Self {
        let status = match &error {
            RegisterRefusal::NoNodeKey => StatusCode::BAD_REQUEST,
            RegisterRefusal::ForeignKey => StatusCode::UNAUTHORIZED,
            RegisterRefusal::Service(inner) => {
                tracing::error!(error = %inner, "a registration failed");
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        Refusal(status, error.to_string())
    }
}

impl From<MapRefusal> for Refusal {
    fn from(error: MapRefusal) -> Self {
        let status = match &error {
            MapRefusal::UnknownNode => StatusCode::NOT_FOUND,
            MapRefusal::Service(inner) => {
                tracing::error!(error = %inner, "a map request failed");
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        Refusal(status, error.to_string())
    }
}
