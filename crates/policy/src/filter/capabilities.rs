//! Capabilities that rules grant to peers (filter.md section 8).

use std::collections::BTreeMap;
use std::net::IpAddr;

use control_proto::tailcfg::CapGrant;
use ipnet::IpNet;
use serde_json::Value;

use super::IpSet;

/// Names of capabilities and their arguments; a mere flag has none.
pub type Capabilities = BTreeMap<String, Vec<Value>>;

/// What one rule grants.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    sources: IpSet,
    /// Towards these addresses, these capabilities.
    grants: Vec<(IpNet, Capabilities)>,
}

impl Grant {
    /// The grants of a rule with these sources; `cap:` is not among them.
    pub(super) fn new(sources: &IpSet, grants: &[CapGrant]) -> Self {
        let mut all = Vec::new();
        for grant in grants {
            let mut named = Capabilities::new();
            for name in &grant.caps {
                named.entry(name.clone()).or_default();
            }
            for (name, values) in &grant.cap_map {
                let entry = named.entry(name.clone()).or_default();
                entry.extend(values.iter().flatten().cloned());
            }
            named.remove("");
            all.extend(grant.dsts.iter().map(|dst| (*dst, named.clone())));
        }
        Self {
            sources: sources.clone(),
            grants: all,
        }
    }

    /// Adds what `peer` may towards `address`.
    pub(super) fn add_to(&self, capabilities: &mut Capabilities, peer: IpAddr, address: IpAddr) {
        if !self.sources.contains(peer) {
            return;
        }
        for (dst, named) in &self.grants {
            if dst.contains(&address) {
                for (name, values) in named {
                    let all = capabilities.entry(name.clone()).or_default();
                    all.extend(values.iter().cloned());
                }
            }
        }
    }
}
