//! What the packet filter is to enforce: [`PacketFilter`], and where it is enforced: [`Guard`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use dataplane::{
    Census, Count, Dataplane, DataplaneError, Direction, DropReason, Forwarded, Origin,
    PeerCounters, PeerIndex, since_boot,
};
use ipnet::IpNet;
use keys::NodePublic;
use packet::protocol;
use policy::filter;

use super::NetError;
use super::drops::{Reader, Reports};
use crate::blocking::joined;
use crate::error_text::error_text;

/// What of the network map concerns the packet filter. Times are by this host's clock.
#[derive(Clone, Debug, Default)]
pub struct PacketFilter {
    /// Who may reach what.
    pub rules: filter::Rules,
    /// What is ours; its `expires` is not looked at.
    pub local: filter::Local,
    /// When our own key expires.
    pub expires: Option<SystemTime>,
    /// Peers that are restricted by themselves.
    pub restrictions: BTreeMap<NodePublic, Restriction>,
}

/// What a peer is restricted by, beside the rules.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Restriction {
    /// It may answer but not initiate.
    pub jailed: bool,
    /// When its key expires.
    pub expires: Option<SystemTime>,
}

/// Where the filter is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum FilterPlace {
    /// Nowhere: nothing passes.
    #[default]
    None,
    /// In eBPF programs on the overlay device.
    Ebpf,
    /// In this process, for a reason.
    Userspace(String),
}

/// What the filter does.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FilterStatus {
    /// Where it is.
    pub place: FilterPlace,
    /// Rules of the network map that admit packets.
    pub rules: usize,
    /// Changes whenever other rules come in force.
    pub serial: u64,
    /// Why it admits less than it should.
    pub problem: Option<String>,
    /// Packets that it dropped.
    pub drops: BTreeMap<(Direction, DropReason), Count>,
}

/// The programs or the model on the present device.
#[derive(Debug, Default)]
pub(super) enum Guard {
    /// Not tried on the present device.
    #[default]
    Untried,
    /// eBPF programs on the device with this number, and who reads their reports.
    Ebpf(
        Arc<Mutex<Dataplane>>,
        u32,
        #[expect(dead_code, reason = "reads until dropped")] Option<Reader>,
    ),
    /// The model in the embedded tunnel, on the device with this number, for a reason.
    Userspace(String, u32),
}

impl Guard {
    /// Programs that were just attached to the device with this number.
    pub(super) fn ebpf(mut dataplane: Dataplane, index: u32, reports: &Reports) -> Self {
        let reader = dataplane.drops_stream().and_then(|drops| {
            let reader = Reader::start(drops, reports.clone());
            reader
                .inspect_err(|error| tracing::warn!(%error, "dropped packets are not reported"))
                .ok()
        });
        Self::Ebpf(Arc::new(Mutex::new(dataplane)), index, reader)
    }

    /// What each rule of the network map has admitted, by its number there.
    pub(super) fn rule_hits(&self) -> Result<BTreeMap<u32, Count>, NetError> {
        let mut hits = BTreeMap::new();
        if let Self::Ebpf(dataplane, ..) = self {
            for hit in locked(dataplane).rule_hits().map_err(NetError::NoFilter)? {
                *hits.entry(hit.id).or_insert_with(Count::default) += hit.count;
            }
        }
        Ok(hits)
    }

    /// Number of the device that this is for.
    pub(super) fn device(&self) -> Option<u32> {
        match self {
            Self::Untried => None,
            Self::Ebpf(_, index, _) | Self::Userspace(_, index) => Some(*index),
        }
    }

    /// The data plane, where there are programs.
    pub(super) fn dataplane(&self) -> Option<MutexGuard<'_, Dataplane>> {
        match self {
            Self::Ebpf(dataplane, ..) => Some(locked(dataplane)),
            Self::Untried | Self::Userspace(..) => None,
        }
    }

    /// What became of packets of forwarded flows that the programs know.
    pub(super) fn forwarded(&self) -> BTreeMap<(Origin, Forwarded), Count> {
        let Self::Ebpf(dataplane, ..) = self else {
            return BTreeMap::new();
        };
        locked(dataplane).forwarded().unwrap_or_else(|error| {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "counters of forwarded packets not read");
            BTreeMap::new()
        })
    }

    /// What was counted for each served route, from peers and from behind this host.
    pub(super) fn route_counts(&self) -> BTreeMap<IpNet, [Count; 2]> {
        let Self::Ebpf(dataplane, ..) = self else {
            return BTreeMap::new();
        };
        locked(dataplane).route_counts().unwrap_or_else(|error| {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "counters of served routes not read");
            BTreeMap::new()
        })
    }

    /// What tells how full the programs' maps are.
    pub(super) fn census(&self) -> Option<Census> {
        match self {
            Self::Ebpf(dataplane, ..) => Some(locked(dataplane).census()),
            Self::Untried | Self::Userspace(..) => None,
        }
    }

    /// True if eBPF programs judge.
    pub(super) fn is_ebpf(&self) -> bool {
        matches!(self, Self::Ebpf(..))
    }

    /// What the programs counted of one peer.
    pub(super) fn count_of(&self, peer: PeerIndex) -> Option<PeerCounters> {
        let Self::Ebpf(dataplane, ..) = self else {
            return None;
        };
        let count = locked(dataplane).counters().read_of(peer);
        count.unwrap_or_else(|error| {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "a peer's packet counters not read");
            None
        })
    }

    /// What the programs counted of every peer.
    pub(super) fn counts(&self) -> BTreeMap<PeerIndex, PeerCounters> {
        let Self::Ebpf(dataplane, ..) = self else {
            return BTreeMap::new();
        };
        locked(dataplane).counters().read().unwrap_or_else(|error| {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "packet counters not read");
            BTreeMap::new()
        })
    }
}

/// What the programs are told, each step in full before the next.
pub(super) struct Orders {
    /// Prefixes and whose they are.
    pub(super) peers: Vec<(IpNet, dataplane::Peer)>,
    /// When our own key expires.
    pub(super) expires: Option<Duration>,
    /// Who may reach what.
    pub(super) rules: Arc<dataplane::Rules>,
}

impl Orders {
    /// Carries them out where it holds up nobody: large policies take a second. What has begun is carried
    /// out even if nobody waits for it any longer. Returns why the filter admits less than it should.
    pub(super) async fn carry_out(
        self,
        dataplane: &Arc<Mutex<Dataplane>>,
    ) -> Result<Option<String>, NetError> {
        let dataplane = Arc::clone(dataplane);
        let carried_out = tokio::task::spawn_blocking(move || {
            let mut dataplane = locked(&dataplane);
            dataplane.set_peers(&self.peers)?;
            dataplane.set_expiry(self.expires)?;
            match dataplane.set_rules(&self.rules) {
                Ok(()) => Ok(None),
                Err(error @ DataplaneError::Filter(_)) => Ok(Some(error_text(&error))),
                Err(error) => Err(error),
            }
        });
        joined(carried_out.await).map_err(NetError::NoFilter)
    }
}

/// The programs, for one at a time.
pub(super) fn locked(dataplane: &Mutex<Dataplane>) -> MutexGuard<'_, Dataplane> {
    dataplane.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PacketFilter {
    /// The restriction of a peer.
    pub(super) fn restriction(&self, peer: &NodePublic) -> Restriction {
        self.restrictions.get(peer).copied().unwrap_or_default()
    }

    /// As the eBPF programs take it.
    pub(super) fn rules(&self) -> dataplane::Rules {
        let services = self.local.services.iter().map(|address| (*address).into());
        let own: BTreeSet<IpNet> = self.local.addresses.iter().map(|a| (*a).into()).collect();
        let routes = self.local.destinations().prefixes().into_iter();
        dataplane::Rules {
            rules: self.rules.matches().iter().flat_map(rules_of).collect(),
            addresses: self.local.addresses.clone(),
            routes: routes
                .chain(services)
                .filter(|net| !own.contains(net))
                .collect(),
            shields_up: self.local.shields_up,
            peer_api: [self.local.peer_api.v4, self.local.peer_api.v6],
        }
    }

    /// As the model takes it; `peers` are all allowed IPs.
    pub(super) fn model(
        &self,
        peers: &[(IpNet, NodePublic)],
    ) -> (filter::Rules, filter::Local, filter::Peers) {
        let local = filter::Local {
            expires: self.expires.map(|at| nanos(since_boot(at))),
            ..self.local.clone()
        };
        let peers = peers.iter().map(|(prefix, key)| {
            let Restriction { jailed, expires } = self.restriction(key);
            let expires = expires.map(|at| nanos(since_boot(at)));
            (*prefix, filter::Peer { jailed, expires })
        });
        (self.rules.clone(), local, peers.collect())
    }
}

/// One rule of the model in the words of the programs; two where a capability names sources, which
/// admits no protocol without ports (R3 of the model).
fn rules_of(rule: &filter::Match) -> Vec<dataplane::Rule> {
    let destinations: Vec<(IpNet, dataplane::PortRange)> = rule
        .destinations
        .iter()
        .flat_map(|destination| {
            let ports = dataplane::PortRange {
                first: destination.ports.first,
                last: destination.ports.last,
            };
            let prefixes = destination.addresses.prefixes().into_iter();
            prefixes.map(move |prefix| (prefix, ports))
        })
        .collect();
    let with = |sources: Vec<IpNet>, protocols: Vec<u8>| dataplane::Rule {
        id: u32::try_from(rule.rule).unwrap_or(u32::MAX),
        sources: Arc::from(sources),
        destinations: destinations.clone(),
        protocols,
    };
    let has_ports = |number: &u8| matches!(*number, protocol::TCP | protocol::UDP | protocol::SCTP);
    let capable = rule.protocols.iter().copied().filter(has_ports).collect();
    [
        with(rule.sources.prefixes(), rule.protocols.clone()),
        with(rule.capable.prefixes(), capable),
    ]
    .into_iter()
    .filter(|rule| !rule.sources.is_empty())
    .collect()
}

/// The model's time: nanoseconds since boot.
pub(crate) fn nanos(since_boot: Duration) -> u64 {
    u64::try_from(since_boot.as_nanos()).unwrap_or(u64::MAX)
}

/// The word for a direction, as this host sees it.
pub(crate) fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::In => "in",
        Direction::Out => "out",
    }
}

/// Those of the prefixes that are single addresses.
pub(crate) fn hosts(prefixes: &[IpNet]) -> Vec<IpAddr> {
    let single = |prefix: &&IpNet| prefix.prefix_len() == prefix.max_prefix_len();
    prefixes.iter().filter(single).map(IpNet::addr).collect()
}

#[cfg(test)]
mod tests {
    use control_proto::tailcfg::{FilterRule, NetPortRange, PortRange};

    use super::*;

    fn rule(source: &str, destination: &str, port: u16, protocols: &[i32]) -> FilterRule {
        FilterRule {
            src_ips: vec![source.to_owned()],
            dst_ports: vec![NetPortRange {
                ip: destination.to_owned(),
                ports: PortRange {
                    first: port,
                    last: port,
                },
                ..NetPortRange::default()
            }],
            ip_proto: protocols.to_vec(),
            ..FilterRule::default()
        }
    }

    fn filter(rules: &[FilterRule]) -> PacketFilter {
        let capable = |_: &str| vec!["100.64.0.9".parse().unwrap()];
        PacketFilter {
            rules: filter::Rules::parse(rules, capable, &[]).unwrap(),
            local: filter::Local {
                addresses: vec!["100.64.0.1".parse().unwrap()],
                routes: vec!["10.0.0.0/8".parse().unwrap()],
                ..filter::Local::default()
            },
            ..PacketFilter::default()
        }
    }

    #[test]
    fn ranges_become_prefixes_and_own_addresses_are_no_routes() {
        let rules = filter(&[rule("100.64.0.2-100.64.0.3", "*", 22, &[])]).rules();
        assert_eq!(&*rules.rules[0].sources, ["100.64.0.2/31".parse().unwrap()]);
        assert_eq!(rules.rules[0].protocols, [1, 6, 17, 58]);
        assert_eq!(rules.rules[0].destinations.len(), 2);
        assert_eq!(rules.addresses, ["100.64.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(rules.routes, ["10.0.0.0/8".parse().unwrap()]);
    }

    #[test]
    fn a_prefix_of_more_than_one_address_is_no_host() {
        let prefixes = ["100.64.0.1/32", "10.0.0.1/8", "fd7a::1/128"];
        let hosts = hosts(&prefixes.map(|net| net.parse().unwrap()));
        let expected: [IpAddr; 2] = ["100.64.0.1", "fd7a::1"].map(|ip| ip.parse().unwrap());
        assert_eq!(hosts, expected);
    }

    #[test]
    fn who_is_named_by_a_capability_gets_no_protocol_without_ports() {
        let rules = filter(&[rule("cap:funnel", "*", 443, &[6, 47])]).rules();
        assert_eq!(rules.rules.len(), 1);
        assert_eq!(&*rules.rules[0].sources, ["100.64.0.9/32".parse().unwrap()]);
        assert_eq!(rules.rules[0].protocols, [6]);
    }
}
