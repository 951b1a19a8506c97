//! Relayed peers: one UDP socket between WireGuard and the relays.
//!
//! ```text
//! WireGuard :P ──► 127.64.x.y:R ──► [socket] ──► relay      the address names the peer
//! WireGuard :P ◄── 127.64.x.y:R ◄── [socket] ◄── relay      and stays the peer's endpoint
//! ```
//!
//! The embedded tunnel is in this process: its packets take no socket (`in_process.rs`).
//!
//! 127.0.0.0/8 is local everywhere, so a socket on 0.0.0.0 receives for every synthetic address; it
//! is bound to `lo`, nothing outside reaches it. Reads are batched (recvmmsg), packets of one size
//! towards WireGuard leave in one call (UDP_SEGMENT).

mod beside;
mod delivery;
mod in_process;

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::BytesMut;
use nix::sys::socket::sockopt::UdpGroSegment;
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tunnel::Inlet;

use crate::derp::Manager;
use crate::net::peers::{Peer, Peers};
use crate::net::traffic;
use crate::paths::{Event, Handle, Wire};

pub(crate) use beside::Beside;
use beside::Table;
pub(crate) use delivery::{Delivery, Inbound, is_wireguard};
pub(crate) use in_process::InProcess;

/// Longest outer WireGuard packet that we carry: what a direct path of MTU 9000, lost just now, was used for.
const MAX_DATAGRAM_LEN: usize = 9000;
/// Most bytes in one UDP_SEGMENT send.
const MAX_TRAIN_LEN: usize = 60_000;
/// Room for bursts of WireGuard while a relay's TLS works.
const SOCKET_BUFFER_LEN: usize = 2 << 20;

/// Where packets from WireGuard go.
#[derive(Clone, Debug)]
pub(crate) struct Outbound {
    pub(crate) peers: Peers,
    pub(crate) relays: Manager,
    pub(crate) paths: Handle,
    pub(crate) wire: std::sync::Arc<Wire>,
}

impl Outbound {
    /// Hands packets to the relay by which a peer is reached. Without one they are lost, as on any network.
    fn relay<'a>(&self, peer: &Peer, packets: impl Iterator<Item = &'a [u8]> + Clone) {
        if packets.clone().next().is_some() && peer.is_worth_telling() {
            self.paths.try_tell(Event::Sent(peer.key));
        }
        if let Some(region) = self.relays.send(&peer.key, peer.home, packets.clone()) {
            traffic::note_sent(&self.peers.regions.of(region), &peer.relayed, packets);
        }
    }
}

/// The socket between WireGuard and the relays.
#[derive(Debug)]
pub(crate) struct Relayed {
    socket: UdpSocket,
    state: UdpSocketState,
    port: u16,
    wireguard: SocketAddr,
    beside: Table,
    /// The way to WireGuard while that is in this process.
    inlet: Inlet,
}

impl Relayed {
    /// Binds the socket, to `preferred` if that is free, else to any port. What relays bring takes `inlet`
    /// while that is open.
    ///
    /// # Errors
    ///
    /// Whatever the system answered.
    pub(crate) fn bind(
        preferred: Option<u16>,
        wireguard_port: u16,
        inlet: Inlet,
    ) -> io::Result<Self> {
        let socket = match preferred.map(bind) {
            Some(Ok(socket)) => socket,
            _ => bind(0)?,
        };
        let socket = UdpSocket::from_std(socket)?;
        let state = UdpSocketState::new((&socket).into())?;
        // `lo` coalesces nothing, and a train of one sender's UDP_SEGMENT must arrive in parts that
        // fit our buffers.
        nix::sys::socket::setsockopt(&socket, UdpGroSegment, &false)?;
        // More is better, less still works: without the capability the system caps it.
        let set = set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_LEN)
            .or_else(|_| set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_LEN));
        if let Err(error) = set {
            tracing::debug!(%error, "receive buffer of the relay socket stays small");
        }
        Ok(Self {
            port: socket.local_addr()?.port(),
            socket,
            state,
            wireguard: SocketAddr::from((Ipv4Addr::LOCALHOST, wireguard_port)),
            beside: Table::default(),
            inlet,
        })
    }

    /// UDP port of every synthetic endpoint.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Sets what a peer's relayed packets meet beside the relay; `address` is its synthetic one.
    pub(crate) fn set_beside(&self, address: Ipv4Addr, beside: Option<Beside>) {
        self.beside.set(address, beside);
    }

    /// Carries packets from WireGuard to the relays until the socket fails.
    pub(crate) async fn serve(&self, to: &Outbound) -> io::Error {
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
                Ok(count) => self.forward(&metas[..count], &buffers, to).await,
                // ICMP errors of earlier sends: WireGuard's port was closed for a moment.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return error,
            }
        }
    }

    async fn forward(&self, metas: &[RecvMeta], buffers: &[u8], to: &Outbound) {
        let table = to.peers.snapshot();
        let mut buffers = buffers;
        for run in metas.chunk_by(|a, b| a.dst_ip == b.dst_ip) {
            let (filled, rest) = buffers.split_at(run.len() * MAX_DATAGRAM_LEN);
            buffers = rest;
            let Some(IpAddr::V4(address)) = run[0].dst_ip else {
                continue;
            };
            let Some(peer) = table.by_address(address) else {
                continue;
            };
            let packets = || {
                run.iter()
                    .zip(filled.chunks(MAX_DATAGRAM_LEN))
                    .filter(|(meta, _)| meta.stride > 0 && self.is_wireguards(meta.addr))
                    .flat_map(|(meta, buffer)| {
                        buffer[..meta.len.min(buffer.len())].chunks(meta.stride)
                    })
            };
            to.relay(peer, packets());
            let Some(Beside::Mirror(address)) = self.beside.of(peer.address) else {
                continue;
            };
            for packet in packets() {
                if let Err(error) = to.wire.send(packet, address).await {
                    tracing::trace!(%error, "a packet was sent by the relay only");
                }
            }
        }
    }

    /// Only WireGuard's own socket may speak for this node.
    fn is_wireguards(&self, source: SocketAddr) -> bool {
        source.ip().is_loopback() && source.port() == self.wireguard.port()
    }

    /// Hands packets from one peer to WireGuard.
    async fn inject(&self, source: Ipv4Addr, packets: &mut Vec<BytesMut>) -> io::Result<()> {
        let beside = self.beside.of(source);
        if self.inlet.is_open() {
            let from = match beside {
                Some(Beside::Source { from, .. }) => from,
                _ => SocketAddr::from((source, self.port)),
            };
            self.inlet.deliver(from, packets.drain(..));
            return Ok(());
        }
        if let Some(Beside::Source { from, to }) = beside {
            return self.beside.inject(from, to, packets.iter().map(|p| &p[..]));
        }
        let mut rest = &packets[..];
        let mut contents = Vec::new();
        while let Some(first) = rest.first() {
            let (train, after) = rest.split_at(train_len(rest, self.state.max_gso_segments()));
            rest = after;
            let lone = train.len() == 1;
            if !lone {
                contents.clear();
                contents.extend(train.iter().flatten());
            }
            let transmit = Transmit {
                destination: self.wireguard,
                ecn: None,
                contents: if lone { first } else { &contents },
                segment_size: Some(first.len()),
                src_ip: Some(source.into()),
            };
            self.socket
                .async_io(Interest::WRITABLE, || {
                    self.state.try_send((&self.socket).into(), &transmit)
                })
                .await?;
        }
        Ok(())
    }
}

/// How many packets from the front can leave in one call: equal lengths, only the last may be shorter.
fn train_len(packets: &[BytesMut], most: usize) -> usize {
    let size = packets.first().map_or(0, |packet| packet.len());
    let most = most.min(MAX_TRAIN_LEN / size.max(1)).max(1);
    let alike = packets.iter().take(most);
    let alike = alike.take_while(|packet| packet.len() == size).count();
    let shorter = packets.get(alike).is_some_and(|packet| packet.len() < size);
    alike + usize::from(shorter && alike < most)
}

fn bind(port: u16) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    socket.bind_device(Some(b"lo"))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_train_has_one_length_and_ends_with_a_shorter_packet() {
        let lens = |lens: &[usize], most: usize| {
            let packets: Vec<_> = lens.iter().map(|len| BytesMut::zeroed(*len)).collect();
            train_len(&packets, most)
        };
        assert_eq!(lens(&[100, 100, 100], 64), 3);
        assert_eq!(lens(&[100, 100, 50, 100], 64), 3);
        assert_eq!(lens(&[100, 100, 150], 64), 2);
        assert_eq!(lens(&[100, 100, 100], 2), 2);
        assert_eq!(lens(&[100, 100, 50], 2), 2);
        assert_eq!(lens(&[2000; 64], 64), MAX_TRAIN_LEN / 2000);
    }
}
