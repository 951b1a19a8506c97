//! The host's side of the overlay: addresses and MTU of the device, routes in table 52, rules.

pub(crate) mod forwarding;
mod lan;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use keys::NodePublic;
use netlink::routes::{Routes, Target};
use netlink::{Error, Family, Netlink, addresses, links, routes, rules};
use node_core::{DEFAULT_MTU, DEFAULT_ROUTES, Desired};

use lan::Networks;

/// How the overlay device should be wired into the host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wiring {
    /// Addresses of the device.
    pub(crate) addresses: BTreeSet<IpNet>,
    /// MTU of the device in bytes.
    pub(crate) mtu: u16,
    /// Destinations routed into the device, and how long packets there may be, in bytes.
    pub(crate) routes: BTreeMap<IpNet, u16>,
    /// Networks that this host is the router of.
    pub(crate) own: BTreeSet<IpNet>,
    /// Set if everything is captured for an exit node; true if this host's networks stay reachable.
    pub(crate) captured: Option<bool>,
}

impl Wiring {
    /// As desired, with the longer packets that peers were shown to take.
    pub(crate) fn new(desired: &Desired, mtus: &Mtus) -> Self {
        let usual = desired.routes.iter().map(|net| (*net, desired.mtu));
        let mut routes: BTreeMap<IpNet, u16> = usual.collect();
        for peer in mtus.peers.keys() {
            routes.extend(mtus.routes_to(peer, desired));
        }
        Self {
            addresses: desired.addresses.iter().copied().collect(),
            mtu: mtus.most.max(desired.mtu),
            routes,
            own: desired.local_routes.iter().copied().collect(),
            captured: desired.exit.map(|exit| exit.allow_lan_access),
        }
    }
}

/// How long packets to peers may be, where that is more than usual.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mtus {
    peers: BTreeMap<NodePublic, u16>,
    /// The most of any so far: the device keeps it, each change of its MTU is one of the host's network.
    most: u16,
}

impl Mtus {
    /// Takes over how long packets to a peer may be, in bytes; true if that is new.
    pub(crate) fn set(&mut self, peer: NodePublic, mtu: u16) -> bool {
        self.most = self.most.max(mtu);
        if mtu > DEFAULT_MTU {
            self.peers.insert(peer, mtu) != Some(mtu)
        } else {
            self.peers.remove(&peer).is_some()
        }
    }

    /// Forgets peers that are gone.
    pub(crate) fn retain(&mut self, present: &BTreeSet<NodePublic>) {
        self.peers.retain(|peer, _| present.contains(peer));
    }

    /// How long packets to a peer may be, in bytes, if that is more than usual.
    pub(crate) fn of(&self, peer: &NodePublic) -> Option<u16> {
        self.peers.get(peer).copied()
    }

    /// The routes that lead to a peer, and how long packets there may be.
    fn routes_to(
        &self,
        peer: &NodePublic,
        desired: &Desired,
    ) -> impl Iterator<Item = (IpNet, u16)> {
        let mtu = self.of(peer).unwrap_or_default().max(desired.mtu);
        let allowed = desired.peers.get(peer).map(|peer| &peer.allowed_ips);
        // Sorted. Not all that a peer has is routed: this host may be the router of it.
        let routed = |net: &&IpNet| desired.routes.binary_search(net).is_ok();
        let routes = allowed.into_iter().flatten().filter(routed);
        routes.map(move |net| (*net, mtu))
    }
}

/// Where IPv6 works.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Ipv6 {
    host: bool,
    device: bool,
}

impl Ipv6 {
    /// Reads where IPv6 works. Without the sysctl the kernel has no IPv6 at all.
    fn of(device: &str) -> Self {
        let enabled = |interface: &str| {
            let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
            std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "0")
        };
        Self {
            host: enabled("lo"),
            device: enabled(device),
        }
    }

    /// Families in which there is something to route.
    fn families(self, captured: bool) -> &'static [Family] {
        match self.device || self.host && captured {
            true => &Family::BOTH,
            false => &[Family::V4],
        }
    }
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
    let ipv6 = Ipv6::of(device);
    let wanted = wiring.addresses.iter().copied();
    let wanted = wanted
        .filter(|net| ipv6.device || net.addr().is_ipv4())
        .collect();
    let actual = addresses::dump(netlink, link.index).await?;
    for change in addresses::plan(&wanted, &actual) {
        addresses::apply(netlink, link.index, change).await?;
    }
    let networks = match wiring.captured {
        Some(_) => Networks::of_host(
            &links::dump(netlink).await?,
            &addresses::dump_others(netlink, link.index).await?,
        ),
        None => Networks::default(),
    };
    let wanted = wanted_routes(wiring, &networks, ipv6);
    let actual = routes::dump(netlink, routes::TABLE, link.index).await?;
    for change in routes::plan(&wanted, &actual) {
        routes::apply(netlink, routes::TABLE, link.index, change).await?;
    }
    routes::remove_orphans(netlink, routes::TABLE).await?;
    let desired = rules::standard(ipv6.families(wiring.captured.is_some()));
    let actual = rules::dump(netlink, &desired).await?;
    for change in rules::plan(&desired, &actual) {
        rules::apply(netlink, change).await?;
    }
    Ok(())
}

/// Has the routes to some peers take packets as long as those do, and the device too. As a rule nobody else's route
/// is looked at: [`apply`] would do that for all of a big tailnet, each time that one peer's path changes.
///
/// # Errors
///
/// The first refusal; [`apply`] does the rest.
pub(crate) async fn resize(
    netlink: &Netlink,
    device: &str,
    desired: &Desired,
    mtus: &Mtus,
    peers: &BTreeSet<NodePublic>,
) -> Result<(), Error> {
    let mut wiring = Wiring::new(desired, mtus);
    let link = links::get(netlink, device).await?;
    let Some(link) = link.filter(|link| link.up) else {
        // Whoever brings it up makes the routes.
        return Ok(());
    };
    // A LAN that goes to the exit node has routes of its own. And when a device's MTU grows, Linux has the IPv6 routes
    // grow that were as long as it.
    if wiring.captured.is_some() || link.mtu != u32::from(wiring.mtu) {
        return apply(netlink, device, &wiring).await;
    }
    let resized = peers.iter().flat_map(|peer| mtus.routes_to(peer, desired));
    wiring.routes = resized.collect();
    for (net, target) in wanted_routes(&wiring, &Networks::default(), Ipv6::of(device)) {
        if let Target::Interface(mtu) = target {
            let change = routes::Change::Resize(net, mtu);
            routes::apply(netlink, routes::TABLE, link.index, change).await?;
        }
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
    routes::remove_orphans(netlink, routes::TABLE).await?;
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

/// What table 52 should hold (protocol/filter.md §14 and §17). Pure.
fn wanted_routes(wiring: &Wiring, networks: &Networks, ipv6: Ipv6) -> Routes {
    // Said of each, though most are as long as the device's: so no route changes because another peer's does.
    let into = |mtu: u16| Target::Interface(Some(mtu.into()));
    let peers = wiring.routes.iter();
    let mut table: Routes = peers.map(|(net, mtu)| (net.trunc(), into(*mtu))).collect();
    let mut put = |nets: &BTreeSet<IpNet>, target| {
        table.extend(nets.iter().map(|net| (net.trunc(), target)));
    };
    if let Some(lan_access) = wiring.captured {
        // A route of its own, so that no accepted route to somewhere else decides about the LAN.
        let exit = wiring.routes.get(&DEFAULT_ROUTES[0]).copied();
        let lan = match lan_access {
            true => Target::Throw,
            false => into(exit.unwrap_or(wiring.mtu)),
        };
        put(&networks.outside, lan);
        put(&networks.inside, Target::Throw);
    }
    // What this host itself routes never enters the tunnel because of a wider route.
    let covered = |own: &&IpNet| wiring.routes.keys().any(|net| net.contains(*own));
    let covered = wiring.own.iter().filter(covered).copied().collect();
    put(&covered, Target::Throw);
    table.retain(|net, target| {
        let ipv6_works = match target {
            Target::Interface(_) => ipv6.device,
            Target::Throw | Target::Unreachable => ipv6.host,
        };
        net.addr().is_ipv4() || ipv6_works
    });
    if wiring.captured.is_some() && ipv6.host && !ipv6.device {
        // The device cannot take them, and they must not leak.
        let [_, default] = DEFAULT_ROUTES;
        table.insert(default, Target::Unreachable);
    }
    table
}

#[cfg(test)]
mod tests;
