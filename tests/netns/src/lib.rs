//! Tests with real daemons in network namespaces: what they share.
//!
//! Each test makes its own lab (see `testnet`), so tests run side by side. The agent runs on the
//! embedded WireGuard, or on the kernel's where `TAILRACE_WIREGUARD=kernel` says so (in the VM).
#![forbid(unsafe_code)]

mod echo;
mod gateway;
mod monitoring;
mod snapshot;
mod stream;
mod transfer;

use std::net::IpAddr;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testnet::Lab;
use testnet::tailnet::{Control, ControlOptions, Node, Relay, Tailnet};

pub use echo::{Echo, Flow};
pub use gateway::{GATEWAY_POLICY, Gateway, set_policy};
pub use monitoring::{Datagrams, Query, alert_names, alerts_at_once, families, queries};
pub use snapshot::KernelState;
pub use stream::{Delivery, End, both_ways};
pub use transfer::transfer;

/// Time within which two joined nodes reach each other.
pub const CONNECT: Duration = Duration::from_secs(20);
/// Time within which a tailnet heals once the killed server listens again (issue's promise).
pub const HEAL: Duration = Duration::from_secs(15);

/// Both addresses of a node.
///
/// # Errors
///
/// When it has not joined.
pub fn addresses(node: &Node) -> Result<[IpAddr; 2]> {
    Ok([node.ip("-4")?, node.ip("-6")?])
}

/// Two joined nodes that reach each other.
///
/// # Errors
///
/// When they do not.
pub fn connected_pair() -> Result<Tailnet> {
    connected(Tailnet::new(&["alice", "bob"])?)
}

/// Two joined nodes that reach each other through the relay, and never straight.
///
/// # Errors
///
/// When they do not.
pub fn relayed_pair() -> Result<Tailnet> {
    connected(Tailnet::relayed(&["alice", "bob"])?)
}

fn connected(tailnet: Tailnet) -> Result<Tailnet> {
    let [alice, bob] = pair(&tailnet.nodes)?;
    alice.reach(bob.ip("-4")?, CONNECT)?;
    Ok(tailnet)
}

/// A relay, and a control server that names it: either may go without the other.
///
/// # Errors
///
/// When one does not start.
pub fn relay_apart(lab: &mut Lab) -> Result<(Relay, Control)> {
    let relay = Relay::start(lab.server("relay")?)?;
    let options = ControlOptions {
        derp_map: Some(relay.derp_map()?),
        ..ControlOptions::default()
    };
    let control = Control::start(lab.server("control")?, options)?;
    Ok((relay, control))
}

/// The first two nodes.
///
/// # Errors
///
/// When there are fewer.
pub fn pair(nodes: &[Node]) -> Result<[&Node; 2]> {
    match nodes {
        [alice, bob, ..] => Ok([alice, bob]),
        _ => anyhow::bail!("not two nodes"),
    }
}

/// The endpoint by which `node` reaches the peer of that name straight.
///
/// # Errors
///
/// When it does not.
pub fn direct(node: &Node, peer: &str) -> Result<String> {
    let peer = node.peer(peer)?;
    let endpoint = peer.text("CurAddr")?;
    ensure!(!endpoint.is_empty(), "relayed: {peer:?}");
    Ok(endpoint.to_owned())
}

/// Checks that a command failed as a command should: non-zero, one line on standard error that
/// holds each of `words` (in any case), no panic.
///
/// # Errors
///
/// When it did not; the message holds all that it printed.
pub fn refused(output: &Output, words: &[&str]) -> Result<()> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout);
    let context = || format!("stdout: {stdout}\nstderr: {stderr}");
    ensure!(!output.status.success(), "it succeeded\n{}", context());
    ensure!(
        output.status.code().is_some(),
        "it died of a signal\n{}",
        context()
    );
    ensure!(
        stderr.trim().lines().count() == 1,
        "not one line\n{}",
        context()
    );
    names(&stderr, words).with_context(context)
}

/// Checks that `text` holds each of `words`, in any case.
///
/// # Errors
///
/// Names the missing word.
pub fn names(text: &str, words: &[&str]) -> Result<()> {
    let text = text.to_lowercase();
    for word in words {
        ensure!(text.contains(&word.to_lowercase()), "does not say {word:?}");
    }
    Ok(())
}
