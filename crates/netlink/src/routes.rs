//! Routes into one interface in one table: dump → plan → apply.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use crate::{Error, Family, Netlink};

/// Table that holds the overlay's routes. Upstream's number, so that its documentation carries over.
pub const TABLE: u32 = 52;

/// One change to the routes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    /// Takes the route to a destination away.
    Remove(IpNet),
    /// Routes a destination into the interface.
    Add(IpNet),
}

/// Returns the destinations that `table` routes into the interface `index`.
///
/// # Errors
///
/// Whatever the kernel answered; a table that does not exist is an empty one.
pub async fn dump(netlink: &Netlink, table: u32, index: u32) -> Result<BTreeSet<IpNet>, Error> {
    Ok(dump_table(netlink, table)
        .await?
        .into_iter()
        .filter(|(_, oif)| *oif == Some(index))
        .map(|(destination, _)| destination)
        .collect())
}

/// Returns true if `table` holds no route, of whichever interface.
///
/// # Errors
///
/// Whatever the kernel answered.
pub async fn is_empty(netlink: &Netlink, table: u32) -> Result<bool, Error> {
    Ok(dump_table(netlink, table).await?.is_empty())
}

async fn dump_table(netlink: &Netlink, table: u32) -> Result<Vec<(IpNet, Option<u32>)>, Error> {
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

/// Returns the changes that turn `actual` into `desired`, removals first. Pure.
#[must_use]
pub fn plan(desired: &BTreeSet<IpNet>, actual: &BTreeSet<IpNet>) -> Vec<Change> {
    let stale = actual.difference(desired).copied().map(Change::Remove);
    let fresh = desired.difference(actual).copied().map(Change::Add);
    stale.chain(fresh).collect()
}

/// Makes one change; repeating one that already holds succeeds.
///
/// # Errors
///
/// Whatever the kernel refused.
pub async fn apply(netlink: &Netlink, table: u32, index: u32, change: Change) -> Result<(), Error> {
    match change {
        Change::Add(destination) => {
            let request = netlink
                .route
                .route()
                .add(message(table, index, destination));
            let result = request.execute().await.map_err(|error| {
                Error::from_route("RTM_NEWROUTE", &destination.to_string(), error)
            });
            match result {
                Err(error) if error.is_exists() => Ok(()),
                other => other,
            }
        }
        Change::Remove(destination) => {
            let request = netlink
                .route
                .route()
                .del(message(table, index, destination));
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

fn message(table: u32, index: u32, destination: IpNet) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: match destination {
            IpNet::V4(_) => AddressFamily::Inet,
            IpNet::V6(_) => AddressFamily::Inet6,
        },
        destination_prefix_length: destination.prefix_len(),
        table: u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
        protocol: RouteProtocol::Boot,
        scope: match destination {
            IpNet::V4(_) => RouteScope::Link,
            IpNet::V6(_) => RouteScope::Universe,
        },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    if destination.prefix_len() > 0 {
        message
            .attributes
            .push(RouteAttribute::Destination(destination.network().into()));
    }
    message.attributes.push(RouteAttribute::Oif(index));
    // A metric per device: two nodes on one host may both route to the same peer, each by its own.
    message.attributes.push(RouteAttribute::Priority(index));
    message.attributes.push(RouteAttribute::Table(table));
    message
}

fn parse(message: &RouteMessage, table: u32) -> Option<(IpNet, Option<u32>)> {
    let mut destination = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let mut in_table = u32::from(message.header.table);
    let mut oif = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                destination = (*address).into();
            }
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                destination = (*address).into();
            }
            RouteAttribute::Oif(index) => oif = Some(*index),
            RouteAttribute::Table(id) => in_table = *id,
            _ => {}
        }
    }
    // A kernel without strict checking dumps every table.
    (in_table == table)
        .then(|| IpNet::new(destination, message.header.destination_prefix_length).ok())
        .flatten()
        .map(|destination| (destination, oif))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_routes_go_before_new_ones_come() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let desired = BTreeSet::from([net("100.64.0.2/32"), net("10.0.0.0/24")]);
        let actual = BTreeSet::from([net("100.64.0.2/32"), net("100.64.0.9/32")]);

        assert_eq!(
            plan(&desired, &actual),
            [
                Change::Remove(net("100.64.0.9/32")),
                Change::Add(net("10.0.0.0/24")),
            ]
        );
        assert_eq!(plan(&desired, &desired), []);
    }

    #[test]
    fn a_route_message_reads_back_as_itself() {
        for text in ["100.64.0.2/32", "10.1.0.0/16", "fd7a::1/128", "0.0.0.0/0"] {
            let destination: IpNet = text.parse().unwrap();
            assert_eq!(
                parse(&message(TABLE, 7, destination), TABLE),
                Some((destination, Some(7)))
            );
        }
    }
}
