//! Who somebody is, as far as selectors ask: the question seen from one user or device, where the
//! compiler's own tables see it from the selector. Approvers, attributes and explanations ask so.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::file::{Autogroup, IpSet, Policy, Selector};
use crate::tailnet::{Node, Owner, Role, User, UserId};

/// Address families, as a set.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Families(u8);

impl Families {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const V4: Self = Self(1);
    pub(crate) const V6: Self = Self(2);
    pub(crate) const BOTH: Self = Self(3);

    /// The family of a prefix.
    pub(crate) fn of(net: &IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    pub(crate) fn is_none(self) -> bool {
        self == Self::NONE
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(crate) fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn when(self, holds: bool) -> Self {
        if holds { self } else { Self::NONE }
    }
}

/// A person, known to the server or only named in the policy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Person<'a> {
    /// Its number, if it is known.
    pub(crate) id: Option<UserId>,
    /// Login name.
    pub(crate) login: &'a str,
    /// What it may do with the tailnet.
    pub(crate) role: Role,
}

/// A user or a device, known or supposed.
#[derive(Clone, Debug)]
pub(crate) struct Identity<'a> {
    /// Whose it is; `None` for tagged devices and for users who left.
    user: Option<Person<'a>>,
    /// The groups of that user, those of the identity provider included.
    groups: BTreeSet<&'a str>,
    /// Tags of the device; none: it is a user's.
    tags: BTreeSet<&'a str>,
    /// Addresses of the device, if it exists.
    addresses: Option<(Ipv4Addr, Ipv6Addr)>,
}

impl<'a> Identity<'a> {
    /// Somebody without a device, or with a device whose addresses do not matter.
    pub(crate) fn of_user(policy: &'a Policy, user: &'a User) -> Self {
        let mut identity = Self::of_login(policy, &user.login);
        identity
            .groups
            .extend(user.groups.iter().map(String::as_str));
        identity.user = Some(Person {
            id: Some(user.id),
            login: &user.login,
            role: user.role,
        });
        identity
    }

    /// Somebody whom the server has not seen yet.
    pub(crate) fn of_login(policy: &'a Policy, login: &'a str) -> Self {
        let groups = policy.groups.iter().filter(|(_, members)| {
            let mut members = members.iter();
            members.any(|member| names(&member.value, login))
        });
        Self {
            user: Some(Person {
                id: None,
                login,
                role: Role::Member,
            }),
            groups: groups.map(|(group, _)| group.as_str()).collect(),
            tags: BTreeSet::new(),
            addresses: None,
        }
    }

    /// A device that has these tags.
    pub(crate) fn of_tags(tags: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            user: None,
            groups: BTreeSet::new(),
            tags: tags.into_iter().collect(),
            addresses: None,
        }
    }

    /// A device of this owner; `find_user` looks users up by number.
    pub(crate) fn of_owner(
        policy: &'a Policy,
        owner: &'a Owner,
        find_user: impl FnOnce(UserId) -> Option<&'a User>,
    ) -> Self {
        match owner {
            Owner::Tags(tags) => Self::of_tags(tags.iter().map(String::as_str)),
            Owner::User(id) => match find_user(*id) {
                Some(user) => Self::of_user(policy, user),
                None => Self::of_tags([]),
            },
        }
    }

    /// The same owner's device with the addresses of `node`.
    pub(crate) fn at(mut self, node: &Node) -> Self {
        self.addresses = Some((node.v4, node.v6));
        self
    }

    /// The person whose untagged device it is.
    pub(crate) fn user(&self) -> Option<Person<'a>> {
        self.user
    }

    /// How many tags it has.
    pub(crate) fn tag_count(&self) -> usize {
        self.tags.len()
    }

    /// Are both untagged devices of one person?
    pub(crate) fn same_user(&self, other: &Self) -> bool {
        let login = |it: &Self| it.user.map(|user| user.login);
        login(self).is_some() && login(self) == login(other)
    }

    /// Which of its addresses the selector covers, as families. Owners are covered with both;
    /// a literal address covers nothing but itself. `autogroup:self` and `autogroup:internet` say
    /// nothing about who somebody is: they cover nobody.
    pub(crate) fn covered_by(&self, policy: &Policy, selector: &Selector) -> Families {
        let user = self.user;
        let of = |holds| Families::BOTH.when(holds);
        match selector {
            Selector::Any | Selector::Autogroup(Autogroup::DangerAll) => Families::BOTH,
            Selector::User(login) => of(user.is_some_and(|it| names(login, it.login))),
            Selector::UsersOf(domain) => of(user.is_some_and(|it| is_of(domain, it.login))),
            Selector::Group(group) => of(self.groups.contains(group.as_str())),
            Selector::Tag(tag) => of(self.tags.contains(tag.as_str())),
            Selector::Autogroup(Autogroup::Member) => of(user.is_some()),
            Selector::Autogroup(Autogroup::Tagged) => of(!self.tags.is_empty()),
            Selector::Autogroup(Autogroup::Role(role)) => {
                of(user.is_some_and(|it| has_role(it.role, *role)))
            }
            Selector::Host(..) | Selector::Prefix(_) | Selector::Range(..) | Selector::IpSet(_) => {
                let Some((v4, v6)) = self.addresses else {
                    return Families::NONE;
                };
                let within = |address| contains(policy, selector, address);
                let v4 = Families::V4.when(within(IpAddr::V4(v4)));
                v4.or(Families::V6.when(within(IpAddr::V6(v6))))
            }
            Selector::Autogroup(
                Autogroup::SelfDevices | Autogroup::Internet | Autogroup::Shared,
            ) => Families::NONE,
        }
    }
}

/// Does a login name as written in a policy mean this one? Case does not matter.
pub(crate) fn names(written: &str, login: &str) -> bool {
    written.eq_ignore_ascii_case(login)
}

/// Is this the login of somebody in the domain?
pub(crate) fn is_of(domain: &str, login: &str) -> bool {
    login
        .rsplit_once('@')
        .is_some_and(|(_, it)| it.eq_ignore_ascii_case(domain))
}

/// Is somebody with the role `actual` in the autogroup of `wanted`? The owner is an admin too.
pub(crate) fn has_role(actual: Role, wanted: Role) -> bool {
    actual == wanted || (wanted == Role::Admin && actual == Role::Owner)
}

/// Is an address within a literal selector?
pub(crate) fn contains(policy: &Policy, selector: &Selector, address: IpAddr) -> bool {
    covers(policy, selector, address, address)
}

/// Is a whole prefix within a literal selector?
pub(crate) fn contains_net(policy: &Policy, selector: &Selector, net: &IpNet) -> bool {
    covers(policy, selector, net.network(), net.broadcast())
}

/// Is the range `first` to `last` (of one family) within a literal selector?
fn covers(policy: &Policy, selector: &Selector, first: IpAddr, last: IpAddr) -> bool {
    match selector {
        Selector::Host(_, net) | Selector::Prefix(net) => {
            net.contains(&first) && net.contains(&last)
        }
        Selector::Range(from, to) => {
            from.is_ipv4() == first.is_ipv4() && *from <= first && last <= *to
        }
        Selector::IpSet(name) => {
            let set = policy.ipsets.get(name);
            set.is_some_and(|set| set_covers(set, first, last))
        }
        Selector::Any
        | Selector::User(_)
        | Selector::UsersOf(_)
        | Selector::Group(_)
        | Selector::Tag(_)
        | Selector::Autogroup(_) => false,
    }
}

/// The ranges of a set do not touch, so a range is within one of them or not within the set.
fn set_covers(set: &IpSet, first: IpAddr, last: IpAddr) -> bool {
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => set
            .v4
            .iter()
            .any(|(from, to)| *from <= first && last <= *to),
        (IpAddr::V6(first), IpAddr::V6(last)) => set
            .v6
            .iter()
            .any(|(from, to)| *from <= first && last <= *to),
        (IpAddr::V4(_) | IpAddr::V6(_), _) => false,
    }
}
