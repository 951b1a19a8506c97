//! A DERP client that does as little as possible, so that the server is what is measured.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, bail};
use bytes::{Buf as _, BytesMut};
use derp_proto::{ClientHandshake, ClientInfo, Progress};
use keys::{NodePrivate, NodePublic};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A connection past its handshake.
pub(super) struct Client {
    pub(super) key: NodePublic,
    pub(super) io: TlsStream<TcpStream>,
    /// Received behind the handshake.
    pub(super) buffer: BytesMut,
}

/// Connects a fresh node over TLS, with the normal start that every server knows.
pub(super) async fn connect(address: SocketAddr) -> anyhow::Result<Client> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::from(address.ip());
    let mut io = TlsConnector::from(config()?).connect(name, stream).await?;
    let request = format!(
        "GET /derp HTTP/1.1\r\nHost: {address}\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"
    );
    io.write_all(request.as_bytes()).await?;
    let mut buffer = BytesMut::with_capacity(4096);
    let head = loop {
        if io.read_buf(&mut buffer).await? == 0 {
            bail!("closed before an answer");
        }
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
    };
    if !buffer.starts_with(b"HTTP/1.1 101 ") {
        bail!("no upgrade: {}", String::from_utf8_lossy(&buffer[..head]));
    }
    buffer.advance(head);
    let key = NodePrivate::generate();
    let public = key.public();
    let mut handshake = ClientHandshake::new(key, ClientInfo::node());
    let mut out = BytesMut::new();
    loop {
        match handshake.handle_input(&buffer, &mut out)? {
            Progress::Done { consumed, .. } => {
                buffer.advance(consumed);
                return Ok(Client {
                    key: public,
                    io,
                    buffer,
                });
            }
            Progress::NeedMore { consumed } => buffer.advance(consumed),
        }
        io.write_all_buf(&mut out).await?;
        io.flush().await?;
        if io.read_buf(&mut buffer).await? == 0 {
            bail!("closed during the DERP handshake");
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Arc::clone(PROVIDER.get_or_init(make))
}

fn config() -> anyhow::Result<Arc<ClientConfig>> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(Arc::clone(config));
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .context("no TLS versions")?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything))
        .with_no_client_auth();
    Ok(Arc::clone(CONFIG.get_or_init(|| Arc::new(config))))
}

/// Takes any certificate: the servers under test are our own processes on loopback.
#[derive(Debug)]
struct Anything;

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls12_signature(message, leaf, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
