//! The maps: dump, plan, apply for the peers; sums over CPUs for what was counted.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    thread,
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{
        HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues,
        lpm_trie::Key,
    },
    util::nr_cpus,
};
use ebpf_abi::{
    Count, Direction, DropReason, MapSpec, PEER_COUNTS, PEER_HOSTS_V4, PEER_HOSTS_V6, PEERS_V4,
    PEERS_V6, PeerCounters, PeerEntry, PeerIndex, Reason, TOTALS, total_slot,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::io::Errno;

use crate::{
    DataplaneError,
    error::is_errno,
    object::missing,
    peer::Peer,
    plan::{Change, Routes, plan},
};

/// The maps of one loaded object and what this process knows to be in them.
pub(crate) struct Tables {
    hosts_v4: HashMap<MapData, [u8; 4], PeerEntry>,
    hosts_v6: HashMap<MapData, [u8; 16], PeerEntry>,
    v4: LpmTrie<MapData, [u8; 4], PeerEntry>,
    v6: LpmTrie<MapData, [u8; 16], PeerEntry>,
    counts: PerCpuHashMap<MapData, PeerIndex, PeerCounters>,
    totals: PerCpuArray<MapData, Count>,
    routes: Routes,
    counted: BTreeSet<PeerIndex>,
}

impl Tables {
    /// Takes the maps out of `ebpf` and dumps what an earlier process left in them.
    ///
    /// Call it after the programs are loaded: until then the file descriptors taken here are all
    /// that the programs' relocations point to.
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self, DataplaneError> {
        let mut tables = Self {
            hosts_v4: typed(ebpf, &PEER_HOSTS_V4)?,
            hosts_v6: typed(ebpf, &PEER_HOSTS_V6)?,
            v4: typed(ebpf, &PEERS_V4)?,
            v6: typed(ebpf, &PEERS_V6)?,
            counts: typed(ebpf, &PEER_COUNTS)?,
            totals: typed(ebpf, &TOTALS)?,
            routes: Routes::new(),
            counted: BTreeSet::new(),
        };
        tables.dump()?;
        Ok(tables)
    }

    fn dump(&mut self) -> Result<(), DataplaneError> {
        for entry in self.hosts_v4.iter() {
            let (address, peer) = entry.map_err(reading(&PEER_HOSTS_V4))?;
            self.routes.insert(IpAddr::from(address).into(), peer);
        }
        for entry in self.hosts_v6.iter() {
            let (address, peer) = entry.map_err(reading(&PEER_HOSTS_V6))?;
            self.routes.insert(IpAddr::from(address).into(), peer);
        }
        for entry in self.v4.iter() {
            let (key, peer) = entry.map_err(reading(&PEERS_V4))?;
            if let Ok(prefix) = Ipv4Net::new(key.data().into(), prefix_len(key.prefix_len())) {
                self.routes.insert(prefix.into(), peer);
            }
        }
        for entry in self.v6.iter() {
            let (key, peer) = entry.map_err(reading(&PEERS_V6))?;
            if let Ok(prefix) = Ipv6Net::new(key.data().into(), prefix_len(key.prefix_len())) {
                self.routes.insert(prefix.into(), peer);
            }
        }
        for peer in self.counts.keys() {
            self.counted.insert(peer.map_err(reading(&PEER_COUNTS))?);
        }
        Ok(())
    }

    /// Makes the maps hold exactly `peers`. Returns whether they did not before.
    pub(crate) fn set_peers<P: Copy + Into<Peer>>(
        &mut self,
        peers: &[(IpNet, P)],
    ) -> Result<bool, DataplaneError> {
        let desired: Routes = peers
            .iter()
            .map(|(prefix, peer)| (prefix.trunc(), (*peer).into().entry()))
            .collect();
        let changes = plan(&desired, &self.routes, &self.counted);
        let any = !changes.is_empty();
        for change in changes {
            self.apply(change)?;
        }
        Ok(any)
    }

    fn apply(&mut self, change: Change) -> Result<(), DataplaneError> {
        match change {
            Change::StartCounting(peer) => {
                let cpus = nr_cpus().map_err(|(path, error)| {
                    DataplaneError::new(format!("reading {path}"), error)
                })?;
                write(&PEER_COUNTS, || {
                    // `PerCpuValues` cannot be cloned, and an attempt uses it up.
                    let zero = PerCpuValues::try_from(vec![PeerCounters::default(); cpus])?;
                    self.counts.insert(peer, zero, 0)
                })?;
                self.counted.insert(peer);
            }
            Change::SetRoute(prefix, peer) => {
                match prefix {
                    IpNet::V4(host) if host.prefix_len() == 32 => {
                        let address = host.addr().octets();
                        write(&PEER_HOSTS_V4, || self.hosts_v4.insert(address, peer, 0))?;
                    }
                    IpNet::V6(host) if host.prefix_len() == 128 => {
                        let address = host.addr().octets();
                        write(&PEER_HOSTS_V6, || self.hosts_v6.insert(address, peer, 0))?;
                    }
                    IpNet::V4(prefix) => {
                        write(&PEERS_V4, || self.v4.insert(&key_v4(prefix), peer, 0))?;
                    }
                    IpNet::V6(prefix) => {
                        write(&PEERS_V6, || self.v6.insert(&key_v6(prefix), peer, 0))?;
                    }
                }
                self.routes.insert(prefix, peer);
            }
            Change::RemoveRoute(prefix) => {
                let removed = match prefix {
                    IpNet::V4(host) if host.prefix_len() == 32 => {
                        let removed = self.hosts_v4.remove(&host.addr().octets());
                        gone(removed, &PEER_HOSTS_V4)
                    }
                    IpNet::V6(host) if host.prefix_len() == 128 => {
                        let removed = self.hosts_v6.remove(&host.addr().octets());
                        gone(removed, &PEER_HOSTS_V6)
                    }
                    IpNet::V4(prefix) => gone(self.v4.remove(&key_v4(prefix)), &PEERS_V4),
                    IpNet::V6(prefix) => gone(self.v6.remove(&key_v6(prefix)), &PEERS_V6),
                };
                removed?;
                self.routes.remove(&prefix);
            }
            Change::StopCounting(peer) => {
                gone(self.counts.remove(&peer), &PEER_COUNTS)?;
                self.counted.remove(&peer);
            }
        }
        Ok(())
    }

    /// Reads every peer's counters, summed over the CPUs.
    pub(crate) fn read(&self) -> Result<BTreeMap<PeerIndex, PeerCounters>, DataplaneError> {
        let of = |peer: &PeerIndex| Ok((*peer, self.count(peer)?));
        self.counted.iter().map(of).collect()
    }

    /// Reads the counters of one peer, if it has any.
    pub(crate) fn read_of(&self, peer: PeerIndex) -> Result<Option<PeerCounters>, DataplaneError> {
        let known = self.counted.get(&peer);
        known.map(|peer| self.count(peer)).transpose()
    }

    fn count(&self, peer: &PeerIndex) -> Result<PeerCounters, DataplaneError> {
        let per_cpu = self.counts.get(peer, 0).map_err(reading(&PEER_COUNTS))?;
        let mut sum = PeerCounters::default();
        per_cpu.iter().for_each(|counters| sum += *counters);
        Ok(sum)
    }

    /// Reads the totals of what passed, or would have but for the filter's reasons to drop.
    pub(crate) fn totals(&self) -> Result<BTreeMap<(Direction, Reason), Count>, DataplaneError> {
        self.sums(Reason::ALL, |reason| reason as u32)
    }

    /// Reads the totals of what the filter dropped.
    pub(crate) fn drops(&self) -> Result<BTreeMap<(Direction, DropReason), Count>, DataplaneError> {
        self.sums(DropReason::ALL, |reason| reason as u32)
    }

    fn sums<R: Copy + Ord>(
        &self,
        reasons: impl IntoIterator<Item = R>,
        number: impl Fn(R) -> u32,
    ) -> Result<BTreeMap<(Direction, R), Count>, DataplaneError> {
        let mut totals = BTreeMap::new();
        for reason in reasons {
            for direction in Direction::ALL {
                totals.insert((direction, reason), self.sum(direction, number(reason))?);
            }
        }
        Ok(totals)
    }

    /// Reads one total, summed over the CPUs.
    pub(crate) fn sum(&self, direction: Direction, number: u32) -> Result<Count, DataplaneError> {
        let slot = total_slot(direction, number);
        let per_cpu = self.totals.get(&slot, 0).map_err(reading(&TOTALS))?;
        let mut sum = Count::default();
        per_cpu.iter().for_each(|count| sum += *count);
        Ok(sum)
    }
}

pub(crate) fn typed<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    spec: &MapSpec,
) -> Result<M, DataplaneError> {
    let map = ebpf.take_map(spec.name).ok_or_else(|| missing(spec.name))?;
    M::try_from(map).map_err(reading(spec))
}

fn key_v4(prefix: Ipv4Net) -> Key<[u8; 4]> {
    Key::new(prefix.prefix_len().into(), prefix.network().octets())
}

fn key_v6(prefix: Ipv6Net) -> Key<[u8; 16]> {
    Key::new(prefix.prefix_len().into(), prefix.network().octets())
}

/// The kernel keeps prefix lengths within the address; anything else becomes an invalid one.
fn prefix_len(bits: u32) -> u8 {
    u8::try_from(bits).unwrap_or(u8::MAX)
}

pub(crate) fn reading(spec: &MapSpec) -> impl FnOnce(MapError) -> DataplaneError {
    let name = spec.name;
    move |error| DataplaneError::new(format!("reading eBPF map {name}"), error)
}

/// Attempts at an entry, the first pause between them, doubled each time: some 250 ms in all.
const ATTEMPTS: u32 = 9;
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// Makes an entry, again if the kernel has no memory at hand: maps that take memory per entry draw
/// it from small pools, which the kernel refills behind our back, slower than a burst empties them.
pub(crate) fn write(
    spec: &'static MapSpec,
    mut insert: impl FnMut() -> Result<(), MapError>,
) -> Result<(), DataplaneError> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..ATTEMPTS {
        match insert() {
            Err(error) if is_errno(&error, Errno::NOMEM) => thread::sleep(pause),
            result => return result.map_err(writing(spec)),
        }
        pause *= 2;
    }
    insert().map_err(writing(spec))
}

pub(crate) fn writing(spec: &'static MapSpec) -> impl FnOnce(MapError) -> DataplaneError {
    move |error| {
        // Tries answer ENOSPC, hash tables E2BIG.
        if is_errno(&error, Errno::NOSPC) || is_errno(&error, Errno::TOOBIG) {
            return DataplaneError::TableFull {
                table: spec.name,
                limit: spec.max_entries,
            };
        }
        DataplaneError::new(format!("writing eBPF map {}", spec.name), error)
    }
}

/// Removing what is not there has succeeded.
pub(crate) fn gone(
    result: Result<(), MapError>,
    spec: &'static MapSpec,
) -> Result<(), DataplaneError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(error) if is_errno(&error, Errno::NOENT) => Ok(()),
        result => result.map_err(writing(spec)),
    }
}
