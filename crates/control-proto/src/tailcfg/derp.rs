//! The map of relays: regions, each with one or more DERP/STUN nodes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{RegionId, is_default};

/// All relay regions; see control.md 5.7 for how a client merges an update.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct DerpMap {
    /// Weights for choosing the home region; absent keeps what was.
    #[serde(rename = "HomeParams", skip_serializing_if = "Option::is_none")]
    pub home_params: Option<DerpHomeParams>,
    /// Absent keeps all regions, present replaces all; a null region is dropped by clients.
    #[serde(rename = "Regions", skip_serializing_if = "Option::is_none")]
    pub regions: Option<BTreeMap<RegionId, Option<DerpRegion>>>,
    /// Asks clients not to add their built-in regions.
    #[serde(rename = "omitDefaultRegions", skip_serializing_if = "is_default")]
    pub omit_default_regions: bool,
}

impl DerpMap {
    /// The regions that exist, by number.
    pub fn regions(&self) -> impl Iterator<Item = (RegionId, &DerpRegion)> {
        let regions = self.regions.iter().flatten();
        regions.filter_map(|(id, region)| Some((*id, region.as_ref()?)))
    }

    /// The region with this number.
    #[must_use]
    pub fn region(&self, id: RegionId) -> Option<&DerpRegion> {
        self.regions.as_ref()?.get(&id)?.as_ref()
    }
}

/// Weights for choosing the home region.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct DerpHomeParams {
    /// Factors (> 0) on measured latency, below 1 favours; absent keeps, empty clears.
    #[serde(rename = "RegionScore", skip_serializing_if = "Option::is_none")]
    pub region_score: Option<BTreeMap<RegionId, f64>>,
}

/// Relays in one place that mesh with each other.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct DerpRegion {
    /// Equals the key in [`DerpMap::regions`].
    #[serde(rename = "RegionID")]
    pub region_id: RegionId,
    /// Short name, such as `fra`.
    #[serde(rename = "RegionCode")]
    pub region_code: String,
    /// Name shown to people.
    #[serde(rename = "RegionName")]
    pub region_name: String,
    /// Degrees north.
    #[serde(rename = "Latitude", skip_serializing_if = "is_default")]
    pub latitude: f64,
    /// Degrees east.
    #[serde(rename = "Longitude", skip_serializing_if = "is_default")]
    pub longitude: f64,
    /// Deprecated form of [`Self::no_measure_no_home`].
    #[serde(rename = "Avoid", skip_serializing_if = "is_default")]
    pub avoid: bool,
    /// Usable, but never measured and never a home.
    #[serde(rename = "NoMeasureNoHome", skip_serializing_if = "is_default")]
    pub no_measure_no_home: bool,
    /// In order of preference.
    #[serde(rename = "Nodes")]
    pub nodes: Vec<DerpNode>,
}

/// One relay.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct DerpNode {
    /// Unique name, such as `900a`.
    #[serde(rename = "Name")]
    pub name: String,
    /// The region it belongs to.
    #[serde(rename = "RegionID")]
    pub region_id: RegionId,
    /// DNS name or address; also the name in its certificate unless `cert_name` says otherwise.
    #[serde(rename = "HostName")]
    pub host_name: String,
    /// Another certificate name, or `sha256-raw:` + 64 hex digits of a pinned certificate.
    #[serde(rename = "CertName", skip_serializing_if = "is_default")]
    pub cert_name: String,
    /// Address; empty means DNS, `none` disables IPv4.
    #[serde(rename = "IPv4", skip_serializing_if = "is_default")]
    pub ipv4: String,
    /// Address; empty means DNS, `none` disables IPv6.
    #[serde(rename = "IPv6", skip_serializing_if = "is_default")]
    pub ipv6: String,
    /// 0 means 3478, -1 means no STUN.
    #[serde(rename = "STUNPort", skip_serializing_if = "is_default")]
    pub stun_port: i32,
    /// No DERP here.
    #[serde(rename = "STUNOnly", skip_serializing_if = "is_default")]
    pub stun_only: bool,
    /// 0 means 443.
    #[serde(rename = "DERPPort", skip_serializing_if = "is_default")]
    pub derp_port: i32,
    /// No TLS verification; only for tests.
    #[serde(rename = "InsecureForTests", skip_serializing_if = "is_default")]
    pub insecure_for_tests: bool,
    /// Another address for STUN; only for tests.
    #[serde(rename = "STUNTestIP", skip_serializing_if = "is_default")]
    pub stun_test_ip: String,
    /// Answers `/generate_204` on plain port 80.
    #[serde(rename = "CanPort80", skip_serializing_if = "is_default")]
    pub can_port80: bool,
}

impl DerpNode {
    /// UDP port of STUN; `None` if it has none.
    #[must_use]
    pub fn stun_port(&self) -> Option<u16> {
        match self.stun_port {
            0 => Some(3478),
            port => u16::try_from(port).ok(),
        }
    }

    /// TCP port of DERP; `None` if it has none.
    #[must_use]
    pub fn derp_port(&self) -> Option<u16> {
        match self.derp_port {
            _ if self.stun_only => None,
            0 => Some(443),
            port => u16::try_from(port).ok(),
        }
    }
}
