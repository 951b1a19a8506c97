//! Nothing enforces a packet filter yet: one that is not allow-all keeps the overlay down.

use anyhow::{Result, ensure};
use testnet::{Lab, wait_until};

use super::node::{Node, PATIENCE};
use super::server::{Options, Server};

#[test]
fn a_filter_that_cannot_be_enforced_is_refused_until_the_risk_is_accepted() -> Result<()> {
    testnet::skip_unless_available!();
    let mut lab = Lab::new()?;
    let host = lab.server("filter")?;
    let server = Server::start(&host, Options::default())?;
    server.set_open(false);
    let mut node = Node::start(&host)?;

    let line = node.refused(&format!("up --login-server {}", server.url()))?;
    ensure!(line.contains("--accept-risk=no-filter"), "{line}");
    ensure!(!node.has_device()?);
    let status = node.wait_state("Stopped")?;
    ensure!(
        status["Health"].to_string().contains("no-filter"),
        "{status}"
    );
    let shown = node.try_cli("status")?;
    let text = String::from_utf8(shown.stdout)?;
    ensure!(!shown.status.success(), "{text}");
    ensure!(
        text.starts_with("Down: the tailnet's packet filter cannot be enforced"),
        "{text}"
    );

    // Once more, and after a restart.
    node.refused("up")?;
    node.restart()?;
    node.wait_state("Stopped")?;
    ensure!(!node.has_device()?);

    node.cli("up --accept-risk=no-filter")?;
    ensure!(node.has_device()?);
    let status = node.wait_state("Running")?;
    ensure!(
        status["Health"].to_string().contains("not enforced"),
        "{status}"
    );

    // It is stored with the preferences, and can be taken back.
    node.restart()?;
    node.wait_state("Running")?;
    node.cli("set --accept-risk=")?;
    node.wait_state("Stopped")?;
    ensure!(!node.has_device()?);
    Ok(())
}

#[test]
fn a_filter_that_changes_takes_the_running_overlay_down_and_brings_it_back() -> Result<()> {
    testnet::skip_unless_available!();
    let mut lab = Lab::new()?;
    let host = lab.server("live")?;
    let server = Server::start(&host, Options::default())?;
    let node = Node::start(&host)?;
    node.cli(&format!("up --login-server {}", server.url()))?;
    ensure!(node.has_device()?);

    server.set_open(false);
    let status = node.wait_state("Stopped")?;
    ensure!(
        status["Health"].to_string().contains("no-filter"),
        "{status}"
    );
    wait_until(PATIENCE, "the device is gone", || {
        ensure!(!node.has_device()?);
        Ok(())
    })?;

    server.set_open(true);
    let status = node.wait_state("Running")?;
    ensure!(
        status["Health"].as_array().is_none_or(Vec::is_empty),
        "{status}"
    );
    ensure!(node.has_device()?);

    // No rules at all deny everything.
    server.change(|tailnet| tailnet.filter.clear());
    node.wait_state("Stopped")?;
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
    server.set_open(false);
    node.wait_state("Stopped")?;
    wait_until(PATIENCE, "the map is stored", || {
        let text = std::fs::read_to_string(node.state_dir().join("state/netmap.json"))?;
        ensure!(text.contains("22"), "not yet");
        Ok(())
    })?;

    server.stop();
    node.restart()?;
    let status = node.wait_state("Stopped")?;
    ensure!(
        status["Health"].to_string().contains("no-filter"),
        "{status}"
    );
    ensure!(!node.has_device()?);
    let line = node.refused("up --timeout 10s")?;
    ensure!(line.contains("--accept-risk=no-filter"), "{line}");

    // What the server says once it is back counts more than what it said.
    server.set_open(true);
    server.start_again()?;
    node.wait_state("Running")?;
    ensure!(node.has_device()?);
    Ok(())
}
