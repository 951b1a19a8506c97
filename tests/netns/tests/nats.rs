//! Every pair of NATs: which find a direct path, and which stay on the relay.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, anyhow, ensure};
use netns_tests::CONNECT;
use testnet::nat_model::{Behaviour, Dependence, are_direct};
use testnet::tailnet::{Control, ControlOptions, Engine, Node};
use testnet::{Host, Lab, NatKind, scaled, skip_unless_available, wait_until};

/// Within which a pair that can goes direct, however busy the others keep the machine. Alone it takes a tenth of
/// a second; a second try, after five, is none that any pair should need.
const UPGRADE: Duration = Duration::from_millis(4500);
/// Packets of a pair that goes direct, from the first on, ten a second: none of them may get lost.
const PACKETS: &str = "20";
/// How long a pair that cannot is watched, with traffic.
const WATCH: Duration = Duration::from_secs(12);

/// As RFC 4787 has it, and home routers do: a mapping outlasts two minutes.
const HOME: Behaviour = Behaviour {
    mapping: Dependence::Independent,
    filtering: Dependence::AddressAndPort,
    lifetime: Duration::from_secs(120),
    hairpin: false,
};

/// Where a node is; `None` is a host with a public address.
type Site = Option<NatKind>;

/// All of them, but where the kernel's WireGuard is tested: there an emulated machine has to carry every node.
fn sites() -> Vec<Site> {
    let kinds = match Engine::under_test() {
        Engine::Kernel => vec![
            NatKind::Restricted,
            NatKind::PortRestricted,
            NatKind::Symmetric,
        ],
        Engine::Auto | Engine::Embedded => NatKind::ALL.to_vec(),
    };
    let kinds = kinds.into_iter().map(Some);
    std::iter::once(None).chain(kinds).collect()
}

/// What of a place's NAT the model knows. A forwarded port lets in anybody, at an address that the operator tells.
fn behaviour(site: Site) -> Option<Behaviour> {
    use Dependence::{Address, AddressAndPort, Independent};
    let like = |mapping, filtering| {
        Some(Behaviour {
            mapping,
            filtering,
            ..HOME
        })
    };
    match site? {
        NatKind::FullCone | NatKind::Forwarded => like(Independent, Independent),
        NatKind::Restricted => like(Independent, Address),
        NatKind::PortRestricted | NatKind::Carrier => like(Independent, AddressAndPort),
        NatKind::Symmetric | NatKind::SymmetricCarrier | NatKind::DualStack => {
            like(AddressAndPort, AddressAndPort)
        }
        NatKind::Modelled(behaviour) => Some(behaviour),
        NatKind::NoUdp | NatKind::V6Only => None,
    }
}

/// Says whether two nodes at these places find a direct path. IPv6 at both ends needs no translation.
fn is_direct(a: Site, b: Site) -> bool {
    let has_v6 = |site| matches!(site, Some(NatKind::DualStack | NatKind::V6Only));
    let has_v4 = |site| !matches!(site, Some(NatKind::NoUdp | NatKind::V6Only));
    let over_v6 = has_v6(a) && has_v6(b);
    over_v6 || has_v4(a) && has_v4(b) && are_direct(behaviour(a), behaviour(b))
}

struct Member {
    name: String,
    site: Site,
    node: Node,
}

impl Member {
    /// Starts a node on `host` and has it join.
    fn join(name: &str, site: Site, host: Host, control: &Control, key: &str) -> Result<Member> {
        let node = Node::start(host)?;
        node.join(&control.url(), key)?;
        Ok(Member {
            name: name.to_owned(),
            site,
            node,
        })
    }
}

/// Checks that one pair in one direction goes direct, or never does; returns what became of it.
fn check(from: &Member, to: &Member, direct: bool) -> Result<String> {
    let address = to.node.ip("-4")?;
    let is_relayed = || Ok::<_, Error>(from.node.peer(&to.name)?.text("CurAddr")?.is_empty());
    if direct {
        let took = go_direct(from, to)?.as_secs_f64();
        return Ok(format!("direct within {took:.1} s"));
    }
    from.node.reach(address, CONNECT)?;
    let begin = Instant::now();
    while begin.elapsed() < scaled(WATCH) {
        from.node.ping(address)?;
        ensure!(is_relayed()?, "direct, against all expectation");
    }
    Ok("relayed".to_owned())
}

/// Checks that a pair goes direct in time, at both ends, and that nothing that is sent meanwhile gets lost;
/// returns how long it took from the first packet.
fn go_direct(from: &Member, to: &Member) -> Result<Duration> {
    let both = [(from, to), (to, from)];
    for (node, peer) in both {
        wait_until(CONNECT, "the peer's relay is known", || {
            let peer = node.node.peer(&peer.name)?;
            ensure!(!peer.text("Relay")?.is_empty(), "{peer:?}");
            Ok(())
        })?;
    }
    let address = to.node.ip("-4")?.to_string();
    let patience = scaled(Duration::from_secs(2)).as_secs().to_string();
    let pings = [
        "ping", "-n", "-c", PACKETS, "-i", "0.1", "-W", &patience, &address,
    ];
    let begin = Instant::now();
    thread::scope(|scope| {
        let sent = scope.spawn(|| from.node.host().namespace().output(&pings));
        for (node, peer) in both {
            wait_until(UPGRADE, "the path is direct", || {
                let peer = node.node.peer(&peer.name)?;
                ensure!(!peer.text("CurAddr")?.is_empty(), "relayed");
                Ok(())
            })?;
        }
        let took = begin.elapsed();
        let sent = sent.join().map_err(|_| anyhow!("the ping panicked"))??;
        let said = String::from_utf8_lossy(&sent.stdout);
        ensure!(said.contains(&format!(" {PACKETS} received")), "{said}");
        Ok(took)
    })
}

/// A machine has few processors: one matrix at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Puts two nodes at each place, so that each kind meets itself, and checks every pair.
fn matrix(sites: Vec<Site>) -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut lab = Lab::new()?;
    let control = Control::start(lab.server("control")?, ControlOptions::default())?;
    let key = control.auth_key(&["--reusable"])?;
    let mut members = Vec::new();
    for (number, site) in sites.into_iter().enumerate() {
        for twin in ["a", "b"] {
            let name = format!("n{number}{twin}");
            let host = match site {
                None => lab.server(&name)?,
                Some(kind) => lab.behind(&name, kind)?,
            };
            members.push(Member::join(&name, site, host, &control, &key)?);
        }
    }
    let (callers, called): (Vec<&Member>, Vec<&Member>) = (
        members.iter().step_by(2).collect(),
        members.iter().skip(1).step_by(2).collect(),
    );
    let failed: Vec<String> = thread::scope(|scope| {
        // Each caller calls one after the other: a machine has few processors.
        let calls: Vec<_> = callers
            .iter()
            .map(|from| {
                let called = &called;
                scope.spawn(move || {
                    let mut failed = Vec::new();
                    for to in called {
                        let pair = format!("{:?} → {:?}", from.site, to.site);
                        match check(from, to, is_direct(from.site, to.site)) {
                            Ok(ended) => println!("{pair}: {ended}"),
                            Err(error) => failed.push(format!("{pair}: {error:#}")),
                        }
                    }
                    failed
                })
            })
            .collect();
        let joined = calls.into_iter().map(|call| match call.join() {
            Ok(failed) => failed,
            Err(_) => vec!["a caller panicked".to_owned()],
        });
        joined.flatten().collect()
    });
    ensure!(
        failed.is_empty(),
        "{} pairs:\n{}",
        failed.len(),
        failed.join("\n")
    );
    Ok(())
}

#[test]
fn every_pair_of_nats_ends_as_the_table_says() -> Result<()> {
    skip_unless_available!("ping");
    matrix(sites())
}

#[test]
fn every_way_to_map_meets_every_way_to_filter() -> Result<()> {
    skip_unless_available!("ping");
    let sites = Dependence::ALL.into_iter().flat_map(|mapping| {
        Dependence::ALL.map(|filtering| {
            Some(NatKind::Modelled(Behaviour {
                mapping,
                filtering,
                ..HOME
            }))
        })
    });
    matrix(sites.collect())
}

#[test]
fn customers_of_one_carrier_meet_where_it_turns_packets_around() -> Result<()> {
    skip_unless_available!("ping");
    for hairpin in [true, false] {
        let mut lab = Lab::new()?;
        let control = Control::start(lab.server("control")?, ControlOptions::default())?;
        let key = control.auth_key(&["--reusable"])?;
        let mut carrier = lab.carrier("carrier", Behaviour { hairpin, ..HOME })?;
        let mut member = |name: &str| {
            let host = lab.customer(name, &mut carrier)?;
            Member::join(name, None, host, &control, &key)
        };
        let (alice, bob) = (member("alice")?, member("bob")?);
        println!("{hairpin}: {}", check(&alice, &bob, hairpin)?);
    }
    Ok(())
}

#[test]
fn nodes_with_ipv6_alone_meet_and_nobody_needs_ipv4() -> Result<()> {
    skip_unless_available!("ping");
    let mut lab = Lab::new()?;
    let control = Control::start(lab.server_v6("control")?, ControlOptions::default())?;
    let key = control.auth_key(&["--reusable"])?;
    let mut member = |name: &str, kind| {
        let host = lab.behind(name, kind)?;
        Member::join(name, Some(kind), host, &control, &key)
    };
    let alice = member("alice", NatKind::V6Only)?;
    for other in [
        member("bob", NatKind::V6Only)?,
        member("carol", NatKind::DualStack)?,
    ] {
        for (from, to) in [(&alice, &other), (&other, &alice)] {
            println!("{} → {}: {}", from.name, to.name, check(from, to, true)?);
        }
    }
    Ok(())
}

/// What some home routers and most carriers give UDP.
const SHORT: Duration = Duration::from_secs(30);
/// When a path that nobody uses is no longer kept alive (disco.md).
const IDLE: Duration = Duration::from_secs(45);

#[test]
fn a_path_outlasts_short_mappings_and_comes_back_after_they_ended() -> Result<()> {
    skip_unless_available!("ping");
    let mut lab = Lab::new()?;
    let control = Control::start(lab.server("control")?, ControlOptions::default())?;
    let key = control.auth_key(&["--reusable"])?;
    let kind = NatKind::Modelled(Behaviour {
        lifetime: SHORT,
        ..HOME
    });
    let mut join = |name: &str| -> Result<Node> {
        let node = Node::start(lab.behind(name, kind)?)?;
        node.join(&control.url(), &key)?;
        Ok(node)
    };
    let nodes = [join("alice")?, join("bob")?];
    let [alice, bob] = &nodes;
    let address = bob.ip("-4")?;
    alice.reach(address, CONNECT)?;
    let direct = || {
        wait_until(UPGRADE, "the path is direct", || {
            alice.ping(address)?;
            ensure!(!alice.peer("bob")?.text("CurAddr")?.is_empty(), "relayed");
            Ok(())
        })
    };
    direct()?;
    // One packet every ten seconds, for two lifetimes: what keeps the mapping is the path's own pings.
    let text = address.to_string();
    let pings = ["ping", "-n", "-c", "7", "-i", "10", "-W", "2", &text];
    let said = alice.host().namespace().exec(&pings)?;
    ensure!(said.contains("7 received"), "{said}");
    ensure!(!alice.peer("bob")?.text("CurAddr")?.is_empty(), "relayed");
    // Time is what is tested here: until nobody keeps the mappings, and they are gone.
    thread::sleep(IDLE + SHORT + Duration::from_secs(5));
    // The first packet is answered, by the relay or directly.
    let said = alice
        .host()
        .namespace()
        .exec(&["ping", "-n", "-c", "1", "-W", "2", &text])?;
    ensure!(said.contains("1 received"), "{said}");
    direct()
}
