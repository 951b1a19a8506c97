//! Two nodes behind NAT, all traffic through the relay.
//!
//! ```text
//! alice ── NAT ──┬── NAT ── bob
//!             control (with relay)
//! ```

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_tests::{CONNECT, addresses, pair, relayed_pair, transfer};
use serde_json::Value;
use testnet::skip_unless_available;
use testnet::tailnet::{Engine, Node, Tailnet};
use testnet::wait_until;

#[test]
fn nodes_behind_nat_ping_each_other_both_ways_over_both_families() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = Tailnet::relayed(&["alice", "bob"])?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    for address in addresses(bob)? {
        alice.reach(address, CONNECT)?;
    }
    for address in addresses(alice)? {
        bob.reach(address, CONNECT)?;
    }
    Ok(())
}

#[test]
fn bulk_tcp_arrives_whole_both_ways_over_both_families() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = relayed_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    let (a, b) = (alice.host().namespace(), bob.host().namespace());
    for address in addresses(bob)? {
        transfer(a, b, address, 8 << 20).context("alice to bob")?;
    }
    for address in addresses(alice)? {
        transfer(b, a, address, 8 << 20).context("bob to alice")?;
    }
    Ok(())
}

#[test]
fn status_shows_peers_under_upstreams_names() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = relayed_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;

    let status = alice.status()?;
    let text = |pointer: &str| status.pointer(pointer).and_then(Value::as_str);
    ensure!(text("/BackendState") == Some("Running"), "{status}");
    ensure!(text("/Self/HostName") == Some("alice"), "{status}");
    let own = status
        .pointer("/Self/TailscaleIPs")
        .and_then(Value::as_array);
    ensure!(own.is_some_and(|own| own.len() == 2), "{status}");
    ensure!(
        text("/Tailrace/Engine") == Some(Engine::under_test().word()),
        "{status}"
    );

    // Which relay bob calls home, and that it is there, become known a moment after it joined, each in
    // a frame of its own.
    let peer = wait_until(
        CONNECT,
        "bob's relay is known, and that it is online",
        || {
            let peer = alice.peer("bob")?;
            ensure!(!peer.text("Relay")?.is_empty(), "{peer:?}");
            ensure!(peer.flag("Online")?, "{peer:?}");
            Ok(peer)
        },
    )?;
    ensure!(
        peer.text("CurAddr")?.is_empty(),
        "not by the relay: {peer:?}"
    );
    ensure!(
        peer.ip(false)? == bob.ip("-4")? && peer.ip(true)? == bob.ip("-6")?,
        "{peer:?}"
    );

    // For people: names and addresses of both.
    let table = alice.cli(&["status"])?;
    ensure!(
        table.contains("bob") && table.contains(&bob.ip("-4")?.to_string()),
        "{table}"
    );
    Ok(())
}

#[test]
fn counters_of_the_peer_grow_in_status_and_metrics() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = relayed_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    let len = 1 << 20;
    let before = alice.peer("bob")?;
    let scraped_before = bytes_metric(alice)?;

    let (a, b) = (alice.host().namespace(), bob.host().namespace());
    transfer(a, b, bob.ip("-4")?, len)?;

    wait_until(Duration::from_secs(10), "the counters have grown", || {
        let after = alice.peer("bob")?;
        let sent = after.number("TxBytes")? - before.number("TxBytes")?;
        ensure!(
            sent >= len as u64,
            "TxBytes grew by {sent} for {len} bytes of payload"
        );
        ensure!(
            after.number("RxBytes")? > before.number("RxBytes")?,
            "acknowledgements count"
        );
        let scraped = bytes_metric(alice)? - scraped_before;
        ensure!(scraped >= len as f64, "the metric grew by {scraped}");
        Ok(())
    })
}

#[test]
fn ebpf_counts_packets_and_bytes_per_peer() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = relayed_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    let address = bob.ip("-4")?.to_string();

    let status = alice.status()?;
    let counters = status.pointer("/Tailrace/Filter").and_then(Value::as_str);
    ensure!(
        counters == Some("ebpf"),
        "the programs are not attached: {status}"
    );
    let before = Overlay::of(alice)?;
    alice
        .host()
        .namespace()
        .exec(&["ping", "-n", "-c", "20", "-i", "0.05", &address])?;
    // A ping of the default size is an IP packet of 84 bytes.
    wait_until(Duration::from_secs(10), "the programs have counted", || {
        let after = Overlay::of(alice)?;
        ensure!(
            after.packets >= before.packets + 20 && after.bytes >= before.bytes + 20 * 84,
            "before {before:?}, after {after:?}"
        );
        ensure!(
            metric(alice, "tailrace_peer_packets_total")? >= after.packets as f64
                && metric(alice, "tailrace_peer_overlay_bytes_total")? >= after.bytes as f64,
            "the metrics lag behind {after:?}"
        );
        Ok(())
    })
}

#[test]
fn tailrace_ping_names_the_relay() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = relayed_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    let by_name = alice.cli(&["ping", "-c", "1", "bob"])?;
    ensure!(by_name.to_lowercase().contains("derp"), "{by_name}");
    let icmp = alice.cli(&["ping", "-c", "1", "--icmp", &bob.ip("-6")?.to_string()])?;
    ensure!(!icmp.trim().is_empty(), "an answer is shown");
    Ok(())
}

/// `tailrace_peer_bytes_total` of peer bob, sent.
fn bytes_metric(node: &Node) -> Result<f64> {
    metric(node, "tailrace_peer_bytes_total")
}

/// What the programs counted toward bob, as `tailrace status --json` shows it.
#[derive(Debug)]
struct Overlay {
    packets: u64,
    bytes: u64,
}

impl Overlay {
    fn of(node: &Node) -> Result<Overlay> {
        let bob = node.peer("bob")?;
        Ok(Overlay {
            packets: bob.number("/Tailrace/OverlayTxPackets")?,
            bytes: bob.number("/Tailrace/OverlayTxBytes")?,
        })
    }
}

fn metric(node: &Node, name: &str) -> Result<f64> {
    let text = node.metrics()?;
    let line = text.lines().find(|line| {
        line.starts_with(name) && line.contains("bob") && line.contains("direction=\"tx\"")
    });
    let value = line.and_then(|line| line.rsplit(' ').next());
    let value = value.with_context(|| format!("no {name} of bob in:\n{text}"))?;
    Ok(value.parse()?)
}
