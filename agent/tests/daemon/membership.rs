//! Devices that an administrator has to approve, and keys that expire.

use anyhow::{Context, Result, ensure};
use testnet::{Lab, wait_until};

use super::node::{Node, PATIENCE};
use super::server::{Options, Server};

#[test]
fn a_device_waits_for_its_approval_and_then_comes_up() -> Result<()> {
    testnet::skip_unless_available!();
    let mut lab = Lab::new()?;
    let host = lab.server("approval")?;
    let server = Server::start(&host, Options::default())?;
    server.change(|tailnet| tailnet.unapproved = true);
    let node = Node::start(&host)?;
    // Waiting for a person is not part of the time limit.
    let words = format!("up --timeout 2s --login-server {}", server.url());

    std::thread::scope(|scope| -> Result<()> {
        let up = scope.spawn(|| node.cli(&words));
        node.wait_state("NeedsMachineAuth")?;
        ensure!(!node.has_device()?);
        let text = String::from_utf8(node.try_cli("status")?.stdout)?;
        ensure!(text.contains("administrator"), "{text}");
        server.change(|tailnet| tailnet.unapproved = false);
        up.join().ok().context("up panicked")??;
        Ok(())
    })?;
    node.wait_state("Running")?;
    ensure!(node.has_device()?);

    server.change(|tailnet| tailnet.unapproved = true);
    node.wait_state("NeedsMachineAuth")?;
    wait_until(PATIENCE, "the device is gone", || {
        ensure!(!node.has_device()?);
        Ok(())
    })
}

#[test]
fn an_expired_key_takes_the_overlay_down_and_up_renews_it() -> Result<()> {
    testnet::skip_unless_available!();
    let mut lab = Lab::new()?;
    let host = lab.server("expiry")?;
    let server = Server::start(&host, Options::default())?;
    let node = Node::start(&host)?;
    node.cli(&format!("up --login-server {}", server.url()))?;
    let address = node.cli("ip -4")?;
    let old = server.first_key().context("no node")?;

    server.change(|tailnet| {
        tailnet.expired.insert(old);
    });
    let status = node.wait_state("NeedsLogin")?;
    ensure!(status["Health"].to_string().contains("expired"), "{status}");
    wait_until(PATIENCE, "the device is gone", || {
        ensure!(!node.has_device()?);
        Ok(())
    })?;
    let text = String::from_utf8(node.try_cli("status")?.stdout)?;
    ensure!(text.starts_with("The node key expired"), "{text}");

    node.cli("up")?;
    ensure!(node.has_device()?);
    ensure!(server.first_key() != Some(old), "the key is the old one");
    ensure!(node.cli("ip -4")? == address, "the address changed");
    Ok(())
}

#[test]
fn the_time_limit_counts_every_step_that_is_not_a_persons() -> Result<()> {
    testnet::skip_unless_available!();
    let mut lab = Lab::new()?;
    let host = lab.server("limit")?;
    let _silent = host
        .namespace()
        .enter(|| std::net::TcpListener::bind((host.address(), 8080)))??;
    let node = Node::start(&host)?;
    let start = std::time::Instant::now();

    let line = node.refused(&format!(
        "up --timeout 2s --login-server http://{}:8080",
        host.address()
    ))?;

    ensure!(
        start.elapsed() < std::time::Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
    ensure!(line.contains("2s"), "{line}");
    Ok(())
}
