//! One request to a router's web server, over a marked socket.

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::UpnpError;
use super::ssdp::Location;
use crate::underlay;

/// Longest answer that is read, bytes.
const MAX_BODY_LEN: usize = 64 << 10;

/// Who is asked: routers, or those of tests.
pub(super) trait Http: Sync {
    /// Fetches a document.
    fn get(&self, location: &Location) -> impl Future<Output = Result<String, UpnpError>> + Send;

    /// Calls `action`; the answer to a fault is an answer, too.
    fn post(
        &self,
        location: &Location,
        action: &str,
        body: String,
    ) -> impl Future<Output = Result<String, UpnpError>> + Send;
}

/// Routers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Web;

impl Http for Web {
    async fn get(&self, location: &Location) -> Result<String, UpnpError> {
        let request = Request::builder().method(Method::GET);
        send(location, request, String::new()).await
    }

    async fn post(
        &self,
        location: &Location,
        action: &str,
        body: String,
    ) -> Result<String, UpnpError> {
        let request = Request::builder()
            .method(Method::POST)
            .header(header::CONTENT_TYPE, "text/xml; charset=\"utf-8\"")
            // hyper writes `Soapaction`, and takes no spelling of ours; HTTP knows no difference.
            .header("SOAPAction", action);
        send(location, request, body).await
    }
}

async fn send(
    location: &Location,
    request: http::request::Builder,
    body: String,
) -> Result<String, UpnpError> {
    let request = request
        .uri(&location.path)
        .header(header::HOST, location.address.to_string())
        .header(header::CONNECTION, "close")
        .body(Full::new(Bytes::from(body)))
        .map_err(UpnpError::Request)?;
    let stream = underlay::connect_tcp(location.address.into())
        .await
        .map_err(UpnpError::Unreachable)?;
    let (mut sender, connection) = http1::Builder::new()
        .title_case_headers(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(UpnpError::Http)?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(UpnpError::Http)?;
        let body = Limited::new(response.into_body(), MAX_BODY_LEN);
        let too_long = |_| UpnpError::Senseless("at too great a length, or breaks off");
        let body = body.collect().await.map_err(too_long)?.to_bytes();
        let text = String::from_utf8(body.into());
        text.map_err(|_| UpnpError::Senseless("in no known letters"))
    };
    tokio::pin!(connection);
    tokio::pin!(exchange);
    tokio::select! {
        text = &mut exchange => text,
        // The last of the answer may lie ready when the connection ends.
        ended = &mut connection => {
            ended.map_err(UpnpError::Http)?;
            exchange.await
        }
    }
}
