//! Nothing is left behind, whatever became of the daemon before, and a logout says why it failed.

use anyhow::{Result, ensure};
use testnet::{Lab, wait_until};

use super::node::{Node, PATIENCE};
use super::server::{Options, Server};

/// A routing rule of the overlay, as `ip rule` shows it.
const RULE: &str = "5270:";

#[test]
fn down_removes_what_a_killed_daemon_left_although_nothing_is_known_of_it() -> Result<()> {
    testnet::skip_unless_available!();
    let mut lab = Lab::new()?;
    let host = lab.server("orphan")?;
    let mut server = Server::start(&host, Options::default())?;
    let mut node = Node::start(&host)?;
    node.cli(&format!("up --login-server {}", server.url()))?;

    node.kill()?;
    server.stop();
    std::fs::remove_file(node.state_dir().join("state/netmap.json"))?;
    node.start_again()?;
    ensure!(host.namespace().ip("rule")?.contains(RULE));
    node.cli("down")?;

    ensure!(!host.namespace().ip("rule")?.contains(RULE));
    ensure!(!node.has_device()?);
    Ok(())
}

#[test]
fn a_daemon_killed_on_its_way_down_goes_down_when_it_starts() -> Result<()> {
    testnet::skip_unless_available!();
    let mut lab = Lab::new()?;
    let host = lab.server("halfway")?;
    let server = Server::start(&host, Options::default())?;
    let mut node = Node::start(&host)?;
    node.cli(&format!("up --login-server {}", server.url()))?;

    node.kill()?;
    ensure!(host.namespace().ip("rule")?.contains(RULE));
    let prefs = node.state_dir().join("state/prefs.json");
    let text = std::fs::read_to_string(&prefs)?;
    let stopped = text.replace(r#""WantRunning":true"#, r#""WantRunning":false"#);
    ensure!(stopped != text, "{text}");
    std::fs::write(&prefs, stopped)?;
    node.start_again()?;

    wait_until(PATIENCE, "nothing is left", || {
        ensure!(!host.namespace().ip("rule")?.contains(RULE));
        ensure!(!node.has_device()?);
        Ok(())
    })
}

#[test]
fn a_logout_that_cannot_reach_the_server_says_so_up_or_down() -> Result<()> {
    testnet::skip_unless_available!();
    let mut lab = Lab::new()?;
    let host = lab.server("unheard")?;
    let mut server = Server::start(&host, Options::default())?;
    let node = Node::start(&host)?;
    node.cli(&format!("up --login-server {}", server.url()))?;
    server.stop();

    let line = node.refused("logout")?;
    ensure!(line.contains("cannot reach"), "{line}");
    node.cli("down")?;
    let line = node.refused("logout")?;
    ensure!(line.contains("cannot reach"), "{line}");

    server.start_again()?;
    node.cli("logout")?;
    node.wait_state("NeedsLogin")?;
    Ok(())
}
