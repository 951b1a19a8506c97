//! Sockets: binding with errors that name the fix, and the options of accepted connections.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdUdpSocket};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Unacknowledged data kills the connection after this time (derp.md section 6).
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);
/// DERP has its own keepalive; the kernel's is a safety net.
const TCP_KEEPALIVE: Duration = Duration::from_secs(600);

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Somebody else listens there.
    #[error(
        "{what} port {address} is busy: stop what listens there, or choose another with {flag}"
    )]
    Busy {
        /// Protocol and use.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// The setting that moves it.
        flag: &'static str,
    },
    /// Anything else.
    #[error("cannot listen on {what} {address}: {source} (see {flag})")]
    Other {
        /// Protocol and use.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// The setting that moves it.
        flag: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Listens on TCP `address`; `what` and `flag` are for the error.
///
/// # Errors
///
/// [`BindError`].
pub async fn bind_tcp(
    address: SocketAddr,
    what: &'static str,
    flag: &'static str,
) -> Result<TcpListener, BindError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| bind_error(source, address, what, flag))
}

/// Binds UDP `address`; `what` and `flag` are for the error.
///
/// # Errors
///
/// [`BindError`].
pub async fn bind_udp(
    address: SocketAddr,
    what: &'static str,
    flag: &'static str,
) -> Result<UdpSocket, BindError> {
    let bound = UdpSocket::bind(address).await;
    bound.map_err(|source| bind_error(source, address, what, flag))
}

fn bind_error(
    source: io::Error,
    address: SocketAddr,
    what: &'static str,
    flag: &'static str,
) -> BindError {
    if source.kind() == io::ErrorKind::AddrInUse {
        return BindError::Busy {
            what,
            address,
            flag,
        };
    }
    BindError::Other {
        what,
        address,
        flag,
        source,
    }
}

/// Sets what every DERP connection wants: no delay, and death when the other end is gone.
///
/// # Errors
///
/// The system's, if the socket is already dead.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE))
}

/// The address that others can dial where we listen on `listen`: itself, or for 0.0.0.0 and :: the
/// source address of the default route; loopback if there is no route.
#[must_use]
pub fn reachable_ip(listen: IpAddr) -> IpAddr {
    if !listen.is_unspecified() {
        return listen;
    }
    // Connecting UDP sends nothing: it only chooses a route. The addresses are documentation's.
    let probe = |bind: SocketAddr, to: SocketAddr| {
        let socket = StdUdpSocket::bind(bind)?;
        socket.connect(to)?;
        io::Result::Ok(socket.local_addr()?.ip())
    };
    let v4 = probe(
        (Ipv4Addr::UNSPECIFIED, 0).into(),
        (Ipv4Addr::new(192, 0, 2, 1), 9).into(),
    );
    let any = v4.or_else(|_| {
        probe(
            (Ipv6Addr::UNSPECIFIED, 0).into(),
            (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9).into(),
        )
    });
    any.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// Raises the limit of open files as far as allowed: a connection is one file.
pub fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files (RLIMIT_NOFILE)");
    }
}
