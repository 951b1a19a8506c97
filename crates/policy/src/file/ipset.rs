//! `ipsets`: named sets of addresses, built by adding and removing in order.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::ranges::Ranges;
use super::reader::{Fields, Reader, Text};
use super::selector::{Address, parse_address};
use crate::diagnostic::Cause;
use crate::syntax::Member;

/// Address ranges, both ends included, sorted, disjoint, not adjacent, families apart.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct IpSet {
    /// IPv4.
    pub v4: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// IPv6.
    pub v6: Vec<(Ipv6Addr, Ipv6Addr)>,
}

/// What no exit node forwards to: private, shared, loopback, link-local, multicast and reserved
/// space (control.md 8.4, `autogroup:internet`).
const NOT_INTERNET: [&str; 9] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

impl IpSet {
    /// The public internet: what `autogroup:internet` stands for as a set of addresses.
    #[must_use]
    pub fn internet() -> Self {
        let mut set = Builder::default();
        for net in ["0.0.0.0/0", "2000::/3"]
            .iter()
            .filter_map(|net| net.parse().ok())
        {
            set.apply(true, ends(&net));
        }
        for net in NOT_INTERNET.iter().filter_map(|net| net.parse().ok()) {
            set.apply(false, ends(&net));
        }
        set.finish()
    }

    /// Nothing in it?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Is the address in it?
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(it) => within(&self.v4, it),
            IpAddr::V6(it) => within(&self.v6, it),
        }
    }

    /// All ranges, IPv4 first.
    pub fn ranges(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> {
        let v4 = self
            .v4
            .iter()
            .map(|(first, last)| (IpAddr::V4(*first), IpAddr::V4(*last)));
        v4.chain(
            self.v6
                .iter()
                .map(|(first, last)| (IpAddr::V6(*first), IpAddr::V6(*last))),
        )
    }
}

fn within<A: Ord>(ranges: &[(A, A)], address: A) -> bool {
    let behind = ranges.partition_point(|(first, _)| *first <= address);
    behind > 0 && ranges[behind - 1].1 >= address
}

/// First and last address.
type Ends = (IpAddr, IpAddr);

fn ends(net: &IpNet) -> Ends {
    (net.network(), net.broadcast())
}

/// A set while it is built.
#[derive(Default)]
struct Builder {
    v4: Ranges,
    v6: Ranges,
}

impl Builder {
    /// Adds or removes a range of one family.
    fn apply(&mut self, add: bool, (first, last): Ends) {
        let (ranges, first, last) = match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                (&mut self.v4, first.to_bits().into(), last.to_bits().into())
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                (&mut self.v6, first.to_bits(), last.to_bits())
            }
            _ => return debug_assert!(false, "a range of two families"),
        };
        if add {
            ranges.add(first, last)
        } else {
            ranges.remove(first, last)
        }
    }

    fn finish(&self) -> IpSet {
        // Numbers of the first kind came from IPv4 addresses.
        let v4 = |number| Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX));
        IpSet {
            v4: self
                .v4
                .iter()
                .map(|(first, last)| (v4(first), v4(last)))
                .collect(),
            v6: self
                .v6
                .iter()
                .map(|(first, last)| (Ipv6Addr::from_bits(first), Ipv6Addr::from_bits(last)))
                .collect(),
        }
    }
}

/// Ranges that all sets of a file may take from other sets: bounds what references multiply.
const MOST_COPIED: usize = 1_000_000;
/// Sets in sets in sets: recursion must not meet the end of the stack.
const MOST_NESTED: usize = 64;

/// The sets of a file while they are evaluated.
struct Evaluation<'n> {
    definitions: BTreeMap<&'n str, &'n Member<'n>>,
    /// `None`: being evaluated.
    sets: BTreeMap<&'n str, Option<IpSet>>,
    depth: usize,
    copied: usize,
}

impl<'n> Reader<'n> {
    /// `ipsets`
    pub(super) fn ipsets(&mut self, top: &Fields<'n>) -> BTreeMap<String, IpSet> {
        let Some(node) = top.get("ipsets") else {
            return BTreeMap::new();
        };
        let members = self.map(node, "ipsets");
        let mut run = Evaluation {
            definitions: members.iter().map(|it| (it.name.as_str(), it)).collect(),
            sets: BTreeMap::new(),
            depth: 0,
            copied: 0,
        };
        for member in members {
            self.defined_name(member, "ipset", false);
            self.ipset(&mut run, member);
        }
        let sets = run.sets.into_iter();
        sets.filter_map(|(name, set)| Some((name.to_owned(), set?)))
            .collect()
    }

    fn ipset(&mut self, run: &mut Evaluation<'n>, member: &'n Member<'n>) {
        if run.sets.contains_key(member.name.as_str()) {
            return;
        }
        run.sets.insert(&member.name, None);
        let mut set = Builder::default();
        for text in self.texts(Some(&member.node), &member.name) {
            let Some((add, target)) = self.ipset_operation(&text.trim()) else {
                continue;
            };
            for ends in self.ipset_target(run, &target) {
                set.apply(add, ends);
            }
        }
        run.sets.insert(&member.name, Some(set.finish()));
    }

    /// `add TARGET`, `remove TARGET`, or the target alone, which adds.
    fn ipset_operation(&mut self, text: &Text<'n>) -> Option<(bool, Text<'n>)> {
        let Some((word, rest)) = text.value.split_once([' ', '\t']) else {
            return Some((true, text.clone()));
        };
        let target = text
            .part(text.value.len() - rest.len()..text.value.len())
            .trim();
        match word {
            "add" => Some((true, target)),
            "remove" => Some((false, target)),
            _ => {
                let message = format!("{word:?} is not an operation on an ipset");
                let help = "operations are \"add TARGET\" and \"remove TARGET\"";
                let label = "expected add or remove";
                self.error_help(Cause::BadIpSetOperation, &text.span, message, label, help);
                None
            }
        }
    }

    fn ipset_target(&mut self, run: &mut Evaluation<'n>, text: &Text<'n>) -> Vec<Ends> {
        let name = text.value;
        if name == "autogroup:internet" {
            return IpSet::internet().ranges().collect();
        }
        if name.starts_with("ipset:") {
            return self.other_ipset(run, text);
        }
        let people = ["tag:", "group:", "autogroup:", "user:", "svc:"];
        if people.iter().any(|prefix| name.starts_with(prefix)) || name == "*" || name.contains('@')
        {
            let message = format!("{name:?} is not a set of addresses");
            let help = "ipsets hold addresses, prefixes, ranges, hosts, other ipsets and autogroup:internet";
            self.error_help(
                Cause::NotAnIpSetMember,
                &text.span,
                message,
                "not in an ipset",
                help,
            );
            return Vec::new();
        }
        let net = match self.names.host(name) {
            Some(net) => net,
            None => match parse_address(name) {
                Some(Address::Prefix(net)) => Some(self.without_host_bits(net, text)),
                Some(Address::Range(first, last)) => return vec![(first, last)],
                None => {
                    self.not_an_address(text);
                    None
                }
            },
        };
        net.iter().map(ends).collect()
    }

    fn other_ipset(&mut self, run: &mut Evaluation<'n>, text: &Text<'n>) -> Vec<Ends> {
        let Some(member) = run.definitions.get(text.value).copied() else {
            self.known_ipset(text);
            return Vec::new();
        };
        if run.depth >= MOST_NESTED {
            let message = format!("ipsets refer to each other over more than {MOST_NESTED} steps");
            self.error(Cause::IpSetCycle, &text.span, message, "one step too many");
            return Vec::new();
        }
        run.depth += 1;
        self.ipset(run, member);
        run.depth -= 1;
        let Some(Some(set)) = run.sets.get(text.value) else {
            let message = format!("{} contains itself", text.value);
            self.error(
                Cause::IpSetCycle,
                &text.span,
                message,
                "leads back to where it started",
            );
            return Vec::new();
        };
        let before = run.copied;
        run.copied += set.v4.len() + set.v6.len();
        if run.copied <= MOST_COPIED {
            return set.ranges().collect();
        }
        if before <= MOST_COPIED {
            let message = format!("ipsets take more than {MOST_COPIED} ranges from each other");
            let help = "join sets that hold the same addresses";
            self.error_help(
                Cause::TooLarge,
                &text.span,
                message,
                "the limit is reached here",
                help,
            );
        }
        Vec::new()
    }
}
