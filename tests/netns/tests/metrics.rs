//! Metrics as Debian's Prometheus sees them: every panel of every dashboard answers, every alert is silent until its
//! fault is caused and fires then, and every documented family is there.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use netns_tests::{
    CONNECT, Datagrams, Echo, alert_names, alerts_at_once, families, queries, set_policy,
};
use rustix::process::Signal;
use testnet::tailnet::{Control, ControlOptions, Node};
use testnet::{
    Folder, Host, Lab, Lan, Process, Prometheus, Target, skip_unless_available, wait_until,
};

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
    spare_policy: Folder,
    #[expect(dead_code, reason = "is there until dropped")]
    lab: Lab,
}

impl Site {
    fn start() -> Result<Site> {
        let mut lab = Lab::new()?;
        let control = Control::start(lab.server("control")?, ControlOptions::default())?;
        set_policy(&control, POLICY)?;
        let spare_policy = Folder::new("policy")?;
        let file = spare_policy.path().join("policy.hujson");
        fs::write(&file, POLICY)?;
        let options = ControlOptions {
            policy: Some(file),
            ..ControlOptions::default()
        };
        let spare = Control::start(lab.server("spare")?, options)?;

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
        let prometheus = observe(&control, &spare, [("alice", &alice), ("bob", &bob), ("gate", &gate)])?;
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
            spare_policy,
            lab,
        })
    }

    /// Pings that go on until dropped.
    fn pings(&self, from: &Node, to: IpAddr) -> Result<Process> {
        let words = ["ping", "-n", "-i", "0.2", &to.to_string()];
        from.host().namespace().spawn("ping", &words)
    }

    /// Checks that an alert is silent, runs `cause` until it fires, and returns.
    fn fires(&self, alert: &str, mut cause: impl FnMut() -> Result<()>) -> Result<()> {
        self.is_silent(alert)?;
        self.comes(alert, &mut cause)
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
    everything_is_there(&site)?;
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
    site.fires("TailraceFilterDrops", || Ok(()))?;
    drop(denied);

    // A flow for each port.
    let flows = |alice: &testnet::Namespace| -> Result<()> {
        let socket = alice.enter(|| UdpSocket::bind(("0.0.0.0", 0)))??;
        for port in 1..=u16::MAX {
            socket.send_to(&[0], (bob, port)).or_else(|error| match error.raw_os_error() {
                // Refused by ICMP, or the queue is full.
                Some(_) => Ok(0),
                None => Err(error),
            })?;
        }
        Ok(())
    };
    let mut sent = false;
    site.fires("TailraceEbpfTableFull", || {
        if !std::mem::replace(&mut sent, true) {
            flows(alice)?;
        }
        Ok(())
    })?;

    let wireguard = SocketAddr::from((site.gate.host().address(), WIREGUARD));
    let internet = site.control.host().namespace();
    let flood = Datagrams::send(internet, wireguard, 3000, initiation())?;
    site.fires("TailraceHandshakeFlood", || Ok(()))?;
    drop(flood);

    let mut closed = false;
    site.fires("TailraceFilterAdmitsNothing", || {
        if !std::mem::replace(&mut closed, true) {
            set_policy(&site.control, CLOSED)?;
        }
        Ok(())
    })?;
    set_policy(&site.control, POLICY)?;
    site.alice.reach(bob, CONNECT)?;

    let blocked = "table inet block { chain in { type filter hook input priority -400; \
                   iifname eth0 meta l4proto udp drop; }; }";
    let _pings = site.pings(&site.alice, bob)?;
    let mut cut = false;
    site.fires("TailracePeersRelayed", || {
        if !std::mem::replace(&mut cut, true) {
            site.bob.host().namespace().nft(blocked)?;
        }
        Ok(())
    })?;
    site.bob.host().namespace().exec(&["nft", "delete", "table", "inet", "block"])?;
    Ok(())
}

fn alerts_of_servers(site: &Site) -> Result<()> {
    let url = site.control.url();
    site.fires("TailraceControlAuthKeysRefused", || {
        let words = ["up", "--login-server", &url, "--auth-key", "nonsense", "--timeout", "5s"];
        let refused = site.outsider.try_cli(&words)?;
        ensure!(!refused.status.success(), "a key of nonsense is taken");
        Ok(())
    })?;

    let derp = SocketAddr::from((site.control.host().address(), 3340));
    let space = site.gate.host().namespace();
    site.fires("TailraceRelayHandshakesFail", || {
        for _ in 0..10 {
            let mut stream = space.enter(|| TcpStream::connect(derp))??;
            stream.write_all(b"this is no TLS\r\n\r\n")?;
        }
        Ok(())
    })?;

    // Nobody reads what is relayed to carol.
    let carol = site.carol.ip("-4")?;
    site.carol.process().signal(Signal::STOP)?;
    let flood = Datagrams::send(site.alice.host().namespace(), (carol, OPEN), 4000, vec![0; 1100])?;
    let dropped = site.fires("TailraceRelayDrops", || Ok(()));
    drop(flood);
    site.carol.process().signal(Signal::CONT)?;
    dropped?;

    let file = site.spare_policy.path().join("policy.hujson");
    site.fires("TailraceControlPolicyStale", || Ok(fs::write(&file, "{ no policy")?))?;
    fs::write(&file, POLICY)?;

    site.fires("TailraceControlDatabaseErrors", || {
        // What is under a file that SQLite has open changes: pages that it reads are none.
        let folder = site.spare.state_dir();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.contains(".db") && path.metadata()?.is_file() {
                let len = path.metadata()?.len();
                let file = fs::OpenOptions::new().write(true).open(&path)?;
                file.set_len(0)?;
                file.set_len(len)?;
            }
        }
        // It may be refused, and is, once the pages in memory do not suffice.
        drop(site.spare.admin(&["users", "create", "nobody"]));
        Ok(())
    })
}

/// Every documented family has been seen; every counter but those whose cause is tested elsewhere has counted.
fn everything_is_there(site: &Site) -> Result<()> {
    /// Caused by tests of their own: mesh and duplicate connections of relays, floods of connections, streams that
    /// fall behind, rekeying, clients that are too slow, cached maps, mapped ports.
    const ELSEWHERE: &[&str] = &[];
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
        let most = site.prometheus.values(&format!("max(max_over_time({name}[1h]))"))?;
        if most.iter().all(|value| *value == 0.0) {
            idle.push(family);
        }
    }
    ensure!(missing.is_empty(), "not shown: {missing:?}");
    let expected: BTreeSet<&str> = ELSEWHERE.iter().copied().collect();
    let idle: BTreeSet<&str> = idle.into_iter().collect();
    ensure!(idle == expected, "never above zero: {idle:?}, expected {expected:?}");
    Ok(())
}

/// What ends only with the daemons themselves.
fn outages(site: &mut Site) -> Result<()> {
    for name in ["TailraceControlNodesOffline", "TailraceDown"] {
        site.is_silent(name)?;
    }
    site.bob.kill()?;
    site.carol.kill()?;
    site.gate.kill()?;
    for name in ["TailraceControlNodesOffline", "TailraceDown"] {
        site.comes(name, || Ok(()))?;
    }
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
