//! Turns the server's nodes and users into the wire's.

use bytes::Bytes;
use control_proto::capver::CapabilityVersion;
use control_proto::{Timestamp, tailcfg};
use ipnet::IpNet;
use policy::compile::{OwnView, PeerView};
use policy::tailnet::Role;
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
    derp_map: tailcfg::DerpMap,
    /// The members of a full response that are the same for everybody, as an open JSON object.
    pub(super) prelude: Bytes,
}

impl MapSettings {
    /// Nodes are named below `base_domain` (no trailing dot) and reach each other through
    /// `derp_map`.
    #[must_use]
    pub fn new(base_domain: &str, derp_map: &tailcfg::DerpMap) -> Self {
        let mut out = wire::Writer::new();
        out.value("DNSConfig", &dns_config(base_domain));
        out.value("Domain", &base_domain);
        out.raw("CollectServices", b"false");
        // Clients would upload their logs to their vendor otherwise (pitfall 64).
        out.raw("Debug", br#"{"DisableLogTail":true}"#);
        out.raw("Health", b"[]");
        Self {
            base_domain: base_domain.to_owned(),
            derp_map: derp_map.clone(),
            prelude: out.into_open().into(),
        }
    }

    /// The domain that nodes are named below.
    #[must_use]
    pub fn base_domain(&self) -> &str {
        &self.base_domain
    }

    /// The server's relays, and those of the policy, which win; rendered.
    pub(super) fn relays(&self, policy: Option<&tailcfg::DerpMap>) -> Bytes {
        let mut map = self.derp_map.clone();
        // Never absent: clients would keep what they have.
        let regions = map.regions.get_or_insert_default();
        if let Some(policy) = policy {
            if policy.omit_default_regions {
                regions.clear();
            }
            // A null region takes away the server's.
            regions.extend(policy.regions.clone().unwrap_or_default());
            regions.retain(|_, region| region.is_some());
            if policy.home_params.is_some() {
                map.home_params.clone_from(&policy.home_params);
            }
        }
        to_json(&map).into()
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

/// A node as those peers see it to whom the policy shows it so. `expired`: they were told.
pub(super) fn peer(
    settings: &MapSettings,
    node: &Node,
    online: bool,
    expired: bool,
    view: &PeerView,
) -> Bytes {
    let mut wire = common(settings, node);
    wire.allowed_ips = Some(joined(&view.addresses, &view.routes));
    wire.addresses.clone_from(&view.addresses);
    wire.primary_routes.clone_from(&view.primary_routes);
    let flags = view.attributes.iter().map(|name| (name.clone(), None));
    wire.cap_map = flags.collect();
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
    wire.expired = expired;
    wire.hostinfo = peer_hostinfo(&node.hostinfo);
    to_json(&wire).into()
}

/// A node as it is told about itself. `role`: its user's; tagged nodes have none.
pub(super) fn own(settings: &MapSettings, node: &Node, role: Option<Role>, view: OwnView) -> Bytes {
    let mut wire = common(settings, node);
    wire.allowed_ips = Some(joined(&view.addresses, &view.routes));
    wire.addresses = view.addresses;
    wire.primary_routes = view.primary_routes;
    wire.machine = node.machine;
    wire.machine_authorized = true;
    wire.hostinfo = tailcfg::Hostinfo {
        hostname: node.hostinfo.hostname.clone(),
        routable_ips: node.hostinfo.routable_ips.clone(),
        request_tags: node.hostinfo.request_tags.clone(),
        services: node.hostinfo.services.clone(),
        ..Default::default()
    };
    wire.cap_map = baseline(role);
    wire.cap_map.extend(view.attributes);
    to_json(&wire).into()
}

fn common(settings: &MapSettings, node: &Node) -> tailcfg::Node {
    tailcfg::Node {
        id: node.id,
        stable_id: tailcfg::StableNodeId(node.stable_id.clone()),
        name: settings.fqdn(&node.name),
        user: owner(node),
        key: node.key,
        key_expiry: node.expires.map(timestamp).unwrap_or_default(),
        created: timestamp(node.created),
        tags: node.tags.clone(),
        ..Default::default()
    }
}

fn joined(addresses: &[IpNet], routes: &[IpNet]) -> Vec<IpNet> {
    addresses.iter().chain(routes).copied().collect()
}

/// Capabilities that do not come from the policy (protocol digest 5.8); never `tailnet-lock`,
/// which is not built. Roles only decide what clients offer to people.
fn baseline(role: Option<Role>) -> tailcfg::CapMap {
    const PREFIX: &str = "https://tailscale.com/cap/";
    let mut flags = vec![
        format!("{PREFIX}file-sharing"),
        format!("{PREFIX}ssh"),
        // Without it `acceptEnv` of the policy has no effect.
        "ssh-env-vars".to_owned(),
    ];
    if matches!(role, Some(Role::Owner | Role::Admin)) {
        flags.push(format!("{PREFIX}is-admin"));
    }
    if role == Some(Role::Owner) {
        flags.push(format!("{PREFIX}is-owner"));
    }
    let no_updates = ("default-auto-update".to_owned(), Some(vec![false.into()]));
    let flags = flags.into_iter().map(|name| (name, None));
    flags.chain([no_updates]).collect()
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
