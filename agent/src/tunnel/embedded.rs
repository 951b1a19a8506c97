//! The embedded WireGuard: the `tunnel` crate's, for hosts whose kernel has none.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use keys::{NodePrivate, NodePublic};
use netlink::wireguard::{self, Change, Device, Peer, PeerStats};
use netlink::{Netlink, links};

use super::{Gate, PeerState, Tunnel};
use crate::blocking::joined;
use crate::net::{CarrierStatus, Engine, NetError};

/// A WireGuard device inside this process. It ends with it.
pub(crate) struct Embedded {
    netlink: Arc<Netlink>,
    name: String,
    mtu: u16,
    gate: Gate,
    relaying: Option<tunnel::Relaying>,
    running: Option<Running>,
}

struct Running {
    device: tunnel::Device,
    /// Number of the TUN device: another number under the same name is another device.
    index: u32,
    private_key: Option<NodePrivate>,
    /// The port that was asked for.
    port: u16,
    mark: u32,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded")
            .field("name", &self.name)
            .field("running", &self.running.is_some())
            .finish_non_exhaustive()
    }
}

impl Embedded {
    /// Names the device, its MTU in bytes, and what its packets pass; nothing is created yet.
    pub(crate) fn new(netlink: Arc<Netlink>, name: &str, mtu: u16, gate: Gate) -> Self {
        Self {
            netlink,
            name: name.to_owned(),
            mtu,
            gate,
            relaying: None,
            running: None,
        }
    }

    /// Returns the running device, a new one if there is none or its TUN device was deleted under it.
    async fn ensure_running(&mut self) -> Result<&mut Running, NetError> {
        let link = links::get(&self.netlink, &self.name).await?;
        let index = link.map(|link| link.index);
        let alive = self
            .running
            .as_ref()
            .is_some_and(|running| Some(running.index) == index && running.device.is_running());
        if !alive {
            self.stop().await;
            // Whoever judged the packets of the old device does not judge those of the new one yet.
            self.gate.close();
            self.running = Some(self.start().await?);
        }
        self.running.as_mut().ok_or(NetError::Down)
    }

    async fn start(&self) -> Result<Running, NetError> {
        let gate = Arc::new(self.gate.clone());
        // The first time they are tried.
        let verdicts = joined(tokio::task::spawn_blocking(tunnel::verdicts).await);
        let config = tunnel::Config::new(&self.name, self.mtu, verdicts);
        let created = tunnel::Device::create(config, gate);
        let mut device = created.map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => NetError::NotPermitted,
            Some(libc::EBUSY | libc::EINVAL) => NetError::ForeignDevice {
                name: self.name.clone(),
            },
            _ => failed("creating the TUN device (is /dev/net/tun there?)", error),
        })?;
        if let Some(relaying) = &self.relaying {
            device.set_relaying(relaying.clone());
        }
        let link = links::get(&self.netlink, &self.name).await?;
        Ok(Running {
            device,
            index: link.map_or(0, |link| link.index),
            private_key: None,
            port: 0,
            mark: 0,
        })
    }

    async fn stop(&mut self) {
        if let Some(Running { device, index, .. }) = self.running.take() {
            drop(device);
            if let Err(error) = self.delete(index).await {
                let error = &error as &dyn Error;
                tracing::warn!(
                    error,
                    device = self.name,
                    "the overlay device was not removed"
                );
            }
        }
    }

    /// Deletes our TUN device, whose last holder may let go of it a moment later: what follows relies on
    /// it being gone. By now another device may bear the name: that one is not ours.
    async fn delete(&self, index: u32) -> Result<(), netlink::Error> {
        match links::get(&self.netlink, &self.name).await? {
            Some(link) if link.index == index => links::delete(&self.netlink, &self.name).await,
            _ => Ok(()),
        }
    }
}

impl Running {
    /// The device as the planner wants it.
    fn dump(&self) -> Device {
        let peer = |(key, stats): (NodePublic, tunnel::PeerStats)| {
            let peer = Peer {
                endpoint: stats.endpoint,
                ..Peer::default()
            };
            (key, peer)
        };
        let mut peers: BTreeMap<NodePublic, Peer> = self.device.peers().map(peer).collect();
        for (ip, owner) in self.device.allowed_ips() {
            if let Some(peer) = peers.get_mut(&owner) {
                peer.allowed_ips.insert(ip);
            }
        }
        Device {
            private_key: self.private_key.clone(),
            listen_port: self.port,
            fwmark: self.mark,
            peers,
        }
    }

    fn apply(&mut self, changes: Vec<Change>) -> Result<(), NetError> {
        let (port, mark) = (self.port, self.mark);
        let mut update = self.device.update();
        for change in changes {
            match change {
                Change::SetPrivateKey(key) => {
                    update.set_key(&key);
                    self.private_key = Some(key);
                }
                Change::SetListenPort(port) => self.port = port,
                Change::SetFwmark(mark) => self.mark = mark,
                Change::AddPeer(key, peer) => {
                    update.add_peer(key, peer.endpoint);
                    update.add_allowed_ips(&key, peer.allowed_ips);
                }
                Change::RemovePeer(key) => update.remove_peer(&key),
                Change::SetEndpoint(key, endpoint) => update.set_endpoint(&key, endpoint),
                Change::AddAllowedIps(key, ips) => update.add_allowed_ips(&key, ips),
                Change::ReplaceAllowedIps(key, ips) => {
                    update.clear_allowed_ips(&key);
                    update.add_allowed_ips(&key, ips);
                }
            }
        }
        drop(update);
        if port != self.port || !self.device.is_running() {
            let bound = self.device.bind(self.port, self.mark);
            bound.map_err(|error| match error.kind() {
                io::ErrorKind::AddrInUse => NetError::PortInUse { port: self.port },
                _ => failed("listening", error),
            })?;
        } else if mark != self.mark {
            let marked = self.device.set_mark(self.mark);
            marked.map_err(|error| failed("marking its packets", error))?;
        }
        Ok(())
    }
}

impl Tunnel for Embedded {
    fn engine(&self) -> Engine {
        Engine::Embedded
    }

    fn apply<'a>(&'a mut self, desired: &'a Device) -> BoxFuture<'a, Result<(), NetError>> {
        async move {
            let running = self.ensure_running().await?;
            let changes = wireguard::plan(desired, &running.dump());
            tracing::debug!(changes = changes.len(), "embedded tunnel planned");
            if changes.is_empty() {
                return Ok(());
            }
            let applied = running.apply(changes);
            if applied.is_err() {
                // Half a device is worse than none: the next call starts afresh.
                self.stop().await;
            }
            applied
        }
        .boxed()
    }

    fn change(&mut self, changes: Vec<Change>) -> BoxFuture<'_, Result<(), NetError>> {
        let changed = match &mut self.running {
            Some(running) if !changes.is_empty() => running.apply(changes),
            _ => Ok(()),
        };
        std::future::ready(changed).boxed()
    }

    fn peers(&self) -> BoxFuture<'_, Result<BTreeMap<NodePublic, PeerState>, NetError>> {
        let peers = self
            .running
            .iter()
            .flat_map(|running| running.device.peers());
        let state = |found: tunnel::PeerStats| PeerState {
            endpoint: found.endpoint,
            stats: PeerStats {
                rx_bytes: found.rx_bytes,
                tx_bytes: found.tx_bytes,
                last_handshake: found.last_handshake,
            },
        };
        let peers = peers.map(|(key, found)| (key, state(found))).collect();
        std::future::ready(Ok(peers)).boxed()
    }

    fn remove(&mut self) -> BoxFuture<'_, Result<(), NetError>> {
        async move {
            self.stop().await;
            Ok(())
        }
        .boxed()
    }

    fn set_relaying(&mut self, relaying: tunnel::Relaying) {
        self.relaying = Some(relaying);
    }

    fn carrier(&self) -> Option<CarrierStatus> {
        let device = &self.running.as_ref()?.device;
        Some(CarrierStatus {
            offloads: device.offloads().to_vec(),
            counters: device.counters(),
        })
    }

    fn gate(&self) -> Option<&Gate> {
        Some(&self.gate)
    }

    fn detach(&mut self) -> BoxFuture<'_, ()> {
        self.stop().boxed()
    }
}

fn failed(operation: &'static str, source: io::Error) -> NetError {
    NetError::Embedded { operation, source }
}
