//! Servers that die during traffic: the tailnet heals by itself.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::{CONNECT, HEAL, pair, relay_apart, relayed_pair};
use serde_json::Value;
use testnet::tailnet::{Control, Node};
use testnet::{Lab, Process, skip_unless_available, wait_until};

#[test]
fn traffic_resumes_after_control_with_its_relay_was_killed() -> Result<()> {
    skip_unless_available!("ping");
    let mut tailnet = relayed_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    let address = bob.ip("-4")?;
    let _traffic = traffic(alice, bob)?;

    tailnet.control.kill()?;
    wait_until(CONNECT, "the path is cut", || {
        ensure!(alice.ping(address).is_err(), "it still answers");
        Ok(())
    })?;
    tailnet.control.start_again()?;

    let start = Instant::now();
    let [alice, bob] = pair(&tailnet.nodes)?;
    alice.reach(address, HEAL)?;
    bob.reach(alice.ip("-6")?, HEAL)?;
    println!(
        "healed {:.1} s after control listened again",
        start.elapsed().as_secs_f64()
    );
    connected_to_control(alice)?;
    connected_to_control(bob)
}

#[test]
fn traffic_resumes_after_the_relay_was_killed() -> Result<()> {
    skip_unless_available!("ping");
    let mut lab = Lab::new()?;
    let (mut relay, control) = relay_apart(&mut lab)?;
    let [alice, bob] = two_nodes(&mut lab, &control)?;
    let address = bob.ip("-4")?;
    let _traffic = traffic(&alice, &bob)?;

    relay.kill()?;
    wait_until(CONNECT, "the path is cut", || {
        ensure!(alice.ping(address).is_err(), "it still answers");
        Ok(())
    })?;
    relay.start_again()?;

    let start = Instant::now();
    alice.reach(address, HEAL)?;
    bob.reach(alice.ip("-4")?, HEAL)?;
    println!(
        "healed {:.1} s after the relay listened again",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

#[test]
fn traffic_goes_on_while_control_is_away_and_changes_arrive_after_it() -> Result<()> {
    skip_unless_available!("ping");
    let mut lab = Lab::new()?;
    let (_relay, mut control) = relay_apart(&mut lab)?;
    let [alice, bob] = two_nodes(&mut lab, &control)?;
    let address = bob.ip("-4")?;

    control.kill()?;
    for _ in 0..5 {
        alice.ping(address)?;
    }
    control.start_again()?;
    connected_to_control(&alice)?;

    // A node that joins now appears at the others: their map streams are back.
    let key = control.auth_key(&[])?;
    let carol = Node::start(lab.behind_nat("carol")?)?;
    carol.join(&control.url(), &key)?;
    wait_until(HEAL, "alice sees carol", || alice.peer("carol"))?;
    alice.reach(carol.ip("-4")?, CONNECT)
}

fn two_nodes(lab: &mut Lab, control: &Control) -> Result<[Node; 2]> {
    let key = control.auth_key(&["--reusable"])?;
    let alice = Node::start_relayed(lab.behind_nat("alice")?)?;
    alice.join(&control.url(), &key)?;
    let bob = Node::start_relayed(lab.behind_nat("bob")?)?;
    bob.join(&control.url(), &key)?;
    alice.reach(bob.ip("-4")?, CONNECT)?;
    Ok([alice, bob])
}

/// Pings ten times a second until dropped.
fn traffic(from: &Node, to: &Node) -> Result<Process> {
    let address = to.ip("-4")?.to_string();
    let mut ping = from
        .host()
        .namespace()
        .spawn("traffic", &["ping", "-n", "-i", "0.1", &address])?;
    ping.wait_for_line("bytes from", Duration::from_secs(10))?;
    Ok(ping)
}

fn connected_to_control(node: &Node) -> Result<()> {
    wait_until(HEAL, "the node is back at control", || {
        let status = node.status()?;
        let connected = status
            .pointer("/Tailrace/ControlConnected")
            .and_then(Value::as_bool);
        ensure!(connected == Some(true), "{status}");
        Ok(())
    })
}
