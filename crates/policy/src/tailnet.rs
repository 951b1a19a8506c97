//! Whom and what a policy is compiled for: the users and nodes of one tailnet.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

pub use control_proto::tailcfg::{NodeId, UserId};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// What exit nodes advertise (control.md 8.6). They are no subnet routes: see [`is_servable`].
pub const EXIT_ROUTES: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
];

/// Where routes lead that nobody may serve (control.md 8.6), but for [`VIA`].
const RESERVED: [IpNet; 4] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
    IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0),
        48,
    )),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
];

/// IPv4 subnets of sites, as IPv6: `fd7a:115c:a1e0:b1a:SITE:IPV4` (4via6).
const VIA: IpNet = IpNet::V6(Ipv6Net::new_assert(
    Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0xb1a, 0, 0, 0, 0),
    64,
));

/// May a node serve this as a subnet route? A route that has addresses of the overlay or of the
/// loopback interface within would take the tailnet down, or a node: nobody is told of it. So it is
/// with [`EXIT_ROUTES`], which are not for subnets. 4via6 routes lie within the overlay's range and
/// are served.
#[must_use]
pub fn is_servable(route: &IpNet) -> bool {
    let covers = |it: &IpNet| it.contains(route) || route.contains(it);
    VIA.contains(route) || !RESERVED.iter().any(covers)
}

/// A person, as far as policies can speak of one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct User {
    /// Its number.
    pub id: UserId,
    /// Login name, `name@domain`.
    pub login: String,
    /// What it may do with the tailnet.
    pub role: Role,
    /// Groups that the identity provider puts it in, with the `group:` prefix.
    pub groups: BTreeSet<String>,
}

/// Console roles (control.md 8.2). A user has one.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Role {
    /// Owns the tailnet.
    Owner,
    /// Administers everything.
    Admin,
    /// Administers users and devices.
    ItAdmin,
    /// Administers policy and network.
    NetworkAdmin,
    /// Pays.
    BillingAdmin,
    /// Reads.
    Auditor,
    /// Uses it.
    #[default]
    Member,
}

impl Role {
    /// All of them, the mightiest first.
    pub const ALL: [Self; 7] = [
        Self::Owner,
        Self::Admin,
        Self::ItAdmin,
        Self::NetworkAdmin,
        Self::BillingAdmin,
        Self::Auditor,
        Self::Member,
    ];

    /// As it is written, after `autogroup:` for one.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Admin => "admin",
            Self::ItAdmin => "it-admin",
            Self::NetworkAdmin => "network-admin",
            Self::BillingAdmin => "billing-admin",
            Self::Auditor => "auditor",
            Self::Member => "member",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// No role is called that.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "there is no role {0:?}: choose owner, admin, it-admin, network-admin, billing-admin, auditor \
     or member"
)]
pub struct UnknownRole(pub String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        let named = Self::ALL.into_iter().find(|role| role.as_str() == text);
        named.ok_or_else(|| UnknownRole(text.to_owned()))
    }
}

/// A machine, as far as policies can speak of one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Its name, a DNS label; tools that explain a policy show it.
    pub name: String,
    /// Whose it is.
    pub owner: Owner,
    /// Address on the overlay.
    pub v4: Ipv4Addr,
    /// Address on the overlay.
    pub v6: Ipv6Addr,
    /// Approved subnet routes that it advertises; no exit routes among them, host bits are zero.
    pub routes: BTreeSet<IpNet>,
    /// An approved exit node: `0.0.0.0/0` and `::/0` are approved and advertised.
    pub exit: bool,
    /// Has a map stream; decides which router a `via` grant elects.
    pub online: bool,
    /// What postures ask for: `node:os` and the like (control.md 8.1, `postures`).
    pub attributes: BTreeMap<String, Attribute>,
}

impl Node {
    /// Those of its routes that it may serve, without host bits.
    pub(crate) fn served_routes(&self) -> impl Iterator<Item = IpNet> {
        let routes = self.routes.iter().filter(|route| is_servable(route));
        routes.map(IpNet::trunc)
    }
}

/// Whose a node is: a user's, or nobody's but its tags'.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Owner {
    /// A user's.
    User(UserId),
    /// Tagged, `tag:` included; never empty.
    Tags(BTreeSet<String>),
}

/// Value of a posture attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// Text, versions included.
    Text(String),
    /// A number.
    Number(f64),
    /// Yes or no.
    Flag(bool),
}

impl Eq for Attribute {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_into_the_overlay_or_to_the_loopback_are_served_by_nobody() {
        let servable = |route: &&str| is_servable(&route.parse().unwrap());
        let reserved = [
            "100.64.0.0/10",
            "100.0.0.0/8",
            "100.100.0.0/16",
            "64.0.0.0/2",
            "127.0.0.1/32",
            "126.0.0.0/7",
            "fd7a:115c:a1e0::/48",
            "fd7a:115c:a1e0:ab12::/64",
            "fd7a:115c:a1e0:b1a::/63",
            "fc00::/7",
            "::1/128",
            "::/8",
            "0.0.0.0/0",
            "::/0",
        ];
        assert_eq!(
            Vec::from_iter(reserved.iter().filter(|it| servable(it))),
            [&""; 0]
        );
        let served = [
            "10.0.0.0/8",
            "100.128.0.0/9",
            "99.0.0.0/8",
            "128.0.0.0/1",
            "fd7a:115c:a1e0:b1a::/64",
            "fd7a:115c:a1e0:b1a:0:7:a00:0/104",
            "fd00::/16",
            "2001:db8::/32",
        ];
        assert!(served.iter().all(servable));
    }
}
