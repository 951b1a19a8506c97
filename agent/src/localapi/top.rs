//! `tailrace-top`: one [`Sample`] of all counters that `tailrace top` shows. From a [`Snapshot`], pure.

use std::collections::HashMap;
use std::time::SystemTime;

use control_proto::Timestamp;
use control_proto::tailcfg::Node;
use dataplane::{Forwarded, Origin, ShieldReason, why_dropped};
use serde::{Deserialize, Serialize};

use super::BackendState;
use crate::engine::{Snapshot, node_name};
use crate::net::filter::direction_name;
use crate::net::{FilterPlace, NetStatus, RouteStatus};

/// `GET tailrace-top`: counters at one moment. They only grow while daemon and device live.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Sample {
    /// This node.
    #[serde(flatten)]
    pub node: NodeSample,
    /// Every peer of the network map.
    pub peers: Vec<PeerSample>,
    /// Networks reached through peers, and such that this node serves.
    pub routes: Vec<RouteSample>,
    /// Packets that this node forwarded for others and knows the flows of.
    pub forwarded: ForwardedSample,
    /// What was dropped, by place, direction and reason; nothing that never happened.
    pub drops: Vec<DropSample>,
}

/// This node, in [`Sample`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NodeSample {
    /// When, in RFC 3339.
    pub time: String,
    /// When the counters were read, in seconds since boot: rates go by this clock, which nobody sets.
    pub clock_seconds: f64,
    /// How far this node is.
    pub backend_state: BackendState,
    /// Name of this node.
    pub name: String,
    /// Its overlay addresses.
    #[serde(rename = "TailscaleIPs")]
    pub addresses: Vec<String>,
    /// `kernel` or `embedded`; empty while there is no data plane.
    pub engine: String,
    /// Overlay device; empty while there is none.
    pub device: String,
    /// Where the packet filter is: `ebpf` or `userspace`; empty while there is none.
    pub filter: String,
    /// Code of the home relay region.
    pub home_relay: String,
    /// What is wrong, for people.
    pub health: Vec<String>,
}

/// A peer, in [`Sample`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PeerSample {
    /// Stable id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Name.
    pub name: String,
    /// First overlay address.
    #[serde(rename = "TailscaleIP")]
    pub address: String,
    /// Connected to the coordination server.
    pub online: bool,
    /// The node key expired.
    pub expired: bool,
    /// Traffic within the last three minutes.
    pub active: bool,
    /// Our exit node.
    pub exit_node: bool,
    /// Direct endpoint in use; empty while relayed.
    pub cur_addr: String,
    /// Code of the relay region.
    pub relay: String,
    /// Round trip of the last answered probe on the way in use, in seconds; null if none was measured there.
    pub latency_seconds: Option<f64>,
    /// Seconds since the last WireGuard handshake; null if there was none.
    pub handshake_age_seconds: Option<u64>,
    /// Bytes received, as WireGuard counts them.
    pub rx_bytes: u64,
    /// Bytes sent, as WireGuard counts them.
    pub tx_bytes: u64,
}

/// A network, in [`Sample`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RouteSample {
    /// The network; of length 0 for an exit node's.
    pub prefix: String,
    /// Name of the peer through which it is reached; empty for a network that this node serves.
    pub via: String,
    /// Stable id of that peer.
    #[serde(rename = "ViaID")]
    pub via_id: String,
    /// IP bytes received from there; null where nothing counts them.
    pub rx_bytes: Option<u64>,
    /// IP bytes sent there; null where nothing counts them.
    pub tx_bytes: Option<u64>,
}

/// Forwarded packets of known flows, in [`Sample`].
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ForwardedSample {
    /// IP bytes from peers.
    pub rx_bytes: u64,
    /// IP bytes to peers.
    pub tx_bytes: u64,
}

/// Dropped packets, in [`Sample`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DropSample {
    /// What dropped them: `filter`, `forwarding`, `relay`, `shield`, or `port` (WireGuard's).
    pub place: String,
    /// `in` from peers or strangers, `out` to peers.
    pub direction: String,
    /// Short name of the reason, as in metrics.
    pub reason: String,
    /// The reason in a few words.
    pub why: String,
    /// Packets.
    pub packets: u64,
}

/// Builds the answer to `GET tailrace-top`.
#[must_use]
pub fn sample(snapshot: &Snapshot) -> Sample {
    let map = snapshot.map.as_deref();
    let mut node = NodeSample {
        time: Timestamp::from(SystemTime::now()).to_string(),
        clock_seconds: dataplane::boot_clock().as_secs_f64(),
        backend_state: snapshot.state,
        name: map.map(|map| node_name(&map.node)).unwrap_or_default(),
        addresses: map.map_or_else(Vec::new, |map| {
            let addresses = map.node.addresses.iter();
            addresses.map(|net| net.addr().to_string()).collect()
        }),
        health: snapshot.health.clone(),
        ..NodeSample::default()
    };
    let peers = map.into_iter().flat_map(|map| map.peers.values());
    let peers = peers.map(|node| peer(snapshot, node)).collect();
    let Some(net) = &snapshot.net else {
        return Sample {
            node,
            peers,
            ..Sample::default()
        };
    };
    node.clock_seconds = net.read_at.as_secs_f64();
    net.engine.as_str().clone_into(&mut node.engine);
    if net.device_up {
        node.device.clone_from(&net.device);
    }
    node.filter = match net.filter.place {
        FilterPlace::None => String::new(),
        FilterPlace::Ebpf => "ebpf".to_owned(),
        FilterPlace::Userspace(_) => "userspace".to_owned(),
    };
    let home = net.home.as_ref();
    node.home_relay = home.map(|home| home.code.clone()).unwrap_or_default();
    Sample {
        node,
        peers,
        routes: routes(snapshot, net),
        forwarded: forwarded(net),
        drops: drops(net),
    }
}

fn peer(snapshot: &Snapshot, node: &Node) -> PeerSample {
    let address = node.addresses.first();
    let sample = PeerSample {
        id: node.stable_id.to_string(),
        name: node_name(node),
        address: address
            .map(|net| net.addr().to_string())
            .unwrap_or_default(),
        online: node.online.unwrap_or(false),
        expired: node.is_expired(Timestamp::from(snapshot.now)),
        exit_node: snapshot.is_exit_node(node),
        ..PeerSample::default()
    };
    let net = snapshot.net.as_ref();
    let Some(live) = net.and_then(|net| net.peers.get(&node.key)) else {
        return sample;
    };
    let age = |at| SystemTime::now().duration_since(at).unwrap_or_default();
    PeerSample {
        active: live.active,
        cur_addr: live
            .cur_addr
            .map(|address| address.to_string())
            .unwrap_or_default(),
        relay: live.relay.clone(),
        latency_seconds: live.latency.map(|latency| latency.as_secs_f64()),
        handshake_age_seconds: live.last_handshake.map(|at| age(at).as_secs()),
        rx_bytes: live.rx_bytes,
        tx_bytes: live.tx_bytes,
        ..sample
    }
}

fn routes(snapshot: &Snapshot, net: &NetStatus) -> Vec<RouteSample> {
    let peers = snapshot.map.iter().flat_map(|map| map.peers.values());
    let by_key: HashMap<_, _> = peers.map(|node| (node.key, node)).collect();
    let through = net.routes.iter().map(|route| {
        let RouteStatus {
            prefix,
            peer,
            overlay,
        } = route;
        let node = by_key.get(peer).copied();
        RouteSample {
            prefix: prefix.to_string(),
            via: node.map(node_name).unwrap_or_default(),
            via_id: node.map_or_else(String::new, |node| node.stable_id.to_string()),
            rx_bytes: overlay.map(|counted| counted.rx_bytes),
            tx_bytes: overlay.map(|counted| counted.tx_bytes),
        }
    });
    let served = net.served_routes.iter().map(|prefix| RouteSample {
        prefix: prefix.to_string(),
        ..RouteSample::default()
    });
    through.chain(served).collect()
}

fn forwarded(net: &NetStatus) -> ForwardedSample {
    let mut sum = ForwardedSample::default();
    for ((origin, outcome), count) in &net.forwarded {
        match (outcome, origin) {
            (Forwarded::Failed, _) => {}
            (_, Origin::Overlay) => sum.rx_bytes += count.bytes,
            (_, Origin::Lan) => sum.tx_bytes += count.bytes,
        }
    }
    sum
}

fn drops(net: &NetStatus) -> Vec<DropSample> {
    let drop = |place: &str, direction: &str, reason: &str, why: &str, packets| DropSample {
        place: place.to_owned(),
        direction: direction.to_owned(),
        reason: reason.to_owned(),
        why: why.to_owned(),
        packets,
    };
    let mut drops = Vec::new();
    for ((direction, reason), count) in &net.filter.drops {
        let (why, direction) = (why_dropped(*reason), direction_name(*direction));
        drops.push(drop("filter", direction, reason.name(), why, count.packets));
    }
    for (origin, direction) in [(Origin::Overlay, "in"), (Origin::Lan, "out")] {
        let failed = net.forwarded.get(&(origin, Forwarded::Failed));
        let packets = failed.map_or(0, |count| count.packets);
        let why = "the kernel could not rewrite it";
        drops.push(drop(
            "forwarding",
            direction,
            Forwarded::Failed.name(),
            why,
            packets,
        ));
    }
    for relay in &net.relays {
        let why = "the relay was too slow, not there, or allows no more";
        drops.push(drop("relay", "out", &relay.code, why, relay.dropped));
    }
    let flood = net.shield.initiations.get(&ShieldReason::Dropped);
    drops.push(drop(
        "shield",
        "in",
        ShieldReason::Dropped.name(),
        "a stranger's handshake in a flood",
        flood.copied().unwrap_or_default(),
    ));
    for (reason, why, packets) in net.junk.reasons() {
        drops.push(drop("port", "in", reason, why, packets));
    }
    drops.push(drop(
        "port",
        "in",
        "port_mapping",
        "in the router's name, and makes no sense",
        net.port_mapping.ignored,
    ));
    drops.retain(|drop| drop.packets > 0);
    drops
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::Duration;

    use control_proto::netmap::NetMap;
    use control_proto::tailcfg::{NodeId, StableNodeId};
    use dataplane::{Count, Direction, DropReason};
    use keys::NodePublic;

    use super::*;
    use crate::net::{
        Engine, FilterStatus, Junk, OverlayTraffic, PeerStatus, PortMapping, ShieldStatus,
    };
    use crate::prefs::Prefs;

    fn node(id: i64) -> Node {
        Node {
            id: NodeId(id),
            stable_id: StableNodeId(format!("n{id}")),
            name: format!("node{id}.tail.example."),
            key: NodePublic::from_bytes([id as u8; 32]),
            addresses: vec![format!("100.64.0.{id}/32").parse().unwrap()],
            online: Some(true),
            ..Node::default()
        }
    }

    fn net() -> NetStatus {
        let key = node(2).key;
        let live = PeerStatus {
            rx_bytes: 7,
            latency: Some(Duration::from_millis(20)),
            cur_addr: Some("203.0.113.7:41641".parse().unwrap()),
            ..PeerStatus::default()
        };
        let count = |packets| Count { packets, bytes: 10 };
        NetStatus {
            engine: Engine::Kernel,
            engine_reason: String::new(),
            device: "tailrace0".to_owned(),
            device_up: true,
            carrier: None,
            port: 41641,
            addresses: Vec::new(),
            filter: FilterStatus {
                place: FilterPlace::Ebpf,
                drops: BTreeMap::from([
                    ((Direction::In, DropReason::NoRule), count(3)),
                    ((Direction::Out, DropReason::NoRule), count(0)),
                ]),
                ..FilterStatus::default()
            },
            forwarded: BTreeMap::from([
                ((Origin::Overlay, Forwarded::Past), count(1)),
                ((Origin::Overlay, Forwarded::Turn), count(1)),
                ((Origin::Lan, Forwarded::Failed), count(4)),
            ]),
            shield: ShieldStatus::default(),
            home: None,
            relays: Vec::new(),
            peers: BTreeMap::from([(key, live)]),
            read_at: Duration::from_millis(1500),
            routes: vec![RouteStatus {
                prefix: "10.0.0.0/8".parse().unwrap(),
                peer: key,
                overlay: Some(OverlayTraffic {
                    tx_bytes: 5,
                    ..OverlayTraffic::default()
                }),
            }],
            served_routes: vec!["192.168.0.0/16".parse().unwrap()],
            junk: Junk::default(),
            port_mapping: PortMapping::default(),
        }
    }

    fn snapshot(map: Option<NetMap>, net: Option<NetStatus>) -> Snapshot {
        Snapshot {
            state: BackendState::Running,
            prefs: Prefs::default(),
            auth_url: None,
            health: Vec::new(),
            node_key: node(1).key,
            map: map.map(Arc::new),
            net,
            control_connected: true,
            map_stale: false,
            map_age: None,
            now: SystemTime::now(),
        }
    }

    fn map() -> NetMap {
        let mut map = NetMap {
            node: node(1),
            ..NetMap::default()
        };
        for id in [2, 3] {
            map.peers.insert(NodeId(id), node(id));
        }
        map
    }

    #[test]
    fn a_sample_has_every_peer_and_what_the_data_plane_counted() {
        let sample = sample(&snapshot(Some(map()), Some(net())));
        assert_eq!(sample.node.clock_seconds, 1.5);
        assert_eq!(sample.node.addresses, ["100.64.0.1"]);
        let [live, unknown] = &sample.peers[..] else {
            panic!("{:?}", sample.peers)
        };
        assert_eq!((live.name.as_str(), live.rx_bytes), ("node2", 7));
        assert_eq!(live.latency_seconds, Some(0.02));
        assert_eq!(live.cur_addr, "203.0.113.7:41641");
        assert_eq!((unknown.id.as_str(), unknown.rx_bytes), ("n3", 0));
        assert!(unknown.online);
        let [through, served] = &sample.routes[..] else {
            panic!("{:?}", sample.routes)
        };
        assert_eq!((through.via.as_str(), through.tx_bytes), ("node2", Some(5)));
        assert_eq!((served.via.as_str(), served.tx_bytes), ("", None));
        assert_eq!(sample.forwarded.rx_bytes, 20);
        assert_eq!(sample.forwarded.tx_bytes, 0);
        let drops: Vec<(&str, &str, u64)> = sample
            .drops
            .iter()
            .map(|drop| (drop.place.as_str(), drop.reason.as_str(), drop.packets))
            .collect();
        assert_eq!(
            drops,
            [("filter", "no_rule", 3), ("forwarding", "failed", 4)]
        );
    }

    #[test]
    fn a_node_that_is_down_or_never_joined_has_a_sample_too() {
        assert_eq!(sample(&snapshot(Some(map()), None)).peers.len(), 2);
        let alone = sample(&snapshot(None, None));
        assert!(alone.peers.is_empty() && alone.node.name.is_empty());
        let text = serde_json::to_string(&alone).unwrap();
        assert_eq!(serde_json::from_str::<Sample>(&text).unwrap(), alone);
    }
}
