//! The devices that lead to the networks which this host forwards for.

use std::collections::BTreeSet;

use dataplane::{Layer, Nic};
use ipnet::IpNet;
use netlink::links::{self, Link};

/// Most devices that get a program: a host of more is one of many containers, for which the stack does.
const MAX_NICS: usize = 32;

/// Picks the devices, given the host's `links`, their networks, and the devices that lead to `served`
/// networks which are not attached to the host. Pure.
#[must_use]
pub(super) fn pick(
    links: &[Link],
    networks: &[(u32, IpNet)],
    leading: &BTreeSet<u32>,
    served: &[IpNet],
    overlay: u32,
) -> Vec<Nic> {
    let overlaps = |net: &IpNet| {
        let net = net.trunc();
        served.iter().any(|served| {
            // An exit node forwards to everywhere, but what is not a neighbour is told by `leading`.
            served.prefix_len() != 0 && (served.contains(&net) || net.contains(served))
        })
    };
    let attached = |index: u32| {
        let mut networks = networks.iter().filter(|(at, _)| *at == index);
        networks.any(|(_, net)| overlaps(net))
    };
    let is_exit = served.iter().any(|net| net.prefix_len() == 0);
    let has_address = |index: u32| networks.iter().any(|(at, _)| *at == index);
    links
        .iter()
        .filter(|link| link.up && !link.loopback && link.index != overlay)
        .filter(|link| {
            let neighbours = is_exit && has_address(link.index);
            neighbours || leading.contains(&link.index) || attached(link.index)
        })
        .filter_map(|link| {
            let layer = match link.layer {
                links::Layer::Ethernet => Layer::Ethernet,
                links::Layer::Ip => Layer::Ip,
                links::Layer::Other => return None,
            };
            Some(Nic {
                name: link.name.clone(),
                layer,
            })
        })
        .take(MAX_NICS)
        .collect()
}

#[cfg(test)]
mod tests {
    use netlink::links::Kind;

    use super::*;

    fn link(index: u32, name: &str, layer: links::Layer) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: Kind::Other,
            mtu: 1500,
            up: true,
            loopback: name == "lo",
            master: None,
            layer,
        }
    }

    fn names(served: &[&str], leading: &[u32]) -> Vec<String> {
        let links = [
            link(1, "lo", links::Layer::Ethernet),
            link(2, "eth0", links::Layer::Ethernet),
            link(3, "lan0", links::Layer::Ethernet),
            link(4, "ppp0", links::Layer::Ip),
            link(5, "port0", links::Layer::Ethernet),
            link(6, "can0", links::Layer::Other),
            link(9, "tailrace0", links::Layer::Ip),
        ];
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let networks = [
            (1, net("127.0.0.1/8")),
            (2, net("192.0.2.7/24")),
            (3, net("10.77.0.1/24")),
            (4, net("198.51.100.3/32")),
            (9, net("100.64.0.1/32")),
        ];
        let served: Vec<IpNet> = served.iter().map(|text| net(text)).collect();
        let leading = leading.iter().copied().collect();
        let nics = pick(&links, &networks, &leading, &served, 9);
        nics.into_iter().map(|nic| nic.name).collect()
    }

    #[test]
    fn a_subnet_router_uses_the_devices_of_its_networks_and_of_the_ways_there() {
        assert_eq!(names(&["10.77.0.0/24"], &[]), ["lan0"]);
        assert_eq!(names(&["10.0.0.0/8"], &[]), ["lan0"]);
        assert_eq!(names(&["10.77.0.128/25"], &[]), ["lan0"]);
        assert_eq!(names(&["172.16.0.0/12"], &[2]), ["eth0"]);
        assert!(names(&[], &[]).is_empty());
    }

    #[test]
    fn an_exit_node_uses_all_that_have_an_address() {
        assert_eq!(names(&["0.0.0.0/0"], &[2]), ["eth0", "lan0", "ppp0"]);
    }
}
