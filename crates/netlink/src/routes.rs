//! Routes into one interface in one table: dump → plan → apply.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};

use crate::{Error, Family, Netlink, links, rules};

// What the kernel answers for a destination without a way: prohibited, a black hole, no route, unreachable.
const EACCES: i32 = 13;
const EINVAL: i32 = 22;
const ENETUNREACH: i32 = 101;
const EHOSTUNREACH: i32 = 113;

/// Table that holds the overlay's routes. Upstream's number, so that its documentation carries over.
pub const TABLE: u32 = 52;

/// Marks routes without an interface as ours: nothing else tells whose they are.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(152);

/// What happens to packets for a destination.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Target {
    /// They go into the interface, and may be so long in bytes, if that is not up to the interface.
    Interface(Option<u32>),
    /// The table has nothing to say about them: the next rule decides.
    Throw,
    /// They are refused with ICMP unreachable.
    Unreachable,
}

impl Target {
    /// Whether packets go into the interface.
    #[must_use]
    pub fn is_interface(self) -> bool {
        matches!(self, Target::Interface(_))
    }
}

/// The routes of one interface in one table: what happens to which destination.
pub type Routes = BTreeMap<IpNet, Target>;

/// One change to the routes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    /// Routes a destination.
    Add(IpNet, Target),
    /// Gives a route into the interface another MTU; no packet is without a way meanwhile.
    Resize(IpNet, Option<u32>),
    /// Takes the route to a destination away.
    Remove(IpNet, Target),
}

/// Returns the routes of `table` that belong to the interface `index`: those that lead into it, and those
/// that [`apply`] made for it and that lead nowhere.
///
/// # Errors
///
/// Whatever the kernel answered; a table that does not exist is an empty one.
pub async fn dump(netlink: &Netlink, table: u32, index: u32) -> Result<Routes, Error> {
    Ok(dump_table(netlink, table)
        .await?
        .into_iter()
        .filter(|found| found.owner() == Some(index))
        .map(|found| (found.destination, found.target))
        .collect())
}

/// Removes routes that [`apply`] made for interfaces which are gone: the kernel takes only those along that
/// lead into an interface.
///
/// # Errors
///
/// Whatever the kernel answered.
pub async fn remove_orphans(netlink: &Netlink, table: u32) -> Result<(), Error> {
    let owned = |found: &Found| !found.target.is_interface();
    let found = dump_table(netlink, table).await?;
    if !found.iter().any(owned) {
        return Ok(());
    }
    let links = links::dump(netlink).await?;
    let present: BTreeSet<u32> = links.iter().map(|link| link.index).collect();
    for found in found.into_iter().filter(owned) {
        if let Some(index) = found.owner().filter(|index| !present.contains(index)) {
            let change = Change::Remove(found.destination, found.target);
            apply(netlink, table, index, change).await?;
        }
    }
    Ok(())
}

/// Returns true if `table` holds no route, of whichever interface.
///
/// # Errors
///
/// Whatever the kernel answered.
pub async fn is_empty(netlink: &Netlink, table: u32) -> Result<bool, Error> {
    Ok(dump_table(netlink, table).await?.is_empty())
}

/// How our own packets get somewhere.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Way {
    /// Number of the interface by which they leave.
    pub interface: u32,
    /// The router that they go to; `None` if the destination is on a network of this host's own.
    pub gateway: Option<IpAddr>,
    /// The address that they come from.
    pub source: Option<IpAddr>,
}

/// Returns the way by which our own packets reach `destination`, which is never the overlay; `None` where
/// there is none. Nothing is sent.
///
/// # Errors
///
/// Whatever the kernel answered.
pub async fn way_to(netlink: &Netlink, destination: IpAddr) -> Result<Option<Way>, Error> {
    let Some(message) = look_up(netlink, destination).await? else {
        return Ok(None);
    };
    let (mut interface, mut gateway, mut source) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            _ => {}
        }
    }
    Ok(interface.map(|interface| Way {
        interface,
        gateway,
        source,
    }))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// A router, and how it sees us.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Gateway {
    /// Its address on our side.
    pub address: Ipv4Addr,
    /// Our address on its side.
    pub own: Ipv4Addr,
}

/// Returns the router that leads to `destination`, as for [`way_to`]; `None` if it is on a network of this
/// host's own, or if no IPv4 router leads there. Nothing is sent.
///
/// # Errors
///
/// Whatever the kernel answered.
pub async fn gateway_to(
    netlink: &Netlink,
    destination: Ipv4Addr,
) -> Result<Option<Gateway>, Error> {
    let way = way_to(netlink, destination.into()).await?;
    Ok(way.and_then(|way| match (way.gateway, way.source) {
        (Some(IpAddr::V4(address)), Some(IpAddr::V4(own))) => Some(Gateway { address, own }),
        _ => None,
    }))
}

/// Asks the kernel how our own packets get to `destination`.
async fn look_up(netlink: &Netlink, destination: IpAddr) -> Result<Option<RouteMessage>, Error> {
    let mut request = RouteMessage::default();
    let (family, address, len) = match destination {
        IpAddr::V4(address) => (AddressFamily::Inet, RouteAddress::Inet(address), 32),
        IpAddr::V6(address) => (AddressFamily::Inet6, RouteAddress::Inet6(address), 128),
    };
    request.header.address_family = family;
    request.header.destination_prefix_length = len;
    request
        .attributes
        .push(RouteAttribute::Destination(address));
    // Our own packets' way: not back into the overlay.
    request
        .attributes
        .push(RouteAttribute::Mark(rules::UNDERLAY_MARK));
    let mut messages = std::pin::pin!(netlink.route.route().get(request).execute());
    match messages.try_next().await {
        Ok(message) => Ok(message),
        Err(error) => {
            let error = Error::from_route("RTM_GETROUTE", &destination.to_string(), error);
            let unreachable = [EACCES, EINVAL, ENETUNREACH, EHOSTUNREACH].map(Some);
            if unreachable.contains(&error.errno()) || error.is_family_missing() {
                return Ok(None);
            }
            Err(error)
        }
    }
}

/// One route as the kernel has it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Found {
    destination: IpNet,
    target: Target,
    interface: Option<u32>,
    metric: u32,
    marked: bool,
}

impl Found {
    /// The interface whose route it is.
    fn owner(&self) -> Option<u32> {
        match self.target {
            Target::Interface(_) => self.interface,
            // IPv6 says `lo` for these.
            Target::Throw | Target::Unreachable => self.marked.then_some(self.metric),
        }
    }
}

async fn dump_table(netlink: &Netlink, table: u32) -> Result<Vec<Found>, Error> {
    let mut routes = Vec::new();
    for family in Family::BOTH {
        // An empty header but for family and table: the kernel filters by what is set.
        let mut request = RouteMessage::default();
        request.header.address_family = match family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        request.attributes.push(RouteAttribute::Table(table));
        let mut messages = std::pin::pin!(netlink.route.route().get(request).execute());
        loop {
            match messages.try_next().await {
                Ok(Some(message)) => routes.extend(parse(&message, table)),
                Ok(None) => break,
                Err(error) => {
                    let error = Error::from_route("RTM_GETROUTE", &format!("table {table}"), error);
                    if error.is_gone() || error.is_family_missing() {
                        break;
                    }
                    return Err(error);
                }
            }
        }
    }
    Ok(routes)
}

/// Returns the changes that turn `actual` into `desired`. Pure.
///
/// New routes come before old ones go, so that no packet takes a way in between that neither allows; where
/// the same destination gets another target, the old one goes first: both have the same place in the table.
#[must_use]
pub fn plan(desired: &Routes, actual: &Routes) -> Vec<Change> {
    let mut changes = Vec::new();
    for (&destination, &target) in desired {
        match actual.get(&destination) {
            Some(&old) if old == target => {}
            Some(&old) => match (old, target) {
                (Target::Interface(_), Target::Interface(mtu)) => {
                    changes.push(Change::Resize(destination, mtu));
                }
                _ => changes.extend([
                    Change::Remove(destination, old),
                    Change::Add(destination, target),
                ]),
            },
            None => changes.push(Change::Add(destination, target)),
        }
    }
    let stale = actual.iter().filter(|(net, _)| !desired.contains_key(net));
    changes.extend(stale.map(|(&net, &target)| Change::Remove(net, target)));
    changes
}

/// Makes one change; repeating one that already holds succeeds.
///
/// # Errors
///
/// Whatever the kernel refused.
pub async fn apply(netlink: &Netlink, table: u32, index: u32, change: Change) -> Result<(), Error> {
    let route = netlink.route.route();
    match change {
        Change::Add(destination, target) => {
            let request = route.add(message(table, index, destination, target));
            let result = request.execute().await.map_err(|error| {
                Error::from_route("RTM_NEWROUTE", &destination.to_string(), error)
            });
            match result {
                Err(error) if error.is_exists() => Ok(()),
                other => other,
            }
        }
        Change::Resize(destination, mtu) => {
            let target = Target::Interface(mtu);
            let request = route
                .add(message(table, index, destination, target))
                .replace();
            request
                .execute()
                .await
                .map_err(|error| Error::from_route("RTM_NEWROUTE", &destination.to_string(), error))
        }
        Change::Remove(destination, target) => {
            let request = route.del(message(table, index, destination, target));
            let result = request.execute().await.map_err(|error| {
                Error::from_route("RTM_DELROUTE", &destination.to_string(), error)
            });
            match result {
                Err(error) if error.is_gone() => Ok(()),
                other => other,
            }
        }
    }
}

fn message(table: u32, index: u32, destination: IpNet, target: Target) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: match destination {
            IpNet::V4(_) => AddressFamily::Inet,
            IpNet::V6(_) => AddressFamily::Inet6,
        },
        destination_prefix_length: destination.prefix_len(),
        table: u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
        protocol: match target {
            Target::Interface(_) => RouteProtocol::Boot,
            Target::Throw | Target::Unreachable => PROTOCOL,
        },
        scope: match (destination, target) {
            (IpNet::V4(_), Target::Interface(_)) => RouteScope::Link,
            _ => RouteScope::Universe,
        },
        kind: match target {
            Target::Interface(_) => RouteType::Unicast,
            Target::Throw => RouteType::Throw,
            Target::Unreachable => RouteType::Unreachable,
        },
        ..RouteHeader::default()
    };
    if destination.prefix_len() > 0 {
        message
            .attributes
            .push(RouteAttribute::Destination(destination.network().into()));
    }
    if let Target::Interface(mtu) = target {
        message.attributes.push(RouteAttribute::Oif(index));
        let metrics = mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
        message.attributes.extend(metrics);
    }
    // A metric per device: two nodes on one host may both route to the same peer, each by its own.
    message.attributes.push(RouteAttribute::Priority(index));
    message.attributes.push(RouteAttribute::Table(table));
    message
}

/// Whether a route is one of `table`.
pub(crate) fn is_in_table(message: &RouteMessage, table: u32) -> bool {
    let wide = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(id) => Some(*id),
            _ => None,
        });
    wide.unwrap_or_else(|| message.header.table.into()) == table
}

fn parse(message: &RouteMessage, table: u32) -> Option<Found> {
    let mut destination = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let (mut interface, mut metric, mut mtu) = (None, 0, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                destination = (*address).into();
            }
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                destination = (*address).into();
            }
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let target = match message.header.kind {
        RouteType::Throw => Target::Throw,
        RouteType::Unreachable => Target::Unreachable,
        _ => Target::Interface(mtu),
    };
    // A kernel without strict checking dumps every table.
    if !is_in_table(message, table) {
        return None;
    }
    Some(Found {
        destination: IpNet::new(destination, message.header.destination_prefix_length).ok()?,
        target,
        interface,
        metric,
        marked: message.header.protocol == PROTOCOL,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn into_interface(texts: &[&str]) -> Routes {
        texts
            .iter()
            .map(|text| (net(text), Target::Interface(None)))
            .collect()
    }

    #[test]
    fn new_routes_come_before_stale_ones_go() {
        let desired = into_interface(&["100.64.0.2/32", "10.0.0.0/24"]);
        let actual = into_interface(&["100.64.0.2/32", "100.64.0.9/32"]);

        assert_eq!(
            plan(&desired, &actual),
            [
                Change::Add(net("10.0.0.0/24"), Target::Interface(None)),
                Change::Remove(net("100.64.0.9/32"), Target::Interface(None)),
            ]
        );
        assert_eq!(plan(&desired, &desired), []);
    }

    #[test]
    fn a_network_that_may_be_reached_again_changes_its_target() {
        let captured = into_interface(&["192.168.1.0/24"]);
        let thrown = Routes::from([(net("192.168.1.0/24"), Target::Throw)]);
        assert_eq!(
            plan(&thrown, &captured),
            [
                Change::Remove(net("192.168.1.0/24"), Target::Interface(None)),
                Change::Add(net("192.168.1.0/24"), Target::Throw),
            ]
        );
    }

    #[test]
    fn a_route_message_reads_back_as_itself() {
        for text in ["100.64.0.2/32", "10.1.0.0/16", "fd7a::1/128", "0.0.0.0/0"] {
            for target in [
                Target::Interface(None),
                Target::Interface(Some(1440)),
                Target::Throw,
                Target::Unreachable,
            ] {
                let found = parse(&message(TABLE, 7, net(text), target), TABLE).unwrap();
                assert_eq!((found.destination, found.target), (net(text), target));
                assert_eq!(found.owner(), Some(7));
            }
        }
    }

    #[test]
    fn a_route_to_nowhere_without_our_mark_is_somebody_elses() {
        let mut foreign = message(TABLE, 7, net("10.0.0.0/8"), Target::Throw);
        foreign.header.protocol = RouteProtocol::Static;
        assert_eq!(parse(&foreign, TABLE).unwrap().owner(), None);
    }

    fn any_routes() -> impl Strategy<Value = Routes> {
        let target = prop_oneof![
            Just(Target::Interface(None)),
            Just(Target::Interface(Some(1440))),
            Just(Target::Throw),
            Just(Target::Unreachable)
        ];
        let net = (0_u8..8).prop_map(|n| net(&format!("10.{n}.0.0/16")));
        proptest::collection::btree_map(net, target, 0..8)
    }

    proptest! {
        #[test]
        fn a_plan_leads_from_what_is_to_what_should_be(
            desired in any_routes(), actual in any_routes(),
        ) {
            let mut table = actual.clone();
            for change in plan(&desired, &actual) {
                match change {
                    Change::Remove(net, target) => prop_assert_eq!(table.remove(&net), Some(target)),
                    Change::Add(net, target) => prop_assert_eq!(table.insert(net, target), None),
                    Change::Resize(net, mtu) => {
                        let old = table.insert(net, Target::Interface(mtu));
                        prop_assert!(old.is_some_and(Target::is_interface));
                    }
                }
            }
            prop_assert_eq!(table, desired);
        }
    }
}
