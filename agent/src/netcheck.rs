//! How far each relay region is, and how we look from there: STUN from WireGuard's port, HTTPS or
//! ICMP where UDP does not get through; and whether a captive portal is between.
//!
//! Source: protocol/disco.md §8, §9, §11.

mod beside;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use disco_proto::stun;
use futures_util::future::join_all;
use node_core::derp::{Node, Region};
use node_core::{DerpMap, RegionId};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use crate::derp::addresses;
use crate::paths::Wire;

/// Time for STUN.
const STUN_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for DNS, before STUN.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Regions after which the rest only gets a grace period.
const ENOUGH_REGIONS: usize = 3;
/// Round trip assumed for a region not yet measured.
const UNKNOWN_RTT: Duration = Duration::from_millis(200);
/// STUN answers that may wait to be looked at.
const MAX_ANSWERS: usize = 256;

/// What one check found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Report {
    /// Some STUN server answered.
    pub udp: bool,
    /// Round trips over IPv4; by ICMP or HTTPS if UDP does not work.
    pub v4: BTreeMap<RegionId, Duration>,
    /// Round trips over IPv6.
    pub v6: BTreeMap<RegionId, Duration>,
    /// Our address as each IPv4 STUN server saw it.
    pub mapped: BTreeMap<SocketAddr, SocketAddr>,
    /// Our address as an IPv6 STUN server saw it.
    pub mapped_v6: Option<SocketAddr>,
    /// The host has IPv6 at all.
    pub os_has_ipv6: bool,
    /// Relays answer ICMP echo; unknown while UDP works, which is better.
    pub icmp_v4: Option<bool>,
    /// Somebody else answers for the relays; unknown if none that can be asked was reached.
    pub captive_portal: Option<bool>,
}

impl Report {
    /// The least round trip of each region.
    #[must_use]
    pub fn latencies(&self) -> BTreeMap<RegionId, Duration> {
        let mut least = self.v4.clone();
        for (region, latency) in &self.v6 {
            let entry = least.entry(*region).or_insert(*latency);
            *entry = (*entry).min(*latency);
        }
        least
    }

    /// Takes a newer report; regions that it did not measure keep their last latencies.
    pub(crate) fn merge(&mut self, newer: Self) {
        let Self {
            udp,
            mut v4,
            mut v6,
            mut mapped,
            mapped_v6,
            os_has_ipv6,
            icmp_v4,
            captive_portal,
        } = newer;
        // One answer alone does not tell whether a NAT varies its mapping.
        if udp && mapped.len() < 2 {
            mapped.clone_from(&self.mapped);
        }
        if udp == self.udp && !v4.is_empty() {
            for (region, latency) in &self.v4 {
                v4.entry(*region).or_insert(*latency);
            }
            for (region, latency) in &self.v6 {
                v6.entry(*region).or_insert(*latency);
            }
        }
        *self = Self {
            udp,
            v4,
            v6,
            mapped,
            mapped_v6,
            os_has_ipv6,
            icmp_v4,
            // Only full reports look.
            captive_portal: captive_portal.or(self.captive_portal),
        };
    }

    /// Our own addresses as servers saw them: IPv4 first.
    #[must_use]
    pub fn mapped_addresses(&self) -> Vec<SocketAddr> {
        let mut v4: Vec<SocketAddr> = Vec::new();
        for address in self.mapped.values() {
            if !v4.contains(address) {
                v4.push(*address);
            }
        }
        v4.extend(self.mapped_v6);
        v4
    }

    /// True if two servers saw us under different addresses; unknown with less than two answers.
    #[must_use]
    pub fn mapping_varies(&self) -> Option<bool> {
        let mut seen = self.mapped.values();
        let first = seen.next()?;
        let mut rest = seen.peekable();
        rest.peek()?;
        Some(rest.any(|address| address != first))
    }
}

/// Which regions to measure, and how often to ask each.
#[derive(Clone, Debug)]
pub(crate) enum Plan<'a> {
    /// All, three times.
    Full,
    /// The home and the three fastest of the last report.
    Incremental {
        /// The home region.
        home: Option<RegionId>,
        /// The last report.
        last: &'a Report,
    },
}

/// One STUN request to send.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Probe {
    after: Duration,
    region: RegionId,
    server: SocketAddr,
}

/// Measures the regions of `map` from WireGuard's port.
pub(crate) async fn run(map: &DerpMap, plan: Plan<'_>, wire: &Wire) -> Report {
    let regions = tries(map, &plan);
    let servers = resolve(map, &regions).await;
    let mut report = measure(schedule(&regions, &servers), wire).await;
    if !report.udp {
        let regions: Vec<&Region> = regions
            .keys()
            .filter_map(|id| map.regions.get(id))
            .collect();
        beside::measure(&regions, &mut report).await;
    }
    if matches!(plan, Plan::Full) {
        report.captive_portal = beside::find_portal(map).await;
    }
    report
}

/// Returns, for each region to measure, the times at which to ask.
fn tries(map: &DerpMap, plan: &Plan<'_>) -> BTreeMap<RegionId, Vec<Duration>> {
    let measurable = |id: &RegionId| map.regions.get(id).is_some_and(|region| !region.never_home);
    match plan {
        Plan::Full => {
            let times = [0, 100, 200].map(Duration::from_millis).to_vec();
            let regions = map.regions.keys().copied().filter(measurable);
            regions.map(|id| (id, times.clone())).collect()
        }
        Plan::Incremental { home, last } => {
            let latencies = last.latencies();
            let mut fastest: Vec<(Duration, RegionId)> =
                latencies.iter().map(|(id, rtt)| (*rtt, *id)).collect();
            fastest.sort_unstable();
            let mut counts: BTreeMap<RegionId, u32> = BTreeMap::new();
            for (place, (_, id)) in fastest.iter().take(ENOUGH_REGIONS).enumerate() {
                counts.insert(*id, if place < 2 { 2 } else { 1 });
            }
            counts.extend(home.map(|home| (home, 4)));
            counts.retain(|id, _| measurable(id));
            let times = |id: &RegionId, count: u32| {
                let rtt = latencies.get(id).copied().unwrap_or(UNKNOWN_RTT);
                (0..count)
                    .map(|k| rtt.mul_f64(f64::from(k) * 1.2) + Duration::from_millis(50) * k)
                    .collect()
            };
            counts
                .iter()
                .map(|(id, count)| (*id, times(id, *count)))
                .collect()
        }
    }
}

type Servers = BTreeMap<RegionId, Vec<Vec<SocketAddr>>>;

/// Finds the STUN addresses of every node of the regions; a node that cannot be found has none.
async fn resolve(map: &DerpMap, regions: &BTreeMap<RegionId, Vec<Duration>>) -> Servers {
    let lookups = regions
        .keys()
        .filter_map(|id| map.regions.get(id))
        .map(async |region| {
            let nodes = region.nodes.iter().map(stun_addresses);
            (region.id, join_all(nodes).await)
        });
    join_all(lookups).await.into_iter().collect()
}

async fn stun_addresses(node: &Node) -> Vec<SocketAddr> {
    let Some(port) = node.stun_port else {
        return Vec::new();
    };
    if let Some(ip) = node.stun_ip {
        return vec![SocketAddr::new(ip, port)];
    }
    let lookup = timeout(RESOLVE_TIMEOUT, addresses(node, port)).await;
    let found = lookup.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    found.unwrap_or_else(|error| {
        tracing::debug!(node = node.name, %error, "STUN server not found");
        Vec::new()
    })
}

/// Try k of a region goes to its node k, over each family once.
fn schedule(regions: &BTreeMap<RegionId, Vec<Duration>>, servers: &Servers) -> Vec<Probe> {
    let mut probes = Vec::new();
    for (region, times) in regions {
        let Some(nodes) = servers.get(region).filter(|nodes| !nodes.is_empty()) else {
            continue;
        };
        for (k, after) in times.iter().enumerate() {
            let addresses = &nodes[k % nodes.len()];
            for v6 in [false, true] {
                let server = addresses.iter().find(|address| address.is_ipv6() == v6);
                probes.extend(server.map(|server| Probe {
                    after: *after,
                    region: *region,
                    server: *server,
                }));
            }
        }
    }
    probes.sort_by_key(|probe| probe.after);
    probes
}

/// Sends the probes and gathers the answers.
async fn measure(probes: Vec<Probe>, wire: &Wire) -> Report {
    let (asker, mut answers) = mpsc::channel(MAX_ANSWERS);
    let mut report = Report {
        os_has_ipv6: wire.has_ipv6(),
        ..Report::default()
    };
    let start = Instant::now();
    let mut deadline = start + STUN_TIMEOUT;
    let expected: BTreeSet<(RegionId, bool)> = probes
        .iter()
        .map(|probe| (probe.region, probe.server.is_ipv6()))
        .collect();
    let mut waiting: BTreeSet<(RegionId, bool)> = expected;
    let mut sent: HashMap<stun::TxId, (Probe, Instant)> = HashMap::new();
    let mut probes = probes.into_iter().peekable();
    while !waiting.is_empty() {
        let next = probes.peek().map(|probe| start + probe.after);
        tokio::select! {
            () = sleep_until(deadline) => break,
            () = sleep_until(next.unwrap_or(deadline)), if next.is_some() => {
                let Some(probe) = probes.next() else { continue };
                // One answer per family is enough: further tries are for lost packets.
                let family = (probe.region, probe.server.is_ipv6());
                if !waiting.contains(&family) {
                    continue;
                }
                let at = Instant::now();
                match wire.ask(probe.server, &asker).await {
                    Ok(id) => {
                        sent.insert(id, (probe, at));
                    }
                    // No route: this family will not answer.
                    Err(_) => {
                        waiting.remove(&family);
                    }
                }
            }
            Some((id, mapped, heard)) = answers.recv() => {
                let Some((probe, at)) = sent.remove(&id) else { continue };
                let family = (probe.region, probe.server.is_ipv6());
                let latencies = if family.1 { &mut report.v6 } else { &mut report.v4 };
                latencies.entry(probe.region).or_insert_with(|| heard - at);
                if family.1 {
                    report.mapped_v6 = Some(mapped);
                } else {
                    report.mapped.insert(probe.server, mapped);
                }
                report.udp = true;
                waiting.remove(&family);
                let latencies = report.latencies();
                if latencies.len() >= ENOUGH_REGIONS {
                    let slowest = latencies.values().max().copied().unwrap_or_default();
                    deadline = deadline.min(Instant::now() + slowest * 2);
                }
            }
        }
    }
    report
}
