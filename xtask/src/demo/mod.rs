//! The demo: two nodes behind NAT, a subnet router and an exit node, joined and relayed by our own
//! servers, on one machine.

mod captures;
mod figures;
mod gateways;
mod lab;
mod live;
mod metrics;
mod svg;
mod topology;

use std::io::{IsTerminal, stdout};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::ebpf;
use crate::program::is_root;
use crate::setup;
use crate::workspace::Workspace;

/// How the demo runs. Without an option: a live table until Ctrl-C.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Verify pings and throughput in both directions, then exit: 0 if all is well.
    #[arg(long, conflicts_with = "keep")]
    once: bool,
    /// Keep the lab to explore: prints the commands and waits for Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Run Debian's Prometheus beside it, with the alerts of docs/dashboards.
    #[arg(long)]
    metrics: bool,
    /// Put pictures of `tailrace top` and of Prometheus' graphs into a folder, then exit.
    #[arg(
        long,
        value_name = "FOLDER",
        requires = "metrics",
        conflicts_with = "keep"
    )]
    captures: Option<PathBuf>,
}

/// Set by Ctrl-C and its like.
#[derive(Clone, Debug)]
struct Stop(Arc<AtomicBool>);

/// Sets up, joins the nodes and shows them. Leaves nothing behind.
///
/// # Errors
///
/// When something cannot be installed, a node does not join, `--once` finds no connectivity, or a picture of
/// `--captures` cannot be taken.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    ensure!(
        is_root(),
        "the demo makes network namespaces: run it as root, \
         for example: sudo env \"PATH=$PATH\" cargo xtask demo"
    );
    setup::lab()?;
    if options.metrics {
        setup::prometheus()?;
    }
    if options.captures.is_some() {
        setup::browser()?;
    }
    let tools = setup::ebpf_tools(workspace)?;
    ebpf::build(&workspace.root, &tools)?;
    let programs = workspace.build_daemons(false)?;

    let stop = Stop::on_signal()?;
    let demo = lab::start(&stop)?;
    let tailnet = &demo.tailnet;
    println!("\n{}", topology::draw(&demo)?);
    let prometheus = match options.metrics {
        true => Some(metrics::start(workspace, &demo)?),
        false => None,
    };
    if options.once {
        figures::verify(tailnet)?;
        gateways::verify(&demo)?;
        if let Some(prometheus) = &prometheus {
            metrics::verify(prometheus)?;
        }
        println!("\nAll is well.");
    }
    if let (Some(folder), Some(prometheus)) = (&options.captures, &prometheus) {
        captures::take(&demo, prometheus, folder, &stop)?;
    }
    if options.once || options.captures.is_some() {
        return Ok(());
    }
    if options.keep {
        println!("{}", topology::hints(&demo, &programs));
        println!("Ctrl-C takes the lab down.");
        while !stop.is_set() {
            thread::sleep(Duration::from_millis(100));
        }
    } else {
        live::show(&demo, &stop, stdout().is_terminal())?;
    }
    println!("\nTaking the lab down.");
    Ok(())
}

impl Stop {
    fn on_signal() -> Result<Stop> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&flag))?;
        }
        Ok(Stop(flag))
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails once a signal has come, so that guards clean up on the way out.
    fn check(&self) -> Result<()> {
        ensure!(!self.is_set(), "interrupted");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Demo {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn captures_without_metrics_name_what_is_missing() {
        let error = Demo::try_parse_from(["demo", "--captures", "folder"]).expect_err("refused");
        assert!(error.to_string().contains("--metrics"), "{error}");
        let words = ["demo", "--metrics", "--captures", "folder"];
        let demo = Demo::try_parse_from(words).expect("accepted");
        assert_eq!(demo.options.captures, Some("folder".into()));
    }
}
