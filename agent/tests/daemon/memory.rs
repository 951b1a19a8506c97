//! What the daemon keeps of the memory that starting takes.

use anyhow::{Result, ensure};
use testnet::Lab;

use super::node::Node;
use super::server::{Options, Server};

/// The promise for an idle agent, in bytes.
const LIMIT: u64 = 30_000_000;
/// Growth over five rounds that is noise, in bytes; a second copy of the kernel's types is ten times that.
const NOISE: u64 = 3_000_000;

#[test]
fn down_and_up_five_times_does_not_grow() -> Result<()> {
    testnet::skip_unless_available!();
    let mut lab = Lab::new()?;
    let host = lab.server("memory")?;
    let server = Server::start(&host, Options::default())?;
    let node = Node::start(&host)?;
    node.cli(&format!("up --login-server {}", server.url()))?;
    let first = node.process().resident_bytes()?;
    let mut last = first;
    for round in 1..=5 {
        node.cli("down")?;
        node.cli("up")?;
        last = node.process().resident_bytes()?;
        println!("round {round}: {:.1} MB resident", last as f64 / 1e6);
    }
    ensure!(
        last < first + NOISE,
        "{first} bytes at first, {last} at last"
    );
    ensure!(last < LIMIT, "{last} bytes resident");
    Ok(())
}
