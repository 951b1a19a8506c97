//! What relayed packets meet beside the relay: a direct path that is not trusted, or one that is.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Mutex, PoisonError, RwLock};

use socket2::{Domain, Protocol, Socket, Type};

use crate::underlay::udp;

/// `IPPROTO_RAW`: the sender makes the IP header.
const RAW: i32 = 255;

/// What is beside the relay of one peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Beside {
    /// A direct path without trust: every packet goes there too.
    Mirror(SocketAddr),
    /// WireGuard's endpoint is `from`: what the relay brings is handed over as if it came from there to
    /// `to`, or WireGuard would answer by the relay.
    Source { from: SocketAddr, to: SocketAddr },
}

/// Every peer's, by its synthetic address.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: RwLock<HashMap<Ipv4Addr, Beside>>,
    sockets: Mutex<Sockets>,
}

#[derive(Debug, Default)]
struct Sockets {
    v4: Option<Socket>,
    v6: Option<Socket>,
}

impl Table {
    pub(super) fn set(&self, address: Ipv4Addr, beside: Option<Beside>) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        match beside {
            Some(beside) => entries.insert(address, beside),
            None => entries.remove(&address),
        };
    }

    pub(super) fn of(&self, address: Ipv4Addr) -> Option<Beside> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.get(&address).copied()
    }

    /// Hands packets to WireGuard under another source, by a raw socket over `lo`: they arrive with the
    /// route of their sending attached, which no reverse path filter asks about.
    ///
    /// # Errors
    ///
    /// Whatever the system answered; EPERM without CAP_NET_RAW.
    pub(super) fn inject<'a>(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        packets: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<()> {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let (slot, domain) = if to.is_ipv4() {
            (&mut sockets.v4, Domain::IPV4)
        } else {
            (&mut sockets.v6, Domain::IPV6)
        };
        let socket = match slot {
            Some(socket) => socket,
            None => slot.insert(Socket::new(
                domain,
                Type::RAW.nonblocking(),
                Some(Protocol::from(RAW)),
            )?),
        };
        // An IPv6 raw socket takes a port for a protocol number.
        let mut destination = to;
        destination.set_port(0);
        for payload in packets {
            let packet = udp::packet(from, to, payload).ok_or(io::ErrorKind::InvalidInput)?;
            socket.send_to(&packet, &destination.into())?;
        }
        Ok(())
    }
}
