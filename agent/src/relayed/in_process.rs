//! Relayed peers of the embedded tunnel: its threads hand their packets over themselves.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tunnel::Datagrams;

use super::{Beside, Outbound, Relayed};

/// The relays, as the embedded tunnel sees them.
#[derive(Debug)]
pub(crate) struct InProcess {
    pub(crate) relayed: Arc<Relayed>,
    pub(crate) outbound: Outbound,
}

impl tunnel::Relay for InProcess {
    fn has(&self, address: SocketAddr) -> bool {
        // Nothing but synthetic addresses is on loopback.
        address.ip().is_loopback() && address.port() == self.relayed.port()
    }

    fn send(&self, to: SocketAddr, datagrams: Datagrams<'_>) -> Option<SocketAddr> {
        let IpAddr::V4(address) = to.ip() else {
            return None;
        };
        let table = self.outbound.peers.snapshot();
        self.outbound
            .relay(table.by_address(address)?, datagrams.iter());
        match self.relayed.beside.of(address) {
            Some(Beside::Mirror(direct)) => Some(direct),
            _ => None,
        }
    }
}
