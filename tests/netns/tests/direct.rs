//! Peers whose endpoints were set by hand: handshakes in a flood, and hosts whose agent was killed.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netns_tests::{CONNECT, Echo, GATEWAY_POLICY, set_policy, transfer};
use testnet::tailnet::{Control, ControlOptions, Engine, Node};
use testnet::{Lab, Lan, Namespace, scaled, skip_unless_available, wait_until};

/// Within which a peer with a configured endpoint shakes hands in a flood (the issue's promise).
const REKEY: Duration = Duration::from_secs(5);
/// Pause between bursts of the flood, and initiations in each: some 10 000 a second.
const PAUSE: Duration = Duration::from_millis(5);
const BURST: usize = 50;
const ATTEMPTS: usize = 10;
const PORT: u16 = 41641;
const OPEN: u16 = 7001;
const SHUT: u16 = 7002;

/// As [`GATEWAY_POLICY`], but with two ports and pings only.
const RESTRICTED: &str = r#"{
    "tagOwners": {"tag:gate": [], "tag:node": []},
    "autoApprovers": {"routes": {"10.77.0.0/16": ["tag:gate"], "fd77::/16": ["tag:gate"]}},
    "grants": [{"src": ["*"], "dst": ["*"], "ip": ["icmp:*", "ipv6-icmp:*", "udp:7001", "tcp:*"]}],
}
"#;

/// Two nodes with public addresses, joined; `gate` serves a LAN.
struct Direct {
    alice: Node,
    gate: Node,
    lan: Lan,
    control: Control,
    _lab: Lab,
}

impl Direct {
    fn start() -> Result<Self> {
        let mut lab = Lab::new()?;
        let control = Control::start(lab.server("control")?, ControlOptions::default())?;
        set_policy(&control, GATEWAY_POLICY)?;
        let gate = Node::start(lab.server("gate")?)?;
        let lan = Lan::behind(gate.host().namespace(), "lan", 1)?;
        gate.join(&control.url(), &control.auth_key(&["--tags", "tag:gate"])?)?;
        let alice = Node::start(lab.server("alice")?)?;
        alice.join(&control.url(), &control.auth_key(&["--tags", "tag:node"])?)?;
        alice.reach(gate.ip("-4")?, CONNECT)?;
        let [v4, v6] = lan.prefixes();
        gate.cli(&[
            "set",
            &format!("--advertise-routes={v4},{v6}"),
            "--enable-ip-forward",
        ])?;
        alice.cli(&["set", "--accept-routes"])?;
        Ok(Self {
            alice,
            gate,
            lan,
            control,
            _lab: lab,
        })
    }

    /// Sets both endpoints, and waits until both ends use them.
    fn connect(&self) -> Result<()> {
        set_endpoint(&self.alice, &self.gate)?;
        set_endpoint(&self.gate, &self.alice)?;
        self.alice.reach(self.gate.ip("-4")?, CONNECT)?;
        for (node, peer) in [(&self.alice, "gate"), (&self.gate, "alice")] {
            let endpoint = node.peer(peer)?.text("CurAddr")?.to_owned();
            ensure!(!endpoint.is_empty(), "{peer} is not reached directly");
        }
        Ok(())
    }
}

fn set_endpoint(node: &Node, peer: &Node) -> Result<()> {
    let endpoint = SocketAddr::from((peer.host().address(), PORT));
    let address = peer.ip("-4")?.to_string();
    node.cli(&["debug", "endpoint", &address, &endpoint.to_string()])?;
    Ok(())
}

/// Sends initiations of strangers to `to` until it is dropped.
struct Flood<'a>(&'a AtomicBool);

impl Drop for Flood<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn flood(from: &Namespace, to: SocketAddr, ended: &AtomicBool) -> Result<()> {
    let socket = from.enter(|| UdpSocket::bind(("0.0.0.0", 0)))??;
    // A handshake initiation by its type and length; nothing else in it is right.
    let mut initiation = [0xa5; 148];
    initiation[..4].copy_from_slice(&[1, 0, 0, 0]);
    while !ended.load(Ordering::Relaxed) {
        for _ in 0..BURST {
            // A full queue loses some, as any flood does.
            let _ = socket.send_to(&initiation, to);
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

fn metric(node: &Node, line: &str) -> Result<f64> {
    let metrics = node.metrics()?;
    let value = metrics.lines().find_map(|known| known.strip_prefix(line));
    let value = value.with_context(|| format!("no {line} in\n{metrics}"))?;
    Ok(value.trim().parse()?)
}

/// Has alice begin anew; whether her handshake was counted as that of a trusted endpoint in a flood.
fn shake_hands(lab: &Direct) -> Result<bool> {
    const TRUSTED: &str = r#"tailrace_shield_initiations_total{verdict="trusted"}"#;
    // The session goes with the device.
    lab.alice.cli(&["down"])?;
    lab.alice.cli(&["up"])?;
    set_endpoint(&lab.alice, &lab.gate)?;
    let before = metric(&lab.gate, TRUSTED)?;
    let begin = Instant::now();
    lab.alice.reach(lab.gate.ip("-4")?, REKEY)?;
    let took = begin.elapsed();
    println!("shook hands after {took:?}");
    ensure!(took <= scaled(REKEY), "{took:?}");
    Ok(metric(&lab.gate, TRUSTED)? > before)
}

#[test]
fn a_peer_with_a_configured_endpoint_shakes_hands_during_a_flood() -> Result<()> {
    skip_unless_available!("ping");
    let lab = Direct::start()?;
    lab.connect()?;
    let target = SocketAddr::from((lab.gate.host().address(), PORT));
    let ended = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let stop = Flood(&ended);
        let from = lab.control.host().namespace();
        let flooding = scope.spawn(|| flood(from, target, &ended));
        wait_until(CONNECT, "the gate is flooded", || {
            ensure!(metric(&lab.gate, "tailrace_shield_flooded")? == 1.0);
            Ok(())
        })?;
        // A slow machine may be too slow to flood at the very moment.
        let mut trusted = false;
        for _ in 0..ATTEMPTS {
            trusted = shake_hands(&lab)?;
            if trusted {
                break;
            }
        }
        ensure!(trusted, "no handshake was trusted");
        let dropped = metric(
            &lab.gate,
            r#"tailrace_shield_initiations_total{verdict="dropped"}"#,
        )?;
        ensure!(dropped > 1000.0, "{dropped} dropped");
        let status = lab.gate.cli(&["status"])?;
        ensure!(status.contains("a flood now"), "{status}");
        drop(stop);
        flooding.join().ok().context("the flood panicked")?
    })?;
    wait_until(CONNECT, "the flood is over", || {
        ensure!(metric(&lab.gate, "tailrace_shield_flooded")? == 0.0);
        Ok(())
    })
}

#[test]
fn policy_and_forwarding_go_on_without_the_agents() -> Result<()> {
    skip_unless_available!("ping");
    let mut lab = Direct::start()?;
    lab.connect()?;
    set_policy(&lab.control, RESTRICTED)?;
    let host = lab.lan.host();
    let open = Echo::serve(host, OPEN)?;
    let shut = Echo::serve(host, SHUT)?;
    for address in lab.lan.addresses() {
        let node = lab.alice.host().namespace();
        wait_until(CONNECT, "the LAN is reached as the policy says", || {
            open.call(node, address, 100)?;
            ensure!(shut.call(node, address, 100).is_err(), "{SHUT} is open");
            Ok(())
        })?;
    }
    let flows = lab.lan.addresses().map(|address| {
        let flow = open.flow(lab.alice.host().namespace(), address);
        flow.and_then(|mut flow| {
            flow.call(100)?;
            Ok(flow)
        })
    });
    let mut flows = flows.into_iter().collect::<Result<Vec<_>>>()?;
    let kernel = lab.gate.status()?["Tailrace"]["Engine"] == Engine::Kernel.word();

    lab.alice.kill()?;
    lab.gate.kill()?;
    let node = lab.alice.host().namespace();
    if kernel {
        for (flow, address) in flows.iter_mut().zip(lab.lan.addresses()) {
            for _ in 0..50 {
                flow.call(100).context("a flow without agents")?;
            }
            open.call(node, address, 100).context("a new flow")?;
            ensure!(shut.call(node, address, 100).is_err(), "{SHUT} is open");
            transfer(node, host, address, 1 << 20)?;
        }
    } else {
        // An embedded tunnel ends with its process, and nothing passes beside it.
        ensure!(open.call(node, lab.lan.addresses()[0], 100).is_err());
    }

    lab.gate.start_again()?;
    lab.alice.start_again()?;
    let node = lab.alice.host().namespace();
    for (flow, address) in flows.iter_mut().zip(lab.lan.addresses()) {
        wait_until(CONNECT, "the agents are back", || flow.call(100))?;
        ensure!(shut.call(node, address, 100).is_err(), "{SHUT} is open");
    }
    Ok(())
}
