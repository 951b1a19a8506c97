//! Random policies and networks: what holds for all of them.

use std::net::IpAddr;

use control_proto::tailcfg::FilterRule;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;
use crate::compile::identity::{Families, Identity};
use crate::compile::posture;
use crate::file::Selector;
use crate::tailnet::{Attribute, Owner, User};

const SOURCES: [&str; 14] = [
    "*",
    "alice@example.com",
    "bob@",
    "group:dev",
    "group:idp",
    "group:empty",
    "tag:web",
    "tag:db",
    "autogroup:member",
    "autogroup:tagged",
    "autogroup:admin",
    "100.64.0.3",
    "lan",
    "fd7a:115c:a1e0::/120",
];
const TARGETS: [&str; 13] = [
    "*",
    "alice@example.com",
    "group:dev",
    "tag:web",
    "tag:db",
    "tag:router",
    "autogroup:member",
    "srv",
    "lan",
    "10.0.0.0/8",
    "100.64.0.4-100.64.0.6",
    "autogroup:internet",
    "autogroup:tagged",
];

fn rule() -> impl Strategy<Value = String> {
    let list = |of: &'static [&'static str]| {
        prop::collection::vec(select(of), 1..3).prop_map(|it| format!("{it:?}"))
    };
    let ip = select(vec![r#"["*"]"#, r#"["22"]"#, r#"["tcp:80-90", "udp:53"]"#]);
    let more = select(vec![
        "",
        "",
        r#", "srcPosture": ["posture:linux"]"#,
        r#", "via": ["tag:router"]"#,
    ]);
    let plain = (list(&SOURCES), list(&TARGETS), ip, more);
    let plain = plain.prop_map(|(src, dst, ip, more)| {
        format!(r#"{{"src": {src}, "dst": {dst}, "ip": {ip}{more}}}"#)
    });
    let own = Just(r#"{"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["22"]}"#);
    let no_internet: &'static [&'static str] = &TARGETS[..11];
    let app = (list(&SOURCES), list(no_internet)).prop_map(|(src, dst)| {
        format!(r#"{{"src": {src}, "dst": {dst}, "app": {{"tailscale.com/cap/drive": [{{}}]}}}}"#)
    });
    prop_oneof![6 => plain, 1 => own.prop_map(str::to_owned), 1 => app]
}

fn policy() -> impl Strategy<Value = Arc<Policy>> {
    prop::collection::vec(rule(), 0..6).prop_map(|rules| {
        let postures = r#""postures": {"posture:linux": ["node:os == 'linux'"]},"#;
        testing::company(&format!(r#"{postures} "grants": [{}]"#, rules.join(",")))
    })
}

fn any_node(id: u8) -> impl Strategy<Value = Node> {
    let owner = select(vec![
        "1",
        "2",
        "3",
        "4",
        "tag:web",
        "tag:db tag:web",
        "tag:router",
        "tag:exit",
    ]);
    let routes = select(vec![
        None,
        None,
        Some("10.0.0.0/16"),
        Some("10.0.9.0/24"),
        Some("192.0.2.0/24"),
    ]);
    (owner, routes, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        move |(owner, route, exit, online, linux)| {
            let mut node = testing::node(id, &format!("node-{id}"), owner);
            node.routes = route.into_iter().map(|net| net.parse().unwrap()).collect();
            (node.exit, node.online) = (exit, online);
            if linux {
                node.attributes
                    .insert("node:os".into(), Attribute::Text("linux".into()));
            }
            node
        },
    )
}

fn some_nodes() -> impl Strategy<Value = Vec<Node>> {
    (1..9u8).map(any_node).collect::<Vec<_>>()
}

#[derive(Clone, Debug)]
enum Change {
    Put(Node),
    Remove(NodeId),
    PutUser(User),
    Primary(&'static str, Option<NodeId>),
    /// Somebody asks, so that answers are kept.
    Ask,
}

fn change() -> impl Strategy<Value = Change> {
    let id = || (1..9i64).prop_map(NodeId);
    let user = (any::<Index>(), any::<bool>()).prop_map(|(index, admin)| {
        let mut user = index.get(&testing::users()).clone();
        if admin {
            user.role = crate::tailnet::Role::Admin;
            user.groups = ["group:idp".to_owned()].into();
        }
        user
    });
    let primary = (
        select(vec!["10.0.0.0/16", "10.0.9.0/24"]),
        prop::option::of(id()),
    );
    prop_oneof![
        4 => (1..9u8).prop_flat_map(any_node).prop_map(Change::Put),
        1 => id().prop_map(Change::Remove),
        1 => user.prop_map(Change::PutUser),
        1 => primary.prop_map(|(net, id)| Change::Primary(net, id)),
        2 => Just(Change::Ask),
    ]
}

/// All that a network answers.
fn answers(network: &Network) -> Vec<String> {
    let ids: Vec<_> = network.nodes().map(|node| node.id).collect();
    let node = |id: &NodeId| {
        let peers = network.peers(*id);
        let views: Vec<_> = peers
            .iter()
            .map(|peer| network.peer_view(*id, *peer))
            .collect();
        let rules = network.filter(*id).rules();
        format!(
            "{id:?}: {rules:?} {peers:?} {views:?} {:?}",
            network.own_view(*id)
        )
    };
    ids.iter().map(node).collect()
}

fn holds(text: &str, address: IpAddr) -> bool {
    overlaps(text, address, address)
}

/// Does an entry of a filter have some of a range?
fn overlaps(text: &str, first: IpAddr, last: IpAddr) -> bool {
    if text == "*" {
        return true;
    }
    let (from, to): (IpAddr, IpAddr) = match (text.split_once('-'), text.parse::<IpNet>()) {
        (Some((from, to)), _) => (from.parse().unwrap(), to.parse().unwrap()),
        (None, Ok(net)) => (net.network(), net.broadcast()),
        (None, Err(_)) => (text.parse().unwrap(), text.parse().unwrap()),
    };
    from.is_ipv4() == first.is_ipv4() && from <= last && first <= to
}

/// Has one of the rules the node, or what is behind it, among its sources?
fn is_source(rules: &[FilterRule], node: &Node) -> bool {
    let own = [IpAddr::from(node.v4), node.v6.into()]
        .map(|it| (it, it))
        .into_iter();
    let routes = node
        .routes
        .iter()
        .map(|net| (net.network(), net.broadcast()));
    let ranges: Vec<_> = own.chain(routes).collect();
    let mut sources = rules.iter().flat_map(|rule| &rule.src_ips);
    sources.any(|text| {
        ranges
            .iter()
            .any(|(first, last)| overlaps(text, *first, *last))
    })
}

/// May a packet pass, by the rules that a node was told?
fn passes(rules: &[FilterRule], from: IpAddr, to: IpAddr, protocol: i32, port: u16) -> bool {
    rules.iter().any(|rule| {
        let protocols: &[i32] = if rule.ip_proto.is_empty() {
            &[6, 17, 1, 58]
        } else {
            &rule.ip_proto
        };
        protocols.contains(&protocol)
            && rule.src_ips.iter().any(|text| holds(text, from))
            && rule.dst_ports.iter().any(|target| {
                let ports = target.ports.first..=target.ports.last;
                ports.contains(&port) && holds(&target.ip, to)
            })
    })
}

/// The same by the file alone, rule by rule, without anything that the compiler prepares.
fn is_allowed(
    network: &Network,
    from: &Node,
    to: &Node,
    v4: bool,
    protocol: u8,
    port: u16,
) -> bool {
    let policy = network.policy();
    let users: Vec<_> = network.users().collect();
    let find = |id| users.iter().copied().find(|user| user.id == id);
    let family = if v4 { Families::V4 } else { Families::V6 };
    let source = Identity::of_owner(policy, &from.owner, find).at(from);
    let target = Identity::of_owner(policy, &to.owner, find).at(to);
    let covers = |identity: &Identity<'_>, it: &Selector| {
        !identity.covered_by(policy, it).and(family).is_none()
    };
    let is_self = |it: &Selector| {
        let own = *it == Selector::Autogroup(crate::file::Autogroup::SelfDevices);
        own && matches!(from.owner, Owner::User(_)) && from.owner == to.owner
    };
    let rules = policy.rules.as_deref().unwrap_or_default();
    rules.iter().filter(|rule| rule.via.is_empty()).any(|rule| {
        rule.sources.iter().any(|it| covers(&source, &it.value))
            && posture::admits(policy, rule, &from.attributes)
            && rule.targets.iter().any(|it| {
                let there =
                    covers(&target, &it.destination.value) || is_self(&it.destination.value);
                there
                    && it.ports.iter().any(|ports| {
                        let ports = &ports.value;
                        let of = ports.protocols.is_empty() || ports.protocols.contains(&protocol);
                        of && (ports.first..=ports.last).contains(&port)
                    })
            })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn who_is_seen_sees_and_some_rule_says_so(policy in policy(), nodes in some_nodes()) {
        let network = Network::new(policy, testing::users(), nodes);
        let rules = |node: &Node| network.filter(node.id).rules();
        for a in network.nodes() {
            for b in network.nodes().filter(|b| b.id != a.id) {
                prop_assert_eq!(network.sees(a.id, b.id), network.sees(b.id, a.id));
                let said = is_source(&rules(a), b) || is_source(&rules(b), a);
                prop_assert_eq!(network.sees(a.id, b.id), said, "{} {}", a.name, b.name);
            }
            let sees = |b: &&Node| network.sees(a.id, b.id);
            let peers: Vec<_> = network.nodes().filter(sees).map(|b| b.id).collect();
            prop_assert_eq!(network.peers(a.id), peers);
        }
    }

    #[test]
    fn reduction_never_changes_a_verdict(
        policy in policy(),
        nodes in some_nodes(),
        protocol in select(vec![6u8, 17]),
        port in select(vec![22u16, 53, 80, 90, 91]),
    ) {
        let network = Network::new(policy, testing::users(), nodes);
        for to in network.nodes() {
            let rules = network.filter(to.id).rules();
            for from in network.nodes().filter(|from| from.id != to.id) {
                let v4 = (from.v4.into(), to.v4.into());
                let v6 = (from.v6.into(), to.v6.into());
                for (family, (source, target)) in [(true, v4), (false, v6)] {
                    let passes = passes(&rules, source, target, protocol.into(), port);
                    let allowed = is_allowed(&network, from, to, family, protocol, port);
                    prop_assert_eq!(passes, allowed, "{} to {} {}", source, target, port);
                }
            }
        }
    }

    #[test]
    fn step_by_step_is_the_same_as_at_once(
        policy in policy(),
        nodes in some_nodes(),
        changes in prop::collection::vec(change(), 1..12),
    ) {
        let mut network = Network::new(Arc::clone(&policy), testing::users(), nodes);
        for change in changes {
            match change {
                Change::Put(node) => network.put_node(node),
                Change::Remove(id) => network.remove_node(id),
                Change::PutUser(user) => network.put_user(user),
                Change::Primary(net, id) => network.set_primary(net.parse().unwrap(), id),
                Change::Ask => drop(answers(&network)),
            }
        }
        let users: Vec<_> = network.users().cloned().collect();
        let nodes: Vec<_> = network.nodes().cloned().collect();
        let mut fresh = Network::new(policy, users, nodes.into_iter().rev());
        for (net, id) in network.primaries() {
            fresh.set_primary(*net, Some(*id));
        }
        prop_assert_eq!(answers(&network), answers(&fresh));
        // A change of policy there and back is no change either.
        let policy = Arc::clone(network.policy());
        network.set_policy(Arc::new(Policy::allow_all()));
        network.set_policy(policy);
        prop_assert_eq!(answers(&network), answers(&fresh));
    }

    #[test]
    fn the_order_of_groups_and_members_does_not_matter(
        rules in prop::collection::vec(rule(), 1..5),
        nodes in some_nodes(),
    ) {
        let groups = [r#""group:dev": ["alice@example.com", "bob@example.com"]"#,
            r#""group:empty": []"#, r#""group:new": ["eve@example.com"]"#];
        let turned = [groups[2], r#""group:dev": ["bob@example.com", "alice@example.com"]"#, groups[1]];
        let policy = |groups: &[&str]| testing::policy(&format!(
            r#"{{"groups": {{{}}}, "hosts": {{"srv": "100.64.0.5", "lan": "10.0.0.0/16"}},
            "tagOwners": {{"tag:web": [], "tag:db": [], "tag:router": []}},
            "postures": {{"posture:linux": ["node:os == 'linux'"]}}, "grants": [{}]}}"#,
            groups.join(","), rules.join(",")
        ));
        let a = Network::new(policy(&groups), testing::users(), nodes.clone());
        let b = Network::new(policy(&turned), testing::users(), nodes);
        prop_assert_eq!(answers(&a), answers(&b));
    }
}
