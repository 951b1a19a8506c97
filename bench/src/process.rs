//! What a process costs, as `/proc` tells.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;

/// Clock ticks per second in `/proc/PID/stat`: USER_HZ, 100 on every Linux port of today.
const USER_HZ: u32 = 100;

/// CPU time that process `pid` has used in user and kernel mode.
pub(crate) fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} is gone"))?;
    // The name in parentheses may hold anything; utime and stime are fields 14 and 15.
    let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks =
        || -> anyhow::Result<u32> { Ok(fields.next().context("stat is short")?.parse()?) };
    let total = ticks()? + ticks()?;
    Ok(Duration::from_secs(1) * total / USER_HZ)
}

/// Resident memory of process `pid` now, in KiB.
pub(crate) fn resident_kib(pid: u32) -> anyhow::Result<u64> {
    memory_kib(pid, "VmRSS:")
}

/// The most memory that process `pid` ever had resident, in KiB.
pub(crate) fn peak_rss_kib(pid: u32) -> anyhow::Result<u64> {
    memory_kib(pid, "VmHWM:")
}

fn memory_kib(pid: u32, field: &str) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let text = line.with_context(|| format!("no {field}"))?;
    Ok(text.trim().trim_end_matches(" kB").parse()?)
}
