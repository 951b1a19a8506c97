//! The relay's TLS identity: certificate files, or one of its own making that a DERP map pins.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keys::NodePublic;
use rcgen::{CertificateParams, DnType, IsCa, KeyPair, PKCS_ED25519, SerialNumber};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use crate::files::{FileError, write_private};

/// Key and certificate of our own making: one file, so that a crash never leaves two that do not fit.
const OWN_FILE: &str = "relay.pem";

/// Life of a certificate of our own making: a pin, not a date, is what clients trust.
const LIFETIME: Duration = Duration::days(10 * 365);
/// Tolerance for clocks that are behind.
const BACKDATE: Duration = Duration::days(2);
/// A certificate with less life left than this is replaced at start.
const RENEW_BEFORE: Duration = Duration::days(90);

/// Certificate chain and private key of a TLS server.
#[derive(Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    own: bool,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file of the state folder.
    #[error(transparent)]
    File(#[from] FileError),
    /// A certificate or key file that cannot be read as such.
    #[error("{path} is not a readable PEM file with {what}: {source}")]
    Pem {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What is wrong with it.
        source: rustls_pki_types::pem::Error,
    },
    /// A certificate file without a certificate.
    #[error("{0} holds no certificate")]
    Empty(PathBuf),
    /// Certificate and key that TLS cannot work with, such as two that do not belong together.
    #[error("{cert} and {key} cannot be used together: {source}")]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
    /// The file of our own making that cannot be used.
    #[error(
        "{path} cannot be used: restore it, or delete it to get a new certificate, whose pin DERP maps then need"
    )]
    Own {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<TlsError>,
    },
    /// TLS does not take what it was given.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
    /// A certificate that could not be made, such as for an impossible host name.
    #[error("cannot make a certificate for `{host}`: {source}")]
    Make {
        /// Host name or address.
        host: String,
        /// Why not.
        source: rcgen::Error,
    },
}

impl Identity {
    /// Reads a certificate chain (leaf first) and its key from PEM files.
    ///
    /// # Errors
    ///
    /// [`TlsError`], which names the file.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let bad = |path: &Path, what, source| TlsError::Pem {
            path: path.to_owned(),
            what,
            source,
        };
        let chain: Vec<_> = CertificateDer::pem_file_iter(cert)
            .and_then(Iterator::collect)
            .map_err(|source| bad(cert, "certificates", source))?;
        if chain.is_empty() {
            return Err(TlsError::Empty(cert.to_owned()));
        }
        let private = PrivateKeyDer::from_pem_file(key)
            .map_err(|source| bad(key, "a private key", source))?;
        let identity = Self {
            chain,
            key: private,
            own: false,
        };
        match identity.certified(None) {
            Ok(_) => Ok(identity),
            Err(source) => Err(TlsError::Pair {
                cert: cert.to_owned(),
                key: key.to_owned(),
                source,
            }),
        }
    }

    /// The self-signed identity that `state_dir` keeps for `host`, a DNS name or an IP address.
    ///
    /// Made on the first start and whenever it is not good for `host` or soon ends.
    ///
    /// # Errors
    ///
    /// [`TlsError`].
    pub fn self_signed(state_dir: &Path, host: &str) -> Result<Self, TlsError> {
        let path = state_dir.join(OWN_FILE);
        if path.exists() {
            let kept = Self::load_own(&path)?;
            if is_good_for(&kept.chain[0], host) {
                return Ok(kept);
            }
            let file = path.display();
            tracing::warn!(%file, host, "certificate replaced: DERP maps need the new pin");
        }
        let failed = |source| TlsError::Make {
            host: host.to_owned(),
            source,
        };
        let mut params = CertificateParams::new([host.to_owned()]).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, host);
        let now = OffsetDateTime::now_utc();
        params.not_before = now - BACKDATE;
        params.not_after = now + LIFETIME;
        let pair = KeyPair::generate().map_err(failed)?;
        let made = params.self_signed(&pair).map_err(failed)?;
        let mut pem = Zeroizing::new(pair.serialize_pem());
        pem.push_str(&made.pem());
        write_private(&path, pem.as_bytes())?;
        Self::load_own(&path)
    }

    fn load_own(path: &Path) -> Result<Self, TlsError> {
        match Self::load(path, path) {
            Ok(identity) => Ok(Self {
                own: true,
                ..identity
            }),
            Err(source) => Err(TlsError::Own {
                path: path.to_owned(),
                source: Box::new(source),
            }),
        }
    }

    /// The pin of the leaf certificate, as a DERP map's `CertName` carries it.
    #[must_use]
    pub fn pin(&self) -> String {
        pin(&self.chain[0])
    }

    /// The `CertName` that a DERP map needs: the pin, if the certificate is of our own making.
    #[must_use]
    pub fn cert_name(&self) -> Option<String> {
        self.own.then(|| self.pin())
    }

    /// Settings for a TLS listener of the DERP server with the key `server`: TLS 1.2 and 1.3, with
    /// the meta certificate that lets clients start fast (they look for it from TLS 1.3 on, which
    /// encrypts certificates).
    ///
    /// # Errors
    ///
    /// [`TlsError`].
    pub fn server_config(&self, server: &NodePublic) -> Result<Arc<ServerConfig>, TlsError> {
        let certified = self.certified(Some(meta_certificate(server)?))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        // Nodes do not resume, so neither tickets nor sessions are worth their bytes.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Arc::new(config))
    }

    fn certified(
        &self,
        meta: Option<CertificateDer<'static>>,
    ) -> Result<CertifiedKey, rustls::Error> {
        let chain = self.chain.iter().cloned().chain(meta).collect();
        CertifiedKey::from_der(chain, self.key.clone_key(), &provider())
    }
}

/// `sha256-raw:` and the SHA-256 of a certificate's DER, in lower-case hex.
#[must_use]
pub fn pin(leaf: &CertificateDer<'_>) -> String {
    format!("sha256-raw:{}", hex::encode(Sha256::digest(leaf)))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Whether a client that dials `host` accepts `leaf` for the time to come.
fn is_good_for(leaf: &CertificateDer<'_>, host: &str) -> bool {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else {
        return false;
    };
    let end = (OffsetDateTime::now_utc() + RENEW_BEFORE).unix_timestamp();
    let named = |name: &GeneralName<'_>| match (name, host.parse::<IpAddr>()) {
        (GeneralName::DNSName(name), Err(_)) => name.eq_ignore_ascii_case(host),
        (GeneralName::IPAddress(bytes), Ok(IpAddr::V4(ip))) => *bytes == ip.octets(),
        (GeneralName::IPAddress(bytes), Ok(IpAddr::V6(ip))) => *bytes == ip.octets(),
        _ => false,
    };
    let names = leaf.subject_alternative_name().ok().flatten();
    leaf.validity().not_after.timestamp() > end
        && names.is_some_and(|names| names.value.general_names.iter().any(named))
}

/// The certificate that tells the DERP key (see [`derp_proto::meta`]); fresh in every process.
fn meta_certificate(server: &NodePublic) -> Result<CertificateDer<'static>, TlsError> {
    let host = derp_proto::meta::common_name(server);
    let make = || {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, &*host);
        params.serial_number = Some(SerialNumber::from(u64::from(derp_proto::PROTOCOL_VERSION)));
        let now = OffsetDateTime::now_utc();
        params.not_before = now - Duration::days(30);
        params.not_after = now + Duration::days(30);
        // Some verifiers want this said where issuer and subject are the same.
        params.is_ca = IsCa::ExplicitNoCa;
        let pair = KeyPair::generate_for(&PKCS_ED25519)?;
        params.self_signed(&pair)
    };
    match make() {
        Ok(made) => Ok(made.der().clone()),
        Err(source) => Err(TlsError::Make { host, source }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use keys::NodePrivate;

    use super::*;

    #[test]
    fn an_own_identity_is_kept_as_long_as_it_is_good() {
        let folder = tempfile::tempdir().unwrap();

        let first = Identity::self_signed(folder.path(), "192.0.2.1").unwrap();
        let second = Identity::self_signed(folder.path(), "192.0.2.1").unwrap();
        let other = Identity::self_signed(folder.path(), "relay.example").unwrap();

        assert_eq!(first.pin(), second.pin());
        assert_ne!(first.pin(), other.pin());
        assert_eq!(first.cert_name(), Some(first.pin()));
        let mode = fs::metadata(folder.path().join(OWN_FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_crash_while_the_own_certificate_is_replaced_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let before = Identity::self_signed(folder.path(), "192.0.2.1").unwrap();
        let draft = folder.path().join("relay.pem.new");
        fs::write(&draft, "-----BEGIN PRIVATE KEY-----\nMC4C").unwrap();

        let after = Identity::self_signed(folder.path(), "192.0.2.1").unwrap();
        assert_eq!(after.pin(), before.pin());

        let replaced = Identity::self_signed(folder.path(), "192.0.2.2").unwrap();
        assert_ne!(replaced.pin(), before.pin());
    }

    #[test]
    fn a_damaged_own_file_is_named_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        Identity::self_signed(folder.path(), "192.0.2.1").unwrap();
        let path = folder.path().join(OWN_FILE);
        let pem = fs::read_to_string(&path).unwrap();
        Identity::self_signed(folder.path(), "192.0.2.2").unwrap();
        let other = fs::read_to_string(&path).unwrap();
        let begin = "-----BEGIN CERTIFICATE-----";
        let (key, _) = pem.split_once(begin).unwrap();
        let (_, certificate) = other.split_once(begin).unwrap();

        for damaged in [
            String::new(),
            key.to_owned(),
            format!("{begin}{certificate}"),
            format!("{key}{begin}{certificate}"),
        ] {
            fs::write(&path, &damaged).unwrap();
            let error = Identity::self_signed(folder.path(), "192.0.2.2").unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains("relay.pem") && text.contains("delete"),
                "{text}"
            );
            assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
        }
    }

    #[test]
    fn the_meta_certificate_names_the_key_and_the_version() {
        let key = NodePrivate::generate().public();
        let der = meta_certificate(&key).unwrap();
        let (_, meta) = X509Certificate::from_der(&der).unwrap();
        let name = meta.subject().iter_common_name().next().unwrap();
        let told = derp_proto::meta::key_from_common_name(name.as_str().unwrap());
        assert_eq!(told, Some(key));
        assert_eq!(meta.raw_serial(), [2]);
        assert_eq!(meta.subject(), meta.issuer());
    }

    #[test]
    fn a_bad_certificate_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (folder.path().join("a.crt"), folder.path().join("a.key"));
        let absent = Identity::load(&cert, &key).unwrap_err().to_string();
        assert!(absent.contains("a.crt"), "{absent}");

        fs::write(&cert, "hello").unwrap();
        let empty = Identity::load(&cert, &key).unwrap_err().to_string();
        assert!(empty.contains("a.crt"), "{empty}");

        Identity::self_signed(folder.path(), "x.example").unwrap();
        fs::copy(folder.path().join(OWN_FILE), &cert).unwrap();
        let no_key = Identity::load(&cert, &key).unwrap_err().to_string();
        assert!(no_key.contains("a.key"), "{no_key}");

        Identity::self_signed(folder.path(), "y.example").unwrap();
        fs::copy(folder.path().join(OWN_FILE), &key).unwrap();
        let mismatch = Identity::load(&cert, &key).unwrap_err().to_string();
        assert!(
            mismatch.contains("a.crt") && mismatch.contains("a.key"),
            "{mismatch}"
        );
    }
}
