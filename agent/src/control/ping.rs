//! Answers to the server's ping requests (protocol/control.md §6).

use std::time::Duration;

use bytes::Bytes;
use control_proto::tailcfg::PingRequest;
use http::{Method, Request, Uri, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;

use super::connection::Connection;
use super::dial;
use super::{ControlError, ServerUrl};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(15);
/// The answer to every c2n request: this node takes no orders from the server.
const C2N_REFUSAL: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 14\r\n\r\nnot supported\n";

/// Answers one request. Failures are logged: the server notices by itself.
pub(super) async fn answer(connection: Connection, request: PingRequest) {
    let kind = request.types.clone();
    let result = match kind.as_str() {
        "" if request.url_is_noise => {
            over_noise(&connection, Method::HEAD, &request, Bytes::new()).await
        }
        "" => head(&request.url).await,
        "c2n" => {
            over_noise(
                &connection,
                Method::POST,
                &request,
                Bytes::from_static(C2N_REFUSAL),
            )
            .await
        }
        _ => {
            tracing::debug!(kind, "ping request of a kind that is not supported");
            return;
        }
    };
    match result {
        Ok(()) => tracing::debug!(kind, "ping request answered"),
        Err(error) => tracing::debug!(kind, %error, "ping request not answered"),
    }
}

async fn over_noise(
    connection: &Connection,
    method: Method,
    request: &PingRequest,
    body: Bytes,
) -> Result<(), ControlError> {
    let uri: Uri = request.url.parse().map_err(ControlError::broken)?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let sent = tokio::time::timeout(TIMEOUT, connection.send(method, path, body)).await;
    sent.unwrap_or(Err(ControlError::Silent(TIMEOUT))).map(drop)
}

/// Sends `HEAD` to the URL outside the tunnel.
async fn head(url: &str) -> Result<(), ControlError> {
    let uri: Uri = url.parse().map_err(ControlError::broken)?;
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let base = format!("{}://{authority}", uri.scheme_str().unwrap_or("https"));
    let server = ServerUrl::parse(&base).map_err(ControlError::broken)?;
    let work = async {
        let stream = dial::dial(&server).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(ControlError::broken)?;
        let request = Request::builder()
            .method(Method::HEAD)
            .uri(uri.path_and_query().map_or("/", |path| path.as_str()))
            .header(header::HOST, server.authority())
            .body(Empty::<Bytes>::new())
            .map_err(ControlError::broken)?;
        let answer = sender.send_request(request);
        tokio::pin!(answer);
        tokio::select! {
            response = &mut answer => response,
            _ = connection => answer.await,
        }
        .map(drop)
        .map_err(ControlError::broken)
    };
    tokio::time::timeout(TIMEOUT, work)
        .await
        .unwrap_or(Err(ControlError::Silent(TIMEOUT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_is_whole_http() {
        let text = std::str::from_utf8(C2N_REFUSAL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
    }
}
