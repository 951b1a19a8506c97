//! Direct paths: from the relay to a peer's own address, and back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::{CONNECT, pair};
use testnet::tailnet::{Node, Tailnet};
use testnet::{skip_unless_available, wait_until};

/// Has a router let no UDP through.
const BLOCK: &str = "table inet block {
    chain forward { type filter hook forward priority -10; policy accept
        meta l4proto udp drop
    }
}
";

/// The endpoint by which `node` reaches the peer straight.
fn direct(node: &Node, peer: &str) -> Result<String> {
    let peer = node.peer(peer)?;
    let endpoint = peer.text("CurAddr")?;
    ensure!(!endpoint.is_empty(), "relayed: {peer:?}");
    Ok(endpoint.to_owned())
}

#[test]
fn nodes_behind_nat_find_a_direct_path_and_lose_nothing_on_the_way_to_it() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = Tailnet::new(&["alice", "bob"])?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    wait_until(CONNECT, "both know each other's relay", || {
        for (node, peer) in [(alice, "bob"), (bob, "alice")] {
            ensure!(!node.peer(peer)?.text("Relay")?.is_empty(), "{peer}");
        }
        Ok(())
    })?;
    let address = bob.ip("-4")?.to_string();
    let begin = Instant::now();
    let pings = ["ping", "-n", "-c", "150", "-i", "0.02", &address];
    let said = alice.host().namespace().exec(&pings)?;
    ensure!(said.contains("150 received"), "{said}");
    println!("150 pings took {:?}\n{said}", begin.elapsed());
    for (node, peer) in [(alice, "bob"), (bob, "alice")] {
        let endpoint = wait_until(CONNECT, "the path is direct", || direct(node, peer))
            .with_context(|| node.process().log().join("\n"))?;
        println!("{peer} is reached at {endpoint}");
    }
    let said = alice.cli(&["ping", "--until-direct", "-c", "3", &address])?;
    ensure!(said.contains(" via 203.0.113."), "{said}");
    Ok(())
}

#[test]
fn blocked_udp_brings_the_relay_back_within_three_seconds() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = Tailnet::new(&["alice", "bob"])?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    let address = bob.ip("-4")?;
    alice.reach(address, CONNECT)?;
    wait_until(CONNECT, "the path is direct", || {
        alice.ping(address)?;
        direct(alice, "bob")
    })?;
    let router = alice.host().nat().context("no router")?.namespace();
    router.nft(BLOCK)?;
    let address = address.to_string();
    // Ten a second for eight seconds, each answered or not.
    let pings = [
        "ping", "-n", "-O", "-c", "80", "-i", "0.1", "-W", "1", &address,
    ];
    let output = alice
        .host()
        .namespace()
        .command("ping")
        .args(&pings[1..])
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let lost = said
        .lines()
        .filter(|line| line.starts_with("no answer"))
        .count();
    println!("{lost} pings without an answer in time");
    ensure!(lost <= 30, "{said}");
    ensure!(
        said.trim_end()
            .lines()
            .any(|line| line.contains("icmp_seq=80")),
        "{said}"
    );
    ensure!(direct(alice, "bob").is_err(), "the path is still direct");

    router.exec(&["nft", "delete", "table", "inet", "block"])?;
    wait_until(Duration::from_secs(30), "the path is direct again", || {
        alice.ping(bob.ip("-4")?)?;
        direct(alice, "bob")
    })?;
    Ok(())
}
