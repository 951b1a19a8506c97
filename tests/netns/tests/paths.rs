//! Direct paths: from the relay to a peer's own address, and back.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::{CONNECT, End, both_ways, direct, pair};
use testnet::tailnet::{Control, ControlOptions, Node, Tailnet};
use testnet::{Lab, Namespace, scaled, skip_unless_available, wait_until};

/// Has a router let no UDP through.
const BLOCK: &str = "table inet block {
    chain forward { type filter hook forward priority -10; policy accept
        meta l4proto udp drop
    }
}
";

/// Has a router let no UDP in from the internet: what its host sends arrives, answers do not.
const BLOCK_INWARDS: &str = "table inet block {
    chain forward { type filter hook forward priority -10; policy accept
        iifname wan meta l4proto udp drop
    }
}
";
/// Has a router let no disco in, whose datagrams begin with its magic; WireGuard's pass.
const BLOCK_DISCO: &str = "table inet block {
    chain forward { type filter hook forward priority -10; policy accept
        iifname wan meta l4proto udp @th,64,48 0x5453f09f92ac drop
    }
}
";
/// Within which delivery goes on by the relay while there is traffic (the issue's promise).
const RESUMED: Duration = Duration::from_secs(3);

/// How long a stream lasts in which UDP is blocked.
const STREAM: Duration = Duration::from_secs(20);

#[test]
fn nodes_behind_nat_find_a_direct_path_and_lose_nothing_on_the_way_to_it() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = Tailnet::new(&["alice", "bob"])?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    wait_until(CONNECT, "both know each other's relay", || {
        for (node, peer) in [(alice, "bob"), (bob, "alice")] {
            ensure!(!node.peer(peer)?.text("Relay")?.is_empty(), "{peer}");
        }
        Ok(())
    })?;
    let address = bob.ip("-4")?.to_string();
    let begin = Instant::now();
    let pings = ["ping", "-n", "-c", "150", "-i", "0.02", &address];
    let said = alice.host().namespace().exec(&pings)?;
    ensure!(said.contains("150 received"), "{said}");
    println!("150 pings took {:?}\n{said}", begin.elapsed());
    for (node, peer) in [(alice, "bob"), (bob, "alice")] {
        let endpoint = wait_until(CONNECT, "the path is direct", || direct(node, peer))
            .with_context(|| node.process().log().join("\n"))?;
        println!("{peer} is reached at {endpoint}");
    }
    let said = alice.cli(&["ping", "--until-direct", "-c", "3", &address])?;
    ensure!(said.contains(" via 203.0.113."), "{said}");
    Ok(())
}

#[test]
fn blocked_udp_brings_the_relay_back_within_three_seconds() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = Tailnet::new(&["alice", "bob"])?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    let address = bob.ip("-4")?;
    alice.reach(address, CONNECT)?;
    wait_until(CONNECT, "the path is direct", || {
        alice.ping(address)?;
        direct(alice, "bob")
    })?;
    let router = alice.host().nat().context("no router")?.namespace();
    router.nft(BLOCK)?;
    let address = address.to_string();
    // Ten a second for eight seconds, each answered or not.
    let pings = [
        "ping", "-n", "-O", "-c", "80", "-i", "0.1", "-W", "1", &address,
    ];
    let output = alice
        .host()
        .namespace()
        .command("ping")
        .args(&pings[1..])
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let lost = said
        .lines()
        .filter(|line| line.starts_with("no answer"))
        .count();
    println!("{lost} pings without an answer in time");
    ensure!(lost <= 30, "{said}");
    ensure!(
        said.trim_end()
            .lines()
            .any(|line| line.contains("icmp_seq=80")),
        "{said}"
    );
    ensure!(direct(alice, "bob").is_err(), "the path is still direct");

    router.exec(&["nft", "delete", "table", "inet", "block"])?;
    wait_until(Duration::from_secs(30), "the path is direct again", || {
        alice.ping(bob.ip("-4")?)?;
        direct(alice, "bob")
    })?;
    Ok(())
}

#[test]
fn a_stream_both_ways_loses_nothing_when_its_path_becomes_direct() -> Result<()> {
    let tailnet = Tailnet::new(&["alice", "bob"])?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    let router = alice.host().nat().context("no router")?.namespace();
    router.nft(BLOCK)?;
    // Handshakes that both begin at the same moment undo each other: one of them begins.
    alice.reach(bob.ip("-4")?, CONNECT)?;
    ensure!(direct(alice, "bob").is_err(), "direct without UDP");
    let begin = Instant::now();
    let deliveries = both_ways([End::of(alice)?, End::of(bob)?], STREAM, || {
        router.exec(&["nft", "delete", "table", "inet", "block"])?;
        for (node, peer) in [(alice, "bob"), (bob, "alice")] {
            wait_until(STREAM, "the path is direct", || direct(node, peer))?;
        }
        println!("direct after {:?}", begin.elapsed());
        Ok(())
    })?;
    for delivery in deliveries {
        println!("{delivery:?}");
        ensure!(delivery.lost() == 0, "{delivery:?}");
    }
    Ok(())
}

/// Blocks UDP under a stream by `rules` in alice's router; whatever is blocked, the stream goes on.
fn survives(rules: &str) -> Result<()> {
    let tailnet = Tailnet::new(&["alice", "bob"])?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    alice.reach(bob.ip("-4")?, CONNECT)?;
    for (node, peer) in [(alice, "bob"), (bob, "alice")] {
        wait_until(CONNECT, "the path is direct", || {
            alice.ping(bob.ip("-4")?)?;
            direct(node, peer)
        })?;
    }
    let router = alice.host().nat().context("no router")?.namespace();
    let deliveries = both_ways([End::of(alice)?, End::of(bob)?], STREAM, || {
        router.nft(rules)
    })?;
    for delivery in deliveries {
        let resumed = delivery.silence.0;
        println!("{delivery:?}");
        ensure!(resumed <= scaled(RESUMED), "{delivery:?}");
        // Lost is what went out in that silence, and while the other side had not noticed yet.
        let most = delivery.sent as f64 * RESUMED.as_secs_f64() / STREAM.as_secs_f64();
        ensure!(delivery.lost() as f64 <= most, "{delivery:?}");
    }
    Ok(())
}

#[test]
fn a_stream_goes_on_by_the_relay_when_udp_is_blocked() -> Result<()> {
    survives(BLOCK)
}

#[test]
fn a_stream_goes_on_by_the_relay_when_udp_is_blocked_one_way() -> Result<()> {
    survives(BLOCK_INWARDS)
}

/// Counts the data that a router lets in of WireGuard's from another, and what comes of the relay's that holds
/// as much as a ping: its own frames are shorter, and so are acknowledgements.
fn count_copies(router: &Namespace, from: &Namespace) -> Result<()> {
    let listed = from.ip("-o -4 address show dev wan")?;
    let prefix = listed.split_whitespace().nth(3).context("no address")?;
    let from = prefix.split('/').next().context("no address")?;
    router.nft(&format!(
        "table inet copies {{
            counter straight {{ }}
            counter relayed {{ }}
            chain forward {{ type filter hook forward priority -20; policy accept
                iifname wan ip saddr {from} meta l4proto udp @th,64,32 0x04000000 counter name straight
                iifname wan tcp sport 3340 meta length > 150 counter name relayed
            }}
        }}"
    ))
}

/// How many copies have come straight, and by the relay.
fn copies(router: &Namespace) -> Result<[u64; 2]> {
    let count = |name: &str| -> Result<u64> {
        let listed = router.exec(&["nft", "list", "counter", "inet", "copies", name])?;
        let packets = listed.split("packets ").nth(1);
        let packets = packets.and_then(|text| text.split(' ').next());
        Ok(packets.context("no counter")?.parse()?)
    };
    Ok([count("straight")?, count("relayed")?])
}

/// How often `node` said that a peer is reached this way.
fn told(node: &Node, way: &str) -> usize {
    let lines = node.process().log();
    lines.iter().filter(|line| line.contains(way)).count()
}

/// Has alice send both ways: nothing comes in until she has noticed, after that all but disco. It ends
/// when her probes are given up, five seconds later.
fn untrust(alice: &Node, ping: &[&str]) -> Result<()> {
    const BOTH: &str = "reached by relay and, untrusted, directly";
    let router = alice.host().nat().context("no router")?.namespace();
    let before = told(alice, BOTH);
    router.nft(BLOCK_INWARDS)?;
    wait_until(CONNECT, "the path is not trusted", || {
        // Its answer comes by the relay at last, or not at all.
        alice.host().namespace().output(ping)?;
        ensure!(told(alice, BOTH) > before, "trusted");
        Ok(())
    })?;
    router.nft(&format!("delete table inet block\n{BLOCK_DISCO}"))
}

#[test]
fn what_a_peer_sends_both_ways_comes_both_ways_and_never_moves_the_endpoint() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = Tailnet::new(&["alice", "bob"])?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    let address = bob.ip("-4")?;
    alice.reach(address, CONNECT)?;
    let ping = address.to_string();
    let pings = ["ping", "-n", "-c", "10", "-i", "0.02", "-W", "1", &ping];
    let router = alice.host().nat().context("no router")?.namespace();
    let other = bob.host().nat().context("no router")?.namespace();
    count_copies(other, router)?;
    let both_direct = || -> Result<String> {
        wait_until(CONNECT * 2, "the path is direct", || {
            alice.ping(address)?;
            direct(alice, "bob")?;
            direct(bob, "alice")
        })
    };
    let stays = |expected: &str| -> Result<()> {
        let given_up = told(alice, "reached by relay peer");
        for round in 0..6 {
            let before = copies(other)?;
            let said = alice.host().namespace().exec(&pings)?;
            let after = copies(other)?;
            if told(alice, "reached by relay peer") > given_up {
                ensure!(round > 0, "sent one way only");
                break;
            }
            ensure!(said.contains("10 received"), "{said}");
            // What they are about: of each packet one copy came straight, and one by the relay, whose stream may
            // have two in one segment.
            for (before, after) in before.iter().zip(after) {
                ensure!(after >= before + 5, "copies were {before:?}, now {after:?}");
            }
            let alice = bob.peer("alice")?;
            let endpoint = alice.text("CurAddr")?;
            ensure!(endpoint == expected, "{endpoint:?}, not {expected:?}");
        }
        Ok(())
    };
    let single = ["ping", "-n", "-c", "1", "-W", "1", &ping];
    both_direct()?;
    untrust(alice, &single)?;
    wait_until(CONNECT, "nor by bob", || {
        ensure!(direct(bob, "alice").is_err(), "trusted");
        Ok(())
    })?;
    stays("").context("where the path is not trusted")?;

    // Chosen by hand it is: the relayed copies seem to come from there as well.
    router.exec(&["nft", "delete", "table", "inet", "block"])?;
    let endpoint = both_direct()?;
    let source = alice.ip("-4")?.to_string();
    bob.cli(&["debug", "endpoint", &source, &endpoint])?;
    untrust(alice, &single)?;
    stays(&endpoint).context("where the path is trusted")
}

#[test]
fn junk_on_the_port_is_counted_by_what_it_is_and_leads_to_nothing() -> Result<()> {
    const EACH: usize = 50;
    let mut lab = Lab::new()?;
    let control = Control::start(lab.server("control")?, ControlOptions::default())?;
    let node = Node::start(lab.server("node")?)?;
    node.join(&control.url(), &control.auth_key(&[])?)?;
    let port = SocketAddr::from((node.host().address(), 41641));
    let stranger = control.host().namespace();
    let stranger = stranger.enter(|| UdpSocket::bind(("0.0.0.0", 0)))??;
    // A disco message under a key that no peer has, an answer that nobody asked STUN for, and neither.
    let mut disco = b"TS\xf0\x9f\x92\xac".to_vec();
    disco.extend([0x5a; 32 + 24 + 64]);
    let stun = [&[1, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat();
    let junk = [
        ("unknown_sender", disco),
        ("stun", stun),
        ("foreign", vec![0xa5; 100]),
    ];
    for (reason, datagram) in &junk {
        for _ in 0..EACH {
            stranger.send_to(datagram, port)?;
        }
        wait_until(CONNECT, "it is counted", || {
            let counted = junk_of(&node, reason)?;
            ensure!(counted == EACH, "{counted} of {reason}");
            Ok(())
        })?;
    }
    node.cli(&["status"])?;
    Ok(())
}

/// How many datagrams led to nothing for this reason.
fn junk_of(node: &Node, reason: &str) -> Result<usize> {
    let metrics = node.metrics()?;
    let start = format!("tailrace_junk_datagrams_total{{reason=\"{reason}\"}} ");
    let mut lines = metrics.lines();
    let count = lines.find_map(|line| line.strip_prefix(&start));
    let count = count.with_context(|| format!("not told: {metrics}"))?;
    Ok(count.parse()?)
}

/// Prints a disco ping and a pong that come in while there is traffic to the first argument.
const OVERHEAR: &str = r"import socket, subprocess, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
s.settimeout(20)
words = ['ping', '-n', '-q', '-c', '40', '-i', '0.2', sys.argv[1]]
traffic = subprocess.Popen(words, stdout=subprocess.DEVNULL)
heard = {}
while len(heard) < 2:
    packet, (_, _, kind, _, _) = s.recvfrom(2048)
    payload = packet[(packet[0] & 15) * 4 + 8:]
    if kind == 0 and packet[9] == 17 and payload[:6] == b'TS\xf0\x9f\x92\xac':
        # Magic, key, nonce, authenticator, and what a ping or a pong without more has.
        name = {124: 'ping', 110: 'pong'}.get(len(payload))
        if name:
            heard[name] = payload.hex()
traffic.kill()
print(heard['ping'], heard['pong'])";

#[test]
fn junk_in_a_peer_s_name_is_counted_and_repetitions_change_nothing() -> Result<()> {
    const EACH: usize = 50;
    skip_unless_available!("ping", "python3");
    let mut lab = Lab::new()?;
    let control = Control::start(lab.server("control")?, ControlOptions::default())?;
    let key = control.auth_key(&["--reusable"])?;
    let mut join = |name: &str| -> Result<Node> {
        let node = Node::start(lab.server(name)?)?;
        node.join(&control.url(), &key)?;
        Ok(node)
    };
    let (alice, bob) = (join("alice")?, join("bob")?);
    let address = bob.ip("-4")?;
    let endpoint = wait_until(CONNECT, "a direct path", || {
        alice.ping(address)?;
        direct(&alice, "bob")
    })?;
    let overhear = ["python3", "-c", OVERHEAR, &address.to_string()];
    let heard = alice.host().namespace().exec(&overhear)?;
    let heard: Vec<Vec<u8>> = heard.split_whitespace().map(bytes).collect::<Result<_>>()?;
    let [ping, pong] = <[Vec<u8>; 2]>::try_from(heard).ok().context("two")?;
    let mut garbage = ping.clone();
    garbage[70..].fill(0x5a);
    let cut = ping[..ping.len() - 1].to_vec();
    let port = SocketAddr::from((alice.host().address(), 41641));
    let repeater = bob.host().namespace();
    let repeater = repeater.enter(|| UdpSocket::bind(("0.0.0.0", 0)))??;
    for (reason, datagram, expected) in [
        ("unopened", garbage, EACH),
        ("unopened", cut, 2 * EACH),
        // The first may be a new address of bob's: it is answered, and proves nothing.
        ("repeated_ping", ping, EACH - 1),
        ("unmatched_pong", pong, EACH),
    ] {
        for _ in 0..EACH {
            repeater.send_to(&datagram, port)?;
        }
        wait_until(CONNECT, "it is counted", || {
            let counted = junk_of(&alice, reason)?;
            // A pong may also be late by itself.
            let late = reason == "unmatched_pong" && counted > expected;
            ensure!(late || counted == expected, "{counted} of {reason}");
            Ok(())
        })?;
    }
    alice.ping(address)?;
    let now = direct(&alice, "bob")?;
    ensure!(now == endpoint, "moved from {endpoint} to {now}");
    Ok(())
}

/// Bytes that are written in hexadecimal.
fn bytes(text: &str) -> Result<Vec<u8>> {
    let byte = |at| Ok(u8::from_str_radix(&text[at..at + 2], 16)?);
    (0..text.len()).step_by(2).map(byte).collect()
}
