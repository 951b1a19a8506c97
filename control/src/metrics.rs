//! What the server counts about itself.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

use crate::engine::Counts;

/// What the database is asked to do, as metrics name it.
const OPERATIONS: [&str; 4] = ["read", "commit", "report", "check"];
/// Bounds of what the database takes, in seconds.
const DATABASE_BUCKETS: [f64; 8] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];
/// Bounds of what a change takes to a viewer, in seconds.
const CHANGE_BUCKETS: [f64; 9] = [0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];

/// What the database takes.
#[derive(Clone, Debug)]
pub struct DatabaseMetrics {
    seconds: HistogramVec,
    errors: IntCounterVec,
}

impl DatabaseMetrics {
    /// An operation took so long, and failed or not.
    pub(crate) fn observe(&self, operation: &str, took: Duration, failed: bool) {
        let labels = [operation];
        let seconds = self.seconds.with_label_values(&labels);
        seconds.observe(took.as_secs_f64());
        let errors = self.errors.with_label_values(&labels);
        errors.inc_by(u64::from(failed));
    }
}

/// Counters, and gauges that are set when somebody asks.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// Nodes that joined.
    pub joined: IntCounter,
    /// Nodes that logged in again with a new key.
    pub rekeyed: IntCounter,
    /// Auth keys refused.
    pub keys_refused: IntCounter,
    /// Noise handshakes completed.
    pub handshakes: IntCounter,
    /// Noise handshakes that failed.
    pub handshakes_failed: IntCounter,
    /// Connections refused because too many were in their handshake.
    pub connections_refused: IntCounter,
    /// Map frames sent, keepalives included.
    pub frames: IntCounter,
    /// Bytes of map frames sent, as compressed as they were.
    pub map_bytes: IntCounter,
    /// How long changes waited for the connection of a viewer.
    pub change_seconds: Histogram,
    /// What the database takes.
    pub database: DatabaseMetrics,
    /// Of these, full ones.
    pub full_frames: IntCounter,
    /// Streams that fell behind and got a fresh full frame.
    pub resyncs: IntCounter,
    /// Lite updates taken in.
    pub lite_updates: IntCounter,
    /// Version of the policy in force; 0 = none was ever set.
    pub policy_version: IntGauge,
    /// 1 while the policy file is not what is in force.
    pub policy_stale: IntGauge,
    /// Times that the policy file could not be put in force.
    pub policy_reload_failures: IntCounter,
    change_number: IntGauge,
    users: IntGauge,
    nodes: IntGauge,
    online: IntGauge,
    streams: IntGauge,
    queued: IntGauge,
    queued_most: IntGauge,
    unsaved: IntGauge,
    database_bytes: IntGauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| {
            let metric = IntCounter::with_opts(opts(name, help));
            register(&registry, metric)
        };
        let gauge = |name: &str, help: &str| {
            let metric = IntGauge::with_opts(opts(name, help));
            register(&registry, metric)
        };
        let database = DatabaseMetrics {
            seconds: register(
                &registry,
                HistogramVec::new(
                    HistogramOpts::from(opts(
                        "database_seconds",
                        "Time that the database took for an operation.",
                    ))
                    .buckets(DATABASE_BUCKETS.to_vec()),
                    &["operation"],
                ),
            ),
            errors: register(
                &registry,
                IntCounterVec::new(
                    opts(
                        "database_errors_total",
                        "Operations that the database failed.",
                    ),
                    &["operation"],
                ),
            ),
        };
        for operation in OPERATIONS {
            database.seconds.with_label_values(&[operation]);
            database.errors.with_label_values(&[operation]);
        }
        let change = HistogramOpts::from(opts(
            "change_seconds",
            "Time that changes waited for the connection of a viewer.",
        ));
        Self {
            database,
            change_seconds: register(
                &registry,
                Histogram::with_opts(change.buckets(CHANGE_BUCKETS.to_vec())),
            ),
            map_bytes: counter("map_bytes_total", "Bytes of map frames sent."),
            queued: gauge(
                "queue_depth",
                "Changes that wait in the queues of all streams.",
            ),
            queued_most: gauge("queue_depth_max", "Changes that wait in the longest queue."),
            unsaved: gauge(
                "reports_unsaved",
                "Nodes whose reports are not in the database yet.",
            ),
            database_bytes: gauge("database_bytes", "Bytes that the database takes."),
            joined: counter("nodes_joined_total", "Nodes that joined."),
            rekeyed: counter(
                "nodes_rekeyed_total",
                "Nodes that logged in with a new key.",
            ),
            keys_refused: counter("auth_keys_refused_total", "Auth keys refused."),
            handshakes: counter("handshakes_total", "Noise handshakes completed."),
            handshakes_failed: counter("handshakes_failed_total", "Noise handshakes that failed."),
            connections_refused: counter(
                "connections_refused_total",
                "Connections refused because too many were in their handshake.",
            ),
            frames: counter("map_frames_total", "Map frames sent, keepalives included."),
            full_frames: counter("map_full_frames_total", "Full map frames sent."),
            resyncs: counter(
                "map_resyncs_total",
                "Streams that fell behind and started anew.",
            ),
            lite_updates: counter("lite_updates_total", "Lite updates of nodes."),
            policy_version: gauge(
                "policy_version",
                "Version of the policy in force; 0: none was ever set.",
            ),
            policy_stale: gauge(
                "policy_stale",
                "1 while the policy file is not what is in force.",
            ),
            policy_reload_failures: counter(
                "policy_reload_failures_total",
                "Times that the policy file could not be put in force.",
            ),
            change_number: gauge("change_number", "Number of the last committed change."),
            users: gauge("users", "Users."),
            nodes: gauge("nodes", "Nodes."),
            online: gauge("nodes_online", "Nodes that are online."),
            streams: gauge("map_streams", "Open map streams."),
            registry,
        }
    }
}

impl Metrics {
    /// Shows another part's families, the relay's, beside these.
    ///
    /// # Errors
    ///
    /// Their names clash.
    pub fn include(
        &self,
        collector: impl prometheus::core::Collector + 'static,
    ) -> Result<(), prometheus::Error> {
        self.registry.register(Box::new(collector))
    }

    /// All families in Prometheus' text format. Without `database_bytes` the last size is shown.
    ///
    /// # Errors
    ///
    /// They cannot be encoded.
    pub fn encode(
        &self,
        counts: Counts,
        database_bytes: Option<u64>,
    ) -> Result<String, prometheus::Error> {
        let set =
            |gauge: &IntGauge, value: usize| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        self.change_number.set(counts.number.0);
        set(&self.users, counts.users);
        set(&self.nodes, counts.nodes);
        set(&self.online, counts.online);
        set(&self.streams, counts.sessions);
        set(&self.queued, counts.queued);
        set(&self.queued_most, counts.queued_most);
        set(&self.unsaved, counts.unsaved);
        if let Some(bytes) = database_bytes {
            self.database_bytes
                .set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help)
        .namespace("tailrace")
        .subsystem("control")
}

#[expect(
    clippy::expect_used,
    reason = "names are constants of this file, seen by a test"
)]
fn register<M: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    made: prometheus::Result<M>,
) -> M {
    let metric = made.expect("a valid metric");
    registry
        .register(Box::new(metric.clone()))
        .expect("a metric of its own name");
    metric
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn families_are_shown_with_current_values() {
        let metrics = Metrics::default();
        metrics.joined.inc();
        let text = metrics
            .encode(
                Counts {
                    nodes: 3,
                    ..Counts::default()
                },
                Some(4096),
            )
            .unwrap();
        assert!(
            text.contains("tailrace_control_nodes_joined_total 1"),
            "{text}"
        );
        assert!(text.contains("tailrace_control_nodes 3"), "{text}");
    }

    /// `name{labels} kind` of every family, as code has it.
    fn from_code() -> BTreeSet<String> {
        let metrics = Metrics::default();
        metrics.include(relay::metrics::Metrics::new()).unwrap();
        let text = |family: &prometheus::proto::MetricFamily| {
            let labels = family.get_metric()[0].get_label();
            let labels: Vec<&str> = labels.iter().map(|label| label.name()).collect();
            let kind = format!("{:?}", family.get_field_type()).to_lowercase();
            let braced = match labels.join(",") {
                none if none.is_empty() => none,
                labels => format!("{{{labels}}}"),
            };
            format!("{}{braced} {kind}", family.name())
        };
        metrics.registry.gather().iter().map(text).collect()
    }

    /// The same, as the rows of the tables of a page have it.
    fn from_page(page: &str) -> BTreeSet<String> {
        let row = |line: &str| {
            let (family, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
            let (kind, _) = rest.split_once(" |")?;
            family
                .starts_with("tailrace_")
                .then(|| format!("{family} {kind}"))
        };
        page.lines().filter_map(row).collect()
    }

    #[test]
    fn names_kinds_and_labels_are_those_that_were_frozen_and_documented() {
        let frozen = include_str!("../../docs/metrics.txt");
        let (_, frozen) = frozen.split_once("# control and relay\n").unwrap();
        let (frozen, _) = frozen.split_once("\n\n").unwrap_or((frozen, ""));
        let frozen: BTreeSet<String> = frozen.lines().map(str::to_owned).collect();
        assert_eq!(from_code(), frozen, "docs/metrics.txt");

        let page = include_str!("../../docs/metrics.md");
        let (servers, _) = page.split_once("\n## Agent\n").unwrap();
        assert_eq!(from_page(servers), frozen, "docs/metrics.md");
    }
}
