//! The probe plan, and a measurement against STUN servers on loopback.

use std::net::Ipv4Addr;
use std::sync::Arc;

use node_core::derp::{Address, Certificate};
use tokio::net::UdpSocket;

use super::*;
use crate::net::peers::Peers;
use crate::relayed::{Inbound, Relayed};

#[test]
fn an_incremental_plan_asks_home_most_and_only_the_fastest() {
    let map = map(&[(1, None), (2, None), (3, None), (4, None), (5, None)]);
    let mut last = Report::default();
    for (region, ms) in [(1, 10), (2, 20), (3, 30), (4, 40), (5, 50)] {
        last.v4.insert(RegionId(region), Duration::from_millis(ms));
    }
    let plan = Plan::Incremental {
        home: Some(RegionId(5)),
        last: &last,
    };

    let counts: Vec<(u16, usize)> = tries(&map, &plan)
        .iter()
        .map(|(id, times)| (id.0, times.len()))
        .collect();

    assert_eq!(counts, [(1, 2), (2, 2), (3, 1), (5, 4)]);
}

#[test]
fn a_region_never_meant_as_home_is_not_asked() {
    let mut map = map(&[(1, None), (2, None)]);
    map.regions
        .entry(RegionId(2))
        .and_modify(|region| region.never_home = true);
    assert_eq!(tries(&map, &Plan::Full).len(), 1);
}

#[test]
fn a_region_that_was_asked_and_stays_silent_is_forgotten() {
    let asked = |regions: &[(u16, bool)]| {
        let regions = regions.iter();
        Asked::Some(regions.map(|(id, v6)| (RegionId(*id), *v6)).collect())
    };
    let mut report = heard(&[(1, 10), (2, 20), (3, 30)], &[(1, 11), (2, 21)]);
    report.mapping_varies = Some(true);

    report.merge(Report {
        asked: asked(&[(1, false), (1, true), (2, false)]),
        ..heard(&[(1, 12)], &[(1, 13)])
    });
    let expected = heard(&[(1, 12), (3, 30)], &[(1, 13), (2, 21)]);
    assert_eq!((&report.v4, &report.v6), (&expected.v4, &expected.v6));
    assert_eq!(report.mapping_varies, Some(true));

    // Nothing at all over IPv6: that region 2 had it once says nothing.
    report.merge(Report {
        asked: asked(&[(1, false), (1, true)]),
        ..heard(&[(1, 12)], &[])
    });
    assert_eq!(report.v4, expected.v4);
    assert!(report.v6.is_empty());

    // What asks everybody replaces everything.
    report.merge(heard(&[(2, 22)], &[]));
    assert_eq!(report, heard(&[(2, 22)], &[]));
}

#[test]
fn a_second_server_is_asked_only_while_it_is_unknown_whether_a_nat_varies() {
    let probe = |region: u16, server: &str| Probe {
        after: Duration::ZERO,
        region: RegionId(region),
        server: server.parse().unwrap(),
    };
    let (first, second) = (probe(1, "192.0.2.1:1"), probe(1, "192.0.2.2:1"));
    let mut progress = Progress::new(&[first, second, first]);
    let mut report = Report::default();
    let seen = "198.51.100.1:1".parse().unwrap();

    progress.done(&first);
    note(&mut report, &first, seen, Duration::ZERO);
    assert!(!progress.would_help(&first, &report));
    assert!(progress.would_help(&second, &report));
    assert!(progress.is_settled() && !progress.is_over(&report));

    progress.done(&second);
    note(&mut report, &second, seen, Duration::ZERO);
    assert_eq!(report.mapping_varies, Some(false));
    assert!(progress.is_over(&report));
    assert!(!progress.would_help(&probe(1, "192.0.2.3:1"), &report));
}

/// A report with these round trips in milliseconds.
fn heard(v4: &[(u16, u64)], v6: &[(u16, u64)]) -> Report {
    let latencies = |regions: &[(u16, u64)]| {
        let regions = regions.iter();
        regions
            .map(|(id, ms)| (RegionId(*id), Duration::from_millis(*ms)))
            .collect()
    };
    Report {
        udp: true,
        v4: latencies(v4),
        v6: latencies(v6),
        ..Report::default()
    }
}

#[tokio::test]
async fn regions_that_answer_are_measured() {
    let mut ports = Vec::new();
    let mut servers = Vec::new();
    for _ in 0..2 {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        ports.push(server.local_addr().unwrap().port());
        servers.push(tokio::spawn(answer(server)));
    }
    let map = map(&[(1, Some(ports[0])), (2, Some(ports[1]))]);

    let wire = Arc::new(Wire::open(0).unwrap());
    let (paths, _events) = crate::paths::channel();
    let inbound = Inbound {
        relayed: Arc::new(Relayed::bind(None, 0, tunnel::Inlet::default()).unwrap()),
        peers: Peers::default(),
        paths,
        junk: wire.junk.clone(),
    };
    let listener = wire.clone();
    let listening = tokio::spawn(async move { listener.listen(inbound).await });
    let report = run(&map, Plan::Full, &wire).await;
    let one_region = two_nodes(&ports);
    let of_one_region = run(&one_region, Plan::Full, &wire).await;
    listening.abort();

    assert!(report.udp && report.v4_can_send);
    assert_eq!(report.v4.len(), 2);
    assert_eq!(report.mapping_varies, Some(false));
    assert_eq!(report.captive_portal, None);
    assert_eq!(of_one_region.v4.len(), 1);
    assert_eq!(of_one_region.mapping_varies, Some(false));
    for server in servers {
        server.abort();
    }
}

/// One region with a node at each port.
fn two_nodes(ports: &[u16]) -> DerpMap {
    let mut one = map(&[(1, Some(ports[0]))]);
    let mut other = map(&[(1, Some(ports[1]))]);
    let nodes = other.regions.remove(&RegionId(1)).into_iter();
    let region = one.regions.get_mut(&RegionId(1)).unwrap();
    region.nodes.extend(nodes.flat_map(|region| region.nodes));
    one
}

/// A STUN server.
async fn answer(socket: UdpSocket) {
    let mut buffer = [0; 1500];
    while let Ok((len, source)) = socket.recv_from(&mut buffer).await {
        let id = stun::parse_request(&buffer[..len]).unwrap();
        socket
            .send_to(&stun::response(id, source), source)
            .await
            .unwrap();
    }
}

/// Regions by number, each with one node and its STUN port.
fn map(regions: &[(u16, Option<u16>)]) -> DerpMap {
    let regions = regions.iter().map(|(id, stun_port)| {
        let node = Node {
            name: format!("{id}a"),
            host: "127.0.0.1".into(),
            ipv4: Address::Fixed(Ipv4Addr::LOCALHOST),
            ipv6: Address::Disabled,
            derp_port: 443,
            stun_only: true,
            stun_port: *stun_port,
            stun_ip: None,
            http: false,
            certificate: Certificate::HostName,
        };
        let region = Region {
            id: RegionId(*id),
            code: String::new(),
            name: String::new(),
            never_home: false,
            nodes: vec![node],
        };
        (region.id, region)
    });
    DerpMap {
        regions: regions.collect(),
        scores: BTreeMap::new(),
    }
}
