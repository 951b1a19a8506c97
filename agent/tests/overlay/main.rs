//! Two nodes behind their NATs, one relay between them: the data plane without a coordination server.
//!
//! Runs on the embedded tunnel where the kernel has no WireGuard, on the kernel's where it has.

mod disco_keys;
mod fixture;

use std::time::Duration;

use agent::net::{Engine, EngineChoice, FilterPlace, NetError, NetStatus, PingPath};
use anyhow::{Context, Result, bail, ensure};
use fixture::{ALICE, BOB, Overlay, START};
use testnet::wait_until;

#[test]
fn two_nodes_reach_each_other_through_the_relay() -> Result<()> {
    testnet::skip_unless_available!("ping");
    for engine in [EngineChoice::Auto, EngineChoice::Embedded] {
        let mut overlay = Overlay::new(engine)?;
        overlay.join()?;

        overlay.ping(ALICE, BOB)?;
        overlay.ping(BOB, ALICE)?;

        let reply = overlay.disco_ping(ALICE, BOB)?;
        let PingPath::Relay { code, .. } = reply.path else {
            panic!("{reply:?}");
        };
        assert_eq!(code, "lab");
        let status = overlay.status(ALICE)?;
        let peer = &status.peers[&overlay.key(BOB)];
        assert!(peer.rx_bytes > 0 && peer.tx_bytes > 0, "{peer:?}");
        assert!(peer.active && peer.last_handshake.is_some(), "{peer:?}");
        assert_eq!(peer.relay, "lab");
        assert_eq!(peer.cur_addr, None);
        if status.filter.place == FilterPlace::Ebpf {
            assert!(
                peer.overlay
                    .is_some_and(|counted| counted.rx_packets > 0 && counted.tx_packets > 0),
                "{peer:?}"
            );
        }
        match (status.engine, &status.carrier) {
            (Engine::Kernel, None) => {}
            (Engine::Embedded, Some(carrier)) => {
                for state in &carrier.offloads {
                    let verdict = tunnel::verdicts().of(state.offload);
                    let missing = matches!(verdict, tunnel::Verdict::Missing(_));
                    ensure!(state.off.is_some() == missing, "{carrier:?}");
                }
                ensure!(carrier.counters.received > 0, "{carrier:?}");
            }
            other => bail!("{other:?}"),
        }
        println!(
            "{:?}: {}, filter {:?}",
            status.engine, status.engine_reason, status.filter
        );
    }
    Ok(())
}

#[test]
fn a_relay_that_comes_back_is_found_again() -> Result<()> {
    testnet::skip_unless_available!("ping");
    let mut overlay = Overlay::new(EngineChoice::Auto)?;
    overlay.join()?;
    overlay.ping(ALICE, BOB)?;

    overlay.stop_relay();
    wait_until(START, "the loss is noticed", || {
        let status = overlay.status(ALICE)?;
        ensure!(!status.relays.iter().any(|relay| relay.connected));
        Ok(())
    })?;
    overlay.start_relay()?;

    wait_until(Duration::from_secs(15), "the overlay heals", || {
        overlay.ping_once(ALICE, BOB)
    })?;
    Ok(())
}

#[test]
fn applying_again_changes_nothing_and_a_lost_device_comes_back() -> Result<()> {
    testnet::skip_unless_available!("ping");
    let mut overlay = Overlay::new(EngineChoice::Auto)?;
    overlay.join()?;
    overlay.ping(ALICE, BOB)?;
    let device = overlay.device_number(ALICE)?;
    let handshake = overlay.status(ALICE)?.peers[&overlay.key(BOB)].last_handshake;

    overlay.apply(ALICE)?;

    assert_eq!(overlay.device_number(ALICE)?, device);
    overlay.ping_once(ALICE, BOB)?;
    let now = overlay.status(ALICE)?.peers[&overlay.key(BOB)].last_handshake;
    let moved = now
        .zip(handshake)
        .map(|(now, then)| now.duration_since(then));
    let moved = moved.and_then(Result::ok).unwrap_or_default();
    assert!(
        moved < Duration::from_secs(2),
        "the session was lost: {moved:?}"
    );

    overlay.node(ALICE).namespace().ip("link del tailrace0")?;
    wait_until(Duration::from_secs(15), "the device is back", || {
        overlay.ping_once(ALICE, BOB)
    })?;
    assert_ne!(overlay.device_number(ALICE)?, device);
    Ok(())
}

#[test]
fn a_device_that_took_the_name_is_left_alone() -> Result<()> {
    testnet::skip_unless_available!();
    let mut overlay = Overlay::new(EngineChoice::Embedded)?;
    overlay.join()?;
    let namespace = overlay.node(ALICE).namespace();
    namespace.ip("link add other0 type bridge")?;
    // Renamed, because a device that is deleted comes back at once.
    for change in [
        "link set tailrace0 down",
        "link set tailrace0 name gone0",
        "link set other0 name tailrace0",
    ] {
        namespace.ip(change)?;
    }
    let foreign = overlay.device_number(ALICE)?;

    let error = overlay.apply(ALICE).unwrap_err();
    assert!(
        matches!(
            error.downcast_ref::<NetError>(),
            Some(NetError::ForeignDevice { .. })
        ),
        "{error:#}"
    );
    assert_eq!(overlay.device_number(ALICE)?, foreign);
    overlay.down(ALICE)?;
    assert_eq!(overlay.device_number(ALICE)?, foreign);
    Ok(())
}

#[test]
fn down_leaves_nothing_behind_and_idle_keeps_running() -> Result<()> {
    testnet::skip_unless_available!("ping");
    let mut overlay = Overlay::new(EngineChoice::Auto)?;
    let before = overlay.traces(ALICE)?;
    overlay.join()?;
    assert_ne!(overlay.traces(ALICE)?, before);

    overlay.idle(ALICE)?;
    assert_eq!(overlay.traces(ALICE)?, before);
    assert!(!overlay.status(ALICE)?.device_up);

    overlay.apply(ALICE)?;
    wait_until(START, "the overlay is back", || {
        overlay.ping_once(ALICE, BOB)
    })?;

    overlay.down(ALICE)?;
    assert_eq!(overlay.traces(ALICE)?, before);
    Ok(())
}

#[test]
fn a_restarted_agent_takes_over_what_it_left() -> Result<()> {
    testnet::skip_unless_available!("ping");
    let mut overlay = Overlay::new(EngineChoice::Auto)?;
    overlay.join()?;
    overlay.ping(ALICE, BOB)?;
    let before = overlay.status(ALICE)?;
    let device = overlay.device_number(ALICE)?;

    overlay.restart(ALICE)?;

    wait_until(START, "the overlay is back", || {
        overlay.ping_once(ALICE, BOB)
    })?;
    if before.engine == Engine::Kernel {
        let (old, new) = (before, overlay.status(ALICE)?);
        let bob = overlay.key(BOB);
        assert_eq!(overlay.device_number(ALICE)?, device);
        assert_eq!(
            new.peers[&bob].last_handshake,
            old.peers[&bob].last_handshake
        );
        let counted = |status: &NetStatus| status.peers[&bob].overlay.map(|seen| seen.rx_packets);
        assert!(counted(&new) > counted(&old));
    }
    Ok(())
}

#[test]
fn a_new_node_key_is_used_everywhere() -> Result<()> {
    testnet::skip_unless_available!("ping");
    let mut overlay = Overlay::new(EngineChoice::Auto)?;
    overlay.join()?;
    overlay.ping(ALICE, BOB)?;

    overlay.rotate(ALICE)?;

    wait_until(Duration::from_secs(15), "the new key works", || {
        overlay.ping_once(BOB, ALICE)
    })?;
    Ok(())
}

#[test]
fn a_busy_port_is_named_with_its_flag() -> Result<()> {
    testnet::skip_unless_available!();
    let overlay = Overlay::new(EngineChoice::Auto)?;
    let node = overlay.node(ALICE);
    let _squatter = node
        .namespace()
        .enter(|| std::net::UdpSocket::bind("0.0.0.0:41641"))?
        .context("cannot take the port")?;

    match fixture::start(node, EngineChoice::Auto) {
        Err(error) => {
            let text = error.to_string();
            assert!(
                matches!(error, NetError::PortInUse { port: 41641 }),
                "{text}"
            );
            assert!(text.contains("--port"), "{text}");
            Ok(())
        }
        Ok(_) => bail!("started on a busy port"),
    }
}
