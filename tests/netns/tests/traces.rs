//! What a node leaves on its host.

use anyhow::{Result, ensure};
use netns_tests::{CONNECT, KernelState};
use testnet::tailnet::{Control, ControlOptions, Node};
use testnet::{Lab, skip_unless_available, wait_until};

#[test]
fn down_leaves_nothing_in_the_kernel_and_up_comes_back() -> Result<()> {
    skip_unless_available!("ping");
    let mut lab = Lab::new()?;
    let control = Control::start(lab.server("control")?, ControlOptions::default())?;
    let key = control.auth_key(&["--reusable"])?;
    let peer = Node::start(lab.behind_nat("bob")?)?;
    peer.join(&control.url(), &key)?;
    let host = lab.behind_nat("alice")?;
    let before = KernelState::of(host.namespace())?;

    let alice = Node::start(host)?;
    alice.join(&control.url(), &key)?;
    alice.reach(peer.ip("-4")?, CONNECT)?;
    let during = KernelState::of(alice.host().namespace())?;
    ensure!(during != before, "the tunnel shows in the kernel");

    alice.cli(&["down"])?;
    wait_until(CONNECT, "nothing is left", || {
        let after = KernelState::of(alice.host().namespace())?;
        ensure!(
            after == before,
            "left behind:\n{}",
            before.difference(&after)
        );
        Ok(())
    })?;

    alice.cli(&["up"])?;
    alice.reach(peer.ip("-4")?, CONNECT)
}

#[test]
fn state_is_readable_by_its_owner_only() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    skip_unless_available!();
    let mut lab = Lab::new()?;
    let control = Control::start(lab.server("control")?, ControlOptions::default())?;
    let alice = Node::start(lab.behind_nat("alice")?)?;
    alice.join(&control.url(), &control.auth_key(&[])?)?;
    let mut files = 0;
    for entry in std::fs::read_dir(alice.state_dir())? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_file() {
            let mode = entry.metadata()?.permissions().mode() & 0o777;
            ensure!(
                mode & 0o077 == 0,
                "{:?} has mode {mode:o}",
                entry.file_name()
            );
            files += 1;
        }
    }
    ensure!(files > 0, "there is state");
    Ok(())
}
