//! The networks that this host is attached to: [`Networks`].

use std::collections::BTreeSet;

use ipnet::IpNet;
use netlink::links::{Kind, Link};

/// The host's networks beside the overlay.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Networks {
    /// Those that lead out of the host: whoever is there sees what is sent to them.
    pub(super) outside: BTreeSet<IpNet>,
    /// Those within the host: bridges that have virtual interfaces only, for containers and machines.
    pub(super) inside: BTreeSet<IpNet>,
}

impl Networks {
    /// Sorts the networks of all interfaces but the overlay's. Pure.
    ///
    /// Left out are loopback, which is never routed, and single addresses: tunnels such as ours.
    pub(super) fn of_host(links: &[Link], addresses: &[(u32, IpNet)]) -> Self {
        let mut networks = Self::default();
        for (index, net) in addresses {
            let Some(link) = links.iter().find(|link| link.index == *index) else {
                continue;
            };
            if link.loopback || net.prefix_len() == net.max_prefix_len() {
                continue;
            }
            if is_inside(link, links) {
                networks.inside.insert(net.trunc());
            } else {
                networks.outside.insert(net.trunc());
            }
        }
        // An address on both sides is out there too.
        let Self { outside, inside } = &mut networks;
        inside.retain(|net| !outside.contains(net));
        networks
    }
}

fn is_inside(link: &Link, links: &[Link]) -> bool {
    let mut ports = links.iter().filter(|port| port.master == Some(link.index));
    link.kind == Kind::Bridge && ports.all(|port| matches!(port.kind, Kind::Veth | Kind::Tun))
}
