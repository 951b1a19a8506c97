//! What the policy says is what passes: allowed, denied, and changed under a live flow.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use netns_tests::{CONNECT, Echo, addresses, connected_pair, pair, set_policy};
use serde_json::Value;
use testnet::tailnet::{Node, Tailnet};
use testnet::{Process, scaled, skip_unless_available, wait_until};

/// What is open in the policies below.
const OPEN: u16 = 7001;
/// What is not.
const SHUT: u16 = 7002;
/// How long a connection that is not allowed must go unanswered: two SYNs.
const UNANSWERED: Duration = Duration::from_millis(1500);

const RESTRICTED: &str =
    r#"{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["tcp:7001", "udp:7001"]}]}"#;
const CLOSED: &str = r#"{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["tcp:22"]}]}"#;

/// Listens at both addresses of a node on both ports.
fn listeners(node: &Node) -> Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in addresses(node)? {
        for port in [OPEN, SHUT] {
            let space = node.host().namespace();
            listeners.push(space.enter(|| TcpListener::bind((address, port)))??);
        }
    }
    Ok(listeners)
}

/// Whether a connection comes about; anything but silence or success is an error.
fn connects(from: &Node, address: IpAddr, port: u16) -> Result<bool> {
    let server = SocketAddr::from((address, port));
    let limit = scaled(UNANSWERED);
    let space = from.host().namespace();
    match space.enter(|| TcpStream::connect_timeout(&server, limit))? {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(false),
        Err(error) => bail!("{server}: {error}"),
    }
}

/// Puts a policy in force at both nodes.
fn obey(tailnet: &Tailnet, policy: &str) -> Result<()> {
    let serial = |node: &Node| -> Result<Value> {
        let status = node.status()?;
        Ok(status["Tailrace"]["FilterSerial"].clone())
    };
    let nodes = pair(&tailnet.nodes)?;
    let before = [serial(nodes[0])?, serial(nodes[1])?];
    set_policy(&tailnet.control, policy)?;
    for (node, before) in nodes.into_iter().zip(before) {
        wait_until(CONNECT, "the policy is in force", || {
            ensure!(serial(node)? != before, "not yet");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn what_the_policy_allows_passes_and_nothing_else_over_both_families() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = connected_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    let _listeners = listeners(bob)?;
    let open = Echo::serve(bob.host().namespace(), OPEN)?;
    let shut = Echo::serve(bob.host().namespace(), SHUT)?;
    let space = alice.host().namespace();
    for address in addresses(bob)? {
        ensure!(
            connects(alice, address, SHUT)?,
            "{address}: allow-all does not allow"
        );
    }

    obey(&tailnet, RESTRICTED)?;
    for address in addresses(bob)? {
        ensure!(
            connects(alice, address, OPEN)?,
            "{address}:{OPEN} is not open"
        );
        ensure!(!connects(alice, address, SHUT)?, "{address}:{SHUT} is open");
        open.call(space, address, 100)?;
        ensure!(
            shut.call(space, address, 100).is_err(),
            "UDP {SHUT} is open"
        );
        // Who may reach any port may ping.
        alice.ping(address)?;
    }
    let status = bob.status()?;
    let drops = &status["Tailrace"]["Drops"]["no_rule"]["in"];
    ensure!(drops.as_u64() >= Some(4), "drops are not counted: {status}");
    let metrics = bob.metrics()?;
    let dropped = r#"tailrace_filter_dropped_packets_total{direction="in",reason="no_rule"}"#;
    ensure!(metrics.contains(dropped), "{metrics}");
    Ok(())
}

#[test]
fn a_policy_change_cuts_a_live_flow_and_admits_it_again() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = connected_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    let echo = Echo::serve(bob.host().namespace(), OPEN)?;
    let space = alice.host().namespace();
    let address = bob.ip("-4")?;
    obey(&tailnet, RESTRICTED)?;
    let mut flow = echo.flow(space, address)?;
    flow.call(100)?;

    obey(&tailnet, CLOSED)?;
    ensure!(
        flow.call(100).is_err(),
        "the flow outlives the rule that admitted it"
    );
    obey(&tailnet, RESTRICTED)?;
    flow.call(100)?;
    Ok(())
}

#[test]
fn dropped_packets_and_admitting_rules_are_told_as_it_happens() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = connected_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    let _listeners = listeners(bob)?;
    obey(&tailnet, RESTRICTED)?;
    let mut command = bob.command()?;
    command.args(["debug", "drops", "--json"]);
    let mut drops = Process::spawn("debug drops", command)?;
    drops.wait_for_line("Waiting for packets", CONNECT)?;
    let ends = addresses(alice)?.into_iter().zip(addresses(bob)?);
    for (theirs, ours) in ends {
        wait_until(CONNECT, "the drop is told", || {
            ensure!(!connects(alice, ours, SHUT)?, "{ours}:{SHUT} is open");
            let log = drops.log();
            let told = |line: &&String| {
                line.contains("no_rule")
                    && line.contains(&SocketAddr::new(ours, SHUT).to_string())
                    && line.contains(&theirs.to_string())
                    && line.contains("\"Peer\":\"alice\"")
            };
            ensure!(log.iter().any(|line| told(&line)), "{log:?}");
            Ok(())
        })?;
        ensure!(connects(alice, ours, OPEN)?, "{ours}:{OPEN} is not open");
    }
    let rules: Value = serde_json::from_str(&bob.cli(&["debug", "rules", "--json"])?)?;
    let packets = rules.as_array().into_iter().flatten();
    let admitted: u64 = packets.filter_map(|rule| rule["Packets"].as_u64()).sum();
    ensure!(admitted >= 2, "no rule counts: {rules}");
    Ok(())
}

#[test]
fn a_restarted_agent_finds_its_flows_and_its_rules() -> Result<()> {
    skip_unless_available!("ping");
    let mut tailnet = connected_pair()?;
    obey(&tailnet, RESTRICTED)?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    let _listeners = listeners(bob)?;
    let address = bob.ip("-4")?;
    ensure!(connects(alice, address, OPEN)?);
    tailnet.nodes[1].kill()?;
    tailnet.nodes[1].start_again()?;
    let [alice, _] = pair(&tailnet.nodes)?;
    wait_until(CONNECT, "the open port answers again", || {
        ensure!(connects(alice, address, OPEN)?, "not yet");
        Ok(())
    })?;
    ensure!(
        !connects(alice, address, SHUT)?,
        "{SHUT} is open after a restart"
    );
    Ok(())
}

#[test]
fn with_shields_up_a_node_reaches_others_and_none_reaches_it() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = connected_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    let _listeners = (listeners(alice)?, listeners(bob)?);
    bob.cli(&["set", "--shields-up"])?;
    for (ours, theirs) in addresses(bob)?.into_iter().zip(addresses(alice)?) {
        wait_until(CONNECT, "the shields are up", || {
            ensure!(!connects(alice, ours, OPEN)?, "{ours} answers");
            Ok(())
        })?;
        ensure!(connects(bob, theirs, OPEN)?, "{theirs} does not answer");
    }
    bob.cli(&["set", "--shields-up=false"])?;
    let address = bob.ip("-4")?;
    wait_until(CONNECT, "the shields are down", || {
        ensure!(connects(alice, address, OPEN)?, "{address} does not answer");
        Ok(())
    })
}
