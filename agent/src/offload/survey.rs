//! What of the host decides about forwarded flows: [`survey`].

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink::routes::Routes;
use netlink::{Error, Netlink, addresses, links, routes};
use node_core::Desired;

use super::{Forwards, Places, Timeouts, nics};

/// Addresses that stand for everywhere: the first that are public.
const SOMEWHERE_V4: Ipv4Addr = Ipv4Addr::new(1, 0, 0, 1);
const SOMEWHERE_V6: Ipv6Addr = Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1);

/// Looks at the host for what forwarding between the device of number `overlay` and the served routes takes.
///
/// # Errors
///
/// Whatever the kernel answered.
pub async fn survey(netlink: &Netlink, overlay: u32, desired: &Desired) -> Result<Forwards, Error> {
    let served = &desired.served_routes;
    let links = links::dump(netlink).await?;
    let networks = addresses::dump_others(netlink, overlay).await?;
    let mut leading = BTreeSet::new();
    for net in served {
        let way = routes::way_to(netlink, within(net)).await?;
        leading.extend(way.map(|way| way.interface));
    }
    let (routed, kept_out): (Routes, Routes) = routes::dump(netlink, routes::TABLE, overlay)
        .await?
        .into_iter()
        .partition(|(_, target)| target.is_interface());
    let own = desired.addresses.iter().map(|net| (net.addr(), overlay));
    let others = networks.iter().map(|(index, net)| (net.addr(), *index));
    let nics = nics::pick(&links, &networks, &leading, served, overlay);
    Ok(Forwards {
        nics,
        places: Places {
            overlay,
            mtu: desired.mtu,
            routes: routed.into_keys().collect(),
            kept_out: kept_out.into_keys().collect(),
            served: served.clone(),
            addresses: others.chain(own).collect(),
            timeouts: Timeouts::read(),
        },
    })
}

/// An address of the network.
fn within(net: &IpNet) -> IpAddr {
    match net {
        IpNet::V4(net) if net.prefix_len() == 0 => SOMEWHERE_V4.into(),
        IpNet::V6(net) if net.prefix_len() == 0 => SOMEWHERE_V6.into(),
        net => net.hosts().next().unwrap_or(net.addr()),
    }
}
