//! The selectors that rules use, each once, and what they cover.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::identity::{Families, Identity};
use crate::file::{Autogroup, Policy, Selector};
use crate::tailnet::Node;

/// What exit nodes are for: everything but private, shared, link-local and special addresses.
pub(crate) const INTERNET: [&str; 8] = [
    "1.0.0.0-9.255.255.255",
    "11.0.0.0-100.63.255.255",
    "100.128.0.0-126.255.255.255",
    "128.0.0.0-169.253.255.255",
    "169.255.0.0-172.15.255.255",
    "172.32.0.0-192.167.255.255",
    "192.169.0.0-223.255.255.255",
    "2000::-3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
];

/// What the source `*` stands for, beside the subnets: the addresses that nodes can have. The gap
/// is what ChromeOS uses for itself.
pub(crate) const EVERY_NODE: [&str; 3] = [
    "100.115.94.0-100.127.255.255",
    "100.64.0.0-100.115.91.255",
    "fd7a:115c:a1e0::/48",
];

/// Number of a selector in the table.
pub(crate) type SelectorId = usize;

/// Which part of a node a selector covers.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) struct Cover(u8);

impl Cover {
    pub(crate) const NOTHING: Self = Self(0);
    /// Its IPv4 address.
    pub(crate) const V4: Self = Self(1);
    /// Its IPv6 address.
    pub(crate) const V6: Self = Self(2);
    /// Both.
    pub(crate) const ADDRESSES: Self = Self(3);
    /// Some of a subnet that it routes.
    pub(crate) const ROUTE: Self = Self(4);
    /// What it is an exit to.
    pub(crate) const EXIT: Self = Self(8);

    pub(crate) fn is_nothing(self) -> bool {
        self == Self::NOTHING
    }

    pub(crate) fn has(self, part: Self) -> bool {
        self.0 & part.0 != 0
    }

    pub(crate) fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn only(self, parts: Self) -> Self {
        Self(self.0 & parts.0)
    }

    fn when(self, holds: bool) -> Self {
        if holds { self } else { Self::NOTHING }
    }
}

impl From<Families> for Cover {
    fn from(families: Families) -> Self {
        let has = |family: Families| !families.and(family).is_none();
        let v4 = Self::V4.when(has(Families::V4));
        v4.or(Self::V6.when(has(Families::V6)))
    }
}

/// Addresses as they are written.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Literal {
    first: IpAddr,
    last: IpAddr,
    /// On the wire: an address, a prefix or `a-b`.
    pub(crate) text: Arc<str>,
    /// Some of it is the internet's.
    pub(crate) public: bool,
}

impl Literal {
    fn new(first: IpAddr, last: IpAddr) -> Self {
        let mut nets = subnets(first, last);
        let text = match (nets.next(), nets.next()) {
            (Some(net), None) if net.prefix_len() == net.max_prefix_len() => first.to_string(),
            (Some(net), None) => net.to_string(),
            _ => format!("{first}-{last}"),
        };
        let public = internet().any(|(from, to)| overlap((first, last), (from, to)));
        Self {
            first,
            last,
            text: text.into(),
            public,
        }
    }

    /// The same as prefixes.
    pub(crate) fn nets(&self) -> impl Iterator<Item = IpNet> + use<> {
        subnets(self.first, self.last)
    }

    /// Is some of the subnet within?
    pub(crate) fn overlaps(&self, net: &IpNet) -> bool {
        overlap((self.first, self.last), (net.network(), net.broadcast()))
    }

    fn contains(&self, address: IpAddr) -> bool {
        overlap((self.first, self.last), (address, address))
    }

    fn cover(&self, node: &Node, routes: &BTreeSet<IpNet>) -> Cover {
        let v4 = Cover::V4.when(self.contains(node.v4.into()));
        let v6 = Cover::V6.when(self.contains(node.v6.into()));
        let route = Cover::ROUTE.when(routes.iter().any(|route| self.overlaps(route)));
        let exit = Cover::EXIT.when(node.exit && self.public);
        v4.or(v6).or(route).or(exit)
    }
}

fn subnets(first: IpAddr, last: IpAddr) -> Box<dyn Iterator<Item = IpNet>> {
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            Box::new(Ipv4Subnets::new(first, last, 0).map(IpNet::V4))
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            Box::new(Ipv6Subnets::new(first, last, 0).map(IpNet::V6))
        }
        (IpAddr::V4(_) | IpAddr::V6(_), _) => Box::new(std::iter::empty()),
    }
}

fn overlap(a: (IpAddr, IpAddr), b: (IpAddr, IpAddr)) -> bool {
    a.0.is_ipv4() == b.0.is_ipv4() && a.0 <= b.1 && b.0 <= a.1
}

/// The ranges of [`INTERNET`].
fn internet() -> impl Iterator<Item = (IpAddr, IpAddr)> {
    let v4 = |a: [u8; 4], b: [u8; 4]| (Ipv4Addr::from(a).into(), Ipv4Addr::from(b).into());
    let v6 = (
        IpAddr::V6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0)),
        IpAddr::V6(Ipv6Addr::new(
            0x3fff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff,
        )),
    );
    [
        v4([1, 0, 0, 0], [9, 255, 255, 255]),
        v4([11, 0, 0, 0], [100, 63, 255, 255]),
        v4([100, 128, 0, 0], [126, 255, 255, 255]),
        v4([128, 0, 0, 0], [169, 253, 255, 255]),
        v4([169, 255, 0, 0], [172, 15, 255, 255]),
        v4([172, 32, 0, 0], [192, 167, 255, 255]),
        v4([192, 169, 0, 0], [223, 255, 255, 255]),
        v6,
    ]
    .into_iter()
}

/// A selector, by the way in which it covers nodes.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Kind {
    /// `*`, and `autogroup:danger-all` too if set.
    Any {
        /// Those outside of the tailnet too.
        outside: bool,
    },
    /// Nodes by their owner.
    Owner(Selector),
    /// Addresses.
    Literal(Literal),
    /// `autogroup:self`
    SelfDevices,
    /// `autogroup:internet`
    Internet,
}

/// All selectors of the rules of a policy. Sets of addresses are taken apart into their ranges.
#[derive(Debug, Default)]
pub(crate) struct Table {
    kinds: Vec<Kind>,
    numbers: HashMap<Kind, SelectorId>,
    ids: HashMap<Selector, Vec<SelectorId>>,
}

impl Table {
    /// The numbers of a selector, which gets some if it is new.
    pub(crate) fn intern(&mut self, policy: &Policy, selector: &Selector) -> &[SelectorId] {
        if !self.ids.contains_key(selector) {
            let ids = kinds(policy, selector)
                .into_iter()
                .map(|kind| self.number(kind));
            let ids = ids.collect();
            self.ids.insert(selector.clone(), ids);
        }
        &self.ids[selector]
    }

    fn number(&mut self, kind: Kind) -> SelectorId {
        if let Some(number) = self.numbers.get(&kind) {
            return *number;
        }
        let number = self.kinds.len();
        self.kinds.push(kind.clone());
        self.numbers.insert(kind, number);
        number
    }

    pub(crate) fn kind(&self, id: SelectorId) -> &Kind {
        &self.kinds[id]
    }

    /// What each selector covers of devices of one owner, as far as the owner decides it.
    pub(crate) fn covers_of_owner(&self, policy: &Policy, identity: &Identity<'_>) -> Arc<[Cover]> {
        let cover = |kind: &Kind| match kind {
            Kind::Any { .. } => Cover::ADDRESSES,
            Kind::Owner(selector) => identity.covered_by(policy, selector).into(),
            Kind::Literal(_) | Kind::SelfDevices | Kind::Internet => Cover::NOTHING,
        };
        self.kinds.iter().map(cover).collect()
    }

    /// What each selector covers of a node, given what it covers by its owner.
    pub(crate) fn covers(
        &self,
        of_owner: &[Cover],
        node: &Node,
        routes: &BTreeSet<IpNet>,
    ) -> Box<[Cover]> {
        let cover = |(kind, of_owner): (&Kind, &Cover)| match kind {
            Kind::Any { .. } => {
                let route = Cover::ROUTE.when(!routes.is_empty());
                of_owner.or(route).or(Cover::EXIT.when(node.exit))
            }
            Kind::Owner(_) | Kind::SelfDevices => *of_owner,
            Kind::Literal(literal) => literal.cover(node, routes),
            Kind::Internet => Cover::EXIT.when(node.exit),
        };
        self.kinds.iter().zip(of_owner).map(cover).collect()
    }

    /// Does the selector cover some of a subnet?
    pub(crate) fn covers_net(&self, id: SelectorId, net: &IpNet) -> bool {
        match self.kind(id) {
            Kind::Any { .. } => true,
            Kind::Literal(literal) => literal.overlaps(net),
            Kind::Owner(_) | Kind::SelfDevices | Kind::Internet => false,
        }
    }
}

fn kinds(policy: &Policy, selector: &Selector) -> Vec<Kind> {
    let range = |first: IpAddr, last| Kind::Literal(Literal::new(first, last));
    match selector {
        Selector::Any => vec![Kind::Any { outside: false }],
        Selector::Autogroup(Autogroup::DangerAll) => vec![Kind::Any { outside: true }],
        Selector::Autogroup(Autogroup::SelfDevices) => vec![Kind::SelfDevices],
        Selector::Autogroup(Autogroup::Internet) => vec![Kind::Internet],
        Selector::Host(_, net) | Selector::Prefix(net) => {
            vec![range(net.network(), net.broadcast())]
        }
        Selector::Range(first, last) => vec![range(*first, *last)],
        Selector::IpSet(name) => policy.ipsets.get(name).map_or_else(Vec::new, |set| {
            let v4 = set
                .v4
                .iter()
                .map(|(first, last)| range((*first).into(), (*last).into()));
            let v6 = set
                .v6
                .iter()
                .map(|(first, last)| range((*first).into(), (*last).into()));
            v4.chain(v6).collect()
        }),
        Selector::User(_)
        | Selector::UsersOf(_)
        | Selector::Group(_)
        | Selector::Tag(_)
        | Selector::Autogroup(
            Autogroup::Member | Autogroup::Tagged | Autogroup::Shared | Autogroup::Role(_),
        ) => vec![Kind::Owner(selector.clone())],
    }
}
