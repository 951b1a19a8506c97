//! What people are told and what nodes are told agree, for random policies.

use std::net::IpAddr;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::filter::Rules;
use crate::tailnet::Attribute;

const TCP: u8 = 6;
const UDP: u8 = 17;
const PORTS: [u16; 3] = [22, 53, 80];

/// Sources of rules.
const SOURCES: [&str; 14] = [
    "*",
    "alice@example.com",
    "bob@example.com",
    "group:dev",
    "group:idp",
    "tag:web",
    "tag:db",
    "autogroup:member",
    "autogroup:tagged",
    "autogroup:owner",
    "100.64.0.1",
    "fd7a:115c:a1e0::6",
    "100.64.0.4-100.64.0.6",
    "srv",
];

/// Destinations of rules; `autogroup:self` stands alone, since not all sources go with it.
const DESTINATIONS: [&str; 12] = [
    "*",
    "alice@example.com",
    "group:dev",
    "tag:web",
    "tag:db",
    "tag:router",
    "autogroup:member",
    "autogroup:tagged",
    "100.64.0.5",
    "100.64.0.0/29",
    "lan",
    "10.0.5.0/24",
];

fn quoted(names: &[&str]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
    names.join(", ")
}

fn grant() -> impl Strategy<Value = String> {
    let ports = select(&["*", "22", "tcp:22-53", "udp:53", "tcp:80", "icmp:*"][..]);
    let via = select(
        &[
            "",
            "",
            "",
            ", \"via\": [\"tag:router\"]",
            ", \"via\": [\"tag:exit\"]",
        ][..],
    );
    let posture = select(&["", "", ", \"srcPosture\": [\"posture:linux\"]"][..]);
    let general = (
        subsequence(&SOURCES[..], 1..3),
        subsequence(&DESTINATIONS[..], 1..3),
        ports,
        via,
        posture,
    );
    let general = general.prop_map(|(from, to, ports, via, posture)| {
        let (from, to) = (quoted(&from), quoted(&to));
        format!("{{\"src\": [{from}], \"dst\": [{to}], \"ip\": [\"{ports}\"]{via}{posture}}}")
    });
    let own = r#"{"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["22"]}"#;
    prop_oneof![9 => general, 1 => Just(own.to_owned())]
}

fn policies() -> impl Strategy<Value = String> {
    prop::collection::vec(grant(), 0..5).prop_map(|grants| {
        let postures = r#""postures": {"posture:linux": ["node:os == 'linux'"]}"#;
        format!("{postures}, \"grants\": [{}]", grants.join(", "))
    })
}

/// Two devices run Linux, one behind each kind of owner.
fn lab(sections: &str) -> Network {
    let mut nodes = nodes();
    let linux = Attribute::Text("linux".to_owned());
    nodes[5].attributes.insert("node:os".to_owned(), linux);
    network_of(sections, nodes)
}

/// What the filters of the nodes that the packet comes to say.
fn passes_filters(network: &Network, from: IpAddr, to: IpAddr, protocol: u8, port: u16) -> bool {
    let receives = |node: &&Node| {
        let own = IpAddr::V4(node.v4) == to || IpAddr::V6(node.v6) == to;
        own || node.routes.iter().any(|route| route.contains(&to))
    };
    let mut receivers = network.nodes().filter(receives);
    receivers.any(|node| {
        let rules = network.filter(node.id).rules();
        let rules = Rules::parse(&rules, |_| Vec::new(), &[]).unwrap();
        rules.admit(protocol, from, to, port)
    })
}

/// Does the text of an [`Access`] include this?
fn includes(ports: &str, protocol: u8, port: u16) -> bool {
    let (name, range) = match ports.split_once(':') {
        Some((name, range)) => (Some(name), range),
        None => (None, ports),
    };
    let of_protocol = match name {
        None => true,
        Some("tcp") => protocol == TCP,
        Some("udp") => protocol == UDP,
        Some(_) => false,
    };
    let within = match range.split_once('-') {
        _ if range == "*" => true,
        Some((first, last)) => {
            let (first, last): (u16, u16) = (first.parse().unwrap(), last.parse().unwrap());
            (first..=last).contains(&port)
        }
        None => range.parse() == Ok(port),
    };
    of_protocol && within
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn why_says_what_filters_do(sections in policies()) {
        let network = lab(&sections);
        let v4 = |node: &Node| IpAddr::V4(node.v4);
        let v6 = |node: &Node| IpAddr::V6(node.v6);
        let addresses = |node: &Node| [v4(node), v6(node)];
        let behind: IpAddr = "10.0.5.9".parse().unwrap();
        for from in network.nodes().flat_map(addresses) {
            let own = |to: &IpAddr| network.nodes().any(|it| {
                addresses(it).contains(&from) && addresses(it).contains(to)
            });
            let nodes = network.nodes().flat_map(addresses).filter(|to| !own(to));
            for to in nodes.chain([behind]).filter(|to| to.is_ipv4() == from.is_ipv4()) {
                for (protocol, port) in [(TCP, 22), (TCP, 80), (UDP, 53)] {
                    let name = if protocol == TCP { "tcp" } else { "udp" };
                    let question = format!("[{to}]:{name}:{port}");
                    let answer = why(&network, &from.to_string(), &question).unwrap();
                    let passes = passes_filters(&network, from, to, protocol, port);
                    prop_assert_eq!(answer.allowed, passes, "{}", answer.summary);
                    prop_assert_eq!(answer.allowed, answer.missing.is_empty());
                }
            }
        }
    }

    #[test]
    fn a_difference_is_what_why_says_before_and_after(before in policies(), after in policies()) {
        let (before, after) = (lab(&before), lab(&after));
        let difference = diff(&before, &after);
        let listed = |list: &[Access], from: &str, to: &str, protocol, port| {
            list.iter().any(|access| {
                access.sources.iter().any(|it| it == from)
                    && access.destinations.iter().any(|it| it == to)
                    && includes(&access.ports, protocol, port)
            })
        };
        for from in before.nodes() {
            for to in before.nodes().filter(|to| to.id != from.id) {
                for (protocol, port) in PORTS.iter().flat_map(|port| [(TCP, *port), (UDP, *port)]) {
                    let name = if protocol == TCP { "tcp" } else { "udp" };
                    let question = format!("{}:{name}:{port}", to.name);
                    let may = |network| why(network, &from.name, &question).unwrap().allowed;
                    let (before, after) = (may(&before), may(&after));
                    let gained = listed(&difference.gained, &from.name, &to.name, protocol, port);
                    let lost = listed(&difference.lost, &from.name, &to.name, protocol, port);
                    prop_assert_eq!(gained, !before && after, "{} {}", from.name, question);
                    prop_assert_eq!(lost, before && !after, "{} {}", from.name, question);
                }
            }
        }
    }
}
