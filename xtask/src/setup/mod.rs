//! Installs what the other commands need: idempotent, in parts, saying what it does.

mod bpf_linker;
mod debian;
mod kernel;
mod packages;
mod rust_src;
mod wireguard_go;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;

pub(crate) use kernel::{Kernel, cached as cached_kernels};

use crate::vm::Executable;
use crate::workspace::Workspace;

/// A part of the set-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// rust-src and bpf-linker: to build the eBPF programs.
    Ebpf,
    /// Debian packages of the lab: iproute2, nftables, iptables, conntrack, iperf3, ping, tmux; ufw, firewalld,
    /// miniupnpd and Prometheus, unpacked only.
    Lab,
    /// QEMU and the default kernel: for `test vm`.
    Vm,
}

/// Kernel that `setup vm` fetches.
const DEFAULT_KERNEL: &str = "6.12";

/// Runs the named parts, or all that need no kernel.
///
/// # Errors
///
/// When something cannot be installed; says what is missing and how to get it.
pub(crate) fn run(workspace: &Workspace, parts: &[Part]) -> Result<()> {
    let parts = if parts.is_empty() {
        &[Part::Ebpf, Part::Lab]
    } else {
        parts
    };
    for part in parts {
        match part {
            Part::Ebpf => drop(ebpf_tools(workspace)?),
            Part::Lab => lab()?,
            Part::Vm => drop(vm(workspace, DEFAULT_KERNEL)?),
        }
    }
    println!("Set up: {}", names(parts));
    Ok(())
}

/// Installs rust-src and bpf-linker; returns the folder above bpf-linker's `bin`.
///
/// # Errors
///
/// When one of them cannot be had.
pub(crate) fn ebpf_tools(workspace: &Workspace) -> Result<PathBuf> {
    rust_src::install(workspace)?;
    bpf_linker::install(workspace)
}

/// Installs the programs that the lab runs.
///
/// # Errors
///
/// When one is missing and cannot be installed.
pub(crate) fn lab() -> Result<()> {
    packages::install(packages::LAB)?;
    if let Some(tree) = testnet::firewalls_tree()
        && let Err(error) = packages::unpack(packages::FIREWALLS, &tree)
    {
        println!("Tests beside ufw, firewalld and miniupnpd will be skipped: {error:#}");
    }
    if let Err(error) = prometheus() {
        println!("Tests with Prometheus will be skipped: {error:#}");
    }
    Ok(())
}

/// Unpacks Debian's Prometheus.
///
/// # Errors
///
/// When it cannot be downloaded.
pub(crate) fn prometheus() -> Result<()> {
    let tree = testnet::prometheus_tree().context("no cache folder: set TAILRACE_CACHE or HOME")?;
    packages::unpack(packages::PROMETHEUS, &tree)
}

/// Installs a browser without a window.
///
/// # Errors
///
/// When it is missing and cannot be installed.
pub(crate) fn browser() -> Result<()> {
    packages::install(packages::BROWSER)
}

/// Installs QEMU and fetches the kernel called `name`, as `6.12`.
///
/// # Errors
///
/// When one of them cannot be had.
pub(crate) fn vm(workspace: &Workspace, name: &str) -> Result<Kernel> {
    packages::install(packages::LAB)?;
    packages::install(packages::VM)?;
    kernel::fetch(workspace, name)
}

/// Debian's wireguard-go, which the kernel's WireGuard is measured against.
///
/// # Errors
///
/// When it cannot be downloaded.
pub(crate) fn wireguard_go(workspace: &Workspace) -> Result<Executable> {
    wireguard_go::fetch(workspace)
}

/// Programs of the VM tests that are not installed.
pub(crate) fn missing_for_vm() -> Vec<&'static str> {
    packages::missing(packages::VM)
        .into_iter()
        .map(|(program, _)| program)
        .collect()
}

fn names(parts: &[Part]) -> String {
    let names: Vec<String> = parts
        .iter()
        .filter_map(|part| Some(part.to_possible_value()?.get_name().to_owned()))
        .collect();
    names.join(", ")
}
