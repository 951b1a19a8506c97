//! Routes: who is told of them, and which of several routers serves one.

use ipnet::IpNet;

use super::*;

const LAN: &str = "10.0.0.0/24";

fn routing(node: &mut Node, routes: &[&str]) {
    let routes: Vec<IpNet> = routes.iter().map(|route| route.parse().unwrap()).collect();
    node.hostinfo.routable_ips = routes.clone();
    node.approved_routes = routes.into_iter().collect();
}

fn router(engine: &Engine, id: i64, routes: &[&str]) {
    edit(engine, id, |node| routing(node, routes));
}

/// Approves routes of a node, or withdraws approval.
fn approve(engine: &Engine, id: i64, routes: &[&str]) {
    edit(engine, id, |node| {
        node.approved_routes = routes.iter().map(|route| route.parse().unwrap()).collect();
    });
}

fn advertise(engine: &Engine, id: i64, routes: &[&str]) {
    let hostinfo = Hostinfo {
        routable_ips: routes.iter().map(|route| route.parse().unwrap()).collect(),
        ..Hostinfo::default()
    };
    let report = Report {
        capver: 117,
        hostinfo: Some(hostinfo),
        ..Report::default()
    };
    engine.report(NodeId(id), report);
}

/// Routes of the nodes of a frame beyond their own addresses, the primary ones marked.
fn routes(nodes: &[control_proto::tailcfg::Node]) -> Vec<(i64, String)> {
    let routes = nodes.iter().map(|node| {
        let beyond = node.allowed_ips().iter().skip(node.addresses.len());
        let texts = beyond.map(|route| {
            let primary = node.primary_routes.contains(route);
            format!("{route}{}", if primary { "!" } else { "" })
        });
        (node.id.0, Vec::from_iter(texts).join(" "))
    });
    routes.collect()
}

fn own_routes(frame: &MapResponse) -> String {
    routes(std::slice::from_ref(frame.node.as_ref().unwrap()))
        .remove(0)
        .1
}

fn go_offline(engine: &Engine, session: &Session) {
    let absence = engine.disconnect(session, start()).unwrap();
    engine.end_grace(absence);
}

#[test]
fn a_route_is_told_once_it_is_approved_and_advertised() {
    let engine = engine();
    (1..=2).for_each(|id| add(&engine, id));
    let [gateway, other] = viewers(&engine, [1, 2]);
    advertise(&engine, 1, &[LAN]);
    assert_eq!([told(&gateway), told(&other)], ["", ""]);

    approve(&engine, 1, &[LAN]);
    let frame = take(&gateway);
    assert_eq!(own_routes(&frame), "10.0.0.0/24!");
    let frame = take(&other);
    assert_eq!(
        routes(&frame.peers_changed),
        [(1, "10.0.0.0/24!".to_owned())]
    );

    advertise(&engine, 1, &[]);
    assert_eq!(own_routes(&take(&gateway)), "");
    assert_eq!(routes(&take(&other).peers_changed), [(1, String::new())]);
}

#[test]
fn a_route_is_told_to_those_that_may_use_it() {
    let engine = engine();
    add(&engine, 1);
    give(&engine, 2, 2);
    add(&engine, 3);
    enforce(
        &engine,
        r#"{"acls": [
            {"action": "accept", "src": ["ann@tailnet.internal"], "dst": ["10.0.0.0/24:80"]},
            {"action": "accept", "src": ["bob@tailnet.internal"], "dst": ["ann@tailnet.internal:22"]},
        ]}"#,
    );
    let [gateway, bob, ann] = viewers(&engine, [1, 2, 3]);
    // Nobody could see it for the route's sake before.
    router(&engine, 4, &[LAN]);
    assert_eq!(told(&bob), "users 1 changed 4", "for SSH");
    while gateway.take().is_some() {}
    let frame = take(&ann);
    assert_eq!(
        routes(&frame.peers_changed),
        [(4, "10.0.0.0/24!".to_owned())]
    );

    advertise(&engine, 1, &["10.0.0.0/25"]);
    approve(&engine, 1, &["10.0.0.0/25"]);
    assert_eq!(told(&gateway), "node filter users 1 changed 3");
    assert_eq!(told(&bob), "", "not for bob");
    let frame = take(&ann);
    assert_eq!(
        routes(&frame.peers_changed),
        [(1, "10.0.0.0/25!".to_owned())]
    );
}

#[test]
fn another_router_takes_over_when_the_primary_is_gone_for_good_and_keeps_the_route() {
    let engine = engine();
    add(&engine, 1);
    router(&engine, 2, &[LAN]);
    router(&engine, 3, &[LAN]);
    let [viewer, first, second] = viewers(&engine, [1, 2, 3]);
    let (_, full) = connect(&engine, 1);
    drop(viewer);
    let viewer = self::viewer(&engine, 1);
    let all = routes(full.peers.value().unwrap());
    assert_eq!(all, [(2, "10.0.0.0/24!".to_owned()), (3, String::new())]);

    let absence = engine.disconnect(&first, start()).unwrap();
    let returned = self::viewer(&engine, 2);
    engine.end_grace(absence);
    assert_eq!(
        [told(&viewer), told(&second)],
        ["", ""],
        "it was back in time"
    );

    go_offline(&engine, &returned);
    let frame = take(&viewer);
    assert_eq!(summary(&frame), "changed 2,3", "both in one frame");
    assert_eq!(frame.peers_changed[0].online, Some(false));
    let moved = [(2, String::new()), (3, "10.0.0.0/24!".to_owned())];
    assert_eq!(routes(&frame.peers_changed), moved);
    assert!(own_routes(&take(&second)).ends_with('!'));

    let returned = self::viewer(&engine, 2);
    assert_eq!(told(&viewer), "patched 2", "the route stays where it is");
    assert_eq!(told(&second), "patched 2");
    engine.remove_node(ChangeNumber(9), NodeId(3), start());
    let frame = take(&viewer);
    assert_eq!(summary(&frame), "removed 3 changed 2");
    assert_eq!(
        routes(&frame.peers_changed),
        [(2, "10.0.0.0/24!".to_owned())]
    );
    assert_eq!(own_routes(&take(&returned)), "10.0.0.0/24!");
}

#[test]
fn an_expired_key_serves_no_routes_while_another_router_can() {
    let engine = engine();
    add(&engine, 1);
    let end = start() + time::Duration::HOUR;
    edit(&engine, 2, |node| {
        routing(node, &[LAN]);
        node.expires = Some(end);
    });
    router(&engine, 3, &[LAN]);
    let [viewer, _first, _second] = viewers(&engine, [1, 2, 3]);
    assert_eq!(engine.announce_expired(end).len(), 1);
    let frame = take(&viewer);
    let moved = [(2, String::new()), (3, "10.0.0.0/24!".to_owned())];
    assert_eq!(routes(&frame.peers_changed), moved);
    assert!(frame.peers_changed[0].expired);
}

#[test]
fn exit_nodes_need_both_families_and_are_not_elected() {
    let engine = engine();
    add(&engine, 1);
    router(&engine, 2, &["0.0.0.0/0", "::/0"]);
    router(&engine, 3, &["0.0.0.0/0", "::/0"]);
    let [viewer] = viewers(&engine, [1]);
    let (_, full) = connect(&engine, 1);
    let viewer = {
        drop(viewer);
        self::viewer(&engine, 1)
    };
    let all = routes(full.peers.value().unwrap());
    let exit = "0.0.0.0/0 ::/0".to_owned();
    assert_eq!(all, [(2, exit.clone()), (3, exit)]);
    approve(&engine, 2, &["0.0.0.0/0"]);
    let frame = take(&viewer);
    assert_eq!(routes(&frame.peers_changed), [(2, String::new())]);
}

#[test]
fn via_grants_choose_among_the_routers_that_are_online() {
    let engine = engine();
    add(&engine, 1);
    for id in [2, 3] {
        edit(&engine, id, |node| {
            routing(node, &[LAN]);
            node.tags = vec!["tag:gateway".to_owned()];
        });
    }
    enforce(
        &engine,
        r#"{
            "tagOwners": {"tag:gateway": []},
            "grants": [{"src": ["ann@tailnet.internal"], "dst": ["10.0.0.0/24"], "ip": ["*"],
                        "via": ["tag:gateway"]}],
        }"#,
    );
    let [viewer, first, _second] = viewers(&engine, [1, 2, 3]);
    let serving = |engine: &Engine| {
        let with_route = |id| {
            engine.with_network(|network| network.peer_view(NodeId(1), NodeId(id)).routes.len())
        };
        [with_route(2), with_route(3)]
    };
    assert_eq!(serving(&engine), [1, 0]);
    go_offline(&engine, &first);
    assert_eq!(serving(&engine), [0, 1]);
    assert_eq!(told(&viewer), "changed 2,3");
}

#[test]
fn a_restart_of_the_server_moves_no_routes_of_routers_that_come_back() {
    let restarted = || {
        let nodes = [2, 3].map(|id| {
            let mut node = node(id);
            routing(&mut node, &[LAN]);
            node
        });
        let loaded = Loaded {
            nodes: vec![node(1), nodes[0].clone(), nodes[1].clone()],
            ..Loaded::default()
        };
        Engine::new(
            MapSettings::new("tailnet.internal", &DerpMap::default()),
            loaded,
            start(),
        )
    };
    let primary = |engine: &Engine| {
        engine.with_network(|network| network.primaries().values().copied().next())
    };
    let patience = time::Duration::seconds(45);

    let engine = restarted();
    let [viewer, _second] = viewers(&engine, [1, 3]);
    assert_eq!(primary(&engine), Some(NodeId(2)), "it may be on its way");
    let _first = self::viewer(&engine, 2);
    engine.stop_awaiting(start() + patience);
    assert_eq!(primary(&engine), Some(NodeId(2)));
    assert_eq!(told(&viewer), "patched 2");

    let engine = restarted();
    let [viewer, _second] = viewers(&engine, [1, 3]);
    engine.stop_awaiting(start() + patience - time::Duration::SECOND);
    assert_eq!(primary(&engine), Some(NodeId(2)));
    engine.stop_awaiting(start() + patience);
    assert_eq!(primary(&engine), Some(NodeId(3)));
    assert_eq!(told(&viewer), "changed 2,3");
}
