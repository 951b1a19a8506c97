//! What a node says about its host and its network.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Prefix, RegionId, StableNodeId, is_default};

/// About a host (control.md 5.2): whole from node to server, a few fields from server to peers.
///
/// `Option<bool>` is Go's `opt.Bool`: absent means unknown.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Hostinfo {
    /// Version of the client software.
    #[serde(rename = "IPNVersion", skip_serializing_if = "is_default")]
    pub ipn_version: String,
    /// Log id of the user interface.
    #[serde(rename = "FrontendLogID", skip_serializing_if = "is_default")]
    pub frontend_log_id: String,
    /// Log id of the daemon; Go refuses to register without one.
    #[serde(rename = "BackendLogID", skip_serializing_if = "is_default")]
    pub backend_log_id: String,
    /// `linux`, `macOS`, `windows`, `iOS`, `android`, …
    #[serde(rename = "OS", skip_serializing_if = "is_default")]
    pub os: String,
    /// Version of the operating system or kernel.
    #[serde(rename = "OSVersion", skip_serializing_if = "is_default")]
    pub os_version: String,
    /// In a container.
    #[serde(rename = "Container", skip_serializing_if = "Option::is_none")]
    pub container: Option<bool>,
    /// Hosting environment, such as `kn`.
    #[serde(rename = "Env", skip_serializing_if = "is_default")]
    pub env: String,
    /// Linux distribution.
    #[serde(rename = "Distro", skip_serializing_if = "is_default")]
    pub distro: String,
    /// Its version.
    #[serde(rename = "DistroVersion", skip_serializing_if = "is_default")]
    pub distro_version: String,
    /// Its code name.
    #[serde(rename = "DistroCodeName", skip_serializing_if = "is_default")]
    pub distro_code_name: String,
    /// Program that embeds the client.
    #[serde(rename = "App", skip_serializing_if = "is_default")]
    pub app: String,
    /// A desktop was seen.
    #[serde(rename = "Desktop", skip_serializing_if = "Option::is_none")]
    pub desktop: Option<bool>,
    /// How it was packaged.
    #[serde(rename = "Package", skip_serializing_if = "is_default")]
    pub package: String,
    /// Model of the device.
    #[serde(rename = "DeviceModel", skip_serializing_if = "is_default")]
    pub device_model: String,
    /// For push notifications.
    #[serde(rename = "PushDeviceToken", skip_serializing_if = "is_default")]
    pub push_device_token: String,
    /// Name of the host, as it is.
    #[serde(rename = "Hostname", skip_serializing_if = "is_default")]
    pub hostname: String,
    /// Refuses incoming connections.
    #[serde(rename = "ShieldsUp", skip_serializing_if = "is_default")]
    pub shields_up: bool,
    /// A node of somebody we share with.
    #[serde(rename = "ShareeNode", skip_serializing_if = "is_default")]
    pub sharee_node: bool,
    /// Logs are off.
    #[serde(rename = "NoLogsNoSupport", skip_serializing_if = "is_default")]
    pub no_logs_no_support: bool,
    /// The user allowed remote configuration.
    #[serde(rename = "RemoteConfig", skip_serializing_if = "is_default")]
    pub remote_config: bool,
    /// Wants to receive funnel traffic.
    #[serde(rename = "WireIngress", skip_serializing_if = "is_default")]
    pub wire_ingress: bool,
    /// Funnel is on.
    #[serde(rename = "IngressEnabled", skip_serializing_if = "is_default")]
    pub ingress_enabled: bool,
    /// The server may trigger updates.
    #[serde(rename = "AllowsUpdate", skip_serializing_if = "is_default")]
    pub allows_update: bool,
    /// Machine architecture, such as `x86_64`.
    #[serde(rename = "Machine", skip_serializing_if = "is_default")]
    pub machine: String,
    /// Go's name of the architecture.
    #[serde(rename = "GoArch", skip_serializing_if = "is_default")]
    pub go_arch: String,
    /// Variant of the architecture.
    #[serde(rename = "GoArchVar", skip_serializing_if = "is_default")]
    pub go_arch_var: String,
    /// Go's version.
    #[serde(rename = "GoVersion", skip_serializing_if = "is_default")]
    pub go_version: String,
    /// Routes it offers; both default routes make an exit node.
    #[serde(rename = "RoutableIPs", skip_serializing_if = "is_default")]
    pub routable_ips: Vec<Prefix>,
    /// Tags it wants to carry (`tag:x`).
    #[serde(rename = "RequestTags", skip_serializing_if = "is_default")]
    pub request_tags: Vec<String>,
    /// MAC addresses for wake-on-LAN.
    #[serde(rename = "WoLMACs", skip_serializing_if = "is_default")]
    pub wol_macs: Vec<String>,
    /// Services it listens with.
    #[serde(rename = "Services", skip_serializing_if = "is_default")]
    pub services: Vec<Service>,
    /// About its network; missing says nothing.
    #[serde(rename = "NetInfo", skip_serializing_if = "Option::is_none")]
    pub net_info: Option<NetInfo>,
    /// Its SSH host keys, as lines of `authorized_keys`.
    #[serde(rename = "sshHostKeys", skip_serializing_if = "is_default")]
    pub ssh_host_keys: Vec<String>,
    /// Cloud provider.
    #[serde(rename = "Cloud", skip_serializing_if = "is_default")]
    pub cloud: String,
    /// Without a TUN device.
    #[serde(rename = "Userspace", skip_serializing_if = "Option::is_none")]
    pub userspace: Option<bool>,
    /// Routes subnets in user space.
    #[serde(rename = "UserspaceRouter", skip_serializing_if = "Option::is_none")]
    pub userspace_router: Option<bool>,
    /// Acts as app connector.
    #[serde(rename = "AppConnector", skip_serializing_if = "Option::is_none")]
    pub app_connector: Option<bool>,
    /// Hash of its VIP services.
    #[serde(rename = "ServicesHash", skip_serializing_if = "is_default")]
    pub services_hash: String,
    /// Acts as peer relay.
    #[serde(rename = "PeerRelay", skip_serializing_if = "is_default")]
    pub peer_relay: bool,
    /// Exit node in use.
    #[serde(rename = "ExitNodeID", skip_serializing_if = "is_default")]
    pub exit_node_id: StableNodeId,
    /// Where it is.
    #[serde(rename = "Location", skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
    /// About its TPM, kept as it came.
    #[serde(rename = "TPM", skip_serializing_if = "Option::is_none")]
    pub tpm: Option<serde_json::Value>,
    /// Its state file is encrypted.
    #[serde(rename = "StateEncrypted", skip_serializing_if = "Option::is_none")]
    pub state_encrypted: Option<bool>,
}

/// A listening service.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Service {
    /// `tcp`, `udp`, `peerapi4`, `peerapi6`, `peerapi-dns-proxy`.
    #[serde(rename = "Proto")]
    pub proto: String,
    /// Port, or 1 for `peerapi-dns-proxy`.
    #[serde(rename = "Port")]
    pub port: u16,
    /// Name of the process.
    #[serde(rename = "Description", skip_serializing_if = "is_default")]
    pub description: String,
}

/// Where a node is, for choosing exit nodes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Location {
    /// Name of the country.
    #[serde(rename = "Country", skip_serializing_if = "is_default")]
    pub country: String,
    /// ISO 3166 code.
    #[serde(rename = "CountryCode", skip_serializing_if = "is_default")]
    pub country_code: String,
    /// Name of the city.
    #[serde(rename = "City", skip_serializing_if = "is_default")]
    pub city: String,
    /// Short name of the city.
    #[serde(rename = "CityCode", skip_serializing_if = "is_default")]
    pub city_code: String,
    /// Degrees north.
    #[serde(rename = "Latitude", skip_serializing_if = "is_default")]
    pub latitude: f64,
    /// Degrees east.
    #[serde(rename = "Longitude", skip_serializing_if = "is_default")]
    pub longitude: f64,
    /// Higher is preferred.
    #[serde(rename = "Priority", skip_serializing_if = "is_default")]
    pub priority: i64,
}

/// About a node's network (control.md 5.3).
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct NetInfo {
    /// A NAT maps to different ports for different destinations.
    #[serde(
        rename = "MappingVariesByDestIP",
        skip_serializing_if = "Option::is_none"
    )]
    pub mapping_varies_by_dest_ip: Option<bool>,
    /// IPv6 reaches the internet.
    #[serde(rename = "WorkingIPv6", skip_serializing_if = "Option::is_none")]
    pub working_ipv6: Option<bool>,
    /// The system has IPv6 at all.
    #[serde(rename = "OSHasIPv6", skip_serializing_if = "Option::is_none")]
    pub os_has_ipv6: Option<bool>,
    /// UDP reaches the internet.
    #[serde(rename = "WorkingUDP", skip_serializing_if = "Option::is_none")]
    pub working_udp: Option<bool>,
    /// ICMPv4 reaches the internet.
    #[serde(rename = "WorkingICMPv4", skip_serializing_if = "Option::is_none")]
    pub working_icmpv4: Option<bool>,
    /// A port mapping is held.
    #[serde(rename = "HavePortMap", skip_serializing_if = "is_default")]
    pub have_port_map: bool,
    /// The router speaks UPnP.
    #[serde(rename = "UPnP", skip_serializing_if = "Option::is_none")]
    pub upnp: Option<bool>,
    /// The router speaks NAT-PMP.
    #[serde(rename = "PMP", skip_serializing_if = "Option::is_none")]
    pub pmp: Option<bool>,
    /// The router speaks PCP.
    #[serde(rename = "PCP", skip_serializing_if = "Option::is_none")]
    pub pcp: Option<bool>,
    /// Home region; 0 means none was chosen.
    #[serde(rename = "PreferredDERP", skip_serializing_if = "is_default")]
    pub preferred_derp: RegionId,
    /// `wired`, `wifi`, `mobile`, or empty.
    #[serde(rename = "LinkType", skip_serializing_if = "is_default")]
    pub link_type: String,
    /// `<region>-v4` or `-v6` to round trip, seconds.
    #[serde(rename = "DERPLatency", skip_serializing_if = "is_default")]
    pub derp_latency: BTreeMap<String, f64>,
    /// Firewall in use, such as `nft-default`.
    #[serde(rename = "FirewallMode", skip_serializing_if = "is_default")]
    pub firewall_mode: String,
}
