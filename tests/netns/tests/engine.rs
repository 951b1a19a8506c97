//! Another WireGuard under a running node: what stays, and how long traffic waits.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use netns_tests::{
    CONNECT, End, Gateway, addresses, both_ways, connected_pair, pair, refused, transfer,
};
use serde_json::Value;
use testnet::tailnet::{Engine, Node};
use testnet::{Namespace, scaled, skip_unless_available, wait_until};

/// How long traffic may wait for the new engine.
const OUTAGE: Duration = Duration::from_secs(1);
/// Traffic goes for so long; the change comes in its midst.
const STREAM: Duration = Duration::from_secs(6);
/// Pings and datagrams for everybody; TCP for nobody, and the gateway's networks.
const POLICY: &str = r#"{
    "tagOwners": {"tag:gate": [], "tag:node": []},
    "autoApprovers": {"routes": {"10.77.0.0/16": ["tag:gate"]}},
    "grants": [{"src": ["*"], "dst": ["*"], "ip": ["icmp:*", "ipv6-icmp:*", "udp:*"]}],
}
"#;

/// Whether this kernel makes WireGuard devices.
fn has_wireguard() -> Result<bool> {
    let space = Namespace::new("probe")?;
    Ok(space.ip("link add probe type wireguard").is_ok())
}

/// Ends the test as skipped unless the kernel has WireGuard, or has none.
macro_rules! skip_unless {
    ($has:expr, $reason:literal) => {
        if has_wireguard()? != $has {
            fn here() {}
            let name = std::any::type_name_of_val(&here);
            println!("\nSKIP {}: {}", name.trim_end_matches("::here"), $reason);
            return Ok(());
        }
    };
}

/// What of a node must not change with its engine.
#[derive(Debug, PartialEq)]
struct Lasting {
    addresses: [IpAddr; 2],
    identity: Vec<Value>,
    filter: Vec<Value>,
    kernel: Vec<String>,
}

impl Lasting {
    fn of(node: &Node) -> Result<Lasting> {
        let status = node.status()?;
        let fields = |pointers: &[&str]| {
            let values = pointers.iter().map(|pointer| status.pointer(pointer));
            values
                .map(|value| value.cloned().unwrap_or_default())
                .collect()
        };
        let space = node.host().namespace();
        let views = [
            "ip -4 -o address show dev tailrace0 scope global",
            "ip -6 -o address show dev tailrace0 scope global",
            "ip -4 rule",
            "ip -6 rule",
            "ip -4 route show table 52",
            "ip -6 route show table 52",
            "nft -s list ruleset",
        ];
        let view = |view: &&str| -> Result<String> {
            let text = space.exec(&view.split(' ').collect::<Vec<_>>())?;
            // The device has another number.
            let lines = text.lines().map(|line| match line.split_once(": ") {
                Some((_, line)) if view.contains("address") => line,
                // Behind it: the device's number again, and what paths have shown.
                _ if view.contains("route") => line.split(" metric ").next().unwrap_or(line),
                _ => line,
            });
            Ok(lines.collect::<Vec<_>>().join("\n"))
        };
        Ok(Lasting {
            addresses: addresses(node)?,
            identity: fields(&[
                "/Self/PublicKey",
                "/Self/ID",
                "/Self/DiscoKey",
                "/Self/DNSName",
            ]),
            filter: fields(&["/Tailrace/Filter/Place", "/Tailrace/Filter/Rules"]),
            kernel: views.iter().map(view).collect::<Result<_>>()?,
        })
    }
}

fn engine(node: &Node) -> Result<String> {
    let status = node.status()?;
    let engine = status.pointer("/Tailrace/Engine").and_then(Value::as_str);
    Ok(engine.context("no engine")?.to_owned())
}

/// Checks that the node drops a connection that the policy does not allow.
fn drops_tcp(from: &Node, to: &Node) -> Result<()> {
    let address = to.ip("-4")?;
    let inside = to.host().namespace();
    let listener = inside.enter(|| TcpListener::bind((address, 0)))??;
    let server: SocketAddr = listener.local_addr()?;
    let patience = scaled(Duration::from_secs(1));
    let outside = from.host().namespace();
    match outside.enter(|| TcpStream::connect_timeout(&server, patience))? {
        Ok(_) => bail!("a connection that the policy forbids"),
        Err(_) => Ok(()),
    }
}

#[test]
fn another_engine_keeps_everything_and_traffic_waits_less_than_a_second() -> Result<()> {
    skip_unless_available!("ping");
    skip_unless!(true, "this kernel has no WireGuard to change to");
    let lab = Gateway::start(&["--advertise-routes=10.77.1.0/24", "--enable-ip-forward"])?;
    lab.set_policy(POLICY)?;
    let (alice, gate) = (&lab.alice, &lab.gate);
    let behind = lab.lan.addresses()[0];
    alice.reach(behind, CONNECT)?;
    wait_until(CONNECT, "the policy is in force", || drops_tcp(gate, alice))?;
    let before = Lasting::of(alice)?;
    let ends = [alice, gate].map(|node| -> Result<End<'_>> {
        Ok(End {
            space: node.host().namespace(),
            address: node.ip("-4")?,
        })
    });
    let [near, far] = ends;
    let (near, far) = (near?, far?);
    for next in [Engine::Embedded, Engine::Kernel] {
        let flag = format!("--wireguard={}", next.word());
        let deliveries = both_ways([near, far], scaled(STREAM), || {
            alice.cli(&["set", &flag]).map(drop)
        })?;
        for delivery in &deliveries {
            println!("to {}: {delivery:?}", next.word());
        }
        ensure!(engine(alice)? == next.word(), "{}", engine(alice)?);
        for delivery in deliveries {
            ensure!(delivery.silence.0 < scaled(OUTAGE), "{delivery:?}");
        }
        let after = Lasting::of(alice)?;
        ensure!(after == before, "before {before:#?}\nafter {after:#?}");
        drops_tcp(gate, alice)?;
        alice.reach(behind, CONNECT)?;
    }
    Ok(())
}

#[test]
fn what_one_engine_sends_the_other_receives_whole() -> Result<()> {
    skip_unless_available!("ping");
    skip_unless!(true, "this kernel has no WireGuard for the other end");
    let tailnet = connected_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    alice.cli(&["set", "--wireguard=embedded"])?;
    bob.cli(&["set", "--wireguard=kernel"])?;
    for (from, to) in [(alice, bob), (bob, alice)] {
        for address in addresses(to)? {
            from.reach(address, CONNECT)?;
            let [from, to] = [from, to].map(|node| node.host().namespace());
            transfer(from, to, address, 2 << 20)?;
        }
    }
    ensure!(engine(alice)? == "embedded" && engine(bob)? == "kernel");
    Ok(())
}

#[test]
fn a_chosen_engine_outlasts_the_daemon_and_the_daemons_own_comes_back() -> Result<()> {
    skip_unless_available!("ping");
    skip_unless!(true, "this kernel has no WireGuard to change to");
    let mut tailnet = connected_pair()?;
    let [alice, bob] = tailnet.nodes.as_mut_slice() else {
        bail!("two nodes")
    };
    alice.cli(&["set", "--wireguard=embedded"])?;
    alice.terminate()?;
    alice.start_again()?;
    alice.reach(bob.ip("-4")?, CONNECT)?;
    ensure!(engine(alice)? == "embedded", "{}", engine(alice)?);
    alice.cli(&["set", "--wireguard=default"])?;
    ensure!(
        engine(alice)? == Engine::under_test().word(),
        "{}",
        engine(alice)?
    );
    alice.reach(bob.ip("-4")?, CONNECT)
}

#[test]
fn an_engine_that_this_kernel_lacks_is_refused_and_traffic_goes_on() -> Result<()> {
    skip_unless_available!("ping");
    skip_unless!(false, "this kernel has WireGuard");
    let tailnet = connected_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    let status = alice.status()?;
    let offloads = status["Tailrace"]["Offloads"].as_array();
    for offload in offloads.context("no offloads")? {
        // As the daemon began, before it gave up what a trial takes.
        ensure!(offload["Untried"] == "", "{offload}");
    }
    let before = Lasting::of(alice)?;
    let ends = [alice, bob].map(|node| -> Result<End<'_>> {
        Ok(End {
            space: node.host().namespace(),
            address: node.ip("-4")?,
        })
    });
    let [near, far] = ends;
    let deliveries = both_ways([near?, far?], STREAM, || {
        let output = alice.try_cli(&["set", "--wireguard=kernel"])?;
        refused(&output, &["WireGuard", "--wireguard"])?;
        // The same engine under another name: nothing to do.
        alice.cli(&["set", "--wireguard=auto"]).map(drop)
    })?;
    for delivery in deliveries {
        ensure!(delivery.silence.0 < scaled(OUTAGE), "{delivery:?}");
    }
    ensure!(engine(alice)? == "embedded", "{}", engine(alice)?);
    ensure!(Lasting::of(alice)? == before, "something changed");
    let reason = alice.status()?["Tailrace"]["EngineReason"].to_string();
    ensure!(reason.contains("WireGuard"), "{reason}");
    Ok(())
}
