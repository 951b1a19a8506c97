//! Signs of life from peers: [`Pinger`].

use std::net::IpAddr;
use std::time::Duration;

use disco_proto::disco::PING_LEN;
use keys::NodePublic;
use node_core::paths::Via;

use super::peers::Peers;
use super::tsmp::{Tsmp, TunnelPong};
use super::{NetError, PingPath, PingReply};
use crate::derp::Manager;
use crate::paths::Handle;

/// Pings peers. It holds no lock: the data plane may change or go while an answer is awaited.
#[derive(Clone, Debug)]
pub struct Pinger {
    /// Our overlay addresses.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) tsmp: Tsmp,
    pub(super) relays: Manager,
    pub(super) peers: Peers,
    pub(super) paths: Handle,
}

impl Pinger {
    /// Pings a peer (disco) and waits for the pong: on its direct path, or, if it has none, on every way
    /// that there may be. Padding makes the message `size` bytes long, if that is longer than without.
    ///
    /// # Errors
    ///
    /// [`NetError::UnknownPeer`], [`NetError::Unreachable`], [`NetError::PingNotSent`] or
    /// [`NetError::PingTimeout`].
    pub async fn ping(
        &self,
        peer: &NodePublic,
        size: u16,
        wait: Duration,
    ) -> Result<PingReply, NetError> {
        let table = self.peers.snapshot();
        let peer = table.by_key(peer).ok_or(NetError::UnknownPeer)?;
        let padding = size.saturating_sub(PING_LEN);
        let pong = self.paths.ping(peer.key, padding, wait).await?;
        let path = match pong.via {
            Via::Udp(endpoint) => PingPath::Direct(endpoint),
            Via::Derp(region, _) => PingPath::Relay {
                region,
                code: self.relays.code(region),
            },
        };
        Ok(PingReply {
            latency: pong.latency,
            path,
        })
    }

    /// Pings the agent behind a peer's overlay address through the tunnel (TSMP), and waits for the pong.
    ///
    /// # Errors
    ///
    /// [`NetError::Unreachable`] if we have no address of that family, [`NetError::Socket`] if nothing can
    /// be sent, [`NetError::PingTimeout`].
    pub async fn ping_inside(&self, peer: IpAddr, wait: Duration) -> Result<TunnelPong, NetError> {
        self.tsmp.ping(&self.addresses, peer, wait).await
    }
}
