//! What an idle agent costs.

use anyhow::{Result, ensure};
use netns_tests::CONNECT;
use testnet::skip_unless_available;
use testnet::tailnet::Tailnet;

/// The promise, in bytes.
const LIMIT: u64 = 30_000_000;

#[test]
fn an_idle_agent_with_three_peers_stays_below_30_megabytes() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = Tailnet::new(&["alice", "bob", "carol", "dave"])?;
    let [alice, others @ ..] = tailnet.nodes.as_slice() else {
        anyhow::bail!("no nodes")
    };
    for other in others {
        alice.reach(other.ip("-4")?, CONNECT)?;
    }
    for node in &tailnet.nodes {
        let resident = node.process().resident_bytes()?;
        println!(
            "idle agent with 3 peers: {:.1} MB resident",
            resident as f64 / 1e6
        );
        ensure!(resident < LIMIT, "{resident} bytes resident");
    }
    Ok(())
}
