//! One connection to a relay: dial, TLS, HTTP upgrade or fast start, DERP handshake.

use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use derp_proto::{ClientHandshake, ClientInfo, HandshakeError, Progress, ServerInfo, http};
use keys::NodePrivate;
use node_core::derp::{Node, Region};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{addresses, tls};
use crate::underlay::{self, trust};

/// Time to be admitted by one node, from DNS to the end of the handshake (derp.md §4).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for DNS within it.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(4);
/// Time for TCP to one node of a region (derp.md §5).
const DIAL_TIMEOUT: Duration = Duration::from_millis(1500);
/// Head start of IPv4 when a node has both families.
const RACE_DELAY: Duration = Duration::from_millis(200);
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

/// TLS reads 4 KiB at a time; the system is asked for more.
const READ_AHEAD_LEN: usize = 64 << 10;

type Stream = TlsStream<BufReader<TcpStream>>;

/// An admitted connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: Stream,
    /// Bytes that came behind the handshake: the first frames.
    pub(super) received: BytesMut,
    /// What the relay says about itself.
    pub(super) info: ServerInfo,
    /// Where it goes out from.
    pub(super) local: IpAddr,
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
    within(CONNECT_TIMEOUT, node, async {
        let tcp = dial(node).await?;
        let local = tcp.local_addr().map_err(|source| ConnectError::Dial {
            host: node.host.clone(),
            source,
        })?;
        let tcp = BufReader::with_capacity(READ_AHEAD_LEN, tcp);
        let mut stream = start_tls(node, tcp).await?;
        let mut received = BytesMut::with_capacity(MAX_HEAD_LEN);
        let info = upgrade(&mut stream, &mut received, node, ideal, key).await?;
        Ok(Connection {
            stream,
            received,
            info,
            local: local.ip(),
        })
    })
    .await
}

/// Gives an attempt at a node some time and no more.
async fn within<T>(
    limit: Duration,
    node: &Node,
    attempt: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    timeout(limit, attempt).await.unwrap_or_else(|_| {
        Err(ConnectError::Timeout {
            host: node.host.clone(),
        })
    })
}

/// Connects to a node and completes TLS, for DERP or for a latency probe.
///
/// # Errors
///
/// [`ConnectError`] of dialling or TLS.
pub(crate) async fn open_tls(node: &Node) -> Result<TlsStream<TcpStream>, ConnectError> {
    within(CONNECT_TIMEOUT, node, async {
        let tcp = dial(node).await?;
        start_tls(node, tcp).await
    })
    .await
}

async fn start_tls<T: AsyncRead + AsyncWrite + Unpin>(
    node: &Node,
    tcp: T,
) -> Result<TlsStream<T>, ConnectError> {
    let failed = |source| ConnectError::Tls {
        host: node.host.clone(),
        source,
    };
    let config = tls::config(node).map_err(|error| failed(io::Error::other(error)))?;
    let name = tls::parse_name(&node.host).map_err(|error| failed(io::Error::other(error)))?;
    let connected = TlsConnector::from(config).connect(name, tcp).await;
    connected.map_err(|error| {
        trust::forget();
        failed(error)
    })
}

/// HTTP upgrade (left out after a fast start) and DERP handshake; leaves in `received` what was read
/// beyond them.
async fn upgrade(
    stream: &mut Stream,
    received: &mut BytesMut,
    node: &Node,
    ideal: Option<&Node>,
    key: &NodePrivate,
) -> Result<ServerInfo, ConnectError> {
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
            Progress::Done { consumed, result } => {
                received.advance(consumed);
                return Ok(result);
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
    stream: &mut Stream,
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

async fn read_more(stream: &mut Stream, received: &mut BytesMut) -> io::Result<()> {
    match stream.read_buf(received).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// Opens TCP to a node; with both families the first that answers wins, IPv4 starts first.
async fn dial(node: &Node) -> Result<TcpStream, ConnectError> {
    let host = || node.host.clone();
    let lookup = timeout(RESOLVE_TIMEOUT, addresses(node, node.derp_port)).await;
    let addresses = lookup
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|source| ConnectError::Resolve {
            host: host(),
            source,
        })?;
    let first = |v6: bool| addresses.iter().find(|a| a.is_ipv6() == v6).copied();
    let attempt = async {
        let stream = match (first(false), first(true)) {
            (Some(v4), Some(v6)) => {
                race(underlay::connect_tcp(v4), underlay::connect_tcp(v6)).await
            }
            (Some(one), None) | (None, Some(one)) => underlay::connect_tcp(one).await,
            (None, None) => return Err(ConnectError::NoAddress { host: host() }),
        };
        stream.map_err(|source| ConnectError::Dial {
            host: host(),
            source,
        })
    };
    within(DIAL_TIMEOUT, node, attempt).await
}

/// Returns what answers first; `second` starts once `first` failed or had its head start.
async fn race<T>(
    first: impl Future<Output = io::Result<T>>,
    second: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    let first_failed = Notify::new();
    let second = async {
        // Either way it is the second's turn.
        let _ = timeout(RACE_DELAY, first_failed.notified()).await;
        second.await
    };
    let (mut first, mut second) = (pin!(first), pin!(second));
    tokio::select! {
        result = &mut first => match result {
            Ok(stream) => Ok(stream),
            Err(_) => {
                first_failed.notify_one();
                second.await
            }
        },
        result = &mut second => match result {
            Ok(stream) => Ok(stream),
            Err(_) => first.await,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::{Instant, sleep};

    use super::*;

    fn refused() -> io::Result<u8> {
        Err(io::ErrorKind::ConnectionRefused.into())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_wins_within_its_head_start() {
        let second = async { panic!("not its turn") };
        assert_eq!(race(ready(Ok(1)), second).await.unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_starts_at_once_when_the_first_fails() {
        let start = Instant::now();
        assert_eq!(race(ready(refused()), ready(Ok(2))).await.unwrap(), 2);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_that_is_under_way_is_not_started_again() {
        let started = AtomicU32::new(0);
        let start = Instant::now();
        let first = async {
            sleep(Duration::from_millis(500)).await;
            refused()
        };
        let second = async {
            started.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(400)).await;
            Ok(2)
        };
        assert_eq!(race(first, second).await.unwrap(), 2);
        assert_eq!(started.load(Ordering::Relaxed), 1);
        assert_eq!(start.elapsed(), Duration::from_millis(600));
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_goes_when_the_first_hangs_and_the_first_may_still_win() {
        assert_eq!(race(pending(), ready(Ok(2))).await.unwrap(), 2);
        let late = async {
            sleep(Duration::from_secs(1)).await;
            Ok(1)
        };
        assert_eq!(race(late, ready(refused())).await.unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_ends_with_its_time() {
        let node = Node {
            name: "1a".into(),
            host: "relay.example".into(),
            ipv4: node_core::derp::Address::Resolve,
            ipv6: node_core::derp::Address::Resolve,
            derp_port: 443,
            stun_only: false,
            stun_port: None,
            stun_ip: None,
            http: false,
            certificate: node_core::derp::Certificate::HostName,
        };
        let start = Instant::now();
        let ended: Result<(), _> = within(CONNECT_TIMEOUT, &node, pending()).await;
        let text = ended.unwrap_err().to_string();
        assert!(text.starts_with("relay.example did not answer"), "{text}");
        assert_eq!(start.elapsed(), CONNECT_TIMEOUT);
    }
}
