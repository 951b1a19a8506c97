//! A recorded case.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use policy::Network;
use policy::tailnet::{Node, NodeId, Owner, Role, User, UserId};
use serde::Deserialize;
use serde_json::Value;

/// The tailnet of the recordings is that of its owner.
pub(crate) const DOMAIN: &str = "example.com";

const IS_ADMIN: &str = "https://tailscale.com/cap/is-admin";

#[derive(Debug, Deserialize)]
pub(crate) struct Case {
    pub(crate) id: String,
    pub(crate) category: String,
    pub(crate) policy: String,
    pub(crate) status: u16,
    #[serde(default)]
    pub(crate) error: Option<Refusal>,
    users: Vec<RecordedUser>,
    nodes: BTreeMap<String, RecordedNode>,
    #[serde(default)]
    primary: Option<BTreeMap<IpNet, Vec<String>>>,
    #[serde(default)]
    told: Option<BTreeMap<String, Told>>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) message: String,
}

#[derive(Debug, Deserialize)]
struct RecordedUser {
    id: i64,
    name: String,
    email: String,
}

#[derive(Debug, Deserialize)]
struct RecordedNode {
    user: Option<String>,
    tags: Option<Vec<String>>,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
    routable_ips: Option<Vec<IpNet>>,
    approved_routes: Option<Vec<IpNet>>,
}

/// What a node was told.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Told {
    #[serde(default)]
    pub(crate) filter: Option<Vec<Value>>,
    #[serde(default, rename = "self")]
    pub(crate) own: Option<ToldNode>,
    #[serde(default)]
    pub(crate) peers: Option<BTreeMap<String, ToldNode>>,
    #[serde(default)]
    pub(crate) ssh: Option<Vec<Value>>,
}

/// What it was told of a node.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct ToldNode {
    pub(crate) addresses: Option<Vec<IpNet>>,
    #[serde(rename = "AllowedIPs")]
    pub(crate) allowed_ips: Option<Vec<IpNet>>,
    pub(crate) primary_routes: Option<Vec<IpNet>>,
    pub(crate) cap_map: Option<BTreeMap<String, Value>>,
}

impl Case {
    pub(crate) fn users(&self) -> Vec<User> {
        let user = |(index, user): (usize, &RecordedUser)| User {
            id: UserId(user.id),
            login: match user.email.as_str() {
                "" => format!("{}@{DOMAIN}", user.name),
                email => email.to_owned(),
            },
            role: match index {
                0 => Role::Owner,
                _ if self.is_admin(&user.name) => Role::Admin,
                _ => Role::Member,
            },
            groups: BTreeSet::new(),
        };
        self.users.iter().enumerate().map(user).collect()
    }

    /// Administrators are told so.
    fn is_admin(&self, user: &str) -> bool {
        let is_its = |node: &RecordedNode| node.user.as_deref() == Some(user);
        let mut devices = self.nodes.iter().filter(|(_, node)| is_its(node));
        devices.any(|(name, _)| {
            let own = self.told(name).and_then(|told| told.own.as_ref());
            own.and_then(|own| own.cap_map.as_ref())
                .is_some_and(|it| it.contains_key(IS_ADMIN))
        })
    }

    /// The nodes as they were. Some had routes that were approved by the policy itself, which the
    /// recording only shows in what they were told.
    pub(crate) fn nodes(&self, network: &Network) -> Vec<Node> {
        let node = |(name, id): (&String, NodeId)| {
            let recorded = &self.nodes[name];
            let owner = match &recorded.user {
                Some(name) if recorded.tags.iter().flatten().next().is_none() => {
                    let user = self.users.iter().find(|user| user.name == *name);
                    Owner::User(UserId(user.map_or(-1, |user| user.id)))
                }
                _ => Owner::Tags(recorded.tags.iter().flatten().cloned().collect()),
            };
            let told = self.told(name).and_then(|told| told.own.as_ref());
            let told = told.and_then(|own| own.allowed_ips.as_ref());
            let advertised = recorded.routable_ips.as_deref().unwrap_or_default();
            let approved_later = network.auto_approved(&owner, advertised);
            let approved_later = approved_later
                .into_iter()
                .filter(|net| told.is_some_and(|told| told.contains(net)));
            let approved = recorded
                .approved_routes
                .iter()
                .flatten()
                .copied()
                .chain(approved_later);
            let (exit, routes): (Vec<_>, Vec<_>) = approved.partition(|net| net.prefix_len() == 0);
            Node {
                id,
                name: name.clone(),
                owner,
                v4: recorded.ipv4,
                v6: recorded.ipv6,
                routes: routes.into_iter().collect(),
                exit: !exit.is_empty(),
                online: true,
                attributes: BTreeMap::new(),
            }
        };
        self.numbers().into_iter().map(node).collect()
    }

    /// Numbers by name. Routers that were primary come first, since it was who came first.
    fn numbers(&self) -> BTreeMap<&String, NodeId> {
        let primaries: BTreeSet<_> = self.primary.iter().flatten().flat_map(|it| it.1).collect();
        let mut names: Vec<_> = self.nodes.keys().collect();
        names.sort_by_key(|name| !primaries.contains(name));
        names
            .into_iter()
            .zip(1..)
            .map(|(name, number)| (name, NodeId(number)))
            .collect()
    }

    /// Who served the routes that several nodes have, apart from what `via` chose for some.
    pub(crate) fn primaries(&self) -> Vec<(IpNet, NodeId)> {
        let numbers = self.numbers();
        let primaries = self.primary.iter().flatten();
        let primary = |(route, names): (&IpNet, &Vec<String>)| {
            let believes = |name: &&String| {
                let own = self.told(name).and_then(|told| told.own.as_ref());
                own.is_some_and(|own| own.primary_routes.iter().flatten().any(|it| it == route))
            };
            let name = names.iter().find(believes).or_else(|| names.first())?;
            Some((*route, *numbers.get(name)?))
        };
        primaries.filter_map(primary).collect()
    }

    fn told(&self, name: &str) -> Option<&Told> {
        self.told.as_ref()?.get(name)
    }

    /// What each node was told, by its name and number; nodes of which nothing was recorded
    /// are left out.
    pub(crate) fn answers(&self) -> impl Iterator<Item = (&str, NodeId, &Told)> {
        let numbers = self.numbers();
        let told = self
            .told
            .iter()
            .flatten()
            .filter(|(_, told)| told.own.is_some());
        told.filter_map(move |(name, told)| Some((name.as_str(), *numbers.get(name)?, told)))
    }

    /// The node with one of these addresses. Peers are recorded under names that can differ.
    pub(crate) fn node_at(&self, addresses: &[IpNet]) -> Option<(&str, NodeId)> {
        let has = |node: &RecordedNode| {
            let own = [
                IpNet::from(std::net::IpAddr::from(node.ipv4)),
                std::net::IpAddr::from(node.ipv6).into(),
            ];
            own.iter().any(|it| addresses.contains(it))
        };
        let (name, _) = self.nodes.iter().find(|(_, node)| has(node))?;
        Some((name.as_str(), self.numbers()[name]))
    }
}
