//! A node's side of a relay: TLS, HTTP upgrade, DERP handshake.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf as _, BytesMut};
use derp_proto::{ClientHandshake, ClientInfo, Progress};
use keys::NodePrivate;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{DigitallySignedStruct, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::soon;

/// What a client goes by when it checks a server's certificate.
pub(crate) enum Trust {
    /// `sha256-raw:…` of the leaf.
    Pin(String),
    /// A certificate authority.
    Root(CertificateDer<'static>),
}

/// TLS with `server` as `name`; the error says what the certificate lacks.
pub(crate) async fn tls(
    server: SocketAddr,
    name: &str,
    trust: &Trust,
) -> std::io::Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match trust {
        Trust::Pin(pin) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned(pin.clone()))),
        Trust::Root(root) => {
            let mut roots = RootCertStore::empty();
            roots.add(root.clone()).unwrap();
            builder.with_root_certificates(roots)
        }
    };
    let connector = TlsConnector::from(Arc::new(builder.with_no_client_auth()));
    let socket = TcpStream::connect(server).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    soon(connector.connect(name, socket)).await
}

/// A node's connection to a relay.
pub(crate) struct Client {
    io: TlsStream<TcpStream>,
}

impl Client {
    /// Connects as the node `key`; `None` if the relay refuses it.
    pub(crate) async fn connect(
        server: SocketAddr,
        name: &str,
        trust: &Trust,
        key: &NodePrivate,
    ) -> Option<Self> {
        soon(Self::try_connect(server, name, trust, key)).await
    }

    async fn try_connect(
        server: SocketAddr,
        name: &str,
        trust: &Trust,
        key: &NodePrivate,
    ) -> Option<Self> {
        let mut io = tls(server, name, trust).await.unwrap();
        let request = b"GET /derp HTTP/1.1\r\nHost: relay\r\nUpgrade: DERP\r\n\
            Connection: Upgrade\r\n\r\n";
        io.write_all(request).await.unwrap();
        let mut buffer = BytesMut::new();
        let end = loop {
            assert_ne!(io.read_buf(&mut buffer).await.unwrap(), 0);
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
        };
        assert!(buffer.starts_with(b"HTTP/1.1 101 "), "{buffer:?}");
        buffer.advance(end);
        let mut handshake = ClientHandshake::new(key.clone(), ClientInfo::node());
        let mut out = BytesMut::new();
        loop {
            match handshake.handle_input(&buffer, &mut out).unwrap() {
                Progress::Done { .. } => return Some(Self { io }),
                Progress::NeedMore { consumed } => buffer.advance(consumed),
            }
            io.write_all_buf(&mut out).await.ok()?;
            if io.read_buf(&mut buffer).await.ok()? == 0 {
                return None;
            }
        }
    }

    /// Returns once the relay has hung up.
    pub(crate) async fn until_closed(mut self) {
        let mut buffer = [0; 1024];
        soon(async { while !matches!(self.io.read(&mut buffer).await, Ok(0) | Err(_)) {} }).await;
    }
}

/// Accepts the certificate that the pin names, and no other.
#[derive(Debug)]
struct Pinned(String);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match relay::tls::pin(leaf) == self.0 {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(rustls::CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let algorithms = &provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, leaf, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let algorithms = &provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
