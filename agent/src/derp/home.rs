//! Choice of the home region from measured latencies: sans-IO, sticky (protocol/disco.md §9).

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use node_core::{DerpMap, RegionId};

/// Reports of this age still count for a region's best latency.
const HISTORY: Duration = Duration::from_secs(5 * 60 + 5);
/// A gain below this is not worth a move.
const MIN_GAIN: Duration = Duration::from_millis(10);
/// A frame of this age proves that the old home still works.
const HEARD_RECENTLY: Duration = Duration::from_secs(8);

/// Picks the home region, report after report.
#[derive(Debug, Default)]
pub(crate) struct HomeSelector {
    history: VecDeque<(Instant, BTreeMap<RegionId, Duration>)>,
    home: Option<RegionId>,
}

/// One measurement, and what else is known about the old home.
#[derive(Debug)]
pub(crate) struct Measured<'a> {
    /// When the measurement began.
    pub(crate) began: Instant,
    /// Round trips of the regions that answered.
    pub(crate) latencies: &'a BTreeMap<RegionId, Duration>,
    /// When a frame last came from the old home.
    pub(crate) home_heard: Option<Instant>,
    /// Spreads nodes that can measure nothing over the regions.
    pub(crate) seed: u64,
    /// Control takes a new home: nobody else tells peers of it, so that without control the old one stays.
    pub(crate) can_tell: bool,
}

impl HomeSelector {
    /// Begins with a home region that was chosen elsewhere.
    pub(crate) fn at(home: Option<RegionId>) -> Self {
        Self {
            home,
            ..Self::default()
        }
    }

    /// The home region, once chosen.
    pub(crate) fn home(&self) -> Option<RegionId> {
        self.home
    }

    /// Takes a report and returns the home region from now on.
    pub(crate) fn handle_report(
        &mut self,
        now: Instant,
        map: &DerpMap,
        measured: &Measured<'_>,
    ) -> Option<RegionId> {
        self.history.push_back((now, measured.latencies.clone()));
        while self
            .history
            .front()
            .is_some_and(|(at, _)| now.duration_since(*at) > HISTORY)
        {
            self.history.pop_front();
        }
        let old = self.home.filter(|home| map.regions.contains_key(home));
        self.home = match (old, self.best(map, measured.latencies)) {
            (Some(old), _) if !measured.can_tell => Some(old),
            (old, None) => old.or_else(|| fallback(map, measured.seed)),
            (None, Some((best, _))) => Some(best),
            (Some(old), Some((best, latency))) => {
                let stay = old == best || stays(now, map, old, latency, measured);
                Some(if stay { old } else { best })
            }
        };
        self.home
    }

    /// Forgets everything: the network map or the key is another one.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// The region with the least weighted latency among those that answered now.
    fn best(
        &self,
        map: &DerpMap,
        answered: &BTreeMap<RegionId, Duration>,
    ) -> Option<(RegionId, Duration)> {
        let usable = |region: &RegionId| {
            let region = map.regions.get(region);
            region.is_some_and(|region| {
                !region.never_home && region.nodes.iter().any(|n| !n.stun_only)
            })
        };
        answered
            .keys()
            .filter(|region| usable(region))
            .filter_map(|region| {
                let reports = self.history.iter();
                let least = reports.filter_map(|(_, report)| report.get(region)).min()?;
                Some((*region, weighted(map, *region, *least)))
            })
            .min_by_key(|(region, latency)| (*latency, *region))
    }
}

/// A latency as the administrator's score of the region has it count.
fn weighted(map: &DerpMap, region: RegionId, latency: Duration) -> Duration {
    let score = map.scores.get(&region).copied().unwrap_or(1_000_000);
    #[expect(clippy::cast_precision_loss, reason = "at most a thousand million")]
    latency.mul_f64(score as f64 / 1e6)
}

/// True if the old home works and `best`, a weighted latency, is not clearly less.
fn stays(
    now: Instant,
    map: &DerpMap,
    old: RegionId,
    best: Duration,
    measured: &Measured<'_>,
) -> bool {
    let heard = measured.home_heard.is_some_and(|at| {
        at >= measured.began || now.saturating_duration_since(at) < HEARD_RECENTLY
    });
    match measured.latencies.get(&old) {
        Some(latency) => {
            let latency = weighted(map, old, *latency);
            latency.saturating_sub(best) < MIN_GAIN || best > latency * 2 / 3
        }
        None => heard,
    }
}

/// Some region that may be home, the same one for the same node.
fn fallback(map: &DerpMap, seed: u64) -> Option<RegionId> {
    let regions: Vec<RegionId> = map
        .regions
        .values()
        .filter(|region| !region.never_home && region.nodes.iter().any(|node| !node.stun_only))
        .map(|region| region.id)
        .collect();
    let count = u64::try_from(regions.len())
        .ok()
        .filter(|count| *count > 0)?;
    regions.get(usize::try_from(seed % count).ok()?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use node_core::derp::{Address, Certificate, Node, Region};

    const A: RegionId = RegionId(1);
    const B: RegionId = RegionId(2);

    #[test]
    fn the_fastest_region_becomes_home() {
        let (mut selector, start) = fixture();
        assert_eq!(
            report(&mut selector, start, &[(A, 30), (B, 20)], None),
            Some(B)
        );
    }

    #[test]
    fn a_small_gain_does_not_move_home() {
        let (mut selector, start) = fixture();
        report(&mut selector, start, &[(A, 30), (B, 40)], None);

        let later = start + Duration::from_secs(60);
        assert_eq!(
            report(&mut selector, later, &[(A, 30), (B, 21)], None),
            Some(A)
        );
        let later = later + Duration::from_secs(600);
        assert_eq!(
            report(&mut selector, later, &[(A, 30), (B, 15)], None),
            Some(B)
        );
    }

    #[test]
    fn a_home_that_only_its_frames_prove_is_kept() {
        let (mut selector, start) = fixture();
        report(&mut selector, start, &[(A, 30)], None);

        let later = start + Duration::from_secs(60);
        let heard = Some(later - Duration::from_secs(2));
        assert_eq!(report(&mut selector, later, &[(B, 1)], heard), Some(A));
    }

    #[test]
    fn a_silent_home_is_left() {
        let (mut selector, start) = fixture();
        report(&mut selector, start, &[(A, 30)], None);

        let later = start + Duration::from_secs(60);
        assert_eq!(
            report(&mut selector, later, &[(B, 90)], Some(start)),
            Some(B)
        );
    }

    #[test]
    fn without_any_answer_home_stays_or_falls_back_the_same_way() {
        let (mut selector, start) = fixture();
        let first = report(&mut selector, start, &[], None);
        assert!(first.is_some());
        let later = start + Duration::from_secs(60);
        assert_eq!(report(&mut selector, later, &[], None), first);
        selector.reset();
        assert_eq!(report(&mut selector, later, &[], None), first);
    }

    #[test]
    fn a_region_never_meant_as_home_is_not_chosen() {
        let mut map = map();
        map.regions
            .entry(B)
            .and_modify(|region| region.never_home = true);
        let mut selector = HomeSelector::default();
        let (now, latencies) = (t0(), latencies(&[(A, 50), (B, 1)]));
        let measured = measured(now, &latencies);
        assert_eq!(selector.handle_report(now, &map, &measured), Some(A));
    }

    #[test]
    fn a_score_favours_a_region() {
        let mut map = map();
        map.scores.insert(A, 500_000);
        let mut selector = HomeSelector::default();
        let (now, latencies) = (t0(), latencies(&[(A, 50), (B, 30)]));
        let measured = measured(now, &latencies);
        assert_eq!(selector.handle_report(now, &map, &measured), Some(A));
    }

    #[test]
    fn a_score_drains_the_home_region() {
        let (mut selector, start) = fixture();
        report(&mut selector, start, &[(A, 30), (B, 40)], None);

        let mut drained = map();
        drained.scores.insert(A, 10_000_000);
        let later = start + Duration::from_secs(60);
        let latencies = latencies(&[(A, 30), (B, 40)]);
        let measured = measured(later, &latencies);
        let home = selector.handle_report(later, &drained, &measured);
        assert_eq!(home, Some(B));
    }

    #[test]
    fn home_stays_while_nobody_can_be_told_of_another() {
        let (mut selector, start) = fixture();
        let mut choose = |map: &DerpMap, ms, can_tell| {
            let latencies = latencies(ms);
            let measured = Measured {
                can_tell,
                ..measured(start, &latencies)
            };
            selector.handle_report(start, map, &measured)
        };
        assert_eq!(choose(&map(), &[(A, 30)], false), Some(A));
        // Silent, and not heard from: peers look for us there all the same.
        assert_eq!(choose(&map(), &[(B, 5)], false), Some(A));
        assert_eq!(choose(&map(), &[(B, 5)], true), Some(B));

        // As a former process was at home.
        let (now, nearer) = (start, latencies(&[(A, 30), (B, 5)]));
        let without_control = Measured {
            can_tell: false,
            ..measured(now, &nearer)
        };
        let mut selector = HomeSelector::at(Some(A));
        let home = selector.handle_report(now, &map(), &without_control);
        assert_eq!(home, Some(A));

        let mut without = map();
        without.regions.remove(&B);
        assert_eq!(choose(&without, &[(A, 30)], false), Some(A));
    }

    fn report(
        selector: &mut HomeSelector,
        now: Instant,
        latencies: &[(RegionId, u64)],
        home_heard: Option<Instant>,
    ) -> Option<RegionId> {
        let latencies = self::latencies(latencies);
        let measured = Measured {
            home_heard,
            ..measured(now, &latencies)
        };
        selector.handle_report(now, &map(), &measured)
    }

    fn latencies(milliseconds: &[(RegionId, u64)]) -> BTreeMap<RegionId, Duration> {
        let latencies = milliseconds.iter();
        latencies
            .map(|(region, ms)| (*region, Duration::from_millis(*ms)))
            .collect()
    }

    fn measured(now: Instant, latencies: &BTreeMap<RegionId, Duration>) -> Measured<'_> {
        Measured {
            began: now,
            latencies,
            home_heard: None,
            seed: 7,
            can_tell: true,
        }
    }

    fn fixture() -> (HomeSelector, Instant) {
        (HomeSelector::default(), t0())
    }

    fn t0() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    fn map() -> DerpMap {
        let regions = [A, B].map(|id| {
            let node = Node {
                name: format!("{id}a"),
                host: "relay.example".into(),
                ipv4: Address::Resolve,
                ipv6: Address::Resolve,
                derp_port: 443,
                stun_only: false,
                stun_port: Some(3478),
                stun_ip: None,
                http: false,
                certificate: Certificate::HostName,
            };
            let region = Region {
                id,
                code: format!("r{id}"),
                name: String::new(),
                never_home: false,
                nodes: vec![node],
            };
            (id, region)
        });
        DerpMap {
            regions: regions.into(),
            scores: BTreeMap::new(),
        }
    }
}
