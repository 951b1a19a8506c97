//! `GET netcheck`: a report under upstream's names (`net/netcheck.Report`).

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::time::Duration;

use node_core::RegionId;
use serde::{Deserialize, Serialize};

use crate::net::Netcheck;

/// `GET netcheck`. Latencies are nanoseconds by number of the region.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetcheckResult {
    /// UDP reaches the relays.
    #[serde(rename = "UDP")]
    pub udp: bool,
    /// So it does over IPv4.
    #[serde(rename = "IPv4")]
    pub ipv4: bool,
    /// So it does over IPv6.
    #[serde(rename = "IPv6")]
    pub ipv6: bool,
    /// Relays answer ICMP echo; looked for only without UDP.
    #[serde(rename = "ICMPv4")]
    pub icmp_v4: bool,
    /// Somebody else answers for the relays; unknown if none serves plain HTTP.
    pub captive_portal: Option<bool>,
    /// The host has IPv6.
    #[serde(rename = "OSHasIPv6")]
    pub os_has_ipv6: bool,
    /// A NAT gives each destination another mapping; unknown with fewer than two answers.
    #[serde(rename = "MappingVariesByDestIP")]
    pub mapping_varies: Option<bool>,
    /// The router speaks UPnP; unknown if it was not asked.
    #[serde(rename = "UPnP")]
    pub upnp: Option<bool>,
    /// The router speaks NAT-PMP.
    #[serde(rename = "PMP")]
    pub pmp: Option<bool>,
    /// The router speaks PCP.
    #[serde(rename = "PCP")]
    pub pcp: Option<bool>,
    /// Not upstream's: the router's address and port that lead to ours.
    pub port_mapped: Option<SocketAddrV4>,
    /// The home relay; 0 if there is none.
    #[serde(rename = "PreferredDERP")]
    pub preferred_derp: u16,
    /// The least of both families.
    pub region_latency: BTreeMap<u16, u64>,
    /// Over IPv4, or over HTTPS without UDP.
    #[serde(rename = "RegionV4Latency")]
    pub region_v4_latency: BTreeMap<u16, u64>,
    /// Over IPv6.
    #[serde(rename = "RegionV6Latency")]
    pub region_v6_latency: BTreeMap<u16, u64>,
    /// Our address as the IPv4 servers see it; empty if unknown.
    #[serde(rename = "GlobalV4")]
    pub global_v4: String,
    /// Our address as the IPv6 servers see it; empty if unknown.
    #[serde(rename = "GlobalV6")]
    pub global_v6: String,
    /// Not upstream's: short and long name of each region.
    pub regions: BTreeMap<u16, (String, String)>,
}

impl From<&Netcheck> for NetcheckResult {
    fn from(check: &Netcheck) -> Self {
        let Netcheck {
            map,
            home,
            report,
            port_mapping,
        } = check;
        let services = port_mapping.services;
        let nanoseconds = |latencies: &BTreeMap<RegionId, Duration>| {
            let latencies = latencies.iter();
            latencies
                .map(|(region, latency)| (region.0, latency.as_nanos() as u64))
                .collect()
        };
        let seen = |v6: bool| {
            let mapped = report.mapped_addresses().into_iter();
            mapped
                .filter(|address| address.is_ipv6() == v6)
                .map(|address| address.to_string())
                .next()
                .unwrap_or_default()
        };
        let regions = map.regions.values();
        Self {
            udp: report.udp,
            ipv4: (report.udp || report.icmp_v4 == Some(true)) && !report.v4.is_empty(),
            icmp_v4: report.icmp_v4 == Some(true),
            captive_portal: report.captive_portal,
            ipv6: report.udp && !report.v6.is_empty(),
            os_has_ipv6: report.os_has_ipv6,
            mapping_varies: report.mapping_varies(),
            upnp: services.map(|services| services.upnp),
            pmp: services.map(|services| services.pmp),
            pcp: services.map(|services| services.pcp),
            port_mapped: port_mapping.external,
            preferred_derp: home.map_or(0, |home| home.0),
            region_latency: nanoseconds(&report.latencies()),
            region_v4_latency: nanoseconds(&report.v4),
            region_v6_latency: nanoseconds(&report.v6),
            global_v4: seen(false),
            global_v6: seen(true),
            regions: regions
                .map(|region| (region.id.0, (region.code.clone(), region.name.clone())))
                .collect(),
        }
    }
}
