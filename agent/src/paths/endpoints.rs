//! Our own endpoints: where others may reach us, in the order in which they are offered
//! (protocol/disco.md §7).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use control_proto::tailcfg::endpoint_type;
use disco_proto::disco::MAX_ENDPOINTS;

/// How long an endpoint that was seen is still offered.
const REMEMBERED: Duration = Duration::from_secs(5 * 60 + 10);
/// Most endpoints remembered of one address.
const MAX_REMEMBERED: usize = 6;

/// Why we think that we can be reached at an endpoint.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// Our router has a port that leads to ours.
    PortMapped,
    /// A STUN server saw us there.
    Stun,
    /// There a STUN server saw us, but for the port, which is our own: a NAT that varies its ports may
    /// have it forwarded.
    Stun4LocalPort,
    /// The operator says so.
    Explicit,
    /// An interface has the address.
    Local,
}

impl Kind {
    /// Its number in the control protocol.
    #[must_use]
    pub fn number(self) -> i32 {
        match self {
            Self::PortMapped => endpoint_type::PORT_MAPPED,
            Self::Stun => endpoint_type::STUN,
            Self::Stun4LocalPort => endpoint_type::STUN4_LOCAL_PORT,
            Self::Explicit => endpoint_type::EXPLICIT,
            Self::Local => endpoint_type::LOCAL,
        }
    }
}

/// What was found out about ourselves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// Direct paths are wanted: without them peers would ping in vain what is offered.
    pub(crate) direct: bool,
    /// The router's address and port that lead to ours.
    pub(crate) port_mapped: Option<SocketAddr>,
    /// Our addresses as STUN servers saw them, IPv4 first, the best first.
    pub(crate) mapped: Vec<SocketAddr>,
    /// A NAT gives each destination another mapping.
    pub(crate) varies: bool,
    /// Addresses of our interfaces, the overlay's not among them.
    pub(crate) local: Vec<IpAddr>,
    /// WireGuard's port.
    pub(crate) port: u16,
    /// What the operator set.
    pub(crate) explicit: Vec<SocketAddr>,
}

/// Our endpoints, and those of the last minutes.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    seen: BTreeMap<SocketAddr, (Instant, Kind)>,
}

impl Endpoints {
    /// Returns what to offer, in order, each endpoint once, and no more than peers read.
    pub(crate) fn update(&mut self, now: Instant, found: &Found) -> Vec<(SocketAddr, Kind)> {
        if !found.direct {
            return Vec::new();
        }
        let mut offered: Vec<(SocketAddr, Kind)> = Vec::new();
        let mut offer = |address: SocketAddr, kind: Kind| {
            if offered.iter().all(|(known, _)| *known != address) {
                offered.push((address, kind));
            }
        };
        if let Some(address) = found.port_mapped {
            offer(address, Kind::PortMapped);
        }
        for address in &found.mapped {
            offer(*address, Kind::Stun);
        }
        let first = found.mapped.iter().find(|address| address.is_ipv4());
        let is_translated = |address: &&SocketAddr| address.port() != found.port;
        if let Some(address) = first.filter(is_translated).filter(|_| found.varies) {
            offer(
                SocketAddr::new(address.ip(), found.port),
                Kind::Stun4LocalPort,
            );
        }
        for address in &found.explicit {
            offer(*address, Kind::Explicit);
        }
        self.seen
            .retain(|_, (at, _)| now.duration_since(*at) <= REMEMBERED);
        for (address, (_, kind)) in &self.seen {
            offer(*address, *kind);
        }
        let reachable = |ip: &&IpAddr| !ip.is_loopback();
        let local: Vec<&IpAddr> = found.local.iter().filter(reachable).collect();
        let fallback = found.local.iter().filter(|_| local.is_empty());
        for ip in local.iter().copied().chain(fallback) {
            offer(SocketAddr::new(*ip, found.port), Kind::Local);
        }
        for address in &found.mapped {
            self.remember(now, *address);
        }
        offered.truncate(MAX_ENDPOINTS);
        offered
    }

    /// What was learned on another network is of no use here.
    pub(crate) fn forget(&mut self) {
        self.seen.clear();
    }

    fn remember(&mut self, now: Instant, address: SocketAddr) {
        self.seen.insert(address, (now, Kind::Stun));
        let same = || {
            self.seen
                .iter()
                .filter(|(known, _)| known.ip() == address.ip())
        };
        if same().count() > MAX_REMEMBERED
            && let Some((oldest, _)) = same().min_by_key(|(_, (at, _))| *at)
        {
            let oldest = *oldest;
            self.seen.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn found(mapped: &[&str]) -> Found {
        Found {
            direct: true,
            port_mapped: None,
            mapped: mapped.iter().map(|text| address(text)).collect(),
            varies: false,
            local: vec!["10.0.0.2".parse().unwrap(), "127.0.0.1".parse().unwrap()],
            port: 41641,
            explicit: vec![address("203.0.113.9:41641")],
        }
    }

    #[test]
    fn what_stun_saw_comes_first_and_loopback_not_at_all() {
        let offered = Endpoints::default().update(Instant::now(), &found(&["198.51.100.1:7"]));
        let expected = [
            (address("198.51.100.1:7"), Kind::Stun),
            (address("203.0.113.9:41641"), Kind::Explicit),
            (address("10.0.0.2:41641"), Kind::Local),
        ];
        assert_eq!(offered, expected);
    }

    #[test]
    fn a_mapped_port_comes_before_all_others_and_once() {
        let mapped = Found {
            port_mapped: Some(address("198.51.100.1:41641")),
            varies: true,
            ..found(&["198.51.100.1:7"])
        };
        let offered = Endpoints::default().update(Instant::now(), &mapped);
        let expected = [
            (address("198.51.100.1:41641"), Kind::PortMapped),
            (address("198.51.100.1:7"), Kind::Stun),
            (address("203.0.113.9:41641"), Kind::Explicit),
            (address("10.0.0.2:41641"), Kind::Local),
        ];
        assert_eq!(offered, expected);
    }

    #[test]
    fn loopback_is_better_than_nothing() {
        let found = Found {
            direct: true,
            local: vec!["127.0.0.1".parse().unwrap()],
            port: 1,
            ..Found::default()
        };
        let offered = Endpoints::default().update(Instant::now(), &found);
        assert_eq!(offered, [(address("127.0.0.1:1"), Kind::Local)]);
    }

    #[test]
    fn a_nat_that_varies_its_ports_may_have_ours_forwarded() {
        let varying = Found {
            varies: true,
            ..found(&["198.51.100.1:7"])
        };
        let offered = Endpoints::default().update(Instant::now(), &varying);
        let expected = (address("198.51.100.1:41641"), Kind::Stun4LocalPort);
        assert_eq!(offered[1], expected);
    }

    #[test]
    fn a_mapping_that_flaps_is_offered_for_five_minutes_more() {
        let (mut endpoints, start) = (Endpoints::default(), Instant::now());
        endpoints.update(start, &found(&["198.51.100.1:7"]));
        let later = start + Duration::from_secs(300);
        let offered = endpoints.update(later, &found(&["198.51.100.1:8"]));
        assert!(offered.contains(&(address("198.51.100.1:7"), Kind::Stun)));
        assert_eq!(offered[0].0, address("198.51.100.1:8"));
        let offered = endpoints.update(later + REMEMBERED, &found(&[]));
        assert!(!offered.contains(&(address("198.51.100.1:7"), Kind::Stun)));
    }

    #[test]
    fn who_wants_no_direct_paths_offers_nothing() {
        let found = Found {
            direct: false,
            ..found(&["198.51.100.1:7"])
        };
        assert_eq!(Endpoints::default().update(Instant::now(), &found), []);
    }

    #[test]
    fn no_more_are_offered_than_peers_read() {
        let local = (0..=255).map(|last| IpAddr::from([10, 0, 0, last]));
        let many = Found {
            local: local.collect(),
            ..found(&["198.51.100.1:7"])
        };
        let offered = Endpoints::default().update(Instant::now(), &many);
        assert_eq!(offered.len(), MAX_ENDPOINTS);
        assert_eq!(offered[0], (address("198.51.100.1:7"), Kind::Stun));
    }

    #[test]
    fn no_more_than_six_are_remembered_of_one_address() {
        let (mut endpoints, start) = (Endpoints::default(), Instant::now());
        for port in 1..=20u16 {
            let at = start + Duration::from_secs(port.into());
            endpoints.update(at, &found(&[&format!("198.51.100.1:{port}")]));
        }
        let offered = endpoints.update(start + Duration::from_secs(21), &found(&[]));
        let stun = offered.iter().filter(|(_, kind)| *kind == Kind::Stun);
        assert_eq!(stun.count(), 6);
    }
}
