//! What the programs need to be allowed. A process of its own: aya remembers for good what the
//! first caller was permitted.

mod common;

use anyhow::{Result, ensure};
use dataplane::{Counters, DataplaneError};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use testnet::Namespace;

/// Leaves the calling thread these capabilities and no others.
fn keep(capabilities: CapabilitySet) -> Result<()> {
    set_capabilities(
        None,
        CapabilitySets {
            effective: capabilities,
            permitted: capabilities,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(())
}

#[test]
fn three_capabilities_suffice_and_fewer_are_a_typed_error() -> Result<()> {
    skip_without_bpf!();
    let namespace = Namespace::new("capabilities")?;
    namespace.ip("link add veth0 type veth peer name veth1")?;

    namespace.enter(|| -> Result<()> {
        let mut left = CapabilitySet::BPF | CapabilitySet::PERFMON | CapabilitySet::NET_ADMIN;
        keep(left)?;
        drop(Counters::attach("veth0", None)?);

        for lost in [
            CapabilitySet::PERFMON,
            CapabilitySet::NET_ADMIN,
            CapabilitySet::BPF,
        ] {
            left.remove(lost);
            keep(left)?;
            let error = Counters::attach("veth0", None).map(drop).unwrap_err();
            ensure!(
                matches!(error, DataplaneError::NotPermitted { .. }),
                "{error:?}"
            );
            ensure!(error.to_string().contains("CAP_BPF"), "{error}");
        }
        Ok(())
    })?
}
