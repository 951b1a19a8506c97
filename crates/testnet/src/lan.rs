//! A network behind a gateway, with one host in it and addresses beyond that host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::link::veth;
use crate::namespace::Namespace;

/// A network behind a gateway: the gateway's `lan0`, a cable, and a host's `eth0`.
///
/// Beyond the host lie addresses that are public as far as the gateway can tell (RFC 5737,
/// RFC 3849); the host answers for them itself.
#[derive(Debug)]
pub struct Lan {
    host: Namespace,
    site: u8,
}

impl Lan {
    /// Lays network number `site` behind `gateway`, which becomes the host's default gateway.
    ///
    /// # Errors
    ///
    /// When `ip` refuses.
    pub fn behind(gateway: &Namespace, label: &str, site: u8) -> Result<Lan> {
        let lan = Lan {
            host: Namespace::new(label)?,
            site,
        };
        let Lan { host, .. } = &lan;
        veth((gateway, "lan0"), (host, "eth0"))?;
        let [outside4, outside6] = lan.outside();
        let sides = [
            (
                Ipv4Addr::new(10, 77, site, 1).into(),
                lan.addresses()[0],
                24,
                outside4,
            ),
            (v6(site, 1).into(), lan.addresses()[1], 64, outside6),
        ];
        for (router, address, len, outside) in sides {
            let router: IpAddr = router;
            gateway.ip(&format!("addr add {router}/{len} dev lan0 nodad"))?;
            host.ip(&format!("addr add {address}/{len} dev eth0 nodad"))?;
            host.ip(&format!("addr add {outside} dev lo"))?;
            host.ip(&format!("route add default via {router}"))?;
            gateway.ip(&format!("route add {outside} via {address}"))?;
        }
        Ok(lan)
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> &Namespace {
        &self.host
    }

    /// The host's addresses: IPv4, IPv6.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        [
            Ipv4Addr::new(10, 77, self.site, 2).into(),
            v6(self.site, 2).into(),
        ]
    }

    /// The network's prefixes: IPv4, IPv6.
    #[must_use]
    pub fn prefixes(&self) -> [String; 2] {
        [
            format!("10.77.{}.0/24", self.site),
            format!("fd77:{:x}::/64", self.site),
        ]
    }

    /// Addresses beyond the host: IPv4, IPv6.
    #[must_use]
    pub fn outside(&self) -> [IpAddr; 2] {
        [
            Ipv4Addr::new(198, 51, 100, self.site).into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0x77, self.site.into(), 0, 0, 0, 9).into(),
        ]
    }
}

fn v6(site: u8, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, site.into(), 0, 0, 0, 0, 0, host)
}
