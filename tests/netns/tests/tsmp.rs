//! What agents say to each other inside the tunnel.

use anyhow::{Context, Result, ensure};
use netns_tests::{addresses, connected_pair, pair};
use testnet::Namespace;
use testnet::skip_unless_available;

/// Counts what a host sends into the tunnel as an answer to a protocol that it does not know.
const UNKNOWN_PROTOCOL: &str = "table inet probe { chain c {
    type filter hook output priority raw;
    icmp type destination-unreachable icmp code 2 counter comment \"unknown\";
    icmpv6 type parameter-problem counter comment \"unknown\";
}; }";

/// How many packets a host's rules have counted.
fn counted(node: &Namespace) -> Result<u64> {
    let listed = node.exec(&["nft", "list", "table", "inet", "probe"])?;
    let counters = listed.split("counter packets ").skip(1);
    let numbers = counters.map(|text| text.split(' ').next().unwrap_or_default().parse::<u64>());
    let numbers: Vec<u64> = numbers.collect::<Result<_, _>>()?;
    ensure!(!numbers.is_empty(), "no counters in {listed}");
    Ok(numbers.iter().sum())
}

#[test]
fn agents_answer_each_other_inside_the_tunnel_and_hosts_do_not_interfere() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = connected_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    for node in [alice, bob] {
        node.host().namespace().nft(UNKNOWN_PROTOCOL)?;
    }
    for (from, to, name) in [(alice, bob, "bob"), (bob, alice, "alice")] {
        for address in addresses(to)? {
            let text = address.to_string();
            for (flag, kind) in [("--tsmp", "TSMP"), ("--icmp", "ICMP")] {
                let said = from.cli(&["ping", flag, "-c", "1", &text])?;
                let expected = format!("via {kind} in ");
                ensure!(said.starts_with(&format!("pong from {name} (")), "{said}");
                ensure!(said.contains(&expected), "{said}");
            }
        }
    }
    for node in [alice, bob] {
        let unknown = counted(node.host().namespace())?;
        ensure!(
            unknown == 0,
            "{unknown} packets were of an unknown protocol"
        );
    }
    Ok(())
}

#[test]
fn a_ping_of_a_peerapi_that_is_not_there_says_so() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = connected_pair()?;
    let [alice, _] = pair(&tailnet.nodes)?;
    let output = alice.try_cli(&["ping", "--peerapi", "-c", "1", "bob"])?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(!output.status.success(), "it succeeded: {said}");
    ensure!(said.contains("bob announces no PeerAPI"), "{said}");
    let both = alice.try_cli(&["ping", "--peerapi", "--tsmp", "bob"])?;
    ensure!(!both.status.success(), "two kinds at once");
    Ok(())
}

/// A program of the host may not speak TSMP, so neither does it get an answer.
#[test]
fn host_programs_do_not_get_into_the_tunnel_with_tsmp() -> Result<()> {
    skip_unless_available!("ping", "python3");
    let tailnet = connected_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    let node = bob.host().namespace();
    node.nft(
        "table inet probe { chain c { type filter hook prerouting priority raw;
            meta l4proto 99 counter comment \"tsmp\"; }; }",
    )?;
    let program = format!(
        "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 99)
try:
    s.sendto(b'p12345678', ('{}', 0))
except OSError:
    pass",
        bob.ip("-4")?
    );
    let spoken = alice.host().namespace().exec(&["python3", "-c", &program]);
    spoken.context("no raw socket")?;
    // What is sent after it has come.
    alice.ping(bob.ip("-4")?)?;
    let heard = counted(node)?;
    ensure!(heard == 0, "{heard} packets came through");
    Ok(())
}
