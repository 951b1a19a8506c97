//! Several agents on one host.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testnet::{Folder, Lab, wait_until};

use super::node::{Node, PATIENCE};
use super::server::{Options, Server};

#[test]
fn two_agents_share_a_host_and_one_leaves_without_the_other_noticing() -> Result<()> {
    testnet::skip_unless_available!("ping");
    let mut lab = Lab::new()?;
    let elsewhere = lab.server("elsewhere")?;
    let shared = lab.behind_nat("shared")?;
    let folder = Folder::new("relay")?;
    let options = Options {
        relay: Some(folder.path().to_owned()),
        ..Options::default()
    };
    let server = Server::start(&elsewhere, options)?;
    let up = format!("up --login-server {}", server.url());
    let far = Node::start(&elsewhere)?;
    far.cli(&up)?;
    let first = Node::start(&shared)?;
    first.cli(&up)?;
    let second = Node::start_as(&shared, "other0", 41642, Vec::new())?;
    second.cli(&up)?;

    let target = far.cli("ip -4")?;
    let target = target.trim();
    let reaches = |device: &str| {
        let words = ["ping", "-n", "-c", "1", "-W", "1", "-I", device, target];
        wait_until(
            PATIENCE,
            &format!("{target} answers through {device}"),
            || shared.namespace().exec(&words),
        )
    };
    reaches("tailrace0")?;
    reaches("other0")?;
    let rules = shared.namespace().ip("rule")?;

    first.cli("down")?;

    ensure!(!first.has_device()? && second.has_device()?);
    ensure!(shared.namespace().ip("rule")? == rules, "the rules changed");
    let words = ["ping", "-n", "-c", "2", "-W", "1", target];
    shared.namespace().exec(&words)?;
    second.cli(&format!("ping -c 1 {target}"))?;

    second.cli("down")?;
    let left = shared.namespace().ip("rule")?;
    ensure!(!left.contains("5270"), "{left}");
    Ok(())
}

#[test]
fn a_ping_that_waits_for_its_answer_does_not_hold_up_down() -> Result<()> {
    testnet::skip_unless_available!();
    let mut lab = Lab::new()?;
    let host = lab.server("silence")?;
    let folder = Folder::new("relay")?;
    let options = Options {
        relay: Some(folder.path().to_owned()),
        ..Options::default()
    };
    let server = Server::start(&host, options)?;
    let up = format!("up --login-server {}", server.url());
    let node = Node::start(&host)?;
    node.cli(&up)?;
    let silent = Node::start_as(&host, "silent0", 41642, Vec::new())?;
    silent.cli(&up)?;
    let target = silent.cli("ip -4")?;
    drop(silent);

    let mut ping = node.spawn_cli(&format!("ping -c 2 {target}"))?;
    // The second ping is under way as soon as the first is given up.
    ping.wait_for_line("no answer", PATIENCE)?;
    let start = Instant::now();
    node.cli("down")?;
    ensure!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    Ok(())
}
