//! Packet filter rules as the server sends them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{CapMap, Prefix, is_default};

/// Who may reach what, or which capabilities a peer has towards us (control.md 5.5).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct FilterRule {
    /// `*`, an address, a prefix without host bits, `a-b`, or `cap:<name>`.
    #[serde(rename = "SrcIPs")]
    pub src_ips: Vec<String>,
    /// Deprecated prefix lengths of `src_ips`; Go drops the whole filter when it sees them.
    #[serde(rename = "SrcBits", skip_serializing_if = "is_default")]
    pub src_bits: Vec<i32>,
    /// What they may reach.
    #[serde(rename = "DstPorts", skip_serializing_if = "is_default")]
    pub dst_ports: Vec<NetPortRange>,
    /// IP protocols; empty means TCP, UDP, ICMP and ICMPv6.
    #[serde(rename = "IPProto", skip_serializing_if = "is_default")]
    pub ip_proto: Vec<i32>,
    /// Capabilities; then `dst_ports` is empty.
    #[serde(rename = "CapGrant", skip_serializing_if = "is_default")]
    pub cap_grant: Vec<CapGrant>,
}

/// A destination: addresses and ports.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct NetPortRange {
    /// Same forms as [`FilterRule::src_ips`], without `cap:`.
    #[serde(rename = "IP")]
    pub ip: String,
    /// Deprecated prefix length of `ip`.
    #[serde(rename = "Bits", skip_serializing_if = "Option::is_none")]
    pub bits: Option<i32>,
    /// Ports, both ends included.
    #[serde(rename = "Ports")]
    pub ports: PortRange,
}

/// Ports `first..=last`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct PortRange {
    /// Lowest port.
    #[serde(rename = "First")]
    pub first: u16,
    /// Highest port.
    #[serde(rename = "Last")]
    pub last: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self {
        first: 0,
        last: u16::MAX,
    };
}

/// Capabilities that the sources of a rule have towards some of our addresses.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct CapGrant {
    /// Our addresses it is about.
    #[serde(rename = "Dsts")]
    pub dsts: Vec<Prefix>,
    /// Deprecated form of `cap_map`.
    #[serde(rename = "Caps", skip_serializing_if = "is_default")]
    pub caps: Vec<String>,
    /// Capability to arguments.
    #[serde(rename = "CapMap", skip_serializing_if = "is_default")]
    pub cap_map: CapMap,
}

/// Protocols that a rule without `IPProto` is about: ICMP, TCP, UDP, ICMPv6.
const DEFAULT_PROTOCOLS: [i32; 4] = [1, 6, 17, 58];
/// The addresses of a tailnet: together, every possible source.
const TAILNET: [&str; 2] = ["100.64.0.0/10", "fd7a:115c:a1e0::/48"];
/// The same as servers spell the source `*`: without the addresses of ChromeOS, which no node has.
const TAILNET_SOURCES: [&str; 3] = [
    "100.64.0.0-100.115.91.255",
    "100.115.94.0-100.127.255.255",
    "fd7a:115c:a1e0::/48",
];
const EVERYTHING: [&str; 2] = ["0.0.0.0/0", "::/0"];

impl FilterRule {
    /// The rule that admits everything from everybody.
    #[must_use]
    pub fn allow_all() -> Self {
        Self {
            src_ips: vec!["*".to_owned()],
            dst_ports: vec![NetPortRange {
                ip: "*".to_owned(),
                bits: None,
                ports: PortRange::ALL,
            }],
            ..Self::default()
        }
    }

    /// Whether this one rule admits every peer to every address and port of ours, with the default
    /// protocols at least. Says no when in doubt.
    #[must_use]
    pub fn is_allow_all(&self) -> bool {
        let sources: BTreeSet<&str> = self.src_ips.iter().map(String::as_str).collect();
        let open = |port: &&NetPortRange| port.bits.is_none() && port.ports == PortRange::ALL;
        let destinations: BTreeSet<&str> = self
            .dst_ports
            .iter()
            .filter(open)
            .map(|port| port.ip.as_str())
            .collect();
        let has = |set: &BTreeSet<&str>, all: &[&str]| all.iter().all(|ip| set.contains(ip));
        let tailnet = has(&sources, &TAILNET) || has(&sources, &TAILNET_SOURCES);

        self.src_bits.is_empty()
            && self.dst_ports.iter().all(|port| port.bits.is_none())
            && (sources.contains("*") || tailnet || has(&sources, &EVERYTHING))
            && (destinations.contains("*") || has(&destinations, &EVERYTHING))
            && (self.ip_proto.is_empty()
                || DEFAULT_PROTOCOLS
                    .iter()
                    .all(|proto| self.ip_proto.contains(proto)))
    }
}

/// Whether a whole filter admits everything: rules only ever add, so one such rule suffices,
/// unless a deprecated field makes clients drop the filter.
#[must_use]
pub fn allows_everything<'a>(rules: impl IntoIterator<Item = &'a FilterRule>) -> bool {
    let mut open = false;
    for rule in rules {
        if !rule.src_bits.is_empty() || rule.dst_ports.iter().any(|port| port.bits.is_some()) {
            return false;
        }
        open |= rule.is_allow_all();
    }
    open
}
