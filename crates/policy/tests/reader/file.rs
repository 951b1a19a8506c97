//! The file as a whole: sections, options, warnings, places.

use super::*;

#[test]
fn the_annotated_example_has_nothing_to_complain_about() {
    let text = include_str!("../../../../docs/examples/policy.hujson");
    let parsed = read(text).unwrap();
    assert_eq!(parsed.warnings, []);
    let policy = parsed.policy;
    assert_eq!(policy.rules.unwrap().len(), 8);
    assert_eq!(policy.groups.len(), 2);
    assert_eq!(policy.tag_owners.len(), 6);
    assert_eq!(policy.ipsets.len(), 2);
    assert_eq!(policy.postures.len(), 2);
    assert_eq!(policy.route_approvers.len(), 2);
    assert_eq!(policy.exit_approvers.len(), 1);
    assert_eq!(policy.node_attrs.len(), 3);
    assert_eq!(policy.ssh.len(), 2);
    assert_eq!((policy.tests.len(), policy.ssh_tests.len()), (2, 1));
    assert!(policy.options.derp_map.is_some());
}

#[test]
fn without_rules_all_is_allowed_and_with_empty_rules_nothing() {
    assert!(policy("{}").rules.is_none());
    assert!(policy(r#"{"groups": {}}"#).rules.is_none());
    // Null is absent, as Go reads it.
    assert!(policy(r#"{"acls": null}"#).rules.is_none());
    assert!(policy(r#"{"acls": []}"#).rules.unwrap().is_empty());
    assert!(policy(r#"{"grants": []}"#).rules.unwrap().is_empty());
    assert!(Policy::allow_all().rules.is_none());
}

#[test]
fn keys_are_found_in_any_case_of_letters() {
    let text = r#"{"ACLs": [{"Action": "accept", "SRC": ["*"], "Dst": ["*:22"]}], "TagOwners": {"tag:a": []}}"#;
    let policy = policy(text);
    assert_eq!(policy.rules.unwrap().len(), 1);
    assert!(policy.tag_owners.contains_key("tag:a"));
}

#[test]
fn old_names_of_fields_are_accepted() {
    let policy = policy(
        r#"{"acls": [{"action": "accept", "users": ["*"], "ports": ["*:22"]}],
            "tests": [{"user": "alice@example.com", "allow": ["10.1.2.3:22"]}]}"#,
    );
    assert_eq!(sources(&policy.rules.unwrap()[0]), [Selector::Any]);
    assert_eq!(policy.tests[0].value.source.value, "alice@example.com");
    assert_eq!(policy.tests[0].value.accept.len(), 1);
    let both = r#"{"acls": [{"action": "accept", "src": ["*"], "users": ["*"], "dst": ["*:22"]}]}"#;
    assert_eq!(causes(both), [Cause::DuplicateKey]);
}

#[test]
fn options_of_the_network() {
    let options = policy(
        r#"{"randomizeClientPort": true, "disableIPv4": true, "OneCGNATRoute": "mac-never",
            "derpMap": {"OmitDefaultRegions": true, "regions": {
                "1": null,
                "900": {"RegionId": 900, "nodes": [{"Name": "a", "hostname": "relay.example.com", "STUNPort": -1}]},
            }}}"#,
    )
    .options;
    assert!(options.randomize_client_port && options.disable_ipv4);
    assert_eq!(options.one_cgnat_route, OneCgnatRoute::MacNever);
    let map = options.derp_map.unwrap();
    assert!(map.omit_default_regions);
    assert_eq!(map.regions().count(), 1);
    let (_, region) = map.regions().next().unwrap();
    assert_eq!(region.nodes[0].host_name, "relay.example.com");

    assert_eq!(
        policy(r#"{"OneCGNATRoute": ""}"#).options.one_cgnat_route,
        OneCgnatRoute::Default
    );
    let always = policy(r#"{"OneCGNATRoute": "mac-always"}"#)
        .options
        .one_cgnat_route;
    assert_eq!(always, OneCgnatRoute::MacAlways);
    for (text, cause) in [
        (r#"{"disableIPv4": 1}"#, Cause::WrongType),
        (r#"{"OneCGNATRoute": "never"}"#, Cause::BadOption),
        (r#"{"derpMap": {"Region": {}}}"#, Cause::UnknownKey),
        (
            r#"{"derpMap": {"Regions": {"1": {"Nodes": [{"Port": 1}]}}}}"#,
            Cause::UnknownKey,
        ),
        (r#"{"derpMap": {"Regions": {"x": {}}}}"#, Cause::BadDerpMap),
        (
            r#"{"derpMap": {"Regions": {"1": {"RegionID": "1"}}}}"#,
            Cause::BadDerpMap,
        ),
    ] {
        assert_eq!(causes(text), [cause], "{text}");
    }
}

#[test]
fn what_is_legal_but_idle_is_warned_of() {
    let warnings = |snippet: &str| {
        let parsed = read(&with_names(snippet)).unwrap();
        parsed
            .warnings
            .iter()
            .map(|it| it.cause)
            .collect::<Vec<_>>()
    };
    let grant = |src: &str, dst: &str| {
        warnings(&format!(
            r#""grants": [{{"src": [{src}], "dst": [{dst}], "ip": ["*"]}}]"#
        ))
    };
    assert_eq!(grant(r#""*""#, r#""*""#), []);
    assert_eq!(grant(r#""group:none""#, r#""*""#), [Cause::EmptyGroup]);
    assert_eq!(grant(r#""*""#, r#""group:none""#), [Cause::EmptyGroup]);
    assert_eq!(grant("", r#""*""#), [Cause::EmptyRule]);
    assert_eq!(grant(r#""10.1.2.3/16""#, r#""*""#), [Cause::HostBits]);
    // Whoever the identity provider puts into it is not known here.
    assert_eq!(grant(r#""group:sso""#, r#""*""#), []);
    let rule = rule(r#""grants": [{"src": ["10.1.2.3/16"], "dst": ["*"], "ip": ["*"]}]"#);
    assert_eq!(
        sources(&rule),
        [Selector::Prefix("10.1.0.0/16".parse().unwrap())]
    );
}

#[test]
fn a_file_that_allows_everything_by_leaving_out_its_rules_is_warned_of() {
    let warned = |text: &str| -> Vec<_> {
        let warnings = read(text).unwrap().warnings.into_iter();
        warnings.map(|it| (it.cause, it.span)).collect()
    };
    assert_eq!(warned("// Nothing.\n{}"), [(Cause::NoRules, 12..13)]);
    let nulls = r#"{"acls": null, "grants": null}"#;
    assert_eq!(warned(nulls), [(Cause::NoRules, 0..1)]);
    for text in [
        r#"{"grants": []}"#,
        r#"{"acls": [], "grants": null}"#,
        r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#,
    ] {
        assert_eq!(warned(text), [], "{text}");
    }
}

#[test]
fn line_ends_of_windows_are_shown_like_others() {
    let lines = [
        "{",
        "",
        r#"  "hosts": {"#,
        r#"    "web": "10.1.2.300","#,
        r#"    "db": "10.1.2.4","#,
        "  },",
        r#"  "acls": 7"#,
        "}",
        "",
    ];
    let told = |end: &str| read(&lines.join(end)).unwrap_err().render();
    let windows = told("\r\n");
    assert_eq!(windows, told("\n"));
    for line in [
        " 3 │   \"hosts\"",
        " 4 │     \"web\"",
        " 5 │     \"db\"",
        " 8 │ }",
    ] {
        assert!(windows.contains(line), "{line} in\n{windows}");
    }
}

#[test]
fn places_are_those_of_the_names() {
    let text = r#"{"acls": [{"action": "accept", "src": [" web "], "dst": ["web:22,80"]}], "hosts": {"web": "10.1.2.3"}}"#;
    let rule = &policy(text).rules.unwrap()[0];
    assert_eq!(&text[rule.sources[0].span.clone()], "web");
    assert_eq!(&text[rule.targets[0].destination.span.clone()], "web");
    assert_eq!(&text[rule.targets[0].ports[1].span.clone()], "80");
    assert!(text[rule.place.span.clone()].starts_with(r#"{"action""#));
    // With escapes the place of a part is that of the whole.
    let text = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["\u002a:22"]}]}"#;
    let rule = &policy(text).rules.unwrap()[0];
    assert_eq!(
        &text[rule.targets[0].destination.span.clone()],
        r"\u002a:22"
    );
}
