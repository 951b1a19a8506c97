//! The agent's data plane behind one facade: [`Net`] owns tunnel, router, relay connections, counters.

pub(crate) mod disco;
mod error;
mod inner;
pub(crate) mod peers;
mod ping;
mod repair;
mod status;
mod steward;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dataplane::Counters;
use keys::{DiscoPrivate, NodePrivate, NodePublic};
use netlink::rules::UNDERLAY_MARK;
use netlink::{Netlink, links, wireguard};
use node_core::endpoints::Endpoints;
use node_core::{DEFAULT_MTU, Desired};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::AbortHandle;

use crate::derp::Manager;
use crate::relayed::{Inbound, Relayed};
use crate::tunnel::{Embedded, Kernel, Tunnel};
use crate::{router, underlay};
use disco::Disco;
use inner::{Counting, Inner};
use peers::Peers;
use steward::{Assignment, Steward};

pub use error::NetError;
pub use ping::Pinger;
pub use status::{
    CountersState, Engine, Home, NetEvent, NetStatus, OverlayTraffic, PeerStatus, PingReply,
    RelayStatus,
};

/// Events that may wait for the agent.
const MAX_EVENTS: usize = 64;

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
    /// Does beforehand what takes privileges that the daemon gives up: where a kernel device will pin its
    /// counters, it mounts a BPF file system if there is none.
    pub async fn prepare(device: &str, engine: EngineChoice, state_dir: &Path) {
        if engine == EngineChoice::Embedded {
            return;
        }
        let prepared = async {
            let netlink = Netlink::open()?;
            Kernel::probe(&netlink, device).await?;
            Ok::<_, netlink::Error>(dataplane::pin_folder(device, state_dir))
        };
        match prepared.await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "no place for pinned counters"),
            // No kernel WireGuard, no pins: `start` has the word about that.
            Err(error) => tracing::debug!(%error, "nothing to prepare"),
        }
    }

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
            tokio::spawn(repair::run(
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

    /// Returns what pings peers of the present network, without holding on to the data plane.
    ///
    /// # Errors
    ///
    /// [`NetError::Down`] while nothing is applied.
    pub async fn pinger(&self) -> Result<Pinger, NetError> {
        let inner = self.inner.lock().await;
        let applied = inner.applied.as_ref().ok_or(NetError::Down)?;
        Ok(Pinger {
            our_key: applied.key.public(),
            relays: self.relays.clone(),
            peers: self.peers.clone(),
            disco: self.disco.clone(),
        })
    }

    /// Pings a peer; see [`Pinger::ping`].
    ///
    /// # Errors
    ///
    /// As there, and [`NetError::Down`].
    pub async fn ping(&self, peer: &NodePublic, wait: Duration) -> Result<PingReply, NetError> {
        self.pinger().await?.ping(peer, wait).await
    }

    /// Removes what an earlier run of the agent left, without taking it over first; nothing there is fine.
    ///
    /// # Errors
    ///
    /// Whatever the kernel refused to remove.
    pub async fn remove_leftovers(device: &str, state_dir: &Path) -> Result<(), NetError> {
        let netlink = Netlink::open()?;
        let leftover = Kernel::leftover(&netlink, device).await?;
        // One with another mark is somebody else's; one without a key is ours, hardly begun.
        if leftover.is_some_and(|left| left.fwmark == UNDERLAY_MARK || left.private_key.is_none()) {
            let pins = dataplane::pin_folder(device, state_dir).ok();
            let counters = Counters::remove_leftovers(device, pins.as_deref());
            links::delete(&netlink, device).await?;
            counters.map_err(NetError::Counters)?;
            tracing::info!(device, "removed what an earlier run left");
        }
        Ok(router::remove(&netlink).await?)
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

/// Tells early, and in plain words, that the port cannot be had.
fn check_port(port: u16) -> Result<(), NetError> {
    let any = [
        IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::from(Ipv6Addr::UNSPECIFIED),
    ];
    for ip in any {
        match UdpSocket::bind((ip, port)).map_err(|error| error.kind()) {
            Err(io::ErrorKind::AddrInUse) => return Err(NetError::PortInUse { port }),
            Err(io::ErrorKind::PermissionDenied) => return Err(NetError::PortRefused { port }),
            // A family that this host does not have.
            _ => {}
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

/// A number out of our key that spreads nodes over regions.
fn seed(key: &NodePublic) -> u64 {
    let bytes = key.as_bytes().first_chunk().copied().unwrap_or_default();
    u64::from_be_bytes(bytes)
}
