//! Ways into the tailnet, and out of it again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_tests::{CONNECT, addresses, pair};
use serde_json::Value;
use testnet::tailnet::{Control, ControlOptions, Node, Tailnet};
use testnet::{Lab, Process, skip_unless_available, wait_until};

#[test]
fn an_administrator_approves_an_interactive_login() -> Result<()> {
    skip_unless_available!("ping");
    let mut lab = Lab::new()?;
    let control = Control::start(lab.server("control")?, ControlOptions::default())?;
    let node = Node::start(lab.behind_nat("alice")?)?;

    let mut command = node.command()?;
    command.args(["up", "--login-server", &control.url()]);
    let mut up = Process::spawn("tailrace up", command)?;
    let line = up.wait_for_line(&control.url(), CONNECT)?;
    let url = line
        .split_whitespace()
        .find(|word| word.starts_with("http"))
        .context("no URL")?;
    let path = url.strip_prefix(&control.url()).context("a foreign URL")?;
    let code = path.rsplit('/').next().context("no code")?;

    // The page tells the person what the administrator needs.
    let (status, page) = node.host().namespace().http_get(control.address(), path)?;
    ensure!(status == 200 && page.contains(code), "{status}: {page}");
    ensure!(up.ended()?.is_none(), "it waits for the approval");

    control.approve(code)?;
    ensure!(up.wait(CONNECT)?.success(), "{:?}", up.log());
    addresses(&node)?;
    Ok(())
}

#[test]
fn an_expired_node_comes_back_with_a_new_login_and_its_old_address() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = netns_tests::connected_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    let before = addresses(alice)?;

    tailnet.control.admin(&["nodes", "expire", "alice"])?;
    wait_until(CONNECT, "alice knows that her key expired", || {
        let status = alice.status()?;
        let state = status.get("BackendState").and_then(Value::as_str);
        ensure!(state == Some("NeedsLogin"), "{state:?}");
        Ok(())
    })?;

    let key = tailnet.control.auth_key(&[])?;
    alice.join(&tailnet.control.url(), &key)?;
    ensure!(
        addresses(alice)? == before,
        "{:?} after {before:?}",
        addresses(alice)?
    );
    alice.reach(bob.ip("-4")?, CONNECT)
}

#[test]
fn administrators_see_rename_and_delete_nodes() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = netns_tests::connected_pair()?;
    let [alice, _bob] = pair(&tailnet.nodes)?;
    let control = &tailnet.control;

    let list = control.admin(&["nodes", "list"])?;
    ensure!(list.contains("alice") && list.contains("bob"), "{list}");

    control.admin(&["nodes", "rename", "bob", "robert"])?;
    wait_until(CONNECT, "alice sees the new name", || {
        let status = alice.status()?.to_string();
        ensure!(status.contains("robert."), "{status}");
        Ok(())
    })?;

    control.admin(&["nodes", "delete", "robert"])?;
    wait_until(CONNECT, "alice has no peer", || {
        let status = alice.status()?;
        let peers = status
            .get("Peer")
            .and_then(Value::as_object)
            .map_or(0, serde_json::Map::len);
        ensure!(peers == 0, "{status}");
        Ok(())
    })
}

#[test]
fn an_ephemeral_node_goes_when_it_logs_out() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = Tailnet::new(&["alice"])?;
    let Tailnet {
        nodes,
        control,
        mut lab,
    } = tailnet;
    let alice = nodes.first().context("alice")?;
    let key = control.auth_key(&["--ephemeral"])?;
    let guest = Node::start(lab.behind_nat("guest")?)?;
    guest.join(&control.url(), &key)?;
    wait_until(CONNECT, "alice sees the guest", || alice.peer("guest"))?;
    guest.cli(&["logout"])?;
    wait_until(Duration::from_secs(20), "the guest is gone", || {
        let list = control.admin(&["nodes", "list"])?;
        ensure!(!list.contains("guest"), "{list}");
        Ok(())
    })?;
    drop(guest);
    drop(nodes);
    Ok(())
}
