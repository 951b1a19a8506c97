//! The sockets of one site: towards its router, for searches, and for what it announces.

use std::future::pending;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::UdpSocket;

use super::machine::Site;
use super::upnp;
use crate::underlay;

/// Where routers listen for NAT-PMP and PCP.
const PORT: u16 = 5351;
/// Where they announce that they have restarted (RFC 6886 §3.2.1, RFC 6887 §14.1.3).
const NEWS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 1), 5350);

/// Sockets of one site.
#[derive(Debug)]
pub(super) struct Sockets {
    site: Site,
    router: UdpSocket,
    search: UdpSocket,
    news: Option<UdpSocket>,
}

impl Sockets {
    /// Opens them.
    ///
    /// # Errors
    ///
    /// Whatever the system answered. Announcements are not heard where the port is taken: without them it takes a
    /// minute until a restart is noticed.
    pub(super) async fn open(site: Site) -> io::Result<Self> {
        let router = underlay::open_udp_on(false, 0)?;
        router.connect((site.gateway, PORT)).await?;
        let search = underlay::open_udp_on(false, 0)?;
        SockRef::from(&search).set_multicast_if_v4(&site.own)?;
        let news = open_news(site.own);
        if let Err(error) = &news {
            tracing::debug!(%error, "what the router announces is not heard");
        }
        Ok(Self {
            site,
            router,
            search,
            news: news.ok(),
        })
    }

    pub(super) fn site(&self) -> Site {
        self.site
    }

    /// Connected to the router's port for NAT-PMP and PCP, so that nobody else is heard on it.
    pub(super) fn router(&self) -> &UdpSocket {
        &self.router
    }

    /// For searches.
    pub(super) fn search(&self) -> &UdpSocket {
        &self.search
    }

    /// For announcements, of whomever.
    pub(super) fn news(&self) -> Option<&UdpSocket> {
        self.news.as_ref()
    }

    /// Searches at the router, and at all: some answer to the one, some to the other.
    pub(super) async fn search_all(&self) {
        let router = SocketAddrV4::new(self.site.gateway, upnp::PORT);
        for to in [router, upnp::GROUP] {
            for search in upnp::searches() {
                if let Err(error) = self.search.send_to(search.as_bytes(), to).await {
                    tracing::trace!(%error, %to, "no search");
                }
            }
        }
    }
}

/// Opens a socket that hears what is announced to all on the network of our address `own`. Others on this host may
/// hear it, too.
fn open_news(own: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    // Every host is in this group on all its networks; only the router's counts.
    socket.set_multicast_all_v4(false)?;
    socket.bind(&NEWS.into())?;
    socket.join_multicast_v4(NEWS.ip(), &own)?;
    UdpSocket::from_std(socket.into())
}

/// Waits for a datagram; for ever without a socket.
pub(super) async fn receive(
    socket: Option<&UdpSocket>,
    buffer: &mut [u8],
) -> io::Result<(usize, SocketAddr)> {
    match socket {
        Some(socket) => socket.recv_from(buffer).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn announcements_are_heard_beside_others() {
        // The loopback carries no announcements of its own, so that nobody else is in the way.
        let heard = open_news(Ipv4Addr::LOCALHOST).unwrap();
        let beside = open_news(Ipv4Addr::LOCALHOST).unwrap();
        let router = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        SockRef::from(&router)
            .set_multicast_if_v4(&Ipv4Addr::LOCALHOST)
            .unwrap();
        router.send_to(b"news", NEWS).await.unwrap();
        for socket in [heard, beside] {
            let mut buffer = [0; 16];
            let (len, from) = receive(Some(&socket), &mut buffer).await.unwrap();
            assert_eq!(
                (&buffer[..len], from),
                (&b"news"[..], router.local_addr().unwrap())
            );
        }
    }
}
