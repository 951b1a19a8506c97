//! The task that keeps the home region right and tells what changed: netcheck, selection, events.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use control_proto::tailcfg;
use node_core::{DerpMap, RegionId};
use rand::Rng;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{self, sleep_until};

use super::host::Host;
use super::{EndpointKind, NetEvent, RelayStatus};
use crate::derp::home::{HomeSelector, Measured};
use crate::derp::{Manager, Notice};
use crate::netcheck::{self, Plan, Report};
use crate::paths::{Endpoints, Event, Found, Handle, Wire};
use crate::portmap;

/// Between incremental checks, at random in this range (protocol/disco.md §16).
const CHECK_EVERY: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(26));
/// Between full checks.
const FULL_EVERY: Duration = Duration::from_secs(5 * 60);
/// A lost home is measured again, but not more often than this.
const CHECK_GAP: Duration = Duration::from_secs(5);
/// Our endpoints are looked for again, but not more often than this: links may flap.
const RESTUN_GAP: Duration = Duration::from_secs(1);
/// Without a home relay for this long, the operator is told.
const GRACE: Duration = Duration::from_secs(10);

const NO_RELAY: &str = "no-derp-connection";
const RELAY_UNWELL: &str = "derp-region-error";

/// What the steward works on: the relays of the network map, and a seed out of our key.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Assignment {
    pub(super) map: DerpMap,
    pub(super) seed: u64,
}

/// What the steward works with.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub(super) relays: Manager,
    pub(super) events: mpsc::Sender<NetEvent>,
    pub(super) wire: Arc<Wire>,
    /// WireGuard's port.
    pub(super) port: u16,
    /// Direct paths are wanted.
    pub(super) direct: bool,
    /// Endpoints that the operator set.
    pub(super) explicit: Vec<SocketAddr>,
    pub(super) paths: Handle,
    /// Our own endpoints are asked for.
    pub(super) restun: Arc<Notify>,
    pub(super) portmap: portmap::Handle,
    /// Control is connected.
    pub(super) control: watch::Receiver<bool>,
    /// Where peers look for us, as control told a former process.
    pub(super) home: Option<RegionId>,
}

/// The steward's state.
#[derive(Debug)]
pub(super) struct Steward {
    with: Surroundings,
    endpoints: Endpoints,
    /// The host's side of the underlay.
    host: Host,
    told_endpoints: Option<BTreeSet<(SocketAddr, EndpointKind)>>,
    selector: HomeSelector,
    report: Report,
    last_full: Option<Instant>,
    last_check: Option<Instant>,
    told: Option<tailcfg::NetInfo>,
    unconnected_since: Option<Instant>,
    told_unconnected: bool,
    told_unwell: Option<String>,
}

/// When to measure next, and why.
#[derive(Clone, Copy, Debug)]
struct Next {
    due: time::Instant,
    /// Time has passed, no more.
    routine: bool,
}

impl Next {
    fn now() -> Self {
        Self {
            due: time::Instant::now(),
            routine: false,
        }
    }

    /// As usual after a check.
    fn routine() -> Self {
        let pause = rand::rng().random_range(CHECK_EVERY.0..CHECK_EVERY.1);
        Self {
            due: time::Instant::now() + pause,
            routine: true,
        }
    }

    /// There is a reason to measure at `at`, if not sooner.
    fn hasten(&mut self, at: time::Instant) {
        self.due = self.due.min(at);
        self.routine = false;
    }
}

impl Steward {
    pub(super) fn new(with: Surroundings) -> Self {
        Self {
            selector: HomeSelector::at(with.home),
            with,
            endpoints: Endpoints::default(),
            host: Host::default(),
            told_endpoints: None,
            report: Report::default(),
            last_full: None,
            last_check: None,
            told: None,
            unconnected_since: None,
            told_unconnected: false,
            told_unwell: None,
        }
    }

    /// Runs until the assignment's sender is gone.
    pub(super) async fn run(
        mut self,
        mut assignments: watch::Receiver<Option<Assignment>>,
        mut notices: mpsc::Receiver<Notice>,
        mut hosts: watch::Receiver<Host>,
    ) {
        self.host = hosts.borrow_and_update().clone();
        let mut check: Option<(Instant, JoinHandle<Report>)> = None;
        let mut next = Next::now();
        let mut tick = time::interval(GRACE / 4);
        let restun = self.with.restun.clone();
        let mut control = self.with.control.clone();
        let mut again = false;
        loop {
            let assignment = assignments.borrow().clone();
            tokio::select! {
                changed = assignments.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    if let Some((_, task)) = check.take() {
                        task.abort();
                    }
                    self.last_full = None;
                    next = Next::now();
                    if assignments.borrow().is_none() {
                        self.forget();
                    }
                }
                Some(notice) = notices.recv() => {
                    let soon = self.handle_notice(notice).await;
                    if soon && check.is_none() {
                        let earliest = self.last_check.map_or_else(Instant::now, |at| at + CHECK_GAP);
                        next.hasten(earliest.into());
                    }
                }
                () = sleep_until(next.due), if check.is_none() && assignment.is_some() => {
                    if next.routine && self.is_idle().await {
                        next = Next::routine();
                    } else if let Some(Assignment { map, .. }) = assignment {
                        let began = Instant::now();
                        check = Some((began, self.start_check(map, next.routine)));
                    }
                }
                Ok(()) = hosts.changed() => {
                    let host = hosts.borrow_and_update().clone();
                    if self.handle_host(host).await {
                        // What was asked by the old way may never be answered.
                        if let Some((_, task)) = check.take() {
                            task.abort();
                        }
                        self.last_full = None;
                    }
                    restun.notify_one();
                }
                Ok(()) = control.changed() => if *control.borrow() {
                    // What was found meanwhile may be told, and acted upon, now.
                    let earliest = self.last_check.map_or_else(Instant::now, |at| at + CHECK_GAP);
                    next.hasten(earliest.into());
                },
                () = restun.notified() => {
                    // What is under way may have asked before there was a reason to.
                    again = check.is_some();
                    let earliest = self.last_check.map_or_else(Instant::now, |at| at + RESTUN_GAP);
                    next.hasten(earliest.into());
                }
                report = finished(&mut check) => {
                    let began = check.take().map_or_else(Instant::now, |(began, _)| began);
                    if let (Some(report), Some(assignment)) = (report, assignment) {
                        self.handle_report(began, report, &assignment).await;
                    }
                    let again = std::mem::take(&mut again);
                    next = if again { Next::now() } else { Next::routine() };
                }
                _ = tick.tick() => self.watch_connection(assignment.is_some()).await,
            }
        }
    }

    /// True if only time is a reason to measure, and nobody would gain by it: no peer has had traffic for a while, so
    /// that no path needs our NAT's mapping, and the relays are known. Whoever sends asks for our endpoints anew.
    async fn is_idle(&self) -> bool {
        self.with.direct
            && !self.report.latencies().is_empty()
            && self.with.paths.active().await.is_empty()
    }

    /// Asks all relays now and then, the nearest otherwise: whoever asks for our endpoints waits for the answer.
    fn start_check(&mut self, map: DerpMap, routine: bool) -> JoinHandle<Report> {
        let now = Instant::now();
        self.last_check = Some(now);
        let full = self
            .last_full
            .is_none_or(|at| routine && now.duration_since(at) >= FULL_EVERY)
            || self.report.latencies().is_empty()
            // Behind a portal there was little to see, until somebody has paid.
            || !self.report.udp && self.report.captive_portal == Some(true);
        if full {
            self.last_full = Some(now);
        }
        let home = self.selector.home();
        let last = self.report.clone();
        let wire = self.with.wire.clone();
        tokio::spawn(async move {
            let plan = if full {
                Plan::Full
            } else {
                Plan::Incremental { home, last: &last }
            };
            netcheck::run(&map, plan, &wire).await
        })
    }

    async fn handle_report(&mut self, began: Instant, report: Report, assignment: &Assignment) {
        let latencies = report.latencies();
        let home_heard = self
            .selector
            .home()
            .and_then(|home| self.with.relays.last_heard(home));
        let measured = Measured {
            began,
            latencies: &latencies,
            home_heard,
            seed: assignment.seed,
            can_tell: *self.with.control.borrow(),
        };
        let old = self.selector.home();
        let home = self
            .selector
            .handle_report(Instant::now(), &assignment.map, &measured);
        if home != old {
            let code = home.map_or("none", |home| assignment.map.code(home));
            tracing::info!(home = code, "home relay chosen");
        }
        self.with.relays.set_home(home);
        let mapped = report.mapped_addresses();
        self.report.merge(report);
        self.tell_endpoints(mapped).await;
        self.tell_net_info(home).await;
    }

    /// Takes note of the host's side of the underlay. True if packets leave another way now: then paths are
    /// proved anew, and connections that the change has killed are made anew instead of waited for.
    async fn handle_host(&mut self, host: Host) -> bool {
        let moved = host.has_moved_from(&self.host);
        if moved {
            self.with.relays.handle_move(&host.sources());
        } else {
            self.with.relays.keep_from(&host.addresses);
        }
        self.host = host;
        if moved {
            tracing::info!("this host's way out changed");
            self.endpoints.forget();
            self.with.portmap.look();
            self.with.paths.tell(Event::UnderlayChanged).await;
            self.tell(NetEvent::Moved).await;
        }
        moved
    }

    /// Tells the path machine where we can be reached, and control if that is news.
    async fn tell_endpoints(&mut self, mapped: Vec<SocketAddr>) {
        let found = Found {
            direct: self.with.direct,
            port_mapped: self.with.portmap.state().external.map(SocketAddr::V4),
            mapped,
            // Upstream guesses only where it is known to vary. Tailnets of one relay have one STUN server, which does
            // not tell, and a router with a forwarded port is then reached by the guess alone.
            varies: self.report.mapping_varies != Some(false),
            local: self.local_addresses(),
            port: self.with.port,
            explicit: self.with.explicit.clone(),
        };
        let offered = self.endpoints.update(Instant::now(), &found);
        let addresses = offered.iter().map(|(address, _)| *address).collect();
        self.with.paths.tell(Event::OwnEndpoints(addresses)).await;
        // Another order alone is no news to control.
        let set: BTreeSet<_> = offered.iter().copied().collect();
        if self.told_endpoints.as_ref() != Some(&set) {
            self.told_endpoints = Some(set);
            self.tell(NetEvent::Endpoints(offered)).await;
        }
    }

    /// The addresses by which others might reach this host.
    fn local_addresses(&self) -> Vec<IpAddr> {
        let usable = |ip: &&IpAddr| ip.is_ipv4() || self.with.wire.has_ipv6();
        self.host.local.iter().filter(usable).copied().collect()
    }

    /// Sends the network information if it changed in more than latencies.
    async fn tell_net_info(&mut self, home: Option<RegionId>) {
        let report = &self.report;
        let mapping = self.with.portmap.state();
        let services = mapping.services;
        let info = tailcfg::NetInfo {
            have_port_map: mapping.external.is_some(),
            upnp: services.map(|services| services.upnp),
            pmp: services.map(|services| services.pmp),
            pcp: services.map(|services| services.pcp),
            mapping_varies_by_dest_ip: report.mapping_varies,
            working_ipv6: Some(report.udp && !report.v6.is_empty()),
            os_has_ipv6: Some(report.os_has_ipv6),
            working_udp: Some(report.udp),
            working_icmpv4: report.icmp_v4,
            preferred_derp: home.map_or(0, |home| home.0.into()),
            ..tailcfg::NetInfo::default()
        };
        if self.told.as_ref() == Some(&info) {
            return;
        }
        self.told = Some(info.clone());
        let info = tailcfg::NetInfo {
            derp_latency: derp_latency(report),
            ..info
        };
        self.tell(NetEvent::NetInfo(Box::new(info))).await;
    }

    /// Returns true if the home should be measured again soon.
    async fn handle_notice(&mut self, notice: Notice) -> bool {
        match notice {
            Notice::Connected(region) => {
                self.tell(NetEvent::DerpConnected(region)).await;
                false
            }
            // Without control it stays, whatever is measured.
            Notice::Lost(region) => {
                self.selector.home() == Some(region) && *self.with.control.borrow()
            }
            Notice::Health(_) => {
                self.tell_unwell().await;
                false
            }
        }
    }

    /// Passes on what the connected relays say about their health, all in one warning.
    async fn tell_unwell(&mut self) {
        let text = unwell(&self.with.relays.status());
        if text != self.told_unwell {
            self.told_unwell.clone_from(&text);
            self.tell_health(RELAY_UNWELL, text).await;
        }
    }

    /// Warns when there is no home relay for a while, and takes it back.
    async fn watch_connection(&mut self, assigned: bool) {
        // A connection that another map or key ended tells nothing more.
        self.tell_unwell().await;
        let connected =
            !assigned || (self.selector.home().is_some() && self.with.relays.is_home_connected());
        if connected {
            self.unconnected_since = None;
            if std::mem::take(&mut self.told_unconnected) {
                self.tell_health(NO_RELAY, None).await;
            }
            return;
        }
        let since = *self.unconnected_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= GRACE && !self.told_unconnected {
            self.told_unconnected = true;
            let problem = self
                .with
                .relays
                .status()
                .into_iter()
                .find_map(|relay| relay.problem);
            let problem = problem.unwrap_or_else(|| "no relay answered".to_owned());
            let text = format!(
                "not connected to a relay: {problem}; peers cannot reach this node through relays"
            );
            self.tell_health(NO_RELAY, Some(text)).await;
        }
    }

    fn forget(&mut self) {
        self.selector.reset();
        self.report = Report::default();
        self.told = None;
        self.told_endpoints = None;
        self.with.relays.set_home(None);
    }

    async fn tell_health(&self, key: &'static str, text: Option<String>) {
        self.tell(NetEvent::Health { key, text }).await;
    }

    async fn tell(&self, event: NetEvent) {
        if self.with.events.send(event).await.is_err() {
            tracing::trace!("nobody listens to network events");
        }
    }
}

/// What the connected relays that are unwell say, in order of regions; `None` if all are well.
fn unwell(relays: &[RelayStatus]) -> Option<String> {
    let says = |relay: &RelayStatus| {
        let text = relay.problem.as_ref().filter(|_| relay.connected)?;
        Some(format!("relay region {} says: {text}", relay.code))
    };
    let texts: Vec<String> = relays.iter().filter_map(says).collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

/// Waits for the running check, and for ever if there is none; `None` if it found nothing because it broke.
async fn finished(check: &mut Option<(Instant, JoinHandle<Report>)>) -> Option<Report> {
    match check {
        Some((_, task)) => task
            .await
            .inspect_err(|error| tracing::error!(%error, "a netcheck broke: the last report stays"))
            .ok(),
        None => std::future::pending().await,
    }
}

fn derp_latency(report: &Report) -> BTreeMap<String, f64> {
    let seconds = |latencies: &BTreeMap<RegionId, Duration>, family: &str| {
        latencies
            .iter()
            .map(|(region, latency)| (format!("{region}-{family}"), latency.as_secs_f64()))
            .collect::<Vec<_>>()
    };
    let mut all = BTreeMap::new();
    all.extend(seconds(&report.v4, "v4"));
    all.extend(seconds(&report.v6, "v6"));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_check_that_something_asked_for_is_no_routine() {
        let mut next = Next::routine();
        let usual = next.due;
        assert!(next.routine);
        next.hasten(usual + Duration::from_secs(1));
        assert!(!next.routine && next.due == usual);
        next.hasten(usual - Duration::from_secs(1));
        assert_eq!(next.due, usual - Duration::from_secs(1));
        assert!(!Next::now().routine);
    }

    fn relay(region: u16, code: &str, connected: bool, problem: Option<&str>) -> RelayStatus {
        RelayStatus {
            region: RegionId(region),
            code: code.to_owned(),
            connected,
            problem: problem.map(str::to_owned),
            dropped: 0,
        }
    }

    #[test]
    fn one_warning_names_every_relay_that_is_unwell() {
        let fra = relay(1, "fra", true, Some("overloaded"));
        let ams = relay(2, "ams", true, Some("disk full"));
        let well = relay(3, "lhr", true, None);
        assert_eq!(
            unwell(&[fra.clone(), ams, well.clone()]).as_deref(),
            Some("relay region fra says: overloaded; relay region ams says: disk full")
        );
        // One that is well again leaves the other's warning.
        assert_eq!(
            unwell(&[fra, relay(2, "ams", true, None)]).as_deref(),
            Some("relay region fra says: overloaded")
        );
        assert_eq!(unwell(&[well]), None);
    }

    #[test]
    fn why_a_relay_is_not_connected_is_not_what_it_says() {
        let gone = relay(1, "fra", false, Some("the relay closed the connection"));
        assert_eq!(unwell(&[gone]), None);
    }
}
