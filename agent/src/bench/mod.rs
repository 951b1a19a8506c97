//! `tailrace bench host`: which WireGuard serves this host best, by measurement.
//!
//! ```text
//! this process ──► near end: tailrace0 10.9.0.1 ── cable 10.8.0.1 ═══ 10.8.0.2 ── tailrace0 10.9.0.2 :far end
//!              └─► loads, which join the namespace of an end: TCP, small packets, pings
//! ```
//!
//! Each end is a process alone in a network namespace without a name. The namespace lives as long as the end, and
//! the end as long as this process holds its input: however this process ends, nothing is left. The daemon, if one
//! runs, and the host's own network are not touched.

pub mod end;
mod error;
mod figures;
mod lab;
pub mod load;
pub mod process;
mod report;
mod verdict;

use std::time::{Duration, Instant};

use crate::config::EngineName;
use crate::privileges;

pub use error::BenchError;
use figures::Round;
use lab::Lab;
pub use report::Report;

/// Rounds; in each the engines take turns, so that what else the host does hits all alike.
const ROUNDS: usize = 3;
/// Shares of an engine's time in a round: bulk, small packets, pings under load, pings alone.
const SHARES: [u32; 4] = [3, 3, 3, 1];
/// Bytes of a small packet.
const SMALL: usize = 64;

/// Measures both engines for about `time` in all; `tell` hears what is being done.
///
/// # Errors
///
/// [`BenchError::NotRoot`]; whatever an end or a load failed with.
pub fn host(time: Duration, tell: impl Fn(&str)) -> Result<Report, BenchError> {
    if !privileges::may_configure_network() {
        return Err(BenchError::NotRoot);
    }
    let mut engines = vec![EngineName::Kernel, EngineName::Embedded];
    let mut rounds: Vec<Vec<Round>> = vec![Vec::new(); engines.len()];
    let mut without_kernel = None;
    for number in 1..=ROUNDS {
        for engine in engines.clone() {
            tell(&format!("round {number} of {ROUNDS}: {}", name(engine)));
            let lab = match Lab::start(engine) {
                Err(BenchError::NoWireGuard(reason)) => {
                    engines.retain(|other| *other != engine);
                    tell(&reason);
                    without_kernel = Some(reason);
                    continue;
                }
                lab => lab?,
            };
            let parts = ROUNDS * engines.len() * SHARES.iter().sum::<u32>() as usize;
            let round = measure(&lab, time.div_f64(parts as f64))?;
            rounds[usize::from(engine == EngineName::Embedded)].push(round);
        }
    }
    let [kernel, embedded] = <[_; 2]>::try_from(rounds).unwrap_or_default();
    Ok(Report::new(time, without_kernel, kernel, embedded))
}

/// The engine's word on the command line.
fn name(engine: EngineName) -> &'static str {
    match engine {
        EngineName::Auto => "auto",
        EngineName::Kernel => "kernel",
        EngineName::Embedded => "embedded",
    }
}

/// One round of one engine; `unit` is the time of one share.
fn measure(lab: &Lab, unit: Duration) -> Result<Round, BenchError> {
    let [bulk, packets, loaded, idle] = SHARES.map(|share| unit * share);
    let others = used_meanwhile(unit)?;
    let (before, begin) = (process::host_cpu_time()?, Instant::now());
    let sent = lab.tcp(bulk)?;
    let used = (process::host_cpu_time()? - before).as_secs_f64();
    let of_others = others * begin.elapsed().as_secs_f64();
    let cpu_gb = (used - of_others).max(0.0) / (sent.amount as f64 / 1e9);
    let (carried, seconds) = lab.packets(SMALL, packets)?;
    let alone = lab.pings(idle)?;
    let busy = lab.pings_under_load(loaded)?;
    let [near, far] = lab.resident_kib()?;
    Ok(Round {
        tcp_mbit: sent.mbit(),
        cpu_s_per_gb: cpu_gb,
        small_kpps: carried as f64 / seconds / 1e3,
        idle_ms: figures::middle(&alone),
        loaded_ms: figures::middle(&busy),
        resident_mib: near.max(far) as f64 / 1024.0,
    })
}

/// CPU seconds that everything else uses in a second, while the ends are idle.
fn used_meanwhile(time: Duration) -> Result<f64, BenchError> {
    let (before, begin) = (process::host_cpu_time()?, Instant::now());
    std::thread::sleep(time);
    let used = process::host_cpu_time()? - before;
    Ok(used.as_secs_f64() / begin.elapsed().as_secs_f64())
}
