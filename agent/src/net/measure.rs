//! All that is counted, for metrics: [`Measures`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use dataplane::{Census, Count, MapUse};
use ipnet::IpNet;
use keys::NodePublic;
use tokio::sync::Mutex;

use super::Net;
use super::inner::Inner;
use super::numbers::peer_index;
use super::status::NetStatus;
use super::traffic::{Carried, Counted, Path, PathChange};
use crate::blocking::joined;

/// For how long it is not asked again how full the maps are.
const CENSUS_LIFE: Duration = Duration::from_secs(15);

/// The data plane and all that is counted.
#[derive(Clone, Debug)]
pub struct Measures {
    /// The data plane; overlay traffic of peers is what this process has seen of it.
    pub status: NetStatus,
    /// WireGuard's traffic by path. Packets on direct paths are those of the overlay, without WireGuard's own, and
    /// only where programs count them.
    pub paths: BTreeMap<Path, Carried>,
    /// Short names of relay regions.
    pub regions: BTreeMap<node_core::RegionId, String>,
    /// Peers with series of their own: 256 at most, of more those that were busiest when there was room. A peer
    /// keeps its place for as long as it is one, so that sums over the others never fall.
    pub shown: BTreeSet<NodePublic>,
    /// How often peers' paths changed.
    pub path_changes: BTreeMap<PathChange, u64>,
    /// Overlay traffic by routes of peers that this node uses.
    pub used_routes: BTreeMap<IpNet, Carried>,
    /// Overlay traffic of known flows by routes that this node serves: received from peers, sent to them.
    pub served_routes: BTreeMap<IpNet, Carried>,
    /// What each rule of the network map has admitted, by its number there.
    pub rules: BTreeMap<u32, Count>,
    /// Forwarded flows whose packets go past the stack.
    pub offloaded: usize,
    /// The eBPF maps, by name.
    pub maps: BTreeMap<&'static str, MapUse>,
}

impl Net {
    /// Returns the data plane as it is now with all that is counted. How full the eBPF maps are is at most 15 s old,
    /// and asked for while nothing else waits.
    pub async fn measure(&self) -> Measures {
        let (mut measures, census) = {
            let mut inner = self.inner.lock().await;
            let measures = inner.measure().await;
            (measures, inner.guard.census())
        };
        if let Some(census) = census {
            measures.maps = self.censuses.take(&census).await;
        }
        measures
    }
}

impl Inner {
    /// Reads everything that metrics show, but for the maps.
    pub(super) async fn measure(&mut self) -> Measures {
        let states = self.states().await;
        let counts = self.guard.counts();
        let table = self.peers.snapshot();
        let desired = self.applied.as_ref().map(|applied| &applied.desired);
        let peers = desired.into_iter().flat_map(|desired| desired.peers.keys());
        let bytes = |bytes| Count { packets: 0, bytes };
        let peers = peers
            .map(|key| {
                let state = states.get(key).copied().unwrap_or_default();
                let relayed = table.by_key(key).map(|peer| peer.relayed.read());
                let counted = Counted {
                    wireguard: Carried {
                        rx: bytes(state.stats.rx_bytes),
                        tx: bytes(state.stats.tx_bytes),
                    },
                    relayed: relayed.unwrap_or_default(),
                    endpoint: state.endpoint.filter(|at| !at.ip().is_loopback()),
                };
                (*key, counted)
            })
            .collect();
        let endpoints = &self.endpoints;
        let own = |key: &_| endpoints.address(key).map(peer_index);
        self.accounts.look(&peers, &counts, &self.numbers, own);
        let mut status = self.status_of(&states, &counts).await;
        for (key, peer) in &mut status.peers {
            let seen = self.accounts.overlay(key);
            peer.overlay = peer.overlay.and(seen.map(Into::into));
        }
        let relayed = self.peers.regions.read();
        let regions = relayed
            .keys()
            .map(|region| (*region, self.relays.code(*region)));
        let served = self.guard.route_counts().into_iter();
        Measures {
            regions: regions.collect(),
            paths: relayed
                .into_iter()
                .map(|(region, carried)| (Path::Relay(region), carried))
                .chain(self.accounts.direct().clone())
                .collect(),
            shown: self.accounts.shown().clone(),
            path_changes: self.accounts.changes().clone(),
            used_routes: self.accounts.routes(&self.numbers),
            served_routes: served
                .map(|(net, [rx, tx])| (net, Carried { rx, tx }))
                .collect(),
            rules: self.guard.rule_hits().unwrap_or_else(|error| {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "counters of rules not read");
                BTreeMap::new()
            }),
            offloaded: self.offloaded,
            maps: BTreeMap::new(),
            status,
        }
    }
}

/// The last census, so that scrapes in short order share one.
#[derive(Debug, Default)]
pub(super) struct Censuses(Mutex<Option<(Instant, BTreeMap<&'static str, MapUse>)>>);

impl Censuses {
    /// Takes one, unless the last is young. It has been the same device's for as long as that.
    pub(super) async fn take(&self, census: &Census) -> BTreeMap<&'static str, MapUse> {
        let mut last = self.0.lock().await;
        if let Some((at, maps)) = &*last
            && at.elapsed() < CENSUS_LIFE
        {
            return maps.clone();
        }
        let census = census.clone();
        let maps = joined(tokio::task::spawn_blocking(move || census.take()).await);
        *last = Some((Instant::now(), maps.clone()));
        maps
    }
}
