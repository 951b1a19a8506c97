//! A peer's PeerAPI, by HTTP through the tunnel: whether it answers.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Why a PeerAPI did not answer as it should.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerApiError {
    /// No connection.
    #[error("cannot connect to its PeerAPI at {server}; its policy may not let this node in")]
    Connect {
        server: SocketAddr,
        #[source]
        source: io::Error,
    },
    /// Something else answers there.
    #[error("its PeerAPI does not speak HTTP")]
    Http(#[from] hyper::Error),
    /// It refused.
    #[error("its PeerAPI says {0}")]
    Status(StatusCode),
    /// It is too slow.
    #[error("no answer from its PeerAPI within {0:?}")]
    Timeout(Duration),
}

/// Address of a PeerAPI for people.
pub(super) fn url(server: SocketAddr) -> String {
    format!("http://{server}")
}

/// Asks for the head of the first page: the time until it came.
///
/// # Errors
///
/// Any [`PeerApiError`].
pub(super) async fn ping(server: SocketAddr, wait: Duration) -> Result<Duration, PeerApiError> {
    let begin = Instant::now();
    match timeout(wait, head(server)).await {
        Ok(Ok(StatusCode::OK)) => Ok(begin.elapsed()),
        Ok(Ok(status)) => Err(PeerApiError::Status(status)),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(PeerApiError::Timeout(wait)),
    }
}

async fn head(server: SocketAddr) -> Result<StatusCode, PeerApiError> {
    let stream = TcpStream::connect(server).await;
    let stream = stream.map_err(|source| PeerApiError::Connect { server, source })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = Method::HEAD;
    if let Ok(host) = header::HeaderValue::from_str(&server.to_string()) {
        request.headers_mut().insert(header::HOST, host);
    }
    // Its errors are the request's too; it ends with the sender.
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await;
    connection.abort();
    Ok(response?.status())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn server(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let len = stream.read(&mut request).await.unwrap();
            assert!(request[..len].starts_with(b"HEAD / HTTP/1.1\r\n"));
            stream.write_all(answer).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn an_answer_counts_if_it_is_the_right_one() {
        let wait = Duration::from_secs(5);
        let well = server(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").await;
        ping(well, wait).await.unwrap();
        let refusing = server(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
        let error = ping(refusing, wait).await.unwrap_err();
        assert!(matches!(error, PeerApiError::Status(StatusCode::FORBIDDEN)));
        let foreign = server(b"SSH-2.0-x\r\n").await;
        let error = ping(foreign, wait).await.unwrap_err();
        assert!(!matches!(error, PeerApiError::Timeout(_)), "{error}");
    }
}
