//! From a [`Snapshot`] to the answers of the local API. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use control_proto::Timestamp;
use control_proto::netmap::NetMap;
use control_proto::tailcfg::{Node, Prefix};
use keys::NodePublic;

use super::types::{
    BackendState, ExitNodeStatus, OffloadStatus, OverlayTraffic, PeerStatus, RelayStatus, Status,
    TailnetStatus, TailraceStatus, WhoIs,
};
use crate::engine::Snapshot;
use crate::net::filter::direction_name;
use crate::net::{self, FilterPlace, FilterStatus, ShieldStatus};
use dataplane::ShieldReason;

/// Builds the answer to `GET status`.
#[must_use]
pub fn status(snapshot: &Snapshot, with_peers: bool) -> Status {
    let map = snapshot.map.as_deref();
    let up = snapshot.state == BackendState::Running;
    Status {
        version: crate::VERSION.to_owned(),
        tun: true,
        backend_state: snapshot.state,
        have_node_key: true,
        auth_url: snapshot.auth_url.clone().unwrap_or_default(),
        tailscale_ips: map.map(|map| addresses(&map.node)),
        self_node: self_status(snapshot, map, up),
        exit_node_status: map.and_then(|map| {
            let mut peers = map.peers.values();
            let node = peers.find(|node| snapshot.is_exit_node(node))?;
            Some(ExitNodeStatus {
                id: node.stable_id.to_string(),
                online: node.online.unwrap_or(false),
                tailscale_ips: node.addresses.iter().map(ToString::to_string).collect(),
            })
        }),
        health: snapshot.health.clone(),
        magic_dns_suffix: map.map_or("", NetMap::magic_dns_suffix).to_owned(),
        current_tailnet: map.map(|map| TailnetStatus {
            name: map.domain.clone(),
            magic_dns_suffix: map.magic_dns_suffix().to_owned(),
            magic_dns_enabled: false,
        }),
        peer: with_peers.then(|| {
            let peers = map.into_iter().flat_map(|map| map.peers.values());
            peers
                .map(|node| (node.key, peer_status(snapshot, node)))
                .collect()
        }),
        user: map.map(users),
        tailrace: own_status(snapshot),
        ..Status::default()
    }
}

/// Answers `GET whois`: the node behind `ip`, `ip:port` or a node key.
#[must_use]
pub fn whois(snapshot: &Snapshot, address: &str) -> Option<WhoIs> {
    let map = snapshot.map.as_deref()?;
    let node = if let Ok(key) = address.parse::<NodePublic>() {
        if map.node.key == key {
            Some(&map.node)
        } else {
            map.peer_by_key(&key)
        }
    } else {
        let ip = match address.parse::<std::net::SocketAddr>() {
            Ok(address) => address.ip(),
            Err(_) => address
                .trim_start_matches('[')
                .trim_end_matches(']')
                .parse::<IpAddr>()
                .ok()?,
        };
        snapshot.node_by_ip(ip)
    }?;
    Some(WhoIs {
        node: serde_json::to_value(node).ok()?,
        user_profile: serde_json::to_value(map.owner(node).cloned().unwrap_or_default()).ok()?,
        cap_map: None,
    })
}

fn self_status(snapshot: &Snapshot, map: Option<&NetMap>, up: bool) -> PeerStatus {
    let home = snapshot.net.as_ref().and_then(|net| net.home.as_ref());
    let relay = home.map(|home| home.code.clone()).unwrap_or_default();
    match map {
        Some(map) => PeerStatus {
            // Control need not tell a node what it runs on.
            os: "linux".to_owned(),
            online: snapshot.control_connected,
            relay,
            in_engine: up,
            in_magic_sock: up,
            ..node_status(snapshot, &map.node)
        },
        None => PeerStatus {
            public_key: snapshot.node_key,
            os: "linux".to_owned(),
            relay,
            created: Timestamp::ZERO.to_string(),
            last_write: Timestamp::ZERO.to_string(),
            last_seen: Timestamp::ZERO.to_string(),
            last_handshake: Timestamp::ZERO.to_string(),
            ..PeerStatus::default()
        },
    }
}

fn peer_status(snapshot: &Snapshot, node: &Node) -> PeerStatus {
    let live = snapshot
        .net
        .as_ref()
        .and_then(|net| net.peers.get(&node.key));
    let base = node_status(snapshot, node);
    let Some(live) = live else { return base };
    PeerStatus {
        cur_addr: live
            .cur_addr
            .map(|address| address.to_string())
            .unwrap_or_default(),
        relay: live.relay.clone(),
        rx_bytes: live.rx_bytes,
        tx_bytes: live.tx_bytes,
        last_handshake: live
            .last_handshake
            .map_or(Timestamp::ZERO, Timestamp::from)
            .to_string(),
        active: live.active,
        mtu: Some(live.mtu),
        overlay: live.overlay.map(|counted| OverlayTraffic {
            overlay_rx_packets: counted.rx_packets,
            overlay_rx_bytes: counted.rx_bytes,
            overlay_tx_packets: counted.tx_packets,
            overlay_tx_bytes: counted.tx_bytes,
        }),
        in_magic_sock: true,
        in_engine: true,
        ..base
    }
}

/// What the map alone says of a node.
fn node_status(snapshot: &Snapshot, node: &Node) -> PeerStatus {
    let online = node.online.unwrap_or(false);
    PeerStatus {
        id: node.stable_id.to_string(),
        public_key: node.key,
        host_name: node.hostinfo.hostname.clone(),
        dns_name: node.name.clone(),
        os: node.hostinfo.os.clone(),
        user_id: node.user.0,
        tailscale_ips: Some(addresses(node)),
        allowed_ips: Some(texts(node.allowed_ips())),
        tags: (!node.tags.is_empty()).then(|| node.tags.clone()),
        primary_routes: (!node.primary_routes.is_empty()).then(|| texts(&node.primary_routes)),
        addrs: (!node.endpoints.is_empty())
            .then(|| node.endpoints.iter().map(ToString::to_string).collect()),
        relay: relay_code(snapshot, node),
        created: node.created.to_string(),
        last_write: Timestamp::ZERO.to_string(),
        last_seen: if online { None } else { node.last_seen }
            .unwrap_or_default()
            .to_string(),
        last_handshake: Timestamp::ZERO.to_string(),
        online,
        exit_node: snapshot.is_exit_node(node),
        exit_node_option: node
            .allowed_ips()
            .iter()
            .any(|prefix| prefix.prefix_len() == 0),
        cap_map: (!node.cap_map.is_empty())
            .then(|| serde_json::to_value(&node.cap_map).ok())
            .flatten(),
        in_network_map: true,
        expired: node.is_expired(Timestamp::from(snapshot.now)),
        key_expiry: node.key_expiry().map(|expiry| expiry.to_string()),
        ..PeerStatus::default()
    }
}

fn own_status(snapshot: &Snapshot) -> TailraceStatus {
    let mut ours = TailraceStatus {
        advertised_routes: texts(&snapshot.prefs.advertise_routes),
        approved_routes: snapshot.map.as_ref().map_or_else(Vec::new, |map| {
            let routes = snapshot.prefs.advertise_routes.iter();
            let approved = routes.filter(|net| map.node.allowed_ips().contains(net));
            approved.map(ToString::to_string).collect()
        }),
        control_connected: snapshot.control_connected,
        control_url: snapshot.prefs.control_url.clone(),
        map_stale: snapshot.map_stale,
        map_age_seconds: snapshot.map_age.map(|age| age.as_secs()),
        ..TailraceStatus::default()
    };
    if let Some(net) = &snapshot.net {
        net.engine.as_str().clone_into(&mut ours.engine);
        ours.engine_reason.clone_from(&net.engine_reason);
        if net.device_up {
            ours.device.clone_from(&net.device);
        }
        let offloads = net.carrier.iter().flat_map(|carrier| &carrier.offloads);
        ours.offloads = offloads.map(offload_status).collect();
        ours.port = net.port;
        filter_status(&mut ours, &net.filter);
        shield_status(&mut ours, &net.shield);
        ours.home_relay = net
            .home
            .as_ref()
            .map(|home| home.code.clone())
            .unwrap_or_default();
        ours.relays = net.relays.iter().map(relay_status).collect();
    }
    ours
}

fn filter_status(ours: &mut TailraceStatus, filter: &FilterStatus) {
    let (place, reason) = match &filter.place {
        FilterPlace::None => ("", ""),
        FilterPlace::Ebpf => ("ebpf", ""),
        FilterPlace::Userspace(reason) => ("userspace", reason.as_str()),
    };
    place.clone_into(&mut ours.filter);
    reason.clone_into(&mut ours.filter_reason);
    ours.filter_rules = filter.rules;
    ours.filter_serial = filter.serial;
    for ((direction, reason), count) in &filter.drops {
        if count.packets > 0 {
            let by_direction = ours.drops.entry(reason.name().to_owned()).or_default();
            by_direction.insert(direction_name(*direction).to_owned(), count.packets);
        }
    }
}

fn shield_status(ours: &mut TailraceStatus, shield: &ShieldStatus) {
    shield.mode.as_str().clone_into(&mut ours.shield);
    ours.shield_devices.clone_from(&shield.devices);
    ours.shield_flooded = shield.flooded;
    let dropped = shield.initiations.get(&ShieldReason::Dropped);
    ours.shield_dropped = dropped.copied().unwrap_or_default();
}

fn offload_status(state: &tunnel::OffloadState) -> OffloadStatus {
    OffloadStatus {
        name: state.offload.name().to_owned(),
        in_use: state.off.is_none(),
        reason: state.off.clone().unwrap_or_default(),
        untried: state.untried.clone().unwrap_or_default(),
    }
}

fn relay_status(relay: &net::RelayStatus) -> RelayStatus {
    RelayStatus {
        region_id: u32::from(relay.region.0),
        region_code: relay.code.clone(),
        connected: relay.connected,
        problem: relay.problem.clone(),
    }
}

/// Code of a node's home relay, as the map has it.
fn relay_code(snapshot: &Snapshot, node: &Node) -> String {
    let region = node
        .home_derp()
        .and_then(|home| snapshot.map.as_ref()?.derp_map.region(home));
    region
        .map(|region| region.region_code.clone())
        .unwrap_or_default()
}

fn users(map: &NetMap) -> BTreeMap<String, serde_json::Value> {
    map.user_profiles
        .iter()
        .filter_map(|(id, profile)| Some((id.to_string(), serde_json::to_value(profile).ok()?)))
        .collect()
}

fn addresses(node: &Node) -> Vec<String> {
    node.addresses
        .iter()
        .map(|prefix| prefix.addr().to_string())
        .collect()
}

fn texts(prefixes: &[Prefix]) -> Vec<String> {
    prefixes.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use control_proto::tailcfg::{NodeId, StableNodeId, UserId, UserProfile};

    use super::*;
    use crate::prefs::Prefs;

    fn node(id: i64, address: &str) -> Node {
        Node {
            id: NodeId(id),
            stable_id: StableNodeId(format!("n{id}")),
            name: format!("node{id}.tail.example."),
            user: UserId(7),
            key: NodePublic::from_bytes([id as u8; 32]),
            addresses: vec![address.parse().unwrap()],
            online: Some(true),
            ..Node::default()
        }
    }

    fn snapshot() -> Snapshot {
        let mut map = NetMap {
            node: node(1, "100.64.0.1/32"),
            ..NetMap::default()
        };
        map.peers.insert(NodeId(2), node(2, "100.64.0.2/32"));
        let profile = UserProfile {
            id: UserId(7),
            login_name: "ada@example".into(),
            ..UserProfile::default()
        };
        map.user_profiles.insert(UserId(7), profile);
        Snapshot {
            state: BackendState::Running,
            prefs: Prefs::default(),
            auth_url: None,
            health: Vec::new(),
            node_key: map.node.key,
            map: Some(Arc::new(map)),
            net: None,
            control_connected: true,
            map_stale: false,
            map_age: None,
            now: SystemTime::now(),
        }
    }

    #[test]
    fn the_names_are_upstreams() {
        let value = serde_json::to_value(status(&snapshot(), true)).unwrap();
        for name in [
            "Version",
            "TUN",
            "BackendState",
            "AuthURL",
            "TailscaleIPs",
            "Self",
            "Health",
            "MagicDNSSuffix",
            "CurrentTailnet",
            "CertDomains",
            "Peer",
            "User",
            "ClientVersion",
        ] {
            assert!(value.get(name).is_some(), "{name} is missing");
        }
        let key = NodePublic::from_bytes([2; 32]).to_string();
        let peer = &value["Peer"][&key];
        for name in [
            "ID",
            "PublicKey",
            "HostName",
            "DNSName",
            "OS",
            "UserID",
            "TailscaleIPs",
            "AllowedIPs",
            "Addrs",
            "CurAddr",
            "Relay",
            "PeerRelay",
            "RxBytes",
            "TxBytes",
            "Created",
            "LastWrite",
            "LastSeen",
            "LastHandshake",
            "Online",
            "ExitNode",
            "ExitNodeOption",
            "Active",
            "PeerAPIURL",
            "InNetworkMap",
            "InMagicSock",
            "InEngine",
        ] {
            assert!(peer.get(name).is_some(), "Peer.{name} is missing");
        }
        assert_eq!(value["TailscaleIPs"][0], "100.64.0.1");
        assert_eq!(peer["AllowedIPs"][0], "100.64.0.2/32");
        assert_eq!(peer["LastHandshake"], "0001-01-01T00:00:00Z");
        assert_eq!(value["User"]["7"]["LoginName"], "ada@example");
        assert_eq!(value["MagicDNSSuffix"], "tail.example");
    }

    #[test]
    fn peers_are_left_out_on_request() {
        assert!(status(&snapshot(), false).peer.is_none());
    }

    #[test]
    fn whois_finds_by_address_port_and_key() {
        let snapshot = snapshot();
        let key = NodePublic::from_bytes([2; 32]).to_string();
        for address in ["100.64.0.2", "100.64.0.2:80", &key] {
            let found = whois(&snapshot, address).unwrap();
            assert_eq!(found.node["ID"], 2, "{address}");
            assert_eq!(found.user_profile["LoginName"], "ada@example");
        }
        assert!(whois(&snapshot, "100.64.0.9").is_none());
        assert!(whois(&snapshot, "nonsense").is_none());
    }

    #[test]
    fn a_node_that_never_joined_has_a_status_too() {
        let snapshot = Snapshot {
            map: None,
            state: BackendState::NeedsLogin,
            ..snapshot()
        };
        let status = status(&snapshot, true);
        assert_eq!(status.tailscale_ips, None);
        assert_eq!(status.self_node.public_key, snapshot.node_key);
    }
}
