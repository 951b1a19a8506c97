//! Which way traffic went: bytes and packets by path, by relay region and by route.
//!
//! WireGuard counts bytes per peer and not per path. What goes through relays passes this process, which counts it;
//! the rest went directly, by the family of the endpoint that the peer has, or had last.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dataplane::{Count, PeerCounters, PeerIndex};
use ipnet::IpNet;
use keys::NodePublic;
use node_core::RegionId;
use node_core::paths::Route;

use super::numbers::Numbers;
use super::status::OverlayTraffic;

/// Peers that metrics show one by one.
const MAX_SHOWN: usize = 256;
/// Shortest WireGuard data message that holds a packet; what is shorter keeps alive.
const DATA_LEN: usize = 33;

/// Traffic in both directions, in packets and bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Carried {
    /// Received.
    pub rx: Count,
    /// Sent.
    pub tx: Count,
}

impl AddAssign for Carried {
    fn add_assign(&mut self, other: Self) {
        self.rx += other.rx;
        self.tx += other.tx;
    }
}

impl Carried {
    /// What was counted since `before`; all of it, if the counters have begun anew since.
    fn since(self, before: Self) -> Self {
        let less = |now: Count, before: Count| Count {
            packets: now
                .packets
                .checked_sub(before.packets)
                .unwrap_or(now.packets),
            bytes: now.bytes.checked_sub(before.bytes).unwrap_or(now.bytes),
        };
        Self {
            rx: less(self.rx, before.rx),
            tx: less(self.tx, before.tx),
        }
    }
}

impl From<PeerCounters> for Carried {
    fn from(counters: PeerCounters) -> Self {
        Self {
            rx: Count {
                packets: counters.rx_packets,
                bytes: counters.rx_bytes,
            },
            tx: Count {
                packets: counters.tx_packets,
                bytes: counters.tx_bytes,
            },
        }
    }
}

impl From<OverlayTraffic> for Carried {
    fn from(overlay: OverlayTraffic) -> Self {
        Self {
            rx: Count {
                packets: overlay.rx_packets,
                bytes: overlay.rx_bytes,
            },
            tx: Count {
                packets: overlay.tx_packets,
                bytes: overlay.tx_bytes,
            },
        }
    }
}

impl From<Carried> for OverlayTraffic {
    fn from(carried: Carried) -> Self {
        Self {
            rx_packets: carried.rx.packets,
            rx_bytes: carried.rx.bytes,
            tx_packets: carried.tx.packets,
            tx_bytes: carried.tx.bytes,
        }
    }
}

/// A way by which packets of WireGuard go.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Path {
    /// Directly, over IPv4.
    DirectIpv4,
    /// Directly, over IPv6.
    DirectIpv6,
    /// Through a relay of this region.
    Relay(RegionId),
}

impl Path {
    /// The direct path to this endpoint.
    #[must_use]
    pub fn direct(endpoint: SocketAddr) -> Self {
        if endpoint.is_ipv4() {
            Self::DirectIpv4
        } else {
            Self::DirectIpv6
        }
    }
}

/// Where a peer's path changed to.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum PathChange {
    /// Directly, over IPv4.
    DirectIpv4,
    /// Directly, over IPv6.
    DirectIpv6,
    /// Through a relay and, without trust, directly too.
    Both,
    /// Through a relay.
    Relay,
}

impl PathChange {
    /// Every change.
    pub const ALL: [Self; 4] = [Self::DirectIpv4, Self::DirectIpv6, Self::Both, Self::Relay];

    /// The word for it in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::DirectIpv4 => "direct_ipv4",
            Self::DirectIpv6 => "direct_ipv6",
            Self::Both => "both",
            Self::Relay => "relay",
        }
    }

    fn to(route: Route) -> Self {
        match route {
            Route::Direct(endpoint) if endpoint.is_ipv4() => Self::DirectIpv4,
            Route::Direct(_) => Self::DirectIpv6,
            Route::Both(_) => Self::Both,
            Route::Relayed => Self::Relay,
        }
    }
}

/// Packets and bytes, counted by several at once.
#[derive(Debug, Default)]
struct Tally {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Tally {
    fn add(&self, count: Count) {
        self.packets.fetch_add(count.packets, Ordering::Relaxed);
        self.bytes.fetch_add(count.bytes, Ordering::Relaxed);
    }

    fn read(&self) -> Count {
        Count {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

/// What went through relays: of one peer, or of one region.
#[derive(Debug, Default)]
pub(crate) struct RelayTally {
    rx: Tally,
    tx: Tally,
}

impl RelayTally {
    pub(super) fn read(&self) -> Carried {
        Carried {
            rx: self.rx.read(),
            tx: self.tx.read(),
        }
    }
}

/// What went through relays, by region.
#[derive(Clone, Debug, Default)]
pub(crate) struct Regions(Arc<Mutex<BTreeMap<RegionId, Arc<RelayTally>>>>);

impl Regions {
    /// The counters of a region.
    pub(crate) fn of(&self, region: RegionId) -> Arc<RelayTally> {
        let mut regions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        regions.entry(region).or_default().clone()
    }

    pub(super) fn read(&self) -> BTreeMap<RegionId, Carried> {
        let regions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let read = regions.iter();
        read.map(|(region, tally)| (*region, tally.read()))
            .collect()
    }
}

/// Counts packets that came from a peer through a relay: all of them for the region, and for the peer their bytes
/// and those packets that hold one of the overlay.
pub(crate) fn note_received<'a>(
    region: &RelayTally,
    peer: &RelayTally,
    packets: impl IntoIterator<Item = &'a [u8]>,
) {
    note(&region.rx, &peer.rx, packets);
}

/// As [`note_received`], of packets to a peer.
pub(crate) fn note_sent<'a>(
    region: &RelayTally,
    peer: &RelayTally,
    packets: impl IntoIterator<Item = &'a [u8]>,
) {
    note(&region.tx, &peer.tx, packets);
}

fn note<'a>(region: &Tally, peer: &Tally, packets: impl IntoIterator<Item = &'a [u8]>) {
    let (mut all, mut data) = (Count::default(), Count::default());
    for packet in packets {
        let bytes = packet.len() as u64;
        all += Count { packets: 1, bytes };
        let is_data = packet.first() == Some(&4) && packet.len() >= DATA_LEN;
        data += Count {
            packets: u64::from(is_data),
            bytes,
        };
    }
    region.add(all);
    peer.add(data);
}

/// One peer's counters, as the tunnel, the relays and the programs have them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counted {
    /// Bytes as WireGuard counts them; no packets.
    pub(super) wireguard: Carried,
    /// Bytes that went through relays, and packets of the overlay in them.
    pub(super) relayed: Carried,
    /// The direct endpoint in use.
    pub(super) endpoint: Option<SocketAddr>,
}

/// What is remembered of one peer between two looks.
#[derive(Debug, Default)]
struct Known {
    wireguard: Carried,
    relayed: Carried,
    /// The last direct path since the last look, if there was one.
    direct: Option<Path>,
    /// What was seen more than relays account for, or less: bytes and packets, received and sent.
    balance: [i128; 4],
    /// Overlay traffic in all.
    overlay: Carried,
}

/// Sums up counters, look by look.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    known: HashMap<NodePublic, Known>,
    /// The programs' counters at the last look.
    indexes: HashMap<PeerIndex, Carried>,
    direct: BTreeMap<Path, Carried>,
    routes: BTreeMap<IpNet, Carried>,
    changes: BTreeMap<PathChange, u64>,
    shown: BTreeSet<NodePublic>,
    /// Counters of before this process are nobody's: nothing was looked at yet.
    baseline: bool,
}

impl Accounts {
    /// Begins at zero; with `adopted`, at what the first look shows.
    pub(super) fn new(adopted: bool) -> Self {
        Self {
            baseline: adopted,
            ..Self::default()
        }
    }

    /// A peer's route changed.
    pub(super) fn changed(&mut self, peer: NodePublic, route: Route) {
        *self.changes.entry(PathChange::to(route)).or_default() += 1;
        if let Route::Direct(endpoint) = route {
            self.known.entry(peer).or_default().direct = Some(Path::direct(endpoint));
        }
    }

    /// Looks at all peers' counters, and at those of the programs, if there are any. `own` tells the programs'
    /// number of a peer itself.
    pub(super) fn look(
        &mut self,
        peers: &BTreeMap<NodePublic, Counted>,
        counts: &BTreeMap<PeerIndex, PeerCounters>,
        numbers: &Numbers,
        own: impl Fn(&NodePublic) -> Option<PeerIndex>,
    ) {
        let baseline = std::mem::take(&mut self.baseline);
        self.show(peers);
        self.known.retain(|peer, _| peers.contains_key(peer));
        self.indexes.retain(|index, _| counts.contains_key(index));
        for (peer, counted) in peers {
            let mut delta = Carried::default();
            let of_routes = numbers
                .routes(peer)
                .map(|(net, number)| (Some(net), number));
            let own = own(peer).map(|number| (None, number));
            for (net, number) in own.into_iter().chain(of_routes) {
                let now = counts
                    .get(&number)
                    .copied()
                    .map(Carried::from)
                    .unwrap_or_default();
                let before = self.indexes.insert(number, now).unwrap_or_default();
                let more = if baseline {
                    Carried::default()
                } else {
                    now.since(before)
                };
                delta += more;
                if let Some(net) = net {
                    *self.routes.entry(net).or_default() += more;
                }
            }
            let known = self.known.entry(*peer).or_default();
            known.overlay += delta;
            let wireguard = counted.wireguard.since(known.wireguard);
            let relayed = counted.relayed.since(known.relayed);
            (known.wireguard, known.relayed) = (counted.wireguard, counted.relayed);
            let present = counted.endpoint.map(Path::direct);
            let direct = present.or(known.direct);
            known.direct = present;
            if baseline {
                continue;
            }
            known.settle(wireguard, relayed, delta);
            if let Some(path) = direct {
                *self.direct.entry(path).or_default() += known.withdraw();
            }
        }
    }

    /// Overlay traffic of each peer since this process looks.
    pub(super) fn overlay(&self, peer: &NodePublic) -> Option<Carried> {
        self.known.get(peer).map(|known| known.overlay)
    }

    /// Traffic on direct paths.
    pub(super) fn direct(&self) -> &BTreeMap<Path, Carried> {
        &self.direct
    }

    /// Traffic by the peers' routes that are in use.
    pub(super) fn routes(&self, numbers: &Numbers) -> BTreeMap<IpNet, Carried> {
        let used: BTreeSet<IpNet> = numbers.prefixes().collect();
        let routes = self.routes.iter().filter(|(net, _)| used.contains(*net));
        routes.map(|(net, carried)| (*net, *carried)).collect()
    }

    /// Peers that metrics show one by one.
    pub(super) fn shown(&self) -> &BTreeSet<NodePublic> {
        &self.shown
    }

    /// Lets further peers be shown while there is room, the busiest first.
    fn show(&mut self, peers: &BTreeMap<NodePublic, Counted>) {
        self.shown.retain(|peer| peers.contains_key(peer));
        let mut others: Vec<_> = peers
            .iter()
            .filter(|(peer, _)| !self.shown.contains(*peer))
            .map(|(peer, Counted { wireguard, .. })| {
                (wireguard.rx.bytes + wireguard.tx.bytes, *peer)
            })
            .collect();
        let room = MAX_SHOWN.saturating_sub(self.shown.len());
        // The idle ones of many do not take the room.
        if others.len() > room {
            others.retain(|(bytes, _)| *bytes > 0);
        }
        others.sort_unstable_by(|a, b| b.cmp(a));
        let others = others.into_iter().take(room);
        self.shown.extend(others.map(|(_, peer)| peer));
    }

    /// How often paths changed.
    pub(super) fn changes(&self) -> &BTreeMap<PathChange, u64> {
        &self.changes
    }
}

impl Known {
    /// Adds what came since the last look. Packets under way are counted by one side before the other; where
    /// nothing goes through relays any more, what these counted too much was lost behind them.
    fn settle(&mut self, wireguard: Carried, relayed: Carried, overlay: Carried) {
        let both = |carried: Carried| [carried.rx, carried.tx];
        let seen = both(wireguard).into_iter().zip(both(overlay));
        let balances = self.balance.as_chunks_mut::<2>().0.iter_mut();
        for (([bytes, packets], (wireguard, overlay)), relayed) in
            balances.zip(seen).zip(both(relayed))
        {
            *bytes += i128::from(wireguard.bytes) - i128::from(relayed.bytes);
            *packets += i128::from(overlay.packets) - i128::from(relayed.packets);
            if relayed == Count::default() {
                *bytes = (*bytes).max(0);
                *packets = (*packets).max(0);
            }
        }
    }

    /// Takes out what relays do not account for.
    fn withdraw(&mut self) -> Carried {
        let mut take = |at: usize| {
            let taken = self.balance[at].max(0);
            self.balance[at] -= taken;
            u64::try_from(taken).unwrap_or(u64::MAX)
        };
        Carried {
            rx: Count {
                bytes: take(0),
                packets: take(1),
            },
            tx: Count {
                bytes: take(2),
                packets: take(3),
            },
        }
    }
}

#[cfg(test)]
mod tests;
