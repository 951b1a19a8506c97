//! `memory`: what each of our programs has resident, alone and with many peers, nodes or clients.
//!
//! The labs are those of `paths`, `control` and `relay`; the figures are the processes' own, from `/proc`.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::figures::{Kept, KeptFigures};
use crate::plot::{Bars, Group};
use crate::{control, paths, relay};

/// Options of the bench.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Peers of the agent in all.
    #[arg(long, default_value_t = 1000)]
    peers: usize,
    /// Peers of the agent that are sent to, each a real agent.
    #[arg(long, default_value_t = 2)]
    active: usize,
    /// Nodes of the coordination server, which all see each other.
    #[arg(long, default_value_t = 300)]
    nodes: usize,
    /// Idle clients of the relay.
    #[arg(long, default_value_t = 1000)]
    clients: usize,
    /// Where the plot goes.
    #[arg(long, default_value = "bench/results/memory.svg")]
    plot: PathBuf,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// One program.
#[derive(Debug, Serialize)]
struct Row {
    program: &'static str,
    /// What it has few or many of.
    of: &'static str,
    few: usize,
    many: usize,
    /// Resident MiB with few and with many.
    few_mib: f64,
    many_mib: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    programs: Vec<Row>,
    /// What later runs are held against.
    figures: KeptFigures,
}

/// Measures and prints a table, or JSON.
///
/// # Errors
///
/// Without root, or if a program does not do its part.
pub(crate) fn run(args: &Args) -> Result<()> {
    let Args { peers, active, .. } = *args;
    ensure!(
        active > 0 && active < peers,
        "--active is none, or as many as --peers"
    );
    let row = |program, of, [few, many]: [usize; 2], [few_mib, many_mib]: [f64; 2]| Row {
        program,
        of,
        few,
        many,
        few_mib,
        many_mib,
    };
    let relay = relay::resident_mib(args.clients).context("the relay")?;
    let control = control::resident_mib(args.nodes).context("control")?;
    let agent = [
        paths::resident_mib(active, 0).context("the agent alone")?,
        paths::resident_mib(active, peers - active).context("the agent with all its peers")?,
    ];
    let programs = vec![
        row("tailrace", "peers", [active, peers], agent),
        row("tailrace-control", "nodes", [0, args.nodes], control),
        row("tailrace-relay", "clients", [1, args.clients + 1], relay),
    ];
    let figures = programs.iter().flat_map(Row::kept).collect();
    let report = Report { programs, figures };
    draw(&report.programs, args)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    println!(
        "{:<18}{:>14}{:>10}{:>14}{:>10}{:>12}",
        "resident", "", "MiB", "", "MiB", "KiB each"
    );
    for row in &report.programs {
        let with = |count| format!("{count} {}", row.of);
        println!(
            "{:<18}{:>14}{:>10.1}{:>14}{:>10.1}{:>12.1}",
            row.program,
            with(row.few),
            row.few_mib,
            with(row.many),
            row.many_mib,
            row.kib_each()
        );
    }
    println!("\nPlot: {}", args.plot.display());
    Ok(())
}

impl Row {
    /// What each more costs.
    fn kib_each(&self) -> f64 {
        (self.many_mib - self.few_mib) * 1024.0 / (self.many - self.few) as f64
    }

    fn kept(&self) -> [(String, Kept); 2] {
        let Self { program, of, .. } = self;
        let one = |count, value| {
            (
                format!("{program}, {count} {of}, MiB"),
                Kept::Memory { value },
            )
        };
        [one(self.few, self.few_mib), one(self.many, self.many_mib)]
    }
}

fn draw(programs: &[Row], args: &Args) -> Result<()> {
    let groups = programs.iter().map(|row| Group {
        name: row.program,
        bars: vec![
            (
                "few",
                row.few_mib,
                format!("{:.1} MiB, {} {}", row.few_mib, row.few, row.of),
            ),
            (
                "many",
                row.many_mib,
                format!("{:.1} MiB, {} {}", row.many_mib, row.many, row.of),
            ),
        ],
    });
    Bars {
        title: "Resident memory",
        groups: groups.collect(),
    }
    .write(&args.plot)
}
