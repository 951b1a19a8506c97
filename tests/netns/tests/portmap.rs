//! Nodes behind routers that map ports for them: miniupnpd, by NAT-PMP, PCP and UPnP.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netns_tests::CONNECT;
use serde_json::Value;
use testnet::tailnet::{Control, ControlOptions, Node};
use testnet::{Host, Lab, Nat, NatKind, PortMapper, Speaks, skip_unless_available, wait_until};

/// Within which the router is asked, and a path goes direct.
const UPGRADE: Duration = Duration::from_secs(20);
const PORT: u16 = 41641;

/// Starts a node that is joined.
fn join(host: Host, control: &Control, key: &str) -> Result<Node> {
    let node = Node::start(host)?;
    node.join(&control.url(), key)?;
    Ok(node)
}

fn nat(node: &Node) -> Result<&Nat> {
    node.host().nat().context("no router")
}

fn netcheck(node: &Node) -> Result<Value> {
    let text = node.cli(&["netcheck", "--json"])?;
    serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
}

/// Waits until the router maps the node's port.
fn wait_mapped(mapper: &PortMapper, node: &Node) -> Result<()> {
    wait_until(UPGRADE, "the router maps the port", || {
        let mappings = mapper.mappings(nat(node)?)?;
        let to = format!(":{PORT}");
        ensure!(
            mappings.len() == 1 && mappings[0].ends_with(&to),
            "{mappings:?}"
        );
        Ok(())
    })
    .with_context(|| mapper.log().join("\n"))
}

/// Two nodes behind routers that give each destination another port meet through the one's mapping.
fn meet_through_a_mapping(speaks: Speaks, services: [bool; 3]) -> Result<()> {
    let mut lab = Lab::new()?;
    let control = Control::start(lab.server("control")?, ControlOptions::default())?;
    let key = control.auth_key(&["--reusable"])?;
    let host = lab.behind("alice", NatKind::Symmetric)?;
    let alice = Node::start(host)?;
    let mapper = PortMapper::start(nat(&alice)?, speaks)?;
    alice.join(&control.url(), &key)?;
    let bob = join(lab.behind("bob", NatKind::Symmetric)?, &control, &key)?;
    wait_mapped(&mapper, &alice)?;

    let (to_bob, to_alice) = (bob.ip("-4")?, alice.ip("-4")?);
    alice.reach(to_bob, CONNECT)?;
    wait_until(UPGRADE, "the path is direct both ways", || {
        alice.ping(to_bob)?;
        bob.ping(to_alice)?;
        let mapped = format!("{}:{PORT}", nat(&alice)?.second_address());
        let peer = bob.peer("alice")?;
        ensure!(peer.text("CurAddr")? == mapped, "{peer:?}");
        ensure!(!alice.peer("bob")?.text("CurAddr")?.is_empty(), "relayed");
        Ok(())
    })
    .with_context(|| mapper.log().join("\n"))?;

    let report = netcheck(&alice)?;
    let found = ["UPnP", "PMP", "PCP"].map(|name| report.get(name).and_then(Value::as_bool));
    ensure!(found == services.map(Some), "{report}");
    let none = netcheck(&bob)?;
    let found = ["UPnP", "PMP", "PCP"].map(|name| none.get(name).and_then(Value::as_bool));
    ensure!(found == [Some(false); 3], "{none}");
    Ok(())
}

#[test]
fn a_port_mapped_by_nat_pmp_makes_a_path_direct() -> Result<()> {
    skip_unless_available!("ping", "miniupnpd");
    meet_through_a_mapping(Speaks::NatPmp, [false, true, true])
}

#[test]
fn a_port_mapped_by_upnp_makes_a_path_direct() -> Result<()> {
    skip_unless_available!("ping", "miniupnpd");
    meet_through_a_mapping(Speaks::Upnp, [true, false, false])
}

#[test]
fn a_mapping_outlives_the_router_and_ends_with_the_agent() -> Result<()> {
    skip_unless_available!("miniupnpd");
    for speaks in [Speaks::All, Speaks::Upnp] {
        let mut lab = Lab::new()?;
        let control = Control::start(lab.server("control")?, ControlOptions::default())?;
        let key = control.auth_key(&["--reusable"])?;
        let mut alice = Node::start(lab.behind("alice", NatKind::Symmetric)?)?;
        let mut mapper = PortMapper::start(nat(&alice)?, speaks)?;
        alice.join(&control.url(), &key)?;
        wait_mapped(&mapper, &alice)?;
        // Routers count seconds: let there be some that this one can lose.
        wait_until(UPGRADE, "the router is a while up", || {
            alice.cli(&["netcheck"])?;
            ensure!(mapper.up_for() > Duration::from_secs(5), "not yet");
            Ok(())
        })?;
        mapper.restart(nat(&alice)?)?;
        wait_until(UPGRADE, "the router is found to have restarted", || {
            alice.cli(&["netcheck"])?;
            ensure!(mapper.mappings(nat(&alice)?)?.len() == 1, "not mapped");
            Ok(())
        })
        .with_context(|| mapper.log().join("\n"))?;
        alice.terminate()?;
        // The agent does not wait for what is sent by NAT-PMP to be done.
        wait_until(UPGRADE, "the mapping is gone", || {
            let left = mapper.mappings(nat(&alice)?)?;
            ensure!(left.is_empty(), "the agent left {left:?}");
            Ok(())
        })
        .with_context(|| mapper.log().join("\n"))?;
    }
    Ok(())
}

#[test]
fn a_restart_that_the_router_announces_is_heard() -> Result<()> {
    skip_unless_available!("miniupnpd");
    let mut lab = Lab::new()?;
    let control = Control::start(lab.server("control")?, ControlOptions::default())?;
    let key = control.auth_key(&["--reusable"])?;
    let alice = Node::start(lab.behind("alice", NatKind::Symmetric)?)?;
    let mut mapper = PortMapper::start(nat(&alice)?, Speaks::NatPmp)?;
    let up_for = |mapper: &PortMapper, seconds| {
        wait_until(UPGRADE, "the router is a while up", || {
            let up = mapper.up_for();
            ensure!(up > Duration::from_secs(seconds), "for {up:?} only");
            Ok(())
        })
    };
    // A router that counted no second yet, before and after, may have no clock.
    up_for(&mapper, 2)?;
    alice.join(&control.url(), &key)?;
    wait_mapped(&mapper, &alice)?;
    up_for(&mapper, 8)?;
    // By itself the agent looks once a minute.
    mapper.restart(nat(&alice)?)?;
    wait_mapped(&mapper, &alice)
}

#[test]
fn nothing_is_mapped_against_the_operators_will() -> Result<()> {
    skip_unless_available!("miniupnpd");
    for start in [Node::start_unmapped, Node::start_relayed] {
        let mut lab = Lab::new()?;
        let control = Control::start(lab.server("control")?, ControlOptions::default())?;
        let key = control.auth_key(&["--reusable"])?;
        let alice = start(lab.behind("alice", NatKind::Symmetric)?)?;
        let mapper = PortMapper::start(nat(&alice)?, Speaks::All)?;
        alice.join(&control.url(), &key)?;
        let text = alice.cli(&["netcheck"])?;
        ensure!(text.contains("PortMapping: not checked"), "{text}");
        ensure!(mapper.mappings(nat(&alice)?)?.is_empty(), "mapped");
    }
    Ok(())
}
