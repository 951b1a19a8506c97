//! Benches: release builds, delegated to the package `bench`.

use anyhow::Result;

use crate::ebpf;
use crate::program;
use crate::setup;
use crate::workspace::Workspace;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Name of the bench.
    #[arg(value_parser = ["acl", "control", "counters", "forward", "policy", "relay"])]
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
    let daemons = workspace.build_daemons(true)?;
    let mut command = workspace.cargo();
    command
        .args([
            "run",
            "--quiet",
            "--release",
            "--package",
            "bench",
            "--",
            &options.name,
        ])
        .args(options.json.then_some("--json"))
        .args(&options.rest)
        .env("TAILRACE_BIN_DIR", daemons);
    program::run(&mut command)
}
