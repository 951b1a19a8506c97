//! `acls` and `grants`, protocols and ports (control.md 8.3).

use super::*;

#[test]
fn acl_destinations_split_at_the_last_colon() {
    let cases = [
        ("*:*", vec![ports(&[], 0, 65535)]),
        ("tag:web:22", vec![ports(&[], 22, 22)]),
        ("tag:web:80-443", vec![ports(&[], 80, 443)]),
        (
            "web:22, 80-443,8080",
            vec![
                ports(&[], 22, 22),
                ports(&[], 80, 443),
                ports(&[], 8080, 8080),
            ],
        ),
        ("[fd00::1]:22", vec![ports(&[], 22, 22)]),
        ("fd00::1:22", vec![ports(&[], 22, 22)]),
        ("fd00::/64:1-65535", vec![ports(&[], 1, 65535)]),
    ];
    for (dst, expected) in cases {
        let rule = rule(&format!(
            r#""acls": [{{"action": "accept", "src": ["*"], "dst": ["{dst}"]}}]"#
        ));
        let found: Vec<_> = rule.targets[0]
            .ports
            .iter()
            .map(|it| it.value.clone())
            .collect();
        assert_eq!(found, expected, "{dst}");
    }
    for (dst, cause) in [
        ("*", Cause::BadPorts),
        ("tag:web", Cause::BadPorts),
        ("autogroup:member", Cause::BadPorts),
        ("web:", Cause::BadPorts),
        ("fd00::1", Cause::BadPorts),
        ("web:0", Cause::PortZero),
        ("web:0-22", Cause::PortZero),
        ("web:22-", Cause::BadPorts),
        ("web:65536", Cause::BadPorts),
        ("web:+22", Cause::BadPorts),
        ("web:443-80", Cause::BadPorts),
        ("web:22,,80", Cause::BadPorts),
        ("web:ssh", Cause::BadPorts),
    ] {
        let snippet =
            format!(r#""acls": [{{"action": "accept", "src": ["*"], "dst": ["{dst}"]}}]"#);
        assert_eq!(causes(&with_names(&snippet)), [cause], "{dst}");
    }
}

#[test]
fn protocols_have_names_and_numbers() {
    let cases = [
        ("icmp", 1),
        ("igmp", 2),
        ("ipv4", 4),
        ("ip-in-ip", 4),
        ("tcp", 6),
        ("egp", 8),
        ("igp", 9),
        ("udp", 17),
        ("dccp", 33),
        ("gre", 47),
        ("esp", 50),
        ("ah", 51),
        ("ipv6-icmp", 58),
        ("sctp", 132),
        ("fc", 133),
        ("0", 0),
        ("255", 255),
        ("TCP", 6),
    ];
    for (name, number) in cases {
        let rule = rule(&format!(
            r#""acls": [{{"action": "accept", "proto": "{name}", "src": ["*"], "dst": ["*:*"]}}]"#
        ));
        assert_eq!(
            rule.targets[0].ports[0].value,
            ports(&[number], 0, 65535),
            "{name}"
        );
    }
    for name in ["tpc", "256", "06", "*", "-1", "http"] {
        let snippet = format!(
            r#""acls": [{{"action": "accept", "proto": "{name}", "src": ["*"], "dst": ["*:*"]}}]"#
        );
        assert_eq!(
            causes(&with_names(&snippet)),
            [Cause::BadProtocol],
            "{name}"
        );
    }
}

#[test]
fn only_some_protocols_have_ports() {
    for (proto, expected) in [
        ("tcp", vec![]),
        ("udp", vec![]),
        ("sctp", vec![]),
        ("", vec![]),
        ("6", vec![]),
        ("icmp", vec![Cause::PortsWithoutPorts]),
        ("47", vec![Cause::PortsWithoutPorts]),
    ] {
        let snippet = format!(
            r#""acls": [{{"action": "accept", "proto": "{proto}", "src": ["*"], "dst": ["*:22"]}}]"#
        );
        assert_eq!(causes(&with_names(&snippet)), expected, "{proto}");
    }
}

#[test]
fn grants_name_protocol_and_ports_together() {
    let cases = [
        ("*", ports(&[], 0, 65535)),
        ("22", ports(&[], 22, 22)),
        ("80-443", ports(&[], 80, 443)),
        ("tcp:22", ports(&[6], 22, 22)),
        ("udp:53", ports(&[17], 53, 53)),
        ("tcp:*", ports(&[6], 0, 65535)),
        ("icmp:*", ports(&[1], 0, 65535)),
        ("47:*", ports(&[47], 0, 65535)),
        ("*:22", ports(&[], 22, 22)),
    ];
    for (ip, expected) in cases {
        let rule = rule(&format!(
            r#""grants": [{{"src": ["*"], "dst": ["*"], "ip": ["{ip}"]}}]"#
        ));
        assert_eq!(rule.targets[0].ports[0].value, expected, "{ip}");
    }
    for (ip, cause) in [
        ("icmp", Cause::BadPorts),
        ("tcp:0", Cause::PortZero),
        ("icmp:8", Cause::PortsWithoutPorts),
        ("tcp:udp:22", Cause::BadPorts),
        (":22", Cause::BadProtocol),
        ("tcp:22,80", Cause::BadPorts),
        ("", Cause::BadPorts),
    ] {
        let snippet = format!(r#""grants": [{{"src": ["*"], "dst": ["*"], "ip": ["{ip}"]}}]"#);
        assert_eq!(causes(&with_names(&snippet)), [cause], "{ip}");
    }
}

#[test]
fn a_grant_gives_ports_or_capabilities_or_both() {
    let rule = rule(
        r#""grants": [{
            "src": ["*"], "dst": ["tag:web", "web"], "ip": ["22", "80"],
            "app": {"example.com/cap/x": [{"b": 1.50, "a": [/* kept out */ 1e3,]}], "tailscale.com/cap/drive": null},
            "via": ["tag:ci"], "srcPosture": ["posture:linux"],
        }]"#,
    );
    assert_eq!(
        rule.targets
            .iter()
            .map(|target| target.ports.len())
            .collect::<Vec<_>>(),
        [2, 2]
    );
    // As written: order and numbers stay.
    assert_eq!(
        rule.app["example.com/cap/x"][0].get(),
        r#"{"b":1.50,"a":[1e3]}"#
    );
    assert!(rule.app["tailscale.com/cap/drive"].is_empty());
    assert_eq!(rule.via[0].value, "tag:ci");
    assert_eq!(rule.src_posture[0].value, "posture:linux");
    assert_eq!((rule.place.section, rule.place.index), ("grants", 0));

    let cases = [
        (r#""dst": ["*"]"#, Cause::EmptyGrant),
        (r#""dst": ["*"], "ip": [], "app": {}"#, Cause::EmptyGrant),
        (r#""dst": ["0.0.0.0/0"], "ip": ["*"]"#, Cause::DefaultRoute),
        (
            r#""dst": ["::/0"], "app": {"example.com/x": [{}]}"#,
            Cause::DefaultRoute,
        ),
        (
            r#""dst": ["autogroup:internet"], "app": {"example.com/x": [{}]}"#,
            Cause::AppToInternet,
        ),
        (
            r#""dst": ["*"], "app": {"https://example.com/x": [{}]}"#,
            Cause::BadCapabilityName,
        ),
        (
            r#""dst": ["*"], "app": {"example.com/": [{}]}"#,
            Cause::BadCapabilityName,
        ),
        (
            r#""dst": ["*"], "app": {"tailscale.com/cap/ingress": [{}]}"#,
            Cause::ReservedCapability,
        ),
        (
            r#""dst": ["*"], "app": {"example.com/x": {}}"#,
            Cause::WrongType,
        ),
        (
            r#""dst": ["*"], "app": {"example.com/x": [{"a": {"b": 1, "b": 2}}]}"#,
            Cause::DuplicateKey,
        ),
        (
            r#""dst": ["*"], "ip": ["*"], "via": ["group:ops"]"#,
            Cause::ViaNotATag,
        ),
        (
            r#""dst": ["*"], "ip": ["*"], "via": ["tag:none"]"#,
            Cause::TagNotFound,
        ),
        (
            r#""dst": ["*"], "ip": ["*"], "srcPosture": ["posture:x"]"#,
            Cause::PostureNotFound,
        ),
        (
            r#""dst": ["*"], "ip": ["*"], "proto": "tcp""#,
            Cause::UnknownKey,
        ),
    ];
    for (fields, cause) in cases {
        let snippet = format!(r#""grants": [{{"src": ["*"], {fields}}}]"#);
        assert_eq!(causes(&with_names(&snippet)), [cause], "{fields}");
    }
}

#[test]
fn a_default_route_is_a_destination_of_acls() {
    rule(r#""acls": [{"action": "accept", "src": ["*"], "dst": ["0.0.0.0/0:*"]}]"#);
}

#[test]
fn acls_come_before_grants_wherever_they_stand() {
    let policy = policy(
        r#"{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["1"]}],
            "acls": [{"action": "accept", "src": ["*"], "dst": ["*:2"], "srcPosture": []}]}"#,
    );
    let sections: Vec<_> = policy
        .rules
        .unwrap()
        .iter()
        .map(|rule| rule.place.section)
        .collect();
    assert_eq!(sections, ["acls", "grants"]);
}

#[test]
fn actions_of_acls() {
    for (action, cause) in [
        (r#""action": "deny", "#, Cause::BadAction),
        (r#""action": "Accept", "#, Cause::BadAction),
        (r#""action": "", "#, Cause::ActionMissing),
        ("", Cause::ActionMissing),
    ] {
        let text = format!(r#"{{"acls": [{{{action} "src": ["*"], "dst": ["*:*"]}}]}}"#);
        assert_eq!(causes(&text), [cause], "{action}");
    }
}
