//! JSON as Go clients and servers write it.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::BTreeMap;

use control_proto::{
    Presence, Timestamp,
    capver::CapabilityVersion,
    json,
    tailcfg::{
        Base64Bytes, Compress, DerpMap, FilterRule, Hostinfo, MapRequest, MapResponse,
        NetPortRange, Node, NodeId, PeerChange, PingRequest, PortRange, RegisterAuth,
        RegisterRequest, RegisterResponse, allows_everything,
    },
};
use keys::{MachinePublic, NodePublic};
use proptest::prelude::*;
use serde_json::json;

fn read<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    json::from_slice(value.to_string().as_bytes()).unwrap()
}

fn write<T: serde::Serialize>(value: &T) -> String {
    String::from_utf8(json::to_vec(value).unwrap()).unwrap()
}

#[test]
fn names_match_in_any_case_and_unknown_ones_are_skipped() {
    let text = br#"{"hostinfo":{"IPNVERSION":"1","os":"linux","SSHHOSTKEYS":["k"],"Nope":[{}]},
        "VERSION":120,"stream":true,"Endpoints":["192.0.2.1:5"],"WhoKnows":{"a":[1,{"b":null}]}}"#;

    let request: MapRequest = json::from_slice(text).unwrap();

    let hostinfo = request.hostinfo.unwrap();
    assert_eq!(hostinfo.ipn_version, "1");
    assert_eq!(hostinfo.os, "linux");
    assert_eq!(hostinfo.ssh_host_keys, ["k"]);
    assert_eq!(request.version, CapabilityVersion(120));
    assert!(request.stream);
    assert_eq!(request.endpoints, ["192.0.2.1:5".parse().unwrap()]);
}

#[test]
fn escaped_names_and_texts_are_understood() {
    let response: RegisterResponse =
        json::from_slice(br#"{"\u0041uthURL":"https://x/?a=1\u0026b=2"}"#).unwrap();

    assert_eq!(response.auth_url, "https://x/?a=1&b=2");
}

#[test]
fn null_is_the_default_of_every_plain_field() {
    let node: Node = read(json!({
        "ID": null, "StableID": null, "Name": null, "User": null, "Key": null, "Machine": null,
        "KeyExpiry": null, "KeySignature": null, "DiscoKey": null, "Addresses": null,
        "AllowedIPs": null, "Endpoints": null, "DERP": null, "HomeDERP": null, "Hostinfo": null,
        "Created": null, "Cap": null, "Tags": null, "PrimaryRoutes": null, "LastSeen": null,
        "Online": null, "MachineAuthorized": null, "Capabilities": null, "CapMap": null,
        "SelfNodeV4MasqAddrForThisPeer": null, "ExitNodeDNSResolvers": null, "IsJailed": null,
    }));

    assert_eq!(node, Node::default());
    assert_eq!(read::<Node>(json!({})), Node::default());
}

#[test]
fn null_inside_maps_and_lists_is_empty_where_nothing_else_is_meant() {
    let response: MapResponse = read(json!({
        "DNSConfig": {"Routes": {"a.": null}},
        "SSHPolicy": {"rules": null},
        "DERPMap": {"Regions": {"1": null}},
        "PeersChanged": [{"ID": 1, "CapMap": {"flag": null, "list": [], "x": [{"k": 1}]}}],
    }));

    assert_eq!(response.dns_config.unwrap().routes["a."], []);
    assert!(response.ssh_policy.unwrap().rules.is_empty());
    assert_eq!(response.derp_map.unwrap().regions.unwrap()[&1], None);
    let caps = &response.peers_changed[0].cap_map;
    assert_eq!(caps["flag"], None);
    assert_eq!(caps["list"], Some(vec![]));
    assert_eq!(caps["x"], Some(vec![json!({"k": 1})]));
}

#[test]
fn capability_arguments_keep_the_case_of_their_names() {
    let node: Node = read(json!({"CapMap": {"x": [{"id": 1, "ID": 2, "Name": null}]}}));

    assert_eq!(
        node.cap_map["x"],
        Some(vec![json!({"id": 1, "ID": 2, "Name": null})])
    );
}

#[test]
fn three_state_fields_keep_absent_null_and_empty_apart() {
    type State = fn(&MapResponse) -> Presence<usize>;
    let fields: [(&str, State, &str); 5] = [
        ("Peers", |r| len(&r.peers, Vec::len), "[]"),
        ("PacketFilter", |r| len(&r.packet_filter, Vec::len), "[]"),
        (
            "PacketFilters",
            |r| len(&r.packet_filters, BTreeMap::len),
            "{}",
        ),
        ("Health", |r| len(&r.health, Vec::len), "[]"),
        (
            "DisplayMessages",
            |r| len(&r.display_messages, BTreeMap::len),
            "{}",
        ),
    ];
    for (name, state, empty) in fields {
        let cases = [
            ("{}".to_owned(), Presence::Absent),
            (format!(r#"{{"{name}":null}}"#), Presence::Null),
            (format!(r#"{{"{name}":{empty}}}"#), Presence::Value(0)),
        ];
        for (text, expected) in cases {
            let response: MapResponse = json::from_slice(text.as_bytes()).unwrap();
            assert_eq!(state(&response), expected, "{text}");
            assert_eq!(write(&response), text, "written as it was read");
        }
    }
}

fn len<T>(field: &Presence<T>, len: fn(&T) -> usize) -> Presence<usize> {
    match field {
        Presence::Absent => Presence::Absent,
        Presence::Null => Presence::Null,
        Presence::Value(value) => Presence::Value(len(value)),
    }
}

#[test]
fn collect_services_keeps_its_three_states() {
    for (text, expected) in [
        ("{}", Presence::Absent),
        (r#"{"CollectServices":null}"#, Presence::Null),
        (r#"{"CollectServices":false}"#, Presence::Value(false)),
    ] {
        let response: MapResponse = json::from_slice(text.as_bytes()).unwrap();
        assert_eq!(response.collect_services, expected);
        assert_eq!(write(&response), text);
    }
}

#[test]
fn entries_of_named_filters_and_messages_keep_null_and_empty_apart() {
    let text = r#"{"PacketFilters":{"*":null,"a":[]},"DisplayMessages":{"m":null}}"#;

    let response: MapResponse = json::from_slice(text.as_bytes()).unwrap();

    let filters = response.packet_filters.value().unwrap();
    assert_eq!(filters["*"], None);
    assert_eq!(filters["a"], Some(vec![]));
    assert_eq!(response.display_messages.value().unwrap()["m"], None);
    assert_eq!(write(&response), text);
}

#[test]
fn an_empty_delta_is_an_empty_object() {
    assert_eq!(write(&MapResponse::default()), "{}");
    assert_eq!(write(&MapResponse::keep_alive()), r#"{"KeepAlive":true}"#);
    assert_eq!(write(&PeerChange::default()), r#"{"NodeID":0}"#);
    assert_eq!(write(&Hostinfo::default()), "{}");
}

#[test]
fn nil_allowed_ips_are_the_addresses_and_empty_ones_are_nothing() {
    let addresses = json!(["100.64.0.1/32"]);
    for (node, expected) in [
        (json!({"Addresses": addresses}), 1),
        (json!({"Addresses": addresses, "AllowedIPs": null}), 1),
        (json!({"Addresses": addresses, "AllowedIPs": []}), 0),
        (
            json!({"Addresses": addresses, "AllowedIPs": ["10.0.0.0/8", "::/0"]}),
            2,
        ),
    ] {
        assert_eq!(
            read::<Node>(node.clone()).allowed_ips().len(),
            expected,
            "{node}"
        );
    }
}

#[test]
fn the_home_relay_is_read_in_both_forms() {
    for (node, expected) in [
        (json!({}), None),
        (json!({"HomeDERP": 900}), Some(900)),
        (json!({"DERP": "127.3.3.40:12"}), Some(12)),
        (json!({"DERP": "127.3.3.40:12", "HomeDERP": 900}), Some(900)),
        (json!({"DERP": "127.3.3.40:0"}), None),
        (json!({"DERP": "10.0.0.1:12"}), None),
    ] {
        assert_eq!(read::<Node>(node.clone()).home_derp(), expected, "{node}");
    }
}

#[test]
fn zero_and_absent_expiry_are_never_and_the_past_is_expired() {
    let now = Timestamp::from_unix_seconds(1_800_000_000);
    for (node, expired) in [
        (json!({}), false),
        (json!({"KeyExpiry": "0001-01-01T00:00:00Z"}), false),
        (json!({"KeyExpiry": "1970-01-01T00:02:03Z"}), true),
        (json!({"KeyExpiry": "2999-01-01T00:00:00+01:00"}), false),
        (json!({"Expired": true}), true),
    ] {
        assert_eq!(
            read::<Node>(node.clone()).is_expired(now),
            expired,
            "{node}"
        );
    }
}

#[test]
fn bytes_are_base64_and_null_is_empty() {
    let request: RegisterRequest =
        read(json!({"NodeKeySignature": null, "DeviceCert": "AQID", "Signature": ""}));

    assert_eq!(request.device_cert, Base64Bytes(vec![1, 2, 3]));
    assert!(request.node_key_signature.0.is_empty());
    assert!(json::from_slice::<RegisterRequest>(br#"{"Signature":"*"}"#).is_err());
    let ping = PingRequest {
        payload: Base64Bytes(vec![0xff]),
        ..PingRequest::default()
    };
    assert_eq!(write(&ping), r#"{"URL":"","Payload":"/w=="}"#);
}

#[test]
fn endpoints_that_are_not_addresses_are_dropped_alone() {
    let request: MapRequest =
        read(json!({"Endpoints": ["[fe80::1%eth0]:1", "192.0.2.1:2", "", "x"]}));

    assert_eq!(request.endpoints, ["192.0.2.1:2".parse().unwrap()]);
}

#[test]
fn unknown_compression_is_none() {
    assert_eq!(
        read::<MapRequest>(json!({"Compress": "zstd"})).compress,
        Compress::Zstd
    );
    assert_eq!(
        read::<MapRequest>(json!({"Compress": "br"})).compress,
        Compress::None
    );
    assert_eq!(
        read::<MapRequest>(json!({"Compress": null})).compress,
        Compress::None
    );
}

#[test]
fn auth_keys_do_not_print() {
    let auth = RegisterAuth {
        auth_key: "secret".to_owned(),
        oauth2_token: None,
    };
    let request = RegisterRequest {
        auth: Some(auth),
        ..RegisterRequest::default()
    };

    assert!(!format!("{request:?}").contains("secret"));
    assert!(write(&request).contains("secret"));
}

#[test]
fn wrong_types_and_structs_as_lists_are_errors() {
    for text in [
        r#"{"Version":"117"}"#,
        r#"{"Stream":"true"}"#,
        r#"{"NodeKey":""}"#,
        r#"{"Hostinfo":[]}"#,
        r#"{"Version":117}{}"#,
        r#"{"Version":117,"version":118}"#,
        "",
        "[",
    ] {
        assert!(
            json::from_slice::<MapRequest>(text.as_bytes()).is_err(),
            "{text}"
        );
    }
}

#[test]
fn deep_nesting_is_an_error_not_an_overflow() {
    let deep = |open: &str, close: &str| {
        format!(
            r#"{{"TPM":{}0{}}}"#,
            open.repeat(100_000),
            close.repeat(100_000)
        )
    };
    for text in [deep("[", "]"), deep(r#"{"a":"#, "}")] {
        assert!(json::from_slice::<Hostinfo>(text.as_bytes()).is_err());
    }
}

#[test]
fn unknown_deep_fields_are_skipped_or_refused_without_overflow() {
    let text = format!(
        r#"{{"Nope":{}{}}}"#,
        "[".repeat(1_000_000),
        "]".repeat(1_000_000)
    );

    let _ = json::from_slice::<Hostinfo>(text.as_bytes());
}

#[test]
fn integer_keys_are_decimal_texts() {
    let text = r#"{"OnlineChange":{"12":true}}"#;

    let response: MapResponse = json::from_slice(text.as_bytes()).unwrap();

    assert_eq!(response.online_change, BTreeMap::from([(NodeId(12), true)]));
    assert_eq!(write(&response), text);
    let map: DerpMap = read(json!({"Regions": {"900": {"RegionID": 900}}}));
    assert_eq!(map.region(900).unwrap().region_id, 900);
}

#[test]
fn only_a_filter_that_admits_everything_is_allow_all() {
    let open = FilterRule::allow_all;
    let rule = |change: fn(&mut FilterRule)| {
        let mut rule = open();
        change(&mut rule);
        rule
    };
    let everybody = ["100.64.0.0/10", "fd7a:115c:a1e0::/48"]
        .map(str::to_owned)
        .to_vec();
    let mut tailnet = open();
    tailnet.src_ips = everybody;
    // As servers spell `*`: approved routes beside the tailnet's own addresses.
    let star = [
        "10.0.0.0/8",
        "100.115.94.0-100.127.255.255",
        "100.64.0.0-100.115.91.255",
        "fd7a:115c:a1e0::/48",
    ];
    let spelled_out = |from: usize, to: usize| FilterRule {
        src_ips: star[from..to].iter().map(|it| (*it).to_owned()).collect(),
        ..open()
    };

    assert!(allows_everything(&[open()]));
    assert!(allows_everything(&[tailnet]));
    assert!(allows_everything(&[spelled_out(0, 4)]));
    assert!(allows_everything(&[
        rule(|r| r.src_ips = vec!["100.64.0.1".into()]),
        open()
    ]));
    assert!(allows_everything(&[rule(
        |r| r.ip_proto = vec![58, 17, 6, 1, 99]
    )]));

    assert!(!allows_everything(&[]));
    assert!(!allows_everything(&[spelled_out(0, 3)]));
    assert!(!allows_everything(&[spelled_out(2, 4)]));
    assert!(!allows_everything(&[rule(
        |r| r.src_ips = vec!["100.64.0.0/10".into()]
    )]));
    assert!(!allows_everything(&[rule(|r| r.ip_proto = vec![6, 17])]));
    assert!(!allows_everything(&[rule(|r| r.dst_ports.clear())]));
    assert!(!allows_everything(&[rule(
        |r| r.dst_ports[0].ip = "0.0.0.0/0".into()
    )]));
    assert!(!allows_everything(&[rule(|r| r.dst_ports[0]
        .ports
        .first = 1)]));
    assert!(!allows_everything(&[
        open(),
        rule(|r| r.src_bits = vec![32])
    ]));
}

fn ports() -> impl Strategy<Value = NetPortRange> {
    (any::<String>(), any::<u16>(), any::<u16>()).prop_map(|(ip, first, last)| NetPortRange {
        ip,
        bits: None,
        ports: PortRange { first, last },
    })
}

prop_compose! {
    fn rule()(
        src_ips in prop::collection::vec(any::<String>(), 0..4),
        dst_ports in prop::collection::vec(ports(), 0..3),
        ip_proto in prop::collection::vec(any::<i32>(), 0..3),
    ) -> FilterRule {
        FilterRule { src_ips, dst_ports, ip_proto, ..FilterRule::default() }
    }
}

prop_compose! {
    fn node()(
        id: i64,
        name: String,
        key: [u8; 32],
        machine: [u8; 32],
        addresses in prop::collection::vec((any::<std::net::IpAddr>(), 0..=32_u8), 0..3),
        nil_allowed_ips: bool,
        endpoints in prop::collection::vec((any::<std::net::Ipv4Addr>(), any::<u16>()), 0..4),
        home_derp in 0..2000_i32,
        seconds in -62_135_596_800..253_402_300_799_i64,
        online: Option<bool>,
        caps in prop::collection::btree_map(any::<String>(), any::<Option<Vec<bool>>>(), 0..3),
    ) -> Node {
        let addresses: Vec<_> = addresses
            .into_iter()
            .map(|(ip, bits)| control_proto::tailcfg::Prefix::new(ip, bits).unwrap())
            .collect();
        Node {
            id: NodeId(id),
            name,
            key: NodePublic::from_bytes(key),
            machine: MachinePublic::from_bytes(machine),
            allowed_ips: (!nil_allowed_ips).then(|| addresses.clone()),
            addresses,
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            home_derp,
            key_expiry: Timestamp::from_unix_seconds(seconds),
            last_seen: Some(Timestamp::from_unix_seconds(seconds)),
            online,
            cap_map: caps
                .into_iter()
                .map(|(name, args)| (name, args.map(|args| args.into_iter().map(Into::into).collect())))
                .collect(),
            ..Node::default()
        }
    }
}

proptest! {
    #[test]
    fn map_responses_round_trip(
        node: Option<i64>,
        peers in prop::collection::vec(node(), 0..3),
        rules in prop::collection::vec(rule(), 0..3),
        state in 0..3_u8,
        health in prop::collection::vec(any::<String>(), 0..3),
    ) {
        let response = MapResponse {
            node: node.map(|id| Node { id: NodeId(id), ..Node::default() }),
            peers_changed: peers.clone(),
            peers: match state {
                0 => Presence::Absent,
                1 => Presence::Null,
                _ => Presence::Value(peers),
            },
            packet_filters: Presence::Value(BTreeMap::from([
                ("base".to_owned(), Some(rules)),
                ("gone".to_owned(), None),
            ])),
            health: Presence::Value(health),
            ..MapResponse::default()
        };
        let text = json::to_vec(&response).unwrap();
        prop_assert_eq!(json::from_slice::<MapResponse>(&text).unwrap(), response);
    }

    #[test]
    fn timestamps_round_trip(millis in -62_135_596_800_000..253_402_300_799_999_i64) {
        let instant = Timestamp::from_unix_millis(millis);
        prop_assert_eq!(instant.unix_millis(), millis);
        prop_assert_eq!(instant.to_string().parse::<Timestamp>().unwrap(), instant);
    }

    #[test]
    fn any_text_is_read_without_panic(text: String) {
        let _ = json::from_slice::<MapResponse>(text.as_bytes());
        let _ = text.parse::<Timestamp>();
    }
}
