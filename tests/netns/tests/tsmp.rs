//! What agents say to each other inside the tunnel.

use std::fs;

use anyhow::{Context, Result, ensure};
use netns_tests::{CONNECT, addresses, connected_pair, pair, relay_apart};
use serde_json::Value;
use testnet::tailnet::Node;
use testnet::{Lab, Namespace, skip_unless_available, wait_until};

/// Counts what a host sends into the tunnel as an answer to a protocol that it does not know.
const UNKNOWN_PROTOCOL: &str = "table inet probe { chain c {
    type filter hook output priority raw;
    icmp type destination-unreachable icmp code 2 counter comment \"unknown\";
    icmpv6 type parameter-problem counter comment \"unknown\";
}; }";

/// How many packets a host's rules have counted.
fn counted(node: &Namespace) -> Result<u64> {
    let listed = node.exec(&["nft", "list", "table", "inet", "probe"])?;
    let counters = listed.split("counter packets ").skip(1);
    let numbers = counters.map(|text| text.split(' ').next().unwrap_or_default().parse::<u64>());
    let numbers: Vec<u64> = numbers.collect::<Result<_, _>>()?;
    ensure!(!numbers.is_empty(), "no counters in {listed}");
    Ok(numbers.iter().sum())
}

#[test]
fn agents_answer_each_other_inside_the_tunnel_and_hosts_do_not_interfere() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = connected_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    for node in [alice, bob] {
        node.host().namespace().nft(UNKNOWN_PROTOCOL)?;
    }
    for (from, to, name) in [(alice, bob, "bob"), (bob, alice, "alice")] {
        for address in addresses(to)? {
            let text = address.to_string();
            for (flag, kind) in [("--tsmp", "TSMP"), ("--icmp", "ICMP")] {
                let said = from.cli(&["ping", flag, "-c", "1", &text])?;
                let expected = format!("via {kind} in ");
                ensure!(said.starts_with(&format!("pong from {name} (")), "{said}");
                ensure!(said.contains(&expected), "{said}");
            }
        }
    }
    for node in [alice, bob] {
        let unknown = counted(node.host().namespace())?;
        ensure!(
            unknown == 0,
            "{unknown} packets were of an unknown protocol"
        );
    }
    Ok(())
}

#[test]
fn a_ping_of_a_peerapi_that_is_not_there_says_so() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = connected_pair()?;
    let [alice, _] = pair(&tailnet.nodes)?;
    let output = alice.try_cli(&["ping", "--peerapi", "-c", "1", "bob"])?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(!output.status.success(), "it succeeded: {said}");
    ensure!(said.contains("bob announces no PeerAPI"), "{said}");
    let both = alice.try_cli(&["ping", "--peerapi", "--tsmp", "bob"])?;
    ensure!(!both.status.success(), "two kinds at once");
    Ok(())
}

/// A program of the host may not speak TSMP, so neither does it get an answer.
#[test]
fn host_programs_do_not_get_into_the_tunnel_with_tsmp() -> Result<()> {
    skip_unless_available!("ping", "python3");
    let tailnet = connected_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    let node = bob.host().namespace();
    node.nft(
        "table inet probe { chain c { type filter hook prerouting priority raw;
            meta l4proto 99 counter comment \"tsmp\"; }; }",
    )?;
    let program = format!(
        "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 99)
try:
    s.sendto(b'p12345678', ('{}', 0))
except OSError:
    pass",
        bob.ip("-4")?
    );
    let spoken = alice.host().namespace().exec(&["python3", "-c", &program]);
    spoken.context("no raw socket")?;
    // What is sent after it has come.
    alice.ping(bob.ip("-4")?)?;
    let heard = counted(node)?;
    ensure!(heard == 0, "{heard} packets came through");
    Ok(())
}

#[test]
fn a_disco_key_that_a_peer_tells_replaces_the_map_s_and_leaves_the_session() -> Result<()> {
    skip_unless_available!("ping", "python3");
    let tailnet = connected_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    alice.cli(&["ping", "-c", "1", "bob"])?;
    let [from, to] = [bob.ip("-4")?, alice.ip("-4")?];
    // Past the filter, as the agent itself sends: an empty key, then one that is nobody's.
    let program = format!(
        "import socket
def tell(key):
    body = b'a' + key
    head = bytes([0x45, 0, 0, 20 + len(body), 0, 0, 0, 0, 64, 99, 0, 0])
    head += socket.inet_aton('{from}') + socket.inet_aton('{to}')
    total = sum(int.from_bytes(head[at:at + 2], 'big') for at in range(0, 20, 2))
    total = (total & 0xffff) + (total >> 16)
    head = head[:10] + (0xffff ^ ((total & 0xffff) + (total >> 16))).to_bytes(2, 'big') + head[12:]
    s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    s.setsockopt(263, 20, 1)
    s.sendto(head + body, ('tailrace0', 0x0800))
tell(bytes(32))
tell(bytes([9] * 32))"
    );
    let told = || {
        alice
            .process()
            .log()
            .join("\n")
            .matches("tells its new disco key")
            .count()
    };
    wait_until(CONNECT, "the key is taken over", || {
        bob.host().namespace().exec(&["python3", "-c", &program])?;
        ensure!(told() == 1, "{} keys were taken over", told());
        Ok(())
    })?;
    // A difference of the map that says nothing about keys.
    tailnet
        .control
        .admin(&["nodes", "rename", "bob", "robert"])?;
    wait_until(CONNECT, "the map has changed", || {
        let said = alice.cli(&["status"])?;
        ensure!(said.contains("robert"), "{said}");
        Ok(())
    })?;
    // Whoever has that key cannot open what is sealed to it; the tunnel goes on.
    let output = alice.try_cli(&["ping", "-c", "1", &from.to_string()])?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(said.starts_with("no answer from"), "{said}");
    alice.cli(&["ping", "--tsmp", "-c", "1", &from.to_string()])?;
    ensure!(told() == 1, "{} keys were taken over", told());
    Ok(())
}

/// From this capability version on a peer hears disco keys inside the tunnel; ours states an older one.
const HEARS: u64 = 144;

/// How many disco keys a node has taken over that peers told it.
fn keys_told(node: &Node) -> usize {
    let log = node.process().log();
    let told = |line: &&String| line.contains("tells its new disco key");
    log.iter().filter(told).count()
}

/// Has the map that a node wrote down give its one peer a capability version, and the node a new disco key.
fn edit_state(node: &Node, version: u64) -> Result<()> {
    let edit = |name: &str, change: &dyn Fn(&mut Value) -> Result<()>| -> Result<()> {
        let path = node.state_dir().join(name);
        let mut value = serde_json::from_str(&fs::read_to_string(&path)?)?;
        change(&mut value)?;
        Ok(fs::write(path, value.to_string())?)
    };
    edit("netmap.json", &|map| {
        let peers = map.pointer_mut("/Map/peers").and_then(Value::as_object_mut);
        let peers = peers.context("no peers")?;
        ensure!(peers.len() == 1, "{} peers", peers.len());
        for peer in peers.values_mut() {
            peer["Cap"] = version.into();
        }
        Ok(())
    })?;
    edit("identity.json", &|identity| {
        let disco = identity["Disco"].as_str().context("no disco key")?;
        let mut key: Vec<char> = disco.chars().collect();
        // In the middle, where no bit is fixed: the kernel's sessions would keep the key.
        let middle = key.len() - 30;
        key[middle] = if key[middle] == '0' { '1' } else { '0' };
        identity["Disco"] = key.into_iter().collect::<String>().into();
        Ok(())
    })
}

#[test]
fn a_peer_to_which_the_map_gives_capability_version_144_is_told_a_new_disco_key() -> Result<()> {
    skip_unless_available!("ping");
    let mut lab = Lab::new()?;
    let (_relay, mut control) = relay_apart(&mut lab)?;
    let key = control.auth_key(&["--reusable"])?;
    let mut alice = Node::start(lab.behind_nat("alice")?)?;
    alice.join(&control.url(), &key)?;
    let bob = Node::start(lab.behind_nat("bob")?)?;
    bob.join(&control.url(), &key)?;
    let address = bob.ip("-4")?;
    alice.reach(address, CONNECT)?;
    wait_until(CONNECT, "alice has written down who bob is", || {
        let map = fs::read_to_string(alice.state_dir().join("netmap.json"))?;
        ensure!(map.contains(&address.to_string()), "not yet");
        Ok(())
    })?;
    // From now on nobody else tells bob.
    control.kill()?;

    for (version, told) in [(HEARS - 1, 0), (HEARS, 1)] {
        alice.kill()?;
        edit_state(&alice, version)?;
        alice.start_again()?;
        alice.reach(address, CONNECT)?;
        // Without her key bob cannot prove the path that they had.
        let what = format!("version {version}: {told} keys told, and as many direct paths");
        wait_until(CONNECT, &what, || {
            alice.ping(address)?;
            for (node, peer) in [(&alice, "bob"), (&bob, "alice")] {
                let peer = node.peer(peer)?;
                let direct = !peer.text("CurAddr")?.is_empty();
                ensure!(direct == (told == 1), "direct: {direct}: {peer:?}");
            }
            ensure!(keys_told(&bob) == told, "{} keys", keys_told(&bob));
            Ok(())
        })?;
    }
    Ok(())
}
