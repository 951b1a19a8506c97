//! Rules to class tables: which addresses are alike to all rules, and what each pair of such classes
//! may do. Pure.
//!
//! The class of a source is the set of source lists that hold it; the class of a destination is the
//! set of rule ends that cover it. A prefix takes over what covers it, so the longest match of an
//! address decides alone. The tables hold one entry per pair of classes with a rule in common and
//! protocol: usually few, but nested prefixes multiply, hence [`LIMITS`].

use std::collections::{BTreeMap, HashMap, hash_map::Entry};

use ebpf_abi::{CLASS_OWN, Class, INLINE_RANGES, Pair, PortBits, PortBlock, PortRange, Ports};
use ipnet::IpNet;

use super::rules::{Rule, Rules};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// What a filter may amount to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Pairs of a source class, a destination class and a protocol: some 100 bytes each in the kernel.
    pub(crate) pairs: usize,
    /// Blocks of 512 ports in lists of more than eight ranges: some 130 bytes each.
    pub(crate) port_blocks: usize,
    /// Members of classes, over all prefixes: time and memory of compiling.
    pub(crate) members: usize,
}

/// About 1 Mi pairs (100 MiB) and 16 MiB of port lists.
pub(crate) const LIMITS: Limits = Limits {
    pairs: 1 << 20,
    port_blocks: 1 << 17,
    members: 1 << 25,
};

/// Why rules have no tables.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TooLarge {
    /// Too many pairs of classes.
    #[error(
        "the packet filter needs more than {limit} pairs of source and destination classes: use fewer \
         overlapping prefixes in the policy"
    )]
    Pairs {
        /// Most pairs.
        limit: usize,
    },
    /// Too many long port lists.
    #[error(
        "the packet filter needs more than {limit} blocks of ports: use fewer different lists of more \
         than {INLINE_RANGES} port ranges in the policy"
    )]
    PortBlocks {
        /// Most blocks.
        limit: usize,
    },
    /// Too many rules for the same addresses.
    #[error(
        "the packet filter names the same addresses in too many rules (more than {limit} times): merge \
         rules of the policy"
    )]
    Members {
        /// Most members.
        limit: usize,
    },
}

/// A prefix: address bits from the top, and their number.
type Prefix = (u128, u8);

/// Address tables of one family and one side.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Addresses<A> {
    /// Single addresses.
    pub(crate) hosts: Vec<(A, Class)>,
    /// Prefixes, with their length in bits.
    pub(crate) nets: Vec<(u32, A, Class)>,
}

/// Contents of one set of rule tables.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ClassTables {
    /// IPv4 sources, IPv4 destinations.
    pub(crate) v4: [Addresses<[u8; 4]>; 2],
    /// IPv6 sources, IPv6 destinations.
    pub(crate) v6: [Addresses<[u8; 16]>; 2],
    pub(crate) pairs: Vec<(Pair, Ports)>,
    pub(crate) port_lists: Vec<(PortBlock, PortBits)>,
}

/// Compiles `rules`.
///
/// # Errors
///
/// [`TooLarge`] if the tables would exceed `limits`.
pub(crate) fn compile(rules: &Rules, limits: Limits) -> Result<ClassTables, TooLarge> {
    let mut compiler = Compiler {
        limits,
        members: 0,
        next_class: 1,
        pairs: Vec::new(),
        lists: HashMap::new(),
        blocks: Vec::new(),
    };
    let v4 = compiler.family(rules, &V4)?;
    let v6 = compiler.family(rules, &V6)?;
    Ok(ClassTables {
        v4: v4.map(|side| side.map(|bits| ((bits >> 96) as u32).to_be_bytes())),
        v6: v6.map(|side| side.map(u128::to_be_bytes)),
        pairs: compiler.pairs,
        port_lists: compiler.blocks,
    })
}

impl Addresses<u128> {
    fn map<A>(self, octets: impl Fn(u128) -> A) -> Addresses<A> {
        let host = |(bits, class)| (octets(bits), class);
        let net = |(len, bits, class)| (len, octets(bits), class);
        Addresses {
            hosts: self.hosts.into_iter().map(host).collect(),
            nets: self.nets.into_iter().map(net).collect(),
        }
    }
}

/// What differs between the families.
struct Family {
    bits: u8,
    icmp: u8,
    prefix: fn(&IpNet) -> Option<Prefix>,
}

const V4: Family = Family {
    bits: 32,
    icmp: ICMP,
    prefix: |net| match net {
        IpNet::V4(net) => Some((u128::from(u32::from(net.network())) << 96, net.prefix_len())),
        IpNet::V6(_) => None,
    },
};

const V6: Family = Family {
    bits: 128,
    icmp: ICMPV6,
    prefix: |net| match net {
        IpNet::V4(_) => None,
        IpNet::V6(net) => Some((u128::from(net.network()), net.prefix_len())),
    },
};

/// One end of a rule: who may reach it how.
struct End<'a> {
    /// Number of the source list.
    list: u32,
    ports: PortRange,
    protocols: &'a [u8],
}

/// What is known of a destination prefix by itself.
#[derive(Default)]
struct Destination {
    ends: Vec<u32>,
    local: bool,
    own: bool,
}

struct Compiler {
    limits: Limits,
    members: usize,
    next_class: Class,
    pairs: Vec<(Pair, Ports)>,
    lists: HashMap<Vec<PortRange>, u32>,
    blocks: Vec<(PortBlock, PortBits)>,
}

impl Compiler {
    fn family(&mut self, rules: &Rules, family: &Family) -> Result<[Addresses<u128>; 2], TooLarge> {
        let mut sources: BTreeMap<Prefix, Vec<u32>> = BTreeMap::new();
        let mut destinations: BTreeMap<Prefix, Destination> = BTreeMap::new();
        let mut ends = Vec::new();
        let mut lists: HashMap<&[IpNet], u32> = HashMap::new();
        let admitting: &[Rule] = if rules.shields_up { &[] } else { &rules.rules };
        for rule in admitting {
            let prefixes = || rule.sources.iter().filter_map(family.prefix);
            if prefixes().next().is_none() {
                continue;
            }
            let number = lists.len() as u32;
            let list = match lists.entry(&rule.sources) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => {
                    for prefix in prefixes() {
                        sources.entry(prefix).or_default().push(number);
                    }
                    *new.insert(number)
                }
            };
            for (net, ports) in &rule.destinations {
                let Some(prefix) = (family.prefix)(net) else {
                    continue;
                };
                let end = ends.len() as u32;
                destinations.entry(prefix).or_default().ends.push(end);
                ends.push(End {
                    list,
                    ports: *ports,
                    protocols: &rule.protocols,
                });
            }
        }
        for prefix in rules.routes.iter().filter_map(family.prefix) {
            destinations.entry(prefix).or_default().local = true;
        }
        for address in &rules.addresses {
            if let Some(prefix) = (family.prefix)(&IpNet::from(*address)) {
                let destination = destinations.entry(prefix).or_default();
                destination.local = true;
                destination.own = true;
            }
        }

        let (sources, source_classes) = self.sources(sources, family)?;
        let (destinations, destination_classes) = self.destinations(destinations, family)?;
        self.pair(&source_classes, &destination_classes, &ends, family)?;
        Ok([sources, destinations])
    }

    /// Classes of sources; each with the numbers of the source lists that hold it.
    fn sources(
        &mut self,
        prefixes: BTreeMap<Prefix, Vec<u32>>,
        family: &Family,
    ) -> Result<(Addresses<u128>, Classes), TooLarge> {
        let mut classes = Classes::default();
        let mut table = Addresses::default();
        let mut covering: Covering<(Vec<u32>, Class)> = Covering::default();
        for (prefix, source) in prefixes {
            let above = covering.of(prefix);
            let inherited = above.map_or(0, |(_, class)| *class);
            let lists = united(above.map_or(&[], |(lists, _)| lists), source);
            let class = self.class(&mut classes, &lists)?;
            table.add(prefix, class, inherited, family);
            covering.enter(prefix, (lists, class));
        }
        Ok((table, classes))
    }

    /// Classes of destinations that are local; each with the numbers of the rule ends that cover it.
    fn destinations(
        &mut self,
        prefixes: BTreeMap<Prefix, Destination>,
        family: &Family,
    ) -> Result<(Addresses<u128>, Classes), TooLarge> {
        let mut classes = Classes::default();
        let mut table = Addresses::default();
        let mut covering: Covering<(Vec<u32>, Option<Class>)> = Covering::default();
        for (prefix, destination) in prefixes {
            let above = covering.of(prefix);
            let inherited = above.and_then(|(_, class)| *class);
            let ends = united(above.map_or(&[], |(ends, _)| ends), destination.ends);
            let class = if destination.local || inherited.is_some() {
                let class = self.class(&mut classes, &ends)?;
                Some(if destination.own {
                    class | CLASS_OWN
                } else {
                    class
                })
            } else {
                None
            };
            if let Some(class) = class {
                // Class 0 too: local, though no rule reaches it.
                let above = inherited.unwrap_or(Class::MAX);
                table.add(prefix, class, above, family);
            }
            covering.enter(prefix, (ends, class));
        }
        Ok((table, classes))
    }

    /// Returns the class with these members; 0 is the one without.
    fn class(&mut self, classes: &mut Classes, members: &[u32]) -> Result<Class, TooLarge> {
        if members.is_empty() {
            return Ok(0);
        }
        self.members += members.len();
        if self.members > self.limits.members {
            return Err(TooLarge::Members {
                limit: self.limits.members,
            });
        }
        if let Some(class) = classes.0.get(members) {
            return Ok(*class);
        }
        let class = self.next_class;
        self.next_class += 1;
        classes.0.insert(members.to_owned(), class);
        Ok(class)
    }

    /// Every pair of classes that a rule joins.
    fn pair(
        &mut self,
        sources: &Classes,
        destinations: &Classes,
        ends: &[End<'_>],
        family: &Family,
    ) -> Result<(), TooLarge> {
        let mut holders: HashMap<u32, Vec<Class>> = HashMap::new();
        for (lists, class) in &sources.0 {
            for list in lists {
                holders.entry(*list).or_default().push(*class);
            }
        }
        for (members, destination) in &destinations.0 {
            // (source, protocol, ports), one destination at a time, so that sorting stays cheap.
            let mut admitted: Vec<(Class, u8, PortRange)> = Vec::new();
            for end in members.iter().map(|end| &ends[*end as usize]) {
                let Some(holders) = holders.get(&end.list) else {
                    continue;
                };
                let protocols = end.stored_protocols(family);
                if admitted.len() + holders.len() * protocols.len() > 4 * self.limits.pairs {
                    return Err(self.too_many_pairs());
                }
                for (protocol, ports) in &protocols {
                    admitted.extend(holders.iter().map(|source| (*source, *protocol, *ports)));
                }
            }
            admitted.sort_unstable();
            for group in admitted.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
                if self.pairs.len() == self.limits.pairs {
                    return Err(self.too_many_pairs());
                }
                let pair = Pair {
                    source: group[0].0,
                    destination: *destination,
                    protocol: group[0].1.into(),
                };
                let ports = self.ports(group.iter().map(|(_, _, ports)| *ports))?;
                self.pairs.push((pair, ports));
            }
        }
        Ok(())
    }

    fn too_many_pairs(&self) -> TooLarge {
        TooLarge::Pairs {
            limit: self.limits.pairs,
        }
    }

    /// Merges `ranges`, which ascend, and makes a list of them if they are too many to stand inline.
    fn ports(&mut self, ranges: impl Iterator<Item = PortRange>) -> Result<Ports, TooLarge> {
        let mut merged: Vec<PortRange> = Vec::new();
        for range in ranges.filter(|range| range.first <= range.last) {
            match merged.last_mut() {
                Some(last) if u32::from(range.first) <= u32::from(last.last) + 1 => {
                    last.last = last.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        let mut inline = [PortRange::NONE; INLINE_RANGES];
        if merged.len() <= INLINE_RANGES {
            inline[..merged.len()].copy_from_slice(&merged);
            return Ok(Ports {
                list: 0,
                ranges: inline,
            });
        }
        let number = self.lists.len() as u32 + 1;
        let list = match self.lists.entry(merged) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                let mut blocks: BTreeMap<u32, PortBits> = BTreeMap::new();
                for range in new.key() {
                    for port in u32::from(range.first)..=u32::from(range.last) {
                        let bits = blocks.entry(port / 512).or_default();
                        bits[port as usize / 64 % 8] |= 1 << (port % 64);
                    }
                }
                let list = *new.insert(number);
                let block = |(block, bits)| (PortBlock { list, block }, bits);
                self.blocks.extend(blocks.into_iter().map(block));
                list
            }
        };
        if self.blocks.len() > self.limits.port_blocks {
            return Err(TooLarge::PortBlocks {
                limit: self.limits.port_blocks,
            });
        }
        Ok(Ports {
            list,
            ranges: inline,
        })
    }
}

impl End<'_> {
    /// Protocols and ports under which pairs with this end are stored: ICMP always, since whoever may
    /// reach anything may ping it; of protocols without ports only what is open altogether.
    fn stored_protocols(&self, family: &Family) -> Vec<(u8, PortRange)> {
        let open = self
            .protocols
            .iter()
            .filter_map(|protocol| match *protocol {
                TCP | UDP | SCTP => Some((*protocol, self.ports)),
                icmp if icmp == family.icmp => None,
                other => (self.ports == PortRange::ALL).then_some((other, PortRange::ALL)),
            });
        let mut stored: Vec<_> = open.collect();
        stored.push((family.icmp, PortRange::ALL));
        stored
    }
}

/// Members, ascending, to class.
#[derive(Default)]
struct Classes(HashMap<Vec<u32>, Class>);

impl Addresses<u128> {
    /// Adds an entry, unless the one that covers it says the same. Hosts are always added: to find
    /// them in their own table is faster.
    fn add(&mut self, (bits, len): Prefix, class: Class, inherited: Class, family: &Family) {
        if len == family.bits {
            self.hosts.push((bits, class));
        } else if class != inherited {
            self.nets.push((len.into(), bits, class));
        }
    }
}

/// Prefixes that cover the present one, outermost first, while walking them in order.
struct Covering<T>(Vec<(Prefix, T)>);

impl<T> Default for Covering<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Covering<T> {
    /// What is said of the longest prefix that covers `prefix`.
    fn of(&mut self, prefix: Prefix) -> Option<&T> {
        while self
            .0
            .pop_if(|(above, _)| !covers(*above, prefix))
            .is_some()
        {}
        self.0.last().map(|(_, value)| value)
    }

    fn enter(&mut self, prefix: Prefix, value: T) {
        self.0.push((prefix, value));
    }
}

fn covers(above: Prefix, below: Prefix) -> bool {
    let differing = above.0 ^ below.0;
    above.1 <= below.1 && differing.leading_zeros() >= above.1.into()
}

/// Union of two lists, the first in order; the result in order.
fn united(above: &[u32], own: Vec<u32>) -> Vec<u32> {
    if own.is_empty() {
        return above.to_owned();
    }
    let mut union = [above, &own].concat();
    union.sort_unstable();
    union.dedup();
    union
}

#[cfg(test)]
mod tests;
