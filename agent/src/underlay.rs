//! Sockets of the underlay: marked, so that policy routing never sends them into the overlay.

pub(crate) mod checksum;
pub(crate) mod trust;
pub(crate) mod udp;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use netlink::rules::UNDERLAY_MARK;
use rustix::io::Errno;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

/// The way out is the way to these addresses, which are nobody's (RFC 5737, RFC 3849): there is no other route to
/// them.
pub(crate) const OUTSIDE: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(192, 0, 2, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
);
/// Unacknowledged data ends a connection after this long: a dead path is noticed, and dialled again.
const USER_TIMEOUT: Duration = Duration::from_secs(15);
/// An idle connection is probed after this long, to notice a dead path without traffic.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Connects to `remote` over TCP.
///
/// # Errors
///
/// Whatever the system answered; EPERM without CAP_NET_ADMIN.
pub(crate) async fn connect_tcp(remote: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(remote),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_mark(UNDERLAY_MARK)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(USER_TIMEOUT),
    )?;
    TcpSocket::from_std_stream(socket.into())
        .connect(remote)
        .await
}

/// Opens a UDP socket on `port`, or on a free one (0), of the family of IPv4 or IPv6.
///
/// # Errors
///
/// Whatever the system answered; EAFNOSUPPORT where the host has no IPv6.
pub(crate) fn open_udp_on(ipv6: bool, port: u16) -> io::Result<UdpSocket> {
    let (domain, address) = if ipv6 {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        (Domain::IPV6, any)
    } else {
        (
            Domain::IPV4,
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
        )
    };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if ipv6 {
        socket.set_only_v6(true)?;
    }
    socket.set_mark(UNDERLAY_MARK)?;
    socket.bind(&address.into())?;
    forbid_fragments(&socket, ipv6)?;
    UdpSocket::from_std(socket.into())
}

/// As [`open_udp_on`] with IPv6; `None` where the host has none, or it is switched off.
///
/// # Errors
///
/// Whatever else the system answered.
pub(crate) fn open_udp_v6(port: u16) -> io::Result<Option<UdpSocket>> {
    match open_udp_on(true, port) {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if is_without_ipv6(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_without_ipv6(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(code, Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

/// Has what a socket sends arrive whole or not at all, whatever the kernel believes of the path: pings that fill a
/// packet are to show what the path carries.
///
/// # Errors
///
/// Whatever the system answered.
pub(crate) fn forbid_fragments(socket: impl AsFd, ipv6: bool) -> io::Result<()> {
    let forbidden = if ipv6 {
        sockopt::set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::PROBE)
    } else {
        sockopt::set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::PROBE)
    };
    Ok(forbidden?)
}
