//! Raw sockets for IP protocol 99 on the overlay device: [`Sockets`].
//!
//! That they are open also keeps the kernel from answering that nobody speaks the protocol.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, setsockopt, sockopt::Ipv6RecvPacketInfo,
};
use packet::protocol;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// The longest IPv4 header and more than any message.
const LONGEST: usize = 256;

/// A packet that came out of the tunnel.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Received {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    /// What is behind the IP header.
    pub(super) payload: Vec<u8>,
}

/// What comes out of one overlay device.
#[derive(Debug)]
pub(super) struct Sockets {
    device: u32,
    v4: UdpSocket,
    /// `None` where the host has no IPv6.
    v6: Option<UdpSocket>,
}

impl Sockets {
    /// Opens them on the device called `name`, whose number is `device`. Call it inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// Whatever the system answered; EPERM without CAP_NET_RAW.
    pub(super) fn open(name: &str, device: u32) -> io::Result<Self> {
        let v6 = match open(Domain::IPV6, name) {
            Ok(socket) => {
                setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
                Some(UdpSocket::from_std(socket.into())?)
            }
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            device,
            v4: UdpSocket::from_std(open(Domain::IPV4, name)?.into())?,
            v6,
        })
    }

    /// The device's number.
    pub(super) fn device(&self) -> u32 {
        self.device
    }

    /// Waits for a packet. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    ///
    /// Whatever the system answered.
    pub(super) async fn receive(&self) -> io::Result<Received> {
        loop {
            let v6 = async {
                match &self.v6 {
                    Some(socket) => socket.readable().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ready = self.v4.readable() => ready?,
                ready = v6 => ready?,
            }
            let mut buffer = [0; LONGEST];
            match self.v4.try_recv(&mut buffer) {
                Ok(len) => {
                    if let Some(packet) = parse_v4(&buffer[..len]) {
                        return Ok(packet);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let Some(v6) = &self.v6 else { continue };
            match v6.try_io(Interest::READABLE, || receive_v6(v6)) {
                Ok(Some(packet)) => return Ok(packet),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn open(domain: Domain, device: &str) -> io::Result<Socket> {
    let number = Protocol::from(i32::from(protocol::TSMP));
    let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(number))?;
    socket.bind_device(Some(device.as_bytes()))?;
    Ok(socket)
}

/// The kernel hands raw IPv4 sockets whole packets.
fn parse_v4(packet: &[u8]) -> Option<Received> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets).into())
    };
    Some(Received {
        from: address(12)?,
        to: address(16)?,
        payload: packet.get(header..)?.to_vec(),
    })
}

/// The kernel hands raw IPv6 sockets what is behind the headers, and the addresses beside it.
fn receive_v6(socket: &UdpSocket) -> io::Result<Option<Received>> {
    let mut buffer = [0; LONGEST];
    let mut beside = nix::cmsg_space!(libc::in6_pktinfo);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let fd = socket.as_raw_fd();
    let message = recvmsg::<SockaddrIn6>(fd, &mut parts, Some(&mut beside), MsgFlags::empty())?;
    let from = message.address.map(|address| address.ip());
    let to = message.cmsgs()?.find_map(|found| match found {
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(Ipv6Addr::from(info.ipi6_addr.s6_addr)),
        _ => None,
    });
    let len = message.bytes;
    let Some((from, to)) = from.zip(to) else {
        return Ok(None);
    };
    Ok(Some(Received {
        from: from.into(),
        to: to.into(),
        payload: buffer[..len].to_vec(),
    }))
}

#[cfg(test)]
mod tests {
    use packet::build::Ip;

    use super::*;

    #[test]
    fn an_ipv4_packet_is_taken_apart_whatever_its_options() {
        let [from, to] = [2, 1].map(|last| IpAddr::from([100, 64, 0, last]));
        let ip = Ip::new(from, to).options(&[1; 4]);
        let packet = ip.tsmp(b"p12345678");
        let received = parse_v4(&packet).unwrap();
        assert_eq!((received.from, received.to), (from, to));
        assert_eq!(received.payload, b"p12345678");
        for len in 0..24 {
            assert!(parse_v4(&packet[..len]).is_none(), "{len} bytes");
        }
    }
}
