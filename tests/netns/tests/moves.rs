//! Hosts that move: to another address, to another way out. What goes over their tunnels goes on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::{CONNECT, End, both_ways, direct, pair};
use testnet::tailnet::{Control, ControlOptions, Node, Tailnet};
use testnet::{Lab, Namespace, NatKind, scaled, skip_unless_available, wait_until};

/// How long a stream lasts in which a host moves.
const STREAM: Duration = Duration::from_secs(20);
/// Silence after which we call it an outage.
const RESUMED: Duration = Duration::from_secs(3);

/// Waits until both reach each other straight.
fn both_direct([alice, bob]: [&Node; 2]) -> Result<()> {
    wait_until(CONNECT, "the path is direct", || {
        alice.ping(bob.ip("-4")?)?;
        direct(alice, "bob")?;
        direct(bob, "alice")?;
        Ok(())
    })
}

/// Moves alice's host while a stream goes both ways between the nodes; it is never silent for long, and
/// their path is direct again after it.
fn goes_on(nodes: [&Node; 2], shift: impl FnOnce(&Namespace) -> Result<()>) -> Result<()> {
    let [alice, bob] = nodes;
    let ends = [End::of(alice)?, End::of(bob)?];
    let deliveries = both_ways(ends, STREAM, || {
        let began = Instant::now();
        shift(alice.host().namespace())?;
        wait_until(STREAM, "the way out changed", || {
            let lines = alice.process().log();
            let said = lines.iter().any(|line| line.contains("way out changed"));
            ensure!(said, "not noticed");
            Ok(())
        })?;
        println!("noticed after {:?}", began.elapsed());
        Ok(())
    })?;
    for delivery in deliveries {
        println!("{delivery:?}");
        ensure!(delivery.silence.0 <= scaled(RESUMED), "{delivery:?}");
    }
    // By now nobody trusts the old path any more.
    both_direct(nodes)
}

#[test]
fn a_stream_goes_on_when_its_host_gets_another_address() -> Result<()> {
    let tailnet = Tailnet::new(&["alice", "bob"])?;
    let nodes = pair(&tailnet.nodes)?;
    both_direct(nodes)?;
    let [a, b, c, _] = nodes[0].host().address().octets();
    goes_on(nodes, |host| {
        host.ip("addr flush dev eth0")?;
        host.ip(&format!("addr add {a}.{b}.{c}.77/24 dev eth0"))?;
        host.ip(&format!("route add default via {a}.{b}.{c}.1"))?;
        Ok(())
    })
}

#[test]
fn a_stream_goes_on_when_its_host_takes_another_way_out() -> Result<()> {
    let mut lab = Lab::new()?;
    let control = Control::start(lab.server("control")?, ControlOptions::default())?;
    let key = control.auth_key(&["--reusable"])?;
    let [here, there] = [lab.behind_nat("alice")?, lab.behind_nat("bob")?];
    let _second = lab.second_uplink("second", &here, NatKind::PortRestricted)?;
    let nodes = [Node::start(here)?, Node::start(there)?];
    for node in &nodes {
        node.join(&control.url(), &key)?;
    }
    let nodes = pair(&nodes)?;
    both_direct(nodes)?;
    // Its router is alive, and the addresses stay: nothing but the routes tells. The first router's line is
    // dead from here on.
    let router = nodes[0].host().nat().context("no router")?.namespace();
    goes_on(nodes, |host| {
        router.ip("link set wan down")?;
        host.ip("route del default metric 0")?;
        Ok(())
    })
}

#[test]
fn a_relay_is_dialled_again_at_once_from_a_new_address() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = Tailnet::relayed(&["alice", "bob"])?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    alice.reach(bob.ip("-4")?, CONNECT)?;
    let host = alice.host().namespace();
    let [a, b, c, _] = alice.host().address().octets();
    host.ip("addr flush dev eth0")?;
    host.ip(&format!("addr add {a}.{b}.{c}.77/24 dev eth0"))?;
    host.ip(&format!("route add default via {a}.{b}.{c}.1"))?;
    // The old connection would hang for a quarter of a minute.
    alice.reach(bob.ip("-4")?, RESUMED)
}
