//! Direct paths as the data plane has them: WireGuard's endpoints, the pinned sources, who is trusted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use dataplane::Pinning;
use keys::{NodePrivate, NodePublic};
use netlink::rules::UNDERLAY_MARK;
use netlink::wireguard::Change;
use node_core::Desired;
use node_core::paths::{PeerPaths, Route};

use super::claims::{Arrangement, owner};
use super::inner::Inner;
use super::numbers::peer_index;
use super::reroute::Traffic;
use super::{Engine, NetError};
use crate::blocking::joined;
use crate::error_text::error_text;
use crate::paths::{Event, Order};
use crate::relayed::Beside;
use crate::tunnel::PeerState;
use crate::underlay::udp;

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

/// What becomes of detours.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Turn {
    Nothing,
    /// Some begin.
    Begins,
    /// None begins, but some end or are another peer's.
    Ends,
}

impl Turn {
    fn of(before: &Arrangement, after: &Arrangement) -> Self {
        if before == after {
            return Self::Nothing;
        }
        match after.keys().all(|source| before.contains_key(source)) {
            true => Self::Ends,
            false => Self::Begins,
        }
    }
}

/// The orders that are about peers of this network: others were given before it changed.
fn about_peers(orders: &[Order], is_peer: impl Fn(&NodePublic) -> bool) -> Vec<&Order> {
    let orders = orders.iter();
    orders.filter(|order| is_peer(&order.peer())).collect()
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

    /// Does what the path machine has decided; the last word on each peer counts. What fails holds up nothing
    /// else: the next heartbeat repeats routes, and [`Self::make_up`] does the rest.
    pub(super) async fn carry_out(&mut self, orders: &[Order]) -> Vec<NetError> {
        let Some(applied) = &self.applied else {
            return Vec::new();
        };
        let peers = &applied.desired.peers;
        let orders = about_peers(orders, |peer| peers.contains_key(peer));
        let mut routed = BTreeSet::new();
        let (mut changed, mut restarted) = (false, false);
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
                Order::Detour(peer, ref sources) => self.claims.set(peer, sources.clone()),
                Order::Mtu(peer, mtu) => {
                    if self.mtus.set(peer, mtu) {
                        self.outgrown.insert(peer);
                        let peer = peer.to_string();
                        tracing::info!(peer, mtu, "takes packets so long");
                    }
                }
                Order::Reset(peer) => {
                    self.owed.restart(peer);
                    restarted = true;
                }
            }
        }
        let mut problems = Vec::new();
        let turn = self.arrange_detours();
        // One that is relayed again must not be moved back: the detour is there before its endpoint changes.
        if turn == Turn::Begins {
            problems.extend(self.arrange_netfilter().await.err());
        }
        let mut endpoints = Vec::with_capacity(routed.len());
        for peer in routed {
            // What is relayed has to look like coming from the new endpoint before it is one.
            self.set_beside(&peer);
            let endpoint = self.endpoint(&peer);
            endpoints.extend(endpoint.map(|endpoint| Change::SetEndpoint(peer, endpoint)));
        }
        problems.extend(self.tunnel.change(endpoints).await.err());
        // What takes it a little longer seems to come from the endpoint; nobody waits for the rules to change.
        if turn == Turn::Ends {
            problems.extend(self.arrange_netfilter().await.err());
        }
        if changed {
            self.shields.trust(&self.trusted());
        }
        problems.extend(self.resize().await.err());
        if restarted {
            problems.extend(self.restart_sessions().await.err());
        }
        problems
    }

    /// Does what was to be done earlier and failed.
    pub(super) async fn make_up(&mut self) -> Vec<NetError> {
        let mut problems = Vec::new();
        if self.owed.netfilter() {
            problems.extend(self.arrange_netfilter().await.err());
        }
        if self.owed.peers() {
            problems.extend(self.restart_sessions().await.err());
        }
        problems
    }

    /// Has peers begin anew that restarted.
    async fn restart_sessions(&mut self) -> Result<(), NetError> {
        let removals = self.owed.removals().into_iter();
        let removals = removals.map(Change::RemovePeer).collect();
        let removed = self.tunnel.change(removals).await;
        if removed.is_ok() {
            self.owed.removed();
        }
        let added = self.reapply().await;
        removed.and(added)
    }

    /// Has packets from addresses without proof pass the agent, which hands them over like relayed ones:
    /// WireGuard would answer where they came from, and past the relay. The host's netfilter has to follow.
    pub(super) fn arrange_detours(&mut self) -> Turn {
        let wanted = self.claims.arrange(&self.routes, &self.direct);
        let turn = Turn::of(&self.detoured, &wanted);
        if turn != Turn::Nothing {
            let endpoints = &self.endpoints;
            let detours = wanted
                .iter()
                .filter_map(|(source, peer)| Some((*source, endpoints.address(peer)?)));
            self.wire.set_detours(detours, |source| {
                endpoints.address(&owner(source, &self.routes, &self.direct)?)
            });
            self.detoured = wanted;
        }
        turn
    }

    /// Ends the detours: without an agent they lead nowhere.
    pub(super) async fn end_detours(&mut self) {
        self.claims.clear();
        if self.arrange_detours() == Turn::Nothing {
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

    /// Has packets that relays bring seem to come to the address at which a peer's own would.
    pub(super) fn set_besides(&mut self) {
        let peers = self.routes.keys().chain(self.direct.keys());
        for peer in peers.copied().collect::<Vec<NodePublic>>() {
            self.set_beside(&peer);
        }
    }

    /// Packets to and from these peers, or bytes, by what the tunnel says of them, where nothing counts packets.
    pub(super) fn traffic(
        &self,
        peers: Vec<NodePublic>,
        states: &BTreeMap<NodePublic, PeerState>,
    ) -> BTreeMap<NodePublic, Traffic> {
        let traffic = |peer: &NodePublic| {
            if !self.guard.is_ebpf() {
                let stats = states.get(peer)?.stats;
                return Some((stats.tx_bytes, stats.rx_bytes));
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

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodePublic = NodePublic::from_bytes([2; 32]);
    const STRANGER: NodePublic = NodePublic::from_bytes([3; 32]);

    #[test]
    fn orders_about_peers_of_another_network_are_not_carried_out() {
        let orders = [PEER, STRANGER].map(Order::Reset);
        assert_eq!(
            about_peers(&orders, |peer| *peer == PEER),
            [&Order::Reset(PEER)]
        );
    }

    #[test]
    fn a_detour_begins_before_endpoints_change_and_ends_after() {
        let arranged = |ports: &[(u16, NodePublic)]| {
            let at = |port| SocketAddr::from(([203, 0, 113, 1], port));
            let ports = ports.iter();
            ports.map(|(port, peer)| (at(*port), *peer)).collect()
        };
        let turn = |before, after| Turn::of(&arranged(before), &arranged(after));
        assert_eq!(turn(&[(1, PEER)], &[(1, PEER)]), Turn::Nothing);
        assert_eq!(turn(&[(1, PEER)], &[(2, PEER)]), Turn::Begins);
        assert_eq!(turn(&[], &[(1, PEER)]), Turn::Begins);
        assert_eq!(turn(&[(1, PEER)], &[]), Turn::Ends);
        // The rules stay as they are, and nobody has to wait for them.
        assert_eq!(turn(&[(1, PEER)], &[(1, STRANGER)]), Turn::Ends);
    }
}
