//! Turns the server's nodes and users into the wire's.

use std::collections::BTreeMap;

use bytes::Bytes;
use control_proto::capver::CapabilityVersion;
use control_proto::{Timestamp, tailcfg};
use time::OffsetDateTime;

use super::wire::{self, to_json};
use crate::model::{Node, User, UserId};

/// Pseudo-user that tagged nodes belong to on the wire (protocol digest 8.9).
pub const TAGGED_DEVICES: UserId = UserId(2_147_455_555);

/// Login name of [`TAGGED_DEVICES`].
pub(crate) const TAGGED_NAME: &str = "tagged-devices";

/// What all map responses of a server have in common.
#[derive(Clone, Debug)]
pub struct MapSettings {
    base_domain: String,
    /// The members of a full response that are the same for everybody, as an open JSON object.
    pub(super) prelude: Bytes,
}

impl MapSettings {
    /// Nodes are named below `base_domain` (no trailing dot) and reach each other through
    /// `derp_map`.
    #[must_use]
    pub fn new(base_domain: &str, derp_map: &tailcfg::DerpMap) -> Self {
        let mut out = wire::Writer::new();
        out.value("DERPMap", derp_map);
        out.value("DNSConfig", &dns_config(base_domain));
        out.value("Domain", &base_domain);
        // The default policy: every node may reach every node.
        let base = [tailcfg::FilterRule::allow_all()];
        out.value("PacketFilters", &BTreeMap::from([("base", base)]));
        // Deny all: nobody's policy speaks of SSH yet.
        out.raw("SSHPolicy", br#"{"rules":[]}"#);
        out.raw("CollectServices", b"false");
        // Clients would upload their logs to their vendor otherwise (pitfall 64).
        out.raw("Debug", br#"{"DisableLogTail":true}"#);
        out.raw("Health", b"[]");
        Self {
            base_domain: base_domain.to_owned(),
            prelude: out.into_open().into(),
        }
    }

    /// The domain that nodes are named below.
    #[must_use]
    pub fn base_domain(&self) -> &str {
        &self.base_domain
    }

    /// Fully qualified name of a node, with the trailing dot.
    #[must_use]
    pub fn fqdn(&self, name: &str) -> String {
        format!("{name}.{}.", self.base_domain)
    }
}

/// MagicDNS for the tailnet's own names, nothing else.
fn dns_config(base_domain: &str) -> tailcfg::DnsConfig {
    tailcfg::DnsConfig {
        // An empty list, not null: clients lose a null route (protocol digest 5.7).
        routes: [(format!("{base_domain}."), Vec::new())].into(),
        domains: vec![base_domain.to_owned()],
        proxied: true,
        ..Default::default()
    }
}

/// The owner that viewers are told.
pub(super) fn owner(node: &Node) -> UserId {
    if node.is_tagged() {
        TAGGED_DEVICES
    } else {
        node.user
    }
}

/// A node as its peers see it.
pub(super) fn peer(
    settings: &MapSettings,
    node: &Node,
    online: bool,
    now: OffsetDateTime,
) -> Bytes {
    let mut wire = common(settings, node);
    wire.disco_key = node.disco.unwrap_or_default();
    wire.endpoints.clone_from(&node.endpoints);
    wire.home_derp = node.home_derp;
    wire.cap = CapabilityVersion(node.capver);
    wire.online = Some(online);
    wire.last_seen = if online {
        None
    } else {
        node.last_seen.map(timestamp)
    };
    wire.expired = node.is_expired(now);
    wire.hostinfo = peer_hostinfo(&node.hostinfo);
    to_json(&wire).into()
}

/// A node as it is told about itself.
pub(super) fn own(settings: &MapSettings, node: &Node) -> Bytes {
    let mut wire = common(settings, node);
    wire.machine = node.machine;
    wire.machine_authorized = true;
    wire.hostinfo = tailcfg::Hostinfo {
        hostname: node.hostinfo.hostname.clone(),
        routable_ips: node.hostinfo.routable_ips.clone(),
        request_tags: node.hostinfo.request_tags.clone(),
        services: node.hostinfo.services.clone(),
        ..Default::default()
    };
    wire.cap_map = own_capabilities();
    to_json(&wire).into()
}

fn common(settings: &MapSettings, node: &Node) -> tailcfg::Node {
    let addresses = vec![
        ipnet::IpNet::from(std::net::IpAddr::V4(node.addresses.v4)),
        ipnet::IpNet::from(std::net::IpAddr::V6(node.addresses.v6)),
    ];
    tailcfg::Node {
        id: node.id,
        stable_id: tailcfg::StableNodeId(node.stable_id.clone()),
        name: settings.fqdn(&node.name),
        user: owner(node),
        key: node.key,
        key_expiry: node.expires.map(timestamp).unwrap_or_default(),
        addresses: addresses.clone(),
        allowed_ips: Some(addresses),
        created: timestamp(node.created),
        tags: node.tags.clone(),
        ..Default::default()
    }
}

/// Capabilities of every node (protocol digest 5.8); never `tailnet-lock`, which is not built.
fn own_capabilities() -> tailcfg::CapMap {
    let flags = ["is-admin", "file-sharing", "ssh"];
    let flags = flags.map(|name| (format!("https://tailscale.com/cap/{name}"), None));
    let no_updates = ("default-auto-update".to_owned(), Some(vec![false.into()]));
    flags.into_iter().chain([no_updates]).collect()
}

/// An instant as the wire has it.
pub(super) fn timestamp(at: OffsetDateTime) -> Timestamp {
    Timestamp::from_unix_seconds(at.unix_timestamp())
}

/// What peers may know of a host (protocol digest 5.2).
pub(super) fn peer_hostinfo(full: &tailcfg::Hostinfo) -> tailcfg::Hostinfo {
    tailcfg::Hostinfo {
        os: full.os.clone(),
        hostname: full.hostname.clone(),
        services: full
            .services
            .iter()
            .filter(|service| service.proto.starts_with("peerapi"))
            .cloned()
            .collect(),
        ssh_host_keys: full.ssh_host_keys.clone(),
        location: full.location.clone(),
        sharee_node: full.sharee_node,
        ..Default::default()
    }
}

/// The profile that goes with an owner.
pub(super) fn profile(settings: &MapSettings, id: UserId, user: Option<&User>) -> Bytes {
    let (login_name, display_name) = match user {
        Some(user) => (login_name(settings, user), user.name.clone()),
        None => (TAGGED_NAME.to_owned(), "Tagged Devices".to_owned()),
    };
    let profile = tailcfg::UserProfile {
        id,
        login_name,
        display_name,
        ..Default::default()
    };
    to_json(&profile).into()
}

/// Login names look like e-mail addresses: SSH rules and device management match on the domain.
pub(crate) fn login_name(settings: &MapSettings, user: &User) -> String {
    if user.name.contains('@') {
        user.name.clone()
    } else {
        format!("{}@{}", user.name, settings.base_domain)
    }
}
