//! The host's side of the overlay: addresses and MTU of the device, routes in table 52, rules.

use std::collections::BTreeSet;

use ipnet::IpNet;
use netlink::{Error, Family, Netlink, addresses, links, routes, rules};

/// How the overlay device should be wired into the host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wiring {
    /// Addresses of the device.
    pub(crate) addresses: BTreeSet<IpNet>,
    /// MTU in bytes.
    pub(crate) mtu: u16,
    /// Destinations routed into the device.
    pub(crate) routes: BTreeSet<IpNet>,
}

/// Makes addresses, routes and rules what they should be; brings the device up.
///
/// A host without IPv6 gets the IPv4 half.
///
/// # Errors
///
/// The first refusal; apply again to do the rest.
pub(crate) async fn apply(netlink: &Netlink, device: &str, wiring: &Wiring) -> Result<(), Error> {
    let Some(link) = links::get(netlink, device).await? else {
        return Err(Error::NoDevice {
            name: device.to_owned(),
            source: std::io::Error::from_raw_os_error(libc::ENODEV),
        });
    };
    links::ensure_up(netlink, &link, wiring.mtu.into()).await?;
    let ipv6 = has_ipv6(device);
    let usable = |nets: &BTreeSet<IpNet>| -> BTreeSet<IpNet> {
        let wanted = nets.iter().filter(|net| ipv6 || net.addr().is_ipv4());
        wanted.copied().collect()
    };
    let actual = addresses::dump(netlink, link.index).await?;
    for change in addresses::plan(&usable(&wiring.addresses), &actual) {
        addresses::apply(netlink, link.index, change).await?;
    }
    let actual = routes::dump(netlink, routes::TABLE, link.index).await?;
    for change in routes::plan(&usable(&wiring.routes), &actual) {
        routes::apply(netlink, routes::TABLE, link.index, change).await?;
    }
    let families: &[Family] = if ipv6 { &Family::BOTH } else { &[Family::V4] };
    let desired = rules::standard(families);
    let actual = rules::dump(netlink, &desired).await?;
    for change in rules::plan(&desired, &actual) {
        rules::apply(netlink, change).await?;
    }
    Ok(())
}

/// Removes the rules, unless another node on this host still has routes in the table.
///
/// Call it after the device is gone: its addresses and routes go with it.
///
/// # Errors
///
/// Whatever the kernel refused.
pub(crate) async fn remove(netlink: &Netlink) -> Result<(), Error> {
    if !routes::is_empty(netlink, routes::TABLE).await? {
        return Ok(());
    }
    let ours = rules::standard(&Family::BOTH);
    let actual = rules::dump(netlink, &ours).await?;
    for change in rules::plan(&BTreeSet::new(), &actual) {
        rules::apply(netlink, change).await?;
    }
    Ok(())
}

/// True if the device may have IPv6 addresses. Without the sysctl the kernel has no IPv6 at all.
fn has_ipv6(device: &str) -> bool {
    let path = format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6");
    std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "0")
}
