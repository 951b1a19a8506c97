//! Attributes that a policy gives to nodes (control.md 8.8): `nodeAttrs` and the options of the
//! whole network, as they go into the CapMap (control.md 5.8).

use ipnet::Ipv4Net;
use serde_json::Value;

use super::identity::Identity;
use crate::file::{NodeAttr, OneCgnatRoute, Policy};
use crate::tailnet::{Attribute, Node};
use control_proto::tailcfg::CapMap;

/// The node has no IPv4 address on the overlay.
pub(crate) const DISABLE_IPV4: &str = "disable-ipv4";
const RANDOMIZE_CLIENT_PORT: &str = "randomize-client-port";
const ONE_CGNAT: &str = "one-cgnat?v=true";
const NO_ONE_CGNAT: &str = "one-cgnat?v=false";

const FUNNEL: &str = "funnel";
/// What clients are told beside `funnel`: the ports that may be used, and that no certificates
/// can be had, which this server does not issue.
const WITH_FUNNEL: [&str; 2] = [
    "https://tailscale.com/cap/funnel-ports?ports=443,8443,10000",
    "https://tailscale.com/cap/warn-funnel-no-https",
];

/// Attributes that clients read from their peers.
const SUGGEST_EXIT_NODE: &str = "suggest-exit-node";
const DNS_SUBDOMAIN_RESOLVE: &str = "dns-subdomain-resolve";

/// What a policy sets on `node`, whose identity is `identity`: flags without a value, the values of
/// several entries for one name one after the other.
pub(crate) fn own(policy: &Policy, identity: &Identity<'_>, node: &Node) -> CapMap {
    let mut attributes = CapMap::new();
    for entry in entries(policy, identity) {
        for flag in &entry.attributes {
            attributes.entry(flag.value.clone()).or_default();
        }
        for (name, values) in &entry.app {
            let all: &mut Vec<Value> = attributes
                .entry(name.clone())
                .or_default()
                .get_or_insert_default();
            all.extend(values.iter().cloned());
        }
    }
    if attributes.contains_key(FUNNEL) {
        attributes.extend(WITH_FUNNEL.map(|name| (name.to_owned(), None)));
    }
    let options = &policy.options;
    if options.randomize_client_port {
        attributes.insert(RANDOMIZE_CLIENT_PORT.to_owned(), None);
    }
    if options.disable_ipv4 {
        attributes.insert(DISABLE_IPV4.to_owned(), None);
    }
    if let Some(name) = one_cgnat(options.one_cgnat_route).filter(|_| runs_macos(node)) {
        attributes.insert(name.to_owned(), None);
    }
    attributes
}

/// What its peers are told of a node. It is suggested as an exit once it is approved as one, and
/// only then, whether or not the policy sets the attribute.
pub(crate) fn for_peers(own: &CapMap, node: &Node) -> Vec<String> {
    let resolves = own.contains_key(DNS_SUBDOMAIN_RESOLVE);
    [
        (DNS_SUBDOMAIN_RESOLVE, resolves),
        (SUGGEST_EXIT_NODE, node.exit),
    ]
    .into_iter()
    .filter(|(_, applies)| *applies)
    .map(|(name, _)| name.to_owned())
    .collect()
}

/// Where a new node of this identity gets its IPv4 address from; empty = anywhere.
pub(crate) fn ip_pools(policy: &Policy, identity: &Identity<'_>) -> Vec<Ipv4Net> {
    let mut pools = Vec::new();
    for pool in entries(policy, identity).flat_map(|entry| &entry.ip_pool) {
        if !pools.contains(pool) {
            pools.push(*pool);
        }
    }
    pools
}

/// The entries of `nodeAttrs` that are about somebody, in order.
fn entries<'a>(
    policy: &'a Policy,
    identity: &'a Identity<'_>,
) -> impl Iterator<Item = &'a NodeAttr> {
    policy.node_attrs.iter().filter(|entry| {
        entry
            .targets
            .iter()
            .any(|target| !identity.covered_by(policy, &target.value).is_none())
    })
}

fn one_cgnat(option: OneCgnatRoute) -> Option<&'static str> {
    match option {
        OneCgnatRoute::Default => None,
        OneCgnatRoute::MacAlways => Some(ONE_CGNAT),
        OneCgnatRoute::MacNever => Some(NO_ONE_CGNAT),
    }
}

/// The option is about macOS alone, but a client of any system obeys the attribute.
fn runs_macos(node: &Node) -> bool {
    matches!(node.attributes.get("node:os"), Some(Attribute::Text(os)) if os == "macos")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{company, nodes, users};

    fn attributes(policy: &Policy, name: &str) -> CapMap {
        let (users, nodes) = (users(), nodes());
        let node = nodes.iter().find(|node| node.name == name).unwrap();
        let find = |id| users.iter().find(|user| user.id == id);
        let identity = Identity::of_owner(policy, &node.owner, find).at(node);
        own(policy, &identity, node)
    }

    fn names(policy: &Policy, name: &str) -> Vec<String> {
        attributes(policy, name).into_keys().collect()
    }

    #[test]
    fn entries_add_up_over_all_kinds_of_targets() {
        let policy = company(
            r#""nodeAttrs": [
                {"target": ["*"], "attr": ["all"]},
                {"target": ["tag:web", "bob@example.com"], "attr": ["some", "all"]},
                {"target": ["group:dev"], "attr": ["dev"]},
                {"target": ["srv"], "attr": ["host"]},
                {"target": ["autogroup:tagged"], "attr": ["tagged"]},
                {"target": ["autogroup:member"], "attr": ["member"]},
                {"target": ["autogroup:owner"], "attr": ["owner"]},
                {"target": [], "attr": ["nobody"]},
            ]"#,
        );
        assert_eq!(names(&policy, "web"), ["all", "host", "some", "tagged"]);
        assert_eq!(names(&policy, "both"), ["all", "some", "tagged"]);
        assert_eq!(names(&policy, "bobs"), ["all", "dev", "member", "some"]);
        assert_eq!(names(&policy, "laptop"), ["all", "dev", "member", "owner"]);
        assert_eq!(names(&policy, "carols"), ["all", "member"]);
        assert!(attributes(&policy, "web").values().all(Option::is_none));
    }

    #[test]
    fn app_attributes_have_values() {
        let policy = company(
            r#""nodeAttrs": [
                {"target": ["*"], "app": {"example.com/cap": [{"a": 1}]}},
                {"target": ["tag:web"], "app": {"example.com/cap": [{"b": 2}]}},
            ]"#,
        );
        let values = |name| attributes(&policy, name).remove("example.com/cap").unwrap();
        assert_eq!(values("db"), Some(vec![json!({"a": 1})]));
        assert_eq!(values("web"), Some(vec![json!({"a": 1}), json!({"b": 2})]));
    }

    #[test]
    fn funnel_comes_with_its_ports() {
        let policy = company(r#""nodeAttrs": [{"target": ["tag:web"], "attr": ["funnel"]}]"#);
        let ports = "https://tailscale.com/cap/funnel-ports?ports=443,8443,10000";
        assert!(names(&policy, "web").iter().any(|name| name == ports));
        assert!(names(&policy, "db").is_empty());
    }

    #[test]
    fn options_of_the_network_are_attributes() {
        let policy = company(
            r#""randomizeClientPort": true, "disableIPv4": true, "OneCGNATRoute": "mac-never""#,
        );
        assert_eq!(
            names(&policy, "web"),
            ["disable-ipv4", "randomize-client-port"]
        );
        let mut mac = crate::testing::node(1, "mac", "1");
        let macos = Attribute::Text("macos".to_owned());
        mac.attributes.insert("node:os".to_owned(), macos);
        let identity = Identity::of_tags([]);
        assert!(own(&policy, &identity, &mac).contains_key("one-cgnat?v=false"));
    }

    #[test]
    fn peers_hear_of_exit_nodes_that_are_approved() {
        let attrs = r#"["suggest-exit-node", "dns-subdomain-resolve", "x"]"#;
        let policy = company(&format!(
            r#""nodeAttrs": [{{"target": ["tag:exit"], "attr": {attrs}}}]"#
        ));
        let own = attributes(&policy, "exit");
        let mut exit = crate::testing::node(1, "exit", "tag:exit");
        assert_eq!(for_peers(&own, &exit), ["dns-subdomain-resolve"]);
        exit.exit = true;
        let both = ["dns-subdomain-resolve", "suggest-exit-node"];
        assert_eq!(for_peers(&own, &exit), both);
        assert_eq!(for_peers(&CapMap::new(), &exit), ["suggest-exit-node"]);
    }

    #[test]
    fn pools_add_up() {
        let policy = company(
            r#""nodeAttrs": [
                {"target": ["group:dev"], "ipPool": ["100.81.0.0/16"]},
                {"target": ["autogroup:member"], "ipPool": ["100.82.0.0/16", "100.81.0.0/16"]},
            ]"#,
        );
        let users = users();
        let pools = |user: usize| {
            let pools = ip_pools(&policy, &Identity::of_user(&policy, &users[user]));
            pools.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(pools(1), ["100.81.0.0/16", "100.82.0.0/16"]);
        assert_eq!(pools(2), ["100.82.0.0/16", "100.81.0.0/16"]);
        assert!(ip_pools(&policy, &Identity::of_tags(["tag:web"])).is_empty());
    }
}
