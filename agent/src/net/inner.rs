//! The parts of the data plane that are applied together: tunnel, wiring, counters, peer table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dataplane::{Counters, PeerCounters, PeerIndex};
use ipnet::IpNet;
use keys::{NodePrivate, NodePublic};
use netlink::rules::UNDERLAY_MARK;
use netlink::{Netlink, links, wireguard};
use node_core::endpoints::Endpoints;
use node_core::{Desired, DesiredPeer};

use super::peers::{Peer, Peers};
use super::{CountersState, Engine, Home, NetError, NetStatus, OverlayTraffic, PeerStatus};
use crate::derp::Manager;
use crate::error_text::error_text;
use crate::relayed::Relayed;
use crate::router::{self, Wiring};
use crate::tunnel::{PeerState, Tunnel};

/// WireGuard forgets a session this long after its handshake (REJECT_AFTER_TIME).
const SESSION_LIFE: Duration = Duration::from_secs(180);

/// Everything that [`super::Net`] applies.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) netlink: Arc<Netlink>,
    pub(super) tunnel: Box<dyn Tunnel>,
    pub(super) engine_reason: String,
    pub(super) device: String,
    pub(super) port: u16,
    pub(super) state_dir: PathBuf,
    pub(super) endpoints: Endpoints,
    pub(super) peers: Peers,
    pub(super) relayed: Arc<Relayed>,
    pub(super) relays: Manager,
    pub(super) counting: Counting,
    pub(super) applied: Option<Applied>,
}

/// What should be, as last told.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) key: NodePrivate,
    pub(super) desired: Desired,
}

/// The packet counters of one device.
#[derive(Debug, Default)]
pub(super) enum Counting {
    /// Not tried on the present device.
    #[default]
    Untried,
    /// Running on the device with this number.
    On(Box<Counters>, u32),
    /// Refused on the device with this number.
    Off(String, u32),
}

impl Inner {
    /// Takes a new desired state and makes it so.
    pub(super) async fn apply(
        &mut self,
        key: &NodePrivate,
        desired: &Desired,
    ) -> Result<(), NetError> {
        self.assign_endpoints(desired)?;
        self.relays.configure(key, &desired.derp_map);
        self.applied = Some(Applied {
            key: key.clone(),
            desired: desired.clone(),
        });
        self.reapply().await
    }

    /// Makes the host again what it should be; does nothing while idle.
    pub(super) async fn reapply(&mut self) -> Result<(), NetError> {
        let Some(Applied { key, desired }) = &self.applied else {
            return Ok(());
        };
        let device = wireguard::Device {
            private_key: Some(key.clone()),
            listen_port: self.port,
            fwmark: UNDERLAY_MARK,
            peers: self.tunnel_peers(desired),
        };
        self.tunnel.apply(&device).await?;
        let wiring = Wiring {
            addresses: desired.addresses.iter().copied().collect(),
            mtu: desired.mtu,
            routes: desired.routes.iter().copied().collect(),
        };
        let wired = router::apply(&self.netlink, &self.device, &wiring).await;
        wired.map_err(|error| match error.errno() {
            Some(libc::EADDRINUSE) => NetError::PortInUse { port: self.port },
            _ => error.into(),
        })?;
        self.count().await
    }

    /// Checks cheaply, between full inspections, that the device is there and up.
    pub(super) async fn is_wired(&self) -> Result<bool, NetError> {
        if self.applied.is_none() {
            return Ok(true);
        }
        let link = links::get(&self.netlink, &self.device).await?;
        Ok(link.is_some_and(|link| link.up))
    }

    /// Removes device, routes and rules, and leaves the relays.
    pub(super) async fn remove(&mut self) -> Result<(), NetError> {
        self.applied = None;
        self.relays.stop();
        self.peers.replace(std::iter::empty());
        let counters = self.stop_counting();
        self.tunnel.remove().await?;
        router::remove(&self.netlink).await?;
        counters
    }

    /// Lets go of what outlives the agent, and tidies up what does not.
    pub(super) async fn detach(&mut self) {
        self.relays.stop();
        self.tunnel.detach().await;
        if self.tunnel.engine() == Engine::Embedded {
            // Device, addresses and routes went with the tunnel.
            if let Err(error) = router::remove(&self.netlink).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "routing rules not removed");
            }
        }
    }

    /// Gives each peer its synthetic endpoint and publishes the table for the packet path.
    fn assign_endpoints(&mut self, desired: &Desired) -> Result<(), NetError> {
        let present: BTreeSet<NodePublic> = desired.peers.keys().copied().collect();
        self.endpoints.retain(&present);
        let mut table = Vec::with_capacity(present.len());
        for (key, peer) in &desired.peers {
            let address = self.endpoints.assign(*key)?;
            table.push(Peer::new(*key, address, peer.home_derp, peer.disco));
        }
        self.peers.replace(table.into_iter());
        Ok(())
    }

    fn tunnel_peers(&self, desired: &Desired) -> BTreeMap<NodePublic, wireguard::Peer> {
        let peers = desired.peers.iter();
        peers
            .map(|(key, peer)| {
                let address = self.endpoints.address(key);
                let endpoint = address.map(|ip| SocketAddr::from((ip, self.relayed.port())));
                let peer = wireguard::Peer {
                    endpoint,
                    allowed_ips: peer.allowed_ips.iter().copied().collect(),
                };
                (*key, peer)
            })
            .collect()
    }

    /// Attaches the counters to the present device if that was not tried yet, and fills their tables.
    async fn count(&mut self) -> Result<(), NetError> {
        let Some(link) = links::get(&self.netlink, &self.device).await? else {
            return Ok(());
        };
        let tried = match &self.counting {
            Counting::On(_, index) | Counting::Off(_, index) => *index == link.index,
            Counting::Untried => false,
        };
        if !tried {
            self.counting = match Counters::attach(&self.device, self.pin_dir().as_deref()) {
                Ok(counters) => Counting::On(Box::new(counters), link.index),
                Err(error) => {
                    let reason = error_text(&error);
                    tracing::warn!(reason, "packets are not counted");
                    Counting::Off(reason, link.index)
                }
            };
        }
        let prefixes = self.counted_prefixes();
        if let Counting::On(counters, index) = &mut self.counting
            && let Err(error) = counters.set_peers(&prefixes)
        {
            let (reason, index) = (error_text(&error), *index);
            tracing::warn!(reason, "packets are not counted any more");
            self.counting = Counting::Off(reason, index);
        }
        Ok(())
    }

    fn counted_prefixes(&self) -> Vec<(IpNet, PeerIndex)> {
        let Some(Applied { desired, .. }) = &self.applied else {
            return Vec::new();
        };
        let mut prefixes = Vec::new();
        for (key, peer) in &desired.peers {
            if let Some(address) = self.endpoints.address(key) {
                let index = peer_index(address);
                prefixes.extend(peer.allowed_ips.iter().map(|prefix| (*prefix, index)));
            }
        }
        prefixes
    }

    /// Only a kernel device outlives the agent, so only its counters are pinned.
    fn pin_dir(&self) -> Option<PathBuf> {
        if self.tunnel.engine() != Engine::Kernel {
            return None;
        }
        match dataplane::pin_folder(&self.device, &self.state_dir) {
            Ok(folder) => Some(folder),
            Err(error) => {
                let reason = error_text(&error);
                tracing::warn!(reason, "counters will not outlive the agent");
                None
            }
        }
    }

    fn stop_counting(&mut self) -> Result<(), NetError> {
        let removed = match std::mem::take(&mut self.counting) {
            Counting::On(counters, _) => counters.remove(),
            Counting::Off(..) => Ok(()),
            Counting::Untried if self.tunnel.engine() == Engine::Kernel => {
                Counters::remove_leftovers(&self.device, self.pin_dir().as_deref())
            }
            Counting::Untried => Ok(()),
        };
        removed.map_err(NetError::Counters)
    }

    /// Reads everything that `status` shows.
    pub(super) async fn status(&self) -> NetStatus {
        let link = links::get(&self.netlink, &self.device).await.ok().flatten();
        let states = self.tunnel.peers().await.unwrap_or_else(|error| {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "tunnel state not read");
            BTreeMap::new()
        });
        let (counters, counts) = self.read_counters();
        let desired = self.applied.as_ref().map(|applied| &applied.desired);
        let peers = desired.map(|desired| {
            let peers = desired.peers.iter();
            peers
                .map(|(key, peer)| {
                    let state = states.get(key).copied().unwrap_or_default();
                    let address = self.endpoints.address(key);
                    let counts = address.and_then(|ip| counts.get(&peer_index(ip)));
                    (*key, peer_status(desired, peer, &state, counts))
                })
                .collect()
        });
        let home = self.relays.home();
        NetStatus {
            engine: self.tunnel.engine(),
            engine_reason: self.engine_reason.clone(),
            device: self.device.clone(),
            device_up: desired.is_some() && link.is_some_and(|link| link.up),
            port: self.port,
            addresses: desired.map_or_else(Vec::new, |desired| desired.addresses.clone()),
            counters,
            home: home.map(|(region, code)| Home { region, code }),
            relays: self.relays.status(),
            peers: peers.unwrap_or_default(),
        }
    }

    fn read_counters(&self) -> (CountersState, BTreeMap<PeerIndex, PeerCounters>) {
        match &self.counting {
            Counting::Untried => {
                let reason = "the overlay device is down".to_owned();
                (CountersState::Off(reason), BTreeMap::new())
            }
            Counting::Off(reason, _) => (CountersState::Off(reason.clone()), BTreeMap::new()),
            Counting::On(counters, _) => match counters.read() {
                Ok(counts) => (CountersState::Ebpf, counts),
                Err(error) => (CountersState::Off(error_text(&error)), BTreeMap::new()),
            },
        }
    }
}

fn peer_status(
    desired: &Desired,
    peer: &DesiredPeer,
    state: &PeerState,
    counts: Option<&PeerCounters>,
) -> PeerStatus {
    let handshake = state.stats.last_handshake;
    let age = handshake.and_then(|at| SystemTime::now().duration_since(at).ok());
    let direct = state
        .endpoint
        .filter(|endpoint| !endpoint.ip().is_loopback());
    PeerStatus {
        rx_bytes: state.stats.rx_bytes,
        tx_bytes: state.stats.tx_bytes,
        overlay: counts.map(|counts| OverlayTraffic {
            rx_packets: counts.rx_packets,
            rx_bytes: counts.rx_bytes,
            tx_packets: counts.tx_packets,
            tx_bytes: counts.tx_bytes,
        }),
        last_handshake: handshake,
        cur_addr: direct,
        relay: peer
            .home_derp
            .map_or("", |home| desired.derp_map.code(home))
            .to_owned(),
        active: age.is_some_and(|age| age < SESSION_LIFE),
    }
}

/// The peer's number in the counters: its place in 127.64.0.0/10, stable as its address is.
fn peer_index(address: Ipv4Addr) -> PeerIndex {
    PeerIndex(address.to_bits() & 0x3f_ffff)
}
