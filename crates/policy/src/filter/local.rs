//! What is ours: the addresses that packets may be for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::IpSet;

/// What exit traffic never reaches (filter.md section 7): private and link-local networks,
/// multicast, tailnets.
const NOT_INTERNET: [IpNet; 9] = [
    v4([10, 0, 0, 0], 8),
    v4([172, 16, 0, 0], 12),
    v4([192, 168, 0, 0], 16),
    v4([169, 254, 0, 0], 16),
    v4([224, 0, 0, 0], 4),
    v4([100, 64, 0, 0], 10),
    v6([0xfe80, 0, 0], 10),
    v6([0xff00, 0, 0], 8),
    v6([0xfd7a, 0x115c, 0xa1e0], 48),
];

const fn v4([a, b, c, d]: [u8; 4], len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), len))
}

const fn v6([a, b, c]: [u16; 3], len: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0),
        len,
    ))
}

/// This node, as its filter sees it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Local {
    /// Our addresses on the overlay.
    pub addresses: Vec<IpAddr>,
    /// Addresses of services that we host.
    pub services: Vec<IpAddr>,
    /// Routes that we advertise, approved or not. A default route makes an exit node for its
    /// family: the Internet, not our networks.
    pub routes: Vec<IpNet>,
    /// Addresses of the machine's interfaces, each with the length of its network.
    pub interfaces: Vec<IpNet>,
    /// We are an app connector: rules about `0.0.0.0` and `::` count, which stand for the
    /// permission to ask for names.
    pub app_connector: bool,
    /// Nobody may initiate.
    pub shields_up: bool,
    /// Where PeerAPI listens.
    pub peer_api: PeerApi,
    /// When our key expires.
    pub expires: Option<u64>,
}

/// TCP ports of PeerAPI on our own addresses.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PeerApi {
    /// On IPv4 addresses.
    pub v4: Option<u16>,
    /// On IPv6 addresses.
    pub v6: Option<u16>,
}

impl Local {
    /// Every address that packets may be for: own addresses, services, advertised routes, and of
    /// default routes what is left when private networks and those of the machine are taken away
    /// (filter.md section 7).
    #[must_use]
    pub fn destinations(&self) -> IpSet {
        let (exits, subnets): (Vec<IpNet>, Vec<IpNet>) = self
            .routes
            .iter()
            .partition(|route| route.prefix_len() == 0);
        let mut set: IpSet = subnets.into_iter().collect();
        for exit in exits {
            set.add_all(&self.internet(exit));
        }
        for address in self.addresses.iter().chain(&self.services) {
            set.add(IpNet::from(*address));
        }
        if self.app_connector {
            set.add(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
            set.add(IpAddr::V6(Ipv6Addr::UNSPECIFIED).into());
        }
        set
    }

    /// What an exit node offers of a default route. The order of the steps decides: own public
    /// addresses stay, own private ones do not.
    fn internet(&self, default: IpNet) -> IpSet {
        let mut set = IpSet::from_iter([default]);
        let own_family = |net: &&IpNet| net.addr().is_ipv4() == default.addr().is_ipv4();
        for interface in self.interfaces.iter().filter(own_family) {
            set.remove(*interface);
        }
        for interface in self.interfaces.iter().filter(own_family) {
            set.add(interface.addr().into());
        }
        for network in NOT_INTERNET {
            set.remove(network);
        }
        set
    }

    /// Whether PeerAPI listens there.
    #[must_use]
    pub fn is_peer_api(&self, address: IpAddr, port: u16) -> bool {
        let listens = match address {
            IpAddr::V4(_) => self.peer_api.v4,
            IpAddr::V6(_) => self.peer_api.v6,
        };
        listens == Some(port) && self.addresses.contains(&address)
    }
}
