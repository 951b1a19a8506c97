//! The server's users and nodes, as policies speak of them.

use std::collections::{BTreeMap, BTreeSet};

use control_proto::tailcfg::Hostinfo;
use ipnet::IpNet;
use policy::tailnet::{self, Attribute};

use super::render::{MapSettings, login_name};
use crate::model::{Node, User};

/// A user as policies know one.
pub(super) fn user(settings: &MapSettings, user: &User) -> tailnet::User {
    tailnet::User {
        id: user.id,
        login: login_name(settings, user),
        role: user.role,
        groups: user.groups.clone(),
    }
}

/// A node as policies know one. `available`: it is online with a key that has not expired, so that
/// routes may be served by it.
pub(super) fn node(node: &Node, available: bool) -> tailnet::Node {
    let (routes, exit) = served(node);
    tailnet::Node {
        id: node.id,
        name: node.name.clone(),
        owner: node.owner(),
        v4: node.addresses.v4,
        v6: node.addresses.v6,
        routes,
        exit,
        online: available,
        attributes: attributes(&node.hostinfo),
    }
}

/// What a node serves: the routes that are approved and advertised, and whether it is an exit.
fn served(node: &Node) -> (BTreeSet<IpNet>, bool) {
    let advertised = node.hostinfo.routable_ips.iter().map(IpNet::trunc);
    let both: BTreeSet<IpNet> = advertised
        .filter(|route| node.approved_routes.contains(route))
        .collect();
    let (exits, routes): (BTreeSet<_>, BTreeSet<_>) =
        both.into_iter().partition(|route| route.prefix_len() == 0);
    (routes, exits.len() == 2)
}

/// What postures may ask for, spelt as Tailscale's documentation does (kb/1288). What a node does
/// not tell is not set.
fn attributes(host: &Hostinfo) -> BTreeMap<String, Attribute> {
    let text = |value: &str| Some(Attribute::Text(value.to_owned())).filter(|_| !value.is_empty());
    // "1.80.2-t0123456789-g…", or with another program's name before it.
    let build = host
        .ipn_version
        .split(['-', '+'])
        .next()
        .unwrap_or_default();
    let version = build.rsplit(' ').next().unwrap_or_default();
    let all = [
        ("os", text(&host.os.to_lowercase())),
        ("osVersion", text(&host.os_version)),
        ("tsVersion", text(version)),
        ("tsReleaseTrack", track(build).and_then(text)),
        ("tsAutoUpdate", Some(Attribute::Flag(host.allows_update))),
        (
            "tsStateEncrypted",
            host.state_encrypted.map(Attribute::Flag),
        ),
    ];
    let set = all
        .into_iter()
        .filter_map(|(name, value)| Some((format!("node:{name}"), value?)));
    set.collect()
}

/// Of Tailscale's own versions, which have nothing before them; odd minor numbers are unstable.
fn track(build: &str) -> Option<&'static str> {
    let mut numbers = build.split('.').map(str::parse::<u32>);
    let (_major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(if minor % 2 == 0 { "stable" } else { "unstable" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tests;

    fn prefixes(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn router(approved: &[&str], advertised: &[&str]) -> Node {
        let mut node = tests::node(1);
        node.approved_routes = prefixes(approved).into_iter().collect();
        node.hostinfo.routable_ips = prefixes(advertised);
        node
    }

    #[test]
    fn a_route_is_served_if_it_is_approved_and_advertised() {
        let (routes, exit) = served(&router(
            &["10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0", "::/0"],
            &["10.1.0.0/16", "192.0.2.0/24", "::/0"],
        ));
        assert_eq!(Vec::from_iter(routes), prefixes(&["10.1.0.0/16"]));
        assert!(!exit, "an exit node serves both families");
        let (routes, exit) = served(&router(&["0.0.0.0/0", "::/0"], &["0.0.0.0/0", "::/0"]));
        assert!(exit && routes.is_empty());
    }

    #[test]
    fn hosts_are_described_in_the_words_of_postures() {
        let host = Hostinfo {
            os: "macOS".to_owned(),
            os_version: "14.4.1".to_owned(),
            ipn_version: "1.81.2-t1a2b3c4d5-g00112233".to_owned(),
            state_encrypted: Some(true),
            ..Hostinfo::default()
        };
        let text = |text: &str| Attribute::Text(text.to_owned());
        let expected = [
            ("node:os", text("macos")),
            ("node:osVersion", text("14.4.1")),
            ("node:tsVersion", text("1.81.2")),
            ("node:tsReleaseTrack", text("unstable")),
            ("node:tsAutoUpdate", Attribute::Flag(false)),
            ("node:tsStateEncrypted", Attribute::Flag(true)),
        ];
        let expected = expected
            .map(|(name, value)| (name.to_owned(), value))
            .into();
        assert_eq!(attributes(&host), expected);
    }

    #[test]
    fn what_a_host_does_not_tell_is_not_set() {
        let host = Hostinfo {
            ipn_version: "tailrace 0.1.0".to_owned(),
            ..Hostinfo::default()
        };
        let names: Vec<_> = attributes(&host).into_keys().collect();
        assert_eq!(names, ["node:tsAutoUpdate", "node:tsVersion"]);
    }
}
