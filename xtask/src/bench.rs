//! Benches: release builds, delegated to the package `bench`.

mod kept;
mod overhead;

use std::fs;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};

use crate::ebpf;
use crate::program;
use crate::setup;
use crate::workspace::Workspace;
use kept::{Committed, Run};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Name of the bench; with --check all that have committed figures, if none is named.
    #[arg(
        value_parser = ["acl", "control", "counters", "forward", "memory", "overhead", "paths", "policy", "relay", "relayed", "tunnel"],
        required_unless_present = "check"
    )]
    name: Option<String>,
    /// Machine-readable figures.
    #[arg(long)]
    json: bool,
    /// Hold the figures against those in bench/figures.json; fail if instructions or memory are more than a tenth
    /// more, processor time more than twice as much, or a median ratio lies below the committed rounds.
    #[arg(long, conflicts_with_all = ["json", "record", "rest"])]
    check: bool,
    /// Write the figures to bench/figures.json.
    #[arg(long, conflicts_with = "json")]
    record: bool,
    /// Further arguments for the bench.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// One bench, and how to run it.
#[derive(Debug)]
struct Bench<'a> {
    name: &'a str,
    json: bool,
    rest: &'a [String],
}

/// Builds daemons and bench for release, then runs the bench.
///
/// # Errors
///
/// When a build or the bench fails, or a figure is worse than the committed one.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    setup::lab()?;
    let tools = setup::ebpf_tools(workspace)?;
    ebpf::build(&workspace.root, &tools)?;
    let bench = |name| Bench {
        name,
        json: options.json || options.record,
        rest: &options.rest,
    };
    if options.check {
        return check(workspace, options);
    }
    let name = options.name.as_deref().context("no bench is named")?;
    if !options.record {
        return bench(name).run(workspace, program::run);
    }
    let run = measure(workspace, &bench(name))?;
    let mut committed = Committed::read(&workspace.root)?;
    committed.record(name, run)
}

/// Runs those benches as they were run for the committed figures, and compares.
fn check(workspace: &Workspace, options: &Options) -> Result<()> {
    let committed = Committed::read(&workspace.root)?;
    let mut worse = Vec::new();
    for (name, before) in committed.runs(options.name.as_deref())? {
        let run = measure(
            workspace,
            &Bench {
                name,
                json: true,
                rest: &before.arguments,
            },
        )?;
        let compared = before.compare(name, &run);
        println!("{compared}");
        worse.extend(compared.worse());
    }
    if worse.is_empty() {
        println!("All figures are as good as the committed ones.");
        return Ok(());
    }
    bail!("worse than committed:\n  {}", worse.join("\n  "))
}

fn measure(workspace: &Workspace, bench: &Bench<'_>) -> Result<Run> {
    let printed = bench.run(workspace, program::quiet)?;
    Ok(Run {
        arguments: bench.rest.to_vec(),
        machine: machine()?,
        figures: kept::figures(&printed)?,
    })
}

/// Release of the kernel, and the processors.
fn machine() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let processors = thread::available_parallelism()?;
    Ok(format!("Linux {}, {processors} processors", release.trim()))
}

impl Bench<'_> {
    /// Builds what it needs; `run` gets the command.
    fn run<T>(
        &self,
        workspace: &Workspace,
        run: impl FnOnce(&mut Command) -> Result<T>,
    ) -> Result<T> {
        if self.name == "overhead" {
            return overhead::run(workspace, self, run);
        }
        let daemons = workspace.build_daemons(true)?;
        let mut command = self.cargo_run(workspace, true);
        run(command.args(self.rest).env("TAILRACE_BIN_DIR", daemons))
    }

    /// The bench's own command line.
    fn cargo_run(&self, workspace: &Workspace, release: bool) -> Command {
        let mut command = workspace.cargo();
        command
            .args(["run", "--quiet", "--package", "bench"])
            .args(release.then_some("--release"))
            .args(["--", self.name])
            .args(self.json.then_some("--json"));
        command
    }
}
