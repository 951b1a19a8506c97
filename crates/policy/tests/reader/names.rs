//! What a file defines, and what is said about nodes.

use super::*;

#[test]
fn definitions_may_follow_their_use_and_come_in_any_form_that_names_have() {
    let text = r#"{
        "acls": [{"action": "accept", "src": ["group:later"], "dst": ["later:22"]}],
        "hosts": {"later": "fd00::/64"}, "groups": {"group:later": ["a@b.c"]},
    }"#;
    assert_eq!(policy(text).rules.unwrap().len(), 1);
    for (text, cause) in [
        (r#"{"groups": {"ops": []}}"#, Cause::BadName),
        (r#"{"groups": {"group:": []}}"#, Cause::BadName),
        (
            r#"{"groups": {"group:a": ["group:b"]}}"#,
            Cause::NestedGroup,
        ),
        (r#"{"groups": {"group:a": ["bob"]}}"#, Cause::BadGroupMember),
        (
            r#"{"groups": {"group:a": ["autogroup:admin"]}}"#,
            Cause::BadGroupMember,
        ),
        (r#"{"groups": {"group:a": "a@b.c"}}"#, Cause::WrongType),
        (r#"{"tagOwners": {"tag:1": []}}"#, Cause::BadName),
        (r#"{"tagOwners": {"tag:a": ["*"]}}"#, Cause::NotAnOwner),
        (r#"{"tagOwners": {"tag:a": ["tag:b"]}}"#, Cause::TagNotFound),
        (
            r#"{"tagOwners": {"tag:a": ["tag:b"], "tag:b": ["tag:a"]}}"#,
            Cause::TagOwnerCycle,
        ),
        (r#"{"hosts": {"a@b": "10.1.2.3"}}"#, Cause::BadName),
        (r#"{"hosts": {"a:b": "10.1.2.3"}}"#, Cause::BadName),
        (r#"{"hosts": {"10.1.2.3": "10.1.2.3"}}"#, Cause::BadName),
        (r#"{"hosts": {"a": "b"}}"#, Cause::InvalidAddress),
        (
            r#"{"hosts": {"a": "10.1.2.3-10.1.2.4"}}"#,
            Cause::InvalidAddress,
        ),
        (r#"{"ipsets": {"set": []}}"#, Cause::BadName),
        (
            r#"{"ipsets": {"ipset:a": ["ipset:b"]}}"#,
            Cause::IpSetNotFound,
        ),
        (
            r#"{"ipsets": {"ipset:a": ["add nowhere"]}}"#,
            Cause::InvalidAddress,
        ),
        (
            r#"{"ipsets": {"ipset:a": ["tag:a"]}}"#,
            Cause::NotAnIpSetMember,
        ),
        (
            r#"{"ipsets": {"ipset:a": ["keep 10.1.2.3"]}}"#,
            Cause::BadIpSetOperation,
        ),
        (r#"{"postures": {"a": []}}"#, Cause::BadName),
    ] {
        assert_eq!(causes(text), [cause], "{text}");
    }
}

#[test]
fn a_broken_definition_is_complained_about_once() {
    for text in [
        r#"{"hosts": {"web": "x"}, "acls": [{"action": "accept", "src": ["web"], "dst": ["web:1"]}]}"#,
        r#"{"hosts": [], "acls": [{"action": "accept", "src": ["web"], "dst": ["web:1"]}]}"#,
        r#"{"groups": 1, "acls": [{"action": "accept", "src": ["group:a"], "dst": ["*:1"]}]}"#,
        r#"{"groups": {"a": []}, "acls": [{"action": "accept", "src": ["group:a"], "dst": ["*:1"]}]}"#,
        r#"{"tagOwners": {"tag:a": ["*"]}, "acls": [{"action": "accept", "src": ["tag:a"], "dst": ["*:1"]}]}"#,
        r#"{"ipsets": {"ipset:a": ["x"], "ipset:b": ["ipset:a"]}}"#,
    ] {
        assert_eq!(causes(text).len(), 1, "{text}");
    }
}

#[test]
fn ipsets_are_evaluated_in_order() {
    let policy = policy(
        r#"{"hosts": {"web": "10.1.2.3"}, "ipsets": {
            "ipset:a": ["add 10.1.2.0/24", "remove web", "remove 10.1.2.0", "10.1.3.0/24"],
            "ipset:b": ["remove ipset:a", "add ipset:a", "add 10.1.2.3-10.1.2.3", "add fd00::1"],
            "ipset:c": ["10.9.9.9", "remove 10.0.0.0/8", "::/0", "remove fd00::/8", "255.255.255.255", "0.0.0.0"],
        }}"#,
    );
    let ranges = |name: &str| {
        let ranges = policy.ipsets[name].ranges();
        ranges
            .map(|(first, last)| format!("{first}-{last}"))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        ranges("ipset:a"),
        ["10.1.2.1-10.1.2.2", "10.1.2.4-10.1.3.255"]
    );
    assert_eq!(
        ranges("ipset:b"),
        ["10.1.2.1-10.1.3.255", "fd00::1-fd00::1"]
    );
    assert_eq!(
        ranges("ipset:c"),
        [
            "0.0.0.0-0.0.0.0",
            "255.255.255.255-255.255.255.255",
            "::-fcff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "fe00::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ]
    );
    assert!(policy.ipsets["ipset:a"].contains(ip("10.1.2.2")));
    assert!(!policy.ipsets["ipset:a"].contains(ip("10.1.2.3")));
    assert!(!policy.ipsets["ipset:a"].contains(ip("fd00::1")));
}

#[test]
fn the_internet_is_a_set_without_private_addresses() {
    let policy = policy(r#"{"ipsets": {"ipset:out": ["autogroup:internet", "remove 8.8.8.8"]}}"#);
    let set = &policy.ipsets["ipset:out"];
    for public in ["1.1.1.1", "8.8.4.4", "172.32.0.1", "2001:4860::1"] {
        assert!(set.contains(ip(public)), "{public}");
    }
    let private = [
        "8.8.8.8",
        "10.1.2.3",
        "172.31.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "127.0.0.1",
    ];
    for private in private
        .iter()
        .chain(&["169.254.1.1", "224.0.0.1", "fd00::1", "fe80::1", "::1"])
    {
        assert!(!set.contains(ip(private)), "{private}");
    }
}

#[test]
fn approvers_of_routes_and_exit_nodes() {
    let policy = policy(&with_names(
        r#""autoApprovers": {
            "routes": {"10.0.0.0/8": ["tag:web", "group:ops", "autogroup:admin", "alice@example.com"]},
            "exitNode": ["tag:web", "autogroup:member"],
        }"#,
    ));
    assert_eq!(
        policy.route_approvers[&"10.0.0.0/8".parse().unwrap()].len(),
        4
    );
    assert_eq!(policy.exit_approvers.len(), 2);
    for (snippet, cause) in [
        (
            r#""autoApprovers": {"routes": {"10.0.0.0/8": ["*"]}}"#,
            Cause::NotAnApprover,
        ),
        (
            r#""autoApprovers": {"routes": {"10.0.0.0/8": ["web"]}}"#,
            Cause::NotAnApprover,
        ),
        (
            r#""autoApprovers": {"routes": {"web": []}}"#,
            Cause::InvalidAddress,
        ),
        (
            r#""autoApprovers": {"exitNode": ["tag:none"]}"#,
            Cause::TagNotFound,
        ),
        (r#""autoApprovers": {"services": {}}"#, Cause::Unsupported),
    ] {
        assert_eq!(causes(&with_names(snippet)), [cause], "{snippet}");
    }
}

#[test]
fn attributes_of_nodes() {
    let policy = policy(&with_names(
        r#""nodeAttrs": [{
            "target": ["*", "tag:web", "autogroup:admin", "web"],
            "attr": ["funnel", "nextdns:abc", "https://example.com/cap?x=1"],
            "app": {"tailscale.com/app-connectors": [{"name": "x", "domains": ["example.com"]}]},
            "ipPool": ["100.81.0.0/16"],
        }]"#,
    ));
    let entry = &policy.node_attrs[0];
    assert_eq!(
        (entry.targets.len(), entry.attributes.len(), entry.app.len()),
        (4, 3, 1)
    );
    assert_eq!(entry.ip_pool[0].to_string(), "100.81.0.0/16");
    for (fields, cause) in [
        (r#""target": ["autogroup:self"]"#, Cause::NotATarget),
        (r#""target": ["autogroup:internet"]"#, Cause::NotATarget),
        (r#""target": ["autogroup:danger-all"]"#, Cause::NotATarget),
        (r#""target": ["%bogus%"]"#, Cause::InvalidAddress),
        (r#""target": ["*"], "attr": [""]"#, Cause::BadAttribute),
        (
            r#""target": ["*"], "ipPool": ["10.0.0.0/16"]"#,
            Cause::IpPoolOutOfRange,
        ),
        (
            r#""target": ["*"], "ipPool": ["100.0.0.0/8"]"#,
            Cause::IpPoolOutOfRange,
        ),
        (
            r#""target": ["*"], "ipPool": ["100.100.100.128/25"]"#,
            Cause::IpPoolReserved,
        ),
        (
            r#""target": ["*"], "ipPool": ["100.115.0.0/16"]"#,
            Cause::IpPoolReserved,
        ),
        (
            r#""target": ["*"], "ipPool": ["fd00::/64"]"#,
            Cause::InvalidAddress,
        ),
    ] {
        let snippet = format!(r#""nodeAttrs": [{{{fields}}}]"#);
        assert_eq!(causes(&with_names(&snippet)), [cause], "{fields}");
    }
}

#[test]
fn assertions_of_postures() {
    let linux = || Attribute::Text("linux".to_owned());
    let cases = [
        ("node:os == 'linux'", "node:os", Condition::Equal(linux())),
        ("node:os=='linux'", "node:os", Condition::Equal(linux())),
        (
            "node:os != 'linux'",
            "node:os",
            Condition::NotEqual(linux()),
        ),
        (
            "node:tsVersion >= '1.60'",
            "node:tsVersion",
            Condition::GreaterOrEqual(Attribute::Text("1.60".into())),
        ),
        (
            "node:tsVersion > 1",
            "node:tsVersion",
            Condition::Greater(Attribute::Number(1.0)),
        ),
        (
            "node:osVersion < '13'",
            "node:osVersion",
            Condition::Less(Attribute::Text("13".into())),
        ),
        (
            "node:osVersion <= -1.5",
            "node:osVersion",
            Condition::LessOrEqual(Attribute::Number(-1.5)),
        ),
        (
            "node:tsAutoUpdate == true",
            "node:tsAutoUpdate",
            Condition::Equal(Attribute::Flag(true)),
        ),
        (
            "node:os IN ['linux', 'linux']",
            "node:os",
            Condition::In(vec![linux(), linux()]),
        ),
        (
            "node:os NOT IN ['linux',]",
            "node:os",
            Condition::NotIn(vec![linux()]),
        ),
        ("node:os in []", "node:os", Condition::In(vec![])),
        (
            "node:tsReleaseTrack IS SET",
            "node:tsReleaseTrack",
            Condition::Set,
        ),
        (
            "node:tsStateEncrypted NOT SET",
            "node:tsStateEncrypted",
            Condition::NotSet,
        ),
    ];
    for (text, attribute, condition) in cases {
        let policy = policy(&format!(r#"{{"postures": {{"posture:a": ["{text}"]}}}}"#));
        let assertion = &policy.postures["posture:a"][0];
        assert_eq!(
            (assertion.attribute.as_str(), &assertion.condition),
            (attribute, &condition)
        );
    }
    for (text, cause) in [
        ("", Cause::BadAssertion),
        ("node:os", Cause::BadAssertion),
        ("node:os = 'linux'", Cause::BadAssertion),
        ("node:os == linux", Cause::BadAssertion),
        ("node:os == 'linux", Cause::BadAssertion),
        (
            "node:os == 'linux' && node:os != 'macos'",
            Cause::BadAssertion,
        ),
        ("node:os == NaN", Cause::BadAssertion),
        ("node:os IN 'linux'", Cause::BadAssertion),
        ("node:os IN ['linux' 'macos']", Cause::BadAssertion),
        ("node:os IS NOT SET", Cause::BadAssertion),
        ("node:color == 'red'", Cause::BadAssertion),
        ("custom:tier == 'gold'", Cause::Unsupported),
        ("ip:country == 'DE'", Cause::Unsupported),
        ("intune:complianceState == 'compliant'", Cause::Unsupported),
    ] {
        let text = format!(r#"{{"postures": {{"posture:a": ["{text}"]}}}}"#);
        assert_eq!(causes(&text), [cause], "{text}");
    }
    assert_eq!(
        causes(r#"{"defaultSrcPosture": ["posture:a"]}"#),
        [Cause::PostureNotFound]
    );
}

#[test]
fn login_names_without_a_domain_are_of_the_tailnets_own() {
    let text = r#"{
        "groups": {"group:a": ["alice@", "bob@example.org"]},
        "tagOwners": {"tag:a": ["alice@"]},
        "acls": [{"action": "accept", "src": ["alice@"], "dst": ["bob@:22"]}],
        "ssh": [{"action": "accept", "src": ["alice@"], "dst": ["alice@"], "users": ["alice@"]}],
        "tests": [{"src": "alice@", "accept": ["bob@:22"], "deny": ["alice@:tcp:22", "10.0.0.1:1"]}],
        "sshTests": [{"src": "alice@", "dst": ["alice@"], "accept": ["alice@"]}],
    }"#;
    let domains = ["example.com", "example.org"].map(str::to_owned).to_vec();
    let read = |domains| {
        let context = Context {
            domains,
            ..Context::default()
        };
        Policy::parse("policy.hujson", text, &context)
    };
    let policy = read(domains).unwrap().policy;
    let alice = || Selector::User("alice@example.com".to_owned());
    let members = policy.groups["group:a"].iter().map(|it| it.value.as_str());
    let members: Vec<_> = members.collect();
    assert_eq!(members, ["alice@example.com", "bob@example.org"]);
    assert_eq!(policy.tag_owners["tag:a"][0].value, alice());
    let rule = &policy.rules.unwrap()[0];
    assert_eq!(rule.sources[0].value, alice());
    let bob = Selector::User("bob@example.com".to_owned());
    assert_eq!(rule.targets[0].destination.value, bob);
    let ssh = &policy.ssh[0];
    assert_eq!(
        (&ssh.sources[0].value, &ssh.destinations[0].value),
        (&alice(), &alice())
    );
    // Users of a node are no login names.
    assert_eq!(ssh.users[0].value, SshUser::Name("alice@".to_owned()));
    let test = &policy.tests[0].value;
    assert_eq!(test.source.value, "alice@example.com");
    assert_eq!(test.accept[0].value, "bob@example.com:22");
    let denied: Vec<_> = test.deny.iter().map(|it| it.value.as_str()).collect();
    assert_eq!(denied, ["alice@example.com:tcp:22", "10.0.0.1:1"]);
    let test = &policy.ssh_tests[0].value;
    assert_eq!(test.source.value, "alice@example.com");
    assert_eq!(test.destinations[0].value, "alice@example.com");
    assert_eq!(test.accept[0].value, "alice@");

    let refused = read(Vec::new()).unwrap_err();
    let causes: Vec<_> = refused.list.iter().map(|it| it.cause).collect();
    assert_eq!(causes, [Cause::NoDomain; 11]);
    let (line, column) = refused.position(refused.list[0].span.start);
    assert_eq!((line, column), (2, 33));
}
