//! What processes and the whole host cost, as `/proc` tells.

use std::fs;
use std::io;
use std::time::Duration;

/// Clock ticks per second in `/proc`: USER_HZ, 100 on every Linux port of today.
const USER_HZ: u32 = 100;

/// CPU time that process `pid` has used in user and kernel mode.
///
/// # Errors
///
/// When it is gone.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let stat = read(&format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything; utime and stime are fields 14 and 15.
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields);
    let fields = fields.ok_or_else(|| malformed("no name in stat"))?;
    let used = ticks(fields.split_whitespace().skip(11).take(2))?;
    Ok(Duration::from_secs(1) * used / USER_HZ)
}

/// CPU time that everything on this host has used, the kernel's own work included.
///
/// # Errors
///
/// When `/proc` does not tell.
pub fn host_cpu_time() -> io::Result<Duration> {
    let stat = read("/proc/stat")?;
    let all = stat.lines().find_map(|line| line.strip_prefix("cpu "));
    let all = all.ok_or_else(|| malformed("no line for all processors in stat"))?;
    // user nice system idle iowait irq softirq
    let busy = all.split_whitespace().take(7).enumerate();
    let busy = busy.filter(|(field, _)| !matches!(field, 3 | 4));
    let used = ticks(busy.map(|(_, ticks)| ticks))?;
    Ok(Duration::from_secs(1) * used / USER_HZ)
}

/// Resident memory of process `pid` now, in KiB.
///
/// # Errors
///
/// When it is gone.
pub fn resident_kib(pid: u32) -> io::Result<u64> {
    memory_kib(pid, "VmRSS:")
}

/// The most memory that process `pid` ever had resident, in KiB.
///
/// # Errors
///
/// When it is gone.
pub fn peak_rss_kib(pid: u32) -> io::Result<u64> {
    memory_kib(pid, "VmHWM:")
}

fn memory_kib(pid: u32, field: &str) -> io::Result<u64> {
    let status = read(&format!("/proc/{pid}/status"))?;
    let text = status.lines().find_map(|line| line.strip_prefix(field));
    let number = text.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok());
    number.ok_or_else(|| malformed("no memory in status"))
}

fn ticks<'a>(fields: impl Iterator<Item = &'a str>) -> io::Result<u32> {
    let numbers = fields.map(|field| field.parse::<u64>());
    let sum: Result<u64, _> = numbers.sum();
    let sum = sum.map_err(|_| malformed("no numbers in stat"))?;
    u32::try_from(sum).map_err(|_| malformed("too large a number in stat"))
}

fn read(path: &str) -> io::Result<String> {
    fs::read_to_string(path)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot read {path}: {error}")))
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_computes_has_used_time_and_the_host_at_least_as_much() {
        let ours = || cpu_time(std::process::id()).unwrap();
        let (ours_before, all_before) = (ours(), host_cpu_time().unwrap());
        while ours() - ours_before < Duration::from_millis(50) {
            std::hint::black_box(ours());
        }
        assert!(host_cpu_time().unwrap() - all_before >= Duration::from_millis(30));
        assert!(resident_kib(std::process::id()).unwrap() > 100);
    }
}
