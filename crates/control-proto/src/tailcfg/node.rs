//! A node as the map shows it, and small changes to one.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use keys::{DiscoPublic, MachinePublic, NodePublic};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{Base64Bytes, Hostinfo, NodeId, RegionId, Resolver, StableNodeId, UserId, is_default};
use crate::{Timestamp, capver::CapabilityVersion};

/// An IP prefix, such as `100.64.0.1/32`.
pub type Prefix = ipnet::IpNet;

/// Capabilities: name to arguments, kept as they came. A mere flag has `None` or no arguments.
pub type CapMap = BTreeMap<String, Option<Vec<Value>>>;

/// Oldest form of the home relay: an address of this net with the region as port.
const LEGACY_DERP_PREFIX: &str = "127.3.3.40:";

/// A node (control.md 5.1).
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Node {
    /// Unique number, never reused.
    #[serde(rename = "ID")]
    pub id: NodeId,
    /// Opaque name for life.
    #[serde(rename = "StableID")]
    pub stable_id: StableNodeId,
    /// Fully qualified name with trailing dot.
    #[serde(rename = "Name")]
    pub name: String,
    /// Owner; a pseudo user for tagged peers.
    #[serde(rename = "User")]
    pub user: UserId,
    /// Who shared it with us; 0 for nobody.
    #[serde(rename = "Sharer", skip_serializing_if = "is_default")]
    pub sharer: UserId,
    /// WireGuard and DERP identity.
    #[serde(rename = "Key")]
    pub key: NodePublic,
    /// When the key expires; use [`Node::key_expiry`].
    #[serde(rename = "KeyExpiry", skip_serializing_if = "is_default")]
    pub key_expiry: Timestamp,
    /// Tailnet lock signature of the key.
    #[serde(rename = "KeySignature", skip_serializing_if = "is_default")]
    pub key_signature: Base64Bytes,
    /// Machine key; left out for peers.
    #[serde(rename = "Machine", skip_serializing_if = "is_default")]
    pub machine: MachinePublic,
    /// Zero: reachable by relay only.
    #[serde(rename = "DiscoKey", skip_serializing_if = "is_default")]
    pub disco_key: DiscoPublic,
    /// Its own addresses, IPv4 first.
    #[serde(rename = "Addresses")]
    pub addresses: Vec<Prefix>,
    /// What it may send from; use [`Node::allowed_ips`].
    #[serde(rename = "AllowedIPs", skip_serializing_if = "Option::is_none")]
    pub allowed_ips: Option<Vec<Prefix>>,
    /// Where it may be reached; entries that are not `ip:port` are dropped when read.
    #[serde(
        rename = "Endpoints",
        skip_serializing_if = "is_default",
        deserialize_with = "lenient_endpoints"
    )]
    pub endpoints: Vec<SocketAddr>,
    /// Legacy home relay (`127.3.3.40:region`); use [`Node::home_derp`].
    #[serde(rename = "DERP", skip_serializing_if = "is_default")]
    pub legacy_derp: String,
    /// Home relay; use [`Node::home_derp`].
    #[serde(rename = "HomeDERP", skip_serializing_if = "is_default")]
    pub home_derp: RegionId,
    /// About its host; never left out.
    #[serde(rename = "Hostinfo")]
    pub hostinfo: Hostinfo,
    /// When it joined.
    #[serde(rename = "Created", skip_serializing_if = "is_default")]
    pub created: Timestamp,
    /// Its capability version.
    #[serde(rename = "Cap", skip_serializing_if = "is_default")]
    pub cap: CapabilityVersion,
    /// `tag:x`; any makes it a tagged node.
    #[serde(rename = "Tags", skip_serializing_if = "is_default")]
    pub tags: Vec<String>,
    /// Subset of `allowed_ips` it is the active subnet router for.
    #[serde(rename = "PrimaryRoutes", skip_serializing_if = "is_default")]
    pub primary_routes: Vec<Prefix>,
    /// Absent while it is online.
    #[serde(rename = "LastSeen", skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Timestamp>,
    /// Absent means unknown.
    #[serde(rename = "Online", skip_serializing_if = "Option::is_none")]
    pub online: Option<bool>,
    /// Approved by an administrator.
    #[serde(rename = "MachineAuthorized", skip_serializing_if = "is_default")]
    pub machine_authorized: bool,
    /// Deprecated form of `cap_map`.
    #[serde(rename = "Capabilities", skip_serializing_if = "is_default")]
    pub capabilities: Vec<String>,
    /// Capabilities; use [`Node::has_cap`].
    #[serde(rename = "CapMap", skip_serializing_if = "is_default")]
    pub cap_map: CapMap,
    /// Funnel ingress: may touch the PeerAPI only.
    #[serde(rename = "UnsignedPeerAPIOnly", skip_serializing_if = "is_default")]
    pub unsigned_peer_api_only: bool,
    /// The server says that its key expired; use [`Node::is_expired`].
    #[serde(rename = "Expired", skip_serializing_if = "is_default")]
    pub expired: bool,
    /// Our address as this peer knows it, IPv4.
    #[serde(
        rename = "SelfNodeV4MasqAddrForThisPeer",
        skip_serializing_if = "Option::is_none"
    )]
    pub self_node_v4_masq_addr_for_this_peer: Option<IpAddr>,
    /// Our address as this peer knows it, IPv6.
    #[serde(
        rename = "SelfNodeV6MasqAddrForThisPeer",
        skip_serializing_if = "Option::is_none"
    )]
    pub self_node_v6_masq_addr_for_this_peer: Option<IpAddr>,
    /// Plain WireGuard: no disco, no DERP.
    #[serde(rename = "IsWireGuardOnly", skip_serializing_if = "is_default")]
    pub is_wireguard_only: bool,
    /// Resolvers of a WireGuard-only exit node.
    #[serde(rename = "ExitNodeDNSResolvers", skip_serializing_if = "is_default")]
    pub exit_node_dns_resolvers: Vec<Resolver>,
    /// May not open connections to us.
    #[serde(rename = "IsJailed", skip_serializing_if = "is_default")]
    pub is_jailed: bool,
}

impl Node {
    /// What it may send from: `AllowedIPs`, or its addresses where the field was absent or null.
    #[must_use]
    pub fn allowed_ips(&self) -> &[Prefix] {
        self.allowed_ips.as_deref().unwrap_or(&self.addresses)
    }

    /// Home relay in the new or the legacy form; `None` means no relay path.
    #[must_use]
    pub fn home_derp(&self) -> Option<RegionId> {
        let legacy = || {
            self.legacy_derp
                .strip_prefix(LEGACY_DERP_PREFIX)?
                .parse()
                .ok()
        };
        Some(self.home_derp)
            .filter(|id| *id != 0)
            .or_else(legacy)
            .filter(|id| *id > 0)
    }

    /// When the key expires; `None` is never.
    #[must_use]
    pub fn key_expiry(&self) -> Option<Timestamp> {
        (!self.key_expiry.is_zero()).then_some(self.key_expiry)
    }

    /// Whether the server or the clock says that the key has expired.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expired || self.key_expiry().is_some_and(|expiry| expiry <= now)
    }

    /// Whether it has a capability, in the new or the deprecated form.
    #[must_use]
    pub fn has_cap(&self, name: &str) -> bool {
        self.cap_map.contains_key(name) || self.capabilities.iter().any(|cap| cap == name)
    }

    /// The first label of its name.
    #[must_use]
    pub fn label(&self) -> &str {
        self.name.split('.').next().unwrap_or_default()
    }
}

/// A small change to one peer (control.md 4.4); absent fields stay.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct PeerChange {
    /// Who changed; unknown ids are ignored.
    #[serde(rename = "NodeID")]
    pub node_id: NodeId,
    /// New home relay, unless 0.
    #[serde(rename = "DERPRegion", skip_serializing_if = "is_default")]
    pub derp_region: RegionId,
    /// New capability version, unless 0.
    #[serde(rename = "Cap", skip_serializing_if = "is_default")]
    pub cap: CapabilityVersion,
    /// New capabilities.
    #[serde(rename = "CapMap", skip_serializing_if = "Option::is_none")]
    pub cap_map: Option<CapMap>,
    /// New endpoints; entries that are not `ip:port` are dropped when read.
    #[serde(
        rename = "Endpoints",
        skip_serializing_if = "Option::is_none",
        deserialize_with = "lenient_endpoints_or_none"
    )]
    pub endpoints: Option<Vec<SocketAddr>>,
    /// New node key.
    #[serde(rename = "Key", skip_serializing_if = "Option::is_none")]
    pub key: Option<NodePublic>,
    /// New tailnet lock signature.
    #[serde(rename = "KeySignature", skip_serializing_if = "is_default")]
    pub key_signature: Base64Bytes,
    /// New disco key.
    #[serde(rename = "DiscoKey", skip_serializing_if = "Option::is_none")]
    pub disco_key: Option<DiscoPublic>,
    /// Came or went.
    #[serde(rename = "Online", skip_serializing_if = "Option::is_none")]
    pub online: Option<bool>,
    /// When it was last seen.
    #[serde(rename = "LastSeen", skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Timestamp>,
    /// New expiry of its key.
    #[serde(rename = "KeyExpiry", skip_serializing_if = "Option::is_none")]
    pub key_expiry: Option<Timestamp>,
}

impl PeerChange {
    /// Applies the fields that are present to `node`.
    pub fn apply_to(self, node: &mut Node) {
        if self.derp_region != 0 {
            node.home_derp = self.derp_region;
            node.legacy_derp.clear();
        }
        if self.cap != CapabilityVersion::default() {
            node.cap = self.cap;
        }
        set(&mut node.cap_map, self.cap_map);
        set(&mut node.endpoints, self.endpoints);
        set(&mut node.key, self.key);
        if !self.key_signature.0.is_empty() {
            node.key_signature = self.key_signature;
        }
        set(&mut node.disco_key, self.disco_key);
        set(&mut node.key_expiry, self.key_expiry);
        if self.online.is_some() {
            node.online = self.online;
        }
        if self.last_seen.is_some() {
            node.last_seen = self.last_seen;
        }
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// Reads `ip:port` texts and drops what does not parse, such as link-local addresses with a zone:
/// one odd candidate must not cost a node its whole map.
pub(super) fn lenient_endpoints<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<SocketAddr>, D::Error> {
    lenient_endpoints_or_none(deserializer).map(Option::unwrap_or_default)
}

fn lenient_endpoints_or_none<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<SocketAddr>>, D::Error> {
    let texts = Option::<Vec<String>>::deserialize(deserializer)?;
    Ok(texts.map(|texts| texts.iter().filter_map(|text| text.parse().ok()).collect()))
}
