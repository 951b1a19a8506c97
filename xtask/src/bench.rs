//! Benches: release builds, delegated to the package `bench`.

mod overhead;

use std::process::Command;

use anyhow::Result;

use crate::ebpf;
use crate::program;
use crate::setup;
use crate::workspace::Workspace;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Name of the bench.
    #[arg(value_parser = ["acl", "control", "counters", "forward", "overhead", "paths", "policy", "relay", "tunnel"])]
    name: String,
    /// Machine-readable figures.
    #[arg(long)]
    json: bool,
    /// Further arguments for the bench.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Builds daemons and bench for release, then runs the bench.
///
/// # Errors
///
/// When a build or the bench fails.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    setup::lab()?;
    let tools = setup::ebpf_tools(workspace)?;
    ebpf::build(&workspace.root, &tools)?;
    if options.name == "overhead" {
        return overhead::run(workspace, options);
    }
    let daemons = workspace.build_daemons(true)?;
    let mut command = command(workspace, options, true);
    command.args(&options.rest).env("TAILRACE_BIN_DIR", daemons);
    program::run(&mut command)
}

/// The bench's own command line.
fn command(workspace: &Workspace, options: &Options, release: bool) -> Command {
    let mut command = workspace.cargo();
    command
        .args(["run", "--quiet", "--package", "bench"])
        .args(release.then_some("--release"))
        .args(["--", options.name.as_str()])
        .args(options.json.then_some("--json"));
    command
}
