//! `ssh`, `tests` and `sshTests`.

use super::*;

#[test]
fn ssh_rules() {
    let policy = policy(&with_names(
        r#""ssh": [{
            "action": "check", "checkPeriod": "1h30m",
            "src": ["autogroup:member", "user:*@example.com", "group:ops", "autogroup:admin"],
            "dst": ["tag:web", "autogroup:self", "autogroup:tagged"],
            "users": [" root", "autogroup:nonroot", "localpart:*@example.com", "localpart:*@", "group:ops"],
            "acceptEnv": ["LC_*", "**"],
        }]"#,
    ));
    let rule = &policy.ssh[0];
    assert_eq!(
        rule.action,
        SshAction::Check {
            period: Duration::from_secs(5400)
        }
    );
    let users: Vec<_> = rule.users.iter().map(|user| user.value.clone()).collect();
    let name = |name: &str| SshUser::Name(name.to_owned());
    let domain = "example.com".to_owned();
    assert_eq!(
        users,
        [
            name("root"),
            SshUser::NonRoot,
            SshUser::LocalPart { domain },
            // Odd, but what Tailscale does with them.
            name("localpart:*@"),
            name("group:ops"),
        ]
    );
    assert_eq!(rule.accept_env, ["LC_*", "**"]);
}

#[test]
fn check_periods_are_go_durations() {
    let hours = |hours: f64| Duration::from_secs_f64(hours * 3600.0);
    for (text, period) in [
        ("", hours(12.0)),
        (r#""checkPeriod": "always","#, Duration::ZERO),
        (r#""checkPeriod": "0","#, Duration::ZERO),
        (r#""checkPeriod": "0s","#, Duration::ZERO),
        (r#""checkPeriod": "168h","#, hours(168.0)),
        (r#""checkPeriod": "1.5h","#, hours(1.5)),
        (r#""checkPeriod": "1h30m0s","#, hours(1.5)),
        (r#""checkPeriod": "500ms","#, Duration::from_millis(500)),
    ] {
        let text = format!(
            r#"{{"ssh": [{{"action": "check", {text} "src": [], "dst": [], "users": ["root"]}}]}}"#
        );
        assert_eq!(
            policy(&text).ssh[0].action,
            SshAction::Check { period },
            "{text}"
        );
    }
    for (period, cause) in [
        ("abc", Cause::BadDuration),
        ("", Cause::BadDuration),
        ("12", Cause::BadDuration),
        ("h", Cause::BadDuration),
        ("1d", Cause::BadDuration),
        ("1h 30m", Cause::BadDuration),
        ("99999999999999999999999h", Cause::BadDuration),
        ("-1m", Cause::CheckPeriodNegative),
        ("168h1ns", Cause::CheckPeriodTooLong),
    ] {
        let text = format!(
            r#"{{"ssh": [{{"action": "check", "checkPeriod": "{period}", "users": ["root"]}}]}}"#
        );
        assert_eq!(causes(&text), [cause], "{period}");
    }
}

#[test]
fn ssh_rules_that_are_refused() {
    let own = r#""src": ["autogroup:member"], "dst": ["autogroup:self"]"#;
    let cases = [
        (format!(r#"{own}, "users": ["root"]"#), Cause::ActionMissing),
        (
            format!(r#""action": "ACCEPT", {own}, "users": ["root"]"#),
            Cause::BadAction,
        ),
        (
            format!(r#""action": "accept", {own}"#),
            Cause::SshUsersMissing,
        ),
        (
            format!(r#""action": "accept", {own}, "users": []"#),
            Cause::SshUsersMissing,
        ),
        (
            format!(r#""action": "accept", {own}, "users": null"#),
            Cause::SshUsersMissing,
        ),
        (
            format!(r#""action": "accept", {own}, "users": ["*"]"#),
            Cause::BadSshUser,
        ),
        (
            format!(r#""action": "accept", {own}, "users": [" "]"#),
            Cause::BadSshUser,
        ),
        (
            format!(r#""action": "accept", {own}, "users": ["localpart:*@*"]"#),
            Cause::ForeignDomain,
        ),
        (
            format!(r#""action": "accept", {own}, "users": ["root"], "acceptEnv": [""]"#),
            Cause::EmptyAcceptEnv,
        ),
        (
            format!(r#""action": "accept", {own}, "users": ["root"], "checkPeriod": "1h""#),
            Cause::CheckPeriodWithoutCheck,
        ),
    ];
    let pairs = [
        ("*", "tag:web", Cause::NotASource),
        ("web", "tag:web", Cause::NotASource),
        ("10.1.2.3", "tag:web", Cause::NotASource),
        ("user:*@example.org", "tag:web", Cause::ForeignDomain),
        ("group:ops", "*", Cause::NotADestination),
        ("group:ops", "web", Cause::NotADestination),
        ("group:ops", "group:ops", Cause::NotADestination),
        ("tag:ci", "autogroup:self", Cause::SshToUser),
        ("tag:ci", "autogroup:member", Cause::SshToUser),
        ("autogroup:tagged", "alice@example.com", Cause::SshToUser),
        ("bob@example.com", "alice@example.com", Cause::SshToUser),
        ("group:ops", "alice@example.com", Cause::SshToUser),
    ];
    let pairs = pairs.map(|(src, dst, cause)| {
        (
            format!(r#""action": "accept", "src": ["{src}"], "dst": ["{dst}"], "users": ["root"]"#),
            cause,
        )
    });
    for (fields, cause) in cases.into_iter().chain(pairs) {
        let snippet = format!(r#""ssh": [{{{fields}}}]"#);
        assert_eq!(causes(&with_names(&snippet)), [cause], "{fields}");
    }
}

#[test]
fn tests_name_what_they_want_and_are_not_resolved_here() {
    let policy = policy(
        r#"{"tests": [
            {"src": "nobody@nowhere", "proto": "udp", "accept": ["phantom:53"], "deny": ["10.0.0.0/33:1"],
             "srcPostureAttrs": {"node:os": "linux", "node:tsAutoUpdate": true, "node:osVersion": 13}},
            {"accept": ["tag:none:22"]},
        ]}"#,
    );
    let test = &policy.tests[0].value;
    assert_eq!(
        (test.source.value.as_str(), test.protocol),
        ("nobody@nowhere", Some(17))
    );
    assert_eq!(
        (test.accept[0].value.as_str(), test.deny.len()),
        ("phantom:53", 1)
    );
    assert_eq!(
        test.source_attributes["node:tsAutoUpdate"],
        Attribute::Flag(true)
    );
    assert_eq!(test.source_attributes.len(), 3);
    assert_eq!(policy.tests[1].value.source.value, "");
    for (fields, cause) in [
        (r#""source": "a@b.c""#, Cause::UnknownKey),
        (r#""src": "a@b.c", "proto": "tpc""#, Cause::BadProtocol),
        (r#""src": ["a@b.c"]"#, Cause::WrongType),
        (
            r#""src": "a@b.c", "srcPostureAttrs": {"custom:x": 1}"#,
            Cause::Unsupported,
        ),
        (
            r#""src": "a@b.c", "srcPostureAttrs": {"node:os": null}"#,
            Cause::WrongType,
        ),
    ] {
        let text = format!(r#"{{"tests": [{{{fields}}}]}}"#);
        assert_eq!(causes(&text), [cause], "{fields}");
    }
}

#[test]
fn tests_of_ssh_name_single_hosts() {
    for dst in [
        "tag:web",
        "web",
        "10.1.2.3",
        "alice@example.com",
        "autogroup:self",
        "phantom",
        "fd00::1",
    ] {
        let snippet =
            format!(r#""sshTests": [{{"src": "x", "dst": ["{dst}"], "check": ["root"]}}]"#);
        assert_eq!(causes(&with_names(&snippet)), [], "{dst}");
    }
    for (dst, cause) in [
        ("tag:none", Cause::SshTestUnknownTag),
        ("tag:web:22", Cause::SshTestUnknownTag),
        ("autogroup:internet", Cause::SshTestDestination),
        ("10.1.0.0/16", Cause::SshTestDestination),
        ("office", Cause::SshTestDestination),
        ("10.1.2.3-10.1.2.4", Cause::SshTestDestination),
    ] {
        let snippet =
            format!(r#""sshTests": [{{"src": "x", "dst": ["{dst}"], "deny": ["root"]}}]"#);
        assert_eq!(causes(&with_names(&snippet)), [cause], "{dst}");
    }
}

#[test]
fn check_is_warned_of_where_the_server_cannot_ask() {
    let text = r#"{"tagOwners": {"tag:a": []}, "acls": [], "ssh": [
        {"action": "accept", "src": ["autogroup:member"], "dst": ["tag:a"], "users": ["root"]},
        {"action": "check", "src": ["autogroup:member"], "dst": ["tag:a"], "users": ["root"]},
    ]}"#;
    let warnings = |ssh_check| {
        let context = Context {
            ssh_check,
            ..Context::default()
        };
        Policy::parse("policy.hujson", text, &context)
            .unwrap()
            .warnings
    };
    assert_eq!(warnings(true), []);
    let warnings = warnings(false);
    assert_eq!(warnings.len(), 1);
    assert_eq!(warnings[0].cause, Cause::CheckNotServed);
    assert_eq!(&text[warnings[0].span.clone()], "check");
}
