//! Where a relay node is found, for DERP and for STUN.

use std::io;
use std::net::{IpAddr, SocketAddr};

use node_core::derp::{Address, Node};

/// Returns where `port` of a node may be reached: fixed addresses of the map, else DNS, never a disabled
/// family; nothing if no family is left. DNS has no time limit here.
///
/// # Errors
///
/// What DNS answered.
pub(crate) async fn addresses(node: &Node, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    if let Address::Fixed(v4) = node.ipv4 {
        addresses.push(SocketAddr::from((v4, port)));
    }
    if let Address::Fixed(v6) = node.ipv6 {
        addresses.push(SocketAddr::from((v6, port)));
    }
    // A fixed address of one family is enough: the map's author left the other out.
    if !addresses.is_empty() {
        return Ok(addresses);
    }
    let wanted = |ip: IpAddr| match ip {
        IpAddr::V4(_) => node.ipv4 == Address::Resolve,
        IpAddr::V6(_) => node.ipv6 == Address::Resolve,
    };
    let found = tokio::net::lookup_host((node.host.as_str(), port)).await?;
    Ok(found.filter(|address| wanted(address.ip())).collect())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use node_core::derp::Certificate;

    use super::*;

    fn node(ipv4: Address<Ipv4Addr>, ipv6: Address<Ipv6Addr>) -> Node {
        Node {
            name: "1a".into(),
            host: "127.0.0.9".into(),
            ipv4,
            ipv6,
            derp_port: 443,
            stun_only: false,
            stun_port: None,
            stun_ip: None,
            http: false,
            certificate: Certificate::HostName,
        }
    }

    #[tokio::test]
    async fn fixed_addresses_come_first_and_a_disabled_family_never() {
        let v4 = Ipv4Addr::new(192, 0, 2, 1);
        for (ipv4, ipv6, expected) in [
            (Address::Fixed(v4), Address::Resolve, vec!["192.0.2.1:7"]),
            (
                Address::Fixed(v4),
                Address::Fixed(Ipv6Addr::LOCALHOST),
                vec!["192.0.2.1:7", "[::1]:7"],
            ),
            (Address::Resolve, Address::Disabled, vec!["127.0.0.9:7"]),
            (Address::Disabled, Address::Resolve, vec![]),
        ] {
            let found = addresses(&node(ipv4, ipv6), 7).await.unwrap();
            let expected: Vec<SocketAddr> =
                expected.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(found, expected, "{ipv4:?} {ipv6:?}");
        }
    }
}
