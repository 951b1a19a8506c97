//! Which of this host's addresses others may reach it by. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink::links::{Kind, Link};

/// Addresses of IPv6 offered per network of an interface: some hosts have hundreds.
const MAX_PER_NETWORK: usize = 2;
/// Where overlay addresses come from, here and in other tailnets. Providers use those of IPv4 for their customers,
/// too, so that they are an overlay's only on a tunnel.
const OVERLAY_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
const OVERLAY_V6: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0), 48);

/// Returns the addresses to offer, those of `lo` among them. Not the overlay's, nor those of interfaces that are down
/// or that belong to another overlay, which would carry ours as ours carries it; what is of one site or link only if
/// there is nothing else, since some clouds translate it.
pub(super) fn usable(
    links: &[Link],
    addresses: &[(u32, IpNet)],
    overlay: &str,
) -> BTreeSet<IpAddr> {
    let links = links.iter().filter(|link| {
        let another = link.name.starts_with("zt") || link.name == "wt0";
        link.up && link.name != overlay && !another
    });
    let links: BTreeMap<u32, &Link> = links.map(|link| (link.index, link)).collect();
    // In order, so that it is always the same ones of many.
    let addresses: BTreeSet<(u32, IpNet)> = addresses.iter().copied().collect();
    let mut counts: BTreeMap<(u32, IpNet), usize> = BTreeMap::new();
    let (mut usable, mut second_best) = (BTreeSet::new(), BTreeSet::new());
    for (index, net) in addresses {
        let Some(link) = links.get(&index) else {
            continue;
        };
        match net.addr() {
            IpAddr::V4(ip) if is_tunnel(link) && OVERLAY_V4.contains(&ip) => {}
            IpAddr::V6(ip) if OVERLAY_V6.contains(&ip) || ip.is_unicast_link_local() => {}
            IpAddr::V4(ip) if ip.is_link_local() => {
                second_best.insert(net.addr());
            }
            IpAddr::V6(ip) if ip.is_unique_local() => {
                second_best.insert(net.addr());
            }
            IpAddr::V4(_) => {
                usable.insert(net.addr());
            }
            IpAddr::V6(_) => {
                let count = counts.entry((index, net.trunc())).or_default();
                *count += 1;
                if *count <= MAX_PER_NETWORK {
                    usable.insert(net.addr());
                }
            }
        }
    }
    if usable.iter().all(IpAddr::is_loopback) {
        usable.extend(second_best);
    }
    usable
}

fn is_tunnel(link: &Link) -> bool {
    match link.kind {
        Kind::Tun | Kind::WireGuard => true,
        Kind::Bridge | Kind::Veth | Kind::Other => false,
    }
}

#[cfg(test)]
mod tests {
    use netlink::links::Layer;

    use super::*;

    fn link(index: u32, name: &str, kind: Kind, up: bool) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind,
            mtu: 1500,
            up,
            loopback: name == "lo",
            master: None,
            layer: Layer::Ethernet,
        }
    }

    /// What is offered of these addresses, each with the number of its interface.
    fn offered(addresses: &[(u32, &str)]) -> Vec<String> {
        let links = [
            link(1, "lo", Kind::Other, true),
            link(2, "eth0", Kind::Other, true),
            link(3, "eth1", Kind::Other, false),
            link(4, "tailrace0", Kind::WireGuard, true),
            link(5, "tailscale0", Kind::Tun, true),
            link(6, "ztabcdef", Kind::Tun, true),
        ];
        let addresses = addresses.iter();
        let addresses: Vec<(u32, IpNet)> = addresses
            .map(|(index, net)| (*index, net.parse().unwrap()))
            .collect();
        let usable = usable(&links, &addresses, "tailrace0");
        usable.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn interfaces_that_are_down_and_overlays_have_none() {
        let addresses = [
            (1, "127.0.0.1/8"),
            (2, "192.0.2.2/24"),
            (2, "100.64.7.7/10"),
            (3, "192.0.2.3/24"),
            (4, "100.64.0.1/32"),
            (4, "203.0.113.1/32"),
            (5, "100.100.0.1/32"),
            (5, "fd7a:115c:a1e0::1/128"),
            (6, "203.0.113.2/24"),
        ];
        // On an Ethernet a provider's translated address is one like another.
        assert_eq!(
            offered(&addresses),
            ["100.64.7.7", "127.0.0.1", "192.0.2.2"]
        );
    }

    #[test]
    fn of_each_network_of_ipv6_two_are_enough() {
        let addresses = [
            (2, "2001:db8::4/64"),
            (2, "2001:db8::1/64"),
            (2, "2001:db8::3/64"),
            (2, "2001:db8:1::1/64"),
        ];
        let expected = ["2001:db8::1", "2001:db8::3", "2001:db8:1::1"];
        assert_eq!(offered(&addresses), expected);
    }

    #[test]
    fn what_is_of_one_site_or_link_is_for_want_of_better() {
        let local = [(1, "127.0.0.1/8"), (2, "169.254.1.2/16"), (2, "fd00::2/64")];
        assert_eq!(offered(&local), ["127.0.0.1", "169.254.1.2", "fd00::2"]);
        let with_better = [local[1], local[2], (2, "192.0.2.2/24")];
        assert_eq!(offered(&with_better), ["192.0.2.2"]);
    }
}
