//! The netns tests and the kernel-facing crates' tests inside a VM, on kernel WireGuard.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::tally::Tally;
use crate::program;
use crate::setup::Kernel;
use crate::vm::{self, Clock, EXIT, Executable, Guest, SUITE, Step};
use crate::workspace::Workspace;

/// Packages whose tests touch the kernel, and the folders after which their binaries are named.
const PACKAGES: &[(&str, &str)] = &[
    ("testnet", "testnet"),
    ("netlink", "netlink"),
    ("dataplane", "dataplane"),
    ("netns-tests", "netns"),
];
/// The one of those folders whose tests start daemons.
const DAEMONS_IN: &str = "netns";
/// Policies of the differential test unless `FILTER_POLICIES` says otherwise: what differs between
/// kernels shows in few, and each waits for the emulated kernel.
const POLICIES: &str = "50";
/// Packets of the test of hostile ones, likewise, unless `HOSTILE_PACKETS` says otherwise.
const HOSTILE: &str = "4000";

/// A part of the tests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Only<'a> {
    /// Binaries whose name holds one of these texts, between commas.
    pub(crate) binaries: Option<&'a str>,
    /// Tests whose name holds this text.
    pub(crate) tests: Option<&'a str>,
}

/// Boots `kernel`, runs the tests of [`PACKAGES`] and counts them.
///
/// # Errors
///
/// When the tests do not compile or the VM cannot be made.
pub(crate) fn run(
    workspace: &Workspace,
    kernel: &Kernel,
    daemons: Option<&Path>,
    only: &Only<'_>,
    tally: &mut Tally,
) -> Result<()> {
    println!("\nSuite vm {}: compiling", kernel.name);
    let tests = executables(workspace, only.binaries.unwrap_or_default())?;
    println!(
        "Suite vm {}: booting {} (emulated: takes minutes)",
        kernel.name, kernel.version
    );
    let arguments: Vec<String> = only
        .tests
        .into_iter()
        .chain(["--show-output", "--test-threads=1"])
        .map(str::to_owned)
        .collect();
    let steps = tests.into_iter().map(|program| Step {
        program,
        arguments: arguments.clone(),
    });
    let guest = Guest {
        steps: steps.collect(),
        daemons: daemons.map(Path::to_owned),
        programs: Vec::new(),
        environment: environment(),
        clock: Clock::Host,
    };
    let label = format!("vm {}", kernel.name);
    match vm::run(kernel, &guest) {
        Ok(console) => count(&label, &console, tally),
        Err(error) => {
            println!("{label}: {error:#}");
            tally.failed += 1;
        }
    }
    Ok(())
}

/// What the tests find in their environment.
fn environment() -> Vec<(String, String)> {
    let or = |name: &str, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
    [
        ("TAILRACE_WIREGUARD", "kernel".to_owned()),
        ("FILTER_POLICIES", or("FILTER_POLICIES", POLICIES)),
        ("HOSTILE_PACKETS", or("HOSTILE_PACKETS", HOSTILE)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

/// Whether a binary whose name holds one of `parts` may start daemons.
pub(crate) fn starts_daemons(parts: Option<&str>) -> bool {
    parts.is_none_or(|parts| packages(parts).any(|(_, folder)| folder == DAEMONS_IN))
}

/// Those of [`PACKAGES`] that may have a binary whose name holds one of `parts`, with their folders.
fn packages(parts: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let named = move |folder: &str| {
        let mut parts = parts.split(',');
        parts.any(|part| part.starts_with(folder) || folder.contains(part))
    };
    let any_is_named = PACKAGES.iter().any(|(_, folder)| named(folder));
    let packages = PACKAGES.iter().copied();
    packages.filter(move |(_, folder)| named(folder) || !any_is_named)
}

/// The test binaries of [`PACKAGES`] whose name holds one of `parts`.
fn executables(workspace: &Workspace, parts: &str) -> Result<Vec<Executable>> {
    let mut command = workspace.cargo();
    command.args(["test", "--quiet", "--no-run", "--message-format", "json"]);
    // Not doc tests: they need a compiler.
    command.args(["--lib", "--tests"]);
    // The others need not even be compiled.
    for (package, _) in packages(parts) {
        command.args(["--package", package]);
    }
    let messages = program::quiet(&mut command)?;
    let mut tests: Vec<Executable> = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| executable(&message))
        .filter(|test| parts.split(',').any(|part| test.name.contains(part)))
        .collect();
    ensure!(!tests.is_empty(), "no test binary is called {parts:?}");
    tests.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tests)
}

/// The test binary that a message of cargo's reports, named `<package>-<target>`.
fn executable(message: &Value) -> Option<Executable> {
    let path = message.get("executable")?.as_str()?;
    if !message.pointer("/profile/test")?.as_bool()? {
        return None;
    }
    let manifest = Path::new(message.get("manifest_path")?.as_str()?);
    let package = manifest.parent()?.file_name()?.to_str()?;
    let target = message.pointer("/target/name")?.as_str()?.replace('_', "-");
    let name = if target == package {
        target
    } else {
        format!("{package}-{target}")
    };
    Some(Executable {
        name,
        path: PathBuf::from(path),
    })
}

/// Counts each test binary's part of the console, and shows it if it failed.
fn count(label: &str, console: &[String], tally: &mut Tally) {
    let mut part: Vec<&str> = Vec::new();
    for line in console {
        if line.starts_with(SUITE) {
            part.clear();
        } else if let Some(rest) = line.strip_prefix(EXIT) {
            let failed = tally.read(label, part.iter().copied());
            if status(rest).is_err() || status(rest).is_ok_and(|status| status != 0) {
                println!("{label}: {rest}\n{}", part.join("\n"));
                if !failed {
                    tally.failed += 1;
                }
            }
            part.clear();
        } else {
            part.push(line);
        }
    }
}

/// The number at the end of `<name> <status>`.
fn status(text: &str) -> Result<i32> {
    let (_, status) = text.rsplit_once(' ').context("no status")?;
    Ok(status.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_netns_tests_start_daemons() {
        assert!(starts_daemons(None));
        assert!(starts_daemons(Some("netns-heal")));
        assert!(starts_daemons(Some("heal")));
        assert!(!starts_daemons(Some("dataplane")));
        assert!(!starts_daemons(Some("dataplane-shield,netlink")));
        assert!(starts_daemons(Some("dataplane-shield,netns-heal")));
    }

    #[test]
    fn a_binary_that_dies_without_a_result_counts_as_failed() {
        let console = [
            "=== kernel 6.12",
            "=== suite a",
            "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured",
            "=== exit a 0",
            "=== suite b",
            "Segmentation fault",
            "=== exit b 139",
            "=== done",
        ];
        let console: Vec<String> = console.iter().map(|line| (*line).to_owned()).collect();
        let mut tally = Tally::default();
        count("vm 6.12", &console, &mut tally);
        assert_eq!(tally.to_string(), "2 passed, 1 failed, 0 skipped");
    }
}
