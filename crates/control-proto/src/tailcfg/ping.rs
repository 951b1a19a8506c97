//! Requests of the server that a node prove its reachability, and the answers.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Base64Bytes, RegionId, is_default};

/// Asks a node to ping or to answer at a URL (control.md section 6).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct PingRequest {
    /// Unique per request: a repeated one is ignored.
    #[serde(rename = "URL")]
    pub url: String,
    /// Answer through the Noise channel.
    #[serde(rename = "URLIsNoise", skip_serializing_if = "is_default")]
    pub url_is_noise: bool,
    /// Log what was done.
    #[serde(rename = "Log", skip_serializing_if = "is_default")]
    pub log: bool,
    /// Empty (HEAD the URL), `c2n`, or a comma list of ping kinds.
    #[serde(rename = "Types", skip_serializing_if = "is_default")]
    pub types: String,
    /// Whom to ping; empty unless `types` lists ping kinds.
    #[serde(rename = "IP", skip_serializing_if = "is_default")]
    pub ip: String,
    /// For `c2n`: a raw HTTP/1 request.
    #[serde(rename = "Payload", skip_serializing_if = "is_default")]
    pub payload: Base64Bytes,
}

impl PingRequest {
    /// Whom to ping, if `ip` holds an address.
    #[must_use]
    pub fn target(&self) -> Option<IpAddr> {
        self.ip.parse().ok()
    }
}

/// What a ping found out.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct PingResponse {
    /// Kind of ping.
    #[serde(rename = "Type", skip_serializing_if = "is_default")]
    pub kind: String,
    /// Address that was pinged.
    #[serde(rename = "IP", skip_serializing_if = "is_default")]
    pub ip: String,
    /// Address of the node behind it.
    #[serde(rename = "NodeIP", skip_serializing_if = "is_default")]
    pub node_ip: String,
    /// Name of the node behind it.
    #[serde(rename = "NodeName", skip_serializing_if = "is_default")]
    pub node_name: String,
    /// Empty if it worked.
    #[serde(rename = "Err", skip_serializing_if = "is_default")]
    pub err: String,
    /// Round trip, seconds.
    #[serde(rename = "LatencySeconds", skip_serializing_if = "is_default")]
    pub latency_seconds: f64,
    /// Direct `ip:port`, empty if relayed.
    #[serde(rename = "Endpoint", skip_serializing_if = "is_default")]
    pub endpoint: String,
    /// Peer relay used.
    #[serde(rename = "PeerRelay", skip_serializing_if = "is_default")]
    pub peer_relay: String,
    /// DERP region used, 0 if direct.
    #[serde(rename = "DERPRegionID", skip_serializing_if = "is_default")]
    pub derp_region_id: RegionId,
    /// DERP region used, empty if direct.
    #[serde(rename = "DERPRegionCode", skip_serializing_if = "is_default")]
    pub derp_region_code: String,
    /// Port of the peer's PeerAPI.
    #[serde(rename = "PeerAPIPort", skip_serializing_if = "is_default")]
    pub peer_api_port: u16,
    /// The address is the node's own.
    #[serde(rename = "IsLocalIP", skip_serializing_if = "is_default")]
    pub is_local_ip: bool,
}
