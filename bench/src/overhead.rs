//! `overhead`: instructions that one round trip costs, on kernel WireGuard with and without what we
//! add to it, and on Debian's wireguard-go.
//!
//! Runs in a VM whose clock counts instructions (`cargo xtask bench overhead` makes it): 4 ns each,
//! one processor, so that virtual time is a number of instructions and repeats whatever the
//! host does. AVX2 counts as one instruction, too: good for ratios, not for hardware claims.
//!
//! ```text
//! path      near ══ tunnel over veth ══ far             `ping -f`, both ends alike
//! forward   client ══ tunnel ══ router ── LAN host      UDP to and fro; the router alone differs
//! bulk      near ══ tunnel over veth ══ far             one TCP stream, by the overlay's device
//! junk      near ── veth ── far's WireGuard port        what is neither WireGuard's nor the agent's
//! ```
//!
//! Each round trip waits for the last, so the processor never idles and all that happens is counted:
//! both ends, cryptography and veth included.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

mod applied;
mod bulk;
mod echo;
mod lab;
mod measure;
mod report;
mod setting;
mod tables;
mod wireguard_go;

use bulk::Tuning;
use setting::{Forwarding, Junk, Setting};

/// Virtual nanoseconds that an instruction takes (`-icount shift=2`).
const NANOSECONDS: f64 = 4.0;
/// Begins the line on which the guest prints what it measured.
const MEASURED: &str = "=== measured ";

/// Settings of the bench.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Measures here and prints one line for the report: for the VM, whose clock counts instructions.
    #[arg(long, conflicts_with_all = ["measured", "json"])]
    guest: bool,
    /// Reports what a guest printed into FILE.
    #[arg(long, value_name = "FILE")]
    measured: Option<PathBuf>,
    /// Round trips of a measurement.
    #[arg(long, default_value_t = 4000)]
    count: u32,
    /// Measurements of each setting; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only settings whose name holds this text; `path`, `forward`, `bulk` and `junk` are all of a kind.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Where the plot goes.
    #[arg(long, default_value = "bench/results/overhead.svg")]
    plot: PathBuf,
}

/// What a guest measured.
#[derive(Debug, Serialize, Deserialize)]
struct Measured {
    kernel: String,
    count: u32,
    path: Vec<Figure<Setting>>,
    forward: Vec<Figure<Forwarding>>,
    /// Per KiB of a stream, not per round trip.
    bulk: Vec<Figure<Tuning>>,
    /// Per datagram, not per round trip.
    junk: Vec<Figure<Junk>>,
}

/// Instructions per round trip, round by round.
#[derive(Debug, Serialize, Deserialize)]
struct Figure<S> {
    setting: S,
    /// Bytes after the ICMP or UDP header.
    payload: u32,
    rounds: Vec<f64>,
}

/// Measures (`--guest`) or reports (`--measured`).
///
/// # Errors
///
/// Without either; when the guest lacks a program or loses packets; when the file is none of ours.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.guest {
        let measured = measure::all(args.count, args.rounds, args.only.as_deref())?;
        println!("{MEASURED}{}", serde_json::to_string(&measured)?);
        return Ok(());
    }
    let Some(file) = &args.measured else {
        bail!("this is measured in a VM that counts instructions: cargo xtask bench overhead");
    };
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let line = text.lines().find_map(|line| line.strip_prefix(MEASURED));
    let line = line.with_context(|| format!("{} holds no measurement", file.display()))?;
    let measured: Measured = serde_json::from_str(line).context("what the guest printed")?;
    report::print(&measured, args.json, &args.plot)
}
