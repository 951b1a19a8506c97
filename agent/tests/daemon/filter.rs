//! The packet filter as the network map says it: in force, told, and kept when the server is away.

use anyhow::{Result, ensure};
use serde_json::Value;
use testnet::{Lab, wait_until};

use super::node::{Node, PATIENCE};
use super::server::{Options, Server};

/// Waits until status says so many rules.
fn wait_rules(node: &Node<'_>, rules: u64) -> Result<Value> {
    wait_until(PATIENCE, &format!("{rules} rules are in force"), || {
        let status = node.status()?;
        let ours = &status["Tailrace"];
        ensure!(ours["FilterRules"] == rules, "{ours}");
        ensure!(
            ours["Filter"] == "ebpf" || ours["Filter"] == "userspace",
            "{ours}"
        );
        Ok(status)
    })
}

#[test]
fn a_filter_that_changes_is_in_force_at_once_and_the_overlay_stays_up() -> Result<()> {
    testnet::skip_unless_available!();
    let mut lab = Lab::new()?;
    let host = lab.server("live")?;
    let server = Server::start(&host, Options::default())?;
    let node = Node::start(&host)?;
    node.cli(&format!("up --login-server {}", server.url()))?;
    wait_rules(&node, 1)?;

    // No rules at all deny everything.
    server.change(|tailnet| tailnet.filter.clear());
    let status = wait_rules(&node, 0)?;
    ensure!(status["BackendState"] == "Running", "{status}");
    ensure!(node.has_device()?);
    server.set_open(false);
    wait_rules(&node, 1)?;
    let shown = node.cli("status")?;
    ensure!(shown.contains("1 rules"), "{shown}");
    Ok(())
}

#[test]
fn an_entry_that_cannot_be_read_is_told_and_the_rest_is_in_force() -> Result<()> {
    testnet::skip_unless_available!();
    let mut lab = Lab::new()?;
    let host = lab.server("broken")?;
    let server = Server::start(&host, Options::default())?;
    server.change(|tailnet| tailnet.filter[0].src_ips.push("elsewhere".to_owned()));
    let node = Node::start(&host)?;
    node.cli(&format!("up --login-server {}", server.url()))?;
    let status = wait_rules(&node, 1)?;
    ensure!(
        status["Health"].to_string().contains("`elsewhere`"),
        "{status}"
    );
    Ok(())
}

#[test]
fn a_cached_filter_counts_while_the_server_is_away() -> Result<()> {
    testnet::skip_unless_available!();
    let mut lab = Lab::new()?;
    let host = lab.server("cached")?;
    let mut server = Server::start(&host, Options::default())?;
    let mut node = Node::start(&host)?;
    node.cli(&format!("up --login-server {}", server.url()))?;
    server.change(|tailnet| tailnet.filter.clear());
    wait_rules(&node, 0)?;
    wait_until(PATIENCE, "the map is stored", || {
        let text = std::fs::read_to_string(node.state_dir().join("state/netmap.json"))?;
        let stored: Value = serde_json::from_str(&text)?;
        let filters = stored.to_string();
        ensure!(!filters.contains("SrcIPs"), "not yet");
        Ok(())
    })?;

    server.stop();
    node.restart()?;
    wait_rules(&node, 0)?;

    // What the server says once it is back counts more than what it said.
    server.set_open(true);
    server.start_again()?;
    wait_rules(&node, 1)?;
    Ok(())
}
