//! Disco keys that nodes tell each other through the tunnel, where the network map is behind.

use std::net::IpAddr;

use agent::net::{EngineChoice, PingPath};
use anyhow::{Context, Result, ensure};
use testnet::wait_until;

use crate::fixture::{ALICE, BOB, Overlay, START};

/// Counts disco keys that come out of a node's tunnel, before anything else on the host sees them.
fn count(overlay: &Overlay, index: usize) -> Result<()> {
    overlay.node(index).namespace().nft(
        "table inet probe { chain c {
            type filter hook prerouting priority raw;
            iifname tailrace0 meta l4proto 99 @th,0,8 0x61 counter comment \"keys\";
        }; }",
    )
}

fn counted(overlay: &Overlay, index: usize) -> Result<u32> {
    let node = overlay.node(index).namespace();
    let listed = node.exec(&["nft", "list", "table", "inet", "probe"])?;
    let words = listed.split("counter packets ").nth(1);
    let number = words.and_then(|text| text.split(' ').next());
    Ok(number.context("no counter")?.parse()?)
}

/// Waits until both nodes have been told so many keys.
fn expect(overlay: &Overlay, keys: u32) -> Result<()> {
    wait_until(START, "both are told a key", || {
        // Only peers in use are told.
        overlay.ping_once(ALICE, BOB)?;
        let heard = [counted(overlay, ALICE)?, counted(overlay, BOB)?];
        ensure!(heard == [keys, keys], "{heard:?}");
        Ok(())
    })
}

#[test]
fn each_handshake_is_followed_by_one_disco_key_in_each_direction() -> Result<()> {
    testnet::skip_unless_available!("ping");
    let mut overlay = Overlay::direct(EngineChoice::Embedded)?;
    overlay.join()?;
    for index in [ALICE, BOB] {
        count(&overlay, index)?;
    }
    overlay.ping(ALICE, BOB)?;
    expect(&overlay, 1)?;
    // More looks at the same session than there are while a peer has just come into use.
    let bob: IpAddr = "100.64.0.2".parse()?;
    let pings = ["ping", "-n", "-c", "40", "-i", "0.2", &bob.to_string()];
    overlay.node(ALICE).namespace().exec(&pings)?;
    expect(&overlay, 1)?;

    // A new process has no session: there is another handshake.
    overlay.restart(BOB)?;
    overlay.ping(BOB, ALICE)?;
    expect(&overlay, 2)
}

#[test]
fn a_peer_with_another_disco_key_than_the_map_s_is_reached_directly_again() -> Result<()> {
    testnet::skip_unless_available!("ping");
    let mut overlay = Overlay::direct(EngineChoice::Embedded)?;
    overlay.join()?;
    overlay.ping(ALICE, BOB)?;
    let direct = |overlay: &Overlay| {
        wait_until(START, "the path is direct", || {
            overlay.ping_once(ALICE, BOB)?;
            let reply = overlay.disco_ping(ALICE, BOB)?;
            ensure!(matches!(reply.path, PingPath::Direct(_)), "{reply:?}");
            Ok(())
        })
    };
    direct(&overlay)?;

    let bob = overlay.key(BOB);
    let key = overlay.restart_with_new_disco_key(BOB)?;
    overlay.ping(BOB, ALICE)?;
    ensure!(
        overlay.disco_ping(ALICE, BOB).is_err(),
        "whoever has the map's key only cannot be answered"
    );
    let told = overlay.expect_disco_key(ALICE, bob)?;
    ensure!(told == key, "{told:?} is not {key:?}");
    let before = overlay.status(ALICE)?.peers[&bob].last_handshake;
    overlay.take_disco_key(ALICE, bob, key)?;
    // Now the map that ALICE goes by says the same.
    overlay.apply(ALICE)?;
    direct(&overlay)?;
    let after = overlay.status(ALICE)?.peers[&bob].last_handshake;
    let moved = before.zip(after).context("no session")?;
    let moved = moved.1.duration_since(moved.0).unwrap_or_default();
    ensure!(moved.as_secs() < 2, "the session was reset: {moved:?}");
    Ok(())
}
