//! An agent that dies, or starts while control is away.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_tests::{CONNECT, HEAL, addresses, connected_pair, relay_apart};
use serde_json::Value;
use testnet::tailnet::{Engine, Node};
use testnet::{Lab, skip_unless_available, wait_until};

/// Within which a peer notices that an agent has started anew.
const AT_ONCE: Duration = Duration::from_secs(6);

#[test]
fn a_killed_agent_comes_back_with_its_address_and_identity() -> Result<()> {
    skip_unless_available!("ping");
    let mut tailnet = connected_pair()?;
    let [alice, bob] = tailnet.nodes.as_mut_slice() else {
        anyhow::bail!("two nodes")
    };
    let before = (addresses(alice)?, identity(alice)?);
    let disco = disco_key(alice)?;

    alice.kill()?;
    alice.start_again()?;

    wait_until(CONNECT, "alice has her address again", || addresses(alice))?;
    ensure!(
        (addresses(alice)?, identity(alice)?) == before,
        "not who she was"
    );
    keeps_disco_with_sessions(alice, &disco)?;
    alice.reach(bob.ip("-4")?, HEAL)?;
    bob.reach(before.0[1], HEAL)?;
    let list = tailnet.control.admin(&["nodes", "list"])?;
    ensure!(
        list.matches("alice").count() == 1,
        "one node, not two:\n{list}"
    );
    Ok(())
}

#[test]
fn an_ended_agent_comes_back_and_the_kernels_tunnel_does_not_go_meanwhile() -> Result<()> {
    skip_unless_available!("ping");
    let mut tailnet = connected_pair()?;
    let [alice, bob] = tailnet.nodes.as_mut_slice() else {
        anyhow::bail!("two nodes")
    };
    let (before, disco) = (addresses(alice)?, disco_key(alice)?);

    alice.terminate()?;
    let links = alice.host().namespace().ip("-o link")?;
    let stays = links.contains("tailrace0");
    ensure!(
        stays == (Engine::under_test() == Engine::Kernel),
        "after SIGTERM:\n{links}"
    );

    alice.start_again()?;
    wait_until(CONNECT, "alice has her address again", || {
        ensure!(addresses(alice)? == before, "another address");
        Ok(())
    })?;
    keeps_disco_with_sessions(alice, &disco)?;
    alice.reach(bob.ip("-4")?, HEAL)?;
    bob.reach(before[0], HEAL)
}

#[test]
fn who_sends_to_a_killed_agent_reaches_it_as_soon_as_it_is_back() -> Result<()> {
    skip_unless_available!("ping");
    let mut tailnet = connected_pair()?;
    let [alice, bob] = tailnet.nodes.as_mut_slice() else {
        anyhow::bail!("two nodes")
    };
    let address = bob.ip("-4")?;
    bob.kill()?;
    bob.start_again()?;
    wait_until(CONNECT, "bob has his address again", || bob.ip("-4"))?;
    // Only alice speaks. WireGuard itself would wait fifteen seconds before it doubts her session.
    alice.reach(address, AT_ONCE)
}

#[test]
fn an_agent_that_starts_while_control_is_down_reaches_its_peers() -> Result<()> {
    skip_unless_available!("ping");
    let mut lab = Lab::new()?;
    let (_relay, mut control) = relay_apart(&mut lab)?;
    let key = control.auth_key(&["--reusable"])?;
    let mut alice = Node::start(lab.behind_nat("alice")?)?;
    alice.join(&control.url(), &key)?;
    let bob = Node::start(lab.behind_nat("bob")?)?;
    bob.join(&control.url(), &key)?;
    let address = bob.ip("-4")?;
    alice.reach(address, CONNECT)?;

    // Changes of the map are written in batches: what a crash may cost is their last seconds.
    wait_until(CONNECT, "alice has written down who bob is", || {
        ensure!(is_written(&alice, &address.to_string())?, "not yet");
        Ok(())
    })?;
    control.kill()?;
    alice.kill()?;
    alice.start_again()?;

    alice.reach(address, CONNECT)?;
    let status = alice.status()?;
    let stale = status
        .pointer("/Tailrace/MapStale")
        .and_then(Value::as_bool);
    ensure!(stale == Some(true), "the map is marked stale: {status}");
    Ok(())
}

/// Checks that a node that was started again has the disco key of `before` if the kernel has its sessions still,
/// and another one if they went with the process: by it peers see which.
fn keeps_disco_with_sessions(node: &Node, before: &str) -> Result<()> {
    let kept = disco_key(node)? == before;
    ensure!(
        kept == (Engine::under_test() == Engine::Kernel),
        "the disco key was kept: {kept}"
    );
    Ok(())
}

/// The node's disco key, as its state has it.
fn disco_key(node: &Node) -> Result<String> {
    let path = node.state_dir().join("identity.json");
    let identity: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let key = identity.get("Disco").and_then(Value::as_str);
    Ok(key.context("no disco key")?.to_owned())
}

/// Whether a file of the node's state holds `text`.
fn is_written(node: &Node, text: &str) -> Result<bool> {
    for entry in std::fs::read_dir(node.state_dir())? {
        let entry = entry?;
        if entry.file_type()?.is_file() && std::fs::read_to_string(entry.path())?.contains(text) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Node key and stable id.
fn identity(node: &Node) -> Result<(String, String)> {
    let status = node.status()?;
    let text = |pointer: &str| {
        let value = status
            .pointer(pointer)
            .and_then(Value::as_str)
            .map(str::to_owned);
        value.with_context(|| format!("no {pointer} in {status}"))
    };
    Ok((text("/Self/PublicKey")?, text("/Self/ID")?))
}
