//! TCP and TLS to the coordination server, outside the overlay.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{ControlError, ServerUrl};
use crate::underlay;

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
        source,
    };
    let name = ServerName::try_from(server.host.clone())
        .map_err(|error| tls_error(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    let connector = TlsConnector::from(tls_config().map_err(tls_error)?);
    Ok(Box::new(
        connector.connect(name, tcp).await.map_err(tls_error)?,
    ))
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

/// The system's trusted authorities; the built-in list where the system has none. Read once.
fn tls_config() -> io::Result<Arc<ClientConfig>> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(Arc::clone(config));
    }
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(native.certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // No ALPN: the upgrade to ts2021 exists in HTTP/1.1 only (protocol/control.md §2.2).
    Ok(Arc::clone(CONFIG.get_or_init(|| Arc::new(config))))
}
