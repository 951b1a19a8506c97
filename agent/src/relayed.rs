//! Relayed peers: one UDP socket between WireGuard and the relays.
//!
//! ```text
//! WireGuard :P ──► 127.64.x.y:R ──► [socket] ──► relay      the address names the peer
//! WireGuard :P ◄── 127.64.x.y:R ◄── [socket] ◄── relay      and stays the peer's endpoint
//! ```
//!
//! 127.0.0.0/8 is local everywhere, so a socket on 0.0.0.0 receives for every synthetic address; it
//! is bound to `lo`, nothing outside reaches it. Reads are batched (recvmmsg), packets of one size
//! towards WireGuard leave in one call (UDP_SEGMENT).

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use keys::NodePublic;
use nix::sys::socket::sockopt::UdpGroSegment;
use node_core::RegionId;
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::derp::Manager;
use crate::net::disco::Disco;
use crate::net::peers::Peers;

/// Longest outer WireGuard packet that we carry: what WireGuard makes of the largest overlay MTU here.
const MAX_DATAGRAM_LEN: usize = 2048;
/// Most bytes in one UDP_SEGMENT send.
const MAX_SEGMENTS_LEN: usize = 60_000;
/// Room for bursts of WireGuard while a relay's TLS works.
const SOCKET_BUFFER_LEN: usize = 2 << 20;

/// The socket between WireGuard and the relays.
#[derive(Debug)]
pub(crate) struct Relayed {
    socket: UdpSocket,
    state: UdpSocketState,
    port: u16,
    wireguard: SocketAddr,
}

impl Relayed {
    /// Binds the socket, to `preferred` if that is free, else to any port.
    ///
    /// # Errors
    ///
    /// Whatever the system answered.
    pub(crate) fn bind(preferred: Option<u16>, wireguard_port: u16) -> io::Result<Self> {
        let socket = match preferred.map(bind) {
            Some(Ok(socket)) => socket,
            _ => bind(0)?,
        };
        let socket = UdpSocket::from_std(socket)?;
        let state = UdpSocketState::new((&socket).into())?;
        // `lo` coalesces nothing, and a train of one sender's UDP_SEGMENT must arrive in parts that
        // fit our buffers.
        nix::sys::socket::setsockopt(&socket, UdpGroSegment, &false)?;
        // More is better, less still works: the system may cap it.
        if let Err(error) = state.set_recv_buffer_size((&socket).into(), SOCKET_BUFFER_LEN) {
            tracing::debug!(%error, "receive buffer of the relay socket stays small");
        }
        Ok(Self {
            port: socket.local_addr()?.port(),
            socket,
            state,
            wireguard: SocketAddr::from((Ipv4Addr::LOCALHOST, wireguard_port)),
        })
    }

    /// UDP port of every synthetic endpoint.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Carries packets from WireGuard to the relays until the socket fails.
    pub(crate) async fn serve(&self, peers: &Peers, relays: &Manager) -> io::Error {
        let mut buffers = vec![0; BATCH_SIZE * MAX_DATAGRAM_LEN];
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        loop {
            let received = self.socket.async_io(Interest::READABLE, || {
                let mut slices = buffers.chunks_mut(MAX_DATAGRAM_LEN).map(IoSliceMut::new);
                let mut slices: [IoSliceMut<'_>; BATCH_SIZE] = std::array::from_fn(|_| {
                    slices.next().unwrap_or_else(|| IoSliceMut::new(&mut []))
                });
                self.state
                    .recv((&self.socket).into(), &mut slices, &mut metas)
            });
            match received.await {
                Ok(count) => self.forward(&metas[..count], &buffers, peers, relays),
                // ICMP errors of earlier sends: WireGuard's port was closed for a moment.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return error,
            }
        }
    }

    fn forward(&self, metas: &[RecvMeta], buffers: &[u8], peers: &Peers, relays: &Manager) {
        let table = peers.snapshot();
        let mut last = None;
        for (meta, buffer) in metas.iter().zip(buffers.chunks(MAX_DATAGRAM_LEN)) {
            // Only WireGuard's own socket may speak for this node.
            let from_wireguard =
                meta.addr.ip().is_loopback() && meta.addr.port() == self.wireguard.port();
            let Some(IpAddr::V4(address)) = meta.dst_ip else {
                continue;
            };
            if !from_wireguard || meta.stride == 0 {
                continue;
            }
            let link = match &last {
                Some((known, link)) if *known == address => link,
                _ => {
                    let peer = table.by_address(address);
                    let link = peer
                        .and_then(|peer| Some((peer.key, relays.link_to(&peer.key, peer.home)?)));
                    &last.insert((address, link)).1
                }
            };
            let Some((peer, link)) = link else { continue };
            for packet in buffer[..meta.len.min(buffer.len())].chunks(meta.stride) {
                link.send(*peer, packet);
            }
        }
    }

    /// Hands packets of one size from one peer to WireGuard.
    async fn inject(&self, source: Ipv4Addr, packets: &[u8], size: usize) -> io::Result<()> {
        let transmit = Transmit {
            destination: self.wireguard,
            ecn: None,
            contents: packets,
            segment_size: Some(size),
            src_ip: Some(source.into()),
        };
        self.socket
            .async_io(Interest::WRITABLE, || {
                self.state.try_send((&self.socket).into(), &transmit)
            })
            .await
    }

    /// Most packets in one call of [`Self::inject`].
    fn max_segments(&self) -> usize {
        self.state.max_gso_segments()
    }
}

fn bind(port: u16) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    socket.bind_device(Some(b"lo"))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    Ok(socket.into())
}

/// Where packets from relays go: to WireGuard or to disco.
#[derive(Clone, Debug)]
pub(crate) struct Inbound {
    /// The socket to WireGuard.
    pub(crate) relayed: Arc<Relayed>,
    /// Who may send.
    pub(crate) peers: Peers,
    /// Answers pings.
    pub(crate) disco: Arc<Disco>,
}

impl Inbound {
    /// Opens the way in for one relay connection.
    pub(crate) fn delivery(&self, region: RegionId) -> Delivery {
        Delivery {
            inbound: self.clone(),
            region,
            source: Ipv4Addr::UNSPECIFIED,
            size: 0,
            count: 0,
            packets: Vec::new(),
        }
    }
}

/// Packets of one relay connection on their way to WireGuard, gathered while they are alike.
#[derive(Debug)]
pub(crate) struct Delivery {
    inbound: Inbound,
    region: RegionId,
    source: Ipv4Addr,
    size: usize,
    count: usize,
    packets: Vec<u8>,
}

/// What a relay connection has to know about a packet that it delivered.
#[derive(Debug, Default)]
pub(crate) struct Handled {
    /// The peer's home is another region.
    pub(crate) away_from_home: bool,
    /// A datagram to send back.
    pub(crate) reply: Option<Vec<u8>>,
}

impl Delivery {
    /// Takes one packet off the relay. Follow a batch of packets with [`Self::flush`].
    pub(crate) async fn handle(&mut self, source: NodePublic, packet: &[u8]) -> Handled {
        let table = self.inbound.peers.snapshot();
        let Some(peer) = table.by_key(&source) else {
            return Handled::default();
        };
        let mut handled = Handled {
            away_from_home: peer.home != Some(self.region),
            reply: None,
        };
        if derp_proto::is_disco(packet) {
            handled.reply = self.inbound.disco.handle(self.region, peer, packet);
        } else if is_wireguard(packet) && packet.len() <= MAX_DATAGRAM_LEN {
            self.push(peer.address, packet).await;
        }
        handled
    }

    async fn push(&mut self, source: Ipv4Addr, packet: &[u8]) {
        let fits = self.source == source
            && packet.len() <= self.size
            && self.count < self.inbound.relayed.max_segments()
            && self.packets.len() + packet.len() <= MAX_SEGMENTS_LEN;
        if !fits {
            self.flush().await;
            self.source = source;
            self.size = packet.len();
        }
        self.packets.extend_from_slice(packet);
        self.count += 1;
        // A shorter packet ends the train: only the last segment may be short.
        if packet.len() < self.size {
            self.flush().await;
        }
    }

    /// Hands over what is gathered.
    pub(crate) async fn flush(&mut self) {
        if self.packets.is_empty() {
            return;
        }
        let relayed = &self.inbound.relayed;
        if let Err(error) = relayed.inject(self.source, &self.packets, self.size).await {
            // As on any network, the packets are lost and sent again.
            tracing::trace!(%error, "packets from a relay not handed to WireGuard");
        }
        self.packets.clear();
        self.count = 0;
        self.size = 0;
    }
}

/// True if a packet has the shape of a WireGuard message: type 1–4 and a length that fits it.
fn is_wireguard(packet: &[u8]) -> bool {
    match packet.first_chunk::<4>() {
        Some([1, 0, 0, 0]) => packet.len() == 148,
        Some([2, 0, 0, 0]) => packet.len() == 92,
        Some([3, 0, 0, 0]) => packet.len() == 64,
        Some([4, 0, 0, 0]) => packet.len() >= 32,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
