//! Debian packages, found by the programs they bring.

use std::io;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};

use crate::program::{find, is_root, run};

/// A program and the Debian package that holds it.
pub(crate) type Need = (&'static str, &'static str);

/// What the lab of the demo and of the netns tests runs.
pub(crate) const LAB: &[Need] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("iptables-nft", "iptables"),
    ("conntrack", "conntrack"),
    ("iperf3", "iperf3"),
    ("ping", "iputils-ping"),
];

/// What the VM tests add.
pub(crate) const VM: &[Need] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("bash", "bash"),
    ("cpio", "cpio"),
    ("xz", "xz-utils"),
    ("depmod", "kmod"),
    ("strip", "binutils"),
];

/// Those of `needs` whose program is not there.
pub(crate) fn missing(needs: &[Need]) -> Vec<Need> {
    needs
        .iter()
        .copied()
        .filter(|(program, _)| find(program).is_none())
        .collect()
}

/// Installs the packages whose programs are missing.
///
/// # Errors
///
/// Without root or apt-get: what is missing and the command that installs it.
pub(crate) fn install(needs: &[Need]) -> Result<()> {
    let missing = missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    let programs: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
    let (packages, programs) = (packages.join(" "), programs.join(", "));
    if find("apt-get").is_none() {
        bail!("missing programs: {programs}. Install them (Debian packages: {packages})");
    }
    if !is_root() {
        bail!("missing programs: {programs}. Install them: sudo apt-get install {packages}");
    }
    eprintln!("Installing Debian packages: {packages}");
    update()?;
    run(apt_get()
        .args(["install", "--yes", "--no-install-recommends"])
        .args(packages.split(' ')))
}

/// `apt-get update`, once per run.
fn update() -> Result<()> {
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    run(apt_get().arg("update"))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.arg("-qq").env("DEBIAN_FRONTEND", "noninteractive");
    // The standard output is for what was asked for.
    command.stdout(io::stderr());
    command
}
