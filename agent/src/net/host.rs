//! What of this host decides where others can reach it, and how its own packets leave: [`Host`].

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink::routes::{self, Way};
use netlink::{Netlink, addresses, links};

use super::local;
use crate::underlay::OUTSIDE;

/// The host's side of the underlay.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Host {
    /// Addresses of its interfaces but the overlay device.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// Those by which others may reach it.
    pub(super) local: BTreeSet<IpAddr>,
    /// The ways out, by IPv4 and by IPv6.
    pub(super) ways: [Option<Way>; 2],
}

impl Host {
    /// Looks at the host. Nothing is sent.
    ///
    /// # Errors
    ///
    /// Whatever the kernel answered.
    pub(super) async fn look(netlink: &Netlink, device: &str) -> Result<Self, netlink::Error> {
        let links = links::dump(netlink).await?;
        let overlay = links.iter().find(|link| link.name == device);
        let overlay = overlay.map_or(0, |link| link.index);
        let found = addresses::dump_others(netlink, overlay).await?;
        let (v4, v6) = OUTSIDE;
        let ways = [
            routes::way_to(netlink, v4.into()).await?,
            routes::way_to(netlink, v6.into()).await?,
        ];
        Ok(Self {
            local: local::usable(&links, &found, device),
            addresses: found.into_iter().map(|(_, net)| net.addr()).collect(),
            ways,
        })
    }

    /// True if packets leave another way now: by another interface, another router, from another address. Whatever
    /// was found by the old way, such as mappings of a router, connections and cached sources, is worth nothing.
    pub(super) fn has_moved_from(&self, old: &Self) -> bool {
        self.ways != old.ways
    }

    /// The addresses that packets come from by the ways out.
    pub(super) fn sources(&self) -> BTreeSet<IpAddr> {
        let ways = self.ways.iter().flatten();
        ways.filter_map(|way| way.source).collect()
    }
}
