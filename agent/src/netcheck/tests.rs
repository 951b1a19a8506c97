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
fn a_nat_that_varies_takes_two_servers_to_see() {
    let at = |text: &str| text.parse::<SocketAddr>().unwrap();
    let mut report = Report::default();
    assert_eq!(report.mapping_varies(), None);
    report
        .mapped
        .insert(at("192.0.2.1:3478"), at("198.51.100.1:1000"));
    assert_eq!(report.mapping_varies(), None);
    report
        .mapped
        .insert(at("192.0.2.2:3478"), at("198.51.100.1:1000"));
    assert_eq!(report.mapping_varies(), Some(false));
    report
        .mapped
        .insert(at("192.0.2.3:3478"), at("198.51.100.1:1001"));
    assert_eq!(report.mapping_varies(), Some(true));
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
    listening.abort();

    assert!(report.udp);
    assert_eq!(report.v4.len(), 2);
    assert_eq!(report.mapping_varies(), Some(false));
    for server in servers {
        server.abort();
    }
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
