//! A relay under load: goodput per core-second of the server, round trips beside it, and memory per idle client.
//!
//! Pairs of DERP clients over TLS on loopback; each packet is one TLS record and one write, as
//! official clients send. The server's cost is the CPU time of its process, so the clients' own
//! does not count; both share the machine, so absolute goodput says little, its ratio to another
//! server on the same machine says much.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Serialize;

use crate::figures::{Kept, KeptFigures, percentile};
use crate::plot::{Bars, Group};

use agent::bench::process::{cpu_time, resident_kib};

mod client;
mod load;
mod probe;

/// Settings of the bench.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Pairs of a sender and a receiver.
    #[arg(long, default_value_t = 4)]
    pairs: usize,
    /// Packet size in bytes.
    #[arg(long, default_value_t = 1332)]
    packet: usize,
    /// Packets in flight per pair; 0: as fast as the connection takes them.
    #[arg(long, default_value_t = 0)]
    window: u64,
    /// Seconds measured, after one second of warming up.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Idle clients for the memory figure; 0: leave it out.
    #[arg(long, default_value_t = 1000)]
    idle: usize,
    /// Rounds; the best and the spread are shown.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Another server to measure in turn with ours, such as `derper=127.0.0.1:3341@PID`.
    /// Certificates are not checked.
    #[arg(long, value_name = "NAME=ADDR:PORT@PID")]
    beside: Vec<Target>,
    /// Our relay's program. Default: beside this one.
    #[arg(long, value_name = "FILE")]
    relay: Option<PathBuf>,
    /// Where the plot goes.
    #[arg(long, default_value = "bench/results/relay.svg")]
    plot: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A server that runs already.
#[derive(Clone, Debug)]
struct Target {
    name: String,
    address: SocketAddr,
    pid: u32,
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (name, rest) = text.split_once('=').context("no `=`")?;
        let (address, pid) = rest.rsplit_once('@').context("no `@PID`")?;
        Ok(Self {
            name: name.to_owned(),
            address: address.parse()?,
            pid: pid.parse()?,
        })
    }
}

/// What was measured of one server.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// Payload received, Mbit/s of wall time; median of the rounds.
    goodput_mbit_s: f64,
    /// Packets sent and not received, percent.
    loss_percent: f64,
    /// CPU seconds of the server per second.
    cores: f64,
    /// Payload received, Mbit per CPU second of the server; median of the rounds.
    mbit_per_core_s: f64,
    /// Lowest and highest of the rounds.
    spread: (f64, f64),
    /// Round trip of a packet between two clients beside the load, milliseconds: medians of the rounds.
    rtt_p50_ms: f64,
    rtt_p99_ms: f64,
    /// Resident memory per idle client, KiB.
    idle_kib: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Report {
    pairs: usize,
    packet: usize,
    window: u64,
    seconds: u64,
    rounds: usize,
    idle_clients: usize,
    servers: Vec<Row>,
    /// What later runs are held against.
    figures: KeptFigures,
}

/// Runs the bench and prints its result.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.pairs == 0 || args.rounds == 0 || args.packet < 8 {
        bail!("--pairs and --rounds must be at least 1, --packet at least 8");
    }
    ::relay::net::raise_file_limit();
    let own = Own::start(args.relay.clone())?;
    let mut targets = vec![own.target.clone()];
    targets.extend(args.beside.iter().cloned());
    let runtime = tokio::runtime::Runtime::new()?;

    // Memory first: load leaves pages behind that an allocator keeps.
    let mut idle = Vec::new();
    for target in &targets {
        idle.push(match args.idle {
            0 => None,
            count => Some(runtime.block_on(idle_memory(target, count))?),
        });
    }
    let mut rounds: Vec<Vec<Sample>> = targets.iter().map(|_| Vec::new()).collect();
    for _ in 0..args.rounds {
        // In turn, so that a noisy neighbour hits all alike.
        for (target, samples) in targets.iter().zip(&mut rounds) {
            samples.push(runtime.block_on(measure(target, args))?);
        }
    }
    let figures = kept(&rounds, &idle, &args.beside);
    let rows = targets.iter().zip(rounds).zip(idle);
    let report = Report {
        pairs: args.pairs,
        packet: args.packet,
        window: args.window,
        seconds: args.seconds,
        rounds: args.rounds,
        idle_clients: args.idle,
        servers: rows
            .map(|((target, samples), idle)| row(target, &samples, idle))
            .collect(),
        figures,
    };
    draw(&report, &args.plot)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_table(&report);
    }
    Ok(())
}

/// Our memory, and our goodput to that of the others, round by round.
fn kept(rounds: &[Vec<Sample>], idle: &[Option<f64>], beside: &[Target]) -> KeptFigures {
    let mut figures = KeptFigures::new();
    if let Some(value) = idle.first().copied().flatten() {
        figures.insert("KiB an idle client".to_owned(), Kept::Memory { value });
    }
    if let [own, others @ ..] = rounds {
        for (other, samples) in beside.iter().zip(others) {
            let pairs = own.iter().zip(samples);
            let ratios = pairs.map(|(own, other)| own.mbit_per_core_s / other.mbit_per_core_s);
            let name = format!("goodput a core, ours to {}'s", other.name);
            figures.insert(name, Kept::ratio(ratios.collect()));
        }
    }
    figures
}

fn draw(report: &Report, path: &Path) -> anyhow::Result<()> {
    let group = |name, get: fn(&Row) -> Option<f64>| {
        let bars = report.servers.iter().filter_map(|row| {
            let value = get(row)?;
            Some((row.name.as_str(), value, format!("{value:.1}")))
        });
        Group {
            name,
            bars: bars.collect(),
        }
    };
    let groups = [
        group("Mbit per core-second", |row| Some(row.mbit_per_core_s)),
        group("Mbit/s", |row| Some(row.goodput_mbit_s)),
        group("KiB an idle client", |row| row.idle_kib),
    ];
    Bars {
        title: "DERP through one server",
        groups: groups
            .into_iter()
            .filter(|group| !group.bars.is_empty())
            .collect(),
    }
    .write(path)
}

/// Resident MiB of our relay, of a release build beside this program: with one client, and with `clients` more.
///
/// # Errors
///
/// When it does not run or refuses a client.
pub(crate) fn resident_mib(clients: usize) -> anyhow::Result<[f64; 2]> {
    ::relay::net::raise_file_limit();
    let own = Own::start(None)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let [before, after] = runtime.block_on(resident_kib_of(&own.target, clients))?;
    Ok([before as f64 / 1024.0, after as f64 / 1024.0])
}

/// One round.
struct Sample {
    mbit_s: f64,
    mbit_per_core_s: f64,
    cores: f64,
    loss: f64,
    rtt_p50: f64,
    rtt_p99: f64,
}

async fn measure(target: &Target, args: &Args) -> anyhow::Result<Sample> {
    let load = load::Load::start(target.address, args.pairs, args.packet, args.window).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (cpu, started, before) = (cpu_time(target.pid)?, Instant::now(), load.totals());
    let probe = probe::Probe::start(target.address, Duration::from_secs(args.seconds));
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let (after, wall, cpu) = (
        load.totals(),
        started.elapsed(),
        cpu_time(target.pid)? - cpu,
    );
    let rtts = tokio::task::spawn_blocking(|| probe.finish()).await??;
    load.stop().await?;

    let received = after.received - before.received;
    let sent = after.sent - before.sent;
    let mbit = (received * args.packet as u64 * 8) as f64 / 1e6;
    Ok(Sample {
        mbit_s: mbit / wall.as_secs_f64(),
        mbit_per_core_s: mbit / cpu.as_secs_f64(),
        cores: cpu.as_secs_f64() / wall.as_secs_f64(),
        loss: 100.0 * (1.0 - received as f64 / sent.max(1) as f64).max(0.0),
        rtt_p50: percentile(&rtts, 50),
        rtt_p99: percentile(&rtts, 99),
    })
}

async fn idle_memory(target: &Target, count: usize) -> anyhow::Result<f64> {
    let [before, after] = resident_kib_of(target, count).await?;
    Ok((after.saturating_sub(before)) as f64 / count as f64)
}

/// Resident KiB with one client, and with `count` more.
async fn resident_kib_of(target: &Target, count: usize) -> anyhow::Result<[u64; 2]> {
    // A first client pays for what is set up once.
    let first = client::connect(target.address).await?;
    let before = resident_kib(target.pid)?;
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        clients.push(client::connect(target.address).await?);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = resident_kib(target.pid)?;
    drop((first, clients));
    Ok([before, after])
}

fn row(target: &Target, samples: &[Sample], idle_kib: Option<f64>) -> Row {
    let median = |of: fn(&Sample) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        (
            values[values.len() / 2],
            values[0],
            values[values.len() - 1],
        )
    };
    let (mbit_per_core_s, low, high) = median(|sample| sample.mbit_per_core_s);
    Row {
        name: target.name.clone(),
        goodput_mbit_s: median(|sample| sample.mbit_s).0,
        loss_percent: median(|sample| sample.loss).0,
        cores: median(|sample| sample.cores).0,
        mbit_per_core_s,
        spread: (low, high),
        rtt_p50_ms: median(|sample| sample.rtt_p50).0,
        rtt_p99_ms: median(|sample| sample.rtt_p99).0,
        idle_kib,
    }
}

fn print_table(report: &Report) {
    let window = match report.window {
        0 => "no window".to_owned(),
        window => format!("{window} in flight"),
    };
    println!(
        "relay: {} pairs, {}-byte packets, {window}, {} s, median of {} rounds",
        report.pairs, report.packet, report.seconds, report.rounds
    );
    println!(
        "{:<12} {:>9} {:>7} {:>6} {:>13} {:>15} {:>9} {:>9} {:>11}",
        "server",
        "Mbit/s",
        "loss %",
        "cores",
        "Mbit/core-s",
        "spread",
        "p50, ms",
        "p99, ms",
        "idle KiB"
    );
    for row in &report.servers {
        let spread = format!("{:.0}–{:.0}", row.spread.0, row.spread.1);
        let idle = row
            .idle_kib
            .map_or("-".to_owned(), |kib| format!("{kib:.1}"));
        println!(
            "{:<12} {:>9.0} {:>7.1} {:>6.2} {:>13.0} {:>15} {:>9.2} {:>9.2} {:>11}",
            row.name,
            row.goodput_mbit_s,
            row.loss_percent,
            row.cores,
            row.mbit_per_core_s,
            spread,
            row.rtt_p50_ms,
            row.rtt_p99_ms,
            idle
        );
    }
    if let [own, others @ ..] = &report.servers[..] {
        for other in others {
            print!(
                "ours / {}: goodput per core {:.2}, RTT p99 {:.2}",
                other.name,
                own.mbit_per_core_s / other.mbit_per_core_s,
                own.rtt_p99_ms / other.rtt_p99_ms
            );
            match (own.idle_kib, other.idle_kib) {
                (Some(own), Some(other)) => println!(", idle memory {:.2}", own / other),
                _ => println!(),
            }
        }
    }
}

/// Our relay as a process of its own, gone with this value.
struct Own {
    target: Target,
    child: Child,
    _state: tempfile::TempDir,
}

impl Own {
    fn start(program: Option<PathBuf>) -> anyhow::Result<Self> {
        let program = match program {
            Some(program) => program,
            None => std::env::current_exe()?.with_file_name("tailrace-relay"),
        };
        if !program.exists() {
            bail!(
                "{} is not built: cargo build --release -p relay",
                program.display()
            );
        }
        let state = tempfile::tempdir()?;
        let listen = free_port()?;
        let mut child = Command::new(&program)
            .args([
                "serve",
                "--listen",
                &listen.to_string(),
                "--stun-listen",
                "127.0.0.1:0",
            ])
            .arg("--state-dir")
            .arg(state.path())
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(listen).is_err() {
            if let Some(status) = child.try_wait()? {
                bail!("our relay ended at once: {status}");
            }
            if Instant::now() > deadline {
                bail!("our relay does not listen");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let target = Target {
            name: "tailrace".to_owned(),
            address: listen,
            pid: child.id(),
        };
        Ok(Self {
            target,
            child,
            _state: state,
        })
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("our relay was not stopped: {error}");
        }
    }
}

fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
