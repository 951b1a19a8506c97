//! What the server counts about itself.

use prometheus::{IntCounter, IntGauge, Opts, Registry, TextEncoder};

use crate::engine::Counts;

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
        Self {
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

    /// All families in Prometheus' text format.
    ///
    /// # Errors
    ///
    /// They cannot be encoded.
    pub fn encode(&self, counts: Counts) -> Result<String, prometheus::Error> {
        let set =
            |gauge: &IntGauge, value: usize| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        self.change_number.set(counts.number.0);
        set(&self.users, counts.users);
        set(&self.nodes, counts.nodes);
        set(&self.online, counts.online);
        set(&self.streams, counts.sessions);
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
            .encode(Counts {
                nodes: 3,
                ..Counts::default()
            })
            .unwrap();
        assert!(
            text.contains("tailrace_control_nodes_joined_total 1"),
            "{text}"
        );
        assert!(text.contains("tailrace_control_nodes 3"), "{text}");
    }
    #[test]
    fn every_family_is_documented_and_every_documented_family_exists() {
        let metrics = Metrics::default();
        metrics.include(relay::metrics::Metrics::new()).unwrap();
        let page = include_str!("../../docs/metrics.md");
        let documented: BTreeSet<&str> = page
            .split('`')
            .map(|code| code.split('{').next().unwrap_or(code))
            .filter(|code| {
                let ours = ["tailrace_control_", "tailrace_relay_"];
                ours.iter().any(|prefix| code.starts_with(prefix))
            })
            // The agent's word on the server, not the server's.
            .filter(|name| *name != "tailrace_control_connected")
            .collect();
        let families = metrics.registry.gather();
        let existing: BTreeSet<&str> = families.iter().map(|family| family.name()).collect();
        assert_eq!(documented, existing);
    }
}
