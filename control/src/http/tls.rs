//! TLS from files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::pem::{self, PemObject as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// Certificate files that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing, unreadable, or no PEM of that kind.
    #[error("cannot read a {what} from {path}: {source}; give a PEM file to {flag}")]
    File {
        /// What should be in it.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// The setting that names it.
        flag: &'static str,
        /// What is wrong.
        source: pem::Error,
    },
    /// No certificate in the file.
    #[error("{0} holds no certificate: give the full chain in PEM to --tls-cert")]
    Empty(PathBuf),
    /// Certificate and key do not fit each other, or are of a kind that rustls does not know.
    #[error("the certificate and the key cannot be used together: {0}")]
    Unusable(#[from] rustls::Error),
}

/// Reads the full certificate chain (clients fetch no intermediates) and its key.
///
/// # Errors
///
/// See [`TlsError`].
pub fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let file = |what, path: &Path, flag, source| TlsError::File {
        what,
        path: path.to_owned(),
        flag,
        source,
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|source| file("certificate", cert, "--tls-cert", source))?;
    if chain.is_empty() {
        return Err(TlsError::Empty(cert.to_owned()));
    }
    let key = PrivateKeyDer::from_pem_file(key)
        .map_err(|source| file("private key", key, "--tls-key", source))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    // No ALPN: HTTP/2 cannot be upgraded to ts2021 (protocol digest 2.2).
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
