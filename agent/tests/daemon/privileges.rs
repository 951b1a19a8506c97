//! Which privileges the daemon has left.

use std::fs;

use anyhow::{Context, Result, ensure};
use testnet::Lab;

use super::node::Node;
use super::server::{Options, Server};

/// CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON, CAP_BPF (capabilities(7)).
const KEPT: u64 = 1 << 12 | 1 << 13 | 1 << 38 | 1 << 39;
const NET_BIND_SERVICE: u64 = 1 << 10;

#[test]
fn every_thread_keeps_four_capabilities_and_works_with_them() -> Result<()> {
    testnet::skip_unless_available!("ping");
    let mut lab = Lab::new()?;
    let host = lab.server("caps")?;
    let server = Server::start(&host, Options::default())?;
    let mut node = Node::start(&host)?;
    node.cli(&format!("up --login-server {}", server.url()))?;
    ensure!(node.has_device()?);
    check(&node, KEPT)?;
    // What it wrote, it can read and replace.
    node.restart()?;
    node.wait_state("Running")?;
    node.cli("down")?;
    ensure!(!node.has_device()?);
    check(&node, KEPT)
}

#[test]
fn a_port_below_1024_works_and_costs_one_more() -> Result<()> {
    testnet::skip_unless_available!();
    let mut lab = Lab::new()?;
    let host = lab.server("low")?;
    let server = Server::start(&host, Options::default())?;
    let node = Node::start_as(&host, "tailrace0", 443, Vec::new())?;
    node.cli(&format!("up --login-server {}", server.url()))?;
    ensure!(node.has_device()?);
    check(&node, KEPT | NET_BIND_SERVICE)
}

fn check(node: &Node<'_>, kept: u64) -> Result<()> {
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{}/task", node.process().pid()))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            let found = status
                .lines()
                .find_map(|line| line.strip_prefix(set)?.strip_prefix(':'))
                .with_context(|| format!("no {set}"))?;
            let found = u64::from_str_radix(found.trim(), 16)?;
            ensure!(found & !kept == 0, "{set} {found:x}\n{status}");
        }
        threads += 1;
    }
    ensure!(threads > 1, "one thread only");
    Ok(())
}
