//! The parts of the data plane that are applied together: tunnel, wiring, counters, peer table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::DerefMut;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use dataplane::{Dataplane, DataplaneError, PeerIndex};
use ipnet::IpNet;
use keys::{NodePrivate, NodePublic};
use netlink::links::Kind;
use netlink::rules::UNDERLAY_MARK;
use netlink::{Netlink, links, wireguard};
use node_core::endpoints::Endpoints;
use node_core::paths::Route;
use node_core::{Desired, DesiredPeer};
use tokio::sync::watch;
use tunnel::Relaying;

use super::claims::{Arrangement, Claims};
use super::direct::Pins;
use super::filter::{Guard, Orders, PacketFilter, Restriction, hosts};
use super::host::Host;
use super::numbers::{Numbers, peer_index};
use super::owed::Owed;
use super::peers::{Peer, Peers};
use super::traffic::Accounts;
use super::tsmp::Tsmp;
use super::{Engine, NetError, Netfilter, Reports, restore_forwarding};
use crate::blocking::joined;
use crate::derp::Manager;
use crate::error_text::error_text;
use crate::firewall::{self, Firewall};
use crate::offload::{self, Holder};
use crate::paths::{self, Event, Wire};
use crate::portmap;
use crate::relayed::Relayed;
use crate::router::{self, Mtus, Wiring, forwarding};
use crate::shield::{self, Shields};
use crate::tunnel::Tunnel;

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
    /// Under which numbers their routes are counted.
    pub(super) numbers: Numbers,
    /// Endpoints that replace all others: set by hand.
    pub(super) direct: BTreeMap<NodePublic, SocketAddr>,
    /// How peers are reached, if not only through relays.
    pub(super) routes: BTreeMap<NodePublic, Route>,
    /// How long packets to peers may be.
    pub(super) mtus: Mtus,
    /// Peers whose routes say another length still.
    pub(super) outgrown: BTreeSet<NodePublic>,
    /// Addresses whose packets must not move the endpoint of the peer.
    pub(super) claims: Claims,
    /// Those whose packets take a detour.
    pub(super) detoured: Arrangement,
    /// What failed, and is tried again.
    pub(super) owed: Owed,
    /// Paths of a former agent that the path machine has not been told of yet.
    pub(super) adopted: BTreeMap<NodePublic, SocketAddr>,
    /// Direct paths are looked for.
    pub(super) wants_direct: bool,
    /// Keeps relayed packets from moving WireGuard's endpoints.
    pub(super) pinning: Pins,
    pub(super) paths: paths::Handle,
    pub(super) wire: Arc<Wire>,
    pub(super) peers: Peers,
    pub(super) relayed: Arc<Relayed>,
    /// How a tunnel in this process reaches the relays.
    pub(super) relaying: Relaying,
    pub(super) relays: Manager,
    /// The router's port that leads to ours.
    pub(super) portmap: portmap::Handle,
    pub(super) guard: Guard,
    pub(super) shields: Shields,
    /// Where dropped packets are reported.
    pub(super) reports: Reports,
    /// Speaks with peers' agents through the tunnel.
    pub(super) tsmp: Tsmp,
    /// The host's netfilter; `None` where it has none, as the log says.
    pub(super) firewall: Option<Firewall>,
    /// Counts the filters that were put in force.
    pub(super) filter_serial: u64,
    /// Why the filter admits less than it should.
    pub(super) filter_problem: Option<String>,
    /// What the task that offloads forwarded flows goes by.
    pub(super) offload: watch::Sender<offload::Config>,
    /// Which way traffic went.
    pub(super) accounts: Accounts,
    /// Forwarded flows whose packets go past the stack.
    pub(super) offloaded: usize,
    pub(super) applied: Option<Applied>,
}

impl Holder for Inner {
    fn offloaded(&mut self, flows: usize) {
        self.offloaded = flows;
    }

    fn dataplane(&mut self) -> Option<impl DerefMut<Target = Dataplane>> {
        self.guard.dataplane()
    }
}

/// What should be, as last told.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) key: NodePrivate,
    pub(super) desired: Desired,
    pub(super) filter: PacketFilter,
    pub(super) netfilter: Netfilter,
    /// The filter's rules in the words of the eBPF programs.
    pub(super) rules: Arc<dataplane::Rules>,
}

impl Inner {
    /// Takes a new desired state and makes it so.
    pub(super) async fn apply(
        &mut self,
        key: &NodePrivate,
        desired: &Desired,
        filter: PacketFilter,
        netfilter: Netfilter,
    ) -> Result<(), NetError> {
        self.assign_endpoints(desired)?;
        self.relays.configure(key, &desired.derp_map);
        self.tell_paths(key, desired).await;
        let rules = Arc::new(filter.rules());
        let before = self.applied.as_ref().map(|applied| &applied.rules);
        let changed = before != Some(&rules);
        self.applied = Some(Applied {
            key: key.clone(),
            desired: desired.clone(),
            filter,
            netfilter,
            rules,
        });
        self.reapply().await?;
        self.filter_serial += u64::from(changed);
        Ok(())
    }

    /// Makes the host again what it should be; does nothing while idle.
    pub(super) async fn reapply(&mut self) -> Result<(), NetError> {
        let Some(Applied { key, desired, .. }) = &self.applied else {
            return Ok(());
        };
        let wiring = Wiring::new(desired, &self.mtus);
        let device = wireguard::Device {
            private_key: Some(key.clone()),
            listen_port: self.port,
            fwmark: UNDERLAY_MARK,
            peers: self.tunnel_peers(desired),
        };
        // What is new in the map may pass only by the map's rules, so a device that is up already gets
        // them first; a new one is down until it has them.
        let result = async {
            if self.is_ours_already().await? {
                self.enforce().await?;
            }
            self.tunnel.apply(&device).await?;
            self.enforce_on_new_device().await
        };
        if let Err(error) = result.await {
            if matches!(error, NetError::NoFilter(_)) {
                // Without a filter no packet may pass.
                self.take_device_down().await?;
            }
            return Err(error);
        }
        // Before the device is up: nobody shall hear that its protocol is unknown here.
        self.arrange_tsmp();
        let wired = router::apply(&self.netlink, &self.device, &wiring).await;
        self.wired(wired)?;
        self.outgrown.clear();
        self.arrange_netfilter().await?;
        self.arrange_offload().await?;
        self.arrange_shields().await?;
        self.arrange_pinning().await;
        let switches = self.switches();
        forwarding::arrange(&self.state_dir, &switches).map_err(|source| NetError::Socket {
            operation: "setting the host's forwarding sysctls",
            source,
        })?;
        self.owed.applied();
        Ok(())
    }

    /// Makes routes take packets as long as their peers do, where that has changed.
    pub(super) async fn resize(&mut self) -> Result<(), NetError> {
        let Some(Applied { desired, .. }) = &self.applied else {
            return Ok(());
        };
        if self.outgrown.is_empty() {
            return Ok(());
        }
        let (mtus, peers) = (&self.mtus, &self.outgrown);
        let resized = router::resize(&self.netlink, &self.device, desired, mtus, peers);
        self.wired(resized.await)?;
        self.outgrown.clear();
        Ok(())
    }

    fn wired(&self, wired: Result<(), netlink::Error>) -> Result<(), NetError> {
        wired.map_err(|error| match error.errno() {
            Some(libc::EADDRINUSE) => NetError::PortInUse { port: self.port },
            _ => error.into(),
        })
    }

    /// Puts our rules into the host's netfilter, or takes them out if the operator wants none there.
    pub(super) async fn arrange_netfilter(&mut self) -> Result<(), NetError> {
        self.arrange_detours();
        self.owed.detour();
        self.set_netfilter().await?;
        self.owed.detoured();
        Ok(())
    }

    async fn set_netfilter(&self) -> Result<(), NetError> {
        let Some(applied) = &self.applied else {
            return Ok(());
        };
        let shared = self.firewall.is_some() && applied.netfilter.manage;
        let raw = self.wire.set_raw(self.wants_direct && !shared);
        raw.map_err(|source| NetError::Socket {
            operation: "sharing WireGuard's port without netfilter",
            source,
        })?;
        let Some(firewall) = &self.firewall else {
            return Ok(());
        };
        let Netfilter {
            manage,
            divert,
            masquerade,
        } = applied.netfilter;
        if !manage {
            return Ok(firewall.remove(&self.device).await?);
        }
        let served = applied.desired.served_routes.clone();
        let config = firewall::Config {
            device: self.device.clone(),
            divert,
            wireguard_port: self.port,
            agent_port: self.wants_direct.then(|| self.wire.port()),
            detoured: self.detoured.keys().copied().collect(),
            forwards: !served.is_empty() || forwarding::is_on(),
            uses_exit_node: applied.desired.exit.is_some(),
            masquerade,
            exit_node: served.iter().any(|net| net.prefix_len() == 0),
            served,
        };
        Ok(firewall.apply(&config).await?)
    }

    /// Has the WireGuard port shielded on each device of the underlay.
    async fn arrange_shields(&mut self) -> Result<(), NetError> {
        let overlay = self.guard.device().unwrap_or_default();
        let devices = shield::devices(&self.netlink, overlay).await?;
        let trusted = self.trusted();
        let pins = self.shield_pins();
        self.shields.arrange(&devices, &trusted, pins.as_deref());
        Ok(())
    }

    /// Tells the task that offloads forwarded flows what there is now.
    async fn arrange_offload(&self) -> Result<(), NetError> {
        let device = self.guard.device();
        let forwards = match (&self.applied, device) {
            (Some(Applied { desired, .. }), Some(index)) if !desired.served_routes.is_empty() => {
                Some(offload::survey(&self.netlink, index, desired).await?)
            }
            _ => None,
        };
        self.offload.send_if_modified(|config| {
            let changed = config.forwards != forwards;
            config.forwards = forwards;
            changed
        });
        Ok(())
    }

    /// What the host's switches are to be set for.
    fn switches(&self) -> forwarding::Wanted {
        let Some(applied) = &self.applied else {
            return forwarding::Wanted::default();
        };
        let desired = &applied.desired;
        let forwards = desired.enable_forwarding && !desired.served_routes.is_empty();
        forwarding::Wanted {
            routes: forwards.then(|| desired.served_routes.clone()),
            marks_decide: desired.exit.is_some() && applied.netfilter.manage,
        }
    }

    /// Sends what is for the peer straight to `endpoint`, or by the relays again.
    pub(super) async fn set_direct(
        &mut self,
        peer: NodePublic,
        endpoint: Option<SocketAddr>,
    ) -> Result<(), NetError> {
        match endpoint {
            Some(endpoint) => self.direct.insert(peer, endpoint),
            None => self.direct.remove(&peer),
        };
        self.set_beside(&peer);
        self.reapply().await
    }

    /// Checks cheaply, between full inspections, that the device is there and up.
    pub(super) async fn is_wired(&self) -> Result<bool, NetError> {
        if self.applied.is_none() {
            return Ok(true);
        }
        let link = links::get(&self.netlink, &self.device).await?;
        Ok(link.is_some_and(|link| link.up))
    }

    /// Looks at the host's side of the underlay, and tells if it is another than before.
    pub(super) async fn look_at_host(
        &mut self,
        known: &watch::Sender<Host>,
    ) -> Result<(), NetError> {
        let host = Host::look(&self.netlink, &self.device).await?;
        let moved = host.has_moved_from(&known.borrow());
        known.send_if_modified(|old| {
            let changed = *old != host;
            *old = host;
            changed
        });
        if moved && self.applied.is_some() {
            // The kernel forgets the sources that it has cached for its peers.
            let mark = wireguard::Change::SetFwmark(UNDERLAY_MARK);
            self.tunnel.change(vec![mark]).await?;
            self.set_besides();
        }
        Ok(())
    }

    /// Removes device, routes and rules, and leaves the relays.
    pub(super) async fn remove(&mut self) -> Result<(), NetError> {
        self.applied = None;
        self.offload.send_modify(|config| config.forwards = None);
        self.relays.stop();
        self.peers.replace(std::iter::empty());
        self.routes.clear();
        self.claims.clear();
        self.arrange_detours();
        self.owed = Owed::default();
        self.mtus = Mtus::default();
        self.outgrown.clear();
        self.pinning = Pins::Untried;
        let nobody = Event::Peers {
            node: NodePublic::from_bytes([0; 32]),
            peers: Vec::new(),
        };
        self.paths.tell(nobody).await;
        self.take_device_down().await?;
        let pins = self.shield_pins();
        let removed = self.shields.remove(pins.as_deref());
        removed.map_err(NetError::Programs)?;
        if let Some(firewall) = &self.firewall {
            firewall.remove(&self.device).await?;
        }
        restore_forwarding(&self.state_dir)?;
        router::remove(&self.netlink).await?;
        Ok(())
    }

    /// Removes the device, and after it what guards it: in this order nothing passes unjudged.
    pub(super) async fn take_device_down(&mut self) -> Result<(), NetError> {
        if let Some(gate) = self.tunnel.gate() {
            gate.close();
        }
        self.tunnel.remove().await?;
        let stopped = self.stop_guarding();
        self.arrange_tsmp();
        stopped
    }

    /// Lets go of what outlives the agent, and tidies up what does not.
    pub(super) async fn detach(&mut self) {
        self.relays.stop();
        self.end_detours().await;
        self.tunnel.detach().await;
        if self.tunnel.engine() == Engine::Embedded {
            // Device, addresses and routes went with the tunnel.
            if let Err(error) = router::remove(&self.netlink).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "routing rules not removed");
            }
            if let Some(firewall) = &self.firewall
                && let Err(error) = firewall.remove(&self.device).await
            {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "firewall rules not removed");
            }
        }
    }

    /// Gives each peer its synthetic endpoint and publishes the table for the packet path.
    fn assign_endpoints(&mut self, desired: &Desired) -> Result<(), NetError> {
        let present: BTreeSet<NodePublic> = desired.peers.keys().copied().collect();
        self.endpoints.retain(&present);
        self.direct.retain(|key, _| present.contains(key));
        self.routes.retain(|key, _| present.contains(key));
        self.claims.retain(&present);
        self.owed.retain(&present);
        self.mtus.retain(&present);
        let mut table = Vec::with_capacity(present.len());
        for (key, peer) in &desired.peers {
            let address = self.endpoints.assign(*key)?;
            let overlay = hosts(&peer.allowed_ips);
            let peer = Peer::new(*key, address, peer.home_derp, peer.disco);
            table.push(peer.with_overlay(overlay));
        }
        self.peers.replace(table.into_iter());
        let guard = &self.guard;
        self.numbers
            .assign(desired, |number| guard.count_of(number));
        Ok(())
    }

    fn tunnel_peers(&self, desired: &Desired) -> BTreeMap<NodePublic, wireguard::Peer> {
        let peers = desired.peers.iter();
        peers
            .map(|(key, peer)| {
                let peer = wireguard::Peer {
                    endpoint: self.endpoint(key),
                    allowed_ips: peer.allowed_ips.iter().copied().collect(),
                };
                (*key, peer)
            })
            .collect()
    }

    /// Whether the device exists and is ours: guarded before, or left by a former agent.
    async fn is_ours_already(&self) -> Result<bool, NetError> {
        let link = links::get(&self.netlink, &self.device).await?;
        Ok(link.is_some_and(|link| {
            let left = self.tunnel.engine() == Engine::Kernel && link.kind == Kind::WireGuard;
            left || self.guard.device() == Some(link.index)
        }))
    }

    /// As [`Self::enforce`], if the device has appeared since.
    async fn enforce_on_new_device(&mut self) -> Result<(), NetError> {
        let link = links::get(&self.netlink, &self.device).await?;
        if link.map(|link| link.index) == self.guard.device() {
            return Ok(());
        }
        self.enforce().await
    }

    /// Puts the filter in force on the present device: with eBPF if that can be, else, in the embedded
    /// tunnel, here.
    async fn enforce(&mut self) -> Result<(), NetError> {
        let Some(link) = links::get(&self.netlink, &self.device).await? else {
            return Ok(());
        };
        if self.guard.device() != Some(link.index) {
            let (device, pin_dir) = (self.device.clone(), self.pin_dir());
            let attached =
                tokio::task::spawn_blocking(move || Dataplane::attach(&device, pin_dir.as_deref()));
            self.guard = match joined(attached.await) {
                Ok(dataplane) => {
                    self.offload.send_modify(|config| config.attachment += 1);
                    Guard::ebpf(dataplane, link.index, &self.reports)
                }
                Err(error) if self.tunnel.gate().is_some() => {
                    let reason = error_text(&error);
                    tracing::warn!(reason, "packets are filtered in this process");
                    Guard::Userspace(reason, link.index)
                }
                Err(error) => return Err(NetError::NoFilter(error)),
            };
        }
        let Some(Applied {
            desired,
            filter,
            rules,
            ..
        }) = &self.applied
        else {
            return Ok(());
        };
        let prefixes = prefixes(desired);
        match &mut self.guard {
            Guard::Ebpf(dataplane, ..) => {
                let peers: Vec<_> = prefixes
                    .iter()
                    .filter_map(|(prefix, key)| {
                        let peer = peer_index(self.endpoints.address(key)?);
                        let index = self.numbers.of(peer, key, prefix);
                        Some((*prefix, guarded(index, filter.restriction(key))))
                    })
                    .collect();
                // In whole seconds, as for peers: read anew, the clocks differ by a little.
                let expires = filter.expires.map(dataplane::since_boot);
                let orders = Orders {
                    peers,
                    expires: expires.map(|at| Duration::from_secs(at.as_secs() + 1)),
                    rules: Arc::clone(rules),
                };
                self.filter_problem = orders.carry_out(dataplane).await?;
                if let Some(gate) = self.tunnel.gate() {
                    gate.open();
                }
            }
            Guard::Userspace(..) => {
                self.filter_problem = None;
                if let Some(gate) = self.tunnel.gate() {
                    let (rules, local, peers) = filter.model(&prefixes);
                    gate.judge(rules, local, peers);
                }
            }
            Guard::Untried => {}
        }
        Ok(())
    }

    fn pin_dir(&self) -> Option<PathBuf> {
        self.outliving(dataplane::pin_folder)
    }

    pub(super) fn shield_pins(&self) -> Option<PathBuf> {
        self.outliving(shield::pin_folder)
    }

    /// Only a kernel device outlives the agent, so only its programs are pinned.
    fn outliving(
        &self,
        folder: impl FnOnce(&str, &Path) -> Result<PathBuf, DataplaneError>,
    ) -> Option<PathBuf> {
        if self.tunnel.engine() != Engine::Kernel {
            return None;
        }
        match folder(&self.device, &self.state_dir) {
            Ok(folder) => Some(folder),
            Err(error) => {
                let reason = error_text(&error);
                tracing::warn!(reason, "programs will not outlive the agent");
                None
            }
        }
    }

    fn stop_guarding(&mut self) -> Result<(), NetError> {
        let removed = match std::mem::take(&mut self.guard) {
            Guard::Ebpf(dataplane, ..) => match Arc::into_inner(dataplane) {
                Some(dataplane) => dataplane
                    .into_inner()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(),
                // Still in use for somebody who has not waited.
                None => Dataplane::remove_leftovers(&self.device, self.pin_dir().as_deref()),
            },
            Guard::Userspace(..) => Ok(()),
            Guard::Untried if self.tunnel.engine() == Engine::Kernel => {
                Dataplane::remove_leftovers(&self.device, self.pin_dir().as_deref())
            }
            Guard::Untried => Ok(()),
        };
        removed.map_err(NetError::Programs)
    }
}

/// Every prefix of the overlay and the peer that it belongs to.
fn prefixes(desired: &Desired) -> Vec<(IpNet, NodePublic)> {
    let of_peer = |(key, peer): (&NodePublic, &DesiredPeer)| {
        let key = *key;
        let prefixes = peer.allowed_ips.clone().into_iter();
        prefixes.map(move |prefix| (prefix, key))
    };
    desired.peers.iter().flat_map(of_peer).collect()
}

/// A peer in the words of the eBPF programs.
fn guarded(index: PeerIndex, Restriction { jailed, expires }: Restriction) -> dataplane::Peer {
    dataplane::Peer {
        index,
        jailed,
        expires: expires.map(dataplane::since_boot),
    }
}
