//! Direct paths as the data plane has them: WireGuard's endpoints, the pinned sources, who is trusted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use dataplane::Pinning;
use keys::{NodePrivate, NodePublic};
use netlink::rules::UNDERLAY_MARK;
use netlink::wireguard::Change;
use node_core::Desired;
use node_core::paths::{PeerPaths, Route};

use super::filter::joined;
use super::inner::Inner;
use super::numbers::peer_index;
use super::reroute::Traffic;
use super::{Engine, NetError};
use crate::error_text::error_text;
use crate::paths::{Event, Order};
use crate::relayed::Beside;
use crate::underlay::udp;

/// Most addresses in the rules for detours, each of which costs every packet a little; they are there only
/// while paths fail.
const MAX_DETOURS: usize = 64;

/// What keeps relayed packets from moving WireGuard's endpoints, over IPv4.
#[derive(Debug, Default)]
pub(super) enum Pins {
    /// Nothing yet.
    #[default]
    Untried,
    /// The program on `lo`.
    Program(Box<Pinning>),
    /// Raw sockets: there can be no program.
    Sockets,
}

/// Logs a change of path: what a person asks first when something is slow.
fn tell_path(peer: NodePublic, route: Route) {
    let peer = peer.to_string();
    match route {
        Route::Direct(endpoint) => tracing::info!(peer, %endpoint, "reached directly"),
        Route::Both(endpoint) => {
            tracing::info!(peer, %endpoint, "reached by relay and, untrusted, directly");
        }
        Route::Relayed => tracing::info!(peer, "reached by relay"),
    }
}

impl Inner {
    /// Tells the path machine who we are and who our peers are.
    pub(super) async fn tell_paths(&mut self, key: &NodePrivate, desired: &Desired) {
        let peers = desired.peers.iter();
        // Who has only just joined has told nobody where it listens: it may well be where we do.
        let ours = self.relays.home().map(|(region, _)| region);
        let peers = peers
            .map(|(key, peer)| {
                let paths = PeerPaths {
                    disco: peer.disco,
                    home: peer.home_derp.or(ours),
                    endpoints: peer.endpoints.clone(),
                };
                (*key, paths)
            })
            .collect();
        let node = key.public();
        self.paths.tell(Event::Peers { node, peers }).await;
        for (peer, address) in std::mem::take(&mut self.adopted) {
            self.paths.tell(Event::Adopted(peer, address)).await;
        }
    }

    /// Does what the path machine has decided; the last word on each peer counts.
    pub(super) async fn carry_out(&mut self, orders: &[Order]) -> Result<(), NetError> {
        let mut routed = BTreeSet::new();
        let mut restarted = Vec::new();
        let (mut changed, mut detoured) = (false, false);
        for order in orders {
            match *order {
                Order::Route(peer, route) => {
                    if self.routes.insert(peer, route) != Some(route) {
                        tell_path(peer, route);
                        self.accounts.changed(peer, route);
                        changed = true;
                    }
                    routed.insert(peer);
                }
                Order::Detour(peer, ref sources) => {
                    self.detours.insert(peer, sources.clone());
                    detoured = true;
                }
                Order::Mtu(peer, mtu) => {
                    if self.mtus.set(peer, mtu) {
                        self.outgrown.insert(peer);
                        let peer = peer.to_string();
                        tracing::info!(peer, mtu, "takes packets so long");
                    }
                }
                Order::Reset(peer) => restarted.push(Change::RemovePeer(peer)),
            }
        }
        if self.applied.is_none() {
            return Ok(());
        }
        // Before the endpoints: one that is relayed again must not be moved back.
        if detoured {
            self.arrange_detours().await?;
        }
        let mut endpoints = Vec::with_capacity(routed.len());
        for peer in routed {
            // What is relayed has to look like coming from the new endpoint before it is one.
            self.set_beside(&peer);
            let endpoint = self.endpoint(&peer);
            endpoints.extend(endpoint.map(|endpoint| Change::SetEndpoint(peer, endpoint)));
        }
        self.tunnel.change(endpoints).await?;
        if changed {
            self.shields.trust(&self.trusted());
        }
        self.resize().await?;
        if !restarted.is_empty() {
            self.tunnel.change(restarted).await?;
            self.reapply().await?;
        }
        Ok(())
    }

    /// Has packets from addresses without proof pass the agent, which hands them over like relayed ones:
    /// WireGuard would answer where they came from, and past the relay.
    async fn arrange_detours(&mut self) -> Result<(), NetError> {
        self.detours.retain(|_, sources| !sources.is_empty());
        let detours = self.detours.iter().filter_map(|(peer, sources)| {
            let address = self.endpoints.address(peer)?;
            Some(sources.iter().map(move |source| (*source, address)))
        });
        self.wire.set_detours(detours.flatten());
        self.arrange_netfilter().await
    }

    /// Ends the detours: without an agent they lead nowhere.
    pub(super) async fn end_detours(&mut self) {
        if std::mem::take(&mut self.detours).is_empty() {
            return;
        }
        if let Err(error) = self.arrange_netfilter().await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(
                error,
                "packets from some addresses are lost until the agent is back"
            );
        }
    }

    /// Addresses whose WireGuard packets the host's netfilter brings to the agent.
    pub(super) fn detoured(&self) -> BTreeSet<SocketAddr> {
        let sources = self.detours.values().flatten();
        sources.copied().take(MAX_DETOURS).collect()
    }

    /// Where WireGuard sends what is for a peer.
    pub(super) fn endpoint(&self, peer: &NodePublic) -> Option<SocketAddr> {
        let address = self.endpoints.address(peer);
        let relayed = address.map(|ip| SocketAddr::from((ip, self.relayed.port())));
        self.chosen(peer).or(relayed)
    }

    /// The direct endpoint in use: set by hand, or proved.
    fn chosen(&self, peer: &NodePublic) -> Option<SocketAddr> {
        let routed = match self.routes.get(peer) {
            Some(Route::Direct(address)) => Some(*address),
            _ => None,
        };
        self.direct.get(peer).copied().or(routed)
    }

    /// Who may begin handshakes in a flood.
    pub(super) fn trusted(&self) -> Vec<SocketAddr> {
        let routed = self.routes.values().filter_map(|route| match route {
            Route::Direct(address) | Route::Both(address) => Some(*address),
            Route::Relayed => None,
        });
        self.direct.values().copied().chain(routed).collect()
    }

    /// Sets what a peer's relayed packets meet: a copy on the direct path, or that path's source.
    pub(super) fn set_beside(&mut self, peer: &NodePublic) {
        let Some(address) = self.endpoints.address(peer) else {
            return;
        };
        let chosen = self.chosen(peer);
        let pinned = self.pin(address, chosen);
        let beside = match (chosen, self.routes.get(peer)) {
            (Some(from), _) if !pinned => self
                .arrives_at(from)
                .map(|to| Beside::Source { from, to })
                .inspect_err(|error| tracing::debug!(%from, %error, "no way to a chosen endpoint"))
                .ok(),
            (None, Some(Route::Both(address))) => Some(Beside::Mirror(*address)),
            _ => None,
        };
        self.relayed.set_beside(address, beside);
    }

    /// Has the program on `lo` give a peer's relayed packets the chosen source; false if it cannot.
    fn pin(&mut self, address: Ipv4Addr, chosen: Option<SocketAddr>) -> bool {
        let source: Option<SocketAddrV4> = match chosen {
            Some(SocketAddr::V4(source)) => Some(source),
            _ => None,
        };
        let Pins::Program(pinning) = &mut self.pinning else {
            return false;
        };
        match pinning.set(address, source) {
            Ok(()) => source.is_some(),
            Err(error) => {
                let reason = error_text(&error);
                tracing::warn!(
                    reason,
                    "a relayed peer's source is not pinned in the kernel"
                );
                false
            }
        }
    }

    /// Relayed packets are handed to WireGuard in this process.
    fn is_in_process(&self) -> bool {
        self.tunnel.engine() == Engine::Embedded
    }

    /// The address of ours at which packets from an endpoint arrive: the kernel's WireGuard remembers it.
    fn arrives_at(&self, from: SocketAddr) -> std::io::Result<SocketAddr> {
        let ip = match from {
            _ if self.is_in_process() => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => udp::source_to(from, UNDERLAY_MARK)?,
        };
        Ok(SocketAddr::new(ip, self.port))
    }

    /// Attaches the program that pins sources, where that can be; raw sockets do its work otherwise.
    pub(super) async fn arrange_pinning(&mut self) {
        // The embedded tunnel is told in this process where packets come from.
        let untried = matches!(self.pinning, Pins::Untried) && !self.is_in_process();
        if !untried || !self.wants_direct && self.direct.is_empty() {
            return;
        }
        let (wireguard, relay) = (self.port, self.relayed.port());
        let attached = tokio::task::spawn_blocking(move || Pinning::attach(wireguard, relay)).await;
        self.pinning = match joined(attached) {
            Ok(pinning) => Pins::Program(Box::new(pinning)),
            Err(error) => {
                let reason = error_text(&error);
                tracing::debug!(reason, "sources of relayed packets are set by raw sockets");
                Pins::Sockets
            }
        };
        self.set_besides();
    }

    /// Another engine takes packets another way: has those of every relayed peer meet what it needs.
    pub(super) fn engine_changed(&mut self) {
        self.pinning = Pins::Untried;
        self.set_besides();
    }

    fn set_besides(&mut self) {
        let peers = self.routes.keys().chain(self.direct.keys());
        for peer in peers.copied().collect::<Vec<NodePublic>>() {
            self.set_beside(&peer);
        }
    }

    /// Packets, or bytes, to and from these peers.
    pub(super) async fn traffic(&self, peers: Vec<NodePublic>) -> BTreeMap<NodePublic, Traffic> {
        if peers.is_empty() {
            return BTreeMap::new();
        }
        // Counting packets costs less than asking the tunnel, which has to be asked where nothing counts.
        let states = if self.guard.is_ebpf() {
            BTreeMap::new()
        } else {
            self.states().await
        };
        let traffic = |peer: &NodePublic| {
            if let Some(state) = states.get(peer) {
                return Some((state.stats.tx_bytes, state.stats.rx_bytes));
            }
            let own = peer_index(self.endpoints.address(peer)?);
            let count = |number| self.guard.count_of(number);
            let counters = self.numbers.sum(own, peer, count)?;
            Some((counters.tx_packets, counters.rx_packets))
        };
        let traffic = peers.into_iter().filter_map(|peer| {
            let (sent, received) = traffic(&peer)?;
            Some((peer, Traffic { sent, received }))
        });
        traffic.collect()
    }
}
