//! What nodes of a small company are told.
//!
//! Filters are written `SOURCES > TARGETS PROTOCOLS`, with a node's name for both of its addresses
//! (`web.4` for one of them) and `nodes` for what `*` stands for beside the subnets.

mod filters;
mod random;
mod updates;
mod views;

use std::sync::Arc;

use ipnet::IpNet;

use super::Network;
use crate::file::Policy;
use crate::tailnet::{Node, NodeId};
use crate::testing;

/// The company under a policy with these sections.
fn company(sections: &str) -> Network {
    network(testing::company(sections))
}

fn network(policy: Arc<Policy>) -> Network {
    Network::new(policy, testing::users(), testing::nodes())
}

/// One grant, with `ip` unless it has something else.
fn grant(fields: &str) -> Network {
    let ip = if fields.contains("\"ip\"") || fields.contains("\"app\"") {
        ""
    } else {
        r#", "ip": ["*"]"#
    };
    company(&format!(r#""grants": [{{{fields}{ip}}}]"#))
}

/// From some to others, on all ports.
fn allow(from: &str, to: &str) -> Network {
    grant(&format!(r#""src": ["{from}"], "dst": ["{to}"]"#))
}

fn id(network: &Network, name: &str) -> NodeId {
    let found = network.nodes().find(|node| node.name == name);
    found.unwrap_or_else(|| panic!("no node {name}")).id
}

fn node(network: &Network, name: &str) -> Node {
    network.node(id(network, name)).cloned().unwrap()
}

/// The filter of a node.
fn filter(network: &Network, name: &str) -> Vec<String> {
    let rules = network.filter(id(network, name)).rules();
    let rule = |rule: &control_proto::tailcfg::FilterRule| {
        let sources = named(network, &rule.src_ips);
        if !rule.cap_grant.is_empty() {
            let grant = |it: &control_proto::tailcfg::CapGrant| {
                let to: Vec<_> = it.dsts.iter().map(short).collect();
                let names: Vec<_> = it.cap_map.keys().map(String::as_str).collect();
                format!("{} on {}", names.join("+"), named(network, &to))
            };
            let grants: Vec<_> = rule.cap_grant.iter().map(grant).collect();
            return format!("{sources} > {}", grants.join(", "));
        }
        let mut by_ports: Vec<(String, Vec<String>)> = Vec::new();
        for target in &rule.dst_ports {
            let ports = match (target.ports.first, target.ports.last) {
                (0, u16::MAX) => String::new(),
                (first, last) if first == last => format!(":{first}"),
                (first, last) => format!(":{first}-{last}"),
            };
            match by_ports.iter_mut().find(|it| it.0 == ports) {
                Some((_, addresses)) => addresses.push(target.ip.clone()),
                None => by_ports.push((ports, vec![target.ip.clone()])),
            }
        }
        let targets = by_ports.iter();
        let targets = targets.map(|(ports, to)| format!("{}{ports}", named(network, to)));
        let protocols: Vec<_> = rule.ip_proto.iter().map(i32::to_string).collect();
        let text = format!(
            "{sources} > {} {}",
            targets.collect::<Vec<_>>().join(" "),
            protocols.join("+")
        );
        text.trim().to_owned()
    };
    rules.iter().map(rule).collect()
}

fn short(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}

/// Addresses by name, separated by spaces; nodes first, in their order.
fn named(network: &Network, addresses: &[String]) -> String {
    let mut rest = addresses.to_vec();
    let mut take = |wanted: &[String]| {
        let has_all = wanted.iter().all(|it| rest.contains(it));
        for it in wanted.iter().filter(|_| has_all) {
            if let Some(at) = rest.iter().position(|other| other == it) {
                rest.remove(at);
            }
        }
        has_all
    };
    let mut names = Vec::new();
    if take(&super::select::EVERY_NODE.map(str::to_owned)) {
        names.push("nodes".to_owned());
    }
    for node in network.nodes() {
        let (v4, v6) = (node.v4.to_string(), node.v6.to_string());
        while take(&[v4.clone(), v6.clone()]) {
            names.push(node.name.clone());
        }
        if take(&[v4]) {
            names.push(format!("{}.4", node.name));
        }
        if take(&[v6]) {
            names.push(format!("{}.6", node.name));
        }
    }
    names.extend(rest);
    names.join(" ")
}

/// The nodes that a node sees, by number.
fn peers(network: &Network, name: &str) -> String {
    let peers = network.peers(id(network, name));
    let names = peers
        .iter()
        .filter_map(|id| network.node(*id))
        .map(|node| node.name.as_str());
    names.collect::<Vec<_>>().join(" ")
}

/// The routes that a node may use through another.
fn routes(network: &Network, viewer: &str, router: &str) -> String {
    let view = network.peer_view(id(network, viewer), id(network, router));
    view.routes
        .iter()
        .map(IpNet::to_string)
        .collect::<Vec<_>>()
        .join(" ")
}
