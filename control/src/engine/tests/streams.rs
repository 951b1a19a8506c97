//! Queues, overflows, and what nodes report.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use keys::DiscoPublic;
use time::Duration;

use super::*;

#[test]
fn one_change_is_one_shared_frame_for_all_viewers() {
    let engine = engine();
    (1..=4).for_each(|id| add(&engine, id));
    let viewers: Vec<_> = (2..=4).map(|id| connect(&engine, id).0).collect();
    viewers
        .iter()
        .for_each(|viewer| while viewer.take().is_some() {});

    endpoints(&engine, 1, 7);

    let frames: Vec<Bytes> = viewers
        .iter()
        .map(|viewer| match viewer.take() {
            Some(Next::Frame(frame)) => frame,
            other => panic!("expected a frame, found {other:?}"),
        })
        .collect();
    let places: BTreeSet<_> = frames.iter().map(|frame| frame.as_ptr()).collect();
    assert_eq!(places.len(), 1, "rendered and compressed once");
    assert_eq!(decode(&frames[0]).peers_changed_patch.len(), 1);
    assert!(viewers.iter().all(|viewer| viewer.take().is_none()));
}

#[test]
fn changes_behind_a_frame_under_way_leave_as_one() {
    let engine = engine();
    (1..=3).for_each(|id| add(&engine, id));
    let (viewer, _) = connect(&engine, 1);
    for port in 1..=50 {
        endpoints(&engine, 2, port);
    }
    engine.remove_node(ChangeNumber(9), NodeId(3), start());
    add(&engine, 4);

    let frame = take(&viewer);

    assert_eq!(frame.peers_changed_patch.len(), 1);
    let last = frame.peers_changed_patch[0].endpoints.as_ref().unwrap();
    assert_eq!(last[0].port(), 50);
    assert_eq!(frame.peers_removed, [NodeId(3)]);
    assert_eq!(frame.peers_changed[0].id, NodeId(4));
    assert!(viewer.take().is_none());
}

#[test]
fn a_removal_overrides_what_was_queued_about_the_node() {
    let engine = engine();
    (1..=2).for_each(|id| add(&engine, id));
    let (viewer, _) = connect(&engine, 1);
    endpoints(&engine, 2, 7);
    engine.remove_node(ChangeNumber(9), NodeId(2), start());
    let frame = take(&viewer);
    assert_eq!(frame.peers_removed, [NodeId(2)]);
    assert!(frame.peers_changed_patch.is_empty() && frame.peers_changed.is_empty());
}

#[test]
fn an_overflow_becomes_one_fresh_full_frame() {
    let engine = engine();
    (1..=2).for_each(|id| add(&engine, id));
    let (viewer, _) = connect(&engine, 1);
    for round in 0..=QUEUE_LIMIT {
        endpoints(&engine, 2, 1000 + u16::try_from(round).unwrap());
    }
    assert_eq!(viewer.backlog(), 0, "nothing more is kept");
    assert_eq!(viewer.take(), Some(Next::Resync));

    let full = decode(
        &engine
            .resync(&viewer)
            .unwrap()
            .frame(COMPRESS, start())
            .unwrap(),
    );

    let peers = full.peers.value().unwrap();
    assert_eq!(
        peers[0].endpoints[0].port(),
        1000 + u16::try_from(QUEUE_LIMIT).unwrap()
    );
    assert!(full.node.is_some() && viewer.take().is_none());
    endpoints(&engine, 2, 7);
    assert_eq!(take(&viewer).peers_changed_patch.len(), 1, "deltas go on");
}

#[test]
fn a_node_deleted_behind_an_overflow_still_learns_of_it() {
    let engine = engine();
    (1..=2).for_each(|id| add(&engine, id));
    let (viewer, _) = connect(&engine, 1);
    for round in 0..=QUEUE_LIMIT {
        endpoints(&engine, 2, 1000 + u16::try_from(round).unwrap());
    }
    engine.remove_node(ChangeNumber(9), NodeId(1), start());
    let own = take(&viewer).node.unwrap();
    assert!(own.key_expiry < render::timestamp(start()));
    assert_eq!(viewer.take(), Some(Next::End));
}

#[test]
fn a_change_by_an_administrator_keeps_what_was_reported_meanwhile() {
    let engine = engine();
    (1..=2).for_each(|id| add(&engine, id));
    let read_before = engine.node(NodeId(2)).unwrap().node;
    let report = Report {
        capver: 120,
        hostinfo: Some(Hostinfo {
            os: "plan9".to_owned(),
            ..Hostinfo::default()
        }),
        endpoints: Some(vec![SocketAddr::from(([192, 0, 2, 1], 7))]),
        ..Report::default()
    };
    engine.report(NodeId(2), report);
    let reported = engine.node(NodeId(2)).unwrap().node;
    let renamed = Node {
        name: "other".to_owned(),
        ..read_before
    };
    engine.put_node(ChangeNumber(9), renamed, start());
    let expected = Node {
        name: "other".to_owned(),
        ..reported
    };
    assert_eq!(engine.node(NodeId(2)).unwrap().node, expected);
}

#[test]
fn a_full_frame_without_peers_names_those_that_are_gone() {
    let engine = engine();
    add(&engine, 9);
    engine.remove_node(ChangeNumber(20), NodeId(9), start());
    (1..=2).for_each(|id| add(&engine, id));
    let (viewer, _) = connect(&engine, 1);
    for round in 0..=QUEUE_LIMIT {
        endpoints(&engine, 2, 1000 + u16::try_from(round).unwrap());
    }
    engine.remove_node(ChangeNumber(21), NodeId(2), start());
    assert_eq!(viewer.take(), Some(Next::Resync));
    let full = engine.resync(&viewer).unwrap();
    let full = decode(&full.frame(COMPRESS, start()).unwrap());
    assert!(full.peers.is_absent());
    assert_eq!(
        full.peers_removed,
        [NodeId(2)],
        "not those from before the stream"
    );
}

#[test]
fn a_change_between_registration_and_first_frame_is_not_lost() {
    let engine = engine();
    (1..=2).for_each(|id| add(&engine, id));
    let (viewer, snapshot) = engine.connect(NodeId(1), COMPRESS).unwrap();
    engine.remove_node(ChangeNumber(9), NodeId(2), start());
    let first = decode(&snapshot.frame(COMPRESS, start()).unwrap());
    assert_eq!(first.peers.value().unwrap().len(), 1);
    assert_eq!(take(&viewer).peers_removed, [NodeId(2)]);
}

#[test]
fn a_node_that_returns_within_the_grace_period_never_was_offline() {
    let engine = engine();
    (1..=2).for_each(|id| add(&engine, id));
    let (viewer, _) = connect(&engine, 1);
    let (session, _) = connect(&engine, 2);
    assert_eq!(take(&viewer).peers_changed_patch[0].online, Some(true));

    let absence = engine.disconnect(&session, start()).unwrap();
    let (session, _) = connect(&engine, 2);
    engine.end_grace(absence);
    assert!(viewer.take().is_none());

    let later = start() + Duration::seconds(60);
    let second = engine.disconnect(&session, later).unwrap();
    engine.end_grace(absence);
    assert!(viewer.take().is_none(), "only the newest absence counts");
    engine.end_grace(second);
    let frame = take(&viewer);
    let patch = &frame.peers_changed_patch[0];
    assert_eq!(patch.online, Some(false));
    assert_eq!(patch.last_seen, Some(render::timestamp(later)));
}

#[test]
fn a_disco_key_travels_with_an_honest_word_on_liveness() {
    let engine = engine();
    (1..=2).for_each(|id| add(&engine, id));
    let (_other, _) = connect(&engine, 2);
    let (viewer, _) = connect(&engine, 1);
    let disco = DiscoPublic::from_bytes([5; 32]);
    let report = Report {
        capver: 117,
        disco: Some(disco),
        ..Report::default()
    };
    engine.report(NodeId(2), report);
    let frame = take(&viewer);
    let patch = &frame.peers_changed_patch[0];
    assert_eq!((patch.disco_key, patch.online), (Some(disco), Some(true)));
}

#[test]
fn viewers_hear_of_an_offline_nodes_disco_key_when_it_is_back() {
    let engine = engine();
    (1..=2).for_each(|id| add(&engine, id));
    let (viewer, _) = connect(&engine, 1);
    let disco = Some(DiscoPublic::from_bytes([5; 32]));
    let report = Report {
        capver: 117,
        disco,
        ..Report::default()
    };
    engine.report(NodeId(2), report);
    assert!(viewer.take().is_none(), "clients would not believe it");
    let (session, _) = connect(&engine, 2);
    let frame = take(&viewer);
    let patch = &frame.peers_changed_patch[0];
    assert_eq!((patch.disco_key, patch.online), (disco, Some(true)));

    let absence = engine.disconnect(&session, start()).unwrap();
    engine.end_grace(absence);
    assert_eq!(take(&viewer).peers_changed_patch[0].online, Some(false));
    let (_session, _) = connect(&engine, 2);
    let frame = take(&viewer);
    assert_eq!(frame.peers_changed_patch[0].disco_key, None, "once");
}

#[test]
fn a_node_from_the_database_is_unheard_until_it_reports() {
    let settings = MapSettings::new("tailnet.internal", &DerpMap::default());
    let engine = Engine::new(
        settings,
        Loaded {
            nodes: vec![node(1)],
            ..Loaded::default()
        },
        start(),
    );
    add(&engine, 2);
    assert!(engine.is_unheard(NodeId(1)));
    assert!(
        !engine.is_unheard(NodeId(2)),
        "a node that joins now loses nothing"
    );

    let registered = Report {
        capver: 117,
        ..Report::default()
    };
    engine.report(NodeId(1), registered.clone());
    assert!(
        engine.is_unheard(NodeId(1)),
        "peers do not find it by a registration"
    );

    let disco = Some(DiscoPublic::from_bytes([5; 32]));
    engine.report(
        NodeId(1),
        Report {
            disco,
            ..registered
        },
    );
    assert!(!engine.is_unheard(NodeId(1)));
}

#[test]
fn latencies_change_nothing_that_peers_see() {
    let engine = engine();
    (1..=2).for_each(|id| add(&engine, id));
    let (viewer, _) = connect(&engine, 1);
    for latency in [0.1, 0.2] {
        let mut net = control_proto::tailcfg::NetInfo {
            preferred_derp: 900,
            ..Default::default()
        };
        net.derp_latency.insert("900-v4".to_owned(), latency);
        let hostinfo = Hostinfo {
            net_info: Some(net),
            ..Hostinfo::default()
        };
        let report = Report {
            capver: 117,
            hostinfo: Some(hostinfo),
            ..Report::default()
        };
        engine.report(NodeId(2), report);
    }
    assert!(viewer.take().is_none());
    assert_eq!(engine.take_unsaved().len(), 1, "but it is written");
    let silent = Report {
        capver: 117,
        hostinfo: Some(Hostinfo::default()),
        ..Report::default()
    };
    engine.report(NodeId(2), silent);
    assert_eq!(
        engine.node(NodeId(2)).unwrap().node.home_derp,
        900,
        "no word is not no home"
    );
}

#[test]
fn a_key_that_runs_out_is_announced_once() {
    let engine = engine();
    add(&engine, 1);
    let end = start() + Duration::hours(1);
    engine.put_node(
        ChangeNumber(9),
        Node {
            expires: Some(end),
            ..node(2)
        },
        start(),
    );
    let (viewer, _) = connect(&engine, 1);
    assert!(engine.announce_expired(start()).is_empty());
    assert!(engine.admits(&node(2).key, start()));

    assert_eq!(engine.announce_expired(end), [node(2).key]);

    assert!(take(&viewer).peers_changed[0].expired);
    assert!(!engine.admits(&node(2).key, end));
    assert!(engine.announce_expired(end).is_empty());
}

#[test]
fn only_offline_ephemeral_nodes_are_abandoned() {
    let engine = engine();
    add(&engine, 1);
    for id in 2..=3 {
        engine.put_node(
            ChangeNumber(id),
            Node {
                ephemeral: true,
                ..node(id)
            },
            start(),
        );
    }
    let (_session, _) = connect(&engine, 2);
    assert!(engine.abandoned(start() - Duration::SECOND).is_empty());
    assert_eq!(engine.abandoned(start()), [NodeId(3)]);
}

#[test]
fn peers_learn_of_a_host_only_what_they_need() {
    let engine = engine();
    add(&engine, 1);
    let mut full = node(2);
    full.hostinfo = Hostinfo {
        hostname: "secret-lab".to_owned(),
        os: "linux".to_owned(),
        device_model: "private".to_owned(),
        backend_log_id: "private".to_owned(),
        ..Hostinfo::default()
    };
    engine.put_node(ChangeNumber(9), full, start());
    let (_, first) = connect(&engine, 1);
    let peer = &first.peers.value().unwrap()[0];
    assert_eq!(peer.hostinfo.hostname, "secret-lab");
    assert!(peer.hostinfo.device_model.is_empty() && peer.hostinfo.backend_log_id.is_empty());
    assert!(peer.machine.is_zero());
}
