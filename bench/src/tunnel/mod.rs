//! The embedded tunnel beside stock gotatun: between two hosts on one cable, in turn.

pub(crate) mod lab;
pub(crate) mod load;
pub(crate) mod node;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::figures::median;
use crate::plot::{Bars, Group};
use lab::Lab;
use node::Engine;

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds; in each the engines take turns.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each kind of traffic.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Engines to measure.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "ours,gotatun"
    )]
    engines: Vec<Engine>,
    /// Busy peers of the round with many.
    #[arg(long, default_value_t = 50)]
    busy: usize,
    /// Idle peers beside them.
    #[arg(long, default_value_t = 150)]
    idle: usize,
    /// Where the plot goes.
    #[arg(long, default_value = "bench/results/tunnel.svg")]
    plot: PathBuf,
    /// Figures as JSON.
    #[arg(long)]
    json: bool,
}

/// What one engine did in one round.
#[derive(Clone, Copy, Debug, Serialize)]
struct Round {
    /// Mbit/s of payload in one stream, and in eight.
    tcp_1: f64,
    tcp_8: f64,
    /// CPU seconds for a GB in one stream: of who sends, of who receives.
    cpu_gb_out: f64,
    cpu_gb_in: f64,
    /// Thousands of packets a second that came out of the tunnel, when it was given more than it can carry.
    kpps_64: f64,
    kpps_1200: f64,
    /// Resident memory after that, in MiB: of who sends, of who receives.
    resident_out: f64,
    resident_in: f64,
}

/// Figures of all.
#[derive(Debug, Serialize)]
struct Figures {
    rounds: BTreeMap<&'static str, Vec<Round>>,
    /// Medians.
    medians: BTreeMap<&'static str, Round>,
    /// Of each round ours to gotatun's; then the median, the least and the most.
    ratios: BTreeMap<&'static str, [f64; 3]>,
    /// Ours with many peers to ours with one, in Mbit/s of one stream for each: medians, and their ratio.
    many: Option<[f64; 3]>,
}

type Column = (&'static str, fn(&Round) -> f64);

const COLUMNS: [Column; 9] = [
    ("TCP, 1 stream, Mbit/s", |round| round.tcp_1),
    ("TCP, 8 streams, Mbit/s", |round| round.tcp_8),
    ("CPU s a GB, sender", |round| round.cpu_gb_out),
    ("CPU s a GB, receiver", |round| round.cpu_gb_in),
    ("CPU s a GB, both", |round| {
        round.cpu_gb_out + round.cpu_gb_in
    }),
    ("64-byte packets, kpps", |round| round.kpps_64),
    ("1200-byte packets, kpps", |round| round.kpps_1200),
    ("RSS sender, MiB", |round| round.resident_out),
    ("RSS receiver, MiB", |round| round.resident_in),
];

/// Measures and prints.
///
/// # Errors
///
/// When a tunnel does not carry, or a plot cannot be written.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.rounds > 0 && args.seconds > 0.0, "nothing to measure");
    let mut rounds: BTreeMap<&'static str, Vec<Round>> = BTreeMap::new();
    let mut many = Vec::new();
    for number in 0..args.rounds {
        for engine in &args.engines {
            let round = measure(*engine, args.seconds)?;
            eprintln!("round {}: {} {round:.1?}", number + 1, engine.name());
            rounds.entry(engine.name()).or_default().push(round);
        }
        if args.engines.contains(&Engine::Ours) && args.busy > 0 {
            let lab = Lab::start(Engine::Ours, args.busy, args.idle)?;
            many.push(lab.tcp(1, args.seconds)?.mbit());
        }
    }
    let figures = figures(rounds, many);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    } else {
        print(&figures);
    }
    draw(&figures, &args.plot)
}

fn measure(engine: Engine, seconds: f64) -> Result<Round> {
    let lab = Lab::start(engine, 1, 0)?;
    let before = lab.cpu()?;
    let one = lab.tcp(1, seconds)?;
    let after = lab.cpu()?;
    let gigabytes = one.amount as f64 / 1e9;
    let eight = lab.tcp(8, seconds)?;
    let kpps = |size: usize| -> Result<f64> {
        let (sent, carried) = lab.udp(size, seconds)?;
        Ok(carried as f64 / sent.seconds / 1e3)
    };
    let (kpps_64, kpps_1200) = (kpps(64)?, kpps(1200)?);
    let [resident_out, resident_in] = lab.resident_mib()?;
    Ok(Round {
        tcp_1: one.mbit(),
        tcp_8: eight.mbit(),
        cpu_gb_out: (after.near - before.near) / gigabytes,
        cpu_gb_in: (after.far - before.far) / gigabytes,
        kpps_64,
        kpps_1200,
        resident_out,
        resident_in,
    })
}

fn figures(rounds: BTreeMap<&'static str, Vec<Round>>, many: Vec<f64>) -> Figures {
    let middle =
        |rounds: &Vec<Round>, get: fn(&Round) -> f64| median(rounds.iter().map(get).collect());
    let medians: BTreeMap<_, _> = rounds
        .iter()
        .map(|(name, rounds)| {
            let round = Round {
                tcp_1: middle(rounds, |round| round.tcp_1),
                tcp_8: middle(rounds, |round| round.tcp_8),
                cpu_gb_out: middle(rounds, |round| round.cpu_gb_out),
                cpu_gb_in: middle(rounds, |round| round.cpu_gb_in),
                kpps_64: middle(rounds, |round| round.kpps_64),
                kpps_1200: middle(rounds, |round| round.kpps_1200),
                resident_out: middle(rounds, |round| round.resident_out),
                resident_in: middle(rounds, |round| round.resident_in),
            };
            (*name, round)
        })
        .collect();
    let mut ratios = BTreeMap::new();
    if let (Some(ours), Some(stock)) = (rounds.get("ours"), rounds.get("gotatun")) {
        for (name, get) in COLUMNS {
            let pairs = ours.iter().zip(stock);
            let all: Vec<f64> = pairs.map(|(ours, stock)| get(ours) / get(stock)).collect();
            let least = all.iter().copied().fold(f64::INFINITY, f64::min);
            let most = all.iter().copied().fold(0.0, f64::max);
            ratios.insert(name, [median(all), least, most]);
        }
    }
    let one = medians.get("ours").map(|round| round.tcp_1);
    let many = one.filter(|_| !many.is_empty()).map(|one| {
        let many = median(many);
        [many, one, many / one]
    });
    Figures {
        rounds,
        medians,
        ratios,
        many,
    }
}

fn print(figures: &Figures) {
    let names: Vec<_> = figures.medians.keys().collect();
    print!("{:<26}", "");
    for name in &names {
        print!("{name:>12}");
    }
    println!("{:>24}", "ours to gotatun's");
    for (name, get) in COLUMNS {
        print!("{name:<26}");
        for round in figures.medians.values() {
            print!("{:>12.2}", get(round));
        }
        if let Some([middle, least, most]) = figures.ratios.get(name) {
            print!("{middle:>10.2} ({least:.2}–{most:.2})");
        }
        println!();
    }
    if let Some([many, one, ratio]) = figures.many {
        println!("many peers: {many:.0} Mbit/s, one: {one:.0}, ratio {ratio:.2}");
    }
}

fn draw(figures: &Figures, path: &Path) -> Result<()> {
    let group = |(name, get): &Column| {
        let bar = |(engine, round): (&&'static str, &Round)| {
            (*engine, get(round), format!("{:.1}", get(round)))
        };
        Group {
            name,
            bars: figures.medians.iter().map(bar).collect(),
        }
    };
    Bars {
        title: "The embedded tunnel, two hosts on one machine",
        groups: COLUMNS.iter().map(group).collect(),
    }
    .write(path)
}
