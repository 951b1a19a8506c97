//! The embedded tunnel beside stock gotatun: between two hosts on one cable, in turn.

pub(crate) mod lab;
pub(crate) mod load;
pub(crate) mod node;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::figures::{Kept, KeptFigures, median, middle_and_ends};
use crate::plot::{Bars, Group};
use lab::{Lab, Shape};
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
    /// Busy peers of the rounds with many; 0 leaves those out.
    #[arg(long, default_value_t = 50)]
    busy: usize,
    /// Idle peers beside them.
    #[arg(long, default_value_t = 150)]
    idle: usize,
    /// Many peers only, and no plot.
    #[arg(long)]
    many: bool,
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
    /// Ours with many peers.
    many: Vec<Many>,
    /// Of each round of it; the median, the least and the most.
    many_ratios: BTreeMap<&'static str, [f64; 3]>,
    /// What later runs are held against.
    figures: KeptFigures,
}

/// As many streams as there are busy peers, in all.
#[derive(Clone, Copy, Debug, Serialize)]
struct Load {
    /// Mbit/s of payload.
    mbit: f64,
    /// CPU seconds of the near host's process for a GB.
    cpu_gb: f64,
}

/// The same load through tunnels of ours that differ in nothing but in how many there are.
#[derive(Clone, Copy, Debug, Serialize)]
struct Many {
    /// One tunnel: a device at each end.
    pair: Load,
    /// A tunnel for each stream, with a device of its own at both ends.
    pairs: Load,
    /// The same far end; on the near host one device that knows idle peers, too.
    peers: Load,
}

impl Many {
    fn measure(args: &Args) -> Result<Many> {
        let Args {
            busy,
            idle,
            seconds,
            ..
        } = *args;
        let load = |shape: Shape| -> Result<Load> {
            let lab = Lab::start(Engine::Ours, shape)?;
            let before = lab.cpu()?;
            let sent = lab.tcp(busy, seconds)?;
            let used = lab.cpu()?.near - before.near;
            Ok(Load {
                mbit: sent.mbit(),
                cpu_gb: used * 1e9 / sent.amount as f64,
            })
        };
        let pair = Shape {
            first: true,
            ..Shape::PAIR
        };
        Ok(Many {
            pair: load(pair)?,
            pairs: load(Shape {
                busy,
                apart: true,
                ..pair
            })?,
            peers: load(Shape { busy, idle, ..pair })?,
        })
    }
}

/// A ratio of one round, and its name.
type ManyRatio = (&'static str, fn(&Many) -> f64);

const MANY_RATIOS: [ManyRatio; 4] = [
    ("Mbit/s, peers to one pair", |many| {
        many.peers.mbit / many.pair.mbit
    }),
    ("Mbit/s, peers to pairs", |many| {
        many.peers.mbit / many.pairs.mbit
    }),
    ("CPU a GB, peers to one pair", |many| {
        many.peers.cpu_gb / many.pair.cpu_gb
    }),
    ("CPU a GB, peers to pairs", |many| {
        many.peers.cpu_gb / many.pairs.cpu_gb
    }),
];

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
        for engine in args.engines.iter().filter(|_| !args.many) {
            let round = measure(*engine, args.seconds)?;
            eprintln!("round {}: {} {round:.1?}", number + 1, engine.name());
            rounds.entry(engine.name()).or_default().push(round);
        }
        if args.busy > 0 {
            let round = Many::measure(args)?;
            eprintln!("round {}: {round:.1?}", number + 1);
            many.push(round);
        }
    }
    let figures = figures(rounds, many);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    } else {
        print(&figures);
    }
    if args.many {
        return Ok(());
    }
    draw(&figures, &args.plot)
}

fn measure(engine: Engine, seconds: f64) -> Result<Round> {
    let lab = Lab::start(engine, Shape::PAIR)?;
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

fn figures(rounds: BTreeMap<&'static str, Vec<Round>>, many: Vec<Many>) -> Figures {
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
            ratios.insert(name, middle_and_ends(all));
        }
    }
    let figures = kept(&rounds, &medians);
    let many_ratios = MANY_RATIOS.iter().filter(|_| !many.is_empty());
    let many_ratios = many_ratios
        .map(|(name, get)| (*name, middle_and_ends(many.iter().map(get).collect())))
        .collect();
    Figures {
        rounds,
        medians,
        ratios,
        many,
        many_ratios,
        figures,
    }
}

/// Ratios of which more is better, and what our process takes.
fn kept(
    rounds: &BTreeMap<&'static str, Vec<Round>>,
    medians: &BTreeMap<&'static str, Round>,
) -> KeptFigures {
    let mut figures = KeptFigures::new();
    if let (Some(ours), Some(stock)) = (rounds.get("ours"), rounds.get("gotatun")) {
        let mut keep = |name: &str, ratio: fn(&Round, &Round) -> f64| {
            let pairs = ours.iter().zip(stock);
            let ratios = pairs.map(|(ours, stock)| ratio(ours, stock)).collect();
            figures.insert(name.to_owned(), Kept::ratio(ratios));
        };
        keep("TCP, 1 stream, ours to gotatun's", |ours, stock| {
            ours.tcp_1 / stock.tcp_1
        });
        keep("TCP, 8 streams, ours to gotatun's", |ours, stock| {
            ours.tcp_8 / stock.tcp_8
        });
        keep("64-byte packets, ours to gotatun's", |ours, stock| {
            ours.kpps_64 / stock.kpps_64
        });
        keep("1200-byte packets, ours to gotatun's", |ours, stock| {
            ours.kpps_1200 / stock.kpps_1200
        });
        keep("CPU s a GB, gotatun's to ours", |ours, stock| {
            let cpu = |round: &Round| round.cpu_gb_out + round.cpu_gb_in;
            cpu(stock) / cpu(ours)
        });
    }
    if let Some(ours) = medians.get("ours") {
        let value = ours.resident_out.max(ours.resident_in);
        figures.insert(
            "resident after load, MiB".to_owned(),
            Kept::Memory { value },
        );
    }
    figures
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
    for (name, get) in [
        ("one pair", (|many| many.pair) as fn(&Many) -> Load),
        ("pairs", |many| many.pairs),
        ("peers", |many| many.peers),
    ] {
        let middle = |get_one: fn(Load) -> f64| {
            let all = figures.many.iter().map(|many| get_one(get(many)));
            median(all.collect())
        };
        if !figures.many.is_empty() {
            let (mbit, cpu) = (middle(|load| load.mbit), middle(|load| load.cpu_gb));
            println!("{name:<26}{mbit:>12.0} Mbit/s{cpu:>12.2} CPU s a GB");
        }
    }
    for (name, [middle, least, most]) in &figures.many_ratios {
        println!("{name:<30}{middle:>8.2} ({least:.2}–{most:.2})");
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
