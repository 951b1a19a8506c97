//! The lab itself: who reaches whom, and that nothing stays behind. Needs root.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testnet::{Lab, Line, Namespace, run, skip_unless_available, wait_until};

#[test]
fn a_host_behind_nat_reaches_a_server_but_is_not_reached() -> Result<()> {
    skip_unless_available!("ping");
    let mut lab = Lab::new()?;
    let server = lab.server("server")?;
    let alice = lab.behind_nat("alice")?;
    let bob = lab.behind_nat("bob")?;

    let ping = |from: &Namespace, to: &str| from.exec(&["ping", "-n", "-c1", "-W1", to]);
    wait_until(Duration::from_secs(10), "alice reaches the server", || {
        ping(alice.namespace(), &server.address().to_string())
    })?;
    wait_until(Duration::from_secs(10), "bob reaches the server", || {
        ping(bob.namespace(), &server.address().to_string())
    })?;

    // Alice's router has 203.0.113.100, Bob's 203.0.113.101: both keep silent.
    ensure!(
        ping(server.namespace(), "203.0.113.100").is_err(),
        "the router answered unasked"
    );
    ensure!(
        ping(alice.namespace(), "203.0.113.101").is_err(),
        "the router answered unasked"
    );

    // Not even with a route to the private network behind it.
    server
        .namespace()
        .ip("route add 192.168.1.0/24 via 203.0.113.100")?;
    ensure!(
        ping(server.namespace(), "192.168.1.2").is_err(),
        "the NAT forwarded unasked"
    );
    Ok(())
}

#[test]
fn frames_take_their_time_on_a_bad_line_and_some_get_lost() -> Result<()> {
    skip_unless_available!("ping");
    let mut lab = Lab::new()?;
    // Over two cables, there and back again: two of three echoes return, 20 ms later.
    lab.lay(Line {
        delay: Duration::from_millis(5),
        loss: 100,
        seed: 7,
    });
    let (alice, bob) = (lab.server("alice")?, lab.server("bob")?);
    let address = bob.address().to_string();
    let ping = ["ping", "-n", "-c", "200", "-i", "0.01", "-W", "1", &address];
    let said = alice.namespace().exec(&ping)?;
    let received = said.split(" received").next();
    let received = received.and_then(|text| text.rsplit(' ').next());
    let received: u32 = received.context("no count")?.parse()?;
    ensure!((80..180).contains(&received), "{said}");
    let fastest = said.split("= ").nth(1).and_then(|t| t.split('/').next());
    let fastest: f64 = fastest.context("no times")?.parse()?;
    ensure!(fastest >= 20.0, "{said}");
    Ok(())
}

#[test]
fn a_closure_sees_the_namespace_it_entered() -> Result<()> {
    skip_unless_available!();
    let space = Namespace::new("inside")?;
    space.ip("link add marker type bridge")?;
    let names = || -> std::io::Result<Vec<String>> {
        let entries = std::fs::read_dir("/sys/class/net")?;
        Ok(entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect())
    };
    let inside = space.enter(names)??;
    ensure!(inside.contains(&"marker".to_owned()), "inside: {inside:?}");
    ensure!(
        !names()?.contains(&"marker".to_owned()),
        "the closure's thread leaked"
    );
    ensure!(
        space.exec(&["hostname"])?.trim() == "inside",
        "the host name is the label"
    );
    Ok(())
}

#[test]
fn nothing_stays_after_a_panic() -> Result<()> {
    skip_unless_available!();
    let outcome = std::thread::spawn(|| {
        let mut lab = Lab::new().expect("lab");
        let _host = lab.behind_nat("panicker").expect("host");
        let _process = _host
            .namespace()
            .spawn("sleep", &["sleep", "600"])
            .expect("spawn");
        panic!("on purpose");
    })
    .join();
    ensure!(outcome.is_err(), "the thread panicked");
    let list = run(Command::new("ip").args(["netns", "list"]))?;
    let own = format!("tr{}-panicker", std::process::id());
    ensure!(!list.contains(&own), "left behind: {list}");
    Ok(())
}
