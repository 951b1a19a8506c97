//! Test suites, counted into one line: `N passed, N failed, N skipped`.

mod cargo;
mod interop;
mod tally;
mod vm;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::ebpf;
use crate::program::is_root;
use crate::setup;
use crate::workspace::Workspace;

use tally::Tally;

/// Which suites to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// `unit`, `netns`, `interop`, `vm [KERNEL…]` (as `vm 6.12`); without a name: all that this
    /// machine can run.
    suites: Vec<String>,
    /// Only tests whose name holds this text (letters, digits, `_` and `:`).
    #[arg(long, value_parser = test_name)]
    filter: Option<String>,
    /// Only test binaries of the VM whose name holds one of these texts, as `dataplane,netns-heal`.
    #[arg(long)]
    binaries: Option<String>,
}

/// A part of a test's name; it goes into a shell script of the VM, so nothing else passes.
fn test_name(text: &str) -> Result<String, String> {
    if text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
    {
        return Ok(text.to_owned());
    }
    Err("names of tests hold letters, digits, _ and :".to_owned())
}

/// Kernel of `test vm` without a name.
const DEFAULT_KERNEL: &str = "6.12";

/// A suite, and whether it was asked for by name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Suite {
    Unit,
    Netns,
    Interop,
    Vm(Vec<String>),
}

/// Runs the suites.
///
/// # Errors
///
/// When a test failed or none ran, or a suite that was named cannot run here.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let named = !options.suites.is_empty();
    let suites = if named {
        parse(&options.suites)?
    } else {
        all(workspace)?
    };
    let filter = options.filter.as_deref();
    let mut tally = Tally::default();

    if named || is_root() {
        // The dataplane's tests and the daemons embed the real programs.
        let tools = setup::ebpf_tools(workspace)?;
        ebpf::build(&workspace.root, &tools)?;
    }
    if is_root() {
        // Unit tests of the agent and of netlink make namespaces too, and ask nft and its like.
        setup::lab()?;
    }
    let no_daemons = |suite: &Suite| {
        matches!(suite, Suite::Vm(_)) && !vm::starts_daemons(options.binaries.as_deref())
    };
    let daemons = if suites.iter().all(no_daemons) {
        None
    } else {
        Some(workspace.build_daemons(false)?)
    };
    for suite in &suites {
        match suite {
            Suite::Unit => cargo::unit(workspace, built(&daemons)?, filter, &mut tally)?,
            Suite::Netns if !named && !is_root() => {
                tally.skip("netns", "network namespaces need root");
            }
            Suite::Netns => {
                setup::lab()?;
                cargo::netns(workspace, built(&daemons)?, filter, &mut tally)?;
            }
            Suite::Interop => interop::run(workspace, built(&daemons)?, filter, &mut tally)?,
            Suite::Vm(kernels) if !named && kernels.is_empty() => {
                tally.skip("vm", "no kernel in the cache: cargo xtask setup vm");
            }
            Suite::Vm(kernels) => {
                for name in kernels {
                    let kernel = setup::vm(workspace, name)?;
                    let only = vm::Only {
                        binaries: options.binaries.as_deref(),
                        tests: filter,
                    };
                    vm::run(workspace, &kernel, daemons.as_deref(), &only, &mut tally)?;
                }
            }
        }
    }

    println!();
    for skip in &tally.skips {
        println!("skipped {}: {}", skip.name, skip.reason);
    }
    // A filter that matches nothing proves nothing.
    let nothing = tally.passed + tally.failed + tally.skips.len() == 0;
    if nothing {
        println!("no test ran: is the name after --filter right?");
    }
    println!("{tally}");
    if nothing || tally.failed > 0 {
        // The count is the last line: no error message below it.
        std::process::exit(1);
    }
    Ok(())
}

fn built(daemons: &Option<PathBuf>) -> Result<&Path> {
    daemons.as_deref().context("the daemons are not built")
}

/// Reads `unit netns vm 6.1 6.12`: what follows `vm` and is no suite is a kernel.
fn parse(words: &[String]) -> Result<Vec<Suite>> {
    let mut suites = Vec::new();
    for word in words {
        match (word.as_str(), suites.last_mut()) {
            ("unit", _) => suites.push(Suite::Unit),
            ("netns", _) => suites.push(Suite::Netns),
            ("interop", _) => suites.push(Suite::Interop),
            ("vm", _) => suites.push(Suite::Vm(Vec::new())),
            (kernel, Some(Suite::Vm(kernels))) => kernels.push(kernel.to_owned()),
            (other, _) => bail!("no suite {other:?}: say unit, netns, interop or vm"),
        }
    }
    for suite in &mut suites {
        if let Suite::Vm(kernels) = suite
            && kernels.is_empty()
        {
            kernels.push(DEFAULT_KERNEL.to_owned());
        }
    }
    Ok(suites)
}

/// Everything; VMs for the kernels that are in the cache already.
fn all(workspace: &Workspace) -> Result<Vec<Suite>> {
    let kernels = if setup::missing_for_vm().is_empty() {
        setup::cached_kernels(workspace)?
            .into_iter()
            .map(|kernel| kernel.name)
            .collect()
    } else {
        Vec::new()
    };
    Ok(vec![
        Suite::Unit,
        Suite::Netns,
        Suite::Interop,
        Suite::Vm(kernels),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn words_after_vm_are_kernels() -> Result<()> {
        let kernels = vec!["6.1".to_owned(), "6.12".to_owned()];
        assert_eq!(
            parse(&words("vm 6.1 6.12 unit"))?,
            [Suite::Vm(kernels), Suite::Unit]
        );
        assert_eq!(
            parse(&words("vm"))?,
            [Suite::Vm(vec![DEFAULT_KERNEL.to_owned()])]
        );
        Ok(())
    }

    #[test]
    fn an_unknown_suite_is_refused() {
        let error = parse(&words("unit nets")).expect_err("no such suite");
        assert!(error.to_string().contains("nets"), "{error}");
    }
}
