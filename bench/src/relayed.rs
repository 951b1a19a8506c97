//! `relayed`: two nodes whose networks let no UDP out, TCP between them over a relay.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use serde::Serialize;
use testnet::tailnet::{Control, ControlOptions, Engine, Node, Relay};
use testnet::{Lab, Namespace, NatKind, Process};

use crate::figures::{middle_and_ends, percentile};
use crate::tunnel::load;
use agent::bench::load::Sent;
use agent::bench::process::{cpu_time, resident_kib};

const PATIENCE: Duration = Duration::from_secs(60);
/// Seconds between two pings.
const PING_EVERY: f64 = 0.01;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Rounds, each with nodes and a relay of its own.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each kind of traffic.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// One round.
#[derive(Clone, Copy, Debug, Serialize)]
struct Round {
    /// Mbit/s of payload in one stream, and in eight.
    tcp_1: f64,
    tcp_8: f64,
    /// CPU seconds for a GB in one stream: of the sender's agent, the relay, the receiver's agent.
    cpu_gb_sender: f64,
    cpu_gb_relay: f64,
    cpu_gb_receiver: f64,
    /// Round trip of pings in milliseconds, beside nothing and beside one stream.
    idle_p50: f64,
    loaded_p50: f64,
    loaded_p99: f64,
    /// Resident memory after that in MiB, of the sender's agent and the receiver's.
    resident_sender: f64,
    resident_receiver: f64,
}

type Column = (&'static str, fn(&Round) -> f64);

const COLUMNS: [Column; 10] = [
    ("TCP, 1 stream, Mbit/s", |round| round.tcp_1),
    ("TCP, 8 streams, Mbit/s", |round| round.tcp_8),
    ("CPU s a GB, sender", |round| round.cpu_gb_sender),
    ("CPU s a GB, relay", |round| round.cpu_gb_relay),
    ("CPU s a GB, receiver", |round| round.cpu_gb_receiver),
    ("ping, idle, median, ms", |round| round.idle_p50),
    ("ping, loaded, median, ms", |round| round.loaded_p50),
    ("ping, loaded, p99, ms", |round| round.loaded_p99),
    ("RSS sender, MiB", |round| round.resident_sender),
    ("RSS receiver, MiB", |round| round.resident_receiver),
];

/// Measures and prints a table, or JSON.
///
/// # Errors
///
/// Without root, or if a daemon does not do its part.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.rounds > 0 && args.seconds > 0.0, "nothing to measure");
    let mut rounds = Vec::new();
    for number in 0..args.rounds {
        let round = measure(args.seconds)?;
        eprintln!("round {}: {round:.2?}", number + 1);
        rounds.push(round);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rounds)?);
        return Ok(());
    }
    println!("{:<26}{:>10}{:>10}{:>10}", "", "median", "least", "most");
    for (name, get) in COLUMNS {
        let [middle, least, most] = middle_and_ends(rounds.iter().map(get).collect());
        println!("{name:<26}{middle:>10.2}{least:>10.2}{most:>10.2}");
    }
    Ok(())
}

fn measure(seconds: f64) -> Result<Round> {
    let mut lab = Lab::new()?;
    let relay = Relay::start(lab.server("relay")?)?;
    let options = ControlOptions {
        derp_map: Some(relay.derp_map()?),
        ..ControlOptions::default()
    };
    let control = Control::start(lab.server("control")?, options)?;
    let key = control.auth_key(&["--reusable"])?;
    let mut join = |name: &str| -> Result<Node> {
        let node = Node::start_on(lab.behind(name, NatKind::NoUdp)?, Engine::Embedded)?;
        node.join(&control.url(), &key)?;
        Ok(node)
    };
    let (sender, receiver) = (join("sender")?, join("receiver")?);
    let to = receiver.ip("-4")?;
    sender.reach(to, PATIENCE)?;
    let from = sender.host().namespace();
    let _serving = load::serving(receiver.host().namespace())?;
    let idle = pings(from, to, 1.0)?;

    let processes = [sender.process(), relay.process(), receiver.process()];
    let before = cpu(&processes)?;
    let one = tcp(from, to, 1, seconds)?;
    let after = cpu(&processes)?;
    let gigabytes = one.amount as f64 / 1e9;
    let spent = |number: usize| (after[number] - before[number]) / gigabytes;
    let eight = tcp(from, to, 8, seconds)?;
    let loaded = thread::scope(|scope| {
        let load = scope.spawn(|| tcp(from, to, 1, seconds));
        let pings = pings(from, to, seconds - 0.5);
        load.join().map_err(|_| anyhow!("the load panicked"))??;
        pings
    })?;
    let path = sender.peer("receiver")?;
    ensure!(path.text("CurAddr")?.is_empty(), "not relayed: {path:?}");
    let resident = |node: &Node| anyhow::Ok(resident_kib(node.process().pid())? as f64 / 1024.0);
    Ok(Round {
        tcp_1: one.mbit(),
        tcp_8: eight.mbit(),
        cpu_gb_sender: spent(0),
        cpu_gb_relay: spent(1),
        cpu_gb_receiver: spent(2),
        idle_p50: percentile(&idle, 50),
        loaded_p50: percentile(&loaded, 50),
        loaded_p99: percentile(&loaded, 99),
        resident_sender: resident(&sender)?,
        resident_receiver: resident(&receiver)?,
    })
}

fn tcp(from: &Namespace, to: IpAddr, streams: usize, seconds: f64) -> Result<Sent> {
    let (to, streams, seconds) = (to.to_string(), streams.to_string(), seconds.to_string());
    let words = ["tcp", &to, "--streams", &streams, "--seconds", &seconds];
    load::send(from, &words)
}

/// CPU seconds that each process has used.
fn cpu(processes: &[&Process; 3]) -> Result<[f64; 3]> {
    let mut seconds = [0.0; 3];
    for (seconds, process) in seconds.iter_mut().zip(processes) {
        *seconds = cpu_time(process.pid())?.as_secs_f64();
    }
    Ok(seconds)
}

/// Round trips in milliseconds, in order of length.
fn pings(from: &Namespace, to: IpAddr, seconds: f64) -> Result<Vec<f64>> {
    let count = ((seconds / PING_EVERY) as u64).max(1).to_string();
    let (every, to) = (PING_EVERY.to_string(), to.to_string());
    let words = ["ping", "-n", "-i", &every, "-c", &count, "-W", "2", &to];
    let output = from.output(&words)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let times = said.lines().filter_map(|line| {
        let (_, time) = line.split_once("time=")?;
        time.split(' ').next()?.parse().ok()
    });
    let mut times: Vec<f64> = times.collect();
    ensure!(!times.is_empty(), "no answer to any ping: {said}");
    times.sort_by(f64::total_cmp);
    Ok(times)
}
