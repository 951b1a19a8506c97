//! Signs of life from peers: [`Pinger`].

use std::sync::Arc;
use std::time::Duration;

use keys::NodePublic;
use tokio::time::{Instant, timeout};

use super::disco::Disco;
use super::peers::Peers;
use super::{NetError, PingReply};
use crate::derp::Manager;

/// Pings peers. It holds no lock: the data plane may change or go while an answer is awaited.
#[derive(Clone, Debug)]
pub struct Pinger {
    pub(super) our_key: NodePublic,
    pub(super) relays: Manager,
    pub(super) peers: Peers,
    pub(super) disco: Arc<Disco>,
}

impl Pinger {
    /// Pings a peer over its relay (disco) and waits for the pong.
    ///
    /// # Errors
    ///
    /// [`NetError::UnknownPeer`], [`NetError::Unreachable`] or [`NetError::PingTimeout`].
    pub async fn ping(&self, peer: &NodePublic, wait: Duration) -> Result<PingReply, NetError> {
        let table = self.peers.snapshot();
        let peer = table.by_key(peer).ok_or(NetError::UnknownPeer)?;
        let mut ping = self
            .disco
            .ping(peer, self.our_key)
            .ok_or(NetError::Unreachable(
                "the peer has no disco key, or too many pings are under way",
            ))?;
        let start = Instant::now();
        let sent = self.relays.send(&peer.key, peer.home, [&ping.datagram[..]]);
        if !sent {
            return Err(NetError::Unreachable(
                "the peer has no home relay that this node knows",
            ));
        }
        let Ok(Ok(region)) = timeout(wait, &mut ping.answered).await else {
            return Err(NetError::PingTimeout(wait));
        };
        Ok(PingReply {
            latency: start.elapsed(),
            region,
            region_code: self.relays.code(region),
        })
    }
}
