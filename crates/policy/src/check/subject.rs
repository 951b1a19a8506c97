//! Whom a question is about: devices, addresses that are no device's, the internet.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::compile::Network;
use crate::compile::identity::{self, Families, Identity};
use crate::compile::posture::Attributes;
use crate::file::{Autogroup, Policy, Selector};
use crate::tailnet::{Node, Owner, Role, User, UserId};

/// One end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Subject<'a> {
    /// What it is called.
    pub(super) name: String,
    pub(super) what: What<'a>,
    /// With which of its addresses; both, unless one was named.
    pub(super) families: Families,
}

/// What an end of a connection is.
#[derive(Clone, Debug)]
pub(super) enum What<'a> {
    /// A device. Those that do not exist are supposed: of a user or with a tag, no addresses.
    Device(Option<&'a Node>, Identity<'a>),
    /// An address or a prefix that is no node's.
    Net(IpNet),
    /// All that is reached through exit nodes.
    Internet,
}

impl<'a> Subject<'a> {
    pub(super) fn device(name: String, node: Option<&'a Node>, identity: Identity<'a>) -> Self {
        Self {
            name,
            what: What::Device(node, identity),
            families: Families::BOTH,
        }
    }

    /// A device that no rule is about, but those about everything.
    pub(super) fn nobody() -> Self {
        Self {
            families: Families::NONE,
            ..Self::device(String::new(), None, Identity::of_tags([]))
        }
    }

    pub(super) fn net(net: IpNet) -> Self {
        Self {
            name: net_name(&net),
            what: What::Net(net),
            families: Families::of(&net),
        }
    }

    pub(super) fn internet() -> Self {
        Self {
            name: "autogroup:internet".to_owned(),
            what: What::Internet,
            families: Families::BOTH,
        }
    }

    /// The node, if there is one.
    pub(super) fn as_node(&self) -> Option<&'a Node> {
        match &self.what {
            What::Device(node, _) => *node,
            What::Net(_) | What::Internet => None,
        }
    }

    /// What postures know of it.
    pub(super) fn attributes(&self) -> Option<&'a Attributes> {
        self.as_node().map(|node| &node.attributes)
    }

    /// Whose device it is.
    pub(super) fn login(&self) -> Option<&'a str> {
        match &self.what {
            What::Device(_, identity) => identity.user().map(|user| user.login),
            What::Net(_) | What::Internet => None,
        }
    }

    /// Are both devices of one user?
    pub(super) fn same_user(&self, other: &Self) -> bool {
        match (&self.what, &other.what) {
            (What::Device(_, a), What::Device(_, b)) => a.same_user(b),
            _ => false,
        }
    }
}

/// What a name may stand for in a question.
pub(super) struct Directory<'a> {
    network: &'a Network,
    policy: &'a Policy,
    /// Who their owners are, of those that were asked for.
    identities: RefCell<HashMap<UserId, Identity<'a>>>,
}

impl<'a> Directory<'a> {
    pub(super) fn new(network: &'a Network) -> Self {
        Self {
            network,
            policy: network.policy(),
            identities: RefCell::default(),
        }
    }

    /// A node.
    pub(super) fn node(&self, node: &'a Node) -> Subject<'a> {
        let identity = match &node.owner {
            Owner::Tags(tags) => Identity::of_tags(tags.iter().map(String::as_str)),
            Owner::User(id) => {
                let mut identities = self.identities.borrow_mut();
                let find = |id| self.network.users().find(|user| user.id == id);
                let new = || Identity::of_owner(self.policy, &node.owner, find);
                identities.entry(*id).or_insert_with(new).clone()
            }
        };
        Subject::device(node.name.clone(), Some(node), identity.at(node))
    }

    /// All that a name stands for, in a policy or as the name of a node.
    pub(super) fn find_node_too(&self, name: &'a str) -> Option<Vec<Subject<'a>>> {
        self.find(name).or_else(|| {
            let same = |node: &&Node| node.name.eq_ignore_ascii_case(name);
            let node = self.network.nodes().find(same)?;
            Some(vec![self.node(node)])
        })
    }

    /// All that a name stands for in a policy: nodes, and where a user or tag has none, a device
    /// that it could have. `None`: it stands for nothing. Empty: for a group without members and
    /// the like.
    pub(super) fn find(&self, name: &'a str) -> Option<Vec<Subject<'a>>> {
        if name.starts_with("tag:") {
            return self.tag(name);
        }
        if name.starts_with("group:") {
            return self.group(name);
        }
        if name.starts_with("autogroup:") {
            return self.autogroup(name);
        }
        if let Some(net) = parse_net(name) {
            return Some(self.net(net));
        }
        if name.contains('@') {
            return self.user(name);
        }
        let net = self.policy.hosts.get(name)?;
        let named = self.net(*net).into_iter().map(|subject| Subject {
            name: name.to_owned(),
            ..subject
        });
        Some(named.collect())
    }

    /// The node that has this address as its own.
    fn owner(&self, address: IpAddr) -> Option<&'a Node> {
        self.network.nodes().find(|node| match address {
            IpAddr::V4(v4) => node.v4 == v4,
            IpAddr::V6(v6) => node.v6 == v6,
        })
    }

    fn net(&self, net: IpNet) -> Vec<Subject<'a>> {
        let is_host = net.prefix_len() == net.max_prefix_len();
        let owner = is_host.then(|| self.owner(net.addr())).flatten();
        vec![match owner {
            Some(node) => Subject {
                families: Families::of(&net),
                ..self.node(node)
            },
            None => Subject::net(net),
        }]
    }

    fn tag(&self, tag: &'a str) -> Option<Vec<Subject<'a>>> {
        let has_tag = |node: &&Node| matches!(&node.owner, Owner::Tags(tags) if tags.contains(tag));
        let found = self.nodes(has_tag);
        if found.is_empty() {
            let supposed = || Subject::device(tag.to_owned(), None, Identity::of_tags([tag]));
            let exists = self.policy.tag_owners.contains_key(tag);
            return exists.then(|| vec![supposed()]);
        }
        Some(found)
    }

    fn user(&self, login: &'a str) -> Option<Vec<Subject<'a>>> {
        let named = |user: &&User| identity::names(login, &user.login);
        let Some(user) = self.network.users().find(named) else {
            let supposed = || Identity::of_login(self.policy, login);
            return mentions(self.policy, login)
                .then(|| vec![Subject::device(login.to_owned(), None, supposed())]);
        };
        Some(self.devices_of(user))
    }

    /// What would name a user of whom only the part before the `@` was given.
    pub(super) fn login_of(&self, name: &str) -> Option<String> {
        let same = |user: &&User| {
            let local = user.login.split_once('@').map(|(local, _)| local);
            local.is_some_and(|local| local.eq_ignore_ascii_case(name))
        };
        let login = &self.network.users().find(same)?.login;
        let own_domain = self.policy.domain.as_deref();
        Some(match login.split_once('@') {
            Some((local, domain)) if own_domain == Some(domain) => format!("{local}@"),
            _ => login.clone(),
        })
    }

    fn devices_of(&self, user: &'a User) -> Vec<Subject<'a>> {
        let identity = Identity::of_user(self.policy, user);
        let owned = |node: &&Node| node.owner == Owner::User(user.id);
        let nodes = self.network.nodes().filter(owned);
        let found: Vec<_> = nodes
            .map(|node| Subject::device(node.name.clone(), Some(node), identity.clone().at(node)))
            .collect();
        if found.is_empty() {
            return vec![Subject::device(user.login.clone(), None, identity)];
        }
        found
    }

    fn group(&self, group: &str) -> Option<Vec<Subject<'a>>> {
        let from_file = self.policy.groups.get(group);
        let is_member = |user: &&User| user.groups.contains(group);
        let mut members: Vec<&User> = self.network.users().filter(is_member).collect();
        if from_file.is_none() && members.is_empty() {
            return None;
        }
        let mut subjects = Vec::new();
        for login in from_file.into_iter().flatten() {
            let named = |user: &&User| identity::names(&login.value, &user.login);
            match self.network.users().find(named) {
                Some(user) => members.push(user),
                None => {
                    let login = login.value.as_str();
                    let supposed = Identity::of_login(self.policy, login);
                    subjects.push(Subject::device(login.to_owned(), None, supposed));
                }
            }
        }
        members.sort_unstable_by_key(|user| user.id);
        members.dedup_by_key(|user| user.id);
        subjects.extend(members.into_iter().flat_map(|user| self.devices_of(user)));
        Some(subjects)
    }

    fn autogroup(&self, name: &str) -> Option<Vec<Subject<'a>>> {
        let of_role = |wanted: Role| {
            let users = self.network.users();
            let users = users.filter(move |user| identity::has_role(user.role, wanted));
            let ids: BTreeSet<UserId> = users.map(|user| user.id).collect();
            self.nodes(|node| matches!(&node.owner, Owner::User(id) if ids.contains(id)))
        };
        Some(match Autogroup::named(name)? {
            Autogroup::Member => self.nodes(|node| matches!(node.owner, Owner::User(_))),
            Autogroup::Tagged => self.nodes(|node| matches!(node.owner, Owner::Tags(_))),
            Autogroup::Role(role) => of_role(role),
            Autogroup::Internet => vec![Subject::internet()],
            Autogroup::Shared => Vec::new(),
            Autogroup::SelfDevices | Autogroup::DangerAll => return None,
        })
    }

    fn nodes(&self, wanted: impl Fn(&&Node) -> bool) -> Vec<Subject<'a>> {
        let nodes = self.network.nodes().filter(|node| wanted(node));
        nodes.map(|node| self.node(node)).collect()
    }
}

/// Does the policy speak of this login, so that it may be asked about before its first visit?
fn mentions(policy: &Policy, login: &str) -> bool {
    let in_group = policy
        .groups
        .values()
        .flatten()
        .any(|it| identity::names(&it.value, login));
    let rules = policy.rules.iter().flatten();
    let in_rules = rules.flat_map(|rule| {
        let targets = rule.targets.iter().map(|target| &target.destination);
        rule.sources.iter().chain(targets)
    });
    let in_ssh = policy
        .ssh
        .iter()
        .flat_map(|rule| rule.sources.iter().chain(&rule.destinations));
    let is_login = |it: &Selector| matches!(it, Selector::User(it) if identity::names(it, login));
    in_group || in_rules.chain(in_ssh).any(|it| is_login(&it.value))
}

/// An address or a prefix.
pub(super) fn parse_net(text: &str) -> Option<IpNet> {
    let address = text.parse().map(|address: IpAddr| IpNet::from(address));
    let net = address.or_else(|_not_an_address| text.parse::<IpNet>());
    net.ok().map(|net| net.trunc())
}

/// Addresses without their length, prefixes with it.
fn net_name(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}

const fn v4(a: u8, b: u8, len: u8) -> Ipv4Net {
    Ipv4Net::new_assert(std::net::Ipv4Addr::new(a, b, 0, 0), len)
}

/// Is it an address that the tailnet gives to its nodes?
pub(super) fn is_overlay(net: &IpNet) -> bool {
    const V4: Ipv4Net = v4(100, 64, 10);
    const V6: Ipv6Net = Ipv6Net::new_assert(
        std::net::Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0),
        48,
    );
    match net {
        IpNet::V4(net) => V4.contains(net),
        IpNet::V6(net) => V6.contains(net),
    }
}
