//! Who may reach what, rule by rule. Subjects are matched once against all rules; then whether two
//! of them meet is a matter of a few machine words.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::LazyLock;

use ipnet::IpNet;

use super::ports::Query;
use super::subject::{Subject, What, is_overlay};
use crate::compile::Network;
use crate::compile::bits::Bits;
use crate::compile::identity::{self, Families};
use crate::compile::posture::{self, Attributes};
use crate::file::{Autogroup, IpSet, Located, Place, Policy, ProtoPorts, Rule, Selector, Target};
use crate::tailnet::{Node, Owner};

/// What is in force without rules.
static ALLOW_ALL: LazyLock<[Rule; 1]> = LazyLock::new(|| {
    let anywhere = 0..0;
    let any = Located {
        value: Selector::Any,
        span: anywhere.clone(),
    };
    let all = ProtoPorts {
        protocols: Vec::new(),
        first: 0,
        last: u16::MAX,
    };
    [Rule {
        place: Place {
            section: "acls",
            index: 0,
            span: anywhere.clone(),
        },
        sources: vec![any.clone()],
        targets: vec![Target {
            destination: any,
            ports: vec![Located {
                value: all,
                span: anywhere,
            }],
        }],
        app: BTreeMap::new(),
        via: Vec::new(),
        src_posture: Vec::new(),
    }]
});

static INTERNET: LazyLock<IpSet> = LazyLock::new(IpSet::internet);

/// The rules of a network, arranged by selector. Each destination of a rule is an entry.
pub(super) struct Reach<'a> {
    pub(super) network: &'a Network,
    policy: &'a Policy,
    pub(super) entries: Vec<Entry<'a>>,
    /// Each selector once, with the entries whose rules have it as a source.
    sources: Vec<(&'a Selector, Vec<usize>)>,
    /// Each selector once, with the entries that have it as their destination.
    destinations: Vec<(&'a Selector, Vec<usize>)>,
    /// Entries towards `autogroup:self`.
    to_self: Bits,
    routers: OnceCell<Routers<'a>>,
}

/// A rule with one of its destinations.
pub(super) struct Entry<'a> {
    pub(super) rule: &'a Rule,
    pub(super) target: &'a Target,
}

/// Who serves which approved routes.
#[derive(Default)]
struct Routers<'a> {
    routes: BTreeMap<IpNet, Vec<&'a Node>>,
    exits: Vec<&'a Node>,
}

/// The entries that a subject meets, by address family.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Met {
    v4: Bits,
    v6: Bits,
    /// Entries that only lack something: the posture of a source, the router of a destination.
    lacking: Bits,
}

impl Met {
    fn new(bound: usize) -> Self {
        Self {
            v4: Bits::below(bound),
            v6: Bits::below(bound),
            lacking: Bits::below(bound),
        }
    }

    fn insert(&mut self, entry: usize, families: Families) {
        if !families.and(Families::V4).is_none() {
            self.v4.insert(entry);
        }
        if !families.and(Families::V6).is_none() {
            self.v6.insert(entry);
        }
    }

    /// Marks what was met as lacking something.
    fn lack(&mut self, entry: usize) {
        if self.v4.contains(entry) || self.v6.contains(entry) {
            self.v4.remove(entry);
            self.v6.remove(entry);
            self.lacking.insert(entry);
        }
    }

    /// Entries that both meet, in some family.
    fn meet(&self, other: &Self) -> Bits {
        self.v4.and(&other.v4).or(&self.v6.and(&other.v6))
    }

    /// Entries that are met in any family.
    pub(super) fn entries(&self) -> Bits {
        self.v4.or(&self.v6)
    }

    /// Calls `f` with each entry and its family.
    pub(super) fn for_each(&self, mut f: impl FnMut(usize, bool)) {
        self.v4.iter().for_each(|entry| f(entry, false));
        self.v6.iter().for_each(|entry| f(entry, true));
    }

    fn wanted(&self) -> Bits {
        self.entries().or(&self.lacking)
    }
}

impl<'a> Reach<'a> {
    pub(super) fn new(network: &'a Network) -> Self {
        let policy: &Policy = network.policy();
        let rules: &[Rule] = match &policy.rules {
            Some(rules) => rules,
            None => &*ALLOW_ALL,
        };
        let mut entries = Vec::new();
        let mut sources = Selectors::default();
        let mut destinations = Selectors::default();
        let mut to_self = BTreeSet::new();
        for rule in rules {
            let first = entries.len();
            for target in &rule.targets {
                let selector = &target.destination.value;
                destinations.add(selector, entries.len());
                if *selector == Selector::Autogroup(Autogroup::SelfDevices) {
                    to_self.insert(entries.len());
                }
                entries.push(Entry { rule, target });
            }
            for source in &rule.sources {
                for entry in first..entries.len() {
                    sources.add(&source.value, entry);
                }
            }
        }
        let mut bits = Bits::below(entries.len());
        to_self.into_iter().for_each(|entry| bits.insert(entry));
        Self {
            network,
            policy,
            entries,
            sources: sources.list,
            destinations: destinations.list,
            to_self: bits,
            routers: OnceCell::new(),
        }
    }

    /// What a subject meets as a source, if it has these posture attributes.
    pub(super) fn from(&self, subject: &Subject<'_>, attributes: Option<&Attributes>) -> Met {
        let mut met = Met::new(self.entries.len());
        for (selector, entries) in &self.sources {
            let families = self.is_source(subject, selector).and(subject.families);
            if !families.is_none() {
                entries
                    .iter()
                    .for_each(|entry| met.insert(*entry, families));
            }
        }
        for entry in met.entries().iter() {
            let rule = self.entries[entry].rule;
            // Nothing is known of what has no attributes.
            let admitted = !posture::matters(self.policy, rule)
                || attributes.is_some_and(|it| posture::admits(self.policy, rule, it));
            if !admitted {
                met.lack(entry);
            }
        }
        met
    }

    /// What a subject meets as a destination.
    pub(super) fn to(&self, subject: &Subject<'_>) -> Met {
        let mut met = Met::new(self.entries.len());
        for (selector, entries) in &self.destinations {
            let families = self.is_destination(subject, selector).and(subject.families);
            if !families.is_none() {
                entries
                    .iter()
                    .for_each(|entry| met.insert(*entry, families));
            }
        }
        for entry in met.entries().iter() {
            if !self.is_served(subject, &self.entries[entry].rule.via) {
                met.lack(entry);
            }
        }
        met
    }

    /// Entries by which traffic of some kind may go from one to the other.
    pub(super) fn between(&self, from: &Met, to: &Met, same_user: bool) -> Bits {
        self.limit(from.meet(to), same_user)
    }

    /// Entries that want to let traffic through, but for a posture or a router.
    pub(super) fn nearly(&self, from: &Met, to: &Met, same_user: bool) -> Bits {
        let wanted = from.wanted().and(&to.wanted());
        self.limit(wanted.without(&from.meet(to)), same_user)
    }

    fn limit(&self, entries: Bits, same_user: bool) -> Bits {
        if same_user {
            entries
        } else {
            entries.without(&self.to_self)
        }
    }

    /// Is there an entry towards `autogroup:self`?
    pub(super) fn has_self(&self) -> bool {
        !self.to_self.is_empty()
    }

    /// Is this an entry towards `autogroup:self`?
    pub(super) fn is_to_self(&self, entry: usize) -> bool {
        self.to_self.contains(entry)
    }

    /// Is this an entry that `from` does not meet for its posture?
    pub(super) fn lacks_posture(from: &Met, entry: usize) -> bool {
        from.lacking.contains(entry)
    }

    /// Do the ports of an entry let it through?
    pub(super) fn allows(&self, entry: usize, query: Query) -> bool {
        let mut ports = self.entries[entry].target.ports.iter();
        ports.any(|ports| query.is_within(&ports.value))
    }

    /// Approved routes with their routers.
    pub(super) fn routes(&self) -> &BTreeMap<IpNet, Vec<&'a Node>> {
        &self.routers().routes
    }

    /// Approved exit nodes.
    pub(super) fn exits(&self) -> &[&'a Node] {
        &self.routers().exits
    }

    fn routers(&self) -> &Routers<'a> {
        self.routers.get_or_init(|| {
            let mut routers = Routers::default();
            for node in self.network.nodes() {
                for route in node.served_routes() {
                    routers.routes.entry(route).or_default().push(node);
                }
                if node.exit {
                    routers.exits.push(node);
                }
            }
            routers
        })
    }

    /// Is a net within an approved route?
    pub(super) fn is_routed(&self, net: &IpNet) -> bool {
        self.routes().keys().any(|route| route.contains(net))
    }

    fn is_source(&self, subject: &Subject<'_>, selector: &Selector) -> Families {
        match &subject.what {
            What::Device(_, identity) => identity.covered_by(self.policy, selector),
            What::Net(net) => {
                let covered = match selector {
                    Selector::Autogroup(Autogroup::DangerAll) => true,
                    Selector::Any => is_overlay(net) || self.is_routed(net),
                    selector => identity::contains_net(self.policy, selector, net),
                };
                Families::of(net).when(covered)
            }
            What::Internet => Families::NONE,
        }
    }

    fn is_destination(&self, subject: &Subject<'_>, selector: &Selector) -> Families {
        let internet = *selector == Selector::Autogroup(Autogroup::Internet);
        match &subject.what {
            // Whether it is the same user's is known when both ends are.
            What::Device(_, identity)
                if *selector == Selector::Autogroup(Autogroup::SelfDevices) =>
            {
                Families::BOTH.when(identity.user().is_some())
            }
            What::Device(_, identity) => identity.covered_by(self.policy, selector),
            What::Net(net) => {
                let covered = *selector == Selector::Any
                    || (internet && is_public(net) && !self.is_routed(net))
                    || identity::contains_net(self.policy, selector, net);
                Families::of(net).when(covered)
            }
            What::Internet => Families::BOTH.when(internet || *selector == Selector::Any),
        }
    }

    /// Is there somebody who carries the traffic: a router with one of the tags, if any are given?
    /// Nodes need nobody, and no rule with `via` is about them.
    fn is_served(&self, subject: &Subject<'_>, via: &[Located<String>]) -> bool {
        let has_tag = |node: &&&Node| {
            via.is_empty()
                || via.iter().any(|tag| match &node.owner {
                    Owner::Tags(tags) => tags.contains(&tag.value),
                    Owner::User(_) => false,
                })
        };
        match &subject.what {
            What::Device(..) => via.is_empty(),
            What::Internet => self.exits().iter().any(|node| has_tag(&node)),
            What::Net(net) => {
                let routes = self.routes().iter();
                let mut routes = routes.filter(|(route, _)| route.contains(net)).peekable();
                if routes.peek().is_none() {
                    return is_public(net) && self.exits().iter().any(|node| has_tag(&node));
                }
                routes.any(|(_, routers)| routers.iter().any(|node| has_tag(&node)))
            }
        }
    }
}

/// Selectors, each once, in order.
#[derive(Default)]
struct Selectors<'a> {
    index: HashMap<&'a Selector, usize>,
    list: Vec<(&'a Selector, Vec<usize>)>,
}

impl<'a> Selectors<'a> {
    fn add(&mut self, selector: &'a Selector, entry: usize) {
        let new = self.list.len();
        let index = *self.index.entry(selector).or_insert(new);
        if index == new {
            self.list.push((selector, Vec::new()));
        }
        self.list[index].1.push(entry);
    }
}

/// May traffic to these addresses go out of an exit node?
pub(super) fn is_public(net: &IpNet) -> bool {
    let mut ranges = INTERNET.ranges();
    ranges.any(|(first, last)| {
        first.is_ipv4() == net.addr().is_ipv4() && first <= net.network() && net.broadcast() <= last
    })
}
