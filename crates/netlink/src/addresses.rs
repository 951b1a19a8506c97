//! Addresses of one interface: dump → plan → apply.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::AddressMessageBuilder;

use crate::{Error, Netlink};

/// One change to the addresses of an interface.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    /// Takes an address away.
    Remove(IpNet),
    /// Gives an address.
    Add(IpNet),
}

/// Returns the addresses of an interface, without the link-local ones that the kernel makes itself.
///
/// # Errors
///
/// Whatever the kernel answered.
pub async fn dump(netlink: &Netlink, index: u32) -> Result<BTreeSet<IpNet>, Error> {
    let mut request = netlink.route.address().get().set_link_index_filter(index);
    request.message_mut().header.index = index;
    let mut messages = std::pin::pin!(request.execute());
    let mut addresses = BTreeSet::new();
    loop {
        match messages.try_next().await {
            Ok(Some(message)) => addresses.extend(parse(&message)),
            Ok(None) => return Ok(addresses),
            Err(error) => {
                let error = Error::from_route("RTM_GETADDR", "", error);
                return if error.is_gone() {
                    Ok(addresses)
                } else {
                    Err(error)
                };
            }
        }
    }
}

/// Returns the addresses of all interfaces but `except`, each with the number of its interface and the length
/// of its network; without link-local ones of IPv6.
///
/// # Errors
///
/// Whatever the kernel answered.
pub async fn dump_others(netlink: &Netlink, except: u32) -> Result<Vec<(u32, IpNet)>, Error> {
    let mut messages = std::pin::pin!(netlink.route.address().get().execute());
    let mut addresses = Vec::new();
    while let Some(message) = messages
        .try_next()
        .await
        .map_err(|error| Error::from_route("RTM_GETADDR", "", error))?
    {
        if message.header.index != except {
            addresses.extend(parse(&message).map(|net| (message.header.index, net)));
        }
    }
    Ok(addresses)
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
/// Whatever the kernel refused. EACCES on an IPv6 address means that IPv6 is off on the interface.
pub async fn apply(netlink: &Netlink, index: u32, change: Change) -> Result<(), Error> {
    match change {
        Change::Add(address) => {
            let result = netlink
                .route
                .address()
                .add(index, address.addr(), address.prefix_len())
                .execute()
                .await
                .map_err(|error| Error::from_route("RTM_NEWADDR", &address.to_string(), error));
            match result {
                Err(error) if error.is_exists() => Ok(()),
                other => other,
            }
        }
        Change::Remove(address) => {
            let result = netlink
                .route
                .address()
                .del(message(index, address))
                .execute()
                .await
                .map_err(|error| Error::from_route("RTM_DELADDR", &address.to_string(), error));
            match result {
                Err(error) if error.is_gone() => Ok(()),
                other => other,
            }
        }
    }
}

fn message(index: u32, address: IpNet) -> AddressMessage {
    match address {
        IpNet::V4(net) => AddressMessageBuilder::<Ipv4Addr>::new()
            .index(index)
            .address(net.addr(), net.prefix_len())
            .build(),
        IpNet::V6(net) => AddressMessageBuilder::<Ipv6Addr>::new()
            .index(index)
            .address(net.addr(), net.prefix_len())
            .build(),
    }
}

fn parse(message: &AddressMessage) -> Option<IpNet> {
    let find = |local: bool| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Local(address) if local => Some(*address),
                AddressAttribute::Address(address) if !local => Some(*address),
                _ => None,
            })
    };
    // Local is our end; Address is the far end of a point-to-point link and equal otherwise.
    let address = find(true).or_else(|| find(false))?;
    let known = matches!(
        message.header.family,
        AddressFamily::Inet | AddressFamily::Inet6
    );
    let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if !known || link_local {
        return None;
    }
    IpNet::new(address, message.header.prefix_len).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(addresses: &[&str]) -> BTreeSet<IpNet> {
        addresses.iter().map(|a| a.parse().unwrap()).collect()
    }

    #[test]
    fn stale_addresses_go_before_new_ones_come() {
        let desired = set(&["100.64.0.2/32", "fd7a::2/128"]);
        let actual = set(&["100.64.0.1/32", "fd7a::2/128"]);

        assert_eq!(
            plan(&desired, &actual),
            [
                Change::Remove("100.64.0.1/32".parse().unwrap()),
                Change::Add("100.64.0.2/32".parse().unwrap()),
            ]
        );
    }

    #[test]
    fn equal_addresses_need_no_change() {
        let addresses = set(&["100.64.0.2/32", "fd7a::2/128"]);
        assert_eq!(plan(&addresses, &addresses), []);
    }
}
