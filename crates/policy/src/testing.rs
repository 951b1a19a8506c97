//! A small company for tests, with names instead of numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::file::{Context, Policy};
use crate::tailnet::{Attribute, Node, NodeId, Owner, Role, User, UserId};

/// A policy that is in order.
pub(crate) fn policy(text: &str) -> Arc<Policy> {
    let context = Context {
        domains: vec!["example.com".to_owned()],
        known_groups: vec!["group:idp".to_owned()],
        ssh_check: true,
    };
    match Policy::parse("policy.hujson", text, &context) {
        Ok(parsed) => Arc::new(parsed.policy),
        Err(errors) => panic!("{errors}"),
    }
}

/// Users: alice owns the tailnet, bob is a member, carol too, and in `group:idp`; dora is of
/// another domain.
pub(crate) fn users() -> Vec<User> {
    let user = |id, login: &str, role| User {
        id: UserId(id),
        login: login.to_owned(),
        role,
        groups: BTreeSet::new(),
    };
    let mut users = vec![
        user(1, "alice@example.com", Role::Owner),
        user(2, "bob@example.com", Role::Member),
        user(3, "carol@example.com", Role::Member),
        user(4, "dora@example.org", Role::Auditor),
    ];
    users[2].groups.insert("group:idp".to_owned());
    users
}

/// A node with the number `id`, 100.64.0.ID and fd7a:115c:a1e0::ID; `owner` is the number of a user
/// or a list of tags, such as `1` or `tag:a tag:b`.
pub(crate) fn node(id: u8, name: &str, owner: &str) -> Node {
    let owner = match owner.parse() {
        Ok(user) => Owner::User(UserId(user)),
        Err(_) => Owner::Tags(owner.split(' ').map(str::to_owned).collect()),
    };
    Node {
        id: NodeId(id.into()),
        name: name.to_owned(),
        owner,
        v4: Ipv4Addr::new(100, 64, 0, id),
        v6: Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, id.into()),
        routes: BTreeSet::new(),
        exit: false,
        online: true,
        attributes: BTreeMap::new(),
    }
}

/// Devices: alice has two, bob, carol and dora one each; `web` and `db` have a tag each, `both` has
/// both; `router` leads to 10.0.0.0/16, `exit` to the internet.
pub(crate) fn nodes() -> Vec<Node> {
    let mut router = node(8, "router", "tag:router");
    router.routes = ["10.0.0.0/16".parse().unwrap()].into();
    let mut exit = node(9, "exit", "tag:exit");
    exit.exit = true;
    let mut laptop = node(1, "laptop", "1");
    let linux = Attribute::Text("linux".to_owned());
    laptop.attributes.insert("node:os".to_owned(), linux);
    vec![
        laptop,
        node(2, "phone", "1"),
        node(3, "bobs", "2"),
        node(4, "carols", "3"),
        node(10, "doras", "4"),
        node(5, "web", "tag:web"),
        node(6, "db", "tag:db"),
        node(7, "both", "tag:db tag:web"),
        router,
        exit,
    ]
}

/// What every policy of these tests begins with.
pub(crate) const PREAMBLE: &str = r#""groups": {
        "group:dev": ["alice@example.com", "bob@example.com"],
        "group:new": ["eve@example.com"],
        "group:empty": [],
    },
    "hosts": {"srv": "100.64.0.5", "lan": "10.0.0.0/16"},
    "tagOwners": {
        "tag:web": ["group:dev"], "tag:db": ["tag:web"], "tag:router": [], "tag:exit": [],
        "tag:idle": ["autogroup:member"],
    },
    "#;

/// A policy with the groups, hosts and tags of this company and `sections`.
pub(crate) fn company(sections: &str) -> Arc<Policy> {
    policy(&format!("{{{PREAMBLE}{sections}}}"))
}
