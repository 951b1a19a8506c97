//! A small DERP client for tests: no queues, no reconnecting, every frame in sight.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses a part of it"
)]

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf as _, Bytes, BytesMut};
use derp_proto::{
    ClientHandshake, ClientInfo, Frame, PeerGoneReason, Progress, kind, put_frame, split_frame,
};
use keys::{NodePrivate, NodePublic};
use relay::Server;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Where test clients claim to come from when there is no socket.
pub const REMOTE: SocketAddr = SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7)),
    7777,
);

pub struct Client<T> {
    pub key: NodePrivate,
    io: T,
    buffer: BytesMut,
}

/// A frame that outlives the buffer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Got {
    Packet(NodePublic, Vec<u8>),
    Gone(NodePublic, PeerGoneReason),
    Present(NodePublic, Option<SocketAddr>, u8),
    Pong([u8; 8]),
    KeepAlive,
}

/// How the server's side of an in-memory connection ended.
pub type Served = JoinHandle<Result<relay::server::Ended, relay::server::ServeError>>;

/// Connects through memory; `room` bytes fit between client and server.
pub async fn connect_with_room(
    server: &Server,
    key: &NodePrivate,
    info: ClientInfo,
    room: usize,
) -> (Option<Client<DuplexStream>>, Served) {
    let (near, far) = tokio::io::duplex(room);
    let server = server.clone();
    let served = tokio::spawn(async move { server.serve(far, REMOTE, Bytes::new()).await });
    let handshake = ClientHandshake::new(key.clone(), info);
    (
        Client::shake(near, key, handshake, BytesMut::new()).await,
        served,
    )
}

/// Connects an ordinary node through memory.
pub async fn connect(server: &Server) -> Client<DuplexStream> {
    connect_as(server, &NodePrivate::generate()).await
}

/// Connects the node `key` through memory.
pub async fn connect_as(server: &Server, key: &NodePrivate) -> Client<DuplexStream> {
    let (client, _) = connect_with_room(server, key, ClientInfo::node(), 1 << 20).await;
    client.expect("admitted")
}

/// Connects with TLS and HTTP as nodes do, with a fast start if the server's key is in sight.
pub async fn connect_tls(
    address: SocketAddr,
    pin: &str,
    tls12: bool,
) -> (Client<TlsStream<TcpStream>>, bool) {
    let stream = TcpStream::connect(address).await.unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = match tls12 {
        true => &[&rustls::version::TLS12][..],
        false => rustls::ALL_VERSIONS,
    };
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned(pin.to_owned())))
        .with_no_client_auth();
    let name = ServerName::from(address.ip());
    let mut io = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap();
    let certificates = io.get_ref().1.peer_certificates().unwrap_or_default();
    // As official clients do: certificates of TLS 1.2 are in the clear.
    let meta = certificates.iter().find_map(meta_key).filter(|_| !tls12);

    let key = NodePrivate::generate();
    let mut request = b"GET /derp HTTP/1.1\r\nHost: relay\r\nUpgrade: DERP\r\n\
        Connection: Upgrade\r\n"
        .to_vec();
    let mut buffer = BytesMut::new();
    let handshake = match meta {
        Some(server) => {
            request.extend_from_slice(b"Derp-Fast-Start: 1\r\n\r\n");
            let info = ClientInfo::node();
            let started = ClientHandshake::fast_start(key.clone(), info, server, &mut request);
            io.write_all(&request).await.unwrap();
            started.unwrap()
        }
        None => {
            request.extend_from_slice(b"\r\n");
            io.write_all(&request).await.unwrap();
            let end = loop {
                io.read_buf(&mut buffer).await.unwrap();
                if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                    break at + 4;
                }
            };
            assert!(buffer.starts_with(b"HTTP/1.1 101 "), "{buffer:?}");
            buffer.advance(end);
            ClientHandshake::new(key.clone(), ClientInfo::node())
        }
    };
    let client = Client::shake(io, &key, handshake, buffer).await.unwrap();
    (client, meta.is_some())
}

fn meta_key(certificate: &CertificateDer<'_>) -> Option<NodePublic> {
    use x509_parser::prelude::FromDer as _;

    let (_, parsed) = x509_parser::prelude::X509Certificate::from_der(certificate).unwrap();
    let name = parsed
        .subject()
        .iter_common_name()
        .next()?
        .as_str()
        .ok()?
        .to_owned();
    derp_proto::meta::key_from_common_name(&name)
}

impl<T: AsyncRead + AsyncWrite + Unpin> Client<T> {
    /// `None` if the server closes instead of admitting.
    async fn shake(
        mut io: T,
        key: &NodePrivate,
        mut handshake: ClientHandshake,
        mut buffer: BytesMut,
    ) -> Option<Self> {
        let mut out = BytesMut::new();
        loop {
            match handshake.handle_input(&buffer, &mut out).unwrap() {
                Progress::Done { consumed, .. } => {
                    buffer.advance(consumed);
                    let key = key.clone();
                    return Some(Self { key, io, buffer });
                }
                Progress::NeedMore { consumed } => buffer.advance(consumed),
            }
            io.write_all_buf(&mut out).await.ok()?;
            if io.read_buf(&mut buffer).await.ok()? == 0 {
                return None;
            }
        }
    }

    pub fn public(&self) -> NodePublic {
        self.key.public()
    }

    pub async fn send(&mut self, destination: NodePublic, packet: &[u8]) {
        self.put(Frame::SendPacket {
            destination,
            packet,
        })
        .await;
    }

    pub async fn put(&mut self, frame: Frame<'_>) {
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        self.raw(&out).await;
    }

    pub async fn put_raw(&mut self, kind: u8, body: &[u8]) {
        let mut out = BytesMut::new();
        put_frame(&mut out, kind, &[body]);
        self.raw(&out).await;
    }

    /// Writes bytes; a server that has hung up is for the test to find out by reading.
    pub async fn raw(&mut self, bytes: &[u8]) {
        let _ = self.io.write_all(bytes).await;
        let _ = self.io.flush().await;
    }

    /// The next frame; `None` when the server has closed.
    pub async fn next(&mut self) -> Option<Got> {
        loop {
            if let Some(raw) = split_frame(&self.buffer).unwrap() {
                let len = raw.wire_len();
                let got = match Frame::parse(raw).unwrap() {
                    Frame::RecvPacket { source, packet } => Got::Packet(source, packet.to_vec()),
                    Frame::PeerGone { key, reason } => Got::Gone(key, reason),
                    Frame::PeerPresent { key, remote, flags } => Got::Present(key, remote, flags),
                    Frame::Pong(data) => Got::Pong(data),
                    Frame::KeepAlive => Got::KeepAlive,
                    other => panic!("unexpected {other:?}"),
                };
                self.buffer.advance(len);
                return Some(got);
            }
            match self.io.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// Returns when the server has dealt with everything sent so far; frames before go to `seen`.
    pub async fn sync(&mut self) -> Vec<Got> {
        self.put(Frame::Ping(*b"syncsync")).await;
        let mut seen = Vec::new();
        loop {
            match self.next().await.expect("connection open") {
                Got::Pong(data) => {
                    assert_eq!(&data, b"syncsync");
                    return seen;
                }
                other => seen.push(other),
            }
        }
    }

    /// Announces a body of `len` bytes and sends none of it.
    pub async fn announce(&mut self, kind: u8, len: u32) {
        let mut header = vec![kind];
        header.extend_from_slice(&len.to_be_bytes());
        self.raw(&header).await;
    }
}

/// A disco-shaped packet.
pub fn disco() -> Vec<u8> {
    let mut packet = "TS💬".as_bytes().to_vec();
    packet.resize(124, 7);
    packet
}

/// The kinds that only a mesh server may send, as whole frames.
pub fn mesh_frames() -> Vec<Vec<u8>> {
    let mut frames = vec![Vec::new(), Vec::new(), Vec::new()];
    put_frame(&mut frames[0], kind::WATCH_CONNS, &[]);
    put_frame(&mut frames[1], kind::CLOSE_PEER, &[&[1; 32]]);
    put_frame(&mut frames[2], kind::FORWARD_PACKET, &[&[1; 64]]);
    frames
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
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let algorithms = &provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, leaf, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
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
