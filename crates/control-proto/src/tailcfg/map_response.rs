//! One frame of the map stream: first everything, then differences.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    DerpMap, DnsConfig, FilterRule, Node, NodeId, PeerChange, PingRequest, SshPolicy, UserProfile,
    is_default,
};
use crate::{Presence, Timestamp};

/// One frame of the map stream (control.md 4.4). Absent always means unchanged.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct MapResponse {
    /// Name of the session, in its first frame.
    #[serde(rename = "MapSessionHandle", skip_serializing_if = "is_default")]
    pub map_session_handle: String,
    /// Grows within a session.
    #[serde(rename = "Seq", skip_serializing_if = "is_default")]
    pub seq: i64,
    /// Only proves that the session lives; the map does not change.
    #[serde(rename = "KeepAlive", skip_serializing_if = "is_default")]
    pub keep_alive: bool,
    /// Prove that you are reachable.
    #[serde(rename = "PingRequest", skip_serializing_if = "Option::is_none")]
    pub ping_request: Option<PingRequest>,
    /// Show this page once.
    #[serde(rename = "PopBrowserURL", skip_serializing_if = "is_default")]
    pub pop_browser_url: String,
    /// The node itself, whole; the first frame must have it.
    #[serde(rename = "Node", skip_serializing_if = "Option::is_none")]
    pub node: Option<Node>,
    /// Relays.
    #[serde(rename = "DERPMap", skip_serializing_if = "Option::is_none")]
    pub derp_map: Option<DerpMap>,
    /// All peers; `[]` and null change nothing.
    #[serde(rename = "Peers", skip_serializing_if = "Presence::is_absent")]
    pub peers: Presence<Vec<Node>>,
    /// Peers to add or replace, whole.
    #[serde(rename = "PeersChanged", skip_serializing_if = "is_default")]
    pub peers_changed: Vec<Node>,
    /// Peers to drop.
    #[serde(rename = "PeersRemoved", skip_serializing_if = "is_default")]
    pub peers_removed: Vec<NodeId>,
    /// Peers to change a little.
    #[serde(rename = "PeersChangedPatch", skip_serializing_if = "is_default")]
    pub peers_changed_patch: Vec<PeerChange>,
    /// True: last seen now; false: last seen unknown.
    #[serde(rename = "PeerSeenChange", skip_serializing_if = "is_default")]
    pub peer_seen_change: BTreeMap<NodeId, bool>,
    /// Who came and who went.
    #[serde(rename = "OnlineChange", skip_serializing_if = "is_default")]
    pub online_change: BTreeMap<NodeId, bool>,
    /// Names; replaces whole.
    #[serde(rename = "DNSConfig", skip_serializing_if = "Option::is_none")]
    pub dns_config: Option<DnsConfig>,
    /// Name of the tailnet; empty changes nothing.
    #[serde(rename = "Domain", skip_serializing_if = "is_default")]
    pub domain: String,
    /// Whether to report services; null sets it to unknown.
    #[serde(
        rename = "CollectServices",
        skip_serializing_if = "Presence::is_absent"
    )]
    pub collect_services: Presence<bool>,
    /// The filter named `base`; `[]` denies, null changes nothing.
    #[serde(rename = "PacketFilter", skip_serializing_if = "Presence::is_absent")]
    pub packet_filter: Presence<Vec<FilterRule>>,
    /// Filters by name; `None` (null) deletes a name, `"*"` with `None` deletes all first.
    #[serde(rename = "PacketFilters", skip_serializing_if = "Presence::is_absent")]
    pub packet_filters: Presence<BTreeMap<String, Option<Vec<FilterRule>>>>,
    /// Owners of nodes, to add or replace.
    #[serde(rename = "UserProfiles", skip_serializing_if = "is_default")]
    pub user_profiles: Vec<UserProfile>,
    /// Warnings for people; `[]` clears.
    #[serde(rename = "Health", skip_serializing_if = "Presence::is_absent")]
    pub health: Presence<Vec<String>>,
    /// Messages by id; `None` (null) deletes one, `"*"` with `None` deletes all first.
    #[serde(
        rename = "DisplayMessages",
        skip_serializing_if = "Presence::is_absent"
    )]
    pub display_messages: Presence<BTreeMap<String, Option<DisplayMessage>>>,
    /// SSH rules; replaces whole.
    #[serde(rename = "SSHPolicy", skip_serializing_if = "Option::is_none")]
    pub ssh_policy: Option<SshPolicy>,
    /// The server's clock.
    #[serde(rename = "ControlTime", skip_serializing_if = "Option::is_none")]
    pub control_time: Option<Timestamp>,
    /// Tailnet lock.
    #[serde(rename = "TKAInfo", skip_serializing_if = "Option::is_none")]
    pub tka_info: Option<TkaInfo>,
    /// Id for flow logs; empty changes nothing.
    #[serde(
        rename = "DomainDataPlaneAuditLogID",
        skip_serializing_if = "is_default"
    )]
    pub domain_data_plane_audit_log_id: String,
    /// Instructions to the process.
    #[serde(rename = "Debug", skip_serializing_if = "Option::is_none")]
    pub debug: Option<Debug>,
    /// How to find the server next time.
    #[serde(rename = "ControlDialPlan", skip_serializing_if = "Option::is_none")]
    pub control_dial_plan: Option<ControlDialPlan>,
    /// Whether the software is up to date.
    #[serde(rename = "ClientVersion", skip_serializing_if = "Option::is_none")]
    pub client_version: Option<ClientVersion>,
    /// Old form of the capability `default-auto-update`.
    #[serde(rename = "DefaultAutoUpdate", skip_serializing_if = "Option::is_none")]
    pub default_auto_update: Option<bool>,
}

impl MapResponse {
    /// The frame that only says "still here".
    #[must_use]
    pub fn keep_alive() -> Self {
        Self {
            keep_alive: true,
            ..Self::default()
        }
    }
}

/// A message for people.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct DisplayMessage {
    /// Headline.
    #[serde(rename = "Title")]
    pub title: String,
    /// Body.
    #[serde(rename = "Text")]
    pub text: String,
    /// `high`, `medium` or `low`.
    #[serde(rename = "Severity", skip_serializing_if = "is_default")]
    pub severity: String,
    /// Connections suffer.
    #[serde(rename = "ImpactsConnectivity", skip_serializing_if = "is_default")]
    pub impacts_connectivity: bool,
    /// What one can do.
    #[serde(rename = "PrimaryAction", skip_serializing_if = "Option::is_none")]
    pub primary_action: Option<DisplayMessageAction>,
}

/// A button of a [`DisplayMessage`].
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct DisplayMessageAction {
    /// Where it leads.
    #[serde(rename = "URL")]
    pub url: String,
    /// What stands on it.
    #[serde(rename = "Label")]
    pub label: String,
}

/// State of tailnet lock.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct TkaInfo {
    /// Head of the chain, base32.
    #[serde(rename = "Head", skip_serializing_if = "is_default")]
    pub head: String,
    /// Switched off.
    #[serde(rename = "Disabled", skip_serializing_if = "is_default")]
    pub disabled: bool,
}

/// Instructions to the process.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Debug {
    /// Pause before the next frame, at most 300 s.
    #[serde(rename = "SleepSeconds", skip_serializing_if = "is_default")]
    pub sleep_seconds: f64,
    /// Stop uploading logs; lasts until the process ends.
    #[serde(rename = "DisableLogTail", skip_serializing_if = "is_default")]
    pub disable_log_tail: bool,
    /// Exit with this code; our agent does not obey.
    #[serde(rename = "Exit", skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
}

/// Ways to reach the server; none means DNS.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct ControlDialPlan {
    /// Tried side by side.
    #[serde(rename = "Candidates", skip_serializing_if = "is_default")]
    pub candidates: Vec<ControlIpCandidate>,
}

/// One way to reach the server.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct ControlIpCandidate {
    /// Address, or empty.
    #[serde(rename = "IP", skip_serializing_if = "is_default")]
    pub ip: String,
    /// HTTPS CONNECT proxy to go through, or empty.
    #[serde(rename = "ACEHost", skip_serializing_if = "is_default")]
    pub ace_host: String,
    /// Wait this long first, seconds.
    #[serde(rename = "DialStartDelaySec", skip_serializing_if = "is_default")]
    pub dial_start_delay_sec: f64,
    /// Give up after, seconds.
    #[serde(rename = "DialTimeoutSec", skip_serializing_if = "is_default")]
    pub dial_timeout_sec: f64,
    /// Higher wins.
    #[serde(rename = "Priority", skip_serializing_if = "is_default")]
    pub priority: i64,
}

/// Whether the software is up to date.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct ClientVersion {
    /// It is.
    #[serde(rename = "RunningLatest", skip_serializing_if = "is_default")]
    pub running_latest: bool,
    /// The newest version, if it is not.
    #[serde(rename = "LatestVersion", skip_serializing_if = "is_default")]
    pub latest_version: String,
    /// The update closes a hole.
    #[serde(rename = "UrgentSecurityUpdate", skip_serializing_if = "is_default")]
    pub urgent_security_update: bool,
    /// Tell the person.
    #[serde(rename = "Notify", skip_serializing_if = "is_default")]
    pub notify: bool,
    /// Where a click leads.
    #[serde(rename = "NotifyURL", skip_serializing_if = "is_default")]
    pub notify_url: String,
    /// What to say.
    #[serde(rename = "NotifyText", skip_serializing_if = "is_default")]
    pub notify_text: String,
}
