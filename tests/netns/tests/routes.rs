//! Subnet routes and exit nodes, forwarded by the kernel.
//!
//! ```text
//! alice ── NAT ──┬── NAT ── bob ── LAN 10.99.0.0/24 ── printer
//!             control (with relay)
//! ```

use std::time::Duration;

use anyhow::{Result, ensure};
use netns_tests::{CONNECT, KernelState, connected_pair, pair, refused};
use serde_json::Value;

use testnet::tailnet::{Node, Tailnet};
use testnet::{Namespace, skip_unless_available, veth, wait_until};

const LAN: &str = "10.99.0.0/24";
/// Time within which the host follows a change of its networks.
const FOLLOW: Duration = Duration::from_secs(2);

#[test]
fn a_subnet_behind_a_router_is_reached_once_it_is_approved_and_accepted() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = connected_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    let printer = lan_of(bob)?;
    let before = KernelState::of(alice.host().namespace())?;

    bob.cli(&[
        "set",
        "--advertise-routes",
        LAN,
        "--snat-subnet-routes=false",
    ])?;
    warned(bob, "approval")?;
    approve(&tailnet, LAN)?;
    warned(bob, "sysctl -w net.ipv4.ip_forward=1")?;
    bob.cli(&["set", "--enable-ip-forward"])?;
    alice.cli(&["set", "--accept-routes"])?;

    wait_until(CONNECT, "the route is there", || {
        let table = table(alice, "-4")?;
        ensure!(table.contains(LAN), "{table}");
        Ok(())
    })?;
    alice.reach("10.99.0.2".parse()?, CONNECT)?;
    let peer = alice.peer("bob")?;
    ensure!(format!("{peer:?}").contains(LAN), "{peer:?}");
    // SNAT is off: the LAN sees alice's own address.
    let seen = printer.exec(&["ip", "neigh"])?;
    ensure!(!seen.contains("100.64."), "routed, not bridged: {seen}");

    alice.cli(&["set", "--accept-routes=false"])?;
    let after = KernelState::of(alice.host().namespace())?;
    ensure!(before == after, "{}", before.difference(&after));
    bob.cli(&["down"])?;
    let forwarding = bob
        .host()
        .namespace()
        .exec(&["cat", "/proc/sys/net/ipv4/ip_forward"])?;
    ensure!(forwarding.trim() == "0", "down puts the switch back");
    Ok(())
}

#[test]
fn an_exit_node_captures_everything_and_down_leaves_nothing() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = connected_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    let namespace = alice.host().namespace();
    refused(
        &alice.try_cli(&["set", "--exit-node", "bob"])?,
        &["not advertising an exit node"],
    )?;
    bob.cli(&["set", "--advertise-exit-node"])?;
    approve(&tailnet, "0.0.0.0/0")?;
    wait_until(CONNECT, "bob offers an exit", || {
        ensure!(alice.peer("bob")?.flag("ExitNodeOption")?);
        Ok(())
    })?;

    alice.cli(&["set", "--exit-node", "bob"])?;
    ensure!(alice.peer("bob")?.flag("ExitNode")?);
    for family in ["-4", "-6"] {
        let table = table(alice, family)?;
        ensure!(table.contains("default dev"), "{table}");
    }
    // The LAN is captured; the overlay's own packets are not.
    let lan = lan_route(alice)?;
    ensure!(lan.contains("tailrace"), "{lan}");
    alice.reach(bob.ip("-4")?, CONNECT)?;

    alice.cli(&["set", "--exit-node-allow-lan-access"])?;
    let lan = lan_route(alice)?;
    ensure!(lan.contains("eth0"), "{lan}");

    // A network that comes later is followed.
    namespace.ip("link add late0 type veth peer name late1")?;
    namespace.ip("link set late0 up")?;
    namespace.ip("addr add 10.77.0.1/24 dev late0")?;
    wait_until(FOLLOW, "the new network is let through", || {
        let table = table(alice, "-4")?;
        ensure!(table.contains("throw 10.77.0.0/24"), "{table}");
        Ok(())
    })?;
    namespace.ip("link set late0 down")?;
    namespace.ip("link set late0 name early0")?;
    namespace.ip("link del early0")?;
    wait_until(FOLLOW, "the old network is forgotten", || {
        let table = table(alice, "-4")?;
        ensure!(!table.contains("10.77.0.0/24"), "{table}");
        Ok(())
    })?;

    // Somebody else's clean-up is repaired.
    namespace.ip("route flush table 52")?;
    wait_until(FOLLOW, "the default route is back", || {
        let table = table(alice, "-4")?;
        ensure!(table.contains("default dev"), "{table}");
        Ok(())
    })?;

    // An exit node that goes away leaks nothing.
    tailnet.control.admin(&["nodes", "delete", "bob"])?;
    wait_until(CONNECT, "alice says what is blocked", || {
        let status = alice.status()?.to_string();
        ensure!(
            status.contains("traffic to the Internet is blocked"),
            "{status}"
        );
        Ok(())
    })?;
    let table = table(alice, "-4")?;
    ensure!(table.contains("default dev"), "{table}");

    alice.cli(&["down"])?;
    for family in ["-4", "-6"] {
        let left = namespace.exec(&["ip", family, "route", "show", "table", "all"])?;
        ensure!(!left.contains("table 52"), "{left}");
    }
    let rules = namespace.exec(&["ip", "rule"])?;
    ensure!(!rules.contains("5270"), "{rules}");
    Ok(())
}

#[test]
fn nonsense_about_routes_is_refused_in_one_line() -> Result<()> {
    let tailnet = Tailnet::new(&["alice"])?;
    let [alice] = &tailnet.nodes[..] else {
        anyhow::bail!("not one node")
    };
    for (flags, words) in [
        (
            &["--advertise-routes=10.0.0.1/8"][..],
            "has non-address bits set; expected 10.0.0.0/8",
        ),
        (&["--advertise-routes=nonsense"], "not a valid IP address"),
        (&["--exit-node=nobody"], "must be IP or unique node name"),
        (&["--exit-node=alice"], "this machine itself"),
    ] {
        let words = &[words];
        refused(&alice.try_cli(&[&["set"], flags].concat())?, words)?;
    }
    Ok(())
}

/// Gives `router` a LAN with one host, whose way back leads through it.
fn lan_of(router: &Node) -> Result<Namespace> {
    let printer = Namespace::new("printer")?;
    veth((router.host().namespace(), "lan0"), (&printer, "eth0"))?;
    router
        .host()
        .namespace()
        .ip("addr add 10.99.0.1/24 dev lan0")?;
    printer.ip("addr add 10.99.0.2/24 dev eth0")?;
    printer.ip("route add default via 10.99.0.1")?;
    Ok(printer)
}

fn approve(tailnet: &Tailnet, route: &str) -> Result<()> {
    wait_until(CONNECT, "the route is approved", || {
        let words = ["nodes", "routes", "approve", "bob", route];
        tailnet.control.admin(&words).map(drop)
    })
}

fn warned(node: &Node, words: &str) -> Result<()> {
    wait_until(CONNECT, "status warns", || {
        let status = node.status()?;
        let health = status.get("Health").map(Value::to_string);
        ensure!(health.is_some_and(|text| text.contains(words)), "{status}");
        Ok(())
    })
}

fn table(node: &Node, family: &str) -> Result<String> {
    let namespace = node.host().namespace();
    namespace.exec(&["ip", family, "route", "show", "table", "52"])
}

/// Which way the router of the node's own network is reached.
fn lan_route(node: &Node) -> Result<String> {
    let [a, b, c, _] = node.host().address().octets();
    let router = format!("{a}.{b}.{c}.1");
    node.host()
        .namespace()
        .exec(&["ip", "route", "get", &router])
}
