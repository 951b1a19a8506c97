//! Rules on the wire (control.md 8.2 to 8.4).

use super::*;

/// Sources of the only rule that `web` gets when a selector may reach it.
fn sources(selector: &str) -> String {
    let rules = filter(&allow(selector, "tag:web"), "web");
    let [rule] = rules.as_slice() else {
        panic!("{selector}: {rules:?}")
    };
    rule.strip_suffix(" > web").unwrap().to_owned()
}

#[test]
fn sources_are_the_untagged_devices_of_people() {
    assert_eq!(sources("alice@example.com"), "laptop phone");
    assert_eq!(sources("alice@"), "laptop phone");
    // The only dora is of another domain.
    assert!(filter(&allow("dora@", "tag:web"), "web").is_empty());
    assert_eq!(sources("dora@example.org"), "doras");
    assert_eq!(sources("BOB@Example.com"), "bobs");
    assert_eq!(sources("group:dev"), "laptop phone bobs");
    assert_eq!(sources("group:idp"), "carols");
    assert_eq!(
        sources("autogroup:member"),
        "laptop phone bobs carols doras"
    );
    assert_eq!(sources("autogroup:admin"), "laptop phone");
    assert_eq!(sources("autogroup:owner"), "laptop phone");
    assert_eq!(sources("autogroup:auditor"), "doras");
    assert_eq!(sources("user:*@example.com"), "laptop phone bobs carols");
}

#[test]
fn sources_are_devices_by_tag() {
    assert_eq!(sources("tag:db"), "db both");
    assert_eq!(sources("autogroup:tagged"), "web db both router exit");
}

#[test]
fn literal_sources_stay_as_they_are() {
    assert_eq!(sources("srv"), "web.4");
    assert_eq!(sources("lan"), "10.0.0.0/16");
    assert_eq!(sources("100.64.0.0/16"), "100.64.0.0/16");
    assert_eq!(sources("fd7a:115c:a1e0::3"), "bobs.6");
    assert_eq!(sources("10.0.0.1-10.0.0.9"), "10.0.0.1-10.0.0.9");
}

#[test]
fn any_source_is_every_node_and_every_approved_subnet() {
    assert_eq!(sources("*"), "nodes 10.0.0.0/16");
    assert_eq!(sources("autogroup:danger-all"), "*");
    // What is named beside it stays.
    let network = grant(r#""src": ["*", "tag:db", "100.64.0.99"], "dst": ["tag:web"]"#);
    assert_eq!(
        filter(&network, "web"),
        ["nodes db both 10.0.0.0/16 100.64.0.99 > web"]
    );
}

#[test]
fn sets_of_addresses_are_taken_apart() {
    let network = company(
        r#""ipsets": {"ipset:x": ["add 10.0.0.0/16", "add 100.64.0.5-100.64.0.6", "add 192.168.7.1"]},
        "grants": [
            {"src": ["ipset:x"], "dst": ["tag:exit"], "ip": ["22"]},
            {"src": ["tag:exit"], "dst": ["ipset:x"], "ip": ["*"]},
        ]"#,
    );
    let from = "10.0.0.0/16 100.64.0.5-100.64.0.6 192.168.7.1";
    assert_eq!(filter(&network, "exit"), [format!("{from} > exit:22")]);
    assert_eq!(filter(&network, "web"), ["exit > 100.64.0.5-100.64.0.6"]);
    assert_eq!(filter(&network, "router"), ["exit > 10.0.0.0/16"]);
    assert!(filter(&network, "bobs").is_empty());
}

#[test]
fn a_node_gets_what_concerns_it_and_no_more() {
    let network =
        grant(r#""src": ["tag:exit"], "dst": ["tag:web", "bob@example.com", "srv", "lan"]"#);
    assert_eq!(filter(&network, "web"), ["exit > web web.4"]);
    assert_eq!(filter(&network, "both"), ["exit > both"]);
    assert_eq!(filter(&network, "bobs"), ["exit > bobs"]);
    assert_eq!(filter(&network, "router"), ["exit > 10.0.0.0/16"]);
    assert!(filter(&network, "db").is_empty());
    assert_eq!(filter(&allow("tag:exit", "*"), "db"), ["exit > *"]);
    // Parts of a subnet and what is larger than it count as well.
    assert_eq!(
        filter(&allow("tag:exit", "10.0.7.0/24"), "router"),
        ["exit > 10.0.7.0/24"]
    );
    assert_eq!(
        filter(&allow("tag:exit", "10.0.0.0/8"), "router"),
        ["exit > 10.0.0.0/8"]
    );
    assert!(filter(&allow("tag:exit", "10.1.0.0/16"), "router").is_empty());
}

#[test]
fn rules_with_equal_sources_and_protocols_are_one() {
    let network = company(
        r#""acls": [
            {"action": "accept", "src": ["tag:exit"], "dst": ["tag:web:22"]},
            {"action": "accept", "src": ["tag:db"], "dst": ["tag:web:1-9"]},
            {"action": "accept", "src": ["tag:exit"], "dst": ["srv:80,443"]},
            {"action": "accept", "src": ["tag:exit"], "proto": "udp", "dst": ["tag:web:53"]},
        ],
        "grants": [{"src": ["tag:exit"], "dst": ["tag:web"], "ip": ["8080", "udp:67", "icmp:*"]}]"#,
    );
    assert_eq!(
        filter(&network, "web"),
        [
            "exit > web:22 web.4:80 web.4:443 web:8080",
            "db both > web:1-9",
            "exit > web:53 web:67 17",
            "exit > web 1",
        ]
    );
}

#[test]
fn different_selectors_with_equal_sources_are_one_too() {
    let network = company(
        r#""acls": [
            {"action": "accept", "src": ["group:idp"], "dst": ["tag:web:22"]},
            {"action": "accept", "src": ["carol@example.com"], "dst": ["tag:web:22"]},
        ]"#,
    );
    assert_eq!(filter(&network, "web"), ["carols > web web:22"]);
}

#[test]
fn nobody_as_source_is_no_rule() {
    assert!(filter(&allow("group:empty", "*"), "web").is_empty());
    assert!(filter(&allow("tag:idle", "*"), "web").is_empty());
    assert!(filter(&grant(r#""src": [], "dst": ["*"]"#), "web").is_empty());
    assert!(filter(&grant(r#""src": ["*"], "dst": []"#), "web").is_empty());
}

#[test]
fn without_rules_all_is_allowed_and_without_any_rule_nothing() {
    let all = ["nodes 10.0.0.0/16 > *"];
    assert_eq!(filter(&company(""), "web"), all);
    assert_eq!(filter(&network(Arc::new(Policy::allow_all())), "web"), all);
    for none in [r#""acls": []"#, r#""grants": []"#] {
        let network = company(none);
        assert!(filter(&network, "web").is_empty());
        assert_eq!(peers(&network, "web"), "");
    }
}

#[test]
fn own_devices_are_those_of_the_same_user() {
    let network = company(
        r#""acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:22", "tag:web:80"]}]"#,
    );
    assert_eq!(filter(&network, "laptop"), ["laptop phone > laptop:22"]);
    assert_eq!(filter(&network, "bobs"), ["bobs > bobs:22"]);
    assert_eq!(
        filter(&network, "web"),
        ["laptop phone bobs carols doras > web:80"]
    );
    assert!(filter(&network, "db").is_empty());
    assert_eq!(peers(&network, "phone"), "laptop web both");
    let for_some = company(
        r#""acls": [{"action": "accept", "src": ["bob@example.com"], "dst": ["autogroup:self:*"]}]"#,
    );
    assert_eq!(filter(&for_some, "bobs"), ["bobs > bobs"]);
    assert!(filter(&for_some, "laptop").is_empty());
    assert_eq!(peers(&for_some, "laptop"), "");
}

#[test]
fn capabilities_are_granted_towards_own_addresses() {
    let network =
        grant(r#""src": ["tag:exit"], "dst": ["*"], "app": {"example.com/x": [{"a": 1}]}"#);
    assert_eq!(
        filter(&network, "router"),
        ["exit > example.com/x on router"]
    );
    let lan = grant(r#""src": ["tag:exit"], "dst": ["lan"], "app": {"example.com/x": []}"#);
    assert_eq!(
        filter(&lan, "router"),
        ["exit > example.com/x on 10.0.0.0/16"]
    );
    let one =
        grant(r#""src": ["tag:exit"], "dst": ["srv", "tag:web"], "app": {"example.com/x": []}"#);
    assert_eq!(
        filter(&one, "web"),
        ["exit > example.com/x on web.4, example.com/x on web"]
    );
}

#[test]
fn capabilities_stay_apart_from_ports_and_each_other() {
    let network = company(
        r#""grants": [
            {"src": ["tag:exit"], "dst": ["tag:web"], "ip": ["22"], "app": {"example.com/x": [{}]}},
            {"src": ["tag:exit"], "dst": ["tag:web"], "app": {"example.com/x": [{"b": 2}]}},
        ]"#,
    );
    let x = "exit > example.com/x on web";
    assert_eq!(filter(&network, "web"), ["exit > web:22", x, x]);
    let nobody =
        grant(r#""src": ["group:empty"], "dst": ["tag:web"], "app": {"example.com/x": []}"#);
    assert_eq!(filter(&nobody, "web"), [" > example.com/x on web"]);
}

#[test]
fn drives_and_relays_are_announced_to_their_users() {
    let network = grant(
        r#""src": ["bob@example.com"], "dst": ["tag:web"],
        "app": {"tailscale.com/cap/drive": [{"shares": ["*"], "access": "rw"}], "tailscale.com/cap/relay": []}"#,
    );
    let both = "bobs > tailscale.com/cap/drive+tailscale.com/cap/relay on web";
    assert_eq!(filter(&network, "web"), [both]);
    assert_eq!(
        filter(&network, "bobs"),
        [
            "web both > tailscale.com/cap/drive-sharer on bobs",
            "web both > tailscale.com/cap/relay-target on bobs",
        ]
    );
    let own = grant(
        r#""src": ["autogroup:member"], "dst": ["autogroup:self"],
        "app": {"tailscale.com/cap/drive": []}"#,
    );
    assert_eq!(
        filter(&own, "phone"),
        [
            "laptop phone > tailscale.com/cap/drive on phone",
            "laptop phone > tailscale.com/cap/drive-sharer on phone",
        ]
    );
}

#[test]
fn both_renderings_are_the_same() {
    let network = company(
        r#""grants": [
            {"src": ["*"], "dst": ["tag:web", "lan"], "ip": ["22", "udp:53"],
             "app": {"tailscale.com/cap/drive": [{"shares": ["a\"b"]}], "example.com/x": []}},
        ]"#,
    );
    for node in network.nodes() {
        let filter = network.filter(node.id);
        let mut text = Vec::new();
        filter.write_json(&mut text);
        let written: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(written, serde_json::to_value(filter.rules()).unwrap());
    }
}

#[test]
fn sources_must_have_the_posture() {
    let network = company(
        r#""postures": {"posture:linux": ["node:os == 'linux'"]},
        "grants": [
            {"src": ["alice@example.com"], "srcPosture": ["posture:linux"], "dst": ["tag:web"], "ip": ["22"]},
            {"src": ["*"], "srcPosture": ["posture:linux"], "dst": ["tag:db"], "ip": ["22"]},
        ]"#,
    );
    assert_eq!(filter(&network, "web"), ["laptop > web:22"]);
    assert_eq!(filter(&network, "db"), ["laptop > db:22"]);
    assert_eq!(peers(&network, "phone"), "");
    assert_eq!(peers(&network, "laptop"), "web db both");
}

#[test]
fn a_default_posture_is_for_rules_without_one() {
    let mut network = company(
        r#""postures": {"posture:linux": ["node:os == 'linux'"], "posture:all": ["node:os NOT SET"]},
        "defaultSrcPosture": ["posture:linux"],
        "grants": [
            {"src": ["alice@example.com"], "dst": ["tag:web"], "ip": ["22"]},
            {"src": ["alice@example.com"], "srcPosture": ["posture:all"], "dst": ["tag:web"], "ip": ["80"]},
        ]"#,
    );
    assert_eq!(
        filter(&network, "web"),
        ["laptop > web:22", "phone > web:80"]
    );
    let mut phone = node(&network, "phone");
    phone.attributes = node(&network, "laptop").attributes;
    network.put_node(phone);
    assert_eq!(filter(&network, "web"), ["laptop phone > web:22"]);
}
