//! TLS to relays: trusted roots, another certificate name, a pinned leaf, or none; the meta certificate.

use std::sync::{Arc, OnceLock};

use keys::NodePublic;
use node_core::derp::{Certificate, Node};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName, UnixTime};
use rustls::{
    CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
};

use crate::underlay::trust;

/// Returns the TLS configuration for a relay node.
///
/// # Errors
///
/// If the node's certificate name is no name, or the host has no trusted roots at all.
pub(crate) fn config(node: &Node) -> Result<Arc<ClientConfig>, Error> {
    let provider = provider();
    let verifier: Arc<dyn ServerCertVerifier> = match &node.certificate {
        Certificate::HostName => verifier(&provider)?,
        Certificate::Name(name) => Arc::new(OtherName {
            inner: verifier(&provider)?,
            name: parse_name(name).map_err(|error| Error::General(error.to_string()))?,
        }),
        Certificate::Pinned(pin) => Arc::new(Pinned {
            provider: provider.clone(),
            leaf: Some(*pin),
        }),
        Certificate::Unverified => Arc::new(Pinned {
            provider: provider.clone(),
            leaf: None,
        }),
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The crypto provider with AES-128 first, which costs the least: what relays carry is encrypted already.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || {
        let mut provider = (*trust::provider()).clone();
        let first = CipherSuite::TLS13_AES_128_GCM_SHA256;
        provider
            .cipher_suites
            .sort_by_key(|suite| suite.suite() != first);
        Arc::new(provider)
    };
    PROVIDER.get_or_init(make).clone()
}

/// Returns the name that goes into the TLS handshake: the node's host name or address.
///
/// # Errors
///
/// If the host is neither a DNS name nor an address.
pub(crate) fn parse_name(host: &str) -> Result<ServerName<'static>, InvalidDnsNameError> {
    ServerName::try_from(host.to_owned())
}

/// Returns the relay's DERP key out of the meta certificate, if the relay sent one (derp.md §2).
///
/// It is not verified by itself: the certificate chain in front of it was.
pub(crate) fn derp_key(certificates: &[CertificateDer<'_>]) -> Option<NodePublic> {
    certificates.iter().find_map(|der| {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let name = certificate.subject().iter_common_name().next()?;
        derp_proto::meta::key_from_common_name(name.as_str().ok()?)
    })
}

fn verifier(provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, Error> {
    WebPkiServerVerifier::builder_with_provider(trust::roots(), provider.clone())
        .build()
        .map_err(|error| Error::General(error.to_string()))
}

/// Verifies the chain for a name other than the one in the handshake (`CertName`).
#[derive(Debug)]
struct OtherName {
    inner: Arc<WebPkiServerVerifier>,
    name: ServerName<'static>,
}

impl ServerCertVerifier for OtherName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.inner
            .verify_server_cert(end_entity, intermediates, &self.name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Accepts exactly one leaf certificate by its SHA-256 (`sha256-raw:`), or any (`InsecureForTests`).
///
/// The server still proves that it holds the leaf's private key.
#[derive(Debug)]
struct Pinned {
    provider: Arc<CryptoProvider>,
    leaf: Option<[u8; 32]>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, end_entity);
        match &self.leaf {
            Some(pin) if digest.as_ref() != pin => Err(Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            )),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
