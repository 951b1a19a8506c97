//! How far each relay region is, and how we look from there: STUN from WireGuard's port, HTTPS or
//! ICMP where UDP does not get through; and whether a captive portal is between.
//!
//! Source: protocol/disco.md §8, §9, §11.

mod beside;
mod mapped;
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

pub use mapped::Mapped;

/// Time for STUN.
const STUN_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for DNS, before STUN.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for a second server, once all else is known: only two show whether a NAT varies its mapping.
const SECOND_OPINION: Duration = Duration::from_secs(1);
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
    pub mapped_v4: Mapped,
    /// Our address as each IPv6 STUN server saw it.
    pub mapped_v6: Mapped,
    /// A NAT gives each destination another mapping; unknown as long as less than two servers answered.
    pub mapping_varies: Option<bool>,
    /// Something could be sent over IPv4.
    pub v4_can_send: bool,
    /// Something could be sent over IPv6.
    pub v6_can_send: bool,
    /// The host has IPv6 at all.
    pub os_has_ipv6: bool,
    /// Relays answer ICMP echo; unknown while UDP works, which is better.
    pub icmp_v4: Option<bool>,
    /// Somebody else answers for the relays; unknown while UDP works, and if none that can be asked was reached.
    pub captive_portal: Option<bool>,
    /// Whom the check asked.
    pub(crate) asked: Asked,
}

/// Whom a check asked: what it did not hear from them is not so any more.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) enum Asked {
    /// Everybody.
    #[default]
    All,
    /// These regions, each over one family; true is IPv6.
    Some(BTreeSet<(RegionId, bool)>),
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

    /// Takes a newer report. Regions that it did not ask keep their last latencies, unless it heard nothing over a
    /// family at all: that family does not work any more.
    pub(crate) fn merge(&mut self, newer: Self) {
        let older = std::mem::replace(self, newer);
        let Asked::Some(asked) = &self.asked else {
            return;
        };
        if self.udp != older.udp {
            // Round trips of another kind.
            return;
        }
        for (v6, latencies, old) in [
            (false, &mut self.v4, older.v4),
            (true, &mut self.v6, older.v6),
        ] {
            if latencies.is_empty() && asked.iter().any(|(_, family)| *family == v6) {
                continue;
            }
            for (region, latency) in old {
                if !asked.contains(&(region, v6)) {
                    latencies.entry(region).or_insert(latency);
                }
            }
        }
        // One answer alone does not tell, and only full reports look for a portal.
        self.mapping_varies = self.mapping_varies.or(older.mapping_varies);
        self.captive_portal = self.captive_portal.or(older.captive_portal);
    }

    /// Our own addresses as servers saw them, IPv4 first, of each family the best first.
    #[must_use]
    pub fn mapped_addresses(&self) -> Vec<SocketAddr> {
        let mut addresses = self.mapped_v4.addresses();
        addresses.extend(self.mapped_v6.addresses());
        addresses
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
    let probes = schedule(&regions, &servers);
    let is_full = matches!(plan, Plan::Full);
    let mut asked: BTreeSet<(RegionId, bool)> = probes.iter().map(Probe::family).collect();
    let mut report = measure(probes, wire).await;
    if !report.udp {
        // All of them now, also those without STUN.
        asked.extend(regions.keys().map(|region| (*region, false)));
        let regions: Vec<&Region> = regions
            .keys()
            .filter_map(|id| map.regions.get(id))
            .collect();
        let portal = async {
            if is_full {
                beside::find_portal(map).await
            } else {
                None
            }
        };
        let measuring = beside::measure(&regions, &mut report);
        let ((), portal) = tokio::join!(measuring, portal);
        report.captive_portal = portal;
    }
    if !is_full {
        report.asked = Asked::Some(asked);
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

impl Probe {
    fn family(&self) -> (RegionId, bool) {
        (self.region, self.server.is_ipv6())
    }
}

/// What a measurement still waits for. Pure.
#[derive(Debug)]
struct Progress {
    /// Regions over families that have not answered.
    waiting: BTreeSet<(RegionId, bool)>,
    /// IPv4 servers to ask, or asked without an answer yet.
    others: BTreeSet<SocketAddr>,
}

impl Progress {
    fn new(probes: &[Probe]) -> Self {
        let servers = probes.iter().map(|probe| probe.server);
        Self {
            waiting: probes.iter().map(Probe::family).collect(),
            others: servers.filter(SocketAddr::is_ipv4).collect(),
        }
    }

    /// True if the probe's answer would tell something: one answer per region and family is enough, further tries are
    /// for lost packets, but whether a NAT varies its mapping only a second server shows.
    fn would_help(&self, probe: &Probe, report: &Report) -> bool {
        self.waiting.contains(&probe.family())
            || report.mapping_varies.is_none() && self.others.contains(&probe.server)
    }

    fn done(&mut self, probe: &Probe) {
        self.waiting.remove(&probe.family());
        self.others.remove(&probe.server);
    }

    /// Only a second server's answer is missing.
    fn is_settled(&self) -> bool {
        self.waiting.is_empty()
    }

    fn is_over(&self, report: &Report) -> bool {
        let varies_unknown = report.mapped_v4.first().is_some() && report.mapping_varies.is_none();
        self.is_settled() && (self.others.is_empty() || !varies_unknown)
    }
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
    let mut progress = Progress::new(&probes);
    let mut sent: HashMap<stun::TxId, (Probe, Instant)> = HashMap::new();
    let mut probes = probes.into_iter().peekable();
    let mut settled = None;
    while !progress.is_over(&report) {
        if progress.is_settled() {
            deadline = deadline.min(*settled.get_or_insert_with(Instant::now) + SECOND_OPINION);
        }
        let next = probes.peek().map(|probe| start + probe.after);
        tokio::select! {
            () = sleep_until(deadline) => break,
            () = sleep_until(next.unwrap_or(deadline)), if next.is_some() => {
                let Some(probe) = probes.next() else { continue };
                if !progress.would_help(&probe, &report) {
                    continue;
                }
                let at = Instant::now();
                match wire.ask(probe.server, &asker).await {
                    Ok(id) => {
                        if probe.server.is_ipv6() {
                            report.v6_can_send = true;
                        } else {
                            report.v4_can_send = true;
                        }
                        sent.insert(id, (probe, at));
                    }
                    // No route: this family will not answer.
                    Err(_) => progress.done(&probe),
                }
            }
            Some((id, seen, heard)) = answers.recv() => {
                let Some((probe, at)) = sent.remove(&id) else { continue };
                progress.done(&probe);
                note(&mut report, &probe, seen, heard - at);
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

/// Notes one answer.
fn note(report: &mut Report, probe: &Probe, seen: SocketAddr, took: Duration) {
    let (latencies, mapped) = if probe.server.is_ipv6() {
        (&mut report.v6, &mut report.mapped_v6)
    } else {
        (&mut report.v4, &mut report.mapped_v4)
    };
    latencies.entry(probe.region).or_insert(took);
    mapped.note(probe.server, seen);
    report.udp = true;
    report.mapping_varies = report.mapped_v4.varies();
}
