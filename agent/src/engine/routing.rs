//! Subnet routes and exit nodes: from preferences to what the data plane is asked for, and what is wrong with
//! them.

use std::time::SystemTime;

use control_proto::netmap::NetMap;
use ipnet::IpNet;
use node_core::{DEFAULT_MTU, Options};

use crate::prefs::Prefs;
use crate::router::forwarding;

/// What the operator chose of the map's routes.
pub(super) fn options(prefs: &Prefs, now: SystemTime) -> Options {
    Options {
        accept_routes: prefs.route_all,
        advertised: prefs.advertise_routes.clone(),
        exit_node: prefs.exit_node(),
        allow_lan_access: prefs.exit_node_allow_lan_access,
        enable_forwarding: prefs.enable_ip_forward,
        ..Options::new(DEFAULT_MTU, now)
    }
}

/// Whether the host has to be made anew for these preferences.
pub(super) fn differ(old: &Prefs, new: &Prefs) -> bool {
    let relevant = |prefs: &Prefs| {
        (
            prefs.enable_ip_forward,
            prefs.no_snat,
            prefs.netfilter_mode,
            prefs.route_all,
            prefs.advertise_routes.clone(),
            prefs.exit_node(),
            prefs.exit_node_allow_lan_access,
        )
    };
    relevant(old) != relevant(new)
}

/// What is wrong, and what to do.
pub(super) fn health(prefs: &Prefs, map: &NetMap) -> Vec<String> {
    let mut health = Vec::new();
    let (served, waiting): (Vec<IpNet>, Vec<IpNet>) = prefs
        .advertise_routes
        .iter()
        .partition(|net| map.node.allowed_ips().contains(net));
    if !waiting.is_empty() {
        health.push(format!(
            "advertised routes wait for an administrator's approval: {}",
            list(&waiting)
        ));
    }
    for switch in forwarding::missing(&served) {
        let name = switch.name();
        health.push(format!(
            "routes are served, but this host does not forward: run `sysctl -w {name}=1`, or let \
             tailrace do it with `tailrace set --enable-ip-forward`"
        ));
    }
    if prefs.advertises_exit_node() && prefs.no_snat {
        health.push(
            "an exit node without source NAT gets no answers from the Internet: run `tailrace set \
             --snat-subnet-routes=true`"
                .to_owned(),
        );
    }
    if let Some(chosen) = prefs.exit_node() {
        let node = map.peers.values().find(|node| chosen.is(node));
        match node {
            None => health.push(
                "the chosen exit node is not in the network map: traffic to the Internet is blocked; \
                 choose another one, or none with `tailrace set --exit-node=`"
                    .to_owned(),
            ),
            Some(node) if !node.allowed_ips().iter().any(|net| net.prefix_len() == 0) => {
                health.push(format!(
                    "{} is no exit node any more: traffic to the Internet is blocked; choose another \
                     one, or none with `tailrace set --exit-node=`",
                    node.label()
                ));
            }
            Some(_) => {}
        }
    }
    let offered = map
        .peers
        .values()
        .any(|node| !node.primary_routes.is_empty());
    if offered && !prefs.route_all {
        health.push(
            "some peers are advertising routes but --accept-routes is false: use them with `tailrace \
             set --accept-routes`"
                .to_owned(),
        );
    }
    health
}

fn list(nets: &[IpNet]) -> String {
    let texts: Vec<String> = nets.iter().map(ToString::to_string).collect();
    texts.join(", ")
}
