//! Debian packages, found by the programs they bring.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};

use crate::program::{find, is_root, quiet, run};

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
    // The terminal in which `tailrace top` is driven.
    ("tmux", "tmux"),
    // What firewalld needs, itself unpacked below.
    ("dbus-daemon", "dbus-daemon"),
    (
        "/usr/lib/python3/dist-packages/dbus/__init__.py",
        "python3-dbus",
    ),
    (
        "/usr/lib/python3/dist-packages/gi/__init__.py",
        "python3-gi",
    ),
];

/// Firewalls and a router's port mapper that are unpacked and not installed, so that no host begins to run one
/// because of our tests.
pub(crate) const FIREWALLS: &[&str] = &[
    "ufw",
    "firewalld",
    "python3-firewall",
    "python3-nftables",
    "miniupnpd-nftables",
];

/// What scrapes the lab, and what its pages are made of; unpacked for the same reason.
pub(crate) const PROMETHEUS: &[&str] = &[
    "prometheus",
    "fonts-glyphicons-halflings",
    "libjs-bootstrap4",
    "libjs-d3",
    "libjs-eonasdan-bootstrap-datetimepicker",
    "libjs-jquery",
    "libjs-moment",
    "libjs-moment-timezone",
    "libjs-mustache",
    "libjs-popper.js",
    "libjs-rickshaw",
];

/// What takes pictures of those pages.
pub(crate) const BROWSER: &[Need] = &[("chromium-headless-shell", "chromium-headless-shell")];

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

/// Unpacks packages into `tree`, unless they are there.
///
/// # Errors
///
/// Without apt-get and dpkg, or a mirror.
pub(crate) fn unpack(packages: &[&str], tree: &Path) -> Result<()> {
    // It lists what is there, so that a longer list is unpacked anew.
    let complete = tree.join("complete");
    let list = packages.join(" ");
    if fs::read_to_string(&complete).is_ok_and(|there| there == list) {
        return Ok(());
    }
    if find("apt-get").is_none() || find("dpkg").is_none() {
        bail!("Debian packages are read by apt-get and dpkg, which are not installed here");
    }
    println!("Unpacking {list} (not installed)");
    if is_root() {
        update()?;
    }
    if tree.exists() {
        fs::remove_dir_all(tree)?;
    }
    let downloads = tree.join("downloads");
    fs::create_dir_all(&downloads)?;
    let mut download = apt_get();
    // The folder is ours, not of apt's own user.
    download.args(["-oAPT::Sandbox::User=root", "download"]);
    quiet(download.args(packages).current_dir(&downloads))?;
    for entry in fs::read_dir(&downloads)? {
        quiet(Command::new("dpkg").arg("-x").arg(entry?.path()).arg(tree))?;
    }
    // Where `/lib` is a link to `/usr/lib`, a package may still use the former.
    let old = tree.join("lib");
    if old.is_dir() {
        quiet(
            Command::new("cp")
                .args(["-a", "--"])
                .arg(old.join("."))
                .arg(tree.join("usr/lib")),
        )?;
    }
    Ok(fs::write(complete, list)?)
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
