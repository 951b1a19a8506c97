//! Rules to class tables: which addresses are alike to all rules, and what each pair of such classes
//! may do. Pure.
//!
//! The class of a source is the set of source lists that hold it; the class of a destination is the
//! set of rule ends that cover it. A prefix takes over what covers it, so the longest match of an
//! address decides alone. The tables hold one entry per pair of classes with a rule in common and
//! protocol: usually few, but nested prefixes and overlapping groups multiply, hence [`LIMITS`]. Beyond
//! them the tables hold a list per destination class instead, which the programs go through end by
//! end: slower with the first packet of a flow, and never larger than the rules themselves allow.

mod ports;

use std::collections::{BTreeMap, HashMap, HashSet, hash_map::Entry};

use ebpf_abi::{
    CLASS_OWN, Class, INLINE_RANGES, ListedEnd, MAX_LISTED_ENDS, Pair, PortRange, Ports, RulePorts,
    member_bit,
};
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
    /// Ranges of ports in lists of more than [`INLINE_RANGES`]: 8 bytes each.
    pub(crate) port_ranges: usize,
    /// Members of classes, over all prefixes: time and memory of compiling.
    pub(crate) members: usize,
    /// Ends in lists of destination classes: 16 bytes each.
    pub(crate) ends: usize,
    /// Words of 64 bits that say which source classes are in which source lists.
    pub(crate) member_words: usize,
}

/// About 1 Mi pairs (100 MiB) and 16 MiB of port lists; or 64 MiB of ends and 64 MiB of members.
pub(crate) const LIMITS: Limits = Limits {
    pairs: 1 << 20,
    port_ranges: 1 << 21,
    members: 1 << 25,
    ends: 1 << 22,
    member_words: 1 << 23,
};

/// Times that a pair may be joined by rules, over all pairs: what compiling goes through.
const EFFORT: usize = 8;

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
        "the packet filter needs lists of more than {limit} port ranges: use fewer different lists of \
         more than {INLINE_RANGES} port ranges in the policy"
    )]
    PortRanges {
        /// Most ranges, over all lists.
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
    pub(crate) port_lists: Vec<RulePorts>,
    /// What there is instead of pairs of classes, where those would be too many.
    pub(crate) linear: Option<Linear>,
}

/// Rule ends to be tried one after the other. `pairs` lead to them: of source 0, whatever the source.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Linear {
    pub(crate) ends: Vec<ListedEnd>,
    pub(crate) members: Vec<u64>,
    /// Words of `members` for each class of sources.
    pub(crate) member_words: u32,
}

/// Compiles `rules`.
///
/// # Errors
///
/// [`TooLarge`] if the tables would exceed `limits`.
pub(crate) fn compile(rules: &Rules, limits: Limits) -> Result<ClassTables, TooLarge> {
    match compile_as(rules, limits, Form::Pairs) {
        // Pairs are what is fast; the error that matters is theirs too.
        Err(error @ (TooLarge::Pairs { .. } | TooLarge::PortRanges { .. })) => {
            compile_as(rules, limits, Form::Linear).map_err(|_| error)
        }
        result => result,
    }
}

/// Which of the two forms tables have.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Pairs,
    Linear,
}

fn compile_as(rules: &Rules, limits: Limits, form: Form) -> Result<ClassTables, TooLarge> {
    let mut compiler = Compiler {
        limits,
        form,
        members: 0,
        next_class: 1,
        pairs: Vec::new(),
        lists: HashMap::new(),
        ranges: Vec::new(),
        ends: Vec::new(),
        holders: Vec::new(),
    };
    let v4 = compiler.family(rules, &V4)?;
    let v6 = compiler.family(rules, &V6)?;
    let linear = match form {
        Form::Pairs => None,
        Form::Linear => Some(compiler.linear()?),
    };
    Ok(ClassTables {
        v4: v4.map(|side| side.map(|bits| ((bits >> 96) as u32).to_be_bytes())),
        v6: v6.map(|side| side.map(u128::to_be_bytes)),
        pairs: compiler.pairs,
        port_lists: compiler.ranges,
        linear,
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
    /// Number of the rule.
    rule: u32,
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
    form: Form,
    members: usize,
    next_class: Class,
    pairs: Vec<(Pair, Ports)>,
    /// Long lists of ports, to where they begin in `ranges`.
    lists: HashMap<Vec<RulePorts>, u32>,
    ranges: Vec<RulePorts>,
    ends: Vec<ListedEnd>,
    /// Classes of sources and the lists that hold them.
    holders: Vec<(Class, Vec<u32>)>,
}

impl Compiler {
    fn family(&mut self, rules: &Rules, family: &Family) -> Result<[Addresses<u128>; 2], TooLarge> {
        let mut sources: BTreeMap<Prefix, Vec<u32>> = BTreeMap::new();
        let mut destinations: BTreeMap<Prefix, Destination> = BTreeMap::new();
        let mut ends = Vec::new();
        let mut lists: HashMap<&[IpNet], u32> = HashMap::new();
        let admitting: &[Rule] = if rules.shields_up { &[] } else { &rules.rules };
        for (rule_number, rule) in (0..).zip(admitting) {
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
                    rule: rule_number,
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
        match self.form {
            Form::Pairs => self.pair(&source_classes, &destination_classes, &ends, family)?,
            Form::Linear => {
                self.list(&destination_classes, &ends, family)?;
                let holders = source_classes.0.into_iter();
                self.holders
                    .extend(holders.map(|(lists, class)| (class, lists)));
            }
        }
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
        // Known before any of it is done: who is past the limit by far shall not wait to hear of it.
        let effort = |end: &u32| {
            let end = &ends[*end as usize];
            holders.get(&end.list).map_or(0, Vec::len) * (end.protocols.len() + 1)
        };
        let efforts = destinations.0.keys().flatten().map(effort);
        if efforts.sum::<usize>() > EFFORT * self.limits.pairs {
            return Err(self.too_many_pairs());
        }
        for (members, destination) in &destinations.0 {
            // (source, protocol, rule, ports), one destination at a time, so that sorting stays cheap.
            let mut admitted: Vec<(Class, u8, u32, PortRange)> = Vec::new();
            for end in members.iter().map(|end| &ends[*end as usize]) {
                let Some(holders) = holders.get(&end.list) else {
                    continue;
                };
                let protocols = end.stored_protocols(family);
                if admitted.len() + holders.len() * protocols.len() > 4 * self.limits.pairs {
                    return Err(self.too_many_pairs());
                }
                for (protocol, ports) in &protocols {
                    let rule = end.rule;
                    let held = holders.iter();
                    admitted.extend(held.map(|source| (*source, *protocol, rule, *ports)));
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
                let ports = self.ports(group.iter().map(|(_, _, rule, ports)| RulePorts {
                    ports: *ports,
                    rule: *rule,
                }))?;
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

    /// What `ranges`, in the order of rules, come to; a list of it if it is too long to stand inline.
    fn ports(&mut self, ranges: impl Iterator<Item = RulePorts>) -> Result<Ports, TooLarge> {
        let apart = ports::apart(ranges);
        let mut inline = [RulePorts::NONE; INLINE_RANGES];
        if apart.len() <= INLINE_RANGES {
            inline[..apart.len()].copy_from_slice(&apart);
            return Ok(Ports {
                first: 0,
                len: 0,
                ranges: inline,
            });
        }
        let len = apart.len() as u32;
        let first = match self.lists.entry(apart) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                if self.ranges.len() + new.key().len() > self.limits.port_ranges {
                    return Err(TooLarge::PortRanges {
                        limit: self.limits.port_ranges,
                    });
                }
                let first = self.ranges.len() as u32;
                self.ranges.extend(new.key());
                *new.insert(first)
            }
        };
        Ok(Ports {
            first,
            len,
            ranges: inline,
        })
    }

    /// Every end of every class of destinations, by protocol.
    fn list(
        &mut self,
        destinations: &Classes,
        ends: &[End<'_>],
        family: &Family,
    ) -> Result<(), TooLarge> {
        for (members, destination) in &destinations.0 {
            let mut by_protocol: BTreeMap<u8, Vec<ListedEnd>> = BTreeMap::new();
            // A rule behind one that says the same of the same sources is never the first.
            let mut said: HashSet<(u8, u32, PortRange)> = HashSet::new();
            for end in members.iter().map(|end| &ends[*end as usize]) {
                for (protocol, ports) in end.stored_protocols(family) {
                    if ports.first > ports.last || !said.insert((protocol, end.list, ports)) {
                        continue;
                    }
                    by_protocol.entry(protocol).or_default().push(ListedEnd {
                        ports,
                        rule: end.rule,
                        sources: end.list,
                    });
                }
            }
            for (protocol, list) in by_protocol {
                let (first, len) = (self.ends.len(), list.len());
                if first + len > self.limits.ends || len > MAX_LISTED_ENDS as usize {
                    return Err(self.too_many_pairs());
                }
                self.ends.extend(list);
                let pair = Pair {
                    source: 0,
                    destination: *destination,
                    protocol: protocol.into(),
                };
                let ports = Ports {
                    first: first as u32,
                    len: len as u32,
                    ranges: [RulePorts::NONE; INLINE_RANGES],
                };
                self.pairs.push((pair, ports));
            }
        }
        Ok(())
    }

    fn linear(&mut self) -> Result<Linear, TooLarge> {
        let lists = self.holders.iter().flat_map(|(_, lists)| lists);
        let member_words = lists.max().map_or(0, |list| list / 64 + 1);
        let len = self.next_class as usize * member_words as usize;
        if len > self.limits.member_words {
            return Err(self.too_many_pairs());
        }
        let mut members = vec![0u64; len];
        for (class, lists) in &self.holders {
            for list in lists {
                let (word, bit) = member_bit(*class, *list, member_words);
                members[word as usize] |= 1 << bit;
            }
        }
        Ok(Linear {
            ends: std::mem::take(&mut self.ends),
            members,
            member_words,
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
