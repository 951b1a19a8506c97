//! Prometheus beside the demo.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testnet::{Prometheus, Target, wait_until};

use super::figures::name;
use super::lab::Demo;
use crate::workspace::Workspace;

/// Time within which every daemon has been scraped.
const SCRAPED: Duration = Duration::from_secs(20);
/// The alert rules, below the root of the repository.
const ALERTS: &str = "docs/dashboards/alerts.yml";

/// Starts it on all daemons and says where it is.
///
/// # Errors
///
/// When it does not start.
pub(super) fn start(workspace: &Workspace, demo: &Demo) -> Result<Prometheus> {
    let rules = workspace.root.join(ALERTS);
    let rules =
        fs::read_to_string(&rules).with_context(|| format!("cannot read {}", rules.display()))?;
    let control = &demo.tailnet.control;
    let nodes = demo.tailnet.nodes.iter().chain([&demo.gate, &demo.exit]);
    let names: Vec<_> = nodes.map(|node| (node, name(node))).collect();
    let mut targets = vec![Target {
        job: "tailrace-control",
        instance: "control",
        space: control.host().namespace(),
        address: control.address(),
    }];
    targets.extend(names.iter().map(|(node, name)| Target {
        job: "tailrace",
        instance: name,
        space: node.host().namespace(),
        address: node.metrics_address(),
    }));
    let prometheus = Prometheus::start(&targets, &rules)?;
    println!("  Prometheus: {}/graph", prometheus.url());
    Ok(prometheus)
}

/// Checks that it has scraped everybody.
///
/// # Errors
///
/// When it has not.
pub(super) fn verify(prometheus: &Prometheus) -> Result<()> {
    wait_until(SCRAPED, "Prometheus has scraped every daemon", || {
        let up = prometheus.values("up")?;
        ensure!(
            up.len() == 5 && up.iter().all(|up| *up == 1.0),
            "up: {up:?}"
        );
        let bytes = prometheus.values("sum(tailrace_peer_bytes_total)")?;
        ensure!(
            bytes.iter().any(|bytes| *bytes > 0.0),
            "no bytes: {bytes:?}"
        );
        Ok(())
    })?;
    println!("  ok     Prometheus has scraped 5 daemons");
    Ok(())
}
