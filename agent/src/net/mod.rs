//! The agent's data plane behind one facade: [`Net`] owns tunnel, router, relay connections, counters.

pub(crate) mod disco;
mod error;
mod inner;
pub(crate) mod peers;
mod status;
mod steward;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use keys::{DiscoPrivate, NodePrivate, NodePublic};
use netlink::{Netlink, links, wireguard};
use node_core::endpoints::Endpoints;
use node_core::{DEFAULT_MTU, Desired};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{interval, timeout};

use crate::derp::Manager;
use crate::relayed::{Inbound, Relayed};
use crate::tunnel::{Embedded, Kernel, Tunnel};
use crate::underlay;
use disco::Disco;
use inner::{Counting, Inner};
use peers::Peers;
use steward::{Assignment, Steward};

pub use error::NetError;
pub use status::{
    CountersState, Engine, Home, NetEvent, NetStatus, PeerStatus, PingReply, RelayStatus,
};

/// Events that may wait for the agent.
const MAX_EVENTS: usize = 64;
/// Between looks at what others may have changed on the host, and between attempts to repair it.
const INSPECT_EVERY: Duration = Duration::from_secs(5);
/// Every so many looks everything is compared, rules and routes too.
const FULL_INSPECTION: u32 = 12;
const DEVICE_BROKEN: &str = "overlay-device";

/// Which WireGuard the operator wants (`--wireguard`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum EngineChoice {
    /// The kernel's if it has one, else the embedded tunnel.
    #[default]
    Auto,
    /// The kernel's, or fail.
    Kernel,
    /// The embedded tunnel.
    Embedded,
}

/// Settings of the data plane that do not change while it runs.
#[derive(Debug)]
pub struct NetConfig {
    /// Name of the overlay device; pins and other names derive from it. Default `tailrace0`.
    pub device: String,
    /// UDP port of WireGuard. Default 41641.
    pub port: u16,
    /// Which WireGuard to use.
    pub engine: EngineChoice,
    /// Folder for the agent's state.
    pub state_dir: PathBuf,
    /// Our disco key.
    pub disco: DiscoPrivate,
}

/// The data plane of one node.
///
/// Dropping it stops its tasks and leaves the kernel's part as it is, like [`Net::detach`].
#[derive(Debug)]
pub struct Net {
    inner: Arc<Mutex<Inner>>,
    relays: Manager,
    peers: Peers,
    disco: Arc<Disco>,
    assignment: watch::Sender<Option<Assignment>>,
    tasks: Vec<AbortHandle>,
}

impl Net {
    /// Picks the engine and starts the tasks. The overlay device appears with the first [`Net::apply`].
    ///
    /// A WireGuard device that a former agent left is taken over with its sessions.
    ///
    /// # Errors
    ///
    /// [`NetError::NotPermitted`] without root; [`NetError::NoKernelWireGuard`] if demanded and
    /// missing; [`NetError::PortInUse`].
    pub async fn start(config: NetConfig) -> Result<(Self, mpsc::Receiver<NetEvent>), NetError> {
        check_permission()?;
        let netlink = Arc::new(Netlink::open()?);
        let (tunnel, engine_reason) = choose_engine(&netlink, &config).await?;
        let leftover = Kernel::leftover(&netlink, &config.device).await?;
        let mut endpoints = Endpoints::default();
        let mut relay_port = None;
        match &leftover {
            Some(device) if tunnel.engine() == Engine::Kernel => {
                relay_port = adopt(device, &mut endpoints);
                tracing::info!(
                    device = config.device,
                    peers = device.peers.len(),
                    "device taken over"
                );
            }
            // The operator changed the engine: the kernel's device stands in the way.
            Some(_) => links::delete(&netlink, &config.device).await?,
            None => {}
        }
        if leftover.is_none_or(|device| device.listen_port != config.port) {
            check_port(config.port)?;
        }
        let relayed =
            Relayed::bind(relay_port, config.port).map_err(|source| NetError::Socket {
                operation: "opening the relay socket on lo",
                source,
            })?;
        let relayed = Arc::new(relayed);
        let peers = Peers::default();
        let disco = Arc::new(Disco::new(config.disco));
        let (relays, notices) = Manager::new(Inbound {
            relayed: relayed.clone(),
            peers: peers.clone(),
            disco: disco.clone(),
        });
        let (events_sender, events) = mpsc::channel(MAX_EVENTS);
        let (assignment, assignments) = watch::channel(None);
        let inner = Arc::new(Mutex::new(Inner {
            netlink,
            tunnel,
            engine_reason,
            device: config.device.clone(),
            port: config.port,
            state_dir: config.state_dir,
            endpoints,
            peers: peers.clone(),
            relayed: relayed.clone(),
            relays: relays.clone(),
            counting: Counting::default(),
            applied: None,
        }));
        let watcher = links::Watcher::open()?;
        let steward = Steward::new(relays.clone(), events_sender.clone());
        let tasks = [
            tokio::spawn(steward.run(assignments, notices)),
            tokio::spawn(carry(relayed, peers.clone(), relays.clone())),
            tokio::spawn(repair(
                Arc::downgrade(&inner),
                config.device,
                watcher,
                events_sender,
            )),
        ];
        let net = Self {
            inner,
            relays,
            peers,
            disco,
            assignment,
            tasks: tasks.map(|task| task.abort_handle()).into(),
        };
        Ok((net, events))
    }

    /// Makes this host look as `desired` says; applying the same again changes nothing.
    ///
    /// # Errors
    ///
    /// Whatever the kernel refused; what was possible is done, and the rest is tried again until it
    /// works or something else is applied.
    pub async fn apply(
        &mut self,
        node_key: &NodePrivate,
        desired: &Desired,
    ) -> Result<(), NetError> {
        let applied = self.inner.lock().await.apply(node_key, desired).await;
        let assignment = Assignment {
            map: desired.derp_map.clone(),
            seed: seed(&node_key.public()),
        };
        self.assignment.send_if_modified(|old| {
            let changed = old.as_ref() != Some(&assignment);
            *old = Some(assignment);
            changed
        });
        applied
    }

    /// Takes the overlay device down and leaves the relays, but keeps running.
    ///
    /// # Errors
    ///
    /// Whatever the kernel refused.
    pub async fn idle(&mut self) -> Result<(), NetError> {
        self.assignment.send_replace(None);
        self.inner.lock().await.remove().await
    }

    /// Returns the data plane as it is now.
    pub async fn status(&self) -> NetStatus {
        self.inner.lock().await.status().await
    }

    /// Pings a peer over its relay (disco) and waits for the pong.
    ///
    /// # Errors
    ///
    /// [`NetError::UnknownPeer`], [`NetError::Unreachable`] or [`NetError::PingTimeout`].
    pub async fn ping(&self, peer: &NodePublic, wait: Duration) -> Result<PingReply, NetError> {
        let our_key = {
            let inner = self.inner.lock().await;
            let applied = inner.applied.as_ref().ok_or(NetError::Down)?;
            applied.key.public()
        };
        let table = self.peers.snapshot();
        let peer = table.by_key(peer).ok_or(NetError::UnknownPeer)?;
        let mut ping = self.disco.ping(peer, our_key).ok_or(NetError::Unreachable(
            "the peer has no disco key, or too many pings are under way",
        ))?;
        let link = self
            .relays
            .link_to(&peer.key, peer.home)
            .ok_or(NetError::Unreachable(
                "the peer has no home relay that this node knows",
            ))?;
        let start = tokio::time::Instant::now();
        link.send(peer.key, &ping.datagram);
        let Ok(Ok(region)) = timeout(wait, &mut ping.answered).await else {
            return Err(NetError::PingTimeout(wait));
        };
        let latency = start.elapsed();
        Ok(PingReply {
            latency,
            region,
            region_code: self.relays.code(region),
        })
    }

    /// Removes everything: device, routes, rules, pins. Nothing is left; again is fine.
    ///
    /// # Errors
    ///
    /// Whatever the kernel refused to remove.
    pub async fn down(self) -> Result<(), NetError> {
        self.assignment.send_replace(None);
        self.inner.lock().await.remove().await
    }

    /// Stops the tasks and leaves a kernel data plane in place; an embedded tunnel ends with the process.
    pub async fn detach(self) {
        self.inner.lock().await.detach().await;
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.relays.stop();
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Picks the engine and says why.
async fn choose_engine(
    netlink: &Arc<Netlink>,
    config: &NetConfig,
) -> Result<(Box<dyn Tunnel>, String), NetError> {
    let kernel = || -> Box<dyn Tunnel> { Box::new(Kernel::new(netlink.clone(), &config.device)) };
    let embedded = || -> Box<dyn Tunnel> {
        Box::new(Embedded::new(netlink.clone(), &config.device, DEFAULT_MTU))
    };
    if config.engine == EngineChoice::Embedded {
        return Ok((embedded(), "asked for by --wireguard embedded".to_owned()));
    }
    match (Kernel::probe(netlink, &config.device).await, config.engine) {
        (Ok(()), EngineChoice::Kernel) => {
            Ok((kernel(), "asked for by --wireguard kernel".to_owned()))
        }
        (Ok(()), _) => Ok((kernel(), "the kernel has WireGuard".to_owned())),
        (Err(error @ netlink::Error::NotPermitted { .. }), _) => Err(error.into()),
        (Err(error), EngineChoice::Kernel) => Err(NetError::NoKernelWireGuard(error)),
        (Err(error), _) => Ok((embedded(), error.to_string())),
    }
}

/// Takes over the synthetic endpoints of a running device; returns the port they share.
fn adopt(device: &wireguard::Device, endpoints: &mut Endpoints) -> Option<u16> {
    let mut port = None;
    for (key, peer) in &device.peers {
        if let Some(endpoint) = peer.endpoint
            && let IpAddr::V4(address) = endpoint.ip()
            && address.is_loopback()
        {
            endpoints.adopt(*key, address);
            port = Some(endpoint.port());
        }
    }
    port
}

/// A mark is what every socket of ours needs, and what only CAP_NET_ADMIN may set.
fn check_permission() -> Result<(), NetError> {
    match underlay::open_udp(false) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(NetError::NotPermitted)
        }
        Err(source) => Err(NetError::Socket {
            operation: "opening a UDP socket",
            source,
        }),
    }
}

/// Tells early, and in plain words, that somebody else has the port.
fn check_port(port: u16) -> Result<(), NetError> {
    let any = [
        IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::from(Ipv6Addr::UNSPECIFIED),
    ];
    for ip in any {
        if let Err(error) = UdpSocket::bind((ip, port))
            && error.kind() == io::ErrorKind::AddrInUse
        {
            return Err(NetError::PortInUse { port });
        }
    }
    Ok(())
}

/// Carries packets between WireGuard and the relays, whatever happens to the socket.
async fn carry(relayed: Arc<Relayed>, peers: Peers, relays: Manager) {
    loop {
        let error = relayed.serve(&peers, &relays).await;
        tracing::warn!(%error, "relay socket failed, going on");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Puts back what vanished: the device at once, the rest within a minute.
async fn repair(
    inner: Weak<Mutex<Inner>>,
    device: String,
    mut watcher: links::Watcher,
    events: mpsc::Sender<NetEvent>,
) {
    let mut looks = interval(INSPECT_EVERY);
    let mut count: u32 = 0;
    let mut broken = false;
    let mut watching = true;
    loop {
        let removed = tokio::select! {
            _ = looks.tick() => false,
            name = watcher.next_removed(), if watching => {
                watching = name.is_some();
                if name.as_ref() != Some(&device) {
                    continue;
                }
                true
            }
        };
        let Some(inner) = inner.upgrade() else { return };
        let mut inner = inner.lock().await;
        count = count.wrapping_add(1);
        let due = removed || broken || count.is_multiple_of(FULL_INSPECTION);
        let wired = !due && inner.is_wired().await.unwrap_or(false);
        let result = if wired { Ok(()) } else { inner.reapply().await };
        drop(inner);
        if result.is_ok() == broken {
            let text = result.as_ref().err().map(ToString::to_string);
            let key = DEVICE_BROKEN;
            if events.send(NetEvent::Health { key, text }).await.is_err() {
                return;
            }
        }
        broken = result.is_err();
    }
}

/// A number out of our key that spreads nodes over regions.
fn seed(key: &NodePublic) -> u64 {
    let bytes = key.as_bytes().first_chunk().copied().unwrap_or_default();
    u64::from_be_bytes(bytes)
}
