//! What a machine lacks for these tests.

use std::env;
use std::fs;
use std::path::PathBuf;

use crate::firewalls::firewalls_tree;
use crate::prometheus::prometheus_tree;

/// Why no [`Lab`](crate::Lab) can be made here, or `None`.
///
/// `tools` are programs the caller needs beyond `ip` and `nft`.
#[must_use]
pub fn unavailable(tools: &[&str]) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root".to_owned());
    }
    let missing: Vec<&str> = ["ip", "nft"]
        .iter()
        .chain(tools)
        .copied()
        .filter(|tool| find(tool).is_none())
        .collect();
    if !missing.is_empty() {
        return Some(format!(
            "not installed: {} (cargo xtask setup)",
            missing.join(", ")
        ));
    }
    if fs::metadata("/proc/self/ns/net").is_err() {
        return Some("the kernel has no network namespaces".to_owned());
    }
    None
}

/// Looks `program` up in `PATH`, in the system folders that a user's `PATH` may lack, and among what is
/// unpacked and not installed.
fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let unpacked = firewalls_tree().unwrap_or_default();
    let prometheus = prometheus_tree().unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .chain([unpacked.join("usr/sbin"), prometheus.join("usr/bin")])
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// Ends the test early, counted as skipped with its reason, where no lab can be made.
///
/// Usage: `testnet::skip_unless_available!("iperf3");` at the top of a test that returns a `Result`.
#[macro_export]
macro_rules! skip_unless_available {
    ($($tool:literal),*) => {
        if let Some(reason) = $crate::unavailable(&[$($tool),*]) {
            fn here() {}
            let name = ::std::any::type_name_of_val(&here);
            let name = name.trim_end_matches("::here");
            // The test harness's own output may stand on the line: begin a new one.
            println!("\nSKIP {name}: {reason}");
            return Ok(());
        }
    };
}
