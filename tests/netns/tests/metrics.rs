//! Metrics as Debian's Prometheus sees them: every panel of every dashboard answers, every alert is silent until its
//! fault is caused and fires then, and every documented family is there.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use netns_tests::{
    CONNECT, Datagrams, Echo, alert_names, alerts_at_once, families, queries, set_policy,
};
use testnet::tailnet::{Control, ControlOptions, Node, program};
use testnet::{Host, Lab, Lan, Process, Prometheus, Target, skip_unless_available, wait_until};

/// Echoes are open, and with them ICMP; everything else is shut.
const POLICY: &str = r#"{
    "tagOwners": {"tag:gate": [], "tag:node": []},
    "autoApprovers": {
        "routes": {"10.77.0.0/16": ["tag:gate"], "fd77::/16": ["tag:gate"]},
        "exitNode": ["tag:gate"],
    },
    "grants": [{"src": ["*"], "dst": ["*"], "ip": ["udp:7"]}],
}
"#;
/// Where the spare server's policy is, on a disk of its own.
const SPARE_POLICY: &str = "/tmp/policy.hujson";
/// Nothing is open.
const CLOSED: &str = r#"{"tagOwners": {"tag:gate": [], "tag:node": []}, "grants": []}"#;
/// The echo service.
const OPEN: u16 = 7;
/// A port that the policy shuts.
const SHUT: u16 = 9;
/// UDP port of WireGuard.
const WIREGUARD: u16 = 41641;
/// Time within which all panels show something, and within which an alert fires: eBPF maps are counted every 15 s,
/// and rates taken over 20 s.
const SHOWN: Duration = Duration::from_secs(90);

/// The lab under observation.
///
/// ```text
/// alice ─ NAT ─┐                            ┌─ gate ── LAN, and an outside beyond it
/// bob ─── NAT ─┼── internet ── control      │
/// carol ─ NAT ─┘          └─── spare        (carol: by relay only; spare: a server with a policy file)
/// ```
struct Site {
    prometheus: Prometheus,
    alice: Node,
    bob: Node,
    carol: Node,
    gate: Node,
    /// It has not joined.
    outsider: Node,
    lan: Lan,
    control: Control,
    spare: Control,
    #[expect(dead_code, reason = "is there until dropped")]
    lab: Lab,
}

impl Site {
    fn start() -> Result<Site> {
        let mut lab = Lab::new()?;
        let control = Control::start(lab.server("control")?, ControlOptions::default())?;
        set_policy(&control, POLICY)?;
        let spare = lab.server("spare")?;
        let ours = program("tailrace-control")?;
        ensure!(
            !ours.starts_with("/tmp"),
            "{} is hidden by the disk that this test fills: build outside of /tmp",
            ours.display()
        );
        // A disk of its own, which can be filled.
        let disk = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", "/tmp"];
        spare.namespace().exec(&disk)?;
        spare
            .namespace()
            .enter(|| fs::write(SPARE_POLICY, POLICY))??;
        let options = ControlOptions {
            policy: Some(SPARE_POLICY.into()),
            ..ControlOptions::default()
        };
        let spare = Control::start(spare, options)?;

        let outsider = Node::start(lab.server("outsider")?)?;
        let gate = Node::start(lab.server("gate")?)?;
        let lan = Lan::behind(gate.host().namespace(), "lan", 1)?;
        gate.join(&control.url(), &control.auth_key(&["--tags", "tag:gate"])?)?;
        gate.cli(&[
            "set",
            "--advertise-routes=10.77.1.0/24,fd77:1::/64",
            "--advertise-exit-node",
            "--enable-ip-forward",
        ])?;
        let key = control.auth_key(&["--tags", "tag:node", "--reusable"])?;
        let mut join = |name: &str, start: fn(Host) -> Result<Node>| -> Result<Node> {
            let node = start(lab.behind_nat(name)?)?;
            node.join(&control.url(), &key)?;
            node.cli(&["set", "--accept-routes"])?;
            Ok(node)
        };
        let (alice, bob) = (join("alice", Node::start)?, join("bob", Node::start)?);
        let carol = join("carol", Node::start_relayed)?;
        alice.reach(bob.ip("-4")?, CONNECT)?;
        alice.reach(carol.ip("-4")?, CONNECT)?;
        wait_until(CONNECT, "the exit node is offered", || {
            bob.cli(&["set", "--exit-node=gate"])
        })?;
        let prometheus = observe(
            &control,
            &spare,
            [("alice", &alice), ("bob", &bob), ("gate", &gate)],
        )?;
        Ok(Site {
            prometheus,
            alice,
            bob,
            carol,
            gate,
            outsider,
            lan,
            control,
            spare,
            lab,
        })
    }

    /// Pings that go on until dropped.
    fn pings(&self, from: &Node, to: IpAddr) -> Result<Process> {
        let words = ["ping", "-n", "-i", "0.2", &to.to_string()];
        from.host().namespace().spawn("ping", &words)
    }

    /// Checks that an alert is silent, causes its fault and waits until it fires.
    fn fires_after(&self, alert: &str, cause: impl FnOnce() -> Result<()>) -> Result<()> {
        self.is_silent(alert)?;
        cause()?;
        self.comes(alert, || Ok(()))
    }

    /// As [`Self::fires_after`], with a fault that is caused again and again.
    fn fires_while(&self, alert: &str, cause: impl FnMut() -> Result<()>) -> Result<()> {
        self.is_silent(alert)?;
        self.comes(alert, cause)
    }

    fn is_silent(&self, alert: &str) -> Result<()> {
        let state = self.prometheus.alert(alert)?;
        ensure!(state == "inactive", "{alert} is {state} before its fault");
        Ok(())
    }

    fn comes(&self, alert: &str, mut cause: impl FnMut() -> Result<()>) -> Result<()> {
        wait_until(SHOWN, &format!("{alert} fires"), || {
            cause()?;
            let state = self.prometheus.alert(alert)?;
            ensure!(state == "firing", "it is {state}");
            Ok(())
        })?;
        println!("{alert}: silent, then firing");
        Ok(())
    }
}

/// Has Prometheus scrape all but carol, whose only paths are relayed.
fn observe(control: &Control, spare: &Control, nodes: [(&str, &Node); 3]) -> Result<Prometheus> {
    let servers = [("control", control), ("spare", spare)];
    let servers = servers.map(|(instance, server)| Target {
        job: "tailrace-control",
        instance,
        space: server.host().namespace(),
        address: server.address(),
    });
    let nodes = nodes.map(|(instance, node)| Target {
        job: "tailrace",
        instance,
        space: node.host().namespace(),
        address: node.metrics_address(),
    });
    Prometheus::start(&[servers.as_slice(), &nodes].concat(), &alerts_at_once())
}

#[test]
fn panels_answer_alerts_fire_when_caused_and_every_family_is_there() -> Result<()> {
    skip_unless_available!("ping", "prometheus");
    let mut site = Site::start()?;
    {
        let traffic = traffic(&site)?;
        panels(&site)?;
        silent(&site)?;
        drop(traffic);
    }
    alerts_of_nodes(&site)?;
    alerts_of_servers(&site)?;
    outages(&mut site)
}

/// Something of everything: allowed and not, direct and relayed, by route and by exit node, and junk.
fn traffic(site: &Site) -> Result<(Vec<Process>, Vec<Datagrams>, Echo)> {
    let [lan, _] = site.lan.addresses();
    let [outside, _] = site.lan.outside();
    let pings = [
        site.pings(&site.alice, site.bob.ip("-4")?)?,
        site.pings(&site.alice, site.carol.ip("-4")?)?,
        site.pings(&site.alice, lan)?,
        site.pings(&site.bob, outside)?,
    ];
    let echo = Echo::serve(site.lan.host(), OPEN)?;
    let alice = site.alice.host().namespace();
    let wireguard = SocketAddr::from((site.gate.host().address(), WIREGUARD));
    let internet = site.control.host().namespace();
    let datagrams = [
        Datagrams::send(alice, (lan, OPEN), 50, vec![1; 900])?,
        Datagrams::send(alice, (site.bob.ip("-4")?, SHUT), 4, vec![2; 20])?,
        Datagrams::send(internet, wireguard, 4, vec![3; 200])?,
        Datagrams::send(internet, wireguard, 4, initiation())?,
    ];
    Ok((pings.into(), datagrams.into(), echo))
}

/// What looks like the begin of a handshake.
fn initiation() -> Vec<u8> {
    let mut message = vec![0x5a; 148];
    message[..4].copy_from_slice(&[1, 0, 0, 0]);
    message
}

/// Every query answers, with a number at least.
fn panels(site: &Site) -> Result<()> {
    let mut open = queries()?;
    let count = open.len();
    let gate = site.gate.ip("-4")?.to_string();
    let mut round = 0;
    wait_until(SHOWN, "every panel's query answers", || {
        // Changes, so that control has something to tell.
        round += 1;
        let name = if round % 2 == 0 { "gate" } else { "tor" };
        site.control.admin(&["nodes", "rename", &gate, name])?;
        open.retain(|query| match site.prometheus.values(&query.expression) {
            Ok(values) => !values.iter().any(|value| value.is_finite()),
            Err(error) => {
                eprintln!("{}: {error:#}", query.panel);
                true
            }
        });
        ensure!(open.is_empty(), "no answer: {open:#?}");
        Ok(())
    })?;
    site.control.admin(&["nodes", "rename", &gate, "gate"])?;
    println!("{count} queries of panels answer");
    Ok(())
}

/// No alert is up while all is well.
fn silent(site: &Site) -> Result<()> {
    let names = alert_names();
    wait_until(CONNECT, "all alerts are silent", || {
        for name in &names {
            let state = site.prometheus.alert(name)?;
            ensure!(state == "inactive", "{name} is {state}");
        }
        Ok(())
    })?;
    println!("{} alerts are silent", names.len());
    Ok(())
}

fn alerts_of_nodes(site: &Site) -> Result<()> {
    let alice = site.alice.host().namespace();
    let bob = site.bob.ip("-4")?;
    let denied = Datagrams::send(alice, (bob, SHUT), 200, vec![0; 20])?;
    site.fires_after("TailraceFilterDrops", || Ok(()))?;
    drop(denied);

    // A flow for each port.
    let flows = |alice: &testnet::Namespace| -> Result<()> {
        let socket = alice.enter(|| UdpSocket::bind(("0.0.0.0", 0)))??;
        for port in 1..=u16::MAX {
            socket
                .send_to(&[0], (bob, port))
                .or_else(|error| match error.raw_os_error() {
                    // Refused by ICMP, or the queue is full.
                    Some(_) => Ok(0),
                    None => Err(error),
                })?;
        }
        Ok(())
    };
    site.fires_after("TailraceEbpfTableFull", || flows(alice))?;

    let wireguard = SocketAddr::from((site.gate.host().address(), WIREGUARD));
    let internet = site.control.host().namespace();
    let flood = Datagrams::send(internet, wireguard, 3000, initiation())?;
    site.fires_after("TailraceHandshakeFlood", || Ok(()))?;
    drop(flood);

    site.fires_after("TailraceFilterAdmitsNothing", || {
        set_policy(&site.control, CLOSED)
    })?;
    set_policy(&site.control, POLICY)?;
    site.alice.reach(bob, CONNECT)?;

    let blocked = "table inet block { chain in { type filter hook input priority -400; \
                   iifname eth0 meta l4proto udp drop; }; }";
    let _pings = site.pings(&site.alice, bob)?;
    site.fires_after("TailracePeersRelayed", || {
        site.bob.host().namespace().nft(blocked)
    })?;
    site.bob
        .host()
        .namespace()
        .exec(&["nft", "delete", "table", "inet", "block"])?;
    Ok(())
}

fn alerts_of_servers(site: &Site) -> Result<()> {
    let url = site.control.url();
    site.fires_while("TailraceControlAuthKeysRefused", || {
        let words = [
            "up",
            "--login-server",
            &url,
            "--auth-key",
            "nonsense",
            "--timeout",
            "5s",
        ];
        let refused = site.outsider.try_cli(&words)?;
        ensure!(!refused.status.success(), "a key of nonsense is taken");
        Ok(())
    })?;

    let derp = SocketAddr::from((site.control.host().address(), 3340));
    let space = site.gate.host().namespace();
    site.fires_while("TailraceRelayHandshakesFail", || {
        for _ in 0..10 {
            let mut stream = space.enter(|| TcpStream::connect(derp))??;
            stream.write_all(b"this is no TLS\r\n\r\n")?;
        }
        Ok(())
    })?;

    // What is relayed to carol comes faster than her line takes it.
    let slow = "table inet slow { chain in { type filter hook input priority -400; \
                tcp sport 3340 limit rate over 100 kbytes/second drop; }; }";
    let carol = site.carol.ip("-4")?;
    let line = site.carol.host().namespace();
    line.nft(slow)?;
    let flood = Datagrams::send(
        site.alice.host().namespace(),
        (carol, OPEN),
        4000,
        vec![0; 1100],
    )?;
    let dropped = site.fires_after("TailraceRelayDrops", || Ok(()));
    drop(flood);
    dropped?;
    line.exec(&["nft", "delete", "table", "inet", "slow"])?;

    let spare = site.spare.host().namespace();
    let write = |text: &str| -> Result<()> { Ok(spare.enter(|| fs::write(SPARE_POLICY, text))??) };
    site.fires_after("TailraceControlPolicyStale", || write("{ no policy"))?;
    write(POLICY)?;

    let fill = || -> io::Result<()> {
        let mut file = fs::File::create("/tmp/filling")?;
        loop {
            match file.write_all(&[0; 4096]) {
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
                other => other?,
            }
        }
    };
    site.fires_while("TailraceControlDatabaseErrors", || {
        spare.enter(fill)??;
        let refused = site.spare.admin(&["users", "create", "nobody"]);
        ensure!(refused.is_err(), "a full disk takes a user");
        Ok(())
    })?;

    // A node that is deleted loses its relay.
    site.outsider.join(&url, &site.control.auth_key(&[])?)?;
    site.control.admin(&["nodes", "delete", "outsider"])?;
    wait_until(CONNECT, "the relay has closed its connection", || {
        let kicked = site
            .prometheus
            .values("sum(tailrace_relay_connections_kicked_total)")?;
        ensure!(kicked.iter().any(|count| *count > 0.0), "{kicked:?}");
        Ok(())
    })
}

/// Every documented family has been seen; every counter but those whose cause is tested elsewhere has counted.
fn everything_is_there(site: &Site) -> Result<()> {
    /// May stay at zero here: what lasts for moments only (queues), what needs another lab (a port mapper, a mesh of
    /// relays, a cached map) or a client that misbehaves, which tests of the programs themselves do.
    const ELSEWHERE: &[&str] = &[
        "tailrace_control_connections_refused_total",
        "tailrace_control_handshakes_failed_total",
        "tailrace_control_map_resyncs_total",
        "tailrace_control_nodes_rekeyed_total",
        "tailrace_control_queue_depth",
        "tailrace_control_queue_depth_max",
        "tailrace_control_reports_unsaved",
        "tailrace_derp_dropped_packets_total",
        "tailrace_map_stale",
        "tailrace_port_mapped",
        "tailrace_relay_connections_refused_total",
        "tailrace_relay_duplicate_connections",
        "tailrace_relay_packets_forwarded_total",
        "tailrace_relay_pings_total",
        "tailrace_relay_watchers",
        "tailrace_relay_write_timeouts_total",
        "tailrace_tunnel_dropped_packets_total",
    ];
    let names: BTreeSet<String> = site.prometheus.names()?.into_iter().collect();
    let mut missing = Vec::new();
    let mut idle = Vec::new();
    for (family, kind) in families() {
        let name = match kind {
            "histogram" => format!("{family}_count"),
            _ => family.to_owned(),
        };
        if !names.contains(&name) {
            missing.push(family);
            continue;
        }
        let most = site
            .prometheus
            .values(&format!("max(max_over_time({name}[1h]))"))?;
        if most.iter().all(|value| *value == 0.0) {
            idle.push(family);
        }
    }
    ensure!(missing.is_empty(), "not shown: {missing:?}");
    idle.retain(|family| !ELSEWHERE.contains(family));
    ensure!(idle.is_empty(), "never above zero: {idle:?}");
    Ok(())
}

/// What ends only with the daemons themselves.
fn outages(site: &mut Site) -> Result<()> {
    // The embedded tunnel has families of its own.
    site.alice.cli(&["set", "--wireguard=embedded"])?;
    site.alice.reach(site.bob.ip("-4")?, CONNECT)?;
    for name in ["TailraceControlNodesOffline", "TailraceDown"] {
        site.is_silent(name)?;
    }
    site.bob.kill()?;
    site.carol.kill()?;
    site.gate.kill()?;
    for name in ["TailraceControlNodesOffline", "TailraceDown"] {
        site.comes(name, || Ok(()))?;
    }
    wait_until(CONNECT, "every family was seen", || {
        everything_is_there(site)
    })?;
    let names = [
        "TailraceControlDisconnected",
        "TailraceHomeRelayDisconnected",
        "TailraceHealthWarnings",
    ];
    for name in names {
        site.is_silent(name)?;
    }
    site.control.kill()?;
    for name in names {
        site.comes(name, || Ok(()))?;
    }
    Ok(())
}
