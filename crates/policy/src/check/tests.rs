//! Tests of what people ask of a policy.

mod agreement;

use std::sync::Arc;

use super::*;
use crate::Policy;
use crate::diagnostic::Cause;
use crate::tailnet::{Attribute, Node, User, UserId};
use crate::testing::{company, nodes, users};

fn network(sections: &str) -> Network {
    network_of(sections, nodes())
}

fn network_of(sections: &str, nodes: Vec<Node>) -> Network {
    Network::new(company(sections), users(), nodes)
}

/// Runs tests of a policy; each failure as message and help.
fn failures(rules: &str, tests: &str) -> Vec<String> {
    let network = network(&format!("{rules}, {tests}"));
    let failures = run_tests(&network).into_iter();
    failures
        .map(|it| format!("{} / {}", it.message, it.help.unwrap_or_default()))
        .collect()
}

const ACLS: &str = r#""acls": [
    {"action": "accept", "src": ["group:dev"], "dst": ["tag:web:80,443", "srv:22"]},
    {"action": "accept", "proto": "udp", "src": ["tag:web"], "dst": ["tag:db:53"]},
    {"action": "accept", "src": ["bob@example.com"], "dst": ["lan:*", "autogroup:self:*"]},
]"#;

fn passes(test: &str) {
    assert_eq!(failures(ACLS, &format!("\"tests\": [{test}]")), [""; 0]);
}

fn fails(test: &str) -> String {
    let failures = failures(ACLS, &format!("\"tests\": [{test}]"));
    assert_eq!(failures.len(), 1, "{failures:?}");
    failures[0].clone()
}

#[test]
fn tests_pass_for_all_kinds_of_sources_and_destinations() {
    passes(
        r#"{"src": "bob@example.com", "accept": ["tag:web:80", "srv:22"], "deny": ["100.64.0.6:80"]}"#,
    );
    passes(r#"{"src": "group:dev", "accept": ["tag:web:443"], "deny": ["tag:web:23"]}"#);
    passes(r#"{"src": "100.64.0.3", "accept": ["100.64.0.5:443", "100.64.0.5:22"]}"#);
    passes(r#"{"src": "fd7a:115c:a1e0::3", "accept": ["[fd7a:115c:a1e0::5]:443"]}"#);
    passes(r#"{"src": "tag:web", "proto": "udp", "accept": ["tag:db:53"]}"#);
    passes(r#"{"src": "tag:web", "proto": "tcp", "deny": ["tag:db:53"]}"#);
    passes(r#"{"src": "tag:web", "accept": ["tag:db:53"]}"#);
    passes(r#"{"src": "bob@example.com", "accept": ["10.0.3.4:1", "bob@example.com:22"]}"#);
    passes(r#"{"src": "bob@example.com", "deny": ["alice@example.com:22", "10.1.0.1:1"]}"#);
    passes(r#"{"src": "autogroup:tagged", "deny": ["group:dev:22"]}"#);
}

#[test]
fn tests_speak_of_people_and_tags_without_devices() {
    let rules = r#""acls": [{"action": "accept", "src": ["group:new"], "dst": ["tag:idle:22"]}]"#;
    let test = r#""tests": [{"src": "eve@example.com", "accept": ["tag:idle:22"], "deny": ["tag:web:22"]}]"#;
    assert_eq!(failures(rules, test), [""; 0]);
}

#[test]
fn a_failure_names_the_rule_that_decided() {
    let allowed = fails(r#"{"src": "group:dev", "deny": ["tag:web:80"]}"#);
    assert!(
        allowed.starts_with("test failed: group:dev (laptop) to tag:web:80 is allowed"),
        "{allowed}"
    );
    assert!(
        allowed.contains("acls[0] (line 12) allows it: {\"action\": \"accept\", \"src\":"),
        "{allowed}"
    );
    let refused = fails(r#"{"src": "carol@example.com", "accept": ["tag:web:80"]}"#);
    assert!(
        refused.contains("(carols) to tag:web:80 is not allowed"),
        "{refused}"
    );
    assert!(
        refused.ends_with("no rule has this source and this destination"),
        "{refused}"
    );
    let ports = fails(r#"{"src": "alice@example.com", "accept": ["tag:web:22"]}"#);
    assert!(
        ports.ends_with("acls[0] (line 12) allows other ports only"),
        "{ports}"
    );
}

#[test]
fn a_failure_points_at_its_destination() {
    let network = network(&format!(
        r#"{ACLS}, "tests": [{{"src": "bob@example.com", "accept": ["tag:web:80", "tag:web:81"]}}]"#
    ));
    let failures = run_tests(&network);
    assert_eq!(failures[0].cause, Cause::TestFailed);
    assert!(network.policy().text[failures[0].span.clone()].contains("tag:web:81"));
}

#[test]
fn all_devices_must_pass() {
    // `both` has both tags, `db` has not.
    let rules = r#""acls": [{"action": "accept", "src": ["tag:web"], "dst": ["tag:exit:22"]}]"#;
    let test = r#""tests": [{"src": "tag:db", "accept": ["tag:exit:22"]}]"#;
    assert!(failures(rules, test)[0].contains("tag:db (db)"));
    let test = r#""tests": [{"src": "tag:db", "deny": ["tag:exit:22"]}]"#;
    assert!(failures(rules, test)[0].contains("tag:db (both)"));
}

#[test]
fn what_is_no_test_fails() {
    for test in [
        r#"{"accept": ["tag:web:80"]}"#,
        r#"{"src": "", "accept": ["tag:web:80"]}"#,
        r#"{"src": "*", "accept": ["tag:web:80"]}"#,
        r#"{"src": "nobody@nowhere.example", "accept": ["tag:web:80"]}"#,
        r#"{"src": "tag:none", "accept": ["tag:web:80"]}"#,
        r#"{"src": "group:empty", "accept": ["tag:web:80"]}"#,
        r#"{"src": "autogroup:bogus", "accept": ["tag:web:80"]}"#,
        r#"{"src": "autogroup:internet", "accept": ["tag:web:80"]}"#,
        r#"{"src": "bob@example.com", "accept": ["tag:web:80,443"]}"#,
        r#"{"src": "bob@example.com", "accept": ["tag:web:80-81"]}"#,
        r#"{"src": "bob@example.com", "accept": ["tag:web:*"]}"#,
        r#"{"src": "bob@example.com", "accept": ["tag:web:99999"]}"#,
        r#"{"src": "bob@example.com", "accept": ["tag:web"]}"#,
        r#"{"src": "bob@example.com", "accept": ["10.0.0.0/24:22"]}"#,
        r#"{"src": "bob@example.com", "deny": ["autogroup:self:22"]}"#,
        r#"{"src": "bob@example.com", "deny": ["autogroup:internet:22"]}"#,
        r#"{"src": "bob@example.com", "deny": ["*:22"]}"#,
        r#"{"src": "bob@example.com", "deny": ["nowhere:22"]}"#,
        // What a machine is called is no matter of the policy.
        r#"{"src": "bob@example.com", "accept": ["web:80"]}"#,
    ] {
        fails(test);
    }
}

#[test]
fn a_test_supposes_a_posture() {
    let rules = r#""postures": {"posture:linux": ["node:os == 'linux'"]}, "grants": [
        {"src": ["alice@example.com"], "dst": ["tag:web"], "ip": ["22"], "srcPosture": ["posture:linux"]}]"#;
    let test = |more: &str| {
        let test =
            format!(r#""tests": [{{"src": "alice@example.com", "accept": ["tag:web:22"]{more}}}]"#);
        failures(rules, &test)
    };
    assert_eq!(
        test(r#", "srcPostureAttrs": {"node:os": "linux"}"#),
        [""; 0]
    );
    assert_eq!(
        test(r#", "srcPostureAttrs": {"node:os": "macos"}"#).len(),
        1
    );
    // What her devices are like is not the test's matter.
    assert!(test("")[0].contains("asks for a posture"));
}

#[test]
fn without_rules_everything_is_allowed() {
    let network = network(r#""tests": [{"src": "bob@example.com", "deny": ["tag:web:80"]}]"#);
    let failures = run_tests(&network);
    assert!(
        failures[0]
            .help
            .as_ref()
            .unwrap()
            .contains("without acls and grants")
    );
}

const SSH: &str = r#""ssh": [
    {"action": "accept", "src": ["group:dev"], "dst": ["tag:web"], "users": ["root", "localpart:*@example.com"]},
    {"action": "check", "src": ["bob@example.com"], "dst": ["tag:web"], "users": ["ubuntu"]},
    {"action": "accept", "src": ["bob@example.com"], "dst": ["tag:db"], "users": ["autogroup:nonroot"]},
    {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"]},
]"#;

fn ssh_passes(test: &str) {
    assert_eq!(failures(SSH, &format!("\"sshTests\": [{test}]")), [""; 0]);
}

fn ssh_fails(test: &str) -> String {
    let failures = failures(SSH, &format!("\"sshTests\": [{test}]"));
    assert_eq!(failures.len(), 1, "{failures:?}");
    failures[0].clone()
}

#[test]
fn ssh_tests_pass() {
    ssh_passes(r#"{"src": "group:dev", "dst": ["srv"], "accept": ["root"], "deny": ["admin"]}"#);
    ssh_passes(
        r#"{"src": "bob@example.com", "dst": ["srv"], "accept": ["bob", "ubuntu"], "check": ["ubuntu"], "deny": ["alice"]}"#,
    );
    ssh_passes(r#"{"src": "100.64.0.3", "dst": ["srv", "fd7a:115c:a1e0::5"], "accept": ["root"]}"#);
    ssh_passes(
        r#"{"src": "bob@example.com", "dst": ["100.64.0.6"], "accept": ["anybody"], "deny": ["root"]}"#,
    );
    ssh_passes(r#"{"src": "alice@example.com", "dst": ["autogroup:self"], "accept": ["root"]}"#);
    ssh_passes(r#"{"src": "alice@example.com", "dst": ["bob@example.com"], "deny": ["root"]}"#);
    ssh_passes(r#"{"src": "group:dev", "dst": ["autogroup:self"], "accept": ["root"]}"#);
}

#[test]
fn ssh_tests_fail_and_say_why() {
    let denied =
        ssh_fails(r#"{"src": "carol@example.com", "dst": ["tag:web"], "accept": ["root"]}"#);
    assert!(
        denied.contains("carol@example.com as \"root\" on web is not let in"),
        "{denied}"
    );
    assert!(
        denied.ends_with("no rule of \"ssh\" has this source and this destination"),
        "{denied}"
    );
    let other =
        ssh_fails(r#"{"src": "bob@example.com", "dst": ["tag:web"], "accept": ["mallory"]}"#);
    assert!(other.ends_with("are for other users"), "{other}");
    let allowed =
        ssh_fails(r#"{"src": "bob@example.com", "dst": ["tag:web"], "deny": ["ubuntu"]}"#);
    assert!(
        allowed.contains("is let in after being asked / ssh[1] (line 13)"),
        "{allowed}"
    );
    let unasked = ssh_fails(r#"{"src": "bob@example.com", "dst": ["tag:web"], "check": ["root"]}"#);
    assert!(
        unasked.contains("without being asked / ssh[0]"),
        "{unasked}"
    );
}

#[test]
fn what_is_no_ssh_test_fails() {
    for test in [
        r#"{"src": "bob@example.com", "dst": ["tag:web"], "accept": [""]}"#,
        r#"{"src": "bob@example.com", "dst": ["tag:web"]}"#,
        r#"{"src": "bob@example.com", "dst": ["tag:idle"], "accept": ["root"]}"#,
        r#"{"src": "bob@example.com", "dst": [], "accept": ["root"]}"#,
        r#"{"src": "nobody@nowhere.example", "dst": ["tag:web"], "deny": ["root"]}"#,
        r#"{"src": "tag:web", "dst": ["autogroup:self"], "accept": ["root"]}"#,
    ] {
        let network = network(&format!("{SSH}, \"sshTests\": [{test}]"));
        let failures = run_tests(&network);
        assert_eq!(failures.len(), 1, "{test}");
        assert_eq!(failures[0].cause, Cause::SshTestFailed);
    }
}

fn explain(sections: &str, source: &str, destination: &str) -> Explanation {
    why(&network(sections), source, destination).unwrap()
}

#[test]
fn why_names_the_rules_with_their_lines() {
    let answer = explain(ACLS, "laptop", "web:80");
    assert!(answer.allowed);
    assert_eq!(
        answer.summary,
        "laptop may reach web on port 80: acls[0] (line 12) allows it"
    );
    assert_eq!(answer.rules.len(), 1);
    let rule = &answer.rules[0];
    assert_eq!(
        (rule.section.as_str(), rule.index, rule.line),
        ("acls", 0, 12)
    );
    assert!(
        rule.text
            .starts_with("{\"action\": \"accept\", \"src\": [\"group:dev\"]")
    );
}

#[test]
fn why_takes_names_of_all_kinds() {
    for (source, destination) in [
        ("alice@example.com", "tag:web:80"),
        ("group:dev", "tag:web"),
        ("100.64.0.1", "srv:22"),
        ("LAPTOP", "web:tcp:22"),
        ("bobs", "10.0.3.4"),
        ("bobs", "lan:icmp"),
        ("tag:web", "db:udp:53"),
        ("bob@example.com", "bob@example.com:22"),
        ("fd7a:115c:a1e0::3", "[fd7a:115c:a1e0::5]:80"),
        ("web", "web"),
    ] {
        let answer = explain(ACLS, source, destination);
        assert!(answer.allowed, "{source} {destination}: {}", answer.summary);
    }
}

#[test]
fn why_says_what_is_missing() {
    let missing = |source, destination| {
        let answer = explain(ACLS, source, destination);
        assert!(!answer.allowed, "{}", answer.summary);
        answer.missing.join("; ")
    };
    assert_eq!(
        missing("laptop", "web:81"),
        "acls[0] (line 12) allows 22, 80, 443 only"
    );
    let reversed = "only the other direction: acls[0] (line 12) lets laptop reach web";
    assert_eq!(missing("web", "laptop:80"), reversed);
    assert_eq!(
        missing("carols", "web:80"),
        "no rule has carols as a source"
    );
    assert_eq!(
        missing("laptop", "exit"),
        "no rule has exit as a destination"
    );
    assert_eq!(
        missing("exit", "router"),
        "no rule has exit as a source or router as a destination"
    );
    let apart = "rules with laptop as a source: 1, with db as a destination: 1, with both: none";
    assert_eq!(missing("laptop", "db"), apart);
    assert!(
        missing("bobs", "10.9.0.1").contains("10.9.0.1 is no node's and within no approved route")
    );
    assert!(missing("group:empty", "web").contains("group:empty has no members"));
    assert!(missing("100.64.0.3", "fd7a:115c:a1e0::5").contains("one is an IPv4 address"));
}

#[test]
fn why_knows_postures_routers_and_exits() {
    let rules = r#""postures": {"posture:mac": ["node:os == 'macos'"]}, "grants": [
        {"src": ["alice@example.com"], "dst": ["tag:web"], "ip": ["22"], "srcPosture": ["posture:mac"]},
        {"src": ["bob@example.com"], "dst": ["lan"], "ip": ["*"], "via": ["tag:exit"]},
        {"src": ["bob@example.com"], "dst": ["autogroup:internet"], "ip": ["*"]},
        {"src": ["carol@example.com"], "dst": ["lan"], "ip": ["*"], "via": ["tag:router"]},
        {"src": ["carol@example.com"], "dst": ["tag:db"], "app": {"example.com/cap": [{}]}}]"#;
    let answer = |source, destination| explain(rules, source, destination);
    let posture = answer("laptop", "web:22");
    assert_eq!(
        posture.missing,
        ["grants[0] (line 12) asks for posture:mac, which laptop does not meet"]
    );
    let router = answer("bobs", "10.0.1.1:80");
    assert_eq!(
        router.missing,
        ["grants[1] (line 13) goes through tag:exit, and no such router serves 10.0.1.1"]
    );
    assert!(answer("carols", "10.0.1.1:80").allowed);
    assert!(answer("bobs", "8.8.8.8").allowed);
    assert!(answer("bobs", "autogroup:internet").allowed);
    assert!(!answer("carols", "8.8.8.8").allowed);
    assert_eq!(
        answer("carols", "db").missing,
        ["grants[4] (line 16) grants capabilities, but no ports"]
    );
}

#[test]
fn why_asks_each_device_of_a_name() {
    let rules = r#""acls": [{"action": "accept", "src": ["100.64.0.1"], "dst": ["tag:web:22"]}]"#;
    let answer = explain(rules, "alice@example.com", "tag:web");
    assert!(!answer.allowed);
    assert!(
        answer
            .summary
            .starts_with("alice@example.com (phone) may not reach"),
        "{}",
        answer.summary
    );
    assert_eq!(answer.rules.len(), 1, "the laptop may");
}

#[test]
fn why_without_rules_says_so() {
    let answer = explain("", "web", "db");
    assert!(answer.allowed && answer.rules.is_empty());
    assert!(answer.summary.contains("neither acls nor grants"));
    // Nor is one named among what is missing.
    let answer = explain("", "web", "10.9.0.1:80");
    assert!(!answer.allowed);
    let missing = answer.missing.join("; ");
    assert!(
        missing.contains("the policy without acls and grants would allow it, but nobody routes"),
        "{missing}"
    );
    assert!(!missing.contains("acls[0]"), "{missing}");
}

#[test]
fn why_does_not_count_on_routes_that_nobody_is_told_of() {
    let rules = r#""acls": [{"action": "accept", "src": ["bob@example.com"], "dst": ["*:*"]}]"#;
    let ask = |route: &str, destination: &str| {
        let mut router = crate::testing::node(8, "router", "tag:router");
        router.routes = [route.parse().unwrap()].into();
        let nodes = vec![crate::testing::node(3, "bobs", "2"), router];
        let network = network_of(rules, nodes);
        let bobs = crate::tailnet::NodeId(3);
        let router = crate::tailnet::NodeId(8);
        let told = !network.peer_view(bobs, router).routes.is_empty();
        let allowed = why(&network, "bobs", destination).unwrap().allowed;
        assert_eq!(allowed, told, "{route}");
        allowed
    };
    assert!(ask("10.0.0.0/8", "10.1.2.3"));
    assert!(ask(
        "fd7a:115c:a1e0:b1a:0:7:a00:0/104",
        "fd7a:115c:a1e0:b1a:0:7:a00:1"
    ));
    assert!(!ask("100.0.0.0/8", "100.1.2.3"));
    assert!(!ask("100.64.0.0/16", "100.64.9.9"));
    assert!(!ask("127.0.0.0/16", "127.0.0.1"));
}

#[test]
fn names_without_a_domain_are_of_the_tailnets_own() {
    assert!(explain(ACLS, "alice@", "tag:web:80").allowed);
    let answer = explain(ACLS, "bob@", "bob@:22");
    assert!(answer.allowed, "{}", answer.summary);
    assert!(
        answer
            .summary
            .starts_with("bob@example.com may reach bob@example.com on port 22")
    );
    let of_another_domain = why(&network(ACLS), "dora@", "web").unwrap_err();
    assert!(matches!(of_another_domain, AskError::Unknown { name } if name == "dora@example.com"));
    let open = Network::new(std::sync::Arc::new(Policy::allow_all()), users(), nodes());
    let without = why(&open, "web", "alice@:22").unwrap_err();
    assert!(matches!(without, AskError::NoDomain { name } if name == "alice@:22"));
    passes(r#"{"src": "bob@", "accept": ["bob@:22", "srv:22"], "deny": ["alice@:22"]}"#);
    ssh_passes(r#"{"src": "bob@", "dst": ["srv"], "accept": ["bob"]}"#);
}

/// The example in the documentation, in a tailnet that fits it.
#[test]
fn the_tests_of_the_annotated_example_pass() {
    let policy = crate::testing::policy(include_str!("../../../../docs/examples/policy.hujson"));
    let user = |id, login: &str| User {
        id: UserId(id),
        login: format!("{login}@example.com"),
        role: crate::tailnet::Role::Member,
        groups: Default::default(),
    };
    let company = [user(1, "alice"), user(2, "bob"), user(3, "carol")];
    let devices = || {
        let node = crate::testing::node;
        [
            node(1, "alices", "1"),
            node(2, "bobs", "2"),
            node(3, "carols", "3"),
            node(4, "web", "tag:web"),
            node(5, "db", "tag:db"),
        ]
    };
    let tests = policy.tests.len() + policy.ssh_tests.len();
    assert!(tests > 2, "what is tested tests something");
    for nodes in [devices().to_vec(), Vec::new()] {
        let network = Network::new(Arc::clone(&policy), company.clone(), nodes);
        let failures = run_tests(&network);
        assert!(failures.is_empty(), "{failures:?}");
    }
    // What its comments say.
    let network = Network::new(policy, company, devices());
    let allowed = |from, to| why(&network, from, to).unwrap().allowed;
    assert!(allowed("alices", "web:22") && allowed("carols", "web:8080"));
    assert!(!allowed("carols", "web:22") && !allowed("web", "db:22"));
    assert!(allowed("carols", "carol@:1") && !allowed("carols", "bob@:1"));
}

#[test]
fn questions_about_nobody_are_refused() {
    let network = network(ACLS);
    let unknown = |source, destination| why(&network, source, destination).unwrap_err();
    assert!(matches!(unknown("nobody", "web"), AskError::Unknown { name } if name == "nobody"));
    assert!(matches!(
        unknown("web", "nobody:22"),
        AskError::Unknown { .. }
    ));
    assert!(matches!(
        unknown("web", "tag:none:22"),
        AskError::Unknown { .. }
    ));
    // What is unknown is named whole, without its port.
    for (destination, name) in [
        ("autogroup:self", "autogroup:self"),
        ("autogroup:bogus:22", "autogroup:bogus"),
        ("tag:none", "tag:none"),
        ("tag:none:22", "tag:none"),
        ("tag:none:tcp:22", "tag:none"),
        ("nobody:tcp:22", "nobody"),
    ] {
        let error = unknown("web", destination).to_string();
        let expected = format!("\"{name}\" names nothing");
        assert!(error.starts_with(&expected), "{destination}: {error}");
    }
    assert!(unknown("", "web").to_string().starts_with("\"\" names"));
    assert!(unknown("web", "").to_string().starts_with("\"\" names"));
    for (name, with_port, login) in [
        ("Bob", "Bob:22", "bob@"),
        ("dora", "dora:22", "dora@example.org"),
    ] {
        let error = unknown("web", with_port);
        let advice = format!("did you mean the user {login}?");
        assert!(error.to_string().ends_with(&advice), "{error}");
        assert!(unknown(name, "web").to_string().ends_with(&advice));
    }
    assert!(matches!(unknown("web", "db:0"), AskError::BadPort { text } if text == "0"));
    assert!(matches!(
        unknown("web", "db:http"),
        AskError::BadPort { .. }
    ));
    assert!(matches!(
        unknown("web", "db:tcp:x"),
        AskError::BadPort { .. }
    ));
}

/// The difference between two policies, each line `+` or `-`, sources, destinations, ports.
fn changes(before: &str, after: &str) -> Vec<String> {
    let difference = diff(&network(before), &network(after));
    let line = |sign: &str, access: &Access| {
        let (sources, destinations) = (access.sources.join(" "), access.destinations.join(" "));
        format!("{sign} {sources} -> {destinations} {}", access.ports)
    };
    let gained = difference.gained.iter().map(|access| line("+", access));
    gained
        .chain(difference.lost.iter().map(|access| line("-", access)))
        .collect()
}

fn grants(rules: &str) -> String {
    format!("\"grants\": [{rules}]")
}

#[test]
fn the_same_policy_changes_nothing() {
    assert_eq!(changes(ACLS, ACLS), [""; 0]);
    // Written differently, but the same.
    let before = grants(r#"{"src": ["group:dev"], "dst": ["tag:web"], "ip": ["80-90"]}"#);
    let after = grants(
        r#"{"src": ["bob@example.com", "alice@example.com"], "dst": ["tag:web"], "ip": ["80-85"]},
           {"src": ["group:dev"], "dst": ["srv", "tag:web"], "ip": ["86-90"]}"#,
    );
    assert_eq!(changes(&before, &after), [""; 0]);
}

#[test]
fn ports_are_gained_and_lost() {
    let before =
        grants(r#"{"src": ["bob@example.com"], "dst": ["tag:db"], "ip": ["tcp:20-25", "udp:53"]}"#);
    let after = grants(r#"{"src": ["bob@example.com"], "dst": ["tag:db"], "ip": ["tcp:22-30"]}"#);
    let expected = [
        "+ bobs -> both db tcp:26-30",
        "- bobs -> both db tcp:20-21",
        "- bobs -> both db udp:53",
    ];
    assert_eq!(changes(&before, &after), expected);
}

#[test]
fn nodes_with_the_same_change_stand_together() {
    let before = grants("");
    let after =
        grants(r#"{"src": ["group:dev"], "dst": ["tag:web", "carol@example.com"], "ip": ["22"]}"#);
    assert_eq!(
        changes(&before, &after),
        ["+ bobs laptop phone -> both carols web 22"]
    );
}

#[test]
fn own_devices_are_told_apart() {
    let after = grants(r#"{"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["*"]}"#);
    assert_eq!(
        changes(&grants(""), &after),
        ["+ laptop phone -> laptop phone *"]
    );
}

#[test]
fn routes_are_destinations() {
    let before = grants(r#"{"src": ["bob@example.com"], "dst": ["lan"], "ip": ["*"]}"#);
    let after = grants(
        r#"{"src": ["bob@example.com"], "dst": ["10.0.5.0/24", "autogroup:internet"], "ip": ["*"]}"#,
    );
    let expected = ["+ bobs -> autogroup:internet *", "- bobs -> 10.0.0.0/16 *"];
    assert_eq!(changes(&before, &after), expected);
}

#[test]
fn capabilities_and_ssh_are_access_too() {
    let before = r#""grants": [{"src": ["bob@example.com"], "dst": ["tag:web"], "app": {"example.com/a": [{"x": 1}]}}],
        "ssh": [{"action": "accept", "src": ["bob@example.com"], "dst": ["tag:web"], "users": ["root"]}]"#;
    let after = r#""grants": [{"src": ["bob@example.com"], "dst": ["tag:web"], "app": {"example.com/b": []}}],
        "ssh": [{"action": "check", "src": ["bob@example.com"], "dst": ["tag:web"], "users": ["root"]}]"#;
    let expected = [
        "+ bobs -> both web example.com/b",
        "+ bobs -> both web ssh:root (check)",
        "- bobs -> both web example.com/a [{\"x\":1}]",
        "- bobs -> both web ssh:root",
    ];
    assert_eq!(changes(before, after), expected);
}

#[test]
fn from_nothing_to_something() {
    let after = grants(r#"{"src": ["tag:web"], "dst": ["tag:db"], "ip": ["22"]}"#);
    let lines = changes("", &after);
    assert!(lines.iter().all(|line| line.starts_with("- ")), "{lines:?}");
    assert!(
        lines
            .iter()
            .any(|line| line.contains("bobs") && line.ends_with(" *")),
        "{lines:?}"
    );
}

#[test]
fn postures_count_in_differences() {
    let with = |posture: &str| {
        format!(
            r#""postures": {{"posture:p": ["node:os == '{posture}'"]}}, "grants": [{{"src": ["alice@example.com"],
            "dst": ["tag:router"], "ip": ["22"], "srcPosture": ["posture:p"]}}]"#
        )
    };
    assert_eq!(
        changes(&with("linux"), &with("macos")),
        ["- laptop -> router 22"]
    );
    let mut mac = nodes();
    let macos = Attribute::Text("macos".to_owned());
    mac[0].attributes.insert("node:os".to_owned(), macos);
    let (before, after) = (network(&with("linux")), network_of(&with("macos"), mac));
    assert_eq!(diff(&before, &after), Difference::default());
}
