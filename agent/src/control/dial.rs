//! TCP and TLS to the coordination server, outside the overlay.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{ControlError, ServerUrl};
use crate::underlay::{self, trust};

/// Limit for name, TCP and TLS together.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit for one of several addresses, so that a dead one does not eat the whole time.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(4);

/// A byte stream to the server.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Opens a byte stream to the server: TCP, and TLS if the URL says so.
///
/// # Errors
///
/// [`ControlError::Resolve`], `Connect`, `Tls` or `Timeout`.
pub(super) async fn dial(server: &ServerUrl) -> Result<Box<dyn Io>, ControlError> {
    match tokio::time::timeout(DIAL_TIMEOUT, dial_without_limit(server)).await {
        Ok(result) => result,
        Err(_) => Err(ControlError::Timeout {
            server: server.to_string(),
            limit: DIAL_TIMEOUT,
        }),
    }
}

async fn dial_without_limit(server: &ServerUrl) -> Result<Box<dyn Io>, ControlError> {
    let tcp = connect(server).await?;
    if !server.tls {
        return Ok(Box::new(tcp));
    }
    let tls_error = |source| ControlError::Tls {
        server: server.to_string(),
        advice: tls_advice(&source),
        source,
    };
    let name = ServerName::try_from(server.host.clone())
        .map_err(|error| tls_error(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    let connector = TlsConnector::from(tls_config().map_err(tls_error)?);
    match connector.connect(name, tcp).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => {
            // The operator may add an authority: the next attempt looks again.
            trust::forget();
            Err(tls_error(error))
        }
    }
}

/// What to do about a TLS handshake that failed.
fn tls_advice(error: &io::Error) -> &'static str {
    use rustls::CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet,
        NotValidYetContext, UnknownIssuer,
    };
    let inner = error.get_ref();
    match inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(UnknownIssuer)) => {
            "this host does not trust the authority that signed its certificate: install that authority's \
             certificate here, or start the daemon with SSL_CERT_FILE=FILE"
        }
        Some(rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        )) => "renew its certificate, and check the clocks of both hosts",
        Some(rustls::Error::InvalidCertificate(
            NotValidForName | NotValidForNameContext { .. },
        )) => {
            "its certificate is for another name: use that name in the URL, or another certificate"
        }
        Some(rustls::Error::InvalidMessage(_)) => {
            "no TLS is spoken there: use http:// instead of https://, or another port"
        }
        _ => {
            "its certificate must be complete, valid for this name, and signed by an authority that this host \
             trusts"
        }
    }
}

async fn connect(server: &ServerUrl) -> Result<TcpStream, ControlError> {
    let resolve_error = |source| ControlError::Resolve {
        host: server.host.clone(),
        source,
    };
    let addresses = tokio::net::lookup_host((server.host.as_str(), server.port))
        .await
        .map_err(resolve_error)?;
    let mut last = None;
    for address in addresses {
        match tokio::time::timeout(ADDRESS_TIMEOUT, connect_to(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = Some(error),
            Err(_) => last = Some(io::Error::new(io::ErrorKind::TimedOut, "no answer")),
        }
    }
    Err(match last {
        Some(source) => ControlError::Connect {
            server: server.to_string(),
            source,
        },
        None => resolve_error(io::Error::new(io::ErrorKind::NotFound, "no address")),
    })
}

async fn connect_to(address: SocketAddr) -> io::Result<TcpStream> {
    match underlay::connect_tcp(address).await {
        // Without CAP_NET_ADMIN there is no mark, but no overlay to keep out of either.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            TcpStream::connect(address).await
        }
        result => result,
    }
}

fn tls_config() -> io::Result<Arc<ClientConfig>> {
    // No ALPN: the upgrade to ts2021 exists in HTTP/1.1 only (protocol/control.md §2.2).
    let config = ClientConfig::builder_with_provider(trust::provider())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(trust::roots())
        .with_no_client_auth();
    Ok(Arc::new(config))
}
