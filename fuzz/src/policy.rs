//! Targets of `policy`.

use policy::file::Context;
use policy::{Policy, edit};
use serde_json::json;

/// A host that the target adds and removes again; inputs that name it are left out.
const HOST: &str = "added-and-removed";

/// Policy files: what is refused can be told; what is accepted can be edited and edited back.
pub fn policy_file(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let policy = match read(text) {
        Ok(policy) => policy,
        Err(refused) => {
            assert!(!refused.list.is_empty());
            assert!(!refused.render().is_empty());
            return;
        }
    };
    // Grown by a host the text must not become too long.
    if text.contains(HOST) || text.len() > 1 << 20 {
        return;
    }
    let added = edit::set(text, &["hosts", HOST], &json!("10.1.2.3"))
        .unwrap_or_else(|error| panic!("{error}"));
    let with_host = read(&added).unwrap_or_else(|refused| panic!("{refused}"));
    assert_eq!(with_host.hosts.len(), policy.hosts.len() + 1);
    let removed = edit::remove(&added, &["hosts", HOST]).unwrap_or_else(|error| panic!("{error}"));
    let without = read(&removed).unwrap_or_else(|refused| panic!("{refused}"));
    assert_eq!(without.hosts, policy.hosts);
    assert_eq!(without.groups.len(), policy.groups.len());
    assert_eq!(
        without.rules.map(|rules| rules.len()),
        policy.rules.map(|rules| rules.len())
    );
}

fn read(text: &str) -> Result<Policy, policy::Diagnostics> {
    let context = Context {
        domains: vec!["example.com".to_owned()],
        known_groups: vec!["group:sso".to_owned()],
        ssh_check: true,
    };
    Policy::parse("policy.hujson", text, &context).map(|parsed| parsed.policy)
}
