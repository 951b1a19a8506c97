//! The trial of the kernel's offloads, on this one.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testnet::{Namespace, scaled, wait_until};
use tunnel::{Offload, Verdict, verdicts};

/// It takes some milliseconds where there is time, and stands between a start and the first packet.
const QUICK: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn this_kernel_does_what_it_says_quickly_and_nothing_is_left() -> Result<()> {
    let space = Namespace::new("trial")?;
    space.enter(|| {
        let before = seen()?;
        let begin = Instant::now();
        let found = verdicts();
        let took = begin.elapsed();
        println!("tried in {took:?}: {found:?}");
        for offload in Offload::ALL {
            // Before Linux 6.2 there are no datagrams on TUN devices.
            let verdict = found.of(offload);
            let missing = offload == Offload::TunUdp && matches!(verdict, Verdict::Missing(_));
            ensure!(
                *verdict == Verdict::Works || missing,
                "{offload}: {found:?}"
            );
        }
        ensure!(took < scaled(QUICK), "{took:?}");
        // A thread is seen until a moment after its end.
        wait_until(PATIENCE, "all is as before", || {
            let after = seen()?;
            ensure!(before == after, "{before:?} became {after:?}");
            Ok(())
        })?;
        // From now on it is known.
        let begin = Instant::now();
        ensure!(std::ptr::eq(found, verdicts()), "tried again");
        ensure!(begin.elapsed() < took, "tried again");
        Ok(())
    })?
}

/// What a trial could leave behind: devices, whether the host forwards, descriptors, threads.
fn seen() -> Result<(String, String, usize, usize)> {
    let of_thread = |name: &str| fs::read_to_string(format!("/proc/thread-self/{name}"));
    let devices = of_thread("net/dev")?;
    let devices = devices.lines().filter_map(|line| line.split_once(':'));
    let devices: Vec<&str> = devices.map(|(name, _)| name.trim()).collect();
    Ok((
        devices.join(" "),
        fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?,
        fs::read_dir("/proc/self/fd")?.count(),
        fs::read_dir("/proc/self/task")?.count(),
    ))
}
