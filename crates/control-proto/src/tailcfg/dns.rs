//! What the coordination server says about names.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::is_default;

/// DNS settings of a node; `{}` means no DNS.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct DnsConfig {
    /// Replace the resolvers of the system.
    #[serde(rename = "Resolvers", skip_serializing_if = "is_default")]
    pub resolvers: Vec<Resolver>,
    /// Suffix to resolvers; an empty list means names that only the node itself answers.
    ///
    /// Null lists are read as empty and written as `[]`, which Go clients keep.
    #[serde(rename = "Routes", skip_serializing_if = "is_default")]
    pub routes: BTreeMap<String, Vec<Resolver>>,
    /// Used where the platform cannot split DNS without a default.
    #[serde(rename = "FallbackResolvers", skip_serializing_if = "is_default")]
    pub fallback_resolvers: Vec<Resolver>,
    /// Search domains.
    #[serde(rename = "Domains", skip_serializing_if = "is_default")]
    pub domains: Vec<String>,
    /// MagicDNS: the node answers names of the tailnet.
    #[serde(rename = "Proxied", skip_serializing_if = "is_default")]
    pub proxied: bool,
    /// Deprecated form of [`Self::resolvers`].
    #[serde(rename = "Nameservers", skip_serializing_if = "is_default")]
    pub nameservers: Vec<IpAddr>,
    /// Names the node may get certificates for.
    #[serde(rename = "CertDomains", skip_serializing_if = "is_default")]
    pub cert_domains: Vec<String>,
    /// Records beyond the nodes' own names.
    #[serde(rename = "ExtraRecords", skip_serializing_if = "is_default")]
    pub extra_records: Vec<DnsRecord>,
    /// Names an exit node refuses to resolve; a leading dot matches suffixes.
    #[serde(rename = "ExitNodeFilteredSet", skip_serializing_if = "is_default")]
    pub exit_node_filtered_set: Vec<String>,
}

/// One resolver.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Resolver {
    /// `ip`, `ip:port`, `https://…` of a known provider, or `http://ip:port/dns-query` of a node.
    #[serde(rename = "Addr", skip_serializing_if = "is_default")]
    pub addr: String,
    /// Addresses of the host in `addr`.
    #[serde(rename = "BootstrapResolution", skip_serializing_if = "is_default")]
    pub bootstrap_resolution: Vec<IpAddr>,
    /// Keep using it with an exit node.
    #[serde(rename = "UseWithExitNode", skip_serializing_if = "is_default")]
    pub use_with_exit_node: bool,
}

/// One extra record.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct DnsRecord {
    /// Fully qualified name.
    #[serde(rename = "Name")]
    pub name: String,
    /// Empty, `A` or `AAAA`; others are ignored by clients.
    #[serde(rename = "Type", skip_serializing_if = "is_default")]
    pub kind: String,
    /// An address as text.
    #[serde(rename = "Value")]
    pub value: String,
}
