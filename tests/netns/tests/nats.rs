//! Every pair of NATs: which find a direct path, and which stay on the relay.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::CONNECT;
use testnet::tailnet::{Control, ControlOptions, Engine, Node};
use testnet::{Lab, NatKind, scaled, skip_unless_available, wait_until};

/// Within which a pair that can goes direct, however busy the others keep the machine.
const UPGRADE: Duration = Duration::from_secs(20);
/// How long a pair that cannot is watched, with traffic.
const WATCH: Duration = Duration::from_secs(12);

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

/// Says whether two nodes at these places find a direct path.
///
/// All but two kinds let somebody in at an address that STUN or the operator knows. A router that varies
/// its mapping is not met at the one that STUN saw, and from the other it only gets through to whoever
/// does not insist on the port it sent to. IPv6 at both ends needs no translation.
fn is_direct(a: Site, b: Site) -> bool {
    use NatKind::{Carrier, DualStack, NoUdp, PortRestricted, Symmetric, SymmetricCarrier};
    if (a, b) == (Some(DualStack), Some(DualStack)) {
        return true;
    }
    let blocked = |site| site == Some(NoUdp);
    let varies = |site| matches!(site, Some(Symmetric | SymmetricCarrier | DualStack));
    let insists = |site| varies(site) || matches!(site, Some(PortRestricted | Carrier));
    let apart = varies(a) && insists(b) || varies(b) && insists(a);
    !apart && !blocked(a) && !blocked(b)
}

struct Member {
    name: String,
    site: Site,
    node: Node,
}

/// Checks one pair in one direction; returns what became of it.
fn check(from: &Member, to: &Member) -> Result<String> {
    let address = to.node.ip("-4")?;
    from.node.reach(address, CONNECT)?;
    let begin = Instant::now();
    let is_relayed = || -> Result<bool> {
        from.node.ping(address)?;
        Ok(from.node.peer(&to.name)?.text("CurAddr")?.is_empty())
    };
    if is_direct(from.site, to.site) {
        wait_until(UPGRADE, "the path is direct", || {
            ensure!(!is_relayed()?, "relayed");
            Ok(())
        })?;
        let took = begin.elapsed().as_secs_f64();
        return Ok(format!("direct within {took:.1} s"));
    }
    while begin.elapsed() < scaled(WATCH) {
        ensure!(is_relayed()?, "direct, against all expectation");
    }
    Ok("relayed".to_owned())
}

#[test]
fn every_pair_of_nats_ends_as_the_table_says() -> Result<()> {
    skip_unless_available!("ping");
    let mut lab = Lab::new()?;
    let control = Control::start(lab.server("control")?, ControlOptions::default())?;
    let key = control.auth_key(&["--reusable"])?;
    let mut members = Vec::new();
    // Two of each, so that each kind meets itself.
    for (number, site) in sites().into_iter().enumerate() {
        for twin in ["a", "b"] {
            let name = format!("n{number}{twin}");
            let host = match site {
                None => lab.server(&name)?,
                Some(kind) => lab.behind(&name, kind)?,
            };
            let node = Node::start(host)?;
            node.join(&control.url(), &key)?;
            members.push(Member { name, site, node });
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
                        match check(from, to) {
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
