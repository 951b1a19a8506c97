//! What a policy, and a change of what it speaks of, means for each stream: the least that is
//! right, and nothing for those that it does not concern.

use control_proto::tailcfg::{FilterRule, SshPolicy};
use policy::tailnet::Role;

use super::*;

/// Everybody may reach the web servers; ann's and bob's devices do not see each other.
const WEB: &str = r#"{
    "tagOwners": {"tag:web": [], "tag:db": []},
    "acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:web:80"]}],
}"#;
const DENY_ALL: &str = r#"{"acls": []}"#;

/// Devices of ann (1) and bob (2), a web server (3).
fn web() -> Engine {
    let engine = engine();
    add(&engine, 1);
    give(&engine, 2, 2);
    tag(&engine, 3, "tag:web");
    enforce(&engine, WEB);
    engine
}

fn filter(frame: &MapResponse) -> Vec<FilterRule> {
    frame.packet_filters.value().unwrap()["base"]
        .clone()
        .unwrap()
}

fn peers(engine: &Engine, id: i64) -> Vec<i64> {
    let (_, first) = connect(engine, id);
    let peers = first.peers.value().into_iter().flatten();
    peers.map(|peer| peer.id.0).collect()
}

fn report_os(engine: &Engine, id: i64, os: &str) {
    let report = Report {
        capver: 117,
        hostinfo: Some(Hostinfo {
            os: os.to_owned(),
            ..Hostinfo::default()
        }),
        ..Report::default()
    };
    engine.report(NodeId(id), report);
}

fn has_cap(frame: &MapResponse, cap: &str) -> bool {
    let node = frame.node.as_ref().unwrap();
    node.has_cap(&format!("https://tailscale.com/cap/{cap}"))
}

#[test]
fn what_changes_while_a_policy_is_prepared_is_not_lost() {
    let engine = web();
    let [ann] = viewers(&engine, [1]);
    let policy = Policy::parse("policy", WEB, &Context::default());
    let prepared = engine.prepare_policy(Arc::new(policy.unwrap().policy));
    tag(&engine, 4, "tag:web");
    tag(&engine, 3, "tag:db");
    engine.remove_node(ChangeNumber(100), NodeId(2), start());
    engine.put_user(ChangeNumber(100), user(3, "eve", Role::Member));
    give(&engine, 5, 3);
    while ann.take().is_some() {}

    engine.put_policy(ChangeNumber(101), prepared);
    assert_eq!(told(&ann), "", "the same policy, the same tailnet");
    assert_eq!(peers(&engine, 1), [4]);
    assert_eq!(peers(&engine, 4), [1, 5]);
    let users = engine.with_network(|network| network.users().count());
    assert_eq!(users, 3);
}

#[test]
fn first_frames_show_whom_the_policy_shows() {
    let engine = web();
    assert_eq!(peers(&engine, 1), [3]);
    assert_eq!(peers(&engine, 2), [3]);
    assert_eq!(peers(&engine, 3), [1, 2]);
    let (_, first) = connect(&engine, 1);
    assert_eq!(filter(&first), [], "nobody may reach a member");
    assert_eq!(first.ssh_policy, Some(SshPolicy::default()));
    let (_, first) = connect(&engine, 3);
    assert_eq!(filter(&first).len(), 1);
}

#[test]
fn deny_all_is_said_in_one_frame_with_an_empty_list() {
    let engine = engine();
    (1..=2).for_each(|id| add(&engine, id));
    let (session, snapshot) = engine.connect(NodeId(1), Compress::None).unwrap();
    drop(snapshot);
    enforce(&engine, DENY_ALL);
    let Some(Next::Frame(frame)) = session.take() else {
        panic!("expected a frame");
    };
    // Absent or null would leave the old filter in force (pitfall 26).
    let json = std::str::from_utf8(&frame[4..]).unwrap();
    assert_eq!(json, r#"{"PacketFilters":{"base":[]},"PeersRemoved":[2]}"#);
    assert!(session.take().is_none());
}

#[test]
fn a_policy_that_says_the_same_in_other_words_tells_nobody_anything() {
    let engine = web();
    let viewers = viewers(&engine, [1, 2, 3]);
    enforce(
        &engine,
        r#"{
            "tagOwners": {"tag:web": []},
            "groups": {"group:all": ["ann@tailnet.internal", "bob@tailnet.internal"]},
            "grants": [{"src": ["group:all"], "dst": ["tag:web"], "ip": ["80"]}],
        }"#,
    );
    assert_eq!(viewers.map(|viewer| told(&viewer)), ["", "", ""]);
}

#[test]
fn a_new_policy_is_one_frame_with_what_differs_for_the_viewer() {
    let engine = web();
    let [ann, bob, server] = viewers(&engine, [1, 2, 3]);
    enforce(
        &engine,
        r#"{
            "tagOwners": {"tag:web": []},
            "acls": [
                {"action": "accept", "src": ["ann@tailnet.internal"], "dst": ["tag:web:80"]},
                {"action": "accept", "src": ["bob@tailnet.internal"], "dst": ["ann@tailnet.internal:22"]},
            ],
            "nodeAttrs": [{"target": ["bob@tailnet.internal"], "attr": ["funnel"]}],
            "ssh": [{"action": "accept", "src": ["ann@tailnet.internal"], "dst": ["tag:web"], "users": ["root"]}],
        }"#,
    );
    assert_eq!(told(&ann), "filter users 2 changed 2");
    assert_eq!(told(&bob), "node users 1 removed 3 changed 1");
    assert_eq!(told(&server), "filter removed 2 ssh");
}

#[test]
fn a_newcomer_is_told_to_those_that_may_see_it() {
    let engine = web();
    let [ann, bob, server] = viewers(&engine, [1, 2, 3]);
    give(&engine, 4, 2);
    assert_eq!(told(&ann), "");
    assert_eq!(
        told(&bob),
        "",
        "one's own devices are strangers without a rule"
    );
    assert_eq!(told(&server), "filter users 2 changed 4");
    let rules = engine.with_network(|network| network.filter(NodeId(3)).rules());
    assert!(rules[0].src_ips.contains(&"100.64.0.4".to_owned()));
    engine.remove_node(ChangeNumber(9), NodeId(4), start());
    assert_eq!([told(&ann), told(&bob)], ["", ""]);
    assert_eq!(told(&server), "filter removed 4");
}

#[test]
fn viewers_that_are_told_the_same_share_the_frame() {
    let engine = web();
    let [ann, bob, _server] = viewers(&engine, [1, 2, 3]);
    tag(&engine, 4, "tag:web");
    let frames = [ann, bob].map(|viewer| match viewer.take() {
        Some(Next::Frame(frame)) => frame,
        other => panic!("expected a frame, found {other:?}"),
    });
    assert_eq!(summary(&decode(&frames[0])), "users 2147455555 changed 4");
    assert_eq!(frames[0].as_ptr(), frames[1].as_ptr());
}

#[test]
fn small_changes_go_to_those_that_see_the_node() {
    let engine = web();
    let [ann, bob, server] = viewers(&engine, [1, 2, 3]);
    endpoints(&engine, 1, 7);
    let all = |viewers: [&Session; 3]| viewers.map(told);
    assert_eq!(all([&ann, &bob, &server]), ["", "", "patched 1"]);
    let absence = engine.disconnect(&ann, start()).unwrap();
    engine.end_grace(absence);
    assert_eq!(all([&ann, &bob, &server]), ["", "", "patched 1"]);
    edit(&engine, 2, |node| node.name = "other".to_owned());
    assert_eq!(all([&ann, &bob, &server]), ["", "node", "changed 2"]);
}

#[test]
fn tags_move_a_node_from_one_audience_to_another() {
    let engine = web();
    let [ann, bob, server] = viewers(&engine, [1, 2, 3]);
    tag(&engine, 2, "tag:web");
    assert_eq!(told(&ann), "users 2147455555 changed 2");
    assert_eq!(
        told(&bob),
        "node filter users 1,2147455555 removed 3 changed 1"
    );
    assert_eq!(told(&server), "filter removed 2");
    tag(&engine, 2, "tag:db");
    assert_eq!(told(&ann), "removed 2");
    assert_eq!(told(&bob), "node filter removed 1");
    assert_eq!(told(&server), "");
}

#[test]
fn a_new_owner_decides_whom_a_node_sees() {
    let engine = engine();
    add(&engine, 1);
    give(&engine, 2, 2);
    add(&engine, 3);
    enforce(
        &engine,
        r#"{"grants": [{"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["*"]}]}"#,
    );
    let [ann, bob, third] = viewers(&engine, [1, 2, 3]);
    give(&engine, 3, 2);
    assert_eq!(told(&ann), "filter removed 3");
    assert_eq!(told(&bob), "filter users 2 changed 3");
    assert_eq!(told(&third), "node filter users 2 removed 1 changed 2");
}

#[test]
fn roles_decide_who_administers_and_whom_role_groups_name() {
    let engine = web();
    let (ann, first) = connect(&engine, 1);
    assert!(has_cap(&first, "is-admin") && has_cap(&first, "is-owner"));
    let (bob, first) = connect(&engine, 2);
    assert!(!has_cap(&first, "is-admin") && has_cap(&first, "file-sharing"));
    let (server, first) = connect(&engine, 3);
    assert!(!has_cap(&first, "is-admin") && has_cap(&first, "ssh"));
    enforce(
        &engine,
        r#"{
            "tagOwners": {"tag:web": []},
            "acls": [{"action": "accept", "src": ["autogroup:admin"], "dst": ["tag:web:80"]}],
        }"#,
    );
    for viewer in [&ann, &bob, &server] {
        while viewer.take().is_some() {}
    }

    engine.put_user(ChangeNumber(9), user(2, "bob", Role::Admin));

    let frame = take(&bob);
    assert!(has_cap(&frame, "is-admin") && !has_cap(&frame, "is-owner"));
    assert_eq!(summary(&frame), "node users 2147455555 changed 3");
    assert_eq!(told(&server), "filter users 2 changed 2");
    assert_eq!(told(&ann), "");
}

#[test]
fn a_host_that_meets_a_posture_gets_in_and_loses_it_again() {
    let engine = engine();
    (1..=3).for_each(|id| add(&engine, id));
    tag(&engine, 3, "tag:web");
    enforce(
        &engine,
        r#"{
            "tagOwners": {"tag:web": []},
            "postures": {"posture:linux": ["node:os == 'linux'"]},
            "acls": [{"action": "accept", "src": ["ann@tailnet.internal"], "dst": ["tag:web:80"],
                      "srcPosture": ["posture:linux"]}],
        }"#,
    );
    let [one, two, server] = viewers(&engine, [1, 2, 3]);
    report_os(&engine, 1, "linux");
    assert_eq!(told(&one), "users 2147455555 changed 3");
    assert_eq!(told(&two), "");
    assert_eq!(told(&server), "filter users 1 changed 1");
    report_os(&engine, 1, "windows");
    assert_eq!(told(&one), "removed 3");
    assert_eq!(told(&server), "filter removed 1");
}

#[test]
fn relays_of_the_policy_are_told_to_all() {
    let engine = engine();
    (1..=2).for_each(|id| add(&engine, id));
    let viewers = viewers(&engine, [1, 2]);
    let text = r#"{"derpMap": {"Regions": {"901": {"RegionID": 901, "RegionCode": "x", "RegionName": "X",
        "Nodes": [{"Name": "901a", "RegionID": 901, "HostName": "derp.example.com"}]}}}}"#;
    enforce(&engine, text);
    let frame = take(&viewers[0]);
    assert_eq!(summary(&frame), "derp");
    assert!(frame.derp_map.unwrap().region(901).is_some());
    assert_eq!(told(&viewers[1]), "derp");
    enforce(&engine, text);
    assert_eq!(told(&viewers[0]), "");
    let (_, first) = connect(&engine, 1);
    assert!(first.derp_map.unwrap().region(901).is_some());
    enforce(&engine, "{}");
    assert!(take(&viewers[1]).derp_map.unwrap().region(901).is_none());
}

#[test]
fn a_viewer_behind_gets_the_sum() {
    let engine = web();
    let [ann, bob, server] = viewers(&engine, [1, 2, 3]);
    enforce(&engine, DENY_ALL);
    endpoints(&engine, 3, 7);
    give(&engine, 4, 2);
    enforce(&engine, WEB);
    engine.remove_node(ChangeNumber(9), NodeId(2), start());
    let frame = take(&ann);
    assert_eq!(summary(&frame), "users 2147455555 changed 3");
    assert_eq!(frame.peers_changed[0].endpoints[0].port(), 7);
    let frame = take(&server);
    assert_eq!(summary(&frame), "filter users 1,2 removed 2 changed 1,4");
    assert_eq!(
        filter(&frame)[0].src_ips.len(),
        4,
        "both families of 1 and 4"
    );
    drop(bob);
}

#[test]
fn what_was_queued_about_a_node_goes_when_it_is_hidden() {
    let engine = web();
    let [ann, _bob, server] = viewers(&engine, [1, 2, 3]);
    endpoints(&engine, 3, 7);
    edit(&engine, 3, |node| node.name = "other".to_owned());
    enforce(&engine, DENY_ALL);
    assert_eq!(told(&ann), "removed 3");
    assert_eq!(told(&server), "node filter removed 1,2");
}

#[test]
fn a_viewer_behind_learns_that_it_may_see_nobody() {
    let engine = web();
    let [ann, _bob, _server] = viewers(&engine, [1, 2, 3]);
    for round in 0..=QUEUE_LIMIT {
        endpoints(&engine, 3, 1000 + u16::try_from(round).unwrap());
    }
    enforce(&engine, DENY_ALL);
    assert_eq!(told(&ann), "Resync");
    let full = engine.resync(&ann).unwrap();
    let full = decode(&full.frame(COMPRESS, start()).unwrap());
    assert!(full.peers.is_absent());
    assert_eq!(full.peers_removed, [NodeId(3)]);
    assert_eq!(filter(&full), []);
}

#[test]
fn so_many_changes_that_a_list_is_longer_are_a_fresh_full_frame() {
    let engine = engine();
    enforce(&engine, DENY_ALL);
    let mut cursor = 0;
    for id in 1..=1002_i64 {
        let (addresses, next) = Addresses::next(cursor, |_| false).unwrap();
        cursor = next;
        let key = std::array::from_fn(|at| id.to_be_bytes()[at % 8]);
        let new = Node {
            id: NodeId(id),
            key: NodePublic::from_bytes(key),
            addresses,
            ..node(1)
        };
        engine.put_node(ChangeNumber(id), new, start());
    }
    let [viewer] = viewers(&engine, [1]);
    enforce(&engine, "{}");
    assert_eq!(told(&viewer), "Resync");
    let full = engine.resync(&viewer).unwrap();
    let full = decode(&full.frame(COMPRESS, start()).unwrap());
    assert_eq!(full.peers.value().unwrap().len(), 1001);
    enforce(&engine, DENY_ALL);
    assert_eq!(told(&viewer), "Resync");
    let full = engine.resync(&viewer).unwrap();
    let full = decode(&full.frame(COMPRESS, start()).unwrap());
    assert!(full.peers.is_absent() && full.peers_removed.len() == 1001);
}

#[test]
fn what_a_node_says_of_itself_is_not_told_to_it_later_either() {
    let engine = web();
    let [ann, _bob, server] = viewers(&engine, [1, 2, 3]);
    let hostinfo = Hostinfo {
        hostname: "other".to_owned(),
        ..Hostinfo::default()
    };
    let report = Report {
        capver: 117,
        hostinfo: Some(hostinfo),
        ..Report::default()
    };
    engine.report(NodeId(1), report);
    assert_eq!(told(&ann), "");
    assert_eq!(told(&server), "changed 1");
    enforce(&engine, DENY_ALL);
    assert_eq!(told(&ann), "removed 3");
}
