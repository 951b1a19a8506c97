//! A page of everything: complete, frozen, documented, small and quick.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use control_proto::netmap::NetMap;
use control_proto::tailcfg::{Node, NodeId};
use dataplane::{Forwarded, MapUse, ShieldReason};
use node_core::RegionId;
use tunnel::{Counters, Offload, OffloadState};

use super::super::families::FAMILIES;
use super::*;
use crate::net::{
    Engine, FilterStatus, Home, Junk, OverlayTraffic, PeerStatus, PortMapping, RelayStatus,
    ShieldStatus,
};
use crate::prefs::Prefs;

/// Peers that are shown one by one.
const SHOWN: usize = 256;

fn key(number: usize) -> NodePublic {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    NodePublic::from_bytes(bytes)
}

fn carried(number: usize) -> Carried {
    let count = Count {
        packets: number as u64 * 1_000_003,
        bytes: number as u64 * 1_200_000_007,
    };
    Carried {
        rx: count,
        tx: count,
    }
}

fn net(number: usize) -> IpNet {
    format!("10.{number}.0.0/16").parse().unwrap()
}

/// A node with so many peers and routes, of which everything is known.
fn large(peers: usize, routes: usize) -> (Snapshot, Measures) {
    let mut map = NetMap::default();
    let mut statuses = BTreeMap::new();
    for number in 1..=peers {
        let id = NodeId(i64::try_from(number).unwrap());
        let node = Node {
            id,
            name: format!("machine-{number:04}.company.ts.example."),
            key: key(number),
            ..Node::default()
        };
        map.peers.insert(id, node);
        let direct = number % 3 != 0;
        let status = PeerStatus {
            rx_bytes: number as u64 * 1_300_000_007,
            tx_bytes: number as u64 * 1_400_000_007,
            overlay: Some(OverlayTraffic::from(carried(number))),
            last_handshake: SystemTime::now().checked_sub(Duration::from_secs(77)),
            cur_addr: direct.then(|| (Ipv4Addr::new(192, 0, 2, 1), 41641).into()),
            relay: "frankfurt".to_owned(),
            active: true,
            latency: None,
            mtu: 1280,
        };
        statuses.insert(key(number), status);
    }
    let snapshot = Snapshot {
        state: BackendState::Running,
        prefs: Prefs::default(),
        auth_url: None,
        health: Vec::new(),
        node_key: key(0),
        map: Some(Arc::new(map)),
        net: None,
        control_connected: true,
        map_stale: false,
        map_age: Some(Duration::from_secs(1)),
        now: SystemTime::now(),
    };
    let drops = DropReason::ALL.map(|reason| ((Direction::In, reason), carried(5).rx));
    let outcomes = Forwarded::ALL.map(|outcome| ((Origin::Lan, outcome), carried(9).rx));
    let region = RegionId(7);
    let status = NetStatus {
        engine: Engine::Kernel,
        engine_reason: String::new(),
        device: "tailrace0".to_owned(),
        device_up: true,
        carrier: Some(CarrierStatus {
            offloads: vec![
                OffloadState {
                    offload: Offload::TunTcp,
                    off: None,
                    untried: None,
                },
                OffloadState {
                    offload: Offload::UdpGro,
                    off: Some("it lies".to_owned()),
                    untried: None,
                },
            ],
            counters: Counters {
                received: 7,
                written: 2,
                refused: 1,
                ..Counters::default()
            },
        }),
        port: 41641,
        addresses: Vec::new(),
        filter: FilterStatus {
            place: FilterPlace::Ebpf,
            drops: drops.into(),
            ..FilterStatus::default()
        },
        forwarded: outcomes.into(),
        shield: ShieldStatus {
            devices: vec!["eth0".to_owned()],
            initiations: BTreeMap::from(ShieldReason::ALL.map(|reason| (reason, 3))),
            ..ShieldStatus::default()
        },
        home: Some(Home {
            region,
            code: "frankfurt".to_owned(),
        }),
        relays: vec![RelayStatus {
            region,
            code: "frankfurt".to_owned(),
            connected: true,
            problem: None,
            dropped: 4,
        }],
        peers: statuses,
        read_at: Duration::ZERO,
        routes: Vec::new(),
        served_routes: Vec::new(),
        junk: Junk::default(),
        port_mapping: PortMapping::default(),
    };
    let all = || (1..=routes).map(|number| (net(number), carried(number)));
    let exit = ("0.0.0.0/0".parse().unwrap(), carried(3));
    let map = MapUse {
        entries: Some((5, 65_536)),
        bytes: 4096,
    };
    let measures = Measures {
        status,
        paths: BTreeMap::from([
            (TrafficPath::DirectIpv4, carried(11)),
            (TrafficPath::Relay(region), carried(12)),
        ]),
        regions: BTreeMap::from([(region, "frankfurt".to_owned())]),
        shown: (1..=peers.min(SHOWN)).map(key).collect(),
        path_changes: BTreeMap::from([(PathChange::Relay, 2)]),
        used_routes: all().chain([exit]).collect(),
        served_routes: all().collect(),
        rules: (0..u32::try_from(routes).unwrap())
            .map(|rule| (rule, carried(4).rx))
            .collect(),
        offloaded: 12_345,
        maps: BTreeMap::from([("FORWARD_V4", map), ("PEERS_V4", map)]),
    };
    (snapshot, measures)
}

/// `name{labels} kind` of every family, as code has it.
fn from_code() -> BTreeSet<String> {
    let text = |family: &&Family| {
        let labels = family.labels.join(",");
        let braced = if labels.is_empty() {
            labels
        } else {
            format!("{{{labels}}}")
        };
        format!("{}{braced} {}", family.name, family.kind)
    };
    FAMILIES.iter().map(text).collect()
}

/// The same, as the rows of the tables of a page have it.
fn from_page(page: &str) -> BTreeSet<String> {
    let row = |line: &str| {
        let (family, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
        let (kind, _) = rest.split_once(" |")?;
        family
            .starts_with("tail")
            .then(|| format!("{family} {kind}"))
    };
    page.lines().filter_map(row).collect()
}

#[test]
fn names_kinds_and_labels_are_those_that_were_frozen_and_documented() {
    let frozen = include_str!("../../../../docs/metrics.txt");
    let (_, frozen) = frozen.split_once("# agent\n").unwrap();
    let (frozen, _) = frozen.split_once("\n\n").unwrap_or((frozen, ""));
    let frozen: BTreeSet<String> = frozen.lines().map(str::to_owned).collect();
    assert_eq!(from_code(), frozen, "docs/metrics.txt");

    let page = include_str!("../../../../docs/metrics.md");
    let (_, agent) = page.split_once("\n## Agent\n").unwrap();
    assert_eq!(from_page(agent), frozen, "docs/metrics.md");
}

#[test]
fn every_family_is_shown_once_where_everything_is_known() {
    let (snapshot, measures) = large(3, 2);
    let text = render(&snapshot, Some(&measures));
    let shown = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let shown: Vec<&str> = shown.filter_map(|line| line.split(' ').next()).collect();
    let known: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
    assert_eq!(
        shown.iter().collect::<BTreeSet<_>>(),
        known.iter().collect::<BTreeSet<_>>()
    );
    assert_eq!(shown.len(), known.len());
    let series = text.lines().filter(|line| !line.starts_with('#'));
    let series: Vec<&str> = series
        .filter_map(|line| line.rsplit_once(' '))
        .map(|s| s.0)
        .collect();
    let distinct: BTreeSet<_> = series.iter().collect();
    assert_eq!(
        series.len(),
        distinct.len(),
        "a series is there twice:\n{text}"
    );
}

#[test]
fn the_embedded_tunnel_shows_its_offloads_and_what_it_carried() {
    let (snapshot, mut measures) = large(1, 1);
    let text = render(&snapshot, Some(&measures));
    for line in [
        "tailrace_tunnel_offload{offload=\"tun_tcp\"} 1",
        "tailrace_tunnel_offload{offload=\"udp_gro\"} 0",
        "tailrace_tunnel_packets_total{direction=\"rx\"} 7",
        "tailrace_tunnel_super_packets_total{direction=\"rx\"} 2",
        "tailrace_tunnel_dropped_packets_total{reason=\"refused\"} 1",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line}:\n{text}");
    }
    measures.status.carrier = None;
    assert!(!render(&snapshot, Some(&measures)).contains("tailrace_tunnel_"));
}

#[test]
fn sums_over_the_others_are_complete_and_nameless() {
    let (snapshot, measures) = large(SHOWN + 2, 1);
    let text = render(&snapshot, Some(&measures));
    let sum = (SHOWN as u64 + 1 + SHOWN as u64 + 2) * 1_300_000_007;
    let line = format!("tailrace_peer_bytes_total{{peer=\"other\",direction=\"rx\"}} {sum}\n");
    assert!(text.contains(&line), "{text}");
    assert!(!text.contains("tailrace_peer_path{peer=\"other\""));
    assert!(
        text.contains("tailrace_peers{path=\"direct_ipv4\"} 172\n"),
        "{text}"
    );
}

#[test]
fn upstreams_names_have_upstreams_meaning() {
    let (snapshot, measures) = large(1, 1);
    let text = render(&snapshot, Some(&measures));
    let dropped = 20 * 5 * 1_000_003u64;
    for line in [
        format!(
            "tailscaled_inbound_bytes_total{{path=\"derp\"}} {}",
            carried(12).rx.bytes
        ),
        "tailscaled_inbound_bytes_total{path=\"direct_ipv6\"} 0".to_owned(),
        "tailscaled_inbound_bytes_total{path=\"peer_relay_ipv4\"} 0".to_owned(),
        format!("tailscaled_inbound_dropped_packets_total{{reason=\"acl\"}} {dropped}"),
        "tailscaled_outbound_dropped_packets_total{reason=\"error\"} 4".to_owned(),
        "tailscaled_health_messages{type=\"warning\"} 0".to_owned(),
        "tailscaled_home_derp_region_id 7".to_owned(),
    ] {
        assert!(
            text.lines().any(|shown| shown == line),
            "{line} is not in\n{text}"
        );
    }
}

/// The promise: less than 50 ms and 2 MB with 1 000 peers and 50 routes. The page is made of a copy of what is
/// known, with no lock held. The time is for an optimized build on its own; here it has room for a debug build
/// on a busy machine.
#[test]
fn a_page_of_a_thousand_peers_is_small_and_quick() {
    let (snapshot, measures) = large(1000, 50);
    let times = (0..20).map(|_| {
        let start = Instant::now();
        let text = render(&snapshot, Some(&measures));
        assert!(text.len() < 2_000_000, "{} bytes", text.len());
        (start.elapsed(), text.len())
    });
    let (time, bytes) = times.min().unwrap();
    println!("1 000 peers, 50 routes: {bytes} bytes in {time:.2?}");
    assert!(time < Duration::from_millis(500), "{time:?}");
}
