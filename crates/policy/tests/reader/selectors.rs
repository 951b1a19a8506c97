//! Who may stand where (control.md 8.2).

use super::*;

#[test]
fn every_selector_is_a_source() {
    let cases = [
        ("*", Selector::Any),
        (
            "alice@example.com",
            Selector::User("alice@example.com".into()),
        ),
        ("alice@", Selector::User("alice@example.com".into())),
        (
            " alice@example.com ",
            Selector::User("alice@example.com".into()),
        ),
        (
            "user:*@example.com",
            Selector::UsersOf("example.com".into()),
        ),
        ("group:ops", Selector::Group("group:ops".into())),
        ("group:sso", Selector::Group("group:sso".into())),
        ("tag:web", Selector::Tag("tag:web".into())),
        (
            "web",
            Selector::Host("web".into(), "10.1.2.3/32".parse().unwrap()),
        ),
        ("10.1.2.3", Selector::Prefix("10.1.2.3/32".parse().unwrap())),
        (
            "10.1.0.0/16",
            Selector::Prefix("10.1.0.0/16".parse().unwrap()),
        ),
        ("fd00::/64", Selector::Prefix("fd00::/64".parse().unwrap())),
        (
            "10.1.2.3-10.1.2.9",
            Selector::Range(ip("10.1.2.3"), ip("10.1.2.9")),
        ),
        ("ipset:set", Selector::IpSet("ipset:set".into())),
        ("autogroup:member", Selector::Autogroup(Autogroup::Member)),
        ("autogroup:members", Selector::Autogroup(Autogroup::Member)),
        ("autogroup:tagged", Selector::Autogroup(Autogroup::Tagged)),
        (
            "autogroup:danger-all",
            Selector::Autogroup(Autogroup::DangerAll),
        ),
        ("autogroup:shared", Selector::Autogroup(Autogroup::Shared)),
        (
            "autogroup:owner",
            Selector::Autogroup(Autogroup::Role(Role::Owner)),
        ),
        (
            "autogroup:admin",
            Selector::Autogroup(Autogroup::Role(Role::Admin)),
        ),
        (
            "autogroup:it-admin",
            Selector::Autogroup(Autogroup::Role(Role::ItAdmin)),
        ),
        (
            "autogroup:network-admin",
            Selector::Autogroup(Autogroup::Role(Role::NetworkAdmin)),
        ),
        (
            "autogroup:billing-admin",
            Selector::Autogroup(Autogroup::Role(Role::BillingAdmin)),
        ),
        (
            "autogroup:auditor",
            Selector::Autogroup(Autogroup::Role(Role::Auditor)),
        ),
    ];
    for (text, selector) in cases {
        let snippet = format!(r#""grants": [{{"src": ["{text}"], "dst": ["*"], "ip": ["*"]}}]"#);
        assert_eq!(sources(&rule(&snippet)), [selector], "{text}");
    }
}

#[test]
fn every_selector_is_a_destination() {
    let cases = [
        ("*", Selector::Any),
        (
            "alice@example.com",
            Selector::User("alice@example.com".into()),
        ),
        ("group:ops", Selector::Group("group:ops".into())),
        ("tag:web", Selector::Tag("tag:web".into())),
        (
            "web",
            Selector::Host("web".into(), "10.1.2.3/32".parse().unwrap()),
        ),
        (
            "10.1.0.0/16",
            Selector::Prefix("10.1.0.0/16".parse().unwrap()),
        ),
        (
            "fd00::1/128",
            Selector::Prefix("fd00::1/128".parse().unwrap()),
        ),
        (
            "[fd00::1]",
            Selector::Prefix("fd00::1/128".parse().unwrap()),
        ),
        (
            "10.1.2.3-10.1.2.9",
            Selector::Range(ip("10.1.2.3"), ip("10.1.2.9")),
        ),
        ("ipset:set", Selector::IpSet("ipset:set".into())),
        ("autogroup:member", Selector::Autogroup(Autogroup::Member)),
        ("autogroup:tagged", Selector::Autogroup(Autogroup::Tagged)),
        (
            "autogroup:internet",
            Selector::Autogroup(Autogroup::Internet),
        ),
        (
            "autogroup:admin",
            Selector::Autogroup(Autogroup::Role(Role::Admin)),
        ),
    ];
    for (text, selector) in cases {
        let grant = format!(r#""grants": [{{"src": ["*"], "dst": ["{text}"], "ip": ["22"]}}]"#);
        let acl =
            format!(r#""acls": [{{"action": "accept", "src": ["*"], "dst": ["{text}:22"]}}]"#);
        for snippet in [grant, acl] {
            let rule = rule(&snippet);
            assert_eq!(rule.targets[0].destination.value, selector, "{snippet}");
            assert_eq!(
                rule.targets[0].ports[0].value,
                ports(&[], 22, 22),
                "{snippet}"
            );
        }
    }
}

#[test]
fn selectors_in_the_wrong_place_are_refused() {
    let acl = |src: &str, dst: &str| {
        format!(r#""acls": [{{"action": "accept", "src": ["{src}"], "dst": ["{dst}:22"]}}]"#)
    };
    let cases = [
        (acl("autogroup:self", "*"), Cause::NotASource),
        (acl("autogroup:internet", "*"), Cause::NotASource),
        (acl("autogroup:nonroot", "*"), Cause::UnknownAutogroup),
        (acl("tag:none", "*"), Cause::TagNotFound),
        (acl("group:nobody", "*"), Cause::GroupNotFound),
        (acl("ipset:none", "*"), Cause::IpSetNotFound),
        (acl("user:*@example.org", "*"), Cause::ForeignDomain),
        (acl("user:alice@example.com", "*"), Cause::InvalidAddress),
        (acl("localpart:*@example.com", "*"), Cause::InvalidAddress),
        (acl("posture:linux", "*"), Cause::Unsupported),
        (acl("svc:web", "*"), Cause::Unsupported),
        (acl("nowhere", "*"), Cause::InvalidAddress),
        (acl("10.1.2.9-10.1.2.3", "*"), Cause::InvalidAddress),
        (acl("10.1.2.3-fd00::1", "*"), Cause::InvalidAddress),
        (acl("*", "autogroup:danger-all"), Cause::NotADestination),
        (acl("*", "autogroup:shared"), Cause::NotADestination),
        (acl("*", "user:*@example.com"), Cause::NotADestination),
        (acl("tag:web", "autogroup:self"), Cause::SelfNeedsUsers),
        (acl("web", "autogroup:self"), Cause::SelfNeedsUsers),
        (
            acl("autogroup:tagged", "autogroup:self"),
            Cause::SelfNeedsUsers,
        ),
    ];
    for (snippet, cause) in cases {
        assert_eq!(causes(&with_names(&snippet)), [cause], "{snippet}");
    }
}

#[test]
fn autogroup_self_takes_people_and_in_acls_everybody() {
    for src in [
        "alice@example.com",
        "group:ops",
        "autogroup:member",
        "autogroup:admin",
        "*",
    ] {
        rule(&format!(
            r#""acls": [{{"action": "accept", "src": ["{src}"], "dst": ["autogroup:self:*"]}}]"#
        ));
        let grant =
            format!(r#""grants": [{{"src": ["{src}"], "dst": ["autogroup:self"], "ip": ["*"]}}]"#);
        let expected = if src == "*" {
            vec![Cause::SelfNeedsUsers]
        } else {
            Vec::new()
        };
        assert_eq!(causes(&with_names(&grant)), expected, "{src}");
    }
}
