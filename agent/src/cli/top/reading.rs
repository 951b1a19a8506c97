//! From two samples to rates: [`Reading`].

use std::collections::HashMap;
use std::hash::Hash;

use serde::Serialize;

use crate::localapi::{DropSample, ForwardedSample, NodeSample, PeerSample, RouteSample, Sample};

/// What `tailrace top --json` prints: the later of two samples, with rates since the earlier one.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Reading {
    /// This node.
    #[serde(flatten)]
    pub(super) node: NodeSample,
    /// Seconds between the two.
    pub(super) interval_seconds: f64,
    /// All peers together.
    pub(super) total: Rated<TrafficSum>,
    /// Peers with their rates.
    pub(super) peers: Vec<Rated<PeerSample>>,
    /// Routes with their rates.
    pub(super) routes: Vec<Rated<RouteSample>>,
    /// Forwarded traffic with its rates.
    pub(super) forwarded: Rated<ForwardedSample>,
    /// Drops with their rates.
    pub(super) drops: Vec<RatedDrop>,
}

/// Bytes of all peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct TrafficSum {
    pub(super) rx_bytes: u64,
    pub(super) tx_bytes: u64,
}

/// Counters and how fast they grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Rated<T> {
    #[serde(flatten)]
    pub(super) of: T,
    #[serde(flatten)]
    pub(super) rate: Rate,
}

/// Bytes a second; null for what the earlier sample does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Rate {
    pub(super) rx_bytes_per_second: Option<f64>,
    pub(super) tx_bytes_per_second: Option<f64>,
}

/// Dropped packets and how fast they get more.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RatedDrop {
    #[serde(flatten)]
    pub(super) of: DropSample,
    pub(super) packets_per_second: f64,
}

impl Rate {
    /// Received and sent, in bytes a second.
    pub(super) fn sum(self) -> f64 {
        self.rx() + self.tx()
    }

    /// Received, in bytes a second; 0 if unknown.
    pub(super) fn rx(self) -> f64 {
        self.rx_bytes_per_second.unwrap_or_default()
    }

    /// Sent, in bytes a second; 0 if unknown.
    pub(super) fn tx(self) -> f64 {
        self.tx_bytes_per_second.unwrap_or_default()
    }
}

/// The clock between two samples, in seconds.
#[derive(Clone, Copy, Debug)]
struct Elapsed(f64);

impl Elapsed {
    /// What a counter grew by in a second. One that fell has begun again at zero.
    fn rate(self, before: u64, now: u64) -> f64 {
        now.checked_sub(before).unwrap_or(now) as f64 / self.0
    }

    /// As [`rate`](Self::rate), of counters that are not everywhere.
    fn rate_of(self, before: Option<u64>, now: Option<u64>) -> Option<f64> {
        Some(self.rate(before?, now?))
    }
}

impl Reading {
    /// Compares two samples. Without an earlier one, or one that is not earlier, there are no rates.
    pub(super) fn between(earlier: Option<&Sample>, later: Sample) -> Self {
        let Sample {
            node,
            peers,
            routes,
            forwarded,
            drops,
        } = later;
        let before = earlier.map(|sample| sample.node.clock_seconds);
        let seconds = before.map_or(0.0, |before| node.clock_seconds - before);
        let elapsed = (seconds > 0.0).then_some(Elapsed(seconds));
        let earlier = earlier.filter(|_| elapsed.is_some());

        let old = index(earlier.map(|s| &s.peers), |peer| peer.id.as_str());
        let peers: Vec<_> = peers
            .into_iter()
            .map(|peer| {
                let rate = elapsed
                    .zip(old.get(peer.id.as_str()))
                    .map(|(elapsed, old)| Rate {
                        rx_bytes_per_second: Some(elapsed.rate(old.rx_bytes, peer.rx_bytes)),
                        tx_bytes_per_second: Some(elapsed.rate(old.tx_bytes, peer.tx_bytes)),
                    });
                rated(peer, rate)
            })
            .collect();

        let old = index(earlier.map(|s| &s.routes), route_key);
        let routes = routes.into_iter().map(|route| {
            let rate = elapsed
                .zip(old.get(&route_key(&route)))
                .map(|(elapsed, old)| Rate {
                    rx_bytes_per_second: elapsed.rate_of(old.rx_bytes, route.rx_bytes),
                    tx_bytes_per_second: elapsed.rate_of(old.tx_bytes, route.tx_bytes),
                });
            rated(route, rate)
        });
        let routes = routes.collect();

        let old = index(earlier.map(|s| &s.drops), drop_key);
        let drops = drops.into_iter().map(|of| {
            // What never happened is not in a sample.
            let before = old.get(&drop_key(&of)).map_or(0, |old| old.packets);
            let rate = elapsed.map(|elapsed| elapsed.rate(before, of.packets));
            RatedDrop {
                packets_per_second: rate.unwrap_or_default(),
                of,
            }
        });
        let drops = drops.collect();

        let rate = elapsed.zip(earlier).map(|(elapsed, old)| Rate {
            rx_bytes_per_second: Some(elapsed.rate(old.forwarded.rx_bytes, forwarded.rx_bytes)),
            tx_bytes_per_second: Some(elapsed.rate(old.forwarded.tx_bytes, forwarded.tx_bytes)),
        });
        Self {
            interval_seconds: elapsed.map_or(0.0, |elapsed| elapsed.0),
            total: total(&peers, elapsed),
            peers,
            routes,
            forwarded: rated(forwarded, rate),
            drops,
            node,
        }
    }
}

fn rated<T>(of: T, rate: Option<Rate>) -> Rated<T> {
    Rated {
        of,
        rate: rate.unwrap_or_default(),
    }
}

fn index<'a, T, K: Eq + Hash>(
    of: Option<&'a Vec<T>>,
    key: impl Fn(&'a T) -> K,
) -> HashMap<K, &'a T> {
    of.into_iter()
        .flatten()
        .map(|one| (key(one), one))
        .collect()
}

fn route_key(route: &RouteSample) -> (String, String) {
    (route.prefix.clone(), route.via_id.clone())
}

fn drop_key(of: &DropSample) -> [String; 3] {
    [&of.place, &of.direction, &of.reason].map(String::clone)
}

fn total(peers: &[Rated<PeerSample>], elapsed: Option<Elapsed>) -> Rated<TrafficSum> {
    let mut sum = Rated::<TrafficSum>::default();
    if elapsed.is_some() {
        sum.rate = Rate {
            rx_bytes_per_second: Some(peers.iter().map(|peer| peer.rate.rx()).sum()),
            tx_bytes_per_second: Some(peers.iter().map(|peer| peer.rate.tx()).sum()),
        };
    }
    for peer in peers {
        sum.of.rx_bytes = sum.of.rx_bytes.wrapping_add(peer.of.rx_bytes);
        sum.of.tx_bytes = sum.of.tx_bytes.wrapping_add(peer.of.tx_bytes);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(id: &str, rx_bytes: u64, tx_bytes: u64) -> PeerSample {
        PeerSample {
            id: id.to_owned(),
            rx_bytes,
            tx_bytes,
            ..PeerSample::default()
        }
    }

    fn at(clock_seconds: f64, peers: Vec<PeerSample>) -> Sample {
        Sample {
            node: NodeSample {
                clock_seconds,
                ..NodeSample::default()
            },
            peers,
            ..Sample::default()
        }
    }

    fn drops(packets: u64) -> Vec<DropSample> {
        vec![DropSample {
            place: "filter".into(),
            direction: "in".into(),
            reason: "no_rule".into(),
            packets,
            ..DropSample::default()
        }]
    }

    #[test]
    fn a_rate_is_what_was_counted_by_the_samples_own_clock() {
        let first = at(10.0, vec![peer("a", 1_000, 0), peer("b", 5, 5)]);
        let reading = Reading::between(
            Some(&first),
            at(12.0, vec![peer("a", 5_000, 300), peer("b", 5, 5)]),
        );
        assert_eq!(reading.interval_seconds, 2.0);
        assert_eq!(reading.peers[0].rate.rx_bytes_per_second, Some(2_000.0));
        assert_eq!(reading.peers[0].rate.tx_bytes_per_second, Some(150.0));
        assert_eq!(reading.peers[1].rate.sum(), 0.0);
        assert_eq!(reading.total.of.rx_bytes, 5_005);
        assert_eq!(reading.total.rate.rx_bytes_per_second, Some(2_000.0));
    }

    #[test]
    fn a_first_sample_a_new_peer_and_a_clock_that_stands_have_no_rates() {
        let first = at(10.0, vec![peer("a", 1_000, 0)]);
        let alone = Reading::between(None, first.clone());
        assert_eq!(alone.peers[0].rate, Rate::default());
        assert_eq!(alone.total.rate, Rate::default());
        let same = Reading::between(Some(&first), first.clone());
        assert_eq!(same.peers[0].rate, Rate::default());
        let next = at(11.0, vec![peer("b", 7, 7)]);
        let reading = Reading::between(Some(&first), next);
        assert_eq!(reading.peers[0].rate, Rate::default());
        assert_eq!(reading.total.rate.rx_bytes_per_second, Some(0.0));
    }

    #[test]
    fn a_counter_that_fell_has_begun_again() {
        let first = at(0.5, vec![peer("a", 1_000_000, 0)]);
        let reading = Reading::between(Some(&first), at(1.0, vec![peer("a", 100, 0)]));
        assert_eq!(reading.peers[0].rate.rx_bytes_per_second, Some(200.0));
    }

    #[test]
    fn drops_that_were_not_there_before_count_from_zero() {
        let first = at(1.0, Vec::new());
        let mut later = at(3.0, Vec::new());
        later.drops = drops(6);
        let reading = Reading::between(Some(&first), later.clone());
        assert_eq!(reading.drops[0].packets_per_second, 3.0);
        let mut still = later.clone();
        still.node.clock_seconds = 4.0;
        let again = Reading::between(Some(&later), still);
        assert_eq!(again.drops[0].packets_per_second, 0.0);
    }

    #[test]
    fn routes_go_by_prefix_and_peer_and_may_be_uncounted() {
        let route = |via_id: &str, rx_bytes| RouteSample {
            prefix: "10.0.0.0/8".into(),
            via_id: via_id.into(),
            rx_bytes,
            tx_bytes: rx_bytes,
            ..RouteSample::default()
        };
        let with = |clock, routes| Sample {
            routes,
            ..at(clock, Vec::new())
        };
        let first = with(0.0, vec![route("a", Some(0)), route("", None)]);
        let later = with(1.0, vec![route("a", Some(9)), route("", None)]);
        let reading = Reading::between(Some(&first), later);
        assert_eq!(reading.routes[0].rate.rx_bytes_per_second, Some(9.0));
        assert_eq!(reading.routes[1].rate, Rate::default());
        let moved = with(1.0, vec![route("b", Some(9))]);
        assert_eq!(
            Reading::between(Some(&first), moved).routes[0].rate,
            Rate::default()
        );
    }

    #[test]
    fn the_json_is_one_flat_object_with_counters_and_rates() {
        let first = at(1.0, vec![peer("a", 0, 0)]);
        let mut later = at(2.0, vec![peer("a", 7, 0)]);
        later.drops = drops(1);
        let value = serde_json::to_value(Reading::between(Some(&first), later)).unwrap();
        assert_eq!(value["IntervalSeconds"], 1.0);
        assert_eq!(value["Peers"][0]["RxBytes"], 7);
        assert_eq!(value["Peers"][0]["RxBytesPerSecond"], 7.0);
        assert_eq!(value["Total"]["RxBytesPerSecond"], 7.0);
        assert_eq!(value["Drops"][0]["PacketsPerSecond"], 1.0);
        assert_eq!(value["Forwarded"]["RxBytes"], 0);
        assert_eq!(value["BackendState"], "NoState");
    }
}
