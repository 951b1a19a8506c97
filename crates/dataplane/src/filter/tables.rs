//! The rule tables in the kernel: filled aside, then put in force by replacing one map.
//!
//! ```text
//! POLICY ──► Policy { generation, set } ──► HOSTS_*, NETS_*, PAIRS, PORT_LISTS, ... of that set
//!    ▲ replaced last                           ▲ the other set: filled first
//! ```
//!
//! `GENERATION` is 0 from before the replacement until after it: known flows are judged by the rules
//! then. A process that dies in between leaves rules in force, old or new, and nothing that bypasses them.
//!
//! Replacing a map inside another waits until no program uses the old one (the kernel's
//! `maybe_wait_bpf_programs`), so a set is never refilled under a program that still reads it.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io,
    os::fd::AsFd as _,
    panic::resume_unwind,
    thread,
};

use aya::{
    Ebpf, Pod,
    maps::{Array, Map, MapData, MapError, lpm_trie::Key},
    util::nr_cpus,
};
use aya_obj::Map as MapObject;
use ebpf_abi::{
    Class, Count, ENDS, GENERATION, HOSTS_V4, HOSTS_V6, InnerMapSpec, MEMBERS, MapSpec, NETS_V4,
    NETS_V6, PAIRS, POLICY, POLICY_IDS, PORT_LISTS, Policy, RULE_HITS, SEED, SETS, Side,
    address_table, rule_slot,
};

use super::{
    bulk,
    classes::{Addresses, ClassTables},
};
use crate::{
    DataplaneError, Drops,
    census::InnerMaps,
    tables::{reading, typed, writing},
};

/// The maps of rules of one loaded object.
pub(crate) struct RuleTables {
    policy: MapData,
    policy_ids: Array<MapData, u32>,
    hosts_v4: MapData,
    hosts_v6: MapData,
    nets_v4: MapData,
    nets_v6: MapData,
    pairs: MapData,
    port_lists: MapData,
    ends: MapData,
    members: MapData,
    rule_hits: MapData,
    generation: Array<MapData, u64>,
    /// What the rules that this process put in force have admitted.
    hits: Option<Hits>,
    cpus: u32,
    drops: Option<Drops>,
    /// Takes note of what is in the maps of maps.
    inner: InnerMaps,
}

/// A map of [`RULE_HITS`].
struct Hits {
    map: MapData,
    rules: u32,
}

impl RuleTables {
    /// Takes the maps out of `ebpf`, with whatever an earlier process put in force.
    pub(crate) fn take(ebpf: &mut Ebpf, inner: InnerMaps) -> Result<Self, DataplaneError> {
        draw_seed(ebpf)?;
        Ok(Self {
            policy: outer(ebpf, &POLICY)?,
            policy_ids: typed(ebpf, &POLICY_IDS)?,
            hosts_v4: outer(ebpf, &HOSTS_V4)?,
            hosts_v6: outer(ebpf, &HOSTS_V6)?,
            nets_v4: outer(ebpf, &NETS_V4)?,
            nets_v6: outer(ebpf, &NETS_V6)?,
            pairs: outer(ebpf, &PAIRS)?,
            port_lists: outer(ebpf, &PORT_LISTS)?,
            ends: outer(ebpf, &ENDS)?,
            members: outer(ebpf, &MEMBERS)?,
            rule_hits: outer(ebpf, &RULE_HITS)?,
            generation: typed(ebpf, &GENERATION)?,
            hits: None,
            cpus: cpus()?,
            drops: Some(Drops::take(ebpf)?),
            inner,
        })
    }

    /// Puts `tables` in force with `policy`, whose `set` is chosen here.
    pub(crate) fn replace(
        &mut self,
        tables: &ClassTables,
        policy: Policy,
    ) -> Result<(), DataplaneError> {
        let set = match self.set_in_force()? {
            Some(set) => (set + 1) % SETS,
            None => 0,
        };
        let hits = Hits {
            map: create(&RULE_HITS, (policy.rules * self.cpus).max(1))?,
            rules: policy.rules,
        };
        self.fill(set, tables, &hits)?;
        self.put_in_force(Policy { set, ..policy })?;
        self.hits = Some(hits);
        Ok(())
    }

    /// What each rule has admitted, if this process put them in force.
    pub(crate) fn hits(&self) -> Result<Vec<Count>, DataplaneError> {
        let Some(Hits { map, rules }) = &self.hits else {
            return Ok(Vec::new());
        };
        let failed =
            |error| DataplaneError::new(format!("reading eBPF map {}", RULE_HITS.name), error);
        let len = *rules as usize * self.cpus as usize;
        let values: Vec<Count> = bulk::values(map.fd().as_fd(), len).map_err(failed)?;
        let mut sums = vec![Count::default(); *rules as usize];
        for cpu in 0..self.cpus {
            for (rule, sum) in (0..).zip(&mut sums) {
                if let Some(count) = values.get(rule_slot(cpu, rule, *rules) as usize) {
                    *sum += *count;
                }
            }
        }
        Ok(sums)
    }

    /// The reports of dropped packets, for the first who asks.
    pub(crate) fn take_drops(&mut self) -> Option<Drops> {
        self.drops.take()
    }

    /// Makes programs forget what they know of flows, until a policy is put in force.
    pub(crate) fn forget(&mut self) -> Result<(), DataplaneError> {
        self.generation.set(0, 0, 0).map_err(writing(&GENERATION))
    }

    /// Keeps the tables and changes what else `policy` says. Without tables nothing changes.
    pub(crate) fn amend(&mut self, policy: Policy) -> Result<bool, DataplaneError> {
        let Some(set) = self.set_in_force()? else {
            return Ok(false);
        };
        self.put_in_force(Policy { set, ..policy })?;
        Ok(true)
    }

    /// The set that programs read. To open the map in force and ask it would take CAP_SYS_ADMIN,
    /// which the agent has not; its number is free to know.
    pub(crate) fn set_in_force(&self) -> Result<Option<u32>, DataplaneError> {
        let failed =
            |error| DataplaneError::new(format!("reading eBPF map {}", POLICY.name), error);
        let Some(id) = bulk::inner_map_id(self.policy.fd().as_fd(), 0).map_err(failed)? else {
            return Ok(None);
        };
        for set in 0..SETS {
            let known = self.policy_ids.get(&set, 0);
            if known.map_err(reading(&POLICY_IDS))? == id {
                return Ok(Some(set));
            }
        }
        Ok(None)
    }

    fn put_in_force(&mut self, policy: Policy) -> Result<(), DataplaneError> {
        let map = create(&POLICY, 1)?;
        let id = map.info().map_err(reading(&POLICY))?.id();
        bulk::update(map.fd().as_fd(), &[0u32], &[policy]).map_err(failed_write(&POLICY))?;
        self.policy_ids
            .set(policy.set, id, 0)
            .map_err(writing(&POLICY_IDS))?;
        self.forget()?;
        set(&self.policy, &POLICY, 0, &map)?;
        self.generation
            .set(0, policy.generation, 0)
            .map_err(writing(&GENERATION))
    }

    /// Fills every table of `set`, all at once: replacing a map waits some milliseconds, and those who
    /// wait together wait no longer than one.
    fn fill(&self, set: u32, tables: &ClassTables, hits: &Hits) -> Result<(), DataplaneError> {
        let inner = &self.inner;
        let mut jobs: Vec<Job<'_>> = Vec::new();
        for (side, v4, v6) in [
            (Side::Source, &tables.v4[0], &tables.v6[0]),
            (Side::Destination, &tables.v4[1], &tables.v6[1]),
        ] {
            let table = address_table(set, side);
            let v4_maps = [
                (&self.hosts_v4, &HOSTS_V4, inner),
                (&self.nets_v4, &NETS_V4, inner),
            ];
            jobs.extend(addresses(v4_maps, table, v4));
            let v6_maps = [
                (&self.hosts_v6, &HOSTS_V6, inner),
                (&self.nets_v6, &NETS_V6, inner),
            ];
            jobs.extend(addresses(v6_maps, table, v6));
        }
        jobs.push(job((&self.pairs, &PAIRS, inner), set, &tables.pairs));
        let lists = (&self.port_lists, &PORT_LISTS, inner);
        jobs.push(list(lists, set, &tables.port_lists));
        // Not in use, hence small, where pairs are.
        let linear = tables.linear.as_ref();
        let ends = linear.map_or(&[][..], |linear| &linear.ends);
        jobs.push(list((&self.ends, &ENDS, inner), set, ends));
        let members = linear.map_or(&[][..], |linear| &linear.members);
        jobs.push(list((&self.members, &MEMBERS, inner), set, members));
        let rule_hits = &self.rule_hits;
        jobs.push(Box::new(move || {
            self::set(rule_hits, &RULE_HITS, set, &hits.map)?;
            inner.note(
                RULE_HITS.name,
                set,
                u64::from(hits.rules),
                hits.map.fd().as_fd(),
            );
            Ok(())
        }));
        at_once(jobs)
    }
}

/// Draws what flows are hashed with, unless an earlier process did: what is known of them is found by it.
fn draw_seed(ebpf: &mut Ebpf) -> Result<(), DataplaneError> {
    let mut map: Array<MapData, u64> = typed(ebpf, &SEED)?;
    if map.get(&0, 0).map_err(reading(&SEED))? != 0 {
        return Ok(());
    }
    // The keys of the standard library's hashes come from the system's random numbers.
    let seed = RandomState::new().build_hasher().finish();
    // 0 stands for none.
    map.set(0, seed.max(1), 0).map_err(writing(&SEED))
}

/// A map of maps, what is known of it, and where what is put into it is noted.
type Outer<'a> = (&'a MapData, &'static MapSpec, &'a InnerMaps);
/// Something to do that waits for the kernel.
type Job<'a> = Box<dyn FnOnce() -> Result<(), DataplaneError> + Send + 'a>;

/// Does all `jobs`, each in a thread. Returns the first error in their order.
fn at_once(jobs: Vec<Job<'_>>) -> Result<(), DataplaneError> {
    let failed = |error| DataplaneError::new("starting a thread", error);
    thread::scope(|scope| {
        let running: Vec<_> = jobs
            .into_iter()
            .map(|job| thread::Builder::new().spawn_scoped(scope, job))
            .collect();
        running.into_iter().try_for_each(|thread| {
            let result = thread.map_err(failed)?.join();
            result.unwrap_or_else(|panicked| resume_unwind(panicked))
        })
    })
}

/// Fills the tables of addresses at `table`, hosts and nets.
fn addresses<'a, A: Pod + Sync>(
    [hosts, nets]: [Outer<'a>; 2],
    table: u32,
    contents: &'a Addresses<A>,
) -> [Job<'a>; 2] {
    let net = |(len, address, class): &(u32, A, Class)| (Key::new(*len, *address), *class);
    [
        job(hosts, table, &contents.hosts),
        Box::new(move || fill(nets, table, contents.nets.iter().map(net))),
    ]
}

fn job<'a, K: Pod + Sync, V: Pod + Sync>(
    outer: Outer<'a>,
    index: u32,
    entries: &'a [(K, V)],
) -> Job<'a> {
    Box::new(move || fill(outer, index, entries.iter().copied()))
}

/// Fills an array.
fn list<'a, V: Pod + Sync>(outer: Outer<'a>, index: u32, values: &'a [V]) -> Job<'a> {
    Box::new(move || fill(outer, index, (0u32..).zip(values.iter().copied())))
}

fn cpus() -> Result<u32, DataplaneError> {
    let cpus =
        nr_cpus().map_err(|(path, error)| DataplaneError::new(format!("reading {path}"), error))?;
    Ok(u32::try_from(cpus).unwrap_or(u32::MAX))
}

/// Makes a map of just the right size and puts it at `index` of `outer`.
fn fill<K: Pod, V: Pod>(
    (outer, spec, inner): Outer<'_>,
    index: u32,
    entries: impl Iterator<Item = (K, V)>,
) -> Result<(), DataplaneError> {
    let (keys, values): (Vec<K>, Vec<V>) = entries.unzip();
    let size = u32::try_from(keys.len()).unwrap_or(u32::MAX);
    let map = create(spec, size.max(1))?;
    bulk::update(map.fd().as_fd(), &keys, &values).map_err(failed_write(spec))?;
    set(outer, spec, index, &map)?;
    inner.note(spec.name, index, u64::from(size), map.fd().as_fd());
    Ok(())
}

/// Creates a map of the kind that `spec` holds.
fn create(spec: &'static MapSpec, max_entries: u32) -> Result<MapData, DataplaneError> {
    let failed = |error: MapError| {
        DataplaneError::new(format!("creating a map for eBPF map {}", spec.name), error)
    };
    let InnerMapSpec {
        map_type,
        key_size,
        value_size,
        flags,
    } = spec
        .inner
        .ok_or_else(|| crate::object::missing(spec.name))?;
    let object = MapObject::new_from_params(map_type, key_size, value_size, max_entries, flags);
    MapData::create(object, spec.name, None).map_err(failed)
}

fn set(
    outer: &MapData,
    spec: &'static MapSpec,
    index: u32,
    map: &MapData,
) -> Result<(), DataplaneError> {
    bulk::set_inner_map(outer.fd().as_fd(), index, map.fd().as_fd()).map_err(failed_write(spec))
}

fn outer(ebpf: &mut Ebpf, spec: &MapSpec) -> Result<MapData, DataplaneError> {
    match ebpf.take_map(spec.name) {
        Some(Map::ArrayOfMaps(map)) => Ok(map),
        Some(_) | None => Err(crate::object::missing(spec.name)),
    }
}

fn failed_write(spec: &'static MapSpec) -> impl FnOnce(io::Error) -> DataplaneError {
    move |error| DataplaneError::new(format!("writing eBPF map {}", spec.name), error)
}
