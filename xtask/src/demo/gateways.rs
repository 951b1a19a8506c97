//! What stands behind the gateways, and who gets through them.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testnet::tailnet::Node;
use testnet::{Lan, Namespace, scaled, wait_until};

use super::lab::Demo;

/// Port of the web server in each network.
const WEB: u16 = 80;
/// How long a connection that the policy forbids must go unanswered.
const REFUSED: Duration = Duration::from_secs(2);

/// The policy of the demo: alice and bob reach each other; only alice reaches the web server (and an
/// iperf3) behind the gate, and the outside through the exit node.
pub(super) const POLICY: &str = r#"{
    "tagOwners": {"tag:alice": [], "tag:bob": [], "tag:gate": [], "tag:exit": []},
    "autoApprovers": {
        "routes": {"10.77.1.0/24": ["tag:gate"], "fd77:1::/64": ["tag:gate"]},
        "exitNode": ["tag:exit"],
    },
    "grants": [
        {"src": ["tag:alice", "tag:bob"], "dst": ["tag:alice", "tag:bob"], "ip": ["*"]},
        {"src": ["tag:alice"], "dst": ["10.77.1.0/24", "fd77:1::/64"], "ip": ["tcp:80", "tcp:5201"]},
        // Known to bob too, who gets no farther than its SSH.
        {"src": ["tag:bob"], "dst": ["10.77.1.0/24", "fd77:1::/64"], "ip": ["tcp:22"]},
        {"src": ["tag:alice"], "dst": ["autogroup:internet"], "ip": ["*"]},
    ],
}
"#;

/// A network behind a gateway, with a web server that tells its callers who they seem to be.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) lan: Lan,
}

impl Site {
    /// Lays network number `number` behind `gateway`.
    ///
    /// # Errors
    ///
    /// When the network cannot be made.
    pub(super) fn behind(gateway: &Namespace, label: &str, number: u8) -> Result<Site> {
        let lan = Lan::behind(gateway, label, number)?;
        let any = (Ipv6Addr::UNSPECIFIED, WEB);
        let listener = lan.host().enter(|| TcpListener::bind(any))??;
        // It ends with the demo.
        thread::spawn(move || serve(&listener));
        Ok(Site { lan })
    }
}

/// Says to each caller which address it called from.
fn serve(listener: &TcpListener) {
    for stream in listener.incoming() {
        let told = stream.and_then(|mut stream| {
            let caller = stream.peer_addr()?.ip().to_canonical();
            write!(stream, "{caller}")
        });
        if let Err(error) = told {
            eprintln!("  the web server: {error}");
        }
    }
}

/// Tries what the policy allows and forbids; prints what came of it.
///
/// # Errors
///
/// When one of them is not as the policy says.
pub(super) fn verify(demo: &Demo) -> Result<()> {
    let [alice, bob] = demo.tailnet.nodes.as_slice() else {
        anyhow::bail!("two nodes")
    };
    for address in demo.office.lan.addresses() {
        let seen = expect_through(alice, address)?;
        println!("  alice → {address}:{WEB} behind the gate: allowed, seen there as {seen}");
        expect_refused(bob, address)?;
        println!("  bob   → {address}:{WEB} behind the gate: denied");
    }
    alice.cli(&["set", "--exit-node=exit"])?;
    for address in demo.outside.lan.outside() {
        let seen = expect_through(alice, address)?;
        println!("  alice → {address}:{WEB} by the exit node: allowed, seen there as {seen}");
    }
    alice.cli(&["set", "--exit-node="])?;
    let refused = bob.try_cli(&["set", "--exit-node=exit"])?;
    ensure!(
        !refused.status.success(),
        "bob may not use the exit node, but was not told so"
    );
    println!("  bob   → the exit node: not offered to it");
    Ok(())
}

/// Waits until the web server at `address` answers; returns whom it took the caller for.
fn expect_through(from: &Node, address: IpAddr) -> Result<String> {
    wait_until(
        Duration::from_secs(20),
        &format!("{address} answers"),
        || call(from, address),
    )
}

fn expect_refused(from: &Node, address: IpAddr) -> Result<()> {
    ensure!(
        call(from, address).is_err(),
        "{address} answers, which the policy forbids"
    );
    Ok(())
}

/// Calls the web server at `address`.
fn call(from: &Node, address: IpAddr) -> Result<String> {
    let server = SocketAddr::from((address, WEB));
    from.host().namespace().enter(|| -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&server, scaled(REFUSED))?;
        stream.set_read_timeout(Some(scaled(REFUSED)))?;
        let mut seen = String::new();
        stream
            .read_to_string(&mut seen)
            .with_context(|| format!("connected to {server}"))?;
        Ok(seen)
    })?
}
