//! The client's half of the map session: first frame, differences, three-state fields.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use control_proto::{
    Timestamp, json,
    netmap::{ApplyError, Changes, MapSession, NetMap},
    tailcfg::{MapResponse, NodeId},
};
use keys::NodePublic;
use proptest::prelude::*;
use serde_json::{Value, json};

const ME: NodePublic = NodePublic::from_bytes([1; 32]);

fn now() -> Timestamp {
    Timestamp::from_unix_seconds(1_800_000_000)
}

/// A session that has had its first frame, with peers 2 and 3.
fn session() -> MapSession {
    let mut session = MapSession::new(ME);
    send(&mut session, first());
    send(&mut session, json!({"PeersChanged": [peer(2), peer(3)]}));
    session
}

/// The minimal first frame of control.md 4.5.
fn first() -> Value {
    json!({
        "Node": {"ID": 1, "StableID": "n1CNTRL", "Name": "host.tail.example.", "User": 1,
            "Key": ME.to_string(), "Machine": format!("mkey:{}", "02".repeat(32)),
            "Addresses": ["100.64.0.1/32", "fd7a:115c:a1e0::1/128"],
            "AllowedIPs": ["100.64.0.1/32", "fd7a:115c:a1e0::1/128"],
            "Hostinfo": {}, "Created": "2026-01-02T03:04:05.678Z", "MachineAuthorized": true,
            "CapMap": {"https://tailscale.com/cap/ssh": null}},
        "DERPMap": {"Regions": {"900": {"RegionID": 900, "RegionCode": "own", "RegionName": "Own",
            "Nodes": [{"Name": "900a", "RegionID": 900, "HostName": "derp.example"}]}}},
        "Domain": "example",
        "DNSConfig": {"Domains": ["tail.example"], "Routes": {"tail.example.": []}, "Proxied": true},
        "PacketFilters": {"base": [open_rule()]},
        "UserProfiles": [{"ID": 1, "LoginName": "a@example", "DisplayName": "A"}],
        "SSHPolicy": {"rules": []}, "CollectServices": false,
        "ControlTime": "2026-01-02T03:04:05Z", "Debug": {"DisableLogTail": true},
    })
}

fn open_rule() -> Value {
    json!({"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 0, "Last": 65535}}]})
}

fn peer(id: i64) -> Value {
    json!({
        "ID": id, "Name": format!("p{id}.tail.example."), "User": 1,
        "Key": format!("nodekey:{id:064x}"), "DiscoKey": format!("discokey:{id:064x}"),
        "Addresses": [format!("100.64.0.{id}/32")], "HomeDERP": 900, "Hostinfo": {},
        "Online": true,
    })
}

fn try_send(session: &mut MapSession, frame: Value) -> Result<Changes, ApplyError> {
    let response: MapResponse = json::from_slice(frame.to_string().as_bytes()).unwrap();
    session.apply(response, now())
}

fn send(session: &mut MapSession, frame: Value) -> Changes {
    try_send(session, frame).unwrap()
}

fn map(session: &MapSession) -> &NetMap {
    session.map().unwrap()
}

fn peer_ids(session: &MapSession) -> Vec<i64> {
    map(session).peers.keys().map(|id| id.0).collect()
}

#[test]
fn the_minimal_first_frame_makes_a_map() {
    let mut session = MapSession::new(ME);

    let changes = send(&mut session, first());

    assert!(changes.first && changes.node && changes.derp_map && changes.filter && changes.dns);
    assert!(changes.debug.unwrap().disable_log_tail);
    let map = map(&session);
    assert_eq!(map.node.id, NodeId(1));
    assert!(map.node.machine_authorized);
    assert!(map.node.has_cap("https://tailscale.com/cap/ssh"));
    assert_eq!(map.magic_dns_suffix(), "tail.example");
    assert_eq!(map.node.label(), "host");
    assert_eq!(map.owner(&map.node).unwrap().login_name, "a@example");
    assert_eq!(
        map.derp_map.region(900).unwrap().nodes[0].derp_port(),
        Some(443)
    );
    assert_eq!(map.dns_config.routes["tail.example."], []);
    assert_eq!(map.packet_filter().count(), 1);
    assert!(!map.needs_filter());
    assert!(map.peers.is_empty());
}

#[test]
fn a_first_frame_without_the_node_is_refused_but_a_keepalive_may_precede_it() {
    let mut session = MapSession::new(ME);

    assert!(!send(&mut session, json!({"KeepAlive": true})).is_any());
    assert_eq!(
        try_send(&mut session, json!({"Domain": "x"})),
        Err(ApplyError::NoSelf)
    );

    assert!(session.map().is_none());
}

#[test]
fn a_map_for_another_key_is_refused_and_changes_nothing() {
    let mut other = first();
    other["Node"]["Key"] = json!(format!("nodekey:{}", "07".repeat(32)));
    other["Domain"] = json!("evil");
    let refused = Err(ApplyError::OtherKey {
        ours: ME,
        found: NodePublic::from_bytes([7; 32]),
    });
    assert_eq!(try_send(&mut MapSession::new(ME), other.clone()), refused);

    let mut session = session();
    assert_eq!(try_send(&mut session, other), refused);
    assert_eq!(map(&session).domain, "example");
}

#[test]
fn keepalives_carry_requests_but_no_map() {
    let mut session = session();
    let before = map(&session).clone();

    let changes = send(
        &mut session,
        json!({"KeepAlive": true, "Domain": "x", "PeersRemoved": [2], "Debug": {"Exit": 1},
            "PingRequest": {"URL": "https://x/1"}, "ControlTime": "2026-01-02T03:04:05Z"}),
    );

    assert!(!changes.is_any());
    assert_eq!(changes.ping.unwrap().url, "https://x/1");
    assert!(changes.control_time.is_some());
    assert!(changes.debug.is_none());
    assert_eq!(*map(&session), before);
}

#[test]
fn repeated_urls_are_asked_once() {
    let mut session = session();
    let ask = json!({"PingRequest": {"URL": "https://x/1"}, "PopBrowserURL": "https://x/2"});

    let first = send(&mut session, ask.clone());
    let again = send(&mut session, ask);

    assert!(first.ping.is_some() && first.pop_browser_url.is_some());
    assert!(again.ping.is_none() && again.pop_browser_url.is_none());
}

#[test]
fn a_full_list_replaces_all_peers_and_wins_over_differences() {
    let mut session = session();

    let changes = send(
        &mut session,
        json!({"Peers": [peer(3), peer(4)], "PeersChanged": [peer(9)], "PeersRemoved": [4]}),
    );

    assert_eq!(peer_ids(&session), [3, 4]);
    assert_eq!(changes.peers, [NodeId(4)].into(), "3 is as it was");
    assert_eq!(changes.removed, [NodeId(2)].into());
}

#[test]
fn empty_null_and_absent_lists_keep_the_peers() {
    for frame in [json!({}), json!({"Peers": null}), json!({"Peers": []})] {
        let mut session = session();
        let changes = send(&mut session, frame);
        assert_eq!(peer_ids(&session), [2, 3]);
        assert!(!changes.is_any());
    }
    let mut session = session();
    send(&mut session, json!({"Peers": [], "PeersRemoved": [2]}));
    assert_eq!(
        peer_ids(&session),
        [3],
        "an empty list does not hide differences"
    );
}

#[test]
fn peer_differences_apply_in_their_order() {
    let mut session = session();

    let changes = send(
        &mut session,
        json!({
            "PeersChangedPatch": [{"NodeID": 2, "Online": true}, {"NodeID": 99, "Cap": 5}],
            "OnlineChange": {"2": false, "3": false, "98": true},
            "PeerSeenChange": {"2": true, "3": false},
            "PeersChanged": [peer(2), peer(5)],
            "PeersRemoved": [2, 5, 97],
        }),
    );

    assert_eq!(
        peer_ids(&session),
        [2, 3, 5],
        "removed first, then added again"
    );
    let map = map(&session);
    assert_eq!(
        map.peers[&NodeId(2)].online,
        Some(true),
        "patches come last"
    );
    assert_eq!(map.peers[&NodeId(2)].last_seen, Some(now()));
    assert_eq!(map.peers[&NodeId(3)].online, Some(false));
    assert_eq!(changes.peers, [2, 3, 5].map(NodeId).into());
    assert!(changes.removed.is_empty());
}

#[test]
fn the_last_peer_goes_with_peers_removed() {
    let mut session = session();

    let changes = send(&mut session, json!({"PeersRemoved": [2, 3, 4]}));

    assert!(map(&session).peers.is_empty());
    assert_eq!(changes.removed, [2, 3].map(NodeId).into());
}

#[test]
fn patches_change_only_what_they_name() {
    let mut session = session();
    let before = map(&session).peers[&NodeId(2)].clone();

    send(
        &mut session,
        json!({"PeersChangedPatch": [{"NodeID": 2, "DERPRegion": 901, "Endpoints": ["192.0.2.1:5"],
            "Online": false, "LastSeen": "2026-01-02T03:04:05Z",
            "Key": format!("nodekey:{}", "22".repeat(32)),
            "KeyExpiry": "2027-01-01T00:00:00Z", "CapMap": {"x": null}, "Cap": 130}]}),
    );

    let after = &map(&session).peers[&NodeId(2)];
    assert_eq!(after.home_derp(), Some(901));
    assert_eq!(after.endpoints.len(), 1);
    assert_eq!(after.online, Some(false));
    assert_eq!(after.key, NodePublic::from_bytes([0x22; 32]));
    assert!(after.key_expiry().is_some() && after.has_cap("x"));
    assert_eq!(
        (after.cap.0, &after.name, after.disco_key),
        (130, &before.name, before.disco_key)
    );

    send(
        &mut session,
        json!({"PeersChangedPatch": [{"NodeID": 2, "Endpoints": []}]}),
    );
    assert!(
        map(&session).peers[&NodeId(2)].endpoints.is_empty(),
        "present and empty clears"
    );
    send(
        &mut session,
        json!({"PeersChangedPatch": [{"NodeID": 2, "DERPRegion": 0}]}),
    );
    assert_eq!(
        map(&session).peers[&NodeId(2)].home_derp(),
        Some(901),
        "0 says nothing"
    );
}

#[test]
fn a_disco_key_of_an_offline_peer_that_is_not_newer_is_ignored() {
    let mut session = session();
    let patch = |seen: &str| {
        json!({"PeersChangedPatch": [{"NodeID": 2, "Online": false, "LastSeen": seen,
            "DiscoKey": format!("discokey:{}", "dd".repeat(32))}]})
    };
    send(
        &mut session,
        json!({"PeersChangedPatch": [{"NodeID": 2, "LastSeen": "2026-01-02T00:00:00Z"}]}),
    );
    let known = map(&session).peers[&NodeId(2)].disco_key;

    send(&mut session, patch("2026-01-01T00:00:00Z"));
    assert_eq!(map(&session).peers[&NodeId(2)].disco_key, known);
    send(&mut session, patch("2026-01-03T00:00:00Z"));
    assert_ne!(map(&session).peers[&NodeId(2)].disco_key, known);
}

#[test]
fn absent_and_null_filters_change_nothing_and_an_empty_one_denies() {
    for frame in [
        json!({}),
        json!({"PacketFilter": null}),
        json!({"PacketFilters": null}),
    ] {
        let mut session = session();
        assert!(!send(&mut session, frame).filter);
        assert_eq!(map(&session).packet_filter().count(), 1);
    }
    for frame in [
        json!({"PacketFilter": []}),
        json!({"PacketFilters": {"base": []}}),
        json!({"PacketFilters": {"base": null}}),
        json!({"PacketFilters": {"*": null}}),
    ] {
        let mut session = session();
        assert!(send(&mut session, frame.clone()).filter, "{frame}");
        assert_eq!(map(&session).packet_filter().count(), 0, "{frame}");
        assert!(map(&session).needs_filter());
    }
}

#[test]
fn named_filters_are_concatenated_in_the_order_of_their_names() {
    let rule = |src: &str| json!({"SrcIPs": [src]});
    let sources = |session: &MapSession| -> Vec<String> {
        map(session)
            .packet_filter()
            .map(|rule| rule.src_ips[0].clone())
            .collect()
    };
    let mut session = session();

    send(
        &mut session,
        json!({"PacketFilters": {"z": [rule("9")], "a": [rule("1"), rule("2")]},
            "PacketFilter": [rule("5")]}),
    );
    assert_eq!(sources(&session), ["1", "2", "5", "9"]);

    send(
        &mut session,
        json!({"PacketFilters": {"a": null, "nobody": null}}),
    );
    assert_eq!(sources(&session), ["5", "9"]);

    send(
        &mut session,
        json!({"PacketFilters": {"*": null, "m": [rule("7")]}}),
    );
    assert_eq!(sources(&session), ["7"], "base is gone too");
}

#[test]
fn a_filter_that_is_the_same_again_is_no_change() {
    let mut session = session();

    for frame in [
        json!({"PacketFilter": [open_rule()]}),
        json!({"PacketFilters": {"*": null, "base": [open_rule()]}}),
    ] {
        assert!(!send(&mut session, frame).filter);
    }
}

#[test]
fn a_jailed_peer_needs_a_filter_even_if_the_rules_are_open() {
    let mut session = session();
    assert!(!map(&session).needs_filter());
    let mut jailed = peer(2);
    jailed["IsJailed"] = json!(true);

    send(&mut session, json!({"PeersChanged": [jailed]}));

    assert!(map(&session).needs_filter());
}

#[test]
fn derp_regions_are_replaced_whole_and_scores_by_themselves() {
    let regions = |session: &MapSession| -> Vec<i32> {
        map(session).derp_map.regions().map(|(id, _)| id).collect()
    };
    let score = |session: &MapSession| {
        let params = map(session).derp_map.home_params.clone();
        params
            .and_then(|params| params.region_score)
            .map(|score| score.len())
    };
    let mut session = session();

    send(
        &mut session,
        json!({"DERPMap": {"HomeParams": {"RegionScore": {"900": 0.5}}}}),
    );
    assert_eq!((regions(&session), score(&session)), (vec![900], Some(1)));

    let two = json!({"1": {"RegionID": 1}, "2": null});
    send(
        &mut session,
        json!({"DERPMap": {"Regions": two, "HomeParams": {}}}),
    );
    assert_eq!(
        (regions(&session), score(&session)),
        (vec![1], Some(1)),
        "null is dropped"
    );

    send(
        &mut session,
        json!({"DERPMap": {"HomeParams": {"RegionScore": {}}, "Regions": null}}),
    );
    assert_eq!((regions(&session), score(&session)), (vec![1], Some(0)));
}

#[test]
fn health_and_messages_have_their_own_ways_to_clear() {
    let mut session = session();
    let message = json!({"Title": "t", "Text": "x", "Severity": "high"});
    send(
        &mut session,
        json!({"Health": ["a"], "DisplayMessages": {"m": message, "n": message}}),
    );

    assert!(
        !send(
            &mut session,
            json!({"Health": null, "DisplayMessages": null})
        )
        .health
    );
    assert!(send(&mut session, json!({"DisplayMessages": {"m": null}})).health);
    assert_eq!(
        map(&session).display_messages.keys().collect::<Vec<_>>(),
        ["n"]
    );
    assert!(
        send(
            &mut session,
            json!({"Health": [], "DisplayMessages": {"*": null}})
        )
        .health
    );

    assert!(map(&session).health.is_empty() && map(&session).display_messages.is_empty());
}

#[test]
fn names_ssh_rules_and_users_are_replaced_or_kept() {
    let mut session = session();

    let changes = send(
        &mut session,
        json!({"DNSConfig": {}, "Domain": "", "SSHPolicy": {"rules": null},
            "UserProfiles": [{"ID": 2, "LoginName": "b@example"}], "CollectServices": null}),
    );

    assert!(changes.dns && changes.ssh && changes.users && changes.other && !changes.domain);
    let map = map(&session);
    assert!(!map.dns_config.proxied, "an empty DNSConfig is no DNS");
    assert_eq!(map.domain, "example");
    assert_eq!(map.user_profiles.len(), 2);
    assert_eq!(map.collect_services, None);
}

#[test]
fn a_later_self_node_replaces_the_whole() {
    let mut session = session();

    let changes = send(
        &mut session,
        json!({"Node": {"ID": 1, "Key": ME.to_string()}}),
    );

    assert!(changes.node && !changes.first);
    assert!(
        map(&session).node.cap_map.is_empty(),
        "the capabilities are replaced too"
    );
}

#[test]
fn the_map_survives_the_disk() {
    let mut session = session();
    send(
        &mut session,
        json!({"Health": ["x"], "PacketFilters": {"a": []}}),
    );

    let text = json::to_vec(map(&session)).unwrap();

    assert_eq!(json::from_slice::<NetMap>(&text).unwrap(), *map(&session));
}

#[test]
fn merged_changes_remember_what_is_still_true() {
    let mut session = session();
    let mut merged = send(&mut session, json!({"PeersRemoved": [2]}));
    merged.merge(send(
        &mut session,
        json!({"PeersChanged": [peer(2)], "PeersRemoved": [3]}),
    ));

    assert_eq!(merged.peers, [NodeId(2)].into());
    assert_eq!(merged.removed, [NodeId(3)].into());
}

/// JSON made of the names that matter and values that do not fit.
fn frame() -> impl Strategy<Value = Value> {
    const NAMES: &[&str] = &[
        "Node",
        "Peers",
        "PeersChanged",
        "PeersRemoved",
        "PeersChangedPatch",
        "OnlineChange",
        "PeerSeenChange",
        "PacketFilter",
        "PacketFilters",
        "DERPMap",
        "Regions",
        "HomeParams",
        "ID",
        "NodeID",
        "Key",
        "base",
        "*",
        "2",
        "KeepAlive",
        "UserProfiles",
        "Health",
        "LastSeen",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3..10_i64).prop_map(Value::from),
        Just(json!(ME.to_string())),
        Just(open_rule()),
        Just(peer(2)),
        any::<String>().prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(4, 40, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(prop::sample::select(NAMES), inner, 0..5)
                .prop_map(|map| map.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    });
    prop::collection::btree_map(prop::sample::select(NAMES), value, 0..5)
        .prop_map(|map| map.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
}

proptest! {
    #[test]
    fn no_sequence_of_frames_panics_and_refused_ones_change_nothing(
        frames in prop::collection::vec(frame(), 1..8),
    ) {
        let mut session = session();
        for frame in frames {
            let Ok(response) = json::from_slice::<MapResponse>(frame.to_string().as_bytes()) else {
                continue;
            };
            let before = map(&session).clone();
            if session.apply(response, now()).is_err() {
                prop_assert_eq!(map(&session), &before);
            }
        }
    }
}
