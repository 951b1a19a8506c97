//! Suites that `cargo test` runs on this machine.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use anyhow::{Context, Result};

use super::tally::Tally;
use crate::program;
use crate::workspace::Workspace;

/// Everything but the lab of daemons: state machines, codecs, corpora; the kernel's parts as root.
///
/// # Errors
///
/// When cargo cannot start or the tests do not compile.
pub(crate) fn unit(
    workspace: &Workspace,
    daemons: &Path,
    filter: Option<&str>,
    tally: &mut Tally,
) -> Result<()> {
    // `ebpf` is a stub on the host.
    let packages = [
        "--workspace",
        "--exclude",
        "netns-tests",
        "--exclude",
        "ebpf",
    ];
    suite("unit", workspace, &packages, daemons, filter, tally)
}

/// Real daemons between network namespaces.
///
/// # Errors
///
/// As [`unit`].
pub(crate) fn netns(
    workspace: &Workspace,
    daemons: &Path,
    filter: Option<&str>,
    tally: &mut Tally,
) -> Result<()> {
    suite(
        "netns",
        workspace,
        &["--package", "netns-tests"],
        daemons,
        filter,
        tally,
    )
}

fn suite(
    name: &str,
    workspace: &Workspace,
    packages: &[&str],
    daemons: &Path,
    filter: Option<&str>,
    tally: &mut Tally,
) -> Result<()> {
    println!("\nSuite {name}: compiling");
    program::run(
        workspace
            .cargo()
            .args(["test", "--quiet", "--no-run"])
            .args(packages),
    )?;

    println!("Suite {name}: running");
    let mut command = workspace.cargo();
    command
        .args(["test", "--no-fail-fast"])
        .args(packages)
        .args(filter)
        .args(["--", "--show-output"])
        .env("TAILRACE_BIN_DIR", daemons)
        .env("CARGO_TERM_COLOR", "never");
    let outcome = watch(&mut command)?;
    let failed = tally.read(name, outcome.lines.iter().map(String::as_str));
    if !outcome.success {
        println!("{}", outcome.lines.join("\n"));
        if !failed {
            // A crash, an abort or a doc test that does not compile: not in any result line.
            tally.failed += 1;
        }
    }
    Ok(())
}

/// What a test command printed, and whether it succeeded.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) lines: Vec<String>,
    pub(crate) success: bool,
}

/// Runs a test command; shows which program runs and each result line as they come.
///
/// # Errors
///
/// When it cannot start.
pub(crate) fn watch(command: &mut Command) -> Result<Outcome> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", program::line(command)))?;
    let (sender, receiver) = channel();
    if let Some(stdout) = child.stdout.take() {
        forward(stdout, sender.clone());
    }
    if let Some(stderr) = child.stderr.take() {
        forward(stderr, sender);
    }
    let mut lines = Vec::new();
    for line in receiver {
        if is_progress(&line) {
            println!("{line}");
        }
        lines.push(line);
    }
    let success = child.wait()?.success();
    Ok(Outcome { lines, success })
}

fn forward(stream: impl Read + Send + 'static, sender: Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            if sender
                .send(String::from_utf8_lossy(&line).into_owned())
                .is_err()
            {
                break;
            }
        }
    });
}

/// Lines that show how far a run is.
fn is_progress(line: &str) -> bool {
    [
        "     Running ",
        "   Doc-tests ",
        "test result: ",
        "=== RUN ",
        "--- ",
    ]
    .iter()
    .any(|prefix| line.starts_with(prefix))
        || line.starts_with("test ") && line.ends_with("FAILED")
}
