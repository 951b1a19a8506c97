//! Repository automation: `cargo xtask <command>`.
#![forbid(unsafe_code)]

mod bench;
mod demo;
mod ebpf;
mod program;
mod setup;
mod test;
mod tidy;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Set-up, demo, tests, benches and checks of the repository.
///
/// Every command installs what it needs by itself; `setup` does it ahead of time.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Installs what the other commands need; without a part: everything but the kernels.
    Setup {
        /// Parts to install.
        parts: Vec<setup::Part>,
    },
    /// Builds the eBPF programs that the agent embeds.
    BuildEbpf {
        /// Programs that log each packet, for debugging.
        #[arg(long)]
        log: bool,
    },
    /// Joins two nodes behind NAT in a lab of network namespaces and shows their traffic.
    Demo(demo::Options),
    /// Runs test suites; without a name: all that this machine can run.
    Test(test::Options),
    /// Builds for release and runs one bench.
    Bench(bench::Options),
    /// Checks dependency arrows, file openings and file lengths.
    Tidy,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let workspace = Workspace::find()?;
    match arguments.command {
        Command::Setup { parts } => setup::run(&workspace, &parts),
        Command::BuildEbpf { log } => {
            let tools = setup::ebpf_tools(&workspace)?;
            ebpf::build_with(&workspace.root, &tools, log)?;
            Ok(())
        }
        Command::Demo(options) => demo::run(&workspace, &options),
        Command::Test(options) => test::run(&workspace, &options),
        Command::Bench(options) => bench::run(&workspace, &options),
        Command::Tidy => tidy::run(&workspace),
    }
}
