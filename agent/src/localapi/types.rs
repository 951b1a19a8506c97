//! What the local API answers with: upstream's names and shapes (`ipn/ipnstate`, `ipn/backend.go`), and ours
//! under `Tailrace`.

use std::collections::BTreeMap;

use keys::NodePublic;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::prefs::Prefs;

/// How far this node is from being usable (upstream `ipn.State`).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum BackendState {
    /// Just started; nothing is known yet.
    #[default]
    NoState,
    /// Not joined, logged out, or the key expired.
    NeedsLogin,
    /// Joined, but an administrator must approve this device.
    NeedsMachineAuth,
    /// Joined and switched off (`tailrace down`).
    Stopped,
    /// Wanted, but the tunnel is not usable yet.
    Starting,
    /// The tunnel is up.
    Running,
}

impl BackendState {
    /// Upstream's number, as the notification stream carries it.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::NoState => 0,
            Self::NeedsLogin => 2,
            Self::NeedsMachineAuth => 3,
            Self::Stopped => 4,
            Self::Starting => 5,
            Self::Running => 6,
        }
    }

    /// The reverse of [`number`](Self::number); `None` for states that this agent does not have.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        [
            Self::NoState,
            Self::NeedsLogin,
            Self::NeedsMachineAuth,
            Self::Stopped,
            Self::Starting,
            Self::Running,
        ]
        .into_iter()
        .find(|state| state.number() == number)
    }

    /// Upstream's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoState => "NoState",
            Self::NeedsLogin => "NeedsLogin",
            Self::NeedsMachineAuth => "NeedsMachineAuth",
            Self::Stopped => "Stopped",
            Self::Starting => "Starting",
            Self::Running => "Running",
        }
    }
}

/// `GET status`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// A network device carries the overlay (always, once up).
    #[serde(rename = "TUN")]
    pub tun: bool,
    /// How far this node is.
    pub backend_state: BackendState,
    /// A node key exists.
    pub have_node_key: bool,
    /// Where to log in; empty if that is not needed.
    #[serde(rename = "AuthURL")]
    pub auth_url: String,
    /// Our overlay addresses; null before the first map.
    #[serde(rename = "TailscaleIPs")]
    pub tailscale_ips: Option<Vec<String>>,
    /// This node.
    #[serde(rename = "Self")]
    pub self_node: PeerStatus,
    /// The chosen exit node, if the map has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_node_status: Option<ExitNodeStatus>,
    /// What is wrong, for people.
    pub health: Vec<String>,
    /// Domain of the tailnet's names, no dots around it.
    #[serde(rename = "MagicDNSSuffix")]
    pub magic_dns_suffix: String,
    /// The tailnet; null before the first map.
    pub current_tailnet: Option<TailnetStatus>,
    /// Names this node may get certificates for; always null here.
    pub cert_domains: Option<Vec<String>>,
    /// Peers by node key; null if they were not asked for.
    pub peer: Option<BTreeMap<NodePublic, PeerStatus>>,
    /// Users that `UserID` refers to, by decimal id.
    pub user: Option<BTreeMap<String, Value>>,
    /// Always null: no update check.
    pub client_version: Option<Value>,
    /// What upstream has no field for.
    #[serde(default)]
    pub tailrace: TailraceStatus,
}

/// The chosen exit node.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ExitNodeStatus {
    /// Stable id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Connected to the coordination server.
    pub online: bool,
    /// Its overlay addresses, with their prefix length.
    #[serde(rename = "TailscaleIPs")]
    pub tailscale_ips: Vec<String>,
}

/// The tailnet this node is in.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct TailnetStatus {
    /// Its name.
    pub name: String,
    /// Domain of its names.
    #[serde(rename = "MagicDNSSuffix")]
    pub magic_dns_suffix: String,
    /// Whether this host resolves those names; not in this version.
    #[serde(rename = "MagicDNSEnabled")]
    pub magic_dns_enabled: bool,
}

/// One node, this one or a peer.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PeerStatus {
    /// Stable id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Node key.
    pub public_key: NodePublic,
    /// Name the host calls itself.
    pub host_name: String,
    /// Full name in the tailnet, with the final dot.
    #[serde(rename = "DNSName")]
    pub dns_name: String,
    /// Operating system.
    #[serde(rename = "OS")]
    pub os: String,
    /// Owner.
    #[serde(rename = "UserID")]
    pub user_id: i64,
    /// Overlay addresses.
    #[serde(rename = "TailscaleIPs")]
    pub tailscale_ips: Option<Vec<String>>,
    /// Prefixes that lead to this node.
    #[serde(
        rename = "AllowedIPs",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub allowed_ips: Option<Vec<String>>,
    /// Tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<String>>,
    /// Subnets for which this node is the active router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary_routes: Option<Vec<String>>,
    /// Known endpoints; null if none.
    pub addrs: Option<Vec<String>>,
    /// Direct endpoint in use; empty while relayed.
    pub cur_addr: String,
    /// Code of the relay region.
    pub relay: String,
    /// Address of a UDP peer relay; always empty here.
    pub peer_relay: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// When the node joined.
    pub created: String,
    /// When we last sent to it; unknown here.
    pub last_write: String,
    /// When the server last saw it; only while offline.
    pub last_seen: String,
    /// Last WireGuard handshake.
    pub last_handshake: String,
    /// Connected to the coordination server.
    pub online: bool,
    /// Our exit node.
    pub exit_node: bool,
    /// Could be an exit node.
    pub exit_node_option: bool,
    /// Traffic within the last two minutes.
    pub active: bool,
    /// PeerAPI addresses; always empty here.
    #[serde(rename = "PeerAPIURL")]
    pub peer_api_url: Option<Vec<String>>,
    /// Capabilities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap_map: Option<Value>,
    /// In the last network map.
    pub in_network_map: bool,
    /// Known to the relay and path layer.
    pub in_magic_sock: bool,
    /// In the tunnel.
    pub in_engine: bool,
    /// The node key expired.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub expired: bool,
    /// When the node key expires; absent if never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_expiry: Option<String>,
    /// Our addition: bytes that a packet to the peer may have; absent for who is no peer of the tunnel.
    #[serde(rename = "MTU", default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Our addition: what the eBPF programs counted; absent while they do not run.
    #[serde(rename = "Tailrace", default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<OverlayTraffic>,
}

/// Traffic with a peer inside the tunnel, in [`PeerStatus`]: packets on the wire and their IP bytes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct OverlayTraffic {
    /// Packets received.
    pub overlay_rx_packets: u64,
    /// Bytes received.
    pub overlay_rx_bytes: u64,
    /// Packets sent.
    pub overlay_tx_packets: u64,
    /// Bytes sent.
    pub overlay_tx_bytes: u64,
}

/// Our additions to [`Status`].
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TailraceStatus {
    /// `kernel` or `embedded`; empty while there is no data plane.
    pub engine: String,
    /// Why that engine.
    pub engine_reason: String,
    /// Overlay device; empty while there is none.
    pub device: String,
    /// What the kernel splits and joins for the embedded engine; empty with the kernel's.
    pub offloads: Vec<OffloadStatus>,
    /// UDP port of WireGuard.
    pub port: u16,
    /// Where the packet filter is: `ebpf` or `userspace`; empty while there is none, and nothing passes.
    pub filter: String,
    /// Why it is not in eBPF.
    pub filter_reason: String,
    /// Rules that admit packets.
    pub filter_rules: usize,
    /// Changes whenever another filter comes in force.
    pub filter_serial: u64,
    /// Packets that it dropped: by reason, by direction (`in`, `out`).
    pub drops: BTreeMap<String, BTreeMap<String, u64>>,
    /// Where floods of handshakes are held off: `off`, `tcx` or `native`.
    pub shield: String,
    /// Devices on which they are.
    pub shield_devices: Vec<String>,
    /// There is a flood.
    pub shield_flooded: bool,
    /// Handshake initiations of strangers that were dropped in floods.
    pub shield_dropped: u64,
    /// Routes that this node offers.
    pub advertised_routes: Vec<String>,
    /// Those of them that the server approved.
    pub approved_routes: Vec<String>,
    /// The coordination server answers.
    pub control_connected: bool,
    /// URL of the coordination server.
    #[serde(rename = "ControlURL")]
    pub control_url: String,
    /// The map is from the cache: the server has not answered since the start.
    pub map_stale: bool,
    /// Seconds since the map was last known to be right; absent without a map.
    pub map_age_seconds: Option<u64>,
    /// Code of the home relay region.
    pub home_relay: String,
    /// Relay connections.
    pub relays: Vec<RelayStatus>,
}

/// An offload of the embedded engine, in [`TailraceStatus`].
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct OffloadStatus {
    /// `TCP` and `UDP` on the TUN device, `UDP_SEGMENT` and `UDP_GRO` on the socket.
    pub name: String,
    /// Whether it is used.
    pub in_use: bool,
    /// Why it is not; empty if it is.
    pub reason: String,
    /// Why it was not tried before; empty if it was.
    pub untried: String,
}

/// A relay connection, in [`TailraceStatus`].
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RelayStatus {
    /// Region number.
    #[serde(rename = "RegionID")]
    pub region_id: u32,
    /// Region code.
    pub region_code: String,
    /// Connected.
    pub connected: bool,
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// A line of `GET debug-drops`: a packet that the filter dropped.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DroppedPacket {
    /// When, in RFC 3339.
    pub time: String,
    /// `in` from a peer, `out` to one.
    pub direction: String,
    /// Short name of the reason, as in metrics.
    pub reason: String,
    /// The reason in a few words.
    pub why: String,
    /// IP protocol number; 0 if it could not be read.
    pub protocol: u8,
    /// Source with its port, 0 if there is none; absent for what is no IP packet.
    pub src: Option<String>,
    /// Destination with its port.
    pub dst: Option<String>,
    /// Name of the peer at the other end, if it is one.
    pub peer: Option<String>,
}

/// An entry of `GET debug-rules`: a rule of the network map's packet filter.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RuleHits {
    /// Its number, from 0.
    pub rule: u32,
    /// Who may send.
    pub sources: Vec<String>,
    /// To where, with the ports.
    pub destinations: Vec<String>,
    /// IP protocols; none stands for TCP, UDP and ICMP.
    pub protocols: Vec<i32>,
    /// Packets that it admitted since it came in force.
    pub packets: u64,
    /// Their IP bytes.
    pub bytes: u64,
}

/// `POST ping`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PingResult {
    /// What was asked.
    #[serde(rename = "IP")]
    pub ip: String,
    /// First address of the node that answered.
    #[serde(rename = "NodeIP")]
    pub node_ip: String,
    /// Its name.
    pub node_name: String,
    /// Why there was no answer; empty if there was.
    pub err: String,
    /// Round trip in seconds.
    pub latency_seconds: f64,
    /// Direct endpoint; empty over a relay.
    pub endpoint: String,
    /// UDP peer relay; always empty here.
    pub peer_relay: String,
    /// Relay region, if one was used.
    #[serde(rename = "DERPRegionID")]
    pub derp_region_id: u32,
    /// Its code.
    #[serde(rename = "DERPRegionCode")]
    pub derp_region_code: String,
    /// Port of the peer's PeerAPI, as its pong through the tunnel tells; 0 if it serves none.
    #[serde(rename = "PeerAPIPort", default, skip_serializing_if = "is_zero")]
    pub peer_api_port: u16,
    /// The PeerAPI that answered.
    #[serde(
        rename = "PeerAPIURL",
        default,
        skip_serializing_if = "String::is_empty"
    )]
    pub peer_api_url: String,
    /// The address is this node's own.
    #[serde(
        rename = "IsLocalIP",
        default,
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub is_local_ip: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(port: &u16) -> bool {
    *port == 0
}

/// `GET whois`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct WhoIs {
    /// The node, as the coordination server describes it.
    pub node: Value,
    /// Its owner.
    pub user_profile: Value,
    /// What it may do to us; always null until the data-plane issue.
    pub cap_map: Option<Value>,
}

/// `POST start`.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
pub struct StartOptions {
    /// Preferences to replace the stored ones.
    pub update_prefs: Option<Prefs>,
    /// Key that joins without a person.
    pub auth_key: String,
    /// Log in again although the node key is still good (ours).
    pub force_reauth: bool,
}

/// One line of `GET watch-ipn-bus`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Notify {
    /// Version of the daemon.
    pub version: String,
    /// Why the last login or start failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub err_message: Option<String>,
    /// [`BackendState::number`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<u8>,
    /// Where to log in.
    #[serde(
        rename = "BrowseToURL",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub browse_to_url: Option<String>,
}

/// The error body of upstream's JSON endpoints.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ErrorBody {
    /// Cause and fix.
    pub error: String,
}
