//! The port demux: the agent's own datagrams (discovery, STUN, peer relays) on the port that kernel WireGuard holds.
//!
//! With netfilter a table rewrites ports, and the agent reads an ordinary socket; without it raw sockets take a copy
//! of what looks like disco or STUN, and send from its port. Both decide by the first words of the payload.

use std::io;
use std::net::SocketAddr;

use disco_proto::{disco, stun};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::net::UdpSocket;

use crate::underlay::{self, udp};

/// How disco begins, as far as one load reaches.
const DISCO: u32 = {
    let [a, b, c, d, ..] = disco::MAGIC;
    u32::from_be_bytes([a, b, c, d])
};
/// What STUN has behind its first word.
const STUN: u32 = u32::from_be_bytes(stun::COOKIE);

/// The longest IPv4 header with a UDP header: room that a receive buffer needs beside the payload.
const HEADROOM: usize = 60 + udp::HEADER;

/// Where the agent sends and receives its datagrams.
#[derive(Debug)]
pub enum Demux {
    /// A table rewrites ports between WireGuard's and that of these sockets.
    Rewritten {
        /// IPv4.
        v4: UdpSocket,
        /// IPv6, where the host has it.
        v6: Option<UdpSocket>,
    },
    /// Raw sockets beside WireGuard's.
    Raw(Raw),
}

impl Demux {
    /// True if it reaches IPv6 too.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        match self {
            Demux::Rewritten { v6, .. } => v6.is_some(),
            Demux::Raw(raw) => raw.v6.is_some(),
        }
    }

    /// Waits for a datagram; copies its payload to `buffer` (what does not fit is cut off) and returns its length
    /// and sender. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    ///
    /// Whatever the sockets answered.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        match self {
            Demux::Rewritten { v4, v6 } => loop {
                either_readable(v4, v6.as_ref()).await?;
                for socket in std::iter::once(v4).chain(v6) {
                    match socket.try_recv_from(buffer) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        answer => return answer,
                    }
                }
            },
            Demux::Raw(raw) => raw.receive(buffer).await,
        }
    }

    /// Sends `payload` to `to`, from WireGuard's port.
    ///
    /// # Errors
    ///
    /// Whatever the system answered; AddrNotAvailable for IPv6 where the host has none, InvalidInput for a payload
    /// longer than a datagram.
    pub async fn send(&self, payload: &[u8], to: SocketAddr) -> io::Result<()> {
        match self {
            Demux::Rewritten { v4, v6 } => {
                let socket = if to.is_ipv4() {
                    v4
                } else {
                    present(v6.as_ref())?
                };
                socket.send_to(payload, to).await.map(drop)
            }
            Demux::Raw(raw) => raw.send(payload, to).await,
        }
    }
}

/// Raw sockets that see a copy of every datagram to WireGuard's port which looks like disco or STUN.
///
/// The kernel does not verify UDP checksums before it copies: what arrives here must be authenticated, or matched to
/// a request, by its reader.
#[derive(Debug)]
pub struct Raw {
    port: u16,
    mark: u32,
    v4: UdpSocket,
    v6: Option<UdpSocket>,
}

impl Raw {
    /// Opens the sockets for WireGuard's `port`; what they send carries the firewall mark `mark`. Call it inside a
    /// tokio runtime.
    ///
    /// # Errors
    ///
    /// Whatever the system answered; EPERM without CAP_NET_RAW and CAP_NET_ADMIN.
    pub fn open(port: u16, mark: u32) -> io::Result<Raw> {
        let v6 = match raw_socket(Domain::IPV6, &program(port, false), mark) {
            Ok(socket) => Some(socket),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(error) => return Err(error),
        };
        Ok(Raw {
            port,
            mark,
            v4: raw_socket(Domain::IPV4, &program(port, true), mark)?,
            v6,
        })
    }

    async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let mut packet = vec![0; buffer.len().saturating_add(HEADROOM)];
        loop {
            either_readable(&self.v4, self.v6.as_ref()).await?;
            for socket in std::iter::once(&self.v4).chain(&self.v6) {
                let (length, mut from) = match socket.try_recv_from(&mut packet) {
                    Ok(answer) => answer,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    Err(error) => return Err(error),
                };
                // What came between the socket's birth and its filter is not sifted yet.
                let Some((source, payload)) = parse(&packet[..length], from.is_ipv4(), self.port)
                else {
                    continue;
                };
                from.set_port(source);
                let kept = payload.len().min(buffer.len());
                buffer[..kept].copy_from_slice(&payload[..kept]);
                return Ok((kept, from));
            }
        }
    }

    async fn send(&self, payload: &[u8], to: SocketAddr) -> io::Result<()> {
        if payload.len() > udp::LONGEST {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let socket = if to.is_ipv4() {
            &self.v4
        } else {
            present(self.v6.as_ref())?
        };
        let source = udp::source_to(to, self.mark)?;
        let segment = udp::segment(SocketAddr::new(source, self.port), to, payload);
        // An IPv6 raw socket takes a port for a protocol number.
        let mut destination = to;
        destination.set_port(0);
        socket.send_to(&segment, destination).await.map(drop)
    }
}

fn present(v6: Option<&UdpSocket>) -> io::Result<&UdpSocket> {
    v6.ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

async fn either_readable(v4: &UdpSocket, v6: Option<&UdpSocket>) -> io::Result<()> {
    match v6 {
        None => v4.readable().await,
        Some(v6) => tokio::select! {
            ready = v4.readable() => ready,
            ready = v6.readable() => ready,
        },
    }
}

fn raw_socket(domain: Domain, program: &[SockFilter], mark: u32) -> io::Result<UdpSocket> {
    let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(Protocol::UDP))?;
    socket.attach_filter(program)?;
    socket.set_mark(mark)?;
    underlay::forbid_fragments(&socket, domain == Domain::IPV6)?;
    UdpSocket::from_std(socket.into())
}

/// The classic BPF program of a raw socket. The kernel shows it the packet from the IP header on with IPv4, from the
/// UDP header on with IPv6; a load past the end drops.
fn program(port: u16, ipv4: bool) -> [SockFilter; 9] {
    const LDX_MSH: u16 = 0xb1;
    const LDX_IMM: u16 = 0x01;
    const LDH_IND: u16 = 0x48;
    const LDW_IND: u16 = 0x40;
    const JEQ: u16 = 0x15;
    const RET: u16 = 0x06;
    let header = if ipv4 { LDX_MSH } else { LDX_IMM };
    let step = SockFilter::new;
    [
        step(header, 0, 0, 0),
        step(LDH_IND, 0, 0, 2),
        step(JEQ, 0, 4, u32::from(port)),
        step(LDW_IND, 0, 0, 8),
        step(JEQ, 3, 0, DISCO),
        step(LDW_IND, 0, 0, 12),
        step(JEQ, 1, 0, STUN),
        step(RET, 0, 0, 0),
        step(RET, 0, 0, u32::MAX),
    ]
}

/// The source port and payload of a received packet, if the agent's: to `port`, and disco or STUN by its look.
fn parse(packet: &[u8], ipv4: bool, port: u16) -> Option<(u16, &[u8])> {
    let header = if ipv4 {
        usize::from(packet.first()? & 0x0f) * 4
    } else {
        0
    };
    let udp = packet.get(header..)?;
    let word = |at: usize| Some(u16::from_be_bytes([*udp.get(at)?, *udp.get(at + 1)?]));
    // A datagram longer than the buffer is cut off by the kernel.
    let end = usize::from(word(4)?).min(udp.len());
    let payload = udp.get(udp::HEADER..end)?;
    let long = |at: usize| Some(u32::from_be_bytes(*payload.get(at..)?.first_chunk()?));
    let ours = long(0)? == DISCO || long(4)? == STUN;
    (word(2)? == port && ours).then_some((word(0)?, payload))
}
