//! Prometheus families of the relay.

use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    Opts, Registry, TextEncoder,
};

use crate::server::Class;

/// Bounds of the time that packets wait, in seconds.
const QUEUE_BUCKETS: [f64; 9] = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0];

/// Counters and gauges of one relay; each is a handle that may be kept.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// DERP connections that passed handshake and admission.
    pub accepted: IntCounter,
    /// Connections refused by admission.
    pub refused: IntCounter,
    /// Connections that ended before they were DERP: TLS, HTTP or handshake failures.
    pub failed_handshakes: IntCounter,
    /// DERP connections now.
    pub connections: IntGauge,
    /// Of these, connections of clients whose home this is.
    pub home: IntGauge,
    /// Of these, connections beyond the first of their key.
    pub duplicates: IntGauge,
    /// Of these, mesh connections that watch.
    pub watchers: IntGauge,
    /// Packets from clients.
    pub packets_received: IntCounter,
    /// Payload bytes from clients.
    pub bytes_received: IntCounter,
    /// Packets put into clients' queues, dropped later or not.
    pub packets_sent: IntCounter,
    /// Payload bytes that go with them.
    pub bytes_sent: IntCounter,
    /// Disco packets among the received.
    pub disco_received: IntCounter,
    /// Packets forwarded by other servers of the mesh.
    pub forwarded: IntCounter,
    pub(crate) dropped_unknown: IntCounter,
    pub(crate) dropped_queue_data: IntCounter,
    pub(crate) dropped_queue_disco: IntCounter,
    pub(crate) dropped_gone: IntCounter,
    pub(crate) gone_disconnected: IntCounter,
    pub(crate) gone_not_here: IntCounter,
    /// How long packets wait to be written.
    pub(crate) queue_times: QueueTimes,
    /// Pings from clients.
    pub pings: IntCounter,
    /// Connections closed because nothing could be written in time.
    pub write_timeouts: IntCounter,
    /// Connections closed by an operator, by control or by a sweep.
    pub kicked: IntCounter,
    pub(crate) stun_answered_v4: IntCounter,
    pub(crate) stun_answered_v6: IntCounter,
    pub(crate) stun_ignored: IntCounter,
    pub(crate) stun_failed: IntCounter,
}

impl Metrics {
    /// A fresh set, in a registry of its own.
    #[must_use]
    pub fn new() -> Self {
        let registry = Registry::new();
        let families = Families(&registry);
        let dropped = families.vec(
            "packets_dropped_total",
            "Packets that did not reach their destination.",
            &["reason", "kind"],
        );
        let gone = families.vec(
            "peer_gone_total",
            "PeerGone frames for clients.",
            &["reason"],
        );
        let stun = families.vec("stun_total", "STUN datagrams.", &["outcome"]);
        let waited = families.histogram(
            "queue_seconds",
            "Time that packets waited for their client, in runs of packets that came together.",
            &["kind"],
        );
        Self {
            accepted: families.counter(
                "connections_accepted_total",
                "DERP connections that passed handshake and admission.",
            ),
            refused: families.counter(
                "connections_refused_total",
                "Connections refused by admission.",
            ),
            failed_handshakes: families.counter(
                "handshakes_failed_total",
                "Connections that ended before they were DERP.",
            ),
            connections: families.gauge("connections", "DERP connections now."),
            home: families.gauge(
                "home_connections",
                "Connections of clients whose home this relay is.",
            ),
            duplicates: families.gauge(
                "duplicate_connections",
                "Connections beyond the first of their key.",
            ),
            watchers: families.gauge("watchers", "Mesh connections that watch."),
            packets_received: families.counter("packets_received_total", "Packets from clients."),
            bytes_received: families.counter("received_bytes_total", "Payload bytes from clients."),
            packets_sent: families.counter("packets_sent_total", "Packets for clients."),
            bytes_sent: families.counter("sent_bytes_total", "Payload bytes for clients."),
            disco_received: families.counter(
                "disco_packets_received_total",
                "Disco packets from clients.",
            ),
            forwarded: families.counter(
                "packets_forwarded_total",
                "Packets that other servers of the mesh forwarded.",
            ),
            dropped_unknown: dropped.with_label_values(&["unknown_destination", "any"]),
            dropped_queue_data: dropped.with_label_values(&["queue_full", "data"]),
            dropped_queue_disco: dropped.with_label_values(&["queue_full", "disco"]),
            dropped_gone: dropped.with_label_values(&["gone", "any"]),
            gone_disconnected: gone.with_label_values(&["disconnected"]),
            gone_not_here: gone.with_label_values(&["not_here"]),
            queue_times: QueueTimes {
                disco: waited.with_label_values(&["disco"]),
                data: waited.with_label_values(&["data"]),
            },
            pings: families.counter("pings_total", "Pings from clients."),
            write_timeouts: families.counter(
                "write_timeouts_total",
                "Connections closed because nothing could be written in time.",
            ),
            kicked: families.counter(
                "connections_kicked_total",
                "Connections closed by an operator, by control or by a sweep.",
            ),
            stun_answered_v4: stun.with_label_values(&["answered_ipv4"]),
            stun_answered_v6: stun.with_label_values(&["answered_ipv6"]),
            stun_ignored: stun.with_label_values(&["ignored"]),
            stun_failed: stun.with_label_values(&["failed"]),
            registry,
        }
    }

    /// The families in Prometheus' text format.
    ///
    /// # Errors
    ///
    /// [`prometheus::Error`], if they cannot be encoded.
    pub fn encode(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Lets another registry (control's) show the relay's families beside its own.
impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        // One description identifies the set; the families come from `collect`.
        self.accepted.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }
}

/// How long packets wait to be written, by class.
#[derive(Clone, Debug)]
pub(crate) struct QueueTimes {
    disco: Histogram,
    data: Histogram,
}

impl QueueTimes {
    /// A run of packets has waited for so long.
    pub(crate) fn observe(&self, class: Class, waited: Duration) {
        let histogram = match class {
            Class::Disco => &self.disco,
            Class::Data => &self.data,
        };
        histogram.observe(waited.as_secs_f64());
    }
}

struct Families<'a>(&'a Registry);

impl Families<'_> {
    fn opts(name: &str, help: &str) -> Opts {
        Opts::new(name, help)
            .namespace("tailrace")
            .subsystem("relay")
    }

    /// Names are constants of this file, and a test makes them all.
    fn register<M: Collector + Clone + 'static>(&self, made: prometheus::Result<M>) -> M {
        let metric = made.expect("a valid metric");
        self.0
            .register(Box::new(metric.clone()))
            .expect("a metric of its own name");
        metric
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::with_opts(Self::opts(name, help)))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::with_opts(Self::opts(name, help)))
    }

    fn histogram(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        let options = HistogramOpts::from(Self::opts(name, help)).buckets(QUEUE_BUCKETS.to_vec());
        self.register(HistogramVec::new(options, labels))
    }

    fn vec(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Self::opts(name, help), labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_shown_by_the_own_registry_and_by_another() {
        let metrics = Metrics::new();
        metrics.accepted.inc();
        let expected = "tailrace_relay_connections_accepted_total 1";
        let own = String::from_utf8(metrics.encode().unwrap()).unwrap();
        assert!(own.contains(expected), "{own}");

        let other = Registry::new();
        other.register(Box::new(metrics)).unwrap();
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&other.gather(), &mut text)
            .unwrap();
        assert!(String::from_utf8(text).unwrap().contains(expected));
    }
}
