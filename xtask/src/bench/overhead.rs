//! `bench overhead`: measured in a VM whose clock counts instructions, reported here.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Bench;
use crate::program;
use crate::setup;
use crate::vm::{self, Clock, EXIT, Executable, Guest, Step};
use crate::workspace::{Workspace, text};

/// The kernel that figures are of.
const KERNEL: &str = "6.12";
/// Name of the program inside.
const NAME: &str = "bench";

/// Boots the VM and has the bench measure inside; `report` gets the command that reports what it printed.
///
/// # Errors
///
/// When the VM cannot be made, or the bench fails inside.
pub(super) fn run<T>(
    workspace: &Workspace,
    bench: &Bench<'_>,
    report: impl FnOnce(&mut Command) -> Result<T>,
) -> Result<T> {
    if bench.rest.iter().any(|word| word == "--help") {
        return report(bench.cargo_run(workspace, false).arg("--help"));
    }
    let kernel = setup::vm(workspace, KERNEL)?;
    let wireguard_go = setup::wireguard_go(workspace)?;
    // No release build: what is measured is the kernel, and the programs that it runs.
    let mut build = workspace.cargo();
    // Of the whole workspace: the artifacts are then those that the tests are built with.
    build.args(["build", "--quiet", "--workspace", "--bin", NAME]);
    program::run(&mut build)?;
    let path = workspace.target()?.join("debug").join(NAME);
    let program = Executable {
        name: NAME.to_owned(),
        path: path.clone(),
    };
    let arguments = [bench.name, "--guest"].map(str::to_owned);
    let guest = Guest {
        steps: vec![Step {
            program,
            arguments: arguments.into_iter().chain(bench.rest.to_vec()).collect(),
        }],
        daemons: None,
        programs: vec![wireguard_go],
        environment: Vec::new(),
        clock: Clock::Instructions,
    };
    eprintln!("Booting {} (emulated: takes minutes)", kernel.version);
    let console = vm::run(&kernel, &guest)?;
    let ended = format!("{EXIT}{NAME} 0");
    ensure!(
        console.contains(&ended),
        "the bench failed inside:\n{}",
        console.join("\n")
    );
    let folder = testnet::Folder::new("overhead")?;
    let file = folder.path().join("console");
    fs::write(&file, console.join("\n")).context("keeping what the VM printed")?;
    let mut command = Command::new(path);
    command
        .args([bench.name, "--measured", text(&file)?])
        .args(bench.json.then_some("--json"));
    report(&mut command)
}
