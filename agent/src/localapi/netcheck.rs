//! `GET netcheck`: a report under upstream's names (`net/netcheck.Report`).

use std::collections::BTreeMap;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::Duration;

use control_proto::Timestamp;
use node_core::RegionId;
use serde::{Deserialize, Serialize};

use crate::net::{Mapped, Netcheck};

/// `GET netcheck`. Latencies are nanoseconds by number of the region.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetcheckResult {
    /// When the check was done, by this host's clock.
    pub now: Timestamp,
    /// UDP reaches the relays.
    #[serde(rename = "UDP")]
    pub udp: bool,
    /// So it does over IPv4.
    #[serde(rename = "IPv4")]
    pub ipv4: bool,
    /// So it does over IPv6.
    #[serde(rename = "IPv6")]
    pub ipv6: bool,
    /// Something could be sent to a relay over IPv4.
    #[serde(rename = "IPv4CanSend")]
    pub ipv4_can_send: bool,
    /// Something could be sent to a relay over IPv6.
    #[serde(rename = "IPv6CanSend")]
    pub ipv6_can_send: bool,
    /// Relays answer ICMP echo; looked for only without UDP.
    #[serde(rename = "ICMPv4")]
    pub icmp_v4: bool,
    /// Somebody else answers for the relays; looked for only without UDP, unknown if none serves plain HTTP.
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
    /// The home relay that follows from this report; 0 if there is none.
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
    /// How many IPv4 servers saw us under each address.
    #[serde(rename = "GlobalV4Counters")]
    pub global_v4_counters: BTreeMap<SocketAddr, u32>,
    /// How many IPv6 servers saw us under each address.
    #[serde(rename = "GlobalV6Counters")]
    pub global_v6_counters: BTreeMap<SocketAddr, u32>,
    /// Our address as the quickest IPv4 server saw it; empty if unknown.
    #[serde(rename = "GlobalV4")]
    pub global_v4: String,
    /// Our address as the quickest IPv6 server saw it; empty if unknown.
    #[serde(rename = "GlobalV6")]
    pub global_v6: String,
    /// Not upstream's: short and long name of each region.
    pub regions: BTreeMap<u16, (String, String)>,
}

impl From<&Netcheck> for NetcheckResult {
    fn from(check: &Netcheck) -> Self {
        let Netcheck {
            now,
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
        let first = |mapped: &Mapped| {
            let first = mapped.first();
            first.map(|address| address.to_string()).unwrap_or_default()
        };
        let regions = map.regions.values();
        Self {
            now: (*now).into(),
            udp: report.udp,
            ipv4: (report.udp || report.icmp_v4 == Some(true)) && !report.v4.is_empty(),
            icmp_v4: report.icmp_v4 == Some(true),
            captive_portal: report.captive_portal,
            ipv6: report.udp && !report.v6.is_empty(),
            ipv4_can_send: report.v4_can_send,
            ipv6_can_send: report.v6_can_send,
            os_has_ipv6: report.os_has_ipv6,
            mapping_varies: report.mapping_varies,
            upnp: services.map(|services| services.upnp),
            pmp: services.map(|services| services.pmp),
            pcp: services.map(|services| services.pcp),
            port_mapped: port_mapping.external,
            preferred_derp: home.map_or(0, |home| home.0),
            region_latency: nanoseconds(&report.latencies()),
            region_v4_latency: nanoseconds(&report.v4),
            region_v6_latency: nanoseconds(&report.v6),
            global_v4_counters: report.mapped_v4.counts(),
            global_v6_counters: report.mapped_v6.counts(),
            global_v4: first(&report.mapped_v4),
            global_v6: first(&report.mapped_v6),
            regions: regions
                .map(|region| (region.id.0, (region.code.clone(), region.name.clone())))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use node_core::DerpMap;

    use super::*;
    use crate::net::{NetcheckReport, PortMapping};

    #[test]
    fn a_report_has_every_name_of_upstreams() {
        let address: SocketAddr = "198.51.100.1:7".parse().unwrap();
        let mut report = NetcheckReport {
            udp: true,
            v4_can_send: true,
            ..NetcheckReport::default()
        };
        for server in ["192.0.2.1:3478", "192.0.2.2:3478"] {
            report.mapped_v4.note(server.parse().unwrap(), address);
        }
        let check = Netcheck {
            now: SystemTime::UNIX_EPOCH,
            map: DerpMap::default(),
            home: Some(RegionId(5)),
            report,
            port_mapping: PortMapping::default(),
        };

        let json = serde_json::to_value(NetcheckResult::from(&check)).unwrap();

        assert_eq!(json["Now"], "1970-01-01T00:00:00Z");
        assert_eq!(json["PreferredDERP"], 5);
        assert_eq!(json["GlobalV4"], "198.51.100.1:7");
        assert_eq!(json["GlobalV4Counters"]["198.51.100.1:7"], 2);
        // `net/netcheck.Report`, as of 1.98.
        let names = "Now UDP IPv6 IPv4 IPv6CanSend IPv4CanSend OSHasIPv6 ICMPv4 MappingVariesByDestIP UPnP PMP PCP \
            PreferredDERP RegionLatency RegionV4Latency RegionV6Latency GlobalV4Counters GlobalV6Counters GlobalV4 \
            GlobalV6 CaptivePortal";
        for name in names.split_whitespace() {
            assert!(json.get(name).is_some(), "{name}");
        }
    }
}
