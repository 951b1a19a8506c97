//! One connection to a relay: dial, TLS, HTTP upgrade or fast start, DERP handshake.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use derp_proto::{ClientHandshake, ClientInfo, HandshakeError, Progress, http};
use keys::NodePrivate;
use node_core::derp::{Address, Node, Region};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::tls;
use crate::underlay;

/// Time for TCP to one node of a region (derp.md §5).
const DIAL_TIMEOUT: Duration = Duration::from_millis(1500);
/// Head start of IPv4 when a node has both families.
const RACE_DELAY: Duration = Duration::from_millis(200);
/// Time for everything after TCP: TLS, upgrade, handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of an HTTP response head.
const MAX_HEAD_LEN: usize = 16 << 10;
const MAX_HEADERS: usize = 64;

/// Why a relay could not be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ConnectError {
    #[error("the region has no DERP server")]
    NoNodes,
    #[error("cannot resolve {host}")]
    Resolve { host: String, source: io::Error },
    #[error("{host} has no address of a family that may be used")]
    NoAddress { host: String },
    #[error("cannot connect to {host}")]
    Dial { host: String, source: io::Error },
    #[error("{host} did not answer in time")]
    Timeout { host: String },
    #[error("TLS with {host}: is the certificate name or pin in the DERP map right?")]
    Tls { host: String, source: io::Error },
    #[error("{host} did not switch to DERP: {answer}")]
    Upgrade { host: String, answer: String },
    #[error("{host} closed the connection; it may not admit this node")]
    Closed { host: String, source: io::Error },
    #[error("DERP handshake with {host}")]
    Handshake {
        host: String,
        source: HandshakeError,
    },
}

/// An admitted connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TlsStream<TcpStream>,
    /// Bytes that came behind the handshake: the first frames.
    pub(super) received: BytesMut,
}

/// Connects to the first node of `region` that answers, and proves `key` to it.
///
/// # Errors
///
/// The last node's [`ConnectError`].
pub(super) async fn connect(
    region: &Region,
    key: &NodePrivate,
) -> Result<Connection, ConnectError> {
    let mut result = Err(ConnectError::NoNodes);
    let ideal = region.nodes.iter().find(|node| !node.stun_only);
    for node in region.nodes.iter().filter(|node| !node.stun_only) {
        let ideal = ideal.filter(|ideal| ideal.name != node.name);
        result = connect_node(node, ideal, key).await;
        match &result {
            Ok(_) => break,
            Err(error) => {
                let error = error as &dyn std::error::Error;
                tracing::debug!(node = node.name, error, "relay node not reached");
            }
        }
    }
    result
}

async fn connect_node(
    node: &Node,
    ideal: Option<&Node>,
    key: &NodePrivate,
) -> Result<Connection, ConnectError> {
    let tcp = dial(node).await?;
    let host = &node.host;
    timeout(HANDSHAKE_TIMEOUT, async {
        let mut stream = start_tls(node, tcp).await?;
        let (received, result) = upgrade(&mut stream, node, ideal, key).await;
        result.map(|()| Connection { stream, received })
    })
    .await
    .unwrap_or_else(|_| Err(ConnectError::Timeout { host: host.clone() }))
}

/// Connects to a node and completes TLS, for DERP or for a latency probe.
///
/// # Errors
///
/// [`ConnectError`] of dialling or TLS.
pub(crate) async fn open_tls(node: &Node) -> Result<TlsStream<TcpStream>, ConnectError> {
    let tcp = dial(node).await?;
    timeout(HANDSHAKE_TIMEOUT, start_tls(node, tcp))
        .await
        .unwrap_or_else(|_| {
            Err(ConnectError::Timeout {
                host: node.host.clone(),
            })
        })
}

async fn start_tls(node: &Node, tcp: TcpStream) -> Result<TlsStream<TcpStream>, ConnectError> {
    let failed = |source| ConnectError::Tls {
        host: node.host.clone(),
        source,
    };
    let config = tls::config(node).map_err(|error| failed(io::Error::other(error)))?;
    let name = tls::parse_name(&node.host).map_err(|error| failed(io::Error::other(error)))?;
    TlsConnector::from(config)
        .connect(name, tcp)
        .await
        .map_err(failed)
}

/// HTTP upgrade (left out after a fast start) and DERP handshake; returns what was read beyond them.
async fn upgrade(
    stream: &mut TlsStream<TcpStream>,
    node: &Node,
    ideal: Option<&Node>,
    key: &NodePrivate,
) -> (BytesMut, Result<(), ConnectError>) {
    let mut received = BytesMut::with_capacity(MAX_HEAD_LEN);
    let result = try_upgrade(stream, &mut received, node, ideal, key).await;
    (received, result)
}

async fn try_upgrade(
    stream: &mut TlsStream<TcpStream>,
    received: &mut BytesMut,
    node: &Node,
    ideal: Option<&Node>,
    key: &NodePrivate,
) -> Result<(), ConnectError> {
    let host = || node.host.clone();
    let closed = |source| ConnectError::Closed {
        host: host(),
        source,
    };
    let refused = |source| ConnectError::Handshake {
        host: host(),
        source,
    };
    let (_, session) = stream.get_ref();
    let server = session.peer_certificates().and_then(tls::derp_key);

    let mut out = request(node, ideal, server.is_some());
    let mut handshake = match server {
        Some(server) => {
            ClientHandshake::fast_start(key.clone(), ClientInfo::node(), server, &mut out)
                .map_err(refused)?
        }
        None => ClientHandshake::new(key.clone(), ClientInfo::node()),
    };
    stream.write_all(&out).await.map_err(closed)?;
    stream.flush().await.map_err(closed)?;
    out.clear();
    if server.is_none() {
        read_response(stream, received, node).await?;
    }
    loop {
        let progress = handshake
            .handle_input(received, &mut out)
            .map_err(refused)?;
        if !out.is_empty() {
            stream.write_all(&out).await.map_err(closed)?;
            stream.flush().await.map_err(closed)?;
            out.clear();
        }
        match progress {
            Progress::Done { consumed, .. } => {
                received.advance(consumed);
                return Ok(());
            }
            Progress::NeedMore { consumed } => received.advance(consumed),
        }
        read_more(stream, received).await.map_err(closed)?;
    }
}

fn request(node: &Node, ideal: Option<&Node>, fast_start: bool) -> Vec<u8> {
    let mut request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: {}\r\nUser-Agent: tailrace\r\n",
        http::PATH,
        host_header(node),
        http::UPGRADE,
    );
    if let Some(ideal) = ideal {
        request.push_str(&format!("{}: {}\r\n", http::IDEAL_NODE, ideal.name));
    }
    if fast_start {
        request.push_str(&format!("{}: 1\r\n", http::FAST_START));
    }
    request.push_str("\r\n");
    request.into_bytes()
}

/// The node's name as an HTTP Host header takes it: an IPv6 address in brackets.
pub(crate) fn host_header(node: &Node) -> String {
    match node.host.parse() {
        Ok(IpAddr::V6(address)) => format!("[{address}]"),
        _ => node.host.clone(),
    }
}

/// Reads the response head and leaves what follows it in `received`.
async fn read_response(
    stream: &mut TlsStream<TcpStream>,
    received: &mut BytesMut,
    node: &Node,
) -> Result<(), ConnectError> {
    let refused = |answer: String| ConnectError::Upgrade {
        host: node.host.clone(),
        answer,
    };
    loop {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(received) {
            Ok(httparse::Status::Complete(len)) => {
                let code = response.code.unwrap_or(0);
                if code != 101 {
                    let reason = response.reason.unwrap_or("").to_owned();
                    return Err(refused(format!("status {code} {reason}")));
                }
                received.advance(len);
                return Ok(());
            }
            Ok(httparse::Status::Partial) if received.len() < MAX_HEAD_LEN => {}
            Ok(httparse::Status::Partial) => return Err(refused("endless response".into())),
            Err(error) => return Err(refused(error.to_string())),
        }
        read_more(stream, received)
            .await
            .map_err(|source| ConnectError::Closed {
                host: node.host.clone(),
                source,
            })?;
    }
}

async fn read_more(stream: &mut TlsStream<TcpStream>, received: &mut BytesMut) -> io::Result<()> {
    match stream.read_buf(received).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// Opens TCP to a node; with both families the first that answers wins, IPv4 starts first.
async fn dial(node: &Node) -> Result<TcpStream, ConnectError> {
    let host = || node.host.clone();
    let addresses = addresses(node).await?;
    let first = |v6: bool| addresses.iter().find(|a| a.is_ipv6() == v6).copied();
    let attempt = async {
        match (first(false), first(true)) {
            (Some(v4), Some(v6)) => race(v4, v6).await,
            (Some(one), None) | (None, Some(one)) => underlay::connect_tcp(one).await,
            (None, None) => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    };
    match timeout(DIAL_TIMEOUT, attempt).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) => Err(ConnectError::Dial {
            host: host(),
            source,
        }),
        Err(_) => Err(ConnectError::Timeout { host: host() }),
    }
}

async fn race(v4: SocketAddr, v6: SocketAddr) -> io::Result<TcpStream> {
    let mut first = std::pin::pin!(underlay::connect_tcp(v4));
    let second = async {
        tokio::time::sleep(RACE_DELAY).await;
        underlay::connect_tcp(v6).await
    };
    let mut second = std::pin::pin!(second);
    tokio::select! {
        result = &mut first => match result {
            Ok(stream) => Ok(stream),
            Err(_) => underlay::connect_tcp(v6).await,
        },
        result = &mut second => match result {
            Ok(stream) => Ok(stream),
            Err(_) => first.await,
        },
    }
}

/// Returns where a node may be dialled: fixed addresses of the map, else DNS, never a disabled family.
pub(crate) async fn addresses(node: &Node) -> Result<Vec<SocketAddr>, ConnectError> {
    let port = node.derp_port;
    let mut addresses = Vec::new();
    if let Address::Fixed(v4) = node.ipv4 {
        addresses.push(SocketAddr::from((v4, port)));
    }
    if let Address::Fixed(v6) = node.ipv6 {
        addresses.push(SocketAddr::from((v6, port)));
    }
    let wanted = |ip: IpAddr| match ip {
        IpAddr::V4(_) => node.ipv4 == Address::Resolve,
        IpAddr::V6(_) => node.ipv6 == Address::Resolve,
    };
    // A fixed address of one family is enough: the map's author left the other out.
    if addresses.is_empty() {
        let found = tokio::net::lookup_host((node.host.as_str(), port))
            .await
            .map_err(|source| ConnectError::Resolve {
                host: node.host.clone(),
                source,
            })?;
        addresses.extend(found.filter(|address| wanted(address.ip())));
    }
    if addresses.is_empty() {
        return Err(ConnectError::NoAddress {
            host: node.host.clone(),
        });
    }
    Ok(addresses)
}
