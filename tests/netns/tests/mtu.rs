//! Packets as long as the path to each peer carries.
//!
//! ```text
//! alice (1500) ──┬── bob (1500)
//!             control
//! narrow (1400) ─┘
//! ```

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use netns_tests::{CONNECT, addresses, transfer};
use testnet::tailnet::{Control, ControlOptions, Node};
use testnet::{Lab, skip_unless_available, wait_until};

/// What carries any packet of the overlay, whatever the path.
const USUAL: u16 = 1280;
/// What fills packets of 1500 and 1400 bytes.
const OF_1500: u16 = 1440;
const OF_1400: u16 = 1328;

/// The longest packet that the host sends to `address`, as its own TCP would ask.
fn mtu(node: &Node, address: IpAddr) -> Result<u16> {
    let space = node.host().namespace();
    let route = space.ip(&format!("route get {address}"))?;
    let words: Vec<&str> = route.split_whitespace().collect();
    let behind = |word: &str| {
        let at = words.iter().position(|found| *found == word)?;
        words.get(at + 1).copied()
    };
    if let Some(mtu) = behind("mtu") {
        return Ok(mtu.parse()?);
    }
    let device = behind("dev").with_context(|| format!("no device: {route}"))?;
    let mtu = space.exec(&["cat", &format!("/sys/class/net/{device}/mtu")])?;
    Ok(mtu.trim().parse()?)
}

/// Pings with a packet of the overlay of exactly `len` bytes, which may not be cut.
fn passes(node: &Node, address: IpAddr, len: u16) -> Result<()> {
    let headers = if address.is_ipv4() { 20 + 8 } else { 40 + 8 };
    let size = (len - headers).to_string();
    let words = ["ping", "-n", "-c", "1", "-W", "2", "-M", "do", "-s", &size];
    let address = address.to_string();
    let words: Vec<&str> = words.into_iter().chain([address.as_str()]).collect();
    node.host().namespace().exec(&words).map(drop)
}

#[test]
fn each_peer_gets_packets_as_long_as_its_path_carries() -> Result<()> {
    skip_unless_available!("ping");
    let mut lab = Lab::new()?;
    let control = Control::start(lab.server("control")?, ControlOptions::default())?;
    let key = control.auth_key(&["--reusable"])?;
    let mut join = |name: &str, mtu: u16| -> Result<Node> {
        let host = lab.server(name)?;
        host.namespace().ip(&format!("link set eth0 mtu {mtu}"))?;
        let node = Node::start(host)?;
        node.join(&control.url(), &key)?;
        Ok(node)
    };
    let (alice, bob) = (join("alice", 1500)?, join("bob", 1500)?);
    let narrow = join("narrow", 1400)?;
    let [bob4, bob6] = addresses(&bob)?;
    let [narrow4, narrow6] = addresses(&narrow)?;
    // Both ends have to try: whoever sends nothing does not.
    for address in [bob4, bob6, narrow4, narrow6] {
        alice.reach(address, CONNECT)?;
    }
    let grown = |node: &Node, address, expected| {
        wait_until(CONNECT, "longer packets", || {
            node.ping(address)?;
            let mtu = mtu(node, address)?;
            ensure!(mtu == expected, "{address}: {mtu}");
            Ok(())
        })
    };
    for (address, expected) in [
        (bob4, OF_1500),
        (bob6, OF_1500),
        (narrow4, OF_1400),
        (narrow6, OF_1400),
    ] {
        grown(&alice, address, expected)?;
        passes(&alice, address, expected)?;
        ensure!(passes(&alice, address, expected + 1).is_err());
    }
    for (peer, expected) in [("bob", OF_1500), ("narrow", OF_1400)] {
        let said = alice.peer(peer)?.number("MTU")?;
        ensure!(said == u64::from(expected), "{peer}: {said}");
    }
    let [alice4, alice6] = addresses(&alice)?;
    grown(&bob, alice4, OF_1500)?;
    grown(&narrow, alice6, OF_1400)?;
    for (from, to, address) in [
        (&alice, &bob, bob4),
        (&bob, &alice, alice6),
        (&alice, &narrow, narrow6),
        (&narrow, &alice, alice4),
    ] {
        let [from, to] = [from, to].map(|node| node.host().namespace());
        transfer(from, to, address, 8 << 20)?;
    }
    Ok(())
}

#[test]
fn by_a_relay_packets_are_as_long_as_ever() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = netns_tests::relayed_pair()?;
    let [alice, bob] = netns_tests::pair(&tailnet.nodes)?;
    for address in addresses(bob)? {
        alice.reach(address, CONNECT)?;
        ensure!(mtu(alice, address)? == USUAL);
        passes(alice, address, USUAL)?;
        ensure!(passes(alice, address, USUAL + 1).is_err());
    }
    Ok(())
}
