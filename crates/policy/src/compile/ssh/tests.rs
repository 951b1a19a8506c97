//! Tests of SSH rules. A rule is written `users <- sources`, with `?` if it asks first.

use super::*;
use crate::tailnet::User;
use crate::testing::{company, node, nodes, users};

/// A policy in force, without the rest of a network.
struct Lab {
    policy: Arc<Policy>,
    users: Vec<User>,
    nodes: Vec<Node>,
    ssh: Ssh,
}

impl Lab {
    fn new(rules: &str) -> Self {
        let policy = company(&format!("\"ssh\": [{rules}]"));
        let ssh = Ssh::new(&policy);
        let mut lab = Self {
            policy,
            users: users(),
            nodes: Vec::new(),
            ssh,
        };
        nodes().into_iter().for_each(|node| lab.put(node));
        lab
    }

    fn identity<'a>(&'a self, node: &'a Node) -> Identity<'a> {
        let find = |id| self.users.iter().find(|user| user.id == id);
        Identity::of_owner(&self.policy, &node.owner, find).at(node)
    }

    fn put(&mut self, node: Node) {
        self.nodes.retain(|it| it.id != node.id);
        let mut ssh = std::mem::take(&mut self.ssh);
        ssh.put_node(&self.policy, &self.identity(&node), &node);
        self.ssh = ssh;
        self.nodes.push(node);
    }

    fn policy(&self, name: &str) -> Arc<SshPolicy> {
        let node = self.nodes.iter().find(|node| node.name == name).unwrap();
        let parts = self.ssh.parts(&self.policy, &self.identity(node), node.id);
        self.ssh.policy(&self.policy, &parts)
    }

    /// The rules of a node; sources by name, in the order of their addresses.
    fn rules(&self, name: &str) -> Vec<String> {
        let name_of = |address: &str| {
            let mut nodes = self.nodes.iter();
            let node = nodes.find(|node| node.v4.to_string() == address);
            node.map(|node| node.name.clone())
        };
        let rules = self.policy(name).rules.clone().into_iter().map(|rule| {
            let action = rule.action.unwrap();
            assert_ne!(action.accept, !action.hold_and_delegate.is_empty());
            let mark = if action.accept { "" } else { "? " };
            let principals = rule.principals.iter();
            let sources: Vec<_> = principals.filter_map(|it| name_of(&it.node_ip)).collect();
            assert_eq!(rule.principals.len(), 2 * sources.len(), "both families");
            let users = rule
                .ssh_users
                .iter()
                .map(|(requested, local)| format!("{requested}={local}"));
            let users: Vec<_> = users.collect();
            format!("{mark}{} <- {}", users.join(" "), sources.join(" "))
        });
        rules.collect()
    }
}

#[test]
fn root_is_refused_unless_named() {
    let lab = Lab::new(
        r#"{"action": "accept", "src": ["bob@example.com"], "dst": ["tag:web"], "users": ["ubuntu"]},
           {"action": "accept", "src": ["tag:db"], "dst": ["tag:web"], "users": ["root"]},
           {"action": "accept", "src": ["group:idp"], "dst": ["tag:web"], "users": ["autogroup:nonroot"]},"#,
    );
    let expected = [
        "root= ubuntu=ubuntu <- bobs",
        "root=root <- db both",
        "*== root= <- carols",
    ];
    assert_eq!(lab.rules("web"), expected);
    assert!(lab.rules("db").is_empty());
    assert!(lab.rules("laptop").is_empty());
}

#[test]
fn principals_are_sorted_as_text_and_tags_count() {
    let mut lab = Lab::new(
        r#"{"action": "accept", "src": ["autogroup:tagged"], "dst": ["tag:web"], "users": ["root"]}"#,
    );
    lab.put(node(10, "ten", "tag:idle"));
    assert_eq!(
        lab.rules("web"),
        ["root=root <- ten web db both both router exit"]
    );
}

#[test]
fn rules_that_ask_come_first() {
    let lab = Lab::new(
        r#"{"action": "accept", "src": ["bob@example.com"], "dst": ["tag:web"], "users": ["root"]},
           {"action": "check", "src": ["bob@example.com"], "dst": ["tag:web"], "users": ["root"]},"#,
    );
    assert_eq!(
        lab.rules("web"),
        ["? root=root <- bobs", "root=root <- bobs"]
    );
    let rules = &lab.policy("web").rules;
    let (ask, accept) = (
        rules[0].action.as_ref().unwrap(),
        rules[1].action.as_ref().unwrap(),
    );
    assert!(
        ask.hold_and_delegate
            .contains("/$SRC_NODE_ID/to/$DST_NODE_ID?local_user=$LOCAL_USER")
    );
    assert!(!ask.allow_agent_forwarding);
    assert!(accept.allow_agent_forwarding && accept.allow_local_port_forwarding);
    assert!(accept.allow_remote_port_forwarding);
}

#[test]
fn environment_variables_are_passed_on() {
    let lab = Lab::new(
        r#"{"action": "accept", "src": ["bob@example.com"], "dst": ["tag:web"], "users": ["root"],
            "acceptEnv": ["TERM", "GIT_*"]}"#,
    );
    assert_eq!(lab.policy("web").rules[0].accept_env, ["TERM", "GIT_*"]);
}

#[test]
fn self_is_the_same_users_devices() {
    let lab = Lab::new(
        r#"{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"]}"#,
    );
    assert_eq!(lab.rules("laptop"), ["root=root <- laptop phone"]);
    assert_eq!(lab.rules("bobs"), ["root=root <- bobs"]);
    assert!(lab.rules("web").is_empty());
}

#[test]
fn roles_are_sources() {
    let lab = Lab::new(
        r#"{"action": "accept", "src": ["autogroup:auditor"], "dst": ["tag:web"], "users": ["root"]}"#,
    );
    assert_eq!(lab.rules("web"), ["root=root <- doras"]);
}

#[test]
fn local_parts_make_rules_by_user() {
    let lab = Lab::new(
        r#"{"action": "accept", "src": ["bob@example.com", "dora@example.org", "tag:db"], "dst": ["tag:web"],
            "users": ["localpart:*@example.com", "ubuntu"]}"#,
    );
    let bob = ["root= ubuntu=ubuntu <- bobs", "bob=bob <- bobs"];
    // Dora is of another domain; devices without a user come last.
    let dora = ["root= ubuntu=ubuntu <- doras"];
    let tagged = ["root= ubuntu=ubuntu <- db both"];
    assert_eq!(lab.rules("web"), [&bob[..], &dora, &tagged].concat());
    // The sources' own devices are told as well, of themselves alone.
    assert_eq!(lab.rules("bobs"), bob);
    assert_eq!(lab.rules("doras"), dora);
    assert_eq!(lab.rules("db"), ["root= ubuntu=ubuntu <- db"]);
    assert!(lab.rules("laptop").is_empty());
}

#[test]
fn without_sources_there_is_no_rule() {
    let lab = Lab::new(
        r#"{"action": "accept", "src": ["group:empty"], "dst": ["tag:web"], "users": ["root"]},
           {"action": "accept", "src": ["tag:idle"], "dst": ["tag:web"], "users": ["root"]},"#,
    );
    assert!(lab.rules("web").is_empty());
}

#[test]
fn answers_are_shared_and_stay_while_they_are_true() {
    let mut lab = Lab::new(
        r#"{"action": "accept", "src": ["bob@example.com"], "dst": ["tag:web"], "users": ["root"]},
           {"action": "accept", "src": ["tag:web"], "dst": ["tag:db"], "users": ["root"]},"#,
    );
    lab.put(node(20, "web-2", "tag:web"));
    let (web, db) = (lab.policy("web"), lab.policy("db"));
    assert!(Arc::ptr_eq(&web, &lab.policy("web-2")));

    lab.put(node(3, "bobs", "2"));
    assert!(Arc::ptr_eq(&web, &lab.policy("web")), "nothing changed");
    lab.put(node(21, "web-3", "tag:web"));
    assert!(
        Arc::ptr_eq(&web, &lab.policy("web")),
        "another rule's source"
    );
    assert!(!Arc::ptr_eq(&db, &lab.policy("db")));
    assert_eq!(lab.rules("db"), ["root=root <- web-2 web-3 web both"]);

    lab.ssh.remove_node(NodeId(3));
    assert!(lab.rules("web").is_empty());
    let copy = lab.ssh.clone();
    let web = lab.nodes.iter().find(|node| node.name == "web").unwrap();
    let parts = copy.parts(&lab.policy, &lab.identity(web), web.id);
    let answer = copy.policy(&lab.policy, &parts);
    assert!(
        Arc::ptr_eq(&answer, &lab.policy("web")),
        "a copy has the same answers"
    );
}
