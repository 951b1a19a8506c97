//! Starts the lab, step by step, saying what it does.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use testnet::tailnet::{Control, ControlOptions, Engine, Node, Tailnet};
use testnet::{Folder, Lab, run, wait_until};

use super::Stop;
use super::gateways::{POLICY, Site};

/// Names of the nodes.
pub(super) const NODES: [&str; 2] = ["alice", "bob"];

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

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
    // Whoever joined first learns of the second.
    for (from, to) in [(0, 1), (1, 0)] {
        stop.check()?;
        let what = format!("{} has {} by the relay only", NODES[from], NODES[to]);
        step(&what, || is_relayed(&nodes[from], NODES[to]))?;
    }
    // The tailnet is ready when they answer each other.
    let addresses = [nodes[0].ip("-4")?, nodes[1].ip("-4")?];
    let first = time_of_day()?;
    for (from, to) in [(0, 1), (1, 0)] {
        stop.check()?;
        let address = addresses[to];
        let what = format!("{} reaches {}", NODES[from], NODES[to]);
        step(&what, || {
            nodes[from].reach(address, Duration::from_secs(20))
        })?;
    }
    for (from, to) in [(0, 1), (1, 0)] {
        stop.check()?;
        let (endpoint, at) = go_direct(&nodes[from], &nodes[to], NODES[to])?;
        println!(
            "  ok     {} → {}: from the relay to {endpoint}, {:.1} ms after the first packet",
            NODES[from],
            NODES[to],
            since(first, at).as_secs_f64() * 1e3
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

/// Waits until a node knows a peer's relay; the path is not direct then, as nothing was sent.
fn is_relayed(node: &Node, name: &str) -> Result<()> {
    let what = format!("the relay of {name} is known");
    let peer = wait_until(Duration::from_secs(20), &what, || {
        let peer = node.peer(name)?;
        ensure!(!peer.text("Relay")?.is_empty(), "no relay");
        Ok(peer)
    })?;
    let endpoint = peer.text("CurAddr")?;
    ensure!(endpoint.is_empty(), "{name} is at {endpoint} already");
    Ok(())
}

/// Sends until the path to a peer is direct; returns the peer's endpoint, and the time of the day at which the
/// agent came to use it.
fn go_direct(from: &Node, to: &Node, name: &str) -> Result<(String, Duration)> {
    let address = to.ip("-4")?;
    let what = format!("the path to {name} is direct");
    wait_until(Duration::from_secs(20), &what, || {
        from.ping(address)?;
        let peer = from.peer(name)?;
        let endpoint = peer.text("CurAddr")?;
        ensure!(!endpoint.is_empty(), "relayed by {}", peer.text("Relay")?);
        // WireGuard may have followed the peer before the path was proved.
        let key = peer.text("PublicKey")?;
        let log = from.process().log();
        let mut said = log.iter().filter(|line| line.contains("reached directly"));
        let said = said.find(|line| line.contains(key));
        let said = said.context("the agent does not log that its path is direct")?;
        let at = logged_at(said).with_context(|| format!("no time in {said:?}"))?;
        Ok((endpoint.to_owned(), at))
    })
}

/// Time of the day at which a line was logged, which begins like `2026-05-28T15:42:00.123456Z`.
fn logged_at(line: &str) -> Option<Duration> {
    let (_, time) = line.split_once(' ')?.0.strip_suffix('Z')?.split_once('T')?;
    let mut parts = time.split(':');
    let (hours, minutes) = (parts.next()?.parse::<u32>().ok()?, parts.next()?);
    let minutes = hours * 60 + minutes.parse::<u32>().ok()?;
    let seconds = Duration::try_from_secs_f64(parts.next()?.parse().ok()?).ok()?;
    Some(Duration::from_secs(60) * minutes + seconds)
}

/// The same of now.
fn time_of_day() -> Result<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(now - DAY * u32::try_from(now.as_secs() / DAY.as_secs())?)
}

/// What passed between two times of the day; midnight may be between them.
fn since(first: Duration, later: Duration) -> Duration {
    let passed = later.checked_sub(first);
    // A clock that was set back in between is no midnight.
    let next_day = (later + DAY).saturating_sub(first);
    passed.unwrap_or_else(|| {
        if next_day < DAY / 2 {
            next_day
        } else {
            Duration::ZERO
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passed_between_times_of_the_log_is_told_past_midnight_too() {
        let line = "2026-05-28T23:59:59.990000Z  INFO agent: reached directly peer=nodekey:00";
        let before = logged_at(line).expect("a time");
        assert_eq!(before, DAY - Duration::from_millis(10));
        let after = logged_at("2026-05-29T00:00:00.013500Z  INFO agent").expect("a time");
        assert_eq!(since(before, after), Duration::from_micros(23_500));
        assert_eq!(since(after, after), Duration::ZERO);
        assert_eq!(logged_at("no time here"), None);
    }
}
