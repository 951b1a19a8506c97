//! From what is known to the page.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use dataplane::{Count, Direction, DropReason, Origin};
use ipnet::IpNet;
use keys::NodePublic;

use super::families as f;
use super::page::{Family, Page};
use crate::engine::Snapshot;
use crate::localapi::BackendState;
use crate::net::filter::direction_name;
use crate::net::{
    Carried, CarrierStatus, FilterPlace, Measures, NetStatus, PathChange, TrafficPath,
};

/// Routes, rules and regions with series of their own; the rest of each is summed up as `other`.
const MAX_ROUTES: usize = 128;
const MAX_RULES: usize = 128;
const MAX_REGIONS: usize = 64;
/// One number of a traffic.
type Read = fn(&Carried) -> u64;
/// What stands for those without series of their own.
const OTHER: &str = "other";

/// Writes the metrics of a node, and of its data plane while there is one, in Prometheus' text format.
#[must_use]
pub fn render(snapshot: &Snapshot, measures: Option<&Measures>) -> String {
    let mut page = Page::default();
    node(&mut page, snapshot);
    if let Some(measures) = measures {
        let status = &measures.status;
        page.family(&f::ENGINE)
            .add(&[status.engine.as_str(), &status.device], 1);
        if let Some(carrier) = &status.carrier {
            tunnel(&mut page, carrier);
        }
        filter(&mut page, measures);
        forwarding(&mut page, measures);
        port(&mut page, status);
        relays(&mut page, status);
        paths(&mut page, measures);
        peers(&mut page, snapshot, measures);
        maps(&mut page, measures);
    }
    upstream(&mut page, snapshot, measures);
    page.into_text()
}

fn node(page: &mut Page, snapshot: &Snapshot) {
    page.family(&f::BUILD_INFO).add(&[crate::VERSION], 1);
    let mut states = page.family(&f::STATE);
    for known in [
        BackendState::NoState,
        BackendState::NeedsLogin,
        BackendState::NeedsMachineAuth,
        BackendState::Stopped,
        BackendState::Starting,
        BackendState::Running,
    ] {
        states.add(&[known.as_str()], u8::from(known == snapshot.state));
    }
    let connected = u8::from(snapshot.control_connected);
    page.single(&f::CONTROL_CONNECTED, connected);
    page.single(&f::HEALTH_WARNINGS, snapshot.health.len());
    if let Some(age) = snapshot.map_age {
        page.single(&f::MAP_AGE, age.as_secs());
    }
    page.single(&f::MAP_STALE, u8::from(snapshot.map_stale));
}

/// The embedded tunnel: what the kernel does for it, and what it carried.
fn tunnel(page: &mut Page, carrier: &CarrierStatus) {
    let mut offloads = page.family(&f::TUNNEL_OFFLOAD);
    for state in &carrier.offloads {
        offloads.add(&[state.offload.label()], u8::from(state.off.is_none()));
    }
    let counters = &carrier.counters;
    let mut packets = page.family(&f::TUNNEL_PACKETS);
    packets.add(&["rx"], counters.received);
    packets.add(&["tx"], counters.sent);
    let mut calls = page.family(&f::TUNNEL_SUPER_PACKETS);
    calls.add(&["rx"], counters.written);
    calls.add(&["tx"], counters.read);
    let mut dropped = page.family(&f::TUNNEL_DROPPED);
    for (reason, count) in [
        ("no_peer", counters.no_peer),
        ("no_endpoint", counters.no_endpoint),
        ("not_allowed", counters.not_allowed),
        ("malformed", counters.malformed),
        ("unknown", counters.unknown),
        ("refused", counters.refused),
        ("unsent", counters.unsent),
        ("unwritten", counters.unwritten),
    ] {
        dropped.add(&[reason], count);
    }
}

/// The packet filter: where it is, what it dropped, what its rules admitted.
fn filter(page: &mut Page, measures: &Measures) {
    let filter = &measures.status.filter;
    let mut places = page.family(&f::FILTER);
    places.add(&["ebpf"], u8::from(filter.place == FilterPlace::Ebpf));
    let userspace = matches!(filter.place, FilterPlace::Userspace(_));
    places.add(&["userspace"], u8::from(userspace));
    page.single(&f::FILTER_RULES, filter.rules);
    let mut drops = page.family(&f::FILTER_DROPPED);
    for ((direction, reason), count) in &filter.drops {
        drops.add(&[direction_name(*direction), reason.name()], count.packets);
    }
    let mut rules = Vec::new();
    let mut other = Count::default();
    for (at, (rule, count)) in measures.rules.iter().enumerate() {
        if at < MAX_RULES {
            rules.push((rule.to_string(), *count));
        } else {
            other += *count;
        }
    }
    if measures.rules.len() > MAX_RULES {
        rules.push((OTHER.to_owned(), other));
    }
    let mut packets = page.family(&f::RULE_PACKETS);
    for (rule, count) in &rules {
        packets.add(&[rule], count.packets);
    }
    let mut bytes = page.family(&f::RULE_BYTES);
    for (rule, count) in &rules {
        bytes.add(&[rule], count.bytes);
    }
}

/// What this node forwards for others, and what it sends by way of them.
fn forwarding(page: &mut Page, measures: &Measures) {
    let forwarded = &measures.status.forwarded;
    let from = |origin: &Origin| match origin {
        Origin::Overlay => "peer",
        Origin::Lan => "lan",
    };
    let counted = || forwarded.iter().filter(|(_, count)| count.packets > 0);
    let mut packets = page.family(&f::FORWARDED_PACKETS);
    for ((origin, outcome), count) in counted() {
        packets.add(&[from(origin), outcome.name()], count.packets);
    }
    let mut bytes = page.family(&f::FORWARDED_BYTES);
    for ((origin, outcome), count) in counted() {
        bytes.add(&[from(origin), outcome.name()], count.bytes);
    }
    page.single(&f::OFFLOADED_FLOWS, measures.offloaded);

    let roles = [
        ("used", &measures.used_routes),
        ("served", &measures.served_routes),
    ];
    let (mut routes, mut exits) = (Vec::new(), Vec::new());
    for (role, carried) in roles {
        let (defaults, subnets): (Vec<_>, Vec<_>) =
            carried.iter().partition(|(net, _)| net.prefix_len() == 0);
        routes.extend(capped_routes(&subnets).map(|(route, carried)| (route, role, carried)));
        if !defaults.is_empty() {
            exits.push((role, sum(&defaults)));
        }
    }
    two_ways(page, [&f::ROUTE_PACKETS, &f::ROUTE_BYTES], || {
        let routes = routes.iter();
        routes.map(|(route, role, carried)| (vec![route.as_str(), *role], *carried))
    });
    two_ways(page, [&f::EXIT_PACKETS, &f::EXIT_BYTES], || {
        let exits = exits.iter();
        exits.map(|(role, carried)| (vec![*role], *carried))
    });
}

fn capped_routes(routes: &[(&IpNet, &Carried)]) -> impl Iterator<Item = (String, Carried)> {
    let (own, rest) = routes.split_at(routes.len().min(MAX_ROUTES));
    let own: Vec<_> = own
        .iter()
        .map(|(net, carried)| (net.to_string(), **carried))
        .collect();
    let rest = (!rest.is_empty()).then(|| (OTHER.to_owned(), sum(rest)));
    own.into_iter().chain(rest)
}

fn sum<K>(carried: &[(K, &Carried)]) -> Carried {
    carried
        .iter()
        .fold(Carried::default(), |mut sum, (_, one)| {
            sum += **one;
            sum
        })
}

/// Writes a family of packets and one of bytes, both with a last label for the direction.
fn two_ways<'a, I: Iterator<Item = (Vec<&'a str>, Carried)>>(
    page: &mut Page,
    [packets, bytes]: [&'static Family; 2],
    all: impl Fn() -> I,
) {
    for (family, number) in [
        (packets, (|count: Count| count.packets) as fn(Count) -> u64),
        (bytes, |count| count.bytes),
    ] {
        let mut samples = page.family(family);
        for (labels, Carried { rx, tx }) in all() {
            for (direction, count) in [("rx", rx), ("tx", tx)] {
                samples.add(&[labels.as_slice(), &[direction]].concat(), number(count));
            }
        }
    }
}

/// The WireGuard port: its shields, what led to nothing, the router's mapping.
fn port(page: &mut Page, status: &NetStatus) {
    let shield = &status.shield;
    if !shield.devices.is_empty() {
        page.single(&f::SHIELD_FLOODED, u8::from(shield.flooded));
        let mut initiations = page.family(&f::SHIELD_INITIATIONS);
        for (reason, count) in &shield.initiations {
            initiations.add(&[reason.name()], count);
        }
    }
    let mut junk = page.family(&f::JUNK);
    for (reason, _, count) in status.junk.reasons() {
        junk.add(&[reason], count);
    }
    junk.add(&["port_mapping"], status.port_mapping.ignored);
    let mapped = u8::from(status.port_mapping.external.is_some());
    page.single(&f::PORT_MAPPED, mapped);
}

fn relays(page: &mut Page, status: &NetStatus) {
    // A map may call two regions alike.
    let mut relays: BTreeMap<&str, (bool, u64)> = BTreeMap::new();
    for relay in status.relays.iter().take(MAX_REGIONS) {
        let (connected, dropped) = relays.entry(&relay.code).or_default();
        *connected |= relay.connected;
        *dropped += relay.dropped;
    }
    let mut all = page.family(&f::DERP_CONNECTED);
    for (code, (connected, _)) in &relays {
        all.add(&[code], u8::from(*connected));
    }
    if let Some(home) = &status.home {
        page.family(&f::DERP_HOME).add(&[&home.code], 1);
    }
    let mut all = page.family(&f::DERP_DROPPED);
    for (code, (_, dropped)) in &relays {
        all.add(&[code], dropped);
    }
}

fn path_name(path: TrafficPath) -> &'static str {
    match path {
        TrafficPath::DirectIpv4 => "direct_ipv4",
        TrafficPath::DirectIpv6 => "direct_ipv6",
        TrafficPath::Relay(_) => "relay",
    }
}

fn paths(page: &mut Page, measures: &Measures) {
    let direct = [TrafficPath::DirectIpv4, TrafficPath::DirectIpv6];
    let mut all = BTreeMap::from(direct.map(|path| ((path_name(path), ""), Carried::default())));
    for (path, carried) in &measures.paths {
        let region = match path {
            TrafficPath::Relay(region) => {
                let code = measures.regions.get(region);
                let code = code.filter(|_| all.len() < MAX_REGIONS + direct.len());
                code.map_or(OTHER, String::as_str)
            }
            TrafficPath::DirectIpv4 | TrafficPath::DirectIpv6 => "",
        };
        *all.entry((path_name(*path), region)).or_default() += *carried;
    }
    two_ways(page, [&f::PATH_PACKETS, &f::PATH_BYTES], || {
        let all = all.iter();
        all.map(|((path, region), carried)| (vec![*path, *region], *carried))
    });
    let mut changes = page.family(&f::PATH_CHANGES);
    for change in PathChange::ALL {
        let count = measures.path_changes.get(&change).copied();
        changes.add(&[change.name()], count.unwrap_or_default());
    }
}

/// One series of the families of peers.
#[derive(Default)]
struct PeerSeries {
    wireguard: [u64; 2],
    overlay: Option<Carried>,
    handshake_age: Option<f64>,
    path: Option<(&'static str, String)>,
}

fn peers(page: &mut Page, snapshot: &Snapshot, measures: &Measures) {
    let now = SystemTime::now();
    let mut series: BTreeMap<String, PeerSeries> = BTreeMap::new();
    let names = ["direct_ipv4", "direct_ipv6", "relay", "idle"];
    let mut by_path = BTreeMap::from(names.map(|path| (path, 0u64)));
    for (key, peer) in &measures.status.peers {
        let path = match peer.cur_addr {
            _ if !peer.active => "idle",
            Some(endpoint) => path_name(TrafficPath::direct(endpoint)),
            None => "relay",
        };
        *by_path.entry(path).or_default() += 1;
        let own = shown(snapshot, &measures.shown, key);
        let one = series.entry(own.clone().unwrap_or_else(|| OTHER.to_owned()));
        let one = one.or_default();
        one.wireguard[0] += peer.rx_bytes;
        one.wireguard[1] += peer.tx_bytes;
        if let Some(overlay) = peer.overlay {
            *one.overlay.get_or_insert_default() += overlay.into();
        }
        if own.is_none() {
            continue;
        }
        let age = peer
            .last_handshake
            .and_then(|at| now.duration_since(at).ok());
        one.handshake_age = age.map(|age| age.as_secs_f64()).or(one.handshake_age);
        if peer.active {
            let region = if path == "relay" {
                peer.relay.clone()
            } else {
                String::new()
            };
            one.path = Some((path, region));
        }
    }
    let mut counts = page.family(&f::PEERS);
    for (path, count) in by_path {
        counts.add(&[path], count);
    }
    let mut bytes = page.family(&f::PEER_BYTES);
    for (name, one) in &series {
        for (direction, count) in ["rx", "tx"].into_iter().zip(one.wireguard) {
            bytes.add(&[name, direction], count);
        }
    }
    two_ways(page, [&f::PEER_PACKETS, &f::PEER_OVERLAY_BYTES], || {
        let counted = series.iter();
        counted.filter_map(|(name, one)| Some((vec![name.as_str()], one.overlay?)))
    });
    let mut ages = page.family(&f::PEER_HANDSHAKE_AGE);
    for (name, one) in &series {
        if let Some(age) = one.handshake_age {
            ages.add(&[name], format_args!("{age:.3}"));
        }
    }
    let mut ways = page.family(&f::PEER_PATH);
    for (name, one) in &series {
        if let Some((path, region)) = &one.path {
            ways.add(&[name, path, region], 1);
        }
    }
}

/// The name of a peer that has series of its own.
fn shown(snapshot: &Snapshot, shown: &BTreeSet<NodePublic>, key: &NodePublic) -> Option<String> {
    shown
        .contains(key)
        .then(|| snapshot.peer_name(key))
        .flatten()
}

fn maps(page: &mut Page, measures: &Measures) {
    let maps = &measures.maps;
    let entries = || {
        maps.iter()
            .filter_map(|(name, map)| Some((name, map.entries?)))
    };
    let mut used = page.family(&f::MAP_ENTRIES);
    for (name, (count, _)) in entries() {
        used.add(&[name], count);
    }
    let mut most = page.family(&f::MAP_MAX_ENTRIES);
    for (name, (_, count)) in entries() {
        most.add(&[name], count);
    }
    let mut bytes = page.family(&f::MAP_BYTES);
    for (name, map) in maps {
        bytes.add(&[name], map.bytes);
    }
}

/// What upstream's clients show, by their names and with their meaning.
fn upstream(page: &mut Page, snapshot: &Snapshot, measures: Option<&Measures>) {
    if let Some(measures) = measures {
        let mut paths = BTreeMap::from(
            [
                "direct_ipv4",
                "direct_ipv6",
                "derp",
                "peer_relay_ipv4",
                "peer_relay_ipv6",
            ]
            .map(|path| (path, Carried::default())),
        );
        for (path, carried) in &measures.paths {
            let name = match path {
                TrafficPath::Relay(_) => "derp",
                direct => path_name(*direct),
            };
            *paths.entry(name).or_default() += *carried;
        }
        let read: [(&'static Family, Read); 4] = [
            (&f::INBOUND_PACKETS, |carried| carried.rx.packets),
            (&f::INBOUND_BYTES, |carried| carried.rx.bytes),
            (&f::OUTBOUND_PACKETS, |carried| carried.tx.packets),
            (&f::OUTBOUND_BYTES, |carried| carried.tx.bytes),
        ];
        for (family, number) in read {
            let mut samples = page.family(family);
            for (path, carried) in &paths {
                samples.add(&[path], number(carried));
            }
        }
        let status = &measures.status;
        let mut dropped =
            BTreeMap::from([((Direction::In, "acl"), 0), ((Direction::Out, "error"), 0)]);
        for ((direction, reason), count) in &status.filter.drops {
            let reason = upstream_reason(*direction, *reason);
            *dropped.entry((*direction, reason)).or_default() += count.packets;
        }
        let unsent = status.relays.iter().map(|relay| relay.dropped).sum::<u64>();
        *dropped.entry((Direction::Out, "error")).or_default() += unsent;
        for (family, way) in [
            (&f::INBOUND_DROPPED, Direction::In),
            (&f::OUTBOUND_DROPPED, Direction::Out),
        ] {
            let mut samples = page.family(family);
            for ((direction, reason), count) in &dropped {
                if *direction == way {
                    samples.add(&[reason], count);
                }
            }
        }
    }
    let is_subnet = |net: &&IpNet| net.prefix_len() != 0;
    let advertised = &snapshot.prefs.advertise_routes;
    page.single(
        &f::ADVERTISED_ROUTES,
        advertised.iter().filter(is_subnet).count(),
    );
    let own = snapshot.map.as_ref().map(|map| &map.node);
    let approved = own.map_or(0, |node| {
        let nets = node.allowed_ips().iter().filter(is_subnet);
        nets.filter(|net| !node.addresses.contains(*net)).count()
    });
    page.single(&f::APPROVED_ROUTES, approved);
    page.family(&f::HEALTH_MESSAGES)
        .add(&["warning"], snapshot.health.len());
    let home = measures.and_then(|measures| measures.status.home.as_ref());
    page.single(&f::HOME_DERP, home.map_or(0, |home| home.region.0));
}

/// Upstream calls everything that its filter drops on the way in `acl`, and tells apart what it drops on the way
/// out.
fn upstream_reason(direction: Direction, reason: DropReason) -> &'static str {
    match (direction, reason) {
        (Direction::In, _) => "acl",
        (_, DropReason::Multicast) => "multicast",
        (_, DropReason::LinkLocal) => "link_local_unicast",
        (_, DropReason::Truncated | DropReason::TransportCut) => "too_short",
        (_, DropReason::Fragment | DropReason::FragmentTiny) => "fragment",
        (_, DropReason::NotIp | DropReason::ExtensionHeader | DropReason::BadProtocol) => {
            "unknown_protocol"
        }
        (Direction::Out, _) => "acl",
    }
}

#[cfg(test)]
mod tests;
