//! Another WireGuard under the same node, while it runs.

use std::net::IpAddr;
use std::time::{Instant, SystemTime};

use disco_proto::tsmp::Message;
use ipnet::IpNet;
use keys::NodePublic;

use super::filter::hosts;
use super::inner::Inner;
use super::start::choose_engine;
use super::status::SESSION_LIFE;
use super::tsmp::of_family;
use super::{EngineChoice, Net, NetError};

impl Net {
    /// Has packets carried by the engine that `choice` stands for. Addresses, routes, policy, identity and
    /// paths stay; sessions are made anew, which peers that were spoken with are asked for at once.
    ///
    /// # Errors
    ///
    /// [`NetError::NoKernelWireGuard`] if demanded and missing; whatever the new engine failed with. The former
    /// one goes on then.
    pub async fn use_engine(&self, choice: EngineChoice) -> Result<(), NetError> {
        self.inner.lock().await.use_engine(choice).await
    }
}

impl Inner {
    async fn use_engine(&mut self, choice: EngineChoice) -> Result<(), NetError> {
        let chosen = choose_engine(&self.netlink, &self.device, choice, &self.reports).await?;
        let (mut tunnel, mut reason) = chosen;
        if tunnel.engine() == self.tunnel.engine() {
            self.engine_reason = reason;
            return Ok(());
        }
        tunnel.set_relaying(self.relaying.clone());
        let peers = self.in_session().await;
        let begin = Instant::now();
        self.clear_for_another().await?;
        std::mem::swap(&mut self.tunnel, &mut tunnel);
        std::mem::swap(&mut self.engine_reason, &mut reason);
        self.engine_changed();
        if let Err(error) = self.reapply().await {
            self.clear_for_another().await?;
            self.tunnel = tunnel;
            self.engine_reason = reason;
            self.engine_changed();
            self.reapply().await?;
            return Err(error);
        }
        self.wake(&peers);
        let (engine, millis) = (self.tunnel.engine(), begin.elapsed().as_millis());
        tracing::info!(
            ?engine,
            reason = self.engine_reason,
            millis,
            "engine changed"
        );
        Ok(())
    }

    /// Removes what the next engine has in its own way: the device, what guards it, and shields, whose pins only
    /// the kernel's device needs.
    async fn clear_for_another(&mut self) -> Result<(), NetError> {
        let pins = self.shield_pins();
        let removed = self.shields.remove(pins.as_deref());
        removed.map_err(NetError::Programs)?;
        self.take_device_down().await
    }

    /// Peers that think they have a session with us.
    async fn in_session(&self) -> Vec<NodePublic> {
        let now = SystemTime::now();
        let fresh = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age < SESSION_LIFE);
        let states = self.states().await.into_iter();
        let fresh = states.filter(|(_, state)| state.stats.last_handshake.is_some_and(fresh));
        fresh.map(|(peer, _)| peer).collect()
    }

    /// Says something to these peers, which takes a handshake: by themselves they would go on for fifteen seconds
    /// with sessions that nobody has any more.
    fn wake(&self, peers: &[NodePublic]) {
        let Some(applied) = &self.applied else { return };
        let ours: Vec<IpAddr> = applied.desired.addresses.iter().map(IpNet::addr).collect();
        for peer in peers {
            let Some(peer) = applied.desired.peers.get(peer) else {
                continue;
            };
            let mut addresses = hosts(&peer.allowed_ips).into_iter();
            let pair = addresses.find_map(|to| Some((of_family(&ours, to)?, to)));
            let Some((from, to)) = pair else { continue };
            if let Err(error) = self.tsmp.send(from, to, &Message::Ping(rand::random())) {
                tracing::debug!(%to, %error, "a peer is not woken");
            }
        }
    }
}
