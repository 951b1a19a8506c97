//! Every construct of the policy language (control.md 8.1 to 8.3): what is accepted and what it
//! means, what is refused and why. How refusals read is tested in `broken.rs`.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::net::IpAddr;
use std::time::Duration;

use policy::file::{
    Autogroup, Condition, Context, OneCgnatRoute, Parsed, ProtoPorts, Rule, Selector, SshAction,
    SshUser,
};
use policy::tailnet::{Attribute, Role};
use policy::{Cause, Policy};

mod file;
mod names;
mod rules;
mod selectors;
mod ssh;

/// Definitions that the snippets refer to.
const NAMES: &str = r#"
    "groups": {"group:ops": ["alice@example.com", "bob@example.com"], "group:none": []},
    "hosts": {"web": "10.1.2.3", "office": "10.20.0.0/16", "v6": "fd00::1"},
    "tagOwners": {"tag:web": ["group:ops"], "tag:ci": ["tag:ci", "alice@example.com"]},
    "ipsets": {"ipset:set": ["10.3.0.0/16"]},
    "postures": {"posture:linux": ["node:os == 'linux'"]},
"#;

fn ports(protocols: &[u8], first: u16, last: u16) -> ProtoPorts {
    ProtoPorts {
        protocols: protocols.to_vec(),
        first,
        last,
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn sources(rule: &Rule) -> Vec<Selector> {
    rule.sources
        .iter()
        .map(|source| source.value.clone())
        .collect()
}

fn with_names(snippet: &str) -> String {
    format!("{{{NAMES}{snippet}}}")
}

/// The only rule of a snippet.
fn rule(snippet: &str) -> Rule {
    let mut rules = policy(&with_names(snippet)).rules.unwrap();
    assert_eq!(rules.len(), 1, "{snippet}");
    rules.remove(0)
}

fn policy(text: &str) -> Policy {
    read(text)
        .unwrap_or_else(|refused| panic!("{refused}"))
        .policy
}

fn causes(text: &str) -> Vec<Cause> {
    let refused = read(text).err();
    let list = refused.into_iter().flat_map(|refused| refused.list);
    list.map(|diagnostic| diagnostic.cause).collect()
}

fn read(text: &str) -> Result<Parsed, policy::Diagnostics> {
    let context = Context {
        domains: vec!["example.com".to_owned()],
        known_groups: vec!["group:sso".to_owned()],
        ssh_check: true,
    };
    Policy::parse("policy.hujson", text, &context)
}
