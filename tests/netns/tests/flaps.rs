//! Links, addresses and processes that come and go at random, under traffic: no tunnel dies of it.
//!
//! `FLAPS_SECONDS=3600` makes it an hour, `FLAPS_SEED` another sequence.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netns_tests::{CONNECT, Echo, Flow};
use testnet::tailnet::{Control, ControlOptions, Node};
use testnet::{Lab, NatKind, scaled, wait_until};

const KINDS: [NatKind; 4] = [
    NatKind::PortRestricted,
    NatKind::FullCone,
    NatKind::Symmetric,
    NatKind::Restricted,
];
/// Longest of the troubles, all of which end by themselves or leave the relay.
const TROUBLE: Duration = Duration::from_secs(3);
/// Silence after which a tunnel counts as dead: a trouble after another, and time to heal.
const DEAD: Duration = Duration::from_secs(30);
/// As much of each node's log is shown if one dies.
const LAST_LINES: usize = 1000;
const PORT: u16 = 7007;
/// Where routers move to: each has so many addresses of its own, from this one on.
const FIRST_ADDRESS: u64 = 120;
const ADDRESSES: u64 = 30;
const PAUSE: Duration = Duration::from_millis(200);

fn number(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text}")),
        Err(_) => Ok(default),
    }
}

/// Numbers that are the same in every run with one seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// When each ordered pair last had an answer.
struct Pair {
    name: String,
    state: Mutex<(Instant, Duration)>,
}

impl Pair {
    /// The silence so far, and the longest.
    fn silence(&self) -> (Duration, Duration) {
        let state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        (state.0.elapsed(), state.1.max(state.0.elapsed()))
    }

    fn call(&self, mut flow: Flow, ended: &AtomicBool) {
        while !ended.load(Ordering::Relaxed) {
            // Not to wait for anything: this is the rate.
            thread::sleep(PAUSE);
            if flow.call(200).is_ok() {
                let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
                *state = (Instant::now(), state.1.max(state.0.elapsed()));
            }
        }
    }
}

fn router(node: &Node) -> Result<&testnet::Namespace> {
    Ok(node.host().nat().context("no router")?.namespace())
}

/// Makes trouble for one node, or ends it; returns what it was. `address` is where it moves to if it moves.
fn trouble(node: &mut Node, random: &mut Random, address: u64) -> Result<String> {
    let rules = |rule: &str| {
        format!(
            "table inet flap\ndelete table inet flap\ntable inet flap {{ chain forward {{
                type filter hook forward priority -10; policy accept
                {rule}
            }}
            }}"
        )
    };
    let wan = router(node)?;
    Ok(match random.below(8) {
        0 => {
            wan.nft(&rules("meta l4proto udp drop"))?;
            "no UDP".to_owned()
        }
        1 => {
            wan.nft(&rules("iifname wan meta l4proto udp drop"))?;
            "no UDP inwards".to_owned()
        }
        2 => {
            wan.nft(&rules("oifname wan meta l4proto udp drop"))?;
            "no UDP outwards".to_owned()
        }
        3 | 4 => {
            wan.nft(&rules(""))?;
            "free".to_owned()
        }
        5 => {
            // Masquerading forgets its mappings with it.
            wan.ip("link set wan down")?;
            let time = Duration::from_millis(100 + random.below(TROUBLE.as_millis() as u64));
            thread::sleep(time);
            wan.ip("link set wan up")?;
            format!("no link for {time:?}")
        }
        6 => {
            let address = format!("203.0.113.{}", FIRST_ADDRESS + address);
            wan.ip("addr flush dev wan")?;
            wan.ip(&format!("addr add {address}/24 dev wan"))?;
            format!("moved to {address}")
        }
        _ => {
            node.kill()?;
            node.start_again()?;
            "restarted".to_owned()
        }
    })
}

#[test]
fn no_tunnel_dies_of_links_addresses_and_processes_that_come_and_go() -> Result<()> {
    let time = Duration::from_secs(number("FLAPS_SECONDS", 40)?);
    let seed = number("FLAPS_SEED", 1)?;
    let mut random = Random(seed);
    let mut lab = Lab::new()?;
    let control = Control::start(lab.server("control")?, ControlOptions::default())?;
    let key = control.auth_key(&["--reusable"])?;
    let mut nodes = Vec::new();
    for (number, kind) in KINDS.into_iter().enumerate() {
        let node = Node::start(lab.behind(&format!("n{number}"), kind)?)?;
        node.join(&control.url(), &key)?;
        nodes.push(node);
    }
    let mut echoes = Vec::new();
    for node in &nodes {
        wait_until(CONNECT, "its address", || node.ip("-4"))?;
        echoes.push(Echo::serve(node.host().namespace(), PORT)?);
    }
    let (mut pairs, mut flows) = (Vec::new(), Vec::new());
    for (a, from) in nodes.iter().enumerate() {
        for (b, to) in nodes.iter().enumerate().filter(|(b, _)| a != *b) {
            let address = to.ip("-4")?;
            from.reach(address, CONNECT)?;
            flows.push(echoes[b].flow(from.host().namespace(), address)?);
            pairs.push(Pair {
                name: format!("{:?} → {:?}", KINDS[a], KINDS[b]),
                state: Mutex::new((Instant::now(), Duration::ZERO)),
            });
        }
    }
    let ended = AtomicBool::new(false);
    let begin = Instant::now();
    let outcome = thread::scope(|scope| {
        for (pair, flow) in pairs.iter().zip(flows) {
            let ended = &ended;
            scope.spawn(move || pair.call(flow, ended));
        }
        let outcome = flap(&mut nodes, &pairs, &mut random, (begin, time));
        ended.store(true, Ordering::Relaxed);
        outcome
    });
    for pair in &pairs {
        println!("{}: longest silence {:?}", pair.name, pair.silence().1);
    }
    if outcome.is_err() {
        for (number, node) in nodes.iter().enumerate() {
            let log = node.process().log();
            for line in log.iter().skip(log.len().saturating_sub(LAST_LINES)) {
                println!("n{number} | {line}");
            }
        }
    }
    outcome.with_context(|| format!("FLAPS_SEED={seed}"))
}

fn flap(
    nodes: &mut [Node],
    pairs: &[Pair],
    random: &mut Random,
    (begin, time): (Instant, Duration),
) -> Result<()> {
    let mut troubles = 0;
    while begin.elapsed() < time {
        let number = random.below(nodes.len() as u64);
        let node = nodes.get_mut(number as usize).context("no node")?;
        troubles += 1;
        // Two routers with one address would be trouble that no tunnel survives.
        let address = number * ADDRESSES + troubles % ADDRESSES;
        let was = trouble(node, random, address)?;
        println!("{:?} n{number}: {was}", begin.elapsed());
        thread::sleep(Duration::from_millis(500 + random.below(5000)));
        for pair in pairs {
            let (silence, _) = pair.silence();
            if silence > scaled(DEAD) {
                bail!("{}: nothing for {silence:?}", pair.name);
            }
        }
    }
    for node in nodes.iter() {
        router(node)?.nft("table inet flap\ndelete table inet flap")?;
    }
    let calm = Instant::now();
    wait_until(DEAD, "every tunnel answers", || {
        for pair in pairs {
            let (silence, _) = pair.silence();
            ensure!(silence < calm.elapsed(), "{}: {silence:?}", pair.name);
        }
        Ok(())
    })?;
    println!("{troubles} troubles");
    Ok(())
}
