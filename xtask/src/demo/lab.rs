//! Starts the lab, step by step, saying what it does.

use std::time::{Duration, Instant};

use anyhow::Result;
use testnet::Lab;
use testnet::tailnet::{Control, ControlOptions, Engine, Node, Tailnet};

use super::Stop;

/// Names of the nodes.
pub(super) const NODES: [&str; 2] = ["alice", "bob"];

/// Starts control with its relay and joins the nodes, each behind a NAT of its own.
pub(super) fn start(stop: &Stop) -> Result<Tailnet> {
    println!();
    let mut lab = step(
        "an internet, and a namespace on it for the servers",
        Lab::new,
    )?;
    let server = lab.server("control")?;
    let what = format!("tailrace-control with its relay on {}", server.address());
    let control = step(&what, || Control::start(server, ControlOptions::default()))?;
    let key = control.auth_key(&["--reusable"])?;
    let mut nodes = Vec::new();
    for name in NODES {
        stop.check()?;
        let what = format!("{name}: a namespace behind a NAT router, and its daemon");
        let node = step(&what, || {
            Node::start_on(lab.behind_nat(name)?, Engine::Auto)
        })?;
        let what = format!(
            "{name}: tailrace up --login-server {} --auth-key …",
            control.url()
        );
        step(&what, || node.join(&control.url(), &key))?;
        nodes.push(node);
    }
    // Whoever joined first learns of the second: the tailnet is ready when they answer each other.
    for (from, to) in [(0, 1), (1, 0)] {
        stop.check()?;
        let address = nodes[to].ip("-4")?;
        let what = format!("{} reaches {}", NODES[from], NODES[to]);
        step(&what, || {
            nodes[from].reach(address, Duration::from_secs(20))
        })?;
    }
    Ok(Tailnet {
        nodes,
        control,
        lab,
    })
}

fn step<T>(what: &str, action: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let result = action();
    let mark = if result.is_ok() { "ok    " } else { "FAILED" };
    println!("  {mark} {what} ({:.1} s)", start.elapsed().as_secs_f64());
    result
}
