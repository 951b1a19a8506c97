//! What the data plane reports about itself: [`NetStatus`], and what it tells unasked: [`NetEvent`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use control_proto::tailcfg;
use dataplane::{Count, Forwarded, Origin, PeerCounters, PeerIndex};
use ipnet::IpNet;
use keys::{DiscoPublic, NodePublic};
use netlink::links;
use node_core::{Desired, DesiredPeer, RegionId};

use super::filter::{Guard, locked};
use super::inner::Inner;
use super::numbers::peer_index;
use super::{EndpointKind, FilterPlace, FilterStatus, Junk, PortMapping, ShieldStatus};
use crate::tunnel::PeerState;

/// WireGuard forgets a session this long after its handshake (REJECT_AFTER_TIME).
pub(super) const SESSION_LIFE: Duration = Duration::from_secs(180);

/// Which WireGuard carries the overlay.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Engine {
    /// The kernel's WireGuard.
    Kernel,
    /// The tunnel inside this process, on a TUN device.
    Embedded,
}

impl Engine {
    /// Returns the word that `--wireguard` and `status` use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Embedded => "embedded",
        }
    }
}

/// The data plane at one moment.
#[derive(Clone, Debug)]
pub struct NetStatus {
    /// The engine in use.
    pub engine: Engine,
    /// Why this engine, for people.
    pub engine_reason: String,
    /// Name of the overlay device.
    pub device: String,
    /// The device exists and is up; false while idle.
    pub device_up: bool,
    /// How this process carries packets; `None` where the kernel does.
    pub carrier: Option<CarrierStatus>,
    /// UDP port of WireGuard.
    pub port: u16,
    /// Addresses of this node on the overlay device.
    pub addresses: Vec<IpNet>,
    /// The packet filter.
    pub filter: FilterStatus,
    /// Packets of forwarded flows that the programs know, by where they came in and what became of them.
    pub forwarded: BTreeMap<(Origin, Forwarded), Count>,
    /// The shields of the WireGuard port.
    pub shield: ShieldStatus,
    /// The relay region by which others reach us, once known.
    pub home: Option<Home>,
    /// Every relay region with a connection, or that is being connected.
    pub relays: Vec<RelayStatus>,
    /// Every peer of the device.
    pub peers: BTreeMap<NodePublic, PeerStatus>,
    /// When the counters of peers and routes were read, since boot.
    pub read_at: Duration,
    /// Networks that are reached through peers.
    pub routes: Vec<RouteStatus>,
    /// Networks that this node serves to peers.
    pub served_routes: Vec<IpNet>,
    /// Datagrams to WireGuard's port that led to nothing.
    pub junk: Junk,
    /// What the router can do and does for us.
    pub port_mapping: PortMapping,
}

/// The embedded engine's device.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CarrierStatus {
    /// What the kernel splits and joins for it.
    pub offloads: Vec<tunnel::OffloadState>,
    /// What it counted since it was made.
    pub counters: tunnel::Counters,
}

/// The home relay region.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Home {
    /// Number of the region.
    pub region: RegionId,
    /// Short name of the region.
    pub code: String,
}

/// One relay connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RelayStatus {
    /// Number of the region.
    pub region: RegionId,
    /// Short name of the region.
    pub code: String,
    /// Connected and admitted.
    pub connected: bool,
    /// Why it is not connected, or what the relay says about its own health.
    pub problem: Option<String>,
    /// Packets dropped because the relay was too slow, not there, or allows no more.
    pub dropped: u64,
}

/// Traffic with one peer inside the tunnel, as the eBPF programs count it: packets on the wire, not
/// merged ones, and their IP bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct OverlayTraffic {
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// One peer as the data plane sees it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PeerStatus {
    /// Bytes received from the peer, as WireGuard counts them.
    pub rx_bytes: u64,
    /// Bytes sent to the peer, as WireGuard counts them.
    pub tx_bytes: u64,
    /// What the eBPF programs counted, if they run.
    pub overlay: Option<OverlayTraffic>,
    /// Last completed WireGuard handshake.
    pub last_handshake: Option<SystemTime>,
    /// Direct endpoint in use; `None` while relayed.
    pub cur_addr: Option<SocketAddr>,
    /// Code of the region by which the peer is relayed; empty if unknown.
    pub relay: String,
    /// Its WireGuard session is alive: traffic within the last three minutes.
    pub active: bool,
    /// Round trip of the last disco answer on the way in use, if one was measured there.
    pub latency: Option<Duration>,
    /// Bytes that a packet to the peer may have.
    pub mtu: u16,
}

/// A network that is reached through a peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RouteStatus {
    /// The network; of length 0 for the exit node's.
    pub prefix: IpNet,
    /// The peer.
    pub peer: NodePublic,
    /// What the eBPF programs counted; `None` if they do not run, or count it with the peer's own.
    pub overlay: Option<OverlayTraffic>,
}

/// An answered ping.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PingReply {
    /// Round trip.
    pub latency: Duration,
    /// The way that ping and pong went.
    pub path: PingPath,
}

/// The way of a ping.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PingPath {
    /// Straight to this endpoint.
    Direct(SocketAddr),
    /// By a relay.
    Relay {
        /// Number of the region.
        region: RegionId,
        /// Its short name.
        code: String,
    },
}

/// What the data plane tells the rest of the agent.
#[derive(Clone, Debug)]
pub enum NetEvent {
    /// Home region or connectivity changed in a way that control should know.
    NetInfo(Box<tailcfg::NetInfo>),
    /// Where we can be reached, in the order in which it is offered.
    Endpoints(Vec<(SocketAddr, EndpointKind)>),
    /// A peer told through its live session that its disco key is another one than the map's.
    DiscoKey {
        /// The peer.
        peer: NodePublic,
        /// Its disco key.
        key: DiscoPublic,
    },
    /// A relay region was connected.
    DerpConnected(RegionId),
    /// Packets leave this host another way than before: connections may be dead without knowing it.
    Moved,
    /// A health warning appeared (`Some`) or went away (`None`).
    Health {
        /// Stable name of the warning.
        key: &'static str,
        /// What is wrong and what to do.
        text: Option<String>,
    },
}

impl From<PeerCounters> for OverlayTraffic {
    fn from(counts: PeerCounters) -> Self {
        Self {
            rx_packets: counts.rx_packets,
            rx_bytes: counts.rx_bytes,
            tx_packets: counts.tx_packets,
            tx_bytes: counts.tx_bytes,
        }
    }
}

/// What is shown of a peer, out of what the network map, the tunnel and the programs say.
pub(super) fn peer_status(
    desired: &Desired,
    peer: &DesiredPeer,
    state: &PeerState,
    counts: Option<PeerCounters>,
    mtu: Option<u16>,
) -> PeerStatus {
    let handshake = state.stats.last_handshake;
    let age = handshake.and_then(|at| SystemTime::now().duration_since(at).ok());
    let direct = state
        .endpoint
        .filter(|endpoint| !endpoint.ip().is_loopback());
    PeerStatus {
        rx_bytes: state.stats.rx_bytes,
        tx_bytes: state.stats.tx_bytes,
        overlay: counts.map(OverlayTraffic::from),
        last_handshake: handshake,
        cur_addr: direct,
        relay: peer
            .home_derp
            .map_or("", |home| desired.derp_map.code(home))
            .to_owned(),
        active: age.is_some_and(|age| age < SESSION_LIFE),
        latency: None,
        mtu: mtu.unwrap_or(desired.mtu),
    }
}

impl Inner {
    fn filter_status(&self) -> FilterStatus {
        let rules = self.applied.as_ref().map(|applied| &applied.filter.rules);
        let (place, drops) = match &self.guard {
            Guard::Untried => (FilterPlace::None, BTreeMap::new()),
            Guard::Ebpf(dataplane, ..) => {
                let drops = locked(dataplane).drops().unwrap_or_else(|error| {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "the filter's counters not read");
                    BTreeMap::new()
                });
                (FilterPlace::Ebpf, drops)
            }
            Guard::Userspace(reason, _) => {
                let drops = self.tunnel.gate().map(|gate| gate.drops());
                (
                    FilterPlace::Userspace(reason.clone()),
                    drops.unwrap_or_default(),
                )
            }
        };
        FilterStatus {
            place,
            // All or nothing: what does not fit admits nothing.
            rules: match (rules, &self.filter_problem) {
                (Some(rules), None) => rules.matches().len(),
                _ => 0,
            },
            serial: self.filter_serial,
            problem: self.filter_problem.clone(),
            drops,
        }
    }

    /// Reads what the tunnel knows of its peers; nothing if it cannot be asked.
    pub(super) async fn states(&self) -> BTreeMap<NodePublic, PeerState> {
        self.tunnel.peers().await.unwrap_or_else(|error| {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "tunnel state not read");
            BTreeMap::new()
        })
    }

    /// What reached us and led to nothing, here or in the host's netfilter.
    async fn junk(&self) -> Junk {
        let mut junk = self.wire.junk.read();
        if let Some(firewall) = &self.firewall {
            match firewall.junk().await {
                Ok(count) => junk.foreign += count,
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "the firewall's counter not read");
                }
            }
        }
        junk
    }

    /// Reads everything that `status` shows.
    pub(super) async fn status(&self) -> NetStatus {
        self.status_of(&self.states().await, &self.guard.counts())
            .await
    }

    /// As [`Self::status`], with what the tunnel and the programs have said.
    pub(super) async fn status_of(
        &self,
        states: &BTreeMap<NodePublic, PeerState>,
        counts: &BTreeMap<PeerIndex, PeerCounters>,
    ) -> NetStatus {
        let link = links::get(&self.netlink, &self.device).await;
        let link = link.unwrap_or_else(|error| {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(
                error,
                device = self.device,
                "the overlay device not looked at"
            );
            None
        });
        let read_at = dataplane::boot_clock();
        let desired = self.applied.as_ref().map(|applied| &applied.desired);
        let mut peers = BTreeMap::new();
        let mut routes = Vec::new();
        for (key, peer) in desired.iter().flat_map(|desired| &desired.peers) {
            let state = states.get(key).copied().unwrap_or_default();
            let address = self.endpoints.address(key);
            let count = |number| counts.get(&number).copied();
            let sum = address.and_then(|ip| self.numbers.sum(peer_index(ip), key, count));
            let numbers: BTreeMap<_, _> = self.numbers.routes(key).collect();
            routes.extend(peer.routes.iter().map(|prefix| {
                RouteStatus {
                    prefix: *prefix,
                    peer: *key,
                    overlay: numbers
                        .get(prefix)
                        .and_then(|number| count(*number))
                        .map(OverlayTraffic::from),
                }
            }));
            if let Some(desired) = desired {
                let mtu = self.mtus.of(key);
                peers.insert(*key, peer_status(desired, peer, &state, sum, mtu));
            }
        }
        let home = self.relays.home();
        NetStatus {
            engine: self.tunnel.engine(),
            engine_reason: self.engine_reason.clone(),
            device: self.device.clone(),
            device_up: desired.is_some() && link.is_some_and(|link| link.up),
            carrier: self.tunnel.carrier(),
            port: self.port,
            addresses: desired.map_or_else(Vec::new, |desired| desired.addresses.clone()),
            filter: self.filter_status(),
            forwarded: self.guard.forwarded(),
            shield: self.shields.status(),
            home: home.map(|(region, code)| Home { region, code }),
            relays: self.relays.status(),
            peers,
            read_at,
            routes,
            served_routes: desired.map_or_else(Vec::new, |desired| desired.served_routes.clone()),
            junk: self.junk().await,
            port_mapping: self.portmap.state(),
        }
    }
}
