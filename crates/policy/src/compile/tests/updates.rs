//! Changes: who is touched, and who is not.

use super::*;
use crate::tailnet::{Owner, Role};

const RULES: &str = r#""grants": [
    {"src": ["group:dev"], "dst": ["tag:web"], "ip": ["22"]},
    {"src": ["tag:db"], "dst": ["tag:exit"], "ip": ["22"]},
    {"src": ["autogroup:admin"], "dst": ["tag:router"], "ip": ["22"]},
]"#;

#[test]
fn answers_that_stay_the_same_stay_the_same_arc() {
    let mut network = company(RULES);
    let get = |network: &Network, name: &str| network.filter(id(network, name));
    let (web, exit) = (get(&network, "web"), get(&network, "exit"));
    network.put_node(testing::node(30, "new", "2"));
    assert!(Arc::ptr_eq(&exit, &get(&network, "exit")));
    assert!(!Arc::ptr_eq(&web, &get(&network, "web")));
    assert_eq!(filter(&network, "web"), ["laptop phone bobs new > web:22"]);
    network.remove_node(id(&network, "new"));
    assert_eq!(*web, *get(&network, "web"));
    // Nor does a policy change what it does not change.
    network.set_policy(testing::company(&format!("// The same.\n{RULES}")));
    assert!(Arc::ptr_eq(&exit, &get(&network, "exit")));
}

#[test]
fn nodes_with_the_same_filter_share_it() {
    let network = allow("tag:db", "*");
    let get = |name| network.filter(id(&network, name));
    assert!(Arc::ptr_eq(&get("web"), &get("bobs")));
    assert!(network.filter(NodeId(999)).rules().is_empty());
}

#[test]
fn a_clone_does_not_follow() {
    let mut network = company(RULES);
    let before = network.clone();
    network.put_node(testing::node(30, "new", "2"));
    assert_eq!(filter(&before, "web"), ["laptop phone bobs > web:22"]);
    assert_eq!(peers(&before, "web"), "laptop phone bobs");
    assert_eq!(peers(&network, "web"), "laptop phone bobs new");
}

#[test]
fn tags_roles_groups_and_logins_count_at_once() {
    let mut network = company(RULES);
    let mut bobs = node(&network, "bobs");
    bobs.owner = Owner::Tags(["tag:db".to_owned()].into());
    network.put_node(bobs);
    assert_eq!(filter(&network, "web"), ["laptop phone > web:22"]);
    assert_eq!(filter(&network, "exit"), ["bobs db both > exit:22"]);

    let mut carol = network
        .users()
        .find(|user| user.id.0 == 3)
        .cloned()
        .unwrap();
    carol.role = Role::Admin;
    network.put_user(carol.clone());
    assert_eq!(
        filter(&network, "router"),
        ["laptop phone carols > router:22"]
    );
    carol.login = "bob@example.com".to_owned();
    network.put_user(carol.clone());
    assert_eq!(filter(&network, "web"), ["laptop phone carols > web:22"]);
    network.remove_user(carol.id);
    assert_eq!(filter(&network, "web"), ["laptop phone > web:22"]);
    assert_eq!(filter(&network, "router"), ["laptop phone > router:22"]);
}

#[test]
fn an_address_that_changes_changes_everywhere() {
    let mut network = company(RULES);
    let before = network.filter(id(&network, "web"));
    let mut web = node(&network, "web");
    web.v4 = "100.64.7.7".parse().unwrap();
    network.put_node(web);
    assert_eq!(filter(&network, "web"), ["laptop phone bobs > web:22"]);
    assert_ne!(*before, *network.filter(id(&network, "web")));
    let mut phone = node(&network, "phone");
    phone.v4 = "100.64.7.8".parse().unwrap();
    network.put_node(phone);
    let rules = network.filter(id(&network, "web")).rules();
    assert!(rules[0].src_ips.contains(&"100.64.7.8".to_owned()));
    assert!(!rules[0].src_ips.contains(&"100.64.0.2".to_owned()));
}

#[test]
fn a_literal_source_outlives_the_node_that_has_it() {
    let rules = r#""grants": [{"src": ["100.64.0.3", "bob@example.com"], "dst": ["tag:web"], "ip": ["22"]}]"#;
    let mut network = company(rules);
    assert_eq!(filter(&network, "web"), ["bobs > web:22"]);
    network.remove_node(id(&network, "bobs"));
    assert_eq!(filter(&network, "web"), ["100.64.0.3 > web:22"]);
}

#[test]
fn own_devices_hear_of_a_new_one() {
    let rules =
        r#""grants": [{"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["22"]}]"#;
    let mut network = company(rules);
    assert_eq!(filter(&network, "bobs"), ["bobs > bobs:22"]);
    network.put_node(testing::node(30, "new", "2"));
    assert_eq!(filter(&network, "bobs"), ["bobs new > bobs:22"]);
    assert_eq!(peers(&network, "bobs"), "new");
    network.remove_node(id(&network, "new"));
    assert_eq!(filter(&network, "bobs"), ["bobs > bobs:22"]);
}
