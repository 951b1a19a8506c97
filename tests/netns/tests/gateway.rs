//! Subnet routers and exit nodes, as their users and their LAN see them.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::{CONNECT, Echo, GATEWAY_POLICY, Gateway, KernelState, set_policy, transfer};
use testnet::tailnet::{Control, ControlOptions, Node};
use testnet::{Lab, Lan, Namespace, scaled, skip_unless_available, wait_until};

const SUBNET: &[&str] = &[
    "--advertise-routes=10.77.1.0/24,fd77:1::/64",
    "--enable-ip-forward",
];
const EXIT: &[&str] = &["--advertise-exit-node", "--enable-ip-forward"];
const ROUTED: &[&str] = &[
    "--advertise-routes=10.77.1.0/24,fd77:1::/64",
    "--snat-subnet-routes=false",
    "--enable-ip-forward",
];
/// Port of the echo service.
const PORT: u16 = 7;
/// Time within which forwarding heals after somebody broke it (issue's promise).
const HEAL: Duration = Duration::from_secs(2);

/// Pings until an answer comes.
fn reach(from: &Namespace, address: IpAddr, deadline: Duration) -> Result<()> {
    wait_until(deadline, &format!("{address} answers"), || {
        ping(from, address, &[]).map(drop)
    })
}

fn ping(from: &Namespace, address: IpAddr, options: &[&str]) -> Result<String> {
    let address = address.to_string();
    let words = [&["ping", "-n", "-c", "1", "-W", "1"], options, &[&address]].concat();
    from.exec(&words)
}

#[test]
fn a_subnet_router_carries_tcp_udp_and_pings_of_both_families() -> Result<()> {
    skip_unless_available!("ping");
    let site = Gateway::start(SUBNET)?;
    let host = site.lan.host();
    let echo = Echo::serve(host, PORT)?;
    let ours: Vec<IpAddr> = ["10.77.1.1".parse()?, "fd77:1::1".parse()?].into();
    for (address, gateway) in site.lan.addresses().into_iter().zip(ours) {
        reach(site.node(), address, CONNECT)?;
        transfer(site.node(), host, address, 8 << 20).context("alice to the LAN")?;
        for len in [64, 1200] {
            let seen = echo.call(site.node(), address, len)?;
            ensure!(seen == gateway, "the LAN sees {seen}, not the gateway");
        }
    }
    let metrics = site.gate.metrics()?;
    // What was sent, in packets of the tunnel; and an acknowledgement for every buffer of them.
    for (from, least) in [("peer", 10_000), ("lan", 50)] {
        let past = format!(
            r#"tailrace_forwarded_packets_total{{from="{from}",outcome="past_the_stack"}}"#
        );
        let line = metrics.lines().find_map(|line| line.strip_prefix(&past));
        let packets: u64 = line
            .context("nothing went past the stack")?
            .trim()
            .parse()?;
        ensure!(packets > least, "{packets} from {from}");
    }
    Ok(())
}

#[test]
fn without_snat_both_sides_see_each_other_as_they_are() -> Result<()> {
    skip_unless_available!("ping");
    let site = Gateway::start(ROUTED)?;
    let host = site.lan.host();
    let echo = Echo::serve(host, PORT)?;
    let back = Echo::serve(site.node(), PORT)?;
    let nodes = [site.alice.ip("-4")?, site.alice.ip("-6")?];
    for (address, node) in site.lan.addresses().into_iter().zip(nodes) {
        reach(site.node(), address, CONNECT)?;
        let seen = echo.call(site.node(), address, 64)?;
        ensure!(seen == node, "the LAN sees {seen}, not the node");
        let seen = back.call(host, node, 64)?;
        ensure!(seen == address, "the node sees {seen}, not the LAN's host");
        transfer(site.node(), host, address, 8 << 20).context("alice to the LAN")?;
        transfer(host, site.node(), node, 8 << 20).context("the LAN to alice")?;
    }
    Ok(())
}

#[test]
fn an_exit_node_carries_what_goes_outside_and_only_for_whom_it_may() -> Result<()> {
    skip_unless_available!("ping");
    let site = Gateway::start(EXIT)?;
    let host = site.lan.host();
    let echo = Echo::serve(host, PORT)?;
    wait_until(CONNECT, "the exit node is offered", || {
        ensure!(site.alice.peer("gate")?.flag("ExitNodeOption")?, "not yet");
        Ok(())
    })?;
    for address in site.lan.outside() {
        ensure!(
            ping(site.node(), address, &[]).is_err(),
            "{address} answers without an exit node"
        );
    }
    site.alice.cli(&["set", "--exit-node=gate"])?;
    for address in site.lan.outside() {
        reach(site.node(), address, CONNECT)?;
        transfer(site.node(), host, address, 8 << 20).context("alice to the outside")?;
        echo.call(site.node(), address, 1200)?;
    }
    // The gateway's own networks are not the outside.
    for address in site.lan.addresses() {
        ensure!(
            ping(site.node(), address, &[]).is_err(),
            "{address} in the exit node's LAN answers"
        );
    }
    site.alice.cli(&["set", "--exit-node="])?;
    wait_until(CONNECT, "the way outside is closed", || {
        for address in site.lan.outside() {
            ensure!(
                ping(site.node(), address, &[]).is_err(),
                "{address} answers"
            );
        }
        Ok(())
    })
}

#[test]
fn hosts_of_two_sites_see_each_other_as_they_are() -> Result<()> {
    skip_unless_available!("ping");
    let mut lab = Lab::new()?;
    let control = Control::start(lab.server("control")?, ControlOptions::default())?;
    set_policy(&control, GATEWAY_POLICY)?;
    let mut sites = Vec::new();
    for (name, number) in [("berlin", 1), ("paris", 2)] {
        let node = Node::start(lab.server(name)?)?;
        let space = node.host().namespace();
        let lan = Lan::behind(space, &format!("{name}-host"), number)?;
        node.join(&control.url(), &control.auth_key(&["--tags", "tag:gate"])?)?;
        let routes = format!("--advertise-routes={}", lan.prefixes().join(","));
        let flags = [
            "--accept-routes",
            "--snat-subnet-routes=false",
            "--enable-ip-forward",
        ];
        node.cli(&[&["set", &routes], flags.as_slice()].concat())?;
        sites.push((node, lan));
    }
    let [(_, berlin), (_, paris)] = sites.as_slice() else {
        anyhow::bail!("two sites")
    };
    let echo = Echo::serve(paris.host(), PORT)?;
    for (ours, theirs) in berlin.addresses().into_iter().zip(paris.addresses()) {
        reach(berlin.host(), theirs, CONNECT)?;
        let seen = echo.call(berlin.host(), theirs, 1000)?;
        ensure!(seen == ours, "Paris sees {seen}, not Berlin's host {ours}");
        transfer(berlin.host(), paris.host(), theirs, 8 << 20).context("Berlin to Paris")?;
        transfer(paris.host(), berlin.host(), ours, 8 << 20).context("Paris to Berlin")?;
    }
    Ok(())
}

#[test]
fn packets_too_long_for_the_tunnel_are_told_so_and_fragments_arrive() -> Result<()> {
    skip_unless_available!("ping");
    let site = Gateway::start(ROUTED)?;
    let host = site.lan.host();
    let echo = Echo::serve(host, PORT)?;
    let nodes = [site.alice.ip("-4")?, site.alice.ip("-6")?];
    for (address, node) in site.lan.addresses().into_iter().zip(nodes) {
        reach(site.node(), address, CONNECT)?;
        // The tunnel takes 1280 bytes, or 1440 once the path has shown that it carries them; the LAN 1500: the
        // gateway must tell the LAN's host.
        let report = host.output(&[
            "ping",
            "-n",
            "-c",
            "2",
            "-W",
            "1",
            "-M",
            "do",
            "-s",
            "1450",
            &node.to_string(),
        ])?;
        let text = String::from_utf8_lossy(&report.stdout).into_owned()
            + &String::from_utf8_lossy(&report.stderr);
        ensure!(
            text.contains("1280") || text.contains("1440"),
            "{node}: the LAN's host was not told: {text}"
        );
        // Fragmented at the source, in either direction.
        ping(host, node, &["-M", "dont", "-s", "3000"]).context("fragments from the LAN")?;
        ping(site.node(), address, &["-s", "3000"]).context("fragments to the LAN")?;
        echo.call(site.node(), address, 4000)
            .context("UDP in fragments")?;
    }
    Ok(())
}

#[test]
fn the_gateway_shows_on_the_way_and_errors_of_the_lan_arrive() -> Result<()> {
    skip_unless_available!("ping");
    let site = Gateway::start(SUBNET)?;
    for address in site.lan.addresses() {
        reach(site.node(), address, CONNECT)?;
        let report = site.node().output(&[
            "ping",
            "-n",
            "-c",
            "1",
            "-W",
            "1",
            "-t",
            "1",
            &address.to_string(),
        ])?;
        let text = String::from_utf8_lossy(&report.stdout).into_owned();
        ensure!(
            text.contains("exceeded") || text.contains("Hop limit"),
            "{address}: nobody said that the TTL was over: {text}"
        );
        // A port where nobody listens: the host's ICMP error reaches the sender's socket.
        let refused = site.node().enter(|| -> Result<std::io::ErrorKind> {
            let any: IpAddr = if address.is_ipv4() {
                "0.0.0.0".parse()?
            } else {
                "::".parse()?
            };
            let socket = std::net::UdpSocket::bind((any, 0))?;
            socket.set_read_timeout(Some(scaled(Duration::from_secs(2))))?;
            socket.connect((address, 9))?;
            socket.send(&[0; 32])?;
            match socket.recv(&mut [0; 64]) {
                Ok(_) => anyhow::bail!("{address} answered on port 9"),
                Err(error) => Ok(error.kind()),
            }
        })??;
        ensure!(
            refused == std::io::ErrorKind::ConnectionRefused,
            "{address}: {refused} instead of the host's error"
        );
    }
    Ok(())
}

#[test]
fn a_policy_change_cuts_and_admits_a_live_flow() -> Result<()> {
    skip_unless_available!("ping");
    let site = Gateway::start(SUBNET)?;
    let echo = Echo::serve(site.lan.host(), PORT)?;
    let [address, _] = site.lan.addresses();
    wait_until(CONNECT, "the LAN answers", || {
        echo.call(site.node(), address, 64)
    })?;
    site.set_policy(&GATEWAY_POLICY.replace(r#""ip": ["*"]"#, r#""ip": ["tcp:22"]"#))?;
    wait_until(CONNECT, "the policy cuts", || {
        ensure!(echo.call(site.node(), address, 64).is_err(), "it answers");
        Ok(())
    })?;
    site.set_policy(GATEWAY_POLICY)?;
    wait_until(CONNECT, "the policy admits", || {
        echo.call(site.node(), address, 64)
    })?;
    Ok(())
}

#[test]
fn forwarding_heals_after_the_ruleset_was_flushed_and_strangers_tables_stay() -> Result<()> {
    skip_unless_available!("ping");
    let site = Gateway::start(SUBNET)?;
    let echo = Echo::serve(site.lan.host(), PORT)?;
    let [address, _] = site.lan.addresses();
    let gateway: IpAddr = "10.77.1.1".parse()?;
    wait_until(CONNECT, "the LAN answers", || {
        echo.call(site.node(), address, 64)
    })?;
    for _ in 0..3 {
        site.router().exec(&["nft", "flush", "ruleset"])?;
        let stranger = "table inet stranger { chain c { type filter hook forward priority 5; policy accept; counter; }; }";
        site.router().nft(stranger)?;
        let before = site.router().exec(&["nft", "list", "chains", "inet"])?;
        let start = Instant::now();
        // A new flow: it needs the masquerading.
        wait_until(HEAL, "forwarding is back", || {
            let seen = echo.call(site.node(), address, 64)?;
            ensure!(seen == gateway, "it leaves as {seen}");
            Ok(())
        })?;
        println!("healed in {:.2} s", start.elapsed().as_secs_f64());
        ensure!(
            site.router()
                .exec(&["nft", "list", "table", "inet", "stranger"])
                .is_ok(),
            "the stranger's table is gone; before: {before}"
        );
    }
    Ok(())
}

#[test]
fn forwarding_survives_links_that_flap_and_are_renamed() -> Result<()> {
    skip_unless_available!("ping");
    let site = Gateway::start(SUBNET)?;
    let echo = Echo::serve(site.lan.host(), PORT)?;
    let [address, _] = site.lan.addresses();
    wait_until(CONNECT, "the LAN answers", || {
        echo.call(site.node(), address, 64)
    })?;
    for name in ["lan1", "lan0"] {
        let other = if name == "lan1" { "lan0" } else { "lan1" };
        site.router().ip(&format!("link set {other} down"))?;
        site.router().ip(&format!("link set {other} name {name}"))?;
        site.router().ip(&format!("link set {name} up"))?;
        wait_until(HEAL, "forwarding is back", || {
            echo.call(site.node(), address, 64)
        })?;
    }
    Ok(())
}

#[test]
fn nothing_leaks_between_lan_and_tailnet_beside_the_routes() -> Result<()> {
    skip_unless_available!("ping");
    let site = Gateway::start(SUBNET)?;
    let [address, _] = site.lan.addresses();
    reach(site.node(), address, CONNECT)?;
    // Not approved: beyond the LAN's host, though the gateway has a route there.
    let [outside, _] = site.lan.outside();
    site.node()
        .ip(&format!("route add {outside} dev tailrace0"))?;
    ensure!(
        ping(site.node(), outside, &[]).is_err(),
        "{outside} answers, which the gateway does not serve"
    );
    // From the LAN with a source that is not of the gateway's routes.
    let node = site.alice.ip("-4")?;
    ensure!(
        ping(site.lan.host(), node, &["-I", &outside.to_string()]).is_err(),
        "{node} answers to a source that the gateway does not route"
    );
    Ok(())
}

#[test]
fn down_leaves_nothing_of_a_gateway() -> Result<()> {
    skip_unless_available!("ping");
    let mut lab = Lab::new()?;
    let control = Control::start(lab.server("control")?, ControlOptions::default())?;
    let host = lab.server("gate")?;
    let lan = Lan::behind(host.namespace(), "lan", 1)?;
    host.namespace().sysctl("net/ipv4/ip_forward", "1")?;
    host.namespace()
        .sysctl("net/ipv6/conf/all/forwarding", "1")?;
    host.namespace().nft(
        "table inet stranger { chain c { type filter hook forward priority 5; policy accept; }; }",
    )?;
    let before = KernelState::of(host.namespace())?;
    let gate = Node::start(host)?;
    gate.join(&control.url(), &control.auth_key(&[])?)?;
    gate.cli(&[
        "set",
        "--advertise-routes=10.77.1.0/24",
        "--advertise-exit-node",
    ])?;
    wait_until(CONNECT, "the firewall is set up", || {
        let during = KernelState::of(gate.host().namespace())?;
        ensure!(
            during.difference(&before).contains("tailrace"),
            "nothing of ours shows"
        );
        Ok(())
    })?;
    gate.cli(&["down"])?;
    wait_until(CONNECT, "nothing is left", || {
        let after = KernelState::of(gate.host().namespace())?;
        ensure!(
            after == before,
            "left behind:\n{}",
            before.difference(&after)
        );
        Ok(())
    })?;
    drop(lan);
    Ok(())
}
