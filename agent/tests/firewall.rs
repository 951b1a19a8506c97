//! The host's netfilter with real packets: a router of namespaces, whose overlay device is a cable.
//!
//! ```text
//! peer 100.64.0.2 ──tailrace0── router ──lan── host 10.1.0.2 (served), 10.9.0.2 (not served)
//! ```

#![allow(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use agent::firewall::{Config, Firewall};
use anyhow::{Context, Result, bail, ensure};
use testnet::{Namespace, veth, wait_until};

const LIMIT: Duration = Duration::from_secs(10);
const HEALED: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_millis(300);
const WIREGUARD: u16 = 41641;
const AGENT: u16 = 41700;
const PORT: u16 = 7000;

struct Network {
    peer: Namespace,
    router: Namespace,
    lan: Namespace,
}

impl Network {
    fn new() -> Result<Self> {
        let peer = Namespace::new("fwp")?;
        let router = Namespace::new("fwr")?;
        let lan = Namespace::new("fwl")?;
        veth((&peer, "eth0"), (&router, "tailrace0"))?;
        veth((&lan, "eth0"), (&router, "lan"))?;
        for (host, device, net) in [
            (&peer, "eth0", "100.64.0.2/10"),
            (&peer, "eth0", "fd7a:115c:a1e0::2/48"),
            (&router, "tailrace0", "100.64.0.1/10"),
            (&router, "tailrace0", "fd7a:115c:a1e0::1/48"),
            (&router, "lan", "10.1.0.1/24"),
            (&router, "lan", "10.9.0.1/24"),
            (&router, "lan", "fd00:1::1/64"),
            (&lan, "eth0", "10.1.0.2/24"),
            (&lan, "eth0", "10.9.0.2/24"),
            (&lan, "eth0", "fd00:1::2/64"),
        ] {
            host.ip(&format!("address add {net} dev {device}"))?;
        }
        for (host, router) in [
            (&peer, ["100.64.0.1", "fd7a:115c:a1e0::1"]),
            (&lan, ["10.1.0.1", "fd00:1::1"]),
        ] {
            for via in router {
                host.ip(&format!("route add default via {via}"))?;
            }
        }
        router.sysctl("net/ipv4/ip_forward", "1")?;
        router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        Ok(Self { peer, router, lan })
    }

    fn rules(&self) -> Result<String> {
        self.router.exec(&["nft", "-s", "list", "ruleset"])
    }

    /// Waits until `nft` lists `before` again; returns how long that took.
    fn healed(&self, before: &str) -> Result<Duration> {
        let start = Instant::now();
        wait_until(LIMIT, "the rules are back", || {
            let now = self.rules()?;
            ensure!(now == before, "{now}");
            Ok(())
        })?;
        Ok(start.elapsed())
    }
}

fn config() -> Config {
    Config {
        device: "tailrace0".to_owned(),
        divert: true,
        forwards: true,
        uses_exit_node: true,
        wireguard_port: WIREGUARD,
        agent_port: Some(AGENT),
        detoured: Default::default(),
        masquerade: true,
        served: ["10.1.0.0/24", "fd00:1::/64"]
            .map(|net| net.parse().unwrap())
            .to_vec(),
        exit_node: false,
    }
}

/// Runs `test` while the firewall of `config` is up in the router, then takes that away.
fn while_up(network: &Network, config: &Config, test: impl FnOnce() -> Result<()>) -> Result<()> {
    after(network, std::slice::from_ref(config), test)
}

/// Runs `test` in the router after its firewall went through these, one after the other; takes that away.
fn after(network: &Network, configs: &[Config], test: impl FnOnce() -> Result<()>) -> Result<()> {
    let (up, is_up) = mpsc::channel();
    let (down, mut is_down) = tokio::sync::mpsc::channel::<()>(1);
    std::thread::scope(|scope| {
        let shell = scope.spawn(|| {
            network.router.enter(move || -> Result<()> {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(async {
                    let firewall = Firewall::new()?;
                    for config in configs {
                        firewall.apply(config).await?;
                    }
                    up.send(())?;
                    is_down.recv().await;
                    ensure!(firewall.trouble().borrow().is_none());
                    firewall.remove(&config().device).await?;
                    Ok(())
                })
            })
        });
        let result = match is_up.recv() {
            Ok(()) => test(),
            Err(_) => Ok(()), // the shell tells why
        };
        drop(down);
        let ended = shell.join();
        result?;
        match ended {
            Ok(ended) => ended?,
            Err(_) => bail!("the shell panicked"),
        }
    })
}

fn socket(host: &Namespace, address: &str, port: u16) -> Result<UdpSocket> {
    let address: IpAddr = address.parse()?;
    let socket = host.enter(|| UdpSocket::bind((address, port)))??;
    socket.set_read_timeout(Some(LIMIT))?;
    Ok(socket)
}

fn receive(socket: &UdpSocket) -> Result<(Vec<u8>, SocketAddr)> {
    let mut buffer = [0; 64];
    let (len, from) = socket.recv_from(&mut buffer).context("nothing came")?;
    Ok((buffer[..len].to_vec(), from))
}

fn is_silent(socket: &UdpSocket) -> Result<bool> {
    socket.set_read_timeout(Some(SILENCE))?;
    let silent = receive(socket).is_err();
    socket.set_read_timeout(Some(LIMIT))?;
    Ok(silent)
}

#[test]
fn one_port_serves_wireguard_and_the_agent() -> Result<()> {
    testnet::skip_unless_available!("nft");
    let network = Network::new()?;
    while_up(&network, &config(), || {
        for (ours, theirs) in [("10.1.0.1", "10.1.0.2"), ("fd00:1::1", "fd00:1::2")] {
            let wireguard = socket(&network.router, ours, WIREGUARD)?;
            let agent = socket(&network.router, ours, AGENT)?;
            let peer = socket(&network.lan, theirs, PORT)?;
            let address = SocketAddr::new(ours.parse()?, WIREGUARD);

            for kind in 1..=4 {
                peer.send_to(&[kind, 0, 0, 0, 9, 9], address)?;
                ensure!(receive(&wireguard)?.0[0] == kind);
            }
            for payload in [
                &b"TS\xf0\x9f\x92\xac..."[..],
                &[0, 1, 0, 8, 0x21, 0x12, 0xa4, 0x42],
            ] {
                peer.send_to(payload, address)?;
                let (got, from) = receive(&agent)?;
                ensure!(got == payload);
                agent.send_to(b"answer", from)?;
                ensure!(receive(&peer)? == (b"answer".to_vec(), address));
            }
            peer.send_to(b"straight", SocketAddr::new(address.ip(), AGENT))?;
            ensure!(is_silent(&agent)?, "the agent's own port is open");
            for junk in [&b"TS odd!!"[..], &[0xa5; 64]] {
                peer.send_to(junk, address)?;
            }
            ensure!(is_silent(&agent)? && is_silent(&wireguard)?, "junk arrives");
        }
        let junk = ["nft", "list", "chain", "inet", "tailrace0", "junk"];
        let listed = network.router.exec(&junk)?;
        ensure!(listed.contains("counter packets 4 "), "{listed}");
        Ok(())
    })
}

#[test]
fn what_comes_from_a_detoured_source_goes_to_the_agent_until_it_is_none_any_more() -> Result<()> {
    testnet::skip_unless_available!("nft");
    let network = Network::new()?;
    let detours = Config {
        detoured: ["10.1.0.2:7000", "[fd00:1::2]:7000"]
            .map(|source| source.parse().unwrap())
            .into(),
        ..config()
    };
    let packet = [4, 0, 0, 0, 9, 9];
    for (configs, detoured) in [
        (vec![config(), detours.clone()], true),
        (vec![config(), detours, config()], false),
    ] {
        after(&network, &configs, || {
            for (ours, theirs) in [("10.1.0.1", "10.1.0.2"), ("fd00:1::1", "fd00:1::2")] {
                let wireguard = socket(&network.router, ours, WIREGUARD)?;
                let agent = socket(&network.router, ours, AGENT)?;
                let address = SocketAddr::new(ours.parse()?, WIREGUARD);
                let source = socket(&network.lan, theirs, PORT)?;
                let other = socket(&network.lan, theirs, PORT + 1)?;
                for (peer, to_agent) in [(&source, detoured), (&other, false)] {
                    peer.send_to(&packet, address)?;
                    let (taker, idle) = match to_agent {
                        true => (&agent, &wireguard),
                        false => (&wireguard, &agent),
                    };
                    ensure!(receive(taker)? == (packet.to_vec(), peer.local_addr()?));
                    ensure!(is_silent(idle)?, "twice");
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn peers_reach_the_served_lan_and_nothing_else_comes_back() -> Result<()> {
    testnet::skip_unless_available!("nft");
    let network = Network::new()?;
    while_up(&network, &config(), || {
        for (peer, host, router) in [
            ("100.64.0.2", "10.1.0.2", "10.1.0.1"),
            ("fd7a:115c:a1e0::2", "fd00:1::2", "fd00:1::1"),
        ] {
            let caller = socket(&network.peer, peer, PORT)?;
            let host = socket(&network.lan, host, PORT)?;
            caller.send_to(b"call", host.local_addr()?)?;
            let (_, from) = receive(&host)?;
            ensure!(
                from.ip() == router.parse::<IpAddr>()?,
                "masqueraded: {from}"
            );
            host.send_to(b"answer", from)?;
            receive(&caller)?;

            // A served host calls a peer.
            let host = socket(&network.lan, &host.local_addr()?.ip().to_string(), PORT + 1)?;
            host.send_to(b"call", caller.local_addr()?)?;
            let (_, from) = receive(&caller)?;
            ensure!(from == host.local_addr()?, "not masqueraded: {from}");
        }
        let caller = socket(&network.peer, "100.64.0.2", PORT)?;
        let stranger = socket(&network.lan, "10.9.0.2", PORT)?;
        stranger.send_to(b"call", caller.local_addr()?)?;
        ensure!(is_silent(&caller)?, "a host that is not served got through");

        // Nobody but a peer has a peer's address.
        network.lan.ip("address add 100.64.0.9/32 dev eth0")?;
        network.router.ip("route add 100.64.0.9/32 dev lan")?;
        let router = socket(&network.router, "10.1.0.1", PORT)?;
        let spoofer = socket(&network.lan, "100.64.0.9", PORT)?;
        spoofer.send_to(b"spoof", router.local_addr()?)?;
        spoofer.send_to(b"spoof", caller.local_addr()?)?;
        ensure!(is_silent(&router)? && is_silent(&caller)?);
        Ok(())
    })
}

#[test]
fn only_an_exit_node_forwards_beyond_what_is_served() -> Result<()> {
    testnet::skip_unless_available!("nft");
    let network = Network::new()?;
    network.router.nft(
        "table ip published { chain prerouting {
            type nat hook prerouting priority dstnat;
            ip daddr 100.64.0.1 udp dport 7100 dnat to 10.9.0.2:7000;
        }; }",
    )?;
    for exit_node in [false, true] {
        let config = Config {
            exit_node,
            ..config()
        };
        while_up(&network, &config, || {
            let caller = socket(&network.peer, "100.64.0.2", PORT)?;
            let stranger = socket(&network.lan, "10.9.0.2", PORT)?;
            caller.send_to(b"call", stranger.local_addr()?)?;
            ensure!(is_silent(&stranger)? != exit_node);

            // A port of the router that leads to a container, say.
            caller.send_to(b"call", "100.64.0.1:7100")?;
            let (_, from) = receive(&stranger)?;
            stranger.send_to(b"answer", from)?;
            receive(&caller)?;
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_flushed_ruleset_is_whole_again_within_two_seconds() -> Result<()> {
    testnet::skip_unless_available!("nft");
    let network = Network::new()?;
    let other = "table inet other { chain c { accept; }; }";
    network.router.nft(other)?;
    let before = network.rules()?;
    while_up(&network, &config(), || {
        let table = ["nft", "-s", "list", "table", "inet", "tailrace0"];
        let whole = network.router.exec(&table)?;
        for touch in [
            "flush ruleset",
            "delete table inet tailrace0",
            "flush chain inet tailrace0 forward",
            "add rule inet tailrace0 input accept",
        ] {
            network.router.nft(touch)?;
            let start = Instant::now();
            wait_until(LIMIT, "the table is back", || {
                ensure!(network.router.exec(&table)? == whole);
                Ok(())
            })?;
            println!("{touch}: {:?}", start.elapsed());
            ensure!(start.elapsed() < testnet::scaled(HEALED), "{touch}");
        }
        network.router.nft(other)
    })?;
    assert_eq!(network.rules()?, before);
    Ok(())
}

#[test]
fn a_host_that_drops_by_default_forwards_ours_and_is_left_as_it_was() -> Result<()> {
    testnet::skip_unless_available!("iptables-nft");
    let network = Network::new()?;
    let tools = ["iptables-nft", "ip6tables-nft"];
    let shut = || -> Result<()> {
        for tool in tools {
            for chain in ["INPUT", "FORWARD"] {
                let run = |words: &[&str]| network.router.exec(&[&[tool], words].concat());
                run(&["-P", chain, "DROP"])?;
                run(&["-A", chain, "-i", "eth7", "-j", "DROP"])?;
                run(&["-A", chain, "-i", "eth8", "-j", "ACCEPT"])?;
            }
        }
        Ok(())
    };
    let saved = || -> Result<String> {
        let mut text = String::new();
        for tool in tools {
            text += &network.router.exec(&[tool, "-S"])?;
        }
        Ok(text)
    };
    shut()?;
    let (before, rules) = (saved()?, network.rules()?);
    while_up(&network, &config(), || {
        let open = saved()?;
        ensure!(open.matches("tailrace tailrace0").count() == 8, "{open}");
        let host = socket(&network.lan, "10.1.0.2", PORT)?;
        let caller = socket(&network.peer, "100.64.0.2", PORT)?;
        let call = || -> Result<()> {
            caller.send_to(b"call", host.local_addr()?)?;
            let (_, from) = receive(&host)?;
            host.send_to(b"answer", from)?;
            receive(&caller)?;
            Ok(())
        };
        call()?;
        // The host's firewall is loaded anew, as ufw and Docker do.
        for tool in tools {
            network.router.exec(&[tool, "-F"])?;
        }
        shut()?;
        let start = Instant::now();
        wait_until(LIMIT, "the marked rules are back", || {
            let now = saved()?;
            ensure!(now == open, "{now}\n{open}");
            Ok(())
        })?;
        ensure!(start.elapsed() < testnet::scaled(HEALED));
        let whole = network.rules()?;
        network
            .router
            .exec(&["nft", "delete", "table", "inet", "tailrace0"])?;
        ensure!(network.healed(&whole)? < testnet::scaled(HEALED));
        call()
    })?;
    assert_eq!(saved()?, before);
    assert_eq!(network.rules()?, rules);
    Ok(())
}
