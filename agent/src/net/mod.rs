//! The agent's data plane behind one facade: [`Net`] owns tunnel, router, relay connections, counters.

mod check;
mod claims;
mod direct;
mod drops;
mod error;
pub(crate) mod filter;
mod host;
mod inner;
mod local;
mod measure;
mod numbers;
mod owed;
pub(crate) mod peers;
mod ping;
mod rejects;
mod repair;
mod reroute;
mod start;
mod status;
mod steward;
mod switch;
pub(crate) mod traffic;
mod tsmp;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dataplane::{Count, Dataplane, Pinning};
use ipnet::IpNet;
use keys::{DiscoPrivate, DiscoPublic, NodePrivate, NodePublic};
use netlink::rules::UNDERLAY_MARK;
use netlink::{Netlink, addresses, links};
use node_core::{Desired, RegionId};
use tokio::sync::{Mutex, watch};
use tokio::task::AbortHandle;

use crate::derp::Manager;
use crate::error_text::error_text;
use crate::firewall::Firewall;
use crate::paths;
use crate::portmap;
use crate::router::{self, forwarding};
use crate::shield;
use crate::tunnel::Kernel;
use inner::Inner;
use measure::Censuses;
use peers::Peers;
use steward::Assignment;

pub use crate::netcheck::{Mapped, Report as NetcheckReport};
pub use crate::paths::{Junk, Kind as EndpointKind};
pub use crate::portmap::{Services as PortMappers, State as PortMapping};
pub use crate::shield::{ShieldMode, ShieldStatus};
pub use check::{Checker, Netcheck};
pub use drops::Reports;
pub use error::NetError;
pub use filter::{FilterPlace, FilterStatus, PacketFilter, Restriction};
pub use measure::Measures;
pub use ping::Pinger;
pub use status::{
    CarrierStatus, Engine, Home, NetEvent, NetStatus, OverlayTraffic, PeerStatus, PingPath,
    PingReply, RelayStatus, RouteStatus,
};
pub use traffic::{Carried, Path as TrafficPath, PathChange};
pub use tsmp::TunnelPong;

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

/// Settings of the data plane that do not change while it runs, but for the engine ([`Net::use_engine`]).
#[derive(Debug)]
pub struct NetConfig {
    /// Name of the overlay device; pins and other names derive from it. Default `tailrace0`.
    pub device: String,
    /// UDP port of WireGuard. Default 41641.
    pub port: u16,
    /// Which WireGuard to use.
    pub engine: EngineChoice,
    /// Where floods of handshakes are held off.
    pub shield: ShieldMode,
    /// Folder for the agent's state.
    pub state_dir: PathBuf,
    /// Our disco key.
    pub disco: DiscoPrivate,
    /// Direct paths are looked for; without them every peer is reached through relays, and nobody is told where
    /// this node could be reached.
    pub direct: bool,
    /// The router is asked for a port of its own that leads to ours, for direct paths.
    pub port_mapping: bool,
    /// Endpoints at which we can be reached, as the operator knows.
    pub endpoints: Vec<SocketAddr>,
    /// Whether control is connected: only then do peers learn of another home relay.
    pub control: watch::Receiver<bool>,
    /// Our home relay as control last told it: without control it stays.
    pub home: Option<RegionId>,
}

/// What the operator wants of the host's netfilter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Netfilter {
    /// Our rules may be there.
    pub manage: bool,
    /// The host's other firewalls may be told to let us pass.
    pub divert: bool,
    /// Hosts behind us see our address in place of the peers'.
    pub masquerade: bool,
}

impl Default for Netfilter {
    fn default() -> Self {
        Self {
            manage: true,
            divert: true,
            masquerade: true,
        }
    }
}

/// The data plane of one node.
///
/// Dropping it stops its tasks and leaves the kernel's part as it is, like [`Net::detach`].
#[derive(Debug)]
pub struct Net {
    inner: Arc<Mutex<Inner>>,
    relays: Manager,
    peers: Peers,
    reports: Reports,
    paths: paths::Handle,
    portmap: portmap::Handle,
    assignment: watch::Sender<Option<Assignment>>,
    censuses: Censuses,
    checks: Arc<check::Shared<Netcheck>>,
    tasks: Vec<AbortHandle>,
}

impl Net {
    /// Does beforehand what takes privileges that the daemon gives up: where a kernel device will pin its
    /// counters, now or once the operator changes the engine, it mounts a BPF file system if there is none.
    pub async fn prepare(device: &str, engine: EngineChoice, state_dir: &Path) {
        let prepared = async {
            // Who wants the embedded tunnel need not have the kernel's module loaded.
            if engine != EngineChoice::Embedded {
                let netlink = Netlink::open()?;
                Kernel::probe(&netlink, device).await?;
            }
            Ok::<_, netlink::Error>(dataplane::pin_folder(device, state_dir))
        };
        match prepared.await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "no place for pinned counters"),
            // No kernel WireGuard, no pins: `start` has the word about that.
            Err(error) => tracing::debug!(%error, "nothing to prepare"),
        }
    }

    /// Tells whether sessions of a former agent live on, in a device of the kernel that [`Net::start`] will
    /// take over.
    pub async fn outlived(device: &str, engine: EngineChoice) -> bool {
        if engine == EngineChoice::Embedded {
            return false;
        }
        start::outlived(device).await
    }

    /// Makes this host look as `desired` says, guarded by `filter`; applying the same again changes
    /// nothing. What the filter could not do is in [`FilterStatus::problem`].
    ///
    /// # Errors
    ///
    /// Whatever the kernel refused; what was possible is done, and the rest is tried again until it
    /// works or something else is applied.
    pub async fn apply(
        &mut self,
        node_key: &NodePrivate,
        desired: &Desired,
        filter: PacketFilter,
        netfilter: Netfilter,
    ) -> Result<(), NetError> {
        let applied = self
            .inner
            .lock()
            .await
            .apply(node_key, desired, filter, netfilter)
            .await;
        let assignment = Assignment {
            map: desired.derp_map.clone(),
            seed: seed(&node_key.public()),
        };
        self.assignment.send_if_modified(|old| {
            let changed = old.as_ref() != Some(&assignment);
            *old = Some(assignment);
            changed
        });
        self.portmap.want(true);
        applied
    }

    /// The addresses of this host's interfaces but the overlay device, each with the length of its network.
    ///
    /// # Errors
    ///
    /// Whatever the kernel answered.
    pub async fn interfaces(&self) -> Result<Vec<IpNet>, NetError> {
        let inner = self.inner.lock().await;
        let link = links::get(&inner.netlink, &inner.device).await?;
        let overlay = link.map_or(0, |link| link.index);
        let found = addresses::dump_others(&inner.netlink, overlay).await?;
        Ok(found.into_iter().map(|(_, address)| address).collect())
    }

    /// Returns what checks the network, without holding on to the data plane.
    ///
    /// # Errors
    ///
    /// [`NetError::Down`] while nothing is applied.
    pub async fn checker(&self) -> Result<Checker, NetError> {
        let inner = self.inner.lock().await;
        let applied = inner.applied.as_ref().ok_or(NetError::Down)?;
        Ok(Checker {
            map: applied.desired.derp_map.clone(),
            relays: self.relays.clone(),
            wire: inner.wire.clone(),
            portmap: self.portmap.clone(),
            last: self.checks.clone(),
        })
    }

    /// Where dropped packets are reported.
    #[must_use]
    pub fn reports(&self) -> Reports {
        self.reports.clone()
    }

    /// What each rule of the network map has admitted, by its number there, since it came in force.
    /// Nothing where the filter is not in eBPF.
    ///
    /// # Errors
    ///
    /// [`NetError::NoFilter`] if the kernel does not tell.
    pub async fn rule_hits(&self) -> Result<BTreeMap<u32, Count>, NetError> {
        self.inner.lock().await.guard.rule_hits()
    }

    /// Why the filter admits less than it should, and what is not shielded.
    pub async fn problems(&self) -> Vec<String> {
        let inner = self.inner.lock().await;
        let shield = inner.shields.problem().map(str::to_owned);
        inner
            .filter_problem
            .clone()
            .into_iter()
            .chain(shield)
            .collect()
    }

    /// Takes the overlay device down and leaves the relays, but keeps running.
    ///
    /// # Errors
    ///
    /// Whatever the kernel refused.
    pub async fn idle(&mut self) -> Result<(), NetError> {
        self.assignment.send_replace(None);
        self.portmap.want(false);
        self.inner.lock().await.remove().await
    }

    /// Returns the data plane as it is now.
    pub async fn status(&self) -> NetStatus {
        let mut status = self.inner.lock().await.status().await;
        for (key, latency) in self.paths.latencies().await {
            if let Some(peer) = status.peers.get_mut(&key) {
                peer.latency = Some(latency);
            }
        }
        status
    }

    /// Returns what pings peers of the present network, without holding on to the data plane.
    ///
    /// # Errors
    ///
    /// [`NetError::Down`] while nothing is applied.
    pub async fn pinger(&self) -> Result<Pinger, NetError> {
        let inner = self.inner.lock().await;
        let desired = &inner.applied.as_ref().ok_or(NetError::Down)?.desired;
        Ok(Pinger {
            addresses: desired.addresses.iter().map(IpNet::addr).collect(),
            tsmp: inner.tsmp.clone(),
            relays: self.relays.clone(),
            peers: self.peers.clone(),
            paths: self.paths.clone(),
        })
    }

    /// Sends what is for `peer` straight to `endpoint` instead of by the relays, until told otherwise
    /// (`None`) or the daemon ends.
    ///
    /// # Errors
    ///
    /// Whatever the kernel refused; [`NetError::Down`] while nothing is applied.
    pub async fn set_endpoint(
        &self,
        peer: NodePublic,
        endpoint: Option<SocketAddr>,
    ) -> Result<(), NetError> {
        let mut inner = self.inner.lock().await;
        if inner.applied.is_none() {
            return Err(NetError::Down);
        }
        inner.set_direct(peer, endpoint).await
    }

    /// Takes over a disco key that a peer told through its live session ([`NetEvent::DiscoKey`]): its paths
    /// start anew, its session stays. The next [`Net::apply`] has to say the same.
    pub async fn take_disco_key(&self, peer: NodePublic, key: DiscoPublic) {
        self.paths.tell(paths::Event::DiscoKey(peer, key)).await;
    }

    /// Pings a peer; see [`Pinger::ping`].
    ///
    /// # Errors
    ///
    /// As there, and [`NetError::Down`].
    pub async fn ping(&self, peer: &NodePublic, wait: Duration) -> Result<PingReply, NetError> {
        self.pinger().await?.ping(peer, 0, wait).await
    }

    /// Removes what an earlier run of the agent left, without taking it over first; nothing there is fine.
    ///
    /// # Errors
    ///
    /// Whatever the kernel refused to remove.
    pub async fn remove_leftovers(
        device: &str,
        port: u16,
        state_dir: &Path,
    ) -> Result<(), NetError> {
        let netlink = Netlink::open()?;
        let leftover = Kernel::leftover(&netlink, device).await?;
        // One with another mark is somebody else's; one without a key is ours, hardly begun.
        if leftover.is_some_and(|left| left.fwmark == UNDERLAY_MARK || left.private_key.is_none()) {
            let pins = found(
                "the filter's pins",
                dataplane::pin_folder(device, state_dir),
            );
            // In this order nothing passes unjudged.
            links::delete(&netlink, device).await?;
            Dataplane::remove_leftovers(device, pins.as_deref()).map_err(NetError::Programs)?;
            if let Some(pins) = found("the shield's pins", shield::pin_folder(device, state_dir)) {
                dataplane::Shield::remove_all(&pins).map_err(NetError::Programs)?;
            }
            Pinning::remove_leftovers(port).map_err(NetError::Programs)?;
            tracing::info!(device, "removed what an earlier run left");
        }
        if let Some(firewall) = found("the host's netfilter", Firewall::new()) {
            firewall.remove(device).await?;
        }
        restore_forwarding(state_dir)?;
        Ok(router::remove(&netlink).await?)
    }

    /// Removes everything: device, routes, rules, pins. Nothing is left; again is fine.
    ///
    /// # Errors
    ///
    /// Whatever the kernel refused to remove.
    pub async fn down(self) -> Result<(), NetError> {
        self.assignment.send_replace(None);
        self.portmap.release().await;
        self.inner.lock().await.remove().await
    }

    /// Stops the tasks and leaves a kernel data plane in place; an embedded tunnel ends with the process.
    ///
    /// The router's mapping is given back either way: without us nobody would renew it, and flows that go
    /// through it by now keep their entries in the router's table.
    pub async fn detach(self) {
        self.portmap.release().await;
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

/// What may be absent, but not without a word: something of ours may stay there.
fn found<T, E: std::error::Error>(what: &str, result: Result<T, E>) -> Option<T> {
    result
        .inspect_err(|error| {
            let reason = error_text(error);
            tracing::warn!(
                reason,
                "{what} cannot be reached, so nothing is removed there"
            );
        })
        .ok()
}

/// Puts the host's forwarding switches back.
fn restore_forwarding(state_dir: &Path) -> Result<(), NetError> {
    forwarding::restore(state_dir).map_err(|source| NetError::Socket {
        operation: "putting the forwarding sysctls back",
        source,
    })
}

/// A number out of our key that spreads nodes over regions.
fn seed(key: &NodePublic) -> u64 {
    let bytes = key.as_bytes().first_chunk().copied().unwrap_or_default();
    u64::from_be_bytes(bytes)
}
