//! Starts the lab, step by step, saying what it does.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testnet::tailnet::{Control, ControlOptions, Engine, Node, Tailnet};
use testnet::{Folder, Lab, run, wait_until};

use super::Stop;
use super::gateways::{POLICY, Site};

/// Names of the nodes.
pub(super) const NODES: [&str; 2] = ["alice", "bob"];

/// All that the demo runs.
///
/// Fields drop in order: daemons first, the lab last.
#[derive(Debug)]
pub(super) struct Demo {
    /// The subnet router.
    pub(super) gate: Node,
    /// The exit node.
    pub(super) exit: Node,
    /// What stands behind the subnet router.
    pub(super) office: Site,
    /// What stands for the outside, behind the exit node.
    pub(super) outside: Site,
    /// The nodes behind NAT, control, the internet.
    pub(super) tailnet: Tailnet,
}

/// Starts control with its relay and joins the nodes, each behind a NAT of its own, and the gateways.
pub(super) fn start(stop: &Stop) -> Result<Demo> {
    println!();
    let mut lab = step(
        "an internet, and a namespace on it for the servers",
        Lab::new,
    )?;
    let server = lab.server("control")?;
    let what = format!("tailrace-control with its relay on {}", server.address());
    let control = step(&what, || Control::start(server, ControlOptions::default()))?;
    step("tailrace-control policy set", || set_policy(&control))?;
    let mut nodes = Vec::new();
    for name in NODES {
        stop.check()?;
        let what = format!("{name}: a namespace behind a NAT router, and its daemon");
        let node = step(&what, || {
            Node::start_on(lab.behind_nat(name)?, Engine::Auto)
        })?;
        join(&control, name, &node, &["--accept-routes"])?;
        nodes.push(node);
    }
    stop.check()?;
    let [office4, office6] = ["10.77.1.0/24", "fd77:1::/64"];
    let routes = format!("--advertise-routes={office4},{office6}");
    let (gate, office) = gateway(&mut lab, &control, "gate", 1, &routes)?;
    let (exit, outside) = gateway(&mut lab, &control, "exit", 2, "--advertise-exit-node")?;
    // Whoever joined first learns of the second: the tailnet is ready when they answer each other.
    let first = Instant::now();
    for (from, to) in [(0, 1), (1, 0)] {
        stop.check()?;
        let address = nodes[to].ip("-4")?;
        let what = format!("{} reaches {}", NODES[from], NODES[to]);
        step(&what, || {
            nodes[from].reach(address, Duration::from_secs(20))
        })?;
    }
    for (from, to) in [(0, 1), (1, 0)] {
        stop.check()?;
        let endpoint = go_direct(&nodes[from], &nodes[to], NODES[to])?;
        println!(
            "  ok     {} → {}: from the relay to {endpoint}, {} ms after the first packet",
            NODES[from],
            NODES[to],
            first.elapsed().as_millis()
        );
    }
    Ok(Demo {
        gate,
        exit,
        office,
        outside,
        tailnet: Tailnet {
            nodes,
            control,
            lab,
        },
    })
}

/// Sends until the path to a peer is direct; returns the peer's endpoint.
fn go_direct(from: &Node, to: &Node, name: &str) -> Result<String> {
    let address = to.ip("-4")?;
    let what = format!("the path to {name} is direct");
    wait_until(Duration::from_secs(20), &what, || {
        from.ping(address)?;
        let peer = from.peer(name)?;
        let endpoint = peer.text("CurAddr")?;
        ensure!(!endpoint.is_empty(), "relayed by {}", peer.text("Relay")?);
        Ok(endpoint.to_owned())
    })
}

/// Joins a node under the tag of its name, then sets what `flags` say.
fn join(control: &Control, name: &str, node: &Node, flags: &[&str]) -> Result<()> {
    let key = control.auth_key(&["--tags", &format!("tag:{name}")])?;
    let url = control.url();
    let what = format!("{name}: tailrace up --login-server {url} --auth-key …");
    step(&what, || node.join(&url, &key))?;
    let what = format!("{name}: tailrace set {}", flags.join(" "));
    step(&what, || node.cli(&[&["set"], flags].concat()).map(drop))
}

/// Starts a gateway on the internet with network number `number` behind it.
fn gateway(
    lab: &mut Lab,
    control: &Control,
    name: &str,
    number: u8,
    offer: &str,
) -> Result<(Node, Site)> {
    let what = format!("{name}: a gateway on the internet, a host behind it, and its daemon");
    let (node, site) = step(&what, || {
        let host = lab.server(name)?;
        let site = Site::behind(host.namespace(), &format!("{name}-host"), number)?;
        Ok((Node::start_on(host, Engine::Auto)?, site))
    })?;
    join(control, name, &node, &[offer, "--enable-ip-forward"])?;
    Ok((node, site))
}

fn set_policy(control: &Control) -> Result<()> {
    let folder = Folder::new("policy")?;
    let file = folder.path().join("policy.hujson");
    std::fs::write(&file, POLICY)?;
    let mut command = control.admin_command()?;
    run(command.args(["policy", "set"]).arg(file)).map(drop)
}

/// Does one step and says how long it took.
pub(super) fn step<T>(what: &str, action: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let result = action();
    let mark = if result.is_ok() { "ok    " } else { "FAILED" };
    println!("  {mark} {what} ({:.1} s)", start.elapsed().as_secs_f64());
    result
}
