//! `paths`: what it costs an agent to keep direct paths to a few of very many peers.
//!
//! A lab of real agents behind home routers, and simulated nodes that only registered, with endpoints and
//! disco keys. One agent sends to the real ones; its CPU time and memory are read from `/proc`, and
//! its router counts what it sends to endpoints of nodes that it has nothing to tell. The baseline is
//! the same lab without the simulated nodes. One such packet, or more than a thousand peers may cost, and the
//! bench fails.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use testnet::tailnet::{Control, ControlOptions, Node};
use testnet::{Lab, Process, wait_until};

use crate::control::client::{self, Client, Identity};
use crate::figures::{Kept, KeptFigures, counted};
use agent::bench::process::{cpu_time, resident_kib};

/// Peers, and active ones among them, that must not cost more than what follows.
const PROMISED: [usize; 2] = [1000, 10];
const MOST_CPU_PERCENT: f64 = 1.0;
/// 40 MB.
const MOST_RESIDENT_MIB: f64 = 40e6 / (1 << 20) as f64;

const PATIENCE: Duration = Duration::from_secs(60);
/// Endpoints of simulated nodes: the prefix for benchmarks (RFC 2544), counted by the router.
const COUNTER: &str =
    "table ip idle { chain forward { type filter hook forward priority -20; policy accept
    ip daddr 198.18.0.0/15 counter drop
    }
}";

/// Options of the bench.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Peers in all.
    #[arg(long, default_value_t = 1000)]
    peers: usize,
    /// Peers that are sent to, once a second; each is a real agent.
    #[arg(long, default_value_t = 10)]
    active: usize,
    /// Seconds that are measured.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Cost {
    peers: usize,
    cpu_percent: f64,
    resident_mib: f64,
    direct: usize,
    idle_packets: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    active: usize,
    seconds: u64,
    all: Cost,
    active_only: Cost,
    /// What later runs are held against.
    figures: KeptFigures,
}

impl Cost {
    fn kept(&self) -> [(String, Kept); 2] {
        let name = |what| format!("{} peers, {what}", self.peers);
        let (cpu, memory) = (self.cpu_percent, self.resident_mib);
        [
            (name("CPU, % of a core"), Kept::Cpu { value: cpu }),
            (name("MiB"), Kept::Memory { value: memory }),
        ]
    }
}

impl Report {
    /// Checks what has to be so on any machine.
    fn check(&self) -> Result<()> {
        for cost in [&self.all, &self.active_only] {
            let Cost {
                peers,
                cpu_percent,
                resident_mib,
                direct,
                idle_packets,
            } = *cost;
            ensure!(
                idle_packets == 0,
                "{idle_packets} packets went to idle peers of {peers}"
            );
            ensure!(
                direct == self.active,
                "{direct} of {} paths are direct",
                self.active
            );
            let [most, most_active] = PROMISED;
            if peers > most || self.active > most_active {
                continue;
            }
            ensure!(
                cpu_percent < MOST_CPU_PERCENT,
                "{peers} peers cost {cpu_percent:.2} % of a core: it may be {MOST_CPU_PERCENT}"
            );
            ensure!(
                resident_mib <= MOST_RESIDENT_MIB,
                "with {peers} peers {resident_mib:.1} MiB are resident: it may be {MOST_RESIDENT_MIB:.1}"
            );
        }
        Ok(())
    }
}

/// Measures and prints a table, or JSON.
///
/// # Errors
///
/// Without root, or if a daemon does not do its part, or costs more than it may.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.active <= args.peers, "--active is more than --peers");
    ensure!(args.active > 0 && args.seconds > 0, "nothing to measure");
    let active_only = measure(args, 0).context("active peers alone")?;
    let idle = args.peers - args.active;
    let all = measure(args, idle).with_context(|| format!("and {idle} idle ones"))?;
    let report = Report {
        active: args.active,
        seconds: args.seconds,
        figures: [&all, &active_only]
            .into_iter()
            .flat_map(Cost::kept)
            .collect(),
        all,
        active_only,
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    report.check()
}

fn print(report: &Report) {
    let Report {
        active,
        seconds,
        all,
        active_only,
        ..
    } = report;
    println!("{active} active peers, {seconds} s:");
    println!("{:26}{:>10}{:>10}", "", all.peers, active_only.peers);
    let row = |name: &str, all: String, alone: String| println!("{name:26}{all:>10}{alone:>10}");
    let percent = |cost: &Cost| format!("{:.2}", cost.cpu_percent);
    row("CPU, % of a core", percent(all), percent(active_only));
    let memory = |cost: &Cost| format!("{:.1}", cost.resident_mib);
    row("resident, MiB", memory(all), memory(active_only));
    let direct = |cost: &Cost| cost.direct.to_string();
    row("direct paths", direct(all), direct(active_only));
    let idle = |cost: &Cost| cost.idle_packets.to_string();
    row("packets to idle peers", idle(all), idle(active_only));
}

/// Resident MiB of an agent with `active` peers that it sends to and `idle` ones beside them.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn resident_mib(active: usize, idle: usize) -> Result<f64> {
    let args = Args {
        peers: active + idle,
        active,
        seconds: 5,
        json: true,
    };
    Ok(measure(&args, idle)?.resident_mib)
}

fn measure(args: &Args, idle: usize) -> Result<Cost> {
    let mut lab = Lab::new()?;
    let control = Control::start(lab.server("control")?, ControlOptions::default())?;
    let key = control.auth_key(&["--reusable"])?;
    let mut join = |name: &str| -> Result<Node> {
        let node = Node::start(lab.behind_nat(name)?)?;
        node.join(&control.url(), &key)?;
        Ok(node)
    };
    let node = join("node")?;
    let active: Vec<Node> = (0..args.active)
        .map(|number| join(&format!("peer{number}")))
        .collect::<Result<_>>()?;
    let address = control.address();
    let registered = control
        .host()
        .namespace()
        .enter(|| register(address, &key, idle))?;
    registered.context("registering simulated nodes")?;

    let router = node.host().nat().context("no router")?.namespace();
    router.nft(COUNTER)?;
    // So that it forwards, and counts, what nobody else would take.
    router.ip("route add 198.18.0.0/15 via 203.0.113.10")?;
    let mut traffic = Vec::new();
    for peer in &active {
        let address = peer.ip("-4")?;
        node.reach(address, PATIENCE)?;
        let words = ["ping", "-n", "-q", "-i", "1", &address.to_string()];
        traffic.push(Process::spawn(
            "ping",
            command(node.host().namespace(), &words),
        )?);
    }
    let direct = || -> Result<usize> {
        let names = (0..args.active).map(|number| node.peer(&format!("peer{number}")));
        let peers: Vec<_> = names.collect::<Result<_>>()?;
        let direct = peers
            .iter()
            .filter(|p| p.text("CurAddr").is_ok_and(|a| !a.is_empty()));
        Ok(direct.count())
    };
    wait_until(
        PATIENCE,
        "every path is direct and every peer known",
        || {
            let direct = direct()?;
            ensure!(direct == args.active, "{direct} are direct");
            let status = node.status()?;
            let known = status["Peer"].as_object().map_or(0, |peers| peers.len());
            ensure!(known == args.active + idle, "{known} are known");
            Ok(())
        },
    )?;
    let pid = node.process().pid();
    let (cpu, begin) = (cpu_time(pid)?, Instant::now());
    std::thread::sleep(Duration::from_secs(args.seconds));
    let spent = cpu_time(pid)? - cpu;
    let cpu_percent = spent.as_secs_f64() / begin.elapsed().as_secs_f64() * 100.0;
    let listing = router.exec(&["nft", "list", "table", "ip", "idle"])?;
    Ok(Cost {
        peers: args.active + idle,
        cpu_percent,
        resident_mib: resident_kib(pid)? as f64 / 1024.0,
        direct: direct()?,
        idle_packets: counted(&listing)?,
    })
}

fn command(namespace: &testnet::Namespace, words: &[&str]) -> std::process::Command {
    let mut command = namespace.command(words[0]);
    command.args(&words[1..]);
    command
}

/// Registers nodes that never come back.
fn register(server: SocketAddr, auth_key: &str, count: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let key = client::server_key(server).await?;
        for number in 0..count {
            let identity = Identity::new(&format!("idle{number}"));
            let client = Client::connect(server, &key, &identity.machine).await?;
            let answer = client.register(&identity.register(Some(auth_key))).await?;
            ensure!(answer.error.is_empty(), "refused: {}", answer.error);
            let [.., high, low] = number.to_be_bytes();
            let endpoint = SocketAddr::from((Ipv4Addr::new(198, 18, high, low), 41641));
            client.update(&identity.lite(vec![endpoint])).await?;
        }
        Ok(())
    })
}
