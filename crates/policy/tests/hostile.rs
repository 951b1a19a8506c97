//! Files that are made to hurt: each is answered soon, and the answer stays small.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use policy::file::{Context, Parsed};
use policy::tailnet::{Node, NodeId, Owner};
use policy::{Cause, Diagnostics, Network, Policy, check};

/// Far more than any of these needs on a slow and busy machine; far less than what they would take
/// if time grew with the square of the input.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_file_of_ten_megabytes_is_refused_at_once() {
    let text = format!("{{\"acls\": [{}]}}", "[],".repeat(10_000_000 / 3));
    let refused = refused(&text);
    assert_eq!(causes(&refused), [Cause::TooLarge]);
    assert!(refused.to_string().contains("bytes"));
}

#[test]
fn a_hundred_thousand_brackets_are_refused() {
    for open in ["[", "{\"a\":", "{\"acls\":[", "/**/[ // \n"] {
        assert_eq!(
            causes(&refused(&open.repeat(100_000))),
            [Cause::TooDeep],
            "{open}"
        );
    }
    // Brackets in strings and comments are none.
    let text = format!(
        "{{/* {0} */ \"hosts\": {{\"web\": \"{0}\"}}}}",
        "[".repeat(1000)
    );
    assert_eq!(causes(&refused(&text)), [Cause::InvalidAddress]);
}

#[test]
fn a_byte_order_mark_is_named() {
    let refused = refused("\u{feff}{}");
    assert_eq!(causes(&refused), [Cause::Syntax]);
    assert!(refused.to_string().contains("byte order mark"));
}

#[test]
fn a_key_a_hundred_thousand_times_is_counted() {
    let refused = refused(&format!("{{{}}}", "\"acls\": [],".repeat(100_000)));
    assert_eq!(refused.cause(), Some(Cause::DuplicateKey));
    assert_eq!(refused.list.len() + refused.omitted, 99_999);
}

#[test]
fn a_huge_list_of_bad_entries_is_counted_not_told() {
    let sources = list(300_000, |number| format!("\"host{number}\""));
    let text =
        format!("{{\"grants\": [{{\"src\": [{sources}], \"dst\": [\"*\"], \"ip\": [\"*\"]}}]}}");
    let refused = refused(&text);
    assert_eq!(refused.list.len() + refused.omitted, 300_000);
    assert!(refused.list.len() <= 1000);
    let told = refused.to_string();
    assert!(told.len() < 20_000, "{} bytes", told.len());
    assert!(
        told.contains("299980 more"),
        "{}",
        &told[told.len() - 200..]
    );
}

#[test]
fn misspellings_among_many_names_are_found_in_bounded_time() {
    let hosts = list(50_000, |number| {
        format!("\"server-in-rack-{number}\": \"10.1.2.3\"")
    });
    let sources = list(50_000, |number| format!("\"server-in-rock-{number}\""));
    let text = format!(
        "{{\"hosts\": {{{hosts}}}, \"grants\": [{{\"src\": [{sources}], \"dst\": [\"*\"], \"ip\": [\"*\"]}}]}}"
    );
    let refused = refused(&text);
    assert_eq!(
        refused.list[0].help.as_deref(),
        Some("did you mean \"server-in-rack-0\"?")
    );
}

#[test]
fn tags_that_own_each_other_in_a_long_ring_are_refused() {
    // Each tag is owned by the next one and by the first one: as many cycles as tags.
    let count = 30_000;
    let tags = list(count, |number| {
        format!(
            "\"tag:t{number}\": [\"tag:t{}\", \"tag:t0\"]",
            (number + 1) % count
        )
    });
    let refused = refused(&format!("{{\"tagOwners\": {{{tags}}}}}"));
    assert_eq!(refused.cause(), Some(Cause::TagOwnerCycle));
}

#[test]
fn a_long_chain_of_tag_owners_without_cycle_is_accepted() {
    let count = 50_000;
    let tags = list(count, |number| match number + 1 {
        next if next < count => format!("\"tag:t{number}\": [\"tag:t{next}\", \"tag:t{number}\"]"),
        _ => format!("\"tag:t{number}\": [\"alice@example.com\"]"),
    });
    assert_eq!(
        accepted(&format!("{{\"tagOwners\": {{{tags}}}}}"))
            .policy
            .tag_owners
            .len(),
        count
    );
}

#[test]
fn ipsets_that_contain_each_other_are_refused() {
    for text in [
        r#"{"ipsets": {"ipset:a": ["ipset:a"]}}"#,
        r#"{"ipsets": {"ipset:a": ["remove ipset:b"], "ipset:b": ["ipset:a"]}}"#,
    ] {
        assert_eq!(causes(&refused(text)), [Cause::IpSetCycle]);
    }
    let sets = list(50_000, |number| {
        format!("\"ipset:s{number}\": [\"ipset:s{}\"]", number + 1)
    });
    let refused = refused(&format!("{{\"ipsets\": {{{sets}}}}}"));
    assert!(causes(&refused).contains(&Cause::IpSetCycle));
}

#[test]
fn ipsets_that_multiply_are_refused() {
    let ranges = list(20_000, |number| {
        format!("\"10.{}.{}.0/25\"", number / 256, number % 256)
    });
    let copies = list(20_000, |number| {
        format!("\"ipset:c{number}\": [\"ipset:all\"]")
    });
    let refused = refused(&format!(
        "{{\"ipsets\": {{\"ipset:all\": [{ranges}], {copies}}}}}"
    ));
    assert_eq!(causes(&refused), [Cause::TooLarge]);
}

#[test]
fn a_large_ipset_in_any_order_is_evaluated_in_bounded_time() {
    // Every second address, crosswise: the factor shares no divisor with the count.
    let count = 150_000;
    let ranges = list(count, |number| {
        let number = u32::try_from(number * 65_537 % count * 2).unwrap();
        format!("\"{}\"", Ipv4Addr::from_bits(0x0a00_0000 + number))
    });
    let text = format!("{{\"ipsets\": {{\"ipset:all\": [{ranges}]}}}}");
    assert_eq!(accepted(&text).policy.ipsets["ipset:all"].v4.len(), count);
}

#[test]
fn grants_that_multiply_are_refused() {
    let destinations = list(100_000, |number| format!("\"10.{}.0.0/16\"", number % 256));
    let ports = list(100_000, |number| format!("\"{}\"", number % 60_000 + 1));
    let text = format!(
        "{{\"grants\": [{{\"src\": [\"*\"], \"dst\": [{destinations}], \"ip\": [{ports}]}}]}}"
    );
    assert_eq!(causes(&refused(&text)), [Cause::TooLarge]);
}

#[test]
fn a_single_line_of_megabytes_is_cut_in_the_message() {
    let groups = list(90_000, |number| {
        format!("\"group:g{number}\": [\"u{number}@example.com\"]")
    });
    let text = format!("{{\"groups\": {{{groups}}}, \"acls\": [{{\"src\": [\"group:x\"]}}]}}");
    let refused = refused(&text);
    assert!(refused.to_string().len() < 3000);
}

#[test]
fn thousands_of_tests_that_fail_are_counted_not_told() {
    let count = 40_000;
    let tests = list(count, |_| {
        "\n{\"src\": \"tag:a\", \"deny\": [\"tag:a:22\"]}".to_owned()
    });
    let rule = r#"{"action": "accept", "src": ["tag:a"], "dst": ["tag:a:*"]}"#;
    let names = r#""tagOwners": {"tag:a": []}"#;
    let text = format!("{{{names}, \"tests\": [{tests}],\n\"acls\": [{rule}]}}");
    let policy = Arc::new(accepted(&text).policy);
    soon(|| {
        let network = Network::new(Arc::clone(&policy), [], []);
        let failures = check::run_tests(&network);
        assert_eq!(failures.len(), count);
        let help = failures[count - 1].help.as_ref().unwrap();
        assert!(help.starts_with("acls[0] (line 40002) allows it"), "{help}");
        let refused = Diagnostics::new("policy.hujson", Arc::clone(&policy.text), failures);
        assert_eq!((refused.list.len(), refused.omitted), (1000, count - 1000));
        for (index, failure) in refused.list.iter().enumerate() {
            assert_eq!(refused.position(failure.span.start).0, index + 2);
        }
        assert!(refused.render().contains("39980 more errors"));
    });
}

#[test]
fn a_rule_of_many_addresses_is_compiled_soon_and_cited_in_short() {
    let address = |number: usize| format!("10.{}.{}.1", number / 256, number % 256);
    let sources = list(60_000, |number| format!("\"{}\"", address(number)));
    let rule = format!(r#"{{"action": "accept", "src": [{sources}], "dst": ["10.0.0.1:22"]}}"#);
    let text = format!(
        r#"{{"hosts": {{"a": "10.234.1.1", "b": "10.0.0.1"}}, "acls": [{rule}], "tests": [{{"src": "a", "deny": ["b:22"]}}]}}"#
    );
    let policy = Arc::new(accepted(&text).policy);
    soon(|| {
        let router = Node {
            id: NodeId(1),
            name: "router".to_owned(),
            owner: Owner::Tags(["tag:router".to_owned()].into()),
            v4: Ipv4Addr::new(100, 64, 0, 1),
            v6: "fd7a:115c:a1e0::1".parse().unwrap(),
            routes: ["10.0.0.0/24".parse().unwrap()].into(),
            exit: false,
            online: true,
            attributes: BTreeMap::new(),
        };
        let network = Network::new(policy, [], [router]);
        assert!(!network.filter(NodeId(1)).rules().is_empty());
        let why = check::why(&network, "10.234.1.1", "10.0.0.1:22").unwrap();
        assert!(why.allowed, "{}", why.summary);
        assert!(why.rules[0].text.len() < 500 && why.rules[0].text.ends_with('…'));
        let failures = check::run_tests(&network);
        assert!(failures[0].help.as_ref().unwrap().len() < 500);
    });
}

/// Runs what takes a fraction of a second, unless time grows with the square of the input.
fn soon(run: impl FnOnce()) {
    let start = Instant::now();
    run();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(4), "took {took:?}");
}

fn causes(refused: &Diagnostics) -> Vec<Cause> {
    refused
        .list
        .iter()
        .map(|diagnostic| diagnostic.cause)
        .collect()
}

fn list(count: usize, element: impl Fn(usize) -> String) -> String {
    let mut text = String::new();
    for number in 0..count {
        write!(
            text,
            "{}{}",
            if number > 0 { "," } else { "" },
            element(number)
        )
        .unwrap();
    }
    text
}

fn accepted(text: &str) -> Parsed {
    timed(text).unwrap_or_else(|refused| panic!("{refused}"))
}

fn refused(text: &str) -> Diagnostics {
    timed(text)
        .map(|_| panic!("accepted"))
        .unwrap_or_else(|refused| refused)
}

fn timed(text: &str) -> Result<Parsed, Diagnostics> {
    let start = Instant::now();
    let result = Policy::parse("policy.hujson", text, &Context::default());
    if let Err(refused) = &result {
        assert!(!refused.render().is_empty());
    }
    assert!(start.elapsed() < PATIENCE, "took {:?}", start.elapsed());
    result
}
