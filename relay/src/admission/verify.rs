//! Asks an HTTP service whether a key may use the relay (derp.md section 8).

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use keys::NodePublic;
use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_ANSWER_LEN: usize = 4096;

/// The URL of a verification service, such as control's `/verify`.
#[derive(Clone)]
pub struct VerifyUrl {
    uri: Uri,
    host: String,
    port: u16,
    tls: Option<TlsConnector>,
}

/// Why a verification service gave no answer, or cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyUrlError {
    /// Not a URL that can be asked.
    #[error(
        "`{0}` is not an http:// or https:// URL with a host, and a port from 1 to 65535 if any"
    )]
    Url(String),
    /// TLS cannot be set up.
    #[error("cannot set up TLS to the verification service: {0}")]
    Tls(rustls::Error),
    /// No connection.
    #[error("no connection to the verification service: {0}")]
    Connect(#[source] io::Error),
    /// The exchange broke.
    #[error("the verification service broke off: {0}")]
    Http(#[from] hyper::Error),
    /// An answer that is no answer.
    #[error("the verification service answered {0}")]
    Status(StatusCode),
    /// The answer is not the JSON that it should be, or too long.
    #[error("the verification service gave an unreadable answer: {0}")]
    Answer(String),
    /// No answer in time.
    #[error("the verification service did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
}

#[derive(Serialize)]
struct Question {
    #[serde(rename = "NodePublic")]
    key: NodePublic,
    #[serde(rename = "Source")]
    source: IpAddr,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Allow", default)]
    allow: bool,
}

impl VerifyUrl {
    /// Takes `url`; nothing is asked yet.
    ///
    /// # Errors
    ///
    /// [`VerifyUrlError::Url`], [`VerifyUrlError::Tls`].
    pub fn new(url: &str) -> Result<Self, VerifyUrlError> {
        let bad = || VerifyUrlError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let (default_port, tls) = match uri.scheme_str() {
            Some("http") => (80, None),
            Some("https") => (443, Some(connector()?)),
            _ => return Err(bad()),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(bad)?;
        let port = port(&uri, default_port).ok_or_else(bad)?;
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        Ok(Self {
            uri,
            host,
            port,
            tls,
        })
    }

    /// Whether the service allows `key`.
    pub(super) async fn allows(
        &self,
        key: NodePublic,
        source: IpAddr,
    ) -> Result<bool, VerifyUrlError> {
        timeout(TIMEOUT, self.ask(Question { key, source }))
            .await
            .map_err(|_| VerifyUrlError::Timeout)?
    }

    async fn ask(&self, question: Question) -> Result<bool, VerifyUrlError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(VerifyUrlError::Connect)?;
        match &self.tls {
            None => self.exchange(stream, question).await,
            Some(tls) => {
                let name = ServerName::try_from(self.host.clone())
                    .map_err(|_| VerifyUrlError::Url(self.uri.to_string()))?;
                let stream = tls.connect(name, stream).await;
                self.exchange(stream.map_err(VerifyUrlError::Connect)?, question)
                    .await
            }
        }
    }

    async fn exchange<T>(&self, stream: T, question: Question) -> Result<bool, VerifyUrlError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let unreadable = |error: &dyn fmt::Display| VerifyUrlError::Answer(error.to_string());
        let body = serde_json::to_vec(&question).map_err(|error| unreadable(&error))?;
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let authority = self
            .uri
            .authority()
            .map_or("", |authority| authority.as_str());
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::HOST, authority)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| unreadable(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let answer = async {
            let response = sender.send_request(request).await?;
            if response.status() != StatusCode::OK {
                return Err(VerifyUrlError::Status(response.status()));
            }
            let body = Limited::new(response.into_body(), MAX_ANSWER_LEN)
                .collect()
                .await;
            let body = body.map_err(|error| unreadable(&error))?.to_bytes();
            serde_json::from_slice(&body).map_err(|error| unreadable(&error))
        };
        // The connection is driven beside the exchange, and dropped with it.
        let mut answer = std::pin::pin!(answer);
        let answer: Answer = tokio::select! {
            answer = &mut answer => answer?,
            ended = connection => {
                ended?;
                answer.await?
            }
        };
        Ok(answer.allow)
    }
}

impl fmt::Debug for VerifyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("VerifyUrl").field(&self.uri).finish()
    }
}

/// The port of `uri`; `None` if it names one that cannot be, which the URI type itself passes over.
fn port(uri: &Uri, default: u16) -> Option<u16> {
    let authority = uri.authority()?.as_str();
    let host_and_port = authority.rsplit('@').next()?;
    match host_and_port.strip_prefix(uri.host()?)?.strip_prefix(':') {
        None => Some(default),
        Some(port) => port.parse().ok().map(NonZeroU16::get),
    }
}

/// TLS that trusts the system's authorities; the built-in list where the system has none.
fn connector() -> Result<TlsConnector, VerifyUrlError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(VerifyUrlError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_the_urls_or_the_schemes() {
        for (url, host, port) in [
            ("http://verify.example/allow", "verify.example", 80),
            ("https://verify.example", "verify.example", 443),
            ("https://verify.example:8443/", "verify.example", 8443),
            ("http://[2001:db8::1]:65535/allow", "2001:db8::1", 65535),
            ("http://[2001:db8::1]/allow", "2001:db8::1", 80),
        ] {
            let verify = VerifyUrl::new(url).unwrap();
            assert_eq!((verify.host.as_str(), verify.port), (host, port), "{url}");
        }
    }

    #[test]
    fn a_url_that_cannot_be_asked_is_refused_by_name() {
        for url in [
            "http://verify.example:99999/allow",
            "https://verify.example:0/",
            "http://verify.example:/",
            "http://[2001:db8::1]:65536/",
            "ftp://verify.example/",
            "verify.example",
            "/allow",
        ] {
            let error = VerifyUrl::new(url).unwrap_err();
            assert!(matches!(error, VerifyUrlError::Url(_)), "{url}: {error}");
            assert!(error.to_string().contains(url), "{error}");
        }
    }
}
