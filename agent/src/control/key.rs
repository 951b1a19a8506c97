//! `GET /key`: the server's Noise key, the single trust anchor of the protocol.

use bytes::Bytes;
use control_proto::capver;
use control_proto::tailcfg::ServerKeys;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use keys::MachinePublic;

use super::dial::{self, DIAL_TIMEOUT};
use super::{ControlError, ServerUrl};

/// Longest answer, in bytes (protocol/control.md §2.1).
const MAX_ANSWER: usize = 64 << 10;

/// Asks the server for its Noise key.
///
/// # Errors
///
/// Any [`ControlError`] of the way there, [`ControlError::NotControl`] if the answer is something else.
pub async fn fetch(server: &ServerUrl) -> Result<MachinePublic, ControlError> {
    match tokio::time::timeout(DIAL_TIMEOUT, fetch_without_limit(server)).await {
        Ok(result) => result,
        Err(_) => Err(ControlError::Timeout {
            server: server.to_string(),
            limit: DIAL_TIMEOUT,
        }),
    }
}

async fn fetch_without_limit(server: &ServerUrl) -> Result<MachinePublic, ControlError> {
    let not_control = |problem: String| ControlError::NotControl {
        server: server.to_string(),
        problem,
    };
    let stream = dial::dial(server).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| not_control(error.to_string()))?;
    let request = Request::builder()
        .method(Method::GET)
        .uri(format!("/key?v={}", capver::CURRENT))
        .header(header::HOST, server.authority())
        .body(Empty::<Bytes>::new())
        .map_err(|error| not_control(error.to_string()))?;
    let answer = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| not_control(error.to_string()))?;
        if response.status() != StatusCode::OK {
            return Err(not_control(format!("/key answers {}", response.status())));
        }
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| not_control(error.to_string()))?
            .to_bytes();
        let keys: ServerKeys = control_proto::json::from_slice(&body)
            .map_err(|error| not_control(format!("/key: {error}")))?;
        if keys.public_key.is_zero() {
            return Err(not_control("/key holds no key".to_owned()));
        }
        Ok(keys.public_key)
    };
    tokio::pin!(answer);
    tokio::select! {
        result = &mut answer => result,
        // The connection may end first and still have delivered everything.
        _ = connection => answer.await,
    }
}
