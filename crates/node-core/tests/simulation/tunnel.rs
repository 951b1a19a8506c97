//! A node's WireGuard: where each peer's endpoint is, what moves it, and what the data plane counts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use node_core::paths::{Route, Sources};

/// Numbers that the replay window remembers.
const WINDOW: usize = 256;

/// The kernel's endpoint of a peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Endpoint {
    /// The synthetic one of this peer, which need not be the same: a detour hands over what comes from an
    /// address as that of one peer, whoever sent it.
    Synthetic(usize),
    Straight(SocketAddr),
}

/// A peer as kernel WireGuard and the data plane see it.
#[derive(Debug)]
pub(crate) struct Tunnel {
    peer: usize,
    /// As the path machine chose.
    route: Route,
    /// Packets may have moved it.
    endpoint: Endpoint,
    pub(crate) last_sent: Option<Duration>,
    /// Since when packets have gone out and none came in.
    pub(crate) unanswered: Option<Duration>,
    seen: BTreeSet<u64>,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Way {
    pub(crate) straight: Option<SocketAddr>,
    /// Through the agent, to the relay of this peer.
    pub(crate) relayed: Option<usize>,
    /// Where nobody chose.
    pub(crate) strays: bool,
}

impl Tunnel {
    fn new(peer: usize) -> Self {
        Self {
            peer,
            route: Route::Relayed,
            endpoint: Endpoint::Synthetic(peer),
            last_sent: None,
            unanswered: None,
            seen: BTreeSet::new(),
        }
    }

    fn chosen(&self) -> Endpoint {
        match self.route {
            Route::Direct(address) => Endpoint::Straight(address),
            Route::Relayed | Route::Both(_) => Endpoint::Synthetic(self.peer),
        }
    }

    fn set_route(&mut self, route: Route) {
        self.route = route;
        self.endpoint = self.chosen();
    }

    /// False if this packet came before, or may have: repetitions move nothing.
    fn is_new(&mut self, number: u64) -> bool {
        let full = self.seen.len() >= WINDOW;
        let too_old = full && self.seen.first().is_some_and(|first| number < *first);
        if too_old || !self.seen.insert(number) {
            return false;
        }
        if full {
            self.seen.pop_first();
        }
        true
    }

    pub(crate) fn is_direct(&self) -> bool {
        matches!(self.route, Route::Direct(_))
    }

    /// The address on the way that was chosen.
    fn address(&self) -> Option<SocketAddr> {
        match self.route {
            Route::Direct(address) | Route::Both(address) => Some(address),
            Route::Relayed => None,
        }
    }

    /// What a new process of the agent finds in the kernel.
    fn inherit(&mut self) -> Option<SocketAddr> {
        let direct = match self.endpoint {
            Endpoint::Straight(address) if self.is_direct() => Some(address),
            _ => None,
        };
        self.set_route(Route::Relayed);
        direct
    }
}

/// All peers of a node, and its detours: one table, by source address alone, as netfilter has it.
#[derive(Debug, Default)]
pub(crate) struct Tunnels {
    peers: BTreeMap<usize, Tunnel>,
    /// Whose unproved addresses these are said to be; the latest claim is the last.
    detours: BTreeMap<SocketAddr, Vec<usize>>,
    /// Addresses that are a peer's for certain.
    own: BTreeMap<usize, BTreeSet<SocketAddr>>,
}

impl Tunnels {
    pub(crate) fn get(&self, peer: usize) -> Option<&Tunnel> {
        self.peers.get(&peer)
    }

    /// The peer's, a new one if need be.
    pub(crate) fn of(&mut self, peer: usize) -> &mut Tunnel {
        self.peers.entry(peer).or_insert_with(|| Tunnel::new(peer))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Tunnel)> {
        self.peers.iter().map(|(peer, tunnel)| (*peer, tunnel))
    }

    pub(crate) fn set_route(&mut self, peer: usize, route: Route) {
        self.of(peer).set_route(route);
    }

    pub(crate) fn set_detours(&mut self, peer: usize, sources: Sources) {
        for (source, claims) in &mut self.detours {
            claims.retain(|claim| *claim != peer || sources.unproved.contains(source));
        }
        for source in &sources.unproved {
            let claims = self.detours.entry(*source).or_default();
            if !claims.contains(&peer) {
                claims.push(peer);
            }
        }
        self.own.insert(peer, sources.own);
    }

    /// The agent is gone.
    pub(crate) fn end_detours(&mut self) {
        self.detours.clear();
        self.own.clear();
    }

    /// Whose packets those from `source` are taken for, on their detour. Another peer's endpoint is no
    /// detour of this one; of two unproved claims the latest counts.
    fn detour(&self, source: SocketAddr) -> Option<usize> {
        let is_others = |claim: usize| {
            let mut others = self.peers.values().filter(|other| other.peer != claim);
            others.any(|other| other.address() == Some(source))
        };
        let owns = |peer: usize| self.own.get(&peer).is_some_and(|own| own.contains(&source));
        let all = self.detours.get(&source)?;
        let is_better = |claim: usize, other: usize| !owns(claim) || !all.contains(&other);
        let is_lost = |claim: usize| {
            let mut others = self.own.keys().filter(|other| **other != claim);
            others.any(|other| owns(*other) && is_better(claim, *other))
        };
        let mut claims = all.iter().rev().copied();
        claims.find(|claim| !is_others(*claim) && !is_lost(*claim))
    }

    /// Sends a packet; the agent sees only what goes to a synthetic endpoint.
    pub(crate) fn send(&mut self, now: Duration, to: usize) -> Way {
        let tunnel = self.of(to);
        tunnel.last_sent = Some(now);
        tunnel.unanswered.get_or_insert(now);
        let strays = tunnel.endpoint != tunnel.chosen();
        match tunnel.endpoint {
            Endpoint::Straight(address) => Way {
                straight: Some(address),
                relayed: None,
                strays,
            },
            Endpoint::Synthetic(peer) => {
                let taken_for = self.of(peer);
                // The agent cannot tell that it is for somebody else.
                taken_for.last_sent = Some(now);
                Way {
                    straight: match taken_for.route {
                        Route::Both(address) => Some(address),
                        Route::Relayed | Route::Direct(_) => None,
                    },
                    relayed: Some(peer),
                    strays,
                }
            }
        }
    }

    /// Takes an authenticated packet, which moves the sender's endpoint to its source: to the chosen one if
    /// it came from a relay, to that of whom it was taken for if it came by a detour. False if it came before.
    pub(crate) fn receive(&mut self, from: usize, number: u64, source: Option<SocketAddr>) -> bool {
        if !self.of(from).is_new(number) {
            return false;
        }
        let by_agent = match source {
            Some(source) => self.detour(source),
            None => Some(from),
        };
        let source = match (by_agent, source) {
            (None, Some(source)) => Endpoint::Straight(source),
            (peer, _) => self.of(peer.unwrap_or(from)).chosen(),
        };
        let tunnel = self.of(from);
        tunnel.unanswered = None;
        tunnel.endpoint = source;
        true
    }

    /// What a new process of the agent finds in the kernel.
    pub(crate) fn inherit(&mut self) -> Vec<(usize, SocketAddr)> {
        let peers = self.peers.iter_mut();
        let found = peers.filter_map(|(peer, tunnel)| Some((*peer, tunnel.inherit()?)));
        found.collect()
    }
}
