//! `tailrace bench host`: a whole table, and nothing left behind.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_tests::{KernelState, names, refused};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testnet::tailnet::program;
use testnet::{Namespace, Process, run, skip_unless_available, wait_until};

/// What each engine is measured for.
const FIGURES: [&str; 6] = [
    "tcp_mbit",
    "cpu_s_per_gb",
    "small_kpps",
    "idle_ms",
    "loaded_ms",
    "resident_mib",
];

fn bench(space: &Namespace, words: &[&str]) -> Result<Command> {
    let mut command = space.command(program("tailrace")?);
    command
        .args(["bench", "host", "--seconds", "5"])
        .args(words);
    Ok(command)
}

/// Processes that the process `pid` started and that live.
fn children(pid: u32) -> Result<Vec<u32>> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let pids = text.split_whitespace().map(str::parse);
    Ok(pids.collect::<Result<_, _>>()?)
}

#[test]
fn every_figure_is_measured_and_the_host_is_as_it_was() -> Result<()> {
    skip_unless_available!();
    let space = Namespace::new("host")?;
    let before = KernelState::of(&space)?;
    let said = run(&mut bench(&space, &["--json"])?)?;
    let report: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let alone = !report["without_kernel"].is_null();
    for engine in ["kernel", "embedded"] {
        if alone && engine == "kernel" {
            continue;
        }
        let measured = &report["engines"][engine];
        for figure in FIGURES {
            let value = measured["medians"][figure].as_f64();
            // Beside what else keeps a host busy, CPU time may not be told apart.
            let may_be_none = figure == "cpu_s_per_gb";
            let measured = value.is_some_and(|value| value > 0.0 || may_be_none && value == 0.0);
            ensure!(measured, "{engine} {figure}: {report}");
        }
        let rounds = measured["rounds"].as_array().context("no rounds")?;
        ensure!(rounds.len() == 3, "{report}");
    }
    // Who is favoured follows from the figures; where there is nobody else, that is said.
    ensure!(report["verdict"].is_null() == alone, "{report}");
    let words = if alone {
        "no WireGuard"
    } else {
        "Bulk transfers"
    };
    ensure!(report["says"].to_string().contains(words), "{report}");
    let after = KernelState::of(&space)?;
    ensure!(
        after == before,
        "left behind:\n{}",
        before.difference(&after)
    );

    let table = run(&mut bench(&space, &[])?)?;
    names(
        &table,
        &[
            "TCP, 1 stream",
            "64-byte packets",
            "ping, beside TCP",
            "MiB",
            "embedded",
        ],
    )?;
    println!("{table}");
    Ok(())
}

#[test]
fn whoever_interrupts_it_leaves_nothing_behind() -> Result<()> {
    skip_unless_available!();
    let space = Namespace::new("host")?;
    let before = KernelState::of(&space)?;
    for signal in [Signal::INT, Signal::KILL] {
        let mut process = Process::spawn("bench host", bench(&space, &[])?)?;
        let pid = process.pid();
        let parts = wait_until(Duration::from_secs(20), "traffic flows", || {
            let parts = children(pid)?;
            // Two ends, one that answers and one that sends.
            ensure!(parts.len() >= 4, "{parts:?}");
            Ok(parts)
        })?;
        let whole = Pid::from_raw(pid.try_into()?).context("a process id")?;
        kill_process(whole, signal)?;
        wait_until(Duration::from_secs(10), "all parts have ended", || {
            ensure!(process.ended()?.is_some(), "it goes on");
            for part in &parts {
                let status = fs::read_to_string(format!("/proc/{part}/stat")).unwrap_or_default();
                // One that nobody has waited for yet has no namespace either.
                let gone = status.is_empty() || status.contains(") Z ");
                ensure!(gone, "{status}");
            }
            Ok(())
        })?;
        let after = KernelState::of(&space)?;
        ensure!(
            after == before,
            "left behind:\n{}",
            before.difference(&after)
        );
    }
    Ok(())
}

#[test]
fn without_root_it_says_what_it_needs() -> Result<()> {
    skip_unless_available!("setpriv");
    let space = Namespace::new("host")?;
    let program = program("tailrace")?;
    let program = program.to_str().context("path")?;
    let output = space.output(&[
        "setpriv",
        "--bounding-set=-all",
        "--inh-caps=-all",
        program,
        "bench",
        "host",
    ])?;
    refused(&output, &["root", "sudo"])
}
