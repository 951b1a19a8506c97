//! The embedded WireGuard: gotatun on a TUN device, for hosts whose kernel has none.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use gotatun::device::configure::DeviceWrite;
use gotatun::device::{DeviceTransports, Error as GotatunError, Peer as GotatunPeer};
use gotatun::udp::socket::UdpSocketFactory;
use gotatun::x25519::{PublicKey, StaticSecret};
use ipnet::IpNet;
use ipnetwork::IpNetwork;
use keys::{NodePrivate, NodePublic};
use netlink::wireguard::{self, Change, Device, Peer, PeerStats};
use netlink::{Netlink, links};

use super::tun::Tun;
use super::{Gate, PeerState, Tunnel};
use crate::net::{Engine, NetError};

/// How often, and how far apart, a port is tried again that our own device held until just now.
const REBINDS: u32 = 40;
const REBIND_PAUSE: Duration = Duration::from_millis(25);

type Transports = (UdpSocketFactory, Tun, Tun);

/// A WireGuard device inside this process. It ends with it.
pub(crate) struct Embedded {
    netlink: Arc<Netlink>,
    name: String,
    mtu: u16,
    gate: Gate,
    running: Option<Running>,
}

struct Running {
    device: gotatun::device::Device<Transports>,
    /// Number of the TUN device: another number under the same name is another device.
    index: u32,
    private_key: Option<NodePrivate>,
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
            running: None,
        }
    }

    /// Returns the running device, a new one if there is none or its TUN device was deleted under it.
    async fn ensure_running(&mut self, port: u16, mark: u32) -> Result<&mut Running, NetError> {
        let link = links::get(&self.netlink, &self.name).await?;
        let index = link.map(|link| link.index);
        let alive = self
            .running
            .as_ref()
            .is_some_and(|running| Some(running.index) == index);
        if !alive {
            self.stop().await;
            // Whoever judged the packets of the old device does not judge those of the new one yet.
            self.gate.close();
            self.running = Some(self.start(port, mark).await?);
        }
        self.running.as_mut().ok_or(NetError::Down)
    }

    async fn start(&self, port: u16, mark: u32) -> Result<Running, NetError> {
        let tun =
            Tun::create(&self.name, self.mtu, self.gate.clone()).map_err(|error| {
                match error.raw_os_error() {
                    Some(libc::EPERM) => NetError::NotPermitted,
                    Some(libc::EBUSY | libc::EINVAL) => NetError::ForeignDevice {
                        name: self.name.clone(),
                    },
                    _ => failed("creating the TUN device (is /dev/net/tun there?)", error),
                }
            })?;
        let link = links::get(&self.netlink, &self.name).await?;
        // Without key and peers gotatun opens no socket yet; the key comes with the first plan.
        let device = gotatun::device::build()
            .with_default_udp()
            .with_ip(tun)
            .with_listen_port(port)
            .with_fwmark(mark)
            .build()
            .await
            .map_err(|error| failed("starting", error))?;
        Ok(Running {
            device,
            index: link.map_or(0, |link| link.index),
            private_key: None,
            port,
            mark,
        })
    }

    async fn stop(&mut self) {
        if let Some(Running { device, index, .. }) = self.running.take() {
            device.stop().await;
            if let Err(error) = self.delete(index).await {
                tracing::warn!(%error, device = self.name, "the overlay device was not removed");
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
    /// Reads the device back as the planner wants it.
    async fn dump(&self) -> Device {
        let peers = self.device.peers().await;
        Device {
            private_key: self.private_key.clone(),
            listen_port: self.port,
            fwmark: self.mark,
            peers: peers
                .iter()
                .map(|found| {
                    let peer = Peer {
                        endpoint: found.peer.endpoint,
                        allowed_ips: found
                            .peer
                            .allowed_ips
                            .iter()
                            .filter_map(from_network)
                            .collect(),
                    };
                    (key_of(&found.peer.public_key), peer)
                })
                .collect(),
        }
    }

    async fn apply(&mut self, changes: Vec<Change>) -> Result<(), NetError> {
        let port = changes.iter().find_map(|change| match change {
            Change::SetListenPort(port) => Some(*port),
            _ => None,
        });
        let wanted = port.unwrap_or(self.port);
        // The socket that a new key makes gotatun bind again is the one it just let go of.
        let rebinds = self.private_key.is_some() && wanted == self.port;
        for change in &changes {
            match change {
                Change::SetPrivateKey(key) => self.private_key = Some(key.clone()),
                Change::SetListenPort(port) => self.port = *port,
                Change::SetFwmark(mark) => self.mark = *mark,
                _ => {}
            }
        }
        let written = self.device.write(async |device| {
            for change in changes {
                execute(device, change).await?;
            }
            Ok(())
        });
        match written.await {
            Ok(Ok(())) => Ok(()),
            Err(error) if rebinds && is_in_use(&error) => self.bind_again(wanted).await,
            Ok(Err(error)) | Err(error) => Err(explain(error, wanted)),
        }
    }

    /// Binds the port once gotatun's last task has dropped the socket that held it: its stop returns
    /// before that. The new configuration is in place already.
    async fn bind_again(&self, port: u16) -> Result<(), NetError> {
        for _ in 0..REBINDS {
            tokio::time::sleep(REBIND_PAUSE).await;
            self.device.suspend().await;
            match self.device.resume().await {
                Err(error) if is_in_use(&error) => {}
                other => return other.map_err(|error| explain(error, port)),
            }
        }
        Err(NetError::PortInUse { port })
    }
}

async fn execute<T: DeviceTransports>(
    device: &mut DeviceWrite<'_, T>,
    change: Change,
) -> Result<(), GotatunError> {
    match change {
        Change::RemovePeer(key) => {
            device.remove_peer(&to_public(&key)).await;
        }
        Change::SetPrivateKey(key) => {
            device
                .set_private_key(StaticSecret::from(*key.as_bytes()))
                .await;
        }
        Change::SetListenPort(port) => device.set_listen_port(port),
        Change::SetFwmark(mark) => device.set_fwmark(mark)?,
        Change::AddPeer(key, peer) => {
            let networks = peer.allowed_ips.iter().filter_map(to_network);
            let mut new = GotatunPeer::new(to_public(&key)).with_allowed_ips(networks);
            new.endpoint = peer.endpoint;
            device.add_peer(new);
        }
        Change::SetEndpoint(key, endpoint) => {
            let set = |peer: &mut gotatun::device::configure::PeerMut| {
                peer.set_endpoint(Some(endpoint));
            };
            device.modify_peer(&to_public(&key), set).await;
        }
        Change::AddAllowedIps(key, ips) => {
            let add = |peer: &mut gotatun::device::configure::PeerMut| {
                peer.add_allowed_ips(ips.iter().filter_map(to_network));
            };
            device.modify_peer(&to_public(&key), add).await;
        }
        Change::ReplaceAllowedIps(key, ips) => {
            let replace = |peer: &mut gotatun::device::configure::PeerMut| {
                peer.clear_allowed_ips();
                peer.add_allowed_ips(ips.iter().filter_map(to_network));
            };
            device.modify_peer(&to_public(&key), replace).await;
        }
    }
    Ok(())
}

impl Tunnel for Embedded {
    fn engine(&self) -> Engine {
        Engine::Embedded
    }

    fn apply<'a>(&'a mut self, desired: &'a Device) -> BoxFuture<'a, Result<(), NetError>> {
        async move {
            let running = self
                .ensure_running(desired.listen_port, desired.fwmark)
                .await?;
            let changes = wireguard::plan(desired, &running.dump().await);
            tracing::debug!(changes = changes.len(), "embedded tunnel planned");
            if changes.is_empty() {
                return Ok(());
            }
            let applied = running.apply(changes).await;
            if applied.is_err() {
                // Half a device is worse than none: the next call starts afresh.
                self.stop().await;
            }
            applied
        }
        .boxed()
    }

    fn change(&mut self, changes: Vec<Change>) -> BoxFuture<'_, Result<(), NetError>> {
        async move {
            match &mut self.running {
                Some(running) => running.apply(changes).await,
                None => Ok(()),
            }
        }
        .boxed()
    }

    fn peers(&self) -> BoxFuture<'_, Result<BTreeMap<NodePublic, PeerState>, NetError>> {
        async move {
            let Some(running) = &self.running else {
                return Ok(BTreeMap::new());
            };
            let now = SystemTime::now();
            let peers = running.device.peers().await.into_iter();
            Ok(peers
                .map(|found| {
                    let stats = PeerStats {
                        rx_bytes: found.stats.rx_bytes as u64,
                        tx_bytes: found.stats.tx_bytes as u64,
                        last_handshake: found
                            .stats
                            .last_handshake
                            .and_then(|ago| now.checked_sub(ago)),
                    };
                    let state = PeerState {
                        endpoint: found.peer.endpoint,
                        stats,
                    };
                    (key_of(&found.peer.public_key), state)
                })
                .collect())
        }
        .boxed()
    }

    fn remove(&mut self) -> BoxFuture<'_, Result<(), NetError>> {
        async move {
            self.stop().await;
            Ok(())
        }
        .boxed()
    }

    fn gate(&self) -> Option<&Gate> {
        Some(&self.gate)
    }

    fn detach(&mut self) -> BoxFuture<'_, ()> {
        self.stop().boxed()
    }
}

fn is_in_use(error: &GotatunError) -> bool {
    matches!(error, GotatunError::Bind(source, _) if source.kind() == io::ErrorKind::AddrInUse)
}

fn explain(error: GotatunError, port: u16) -> NetError {
    match error {
        error if is_in_use(&error) => NetError::PortInUse { port },
        error => failed("configuring", error),
    }
}

fn failed(operation: &'static str, error: impl StdError + Send + Sync + 'static) -> NetError {
    NetError::Embedded {
        operation,
        source: Box::new(error),
    }
}

fn to_public(key: &NodePublic) -> PublicKey {
    PublicKey::from(*key.as_bytes())
}

fn key_of(key: &PublicKey) -> NodePublic {
    NodePublic::from_bytes(key.to_bytes())
}

fn to_network(net: &IpNet) -> Option<IpNetwork> {
    IpNetwork::new(net.addr(), net.prefix_len()).ok()
}

fn from_network(net: &IpNetwork) -> Option<IpNet> {
    IpNet::new(net.ip(), net.prefix()).ok()
}
