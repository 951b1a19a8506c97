//! What the parts of the object need that are loaded by themselves. A process of its own: its descriptors
//! are counted, and aya remembers for good what the first caller was permitted.

mod common;

use std::fs;

use anyhow::{Result, ensure};
use dataplane::{Pinning, Shield, ShieldKind, ShieldLimits, Steer};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use testnet::{Namespace, veth};

/// Maps that this process has open, each as the bytes that it takes of the kernel's memory.
fn maps() -> Result<Vec<u64>> {
    let mut maps = Vec::new();
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        // The descriptor of the folder itself is gone.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        if value("map_type:").is_some() {
            maps.push(value("memlock:").unwrap_or("0").trim().parse()?);
        }
    }
    Ok(maps)
}

#[test]
fn parts_take_three_capabilities_and_no_maps_but_their_own() -> Result<()> {
    skip_without_bpf!();
    let (host, neighbour) = (Namespace::new("host")?, Namespace::new("neighbour")?);
    veth((&host, "eth0"), (&neighbour, "eth0"))?;
    host.enter(|| -> Result<()> {
        let capabilities = CapabilitySet::BPF | CapabilitySet::PERFMON | CapabilitySet::NET_ADMIN;
        set_capabilities(
            None,
            CapabilitySets {
                effective: capabilities,
                permitted: capabilities,
                inheritable: CapabilitySet::empty(),
            },
        )?;
        let before = maps()?.len();
        let limits = ShieldLimits::default();
        let shields = [ShieldKind::tcx(), ShieldKind::Native]
            .map(|kind| Shield::attach("eth0", kind, 41_641, limits, None));
        for shield in &shields {
            ensure!(shield.is_ok(), "{shield:?}");
        }
        let steer = Steer::attach("eth0")?;
        let pinning = Pinning::attach(41_641, 41_800)?;
        let after = maps()?;
        ensure!(after.len() == before + 3 + 3 + 2 + 1, "{after:?}");
        let bytes: u64 = after.iter().sum();
        // Of which a megabyte each is for the buckets of a table with many entries.
        ensure!(bytes < 5 << 20, "{after:?}");
        println!("{bytes} bytes in {} maps", after.len());
        drop((steer, pinning, shields));
        Ok(())
    })?
}
