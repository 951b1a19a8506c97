//! What a new policy would change: who gains access to what, and who loses it.
//!
//! Nodes, routes and addresses that no rule of either policy tells apart are one class. Rules that
//! have the same sources and destinations before and after change nothing, and classes that only
//! such rules touch are not looked at: the work is that of the change, not of the network.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem::take;

use ipnet::IpNet;

use super::ports::PortSet;
use super::reach::{Entry, Met, Reach};
use super::ssh::{SshReach, to_self, users};
use super::subject::{Directory, Subject};
use crate::compile::Network;
use crate::compile::bits::Bits;
use crate::file::{Policy, Selector, SshAction, SshUser};
use crate::tailnet::NodeId;

/// Access of a kind, between any of the sources and any of the destinations.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, serde::Serialize, serde::Deserialize)]
pub struct Access {
    /// Names of nodes, or prefixes behind a router. Nodes with the same access stand together.
    pub sources: Vec<String>,
    /// Names of nodes, prefixes or `autogroup:internet`.
    pub destinations: Vec<String>,
    /// `*`, `22` (TCP and UDP), `tcp:22`, `udp:1-1023`, `ssh:root`, `ssh:root (check)`, or a
    /// capability with its values.
    pub ports: String,
}

/// What a new policy would change.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Difference {
    /// Pairs and ports that gain access.
    pub gained: Vec<Access>,
    /// Pairs and ports that lose it.
    pub lost: Vec<Access>,
}

/// Compares what two policies allow between the same nodes.
#[must_use]
pub fn diff(before: &Network, after: &Network) -> Difference {
    let ends = ends(before, after);
    let (before, after) = (Side::new(before, &ends), Side::new(after, &ends));
    let mut comparison = Comparison::new(before, after);
    comparison.run();
    let (gained, lost) = (take(&mut comparison.gained), take(&mut comparison.lost));
    Difference {
        gained: comparison.named(gained),
        lost: comparison.named(lost),
    }
}

/// One end of connections, known to both policies.
enum End {
    Node(NodeId),
    Net(IpNet),
    Internet,
}

/// Nodes, and what routers and exit nodes lead to: each approved route, and each part of one that
/// a rule names.
fn ends(before: &Network, after: &Network) -> Vec<End> {
    let mut nets = BTreeSet::new();
    let mut exit = false;
    for network in [before, after] {
        let nodes = || network.nodes();
        let routes: BTreeSet<IpNet> = nodes()
            .flat_map(|node| node.routes.iter().copied())
            .collect();
        exit |= nodes().any(|node| node.exit);
        for literal in literals(network.policy()) {
            nets.extend(
                routes
                    .iter()
                    .filter(|route| route.contains(&literal))
                    .map(|_| literal),
            );
        }
        nets.extend(routes);
    }
    let nodes = after.nodes().map(|node| End::Node(node.id));
    let nets = nets.into_iter().map(End::Net);
    nodes
        .chain(nets)
        .chain(exit.then_some(End::Internet))
        .collect()
}

/// Prefixes that rules name.
fn literals(policy: &Policy) -> BTreeSet<IpNet> {
    let rules = policy.rules.iter().flatten();
    let selectors = rules.flat_map(|rule| {
        let targets = rule.targets.iter().map(|target| &target.destination.value);
        rule.sources
            .iter()
            .map(|source| &source.value)
            .chain(targets)
    });
    let mut literals = BTreeSet::new();
    for selector in selectors {
        match selector {
            Selector::Host(_, net) | Selector::Prefix(net) => {
                literals.insert(net.trunc());
            }
            Selector::Range(first, last) => literals.extend(subnets(*first, *last)),
            Selector::IpSet(name) => {
                let ranges = policy
                    .ipsets
                    .get(name)
                    .into_iter()
                    .flat_map(|set| set.ranges());
                literals.extend(ranges.flat_map(|(first, last)| subnets(first, last)));
            }
            Selector::Any
            | Selector::User(_)
            | Selector::UsersOf(_)
            | Selector::Group(_)
            | Selector::Tag(_)
            | Selector::Autogroup(_) => {}
        }
    }
    literals
}

/// The prefixes that make up a range.
fn subnets(first: std::net::IpAddr, last: std::net::IpAddr) -> Vec<IpNet> {
    use std::net::IpAddr::{V4, V6};
    match (first, last) {
        (V4(first), V4(last)) => ipnet::Ipv4Subnets::new(first, last, 0)
            .map(IpNet::V4)
            .collect(),
        (V6(first), V6(last)) => ipnet::Ipv6Subnets::new(first, last, 0)
            .map(IpNet::V6)
            .collect(),
        (V4(_) | V6(_), _) => Vec::new(),
    }
}

/// One of the two policies, matched against all ends.
struct Side<'a> {
    reach: Reach<'a>,
    ssh: SshReach<'a>,
    /// By end.
    met: Vec<EndMet<'a>>,
    /// What sets of rules allow, as far as it was asked.
    granted: HashMap<Rule<'a>, Granted>,
}

/// What decides what one end may do at another: entries, SSH rules in order, and whose the source
/// is, if SSH rules are among them.
type Rule<'a> = (Bits, Vec<usize>, Option<&'a str>);

/// An end as one policy sees it.
struct EndMet<'a> {
    name: String,
    net: Option<IpNet>,
    login: Option<&'a str>,
    from: Matched,
    to: Matched,
}

/// The rules that an end meets, as a source or as a destination.
#[derive(Eq, Hash, PartialEq)]
struct Matched {
    entries: Met,
    ssh: Bits,
}

/// What two ends may do.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Granted {
    ports: PortSet,
    /// Capabilities with their values, and `ssh:user`.
    others: BTreeSet<String>,
}

impl Granted {
    /// What is in `self` and not in `other`, by name.
    fn without(&self, other: &Self) -> Vec<String> {
        let ports = self.ports.without(&other.ports).names().into_iter();
        ports
            .chain(self.others.difference(&other.others).cloned())
            .collect()
    }
}

/// An entry by what it does: entries with the same key allow the same between the same ends.
type EntryKey<'a> = (u64, u64, bool, PortSet, Vec<(&'a str, Vec<&'a str>)>);

impl<'a> Side<'a> {
    fn new(network: &'a Network, ends: &[End]) -> Self {
        let directory = Directory::new(network);
        let reach = Reach::new(network);
        let ssh = SshReach::new(network.policy());
        let met = ends.iter().map(|end| {
            let subject = match end {
                End::Node(id) => network.node(*id).map(|node| directory.node(node)),
                End::Net(net) => Some(Subject::net(*net)),
                End::Internet => Some(Subject::internet()),
            };
            // A node that only the other network has may do nothing here.
            let subject = subject.unwrap_or_else(Subject::nobody);
            EndMet {
                net: match end {
                    End::Net(net) => Some(*net),
                    End::Node(_) | End::Internet => None,
                },
                login: subject.login(),
                from: Matched {
                    entries: reach.from(&subject, subject.attributes()),
                    ssh: ssh.from(&subject),
                },
                to: Matched {
                    entries: reach.to(&subject),
                    ssh: ssh.to(&subject),
                },
                name: subject.name,
            }
        });
        let met = met.collect();
        Self {
            reach,
            ssh,
            met,
            granted: HashMap::new(),
        }
    }

    /// Do some rules ask whose device an end is?
    fn is_by_login(&self) -> bool {
        self.reach.has_self() || self.ssh.is_by_login()
    }

    fn granted(&mut self, from: usize, to: usize) -> &Granted {
        let (from, to) = (&self.met[from], &self.met[to]);
        let same_user = from.login.is_some() && from.login == to.login;
        let entries = self
            .reach
            .between(&from.from.entries, &to.to.entries, same_user);
        let ssh_rules = self.ssh.between(&from.from.ssh, &to.to.ssh, same_user);
        let ssh_indices = ssh_rules.iter().map(|rule| rule.place.index).collect();
        let login = from.login.filter(|_| !ssh_rules.is_empty());
        let reach = &self.reach;
        let new = |(entries, _, login): &Rule<'a>| {
            let mut granted = Granted::default();
            for entry in entries.iter().map(|entry| &reach.entries[entry]) {
                entry
                    .target
                    .ports
                    .iter()
                    .for_each(|ports| granted.ports.insert(&ports.value));
                for (name, values) in capabilities(entry) {
                    granted.others.insert(match values.as_slice() {
                        [] => name.to_owned(),
                        values => format!("{name} [{}]", values.join(",")),
                    });
                }
            }
            for (user, check) in users(&ssh_rules, *login) {
                let check = if check { " (check)" } else { "" };
                granted.others.insert(format!("ssh:{user}{check}"));
            }
            granted
        };
        self.granted
            .entry((entries, ssh_indices, login))
            .or_insert_with_key(new)
    }

    /// A key for each entry.
    fn entry_keys(&self) -> Vec<EntryKey<'a>> {
        let mut sources = vec![DefaultHasher::new(); self.reach.entries.len()];
        let mut destinations = sources.clone();
        for (end, met) in self.met.iter().enumerate() {
            met.from
                .entries
                .for_each(|entry, family| (end, family).hash(&mut sources[entry]));
            met.to
                .entries
                .for_each(|entry, family| (end, family).hash(&mut destinations[entry]));
        }
        let entries = self.reach.entries.iter().enumerate();
        let keys = entries.map(|(index, entry)| {
            let mut ports = PortSet::default();
            entry
                .target
                .ports
                .iter()
                .for_each(|it| ports.insert(&it.value));
            let (from, to) = (sources[index].finish(), destinations[index].finish());
            let to_self = self.reach.is_to_self(index);
            (from, to, to_self, ports, capabilities(entry).collect())
        });
        keys.collect()
    }

    /// The entries that the other side does not have.
    fn changed(&self, own: &[EntryKey<'_>], other: &[EntryKey<'_>]) -> Bits {
        let other: BTreeSet<_> = other.iter().collect();
        let mut changed = Bits::below(own.len());
        let new = own
            .iter()
            .enumerate()
            .filter(|(_, key)| !other.contains(key));
        new.for_each(|(entry, _)| changed.insert(entry));
        changed
    }

    /// The SSH rules by what they do, in the order in which they decide.
    fn ssh_keys(&self) -> Vec<(u64, BTreeSet<SshUser>, bool, bool)> {
        let mut hashers = vec![DefaultHasher::new(); self.ssh.rules.len()];
        for (end, met) in self.met.iter().enumerate() {
            met.from
                .ssh
                .iter()
                .for_each(|rule| (end, true).hash(&mut hashers[rule]));
            met.to
                .ssh
                .iter()
                .for_each(|rule| (end, false).hash(&mut hashers[rule]));
        }
        let rules = self.ssh.rules.iter().zip(hashers);
        let keys = rules.map(|(rule, hasher)| {
            let users: BTreeSet<_> = rule.users.iter().map(|user| user.value.clone()).collect();
            let check = rule.action != SshAction::Accept;
            (hasher.finish(), users, check, to_self(rule))
        });
        keys.collect()
    }
}

/// What a rule grants beside ports: names with their values as they were written.
fn capabilities<'a>(entry: &Entry<'a>) -> impl Iterator<Item = (&'a str, Vec<&'a str>)> + use<'a> {
    let app = entry.rule.app.iter();
    app.map(|(name, values)| {
        (
            name.as_str(),
            values.iter().map(|value| value.get()).collect(),
        )
    })
}

/// Ends that neither policy tells apart as sources, or as destinations.
struct Class {
    /// Any of them stands for all.
    first: usize,
    members: Vec<usize>,
}

/// An end as a source, or as a destination.
type Part = for<'m, 'a> fn(&'m EndMet<'a>) -> &'m Matched;

fn classes(before: &Side<'_>, after: &Side<'_>, part: Part) -> Vec<Class> {
    let by_login = before.is_by_login() || after.is_by_login();
    let mut index = HashMap::new();
    let mut classes: Vec<Class> = Vec::new();
    for (end, (old, new)) in before.met.iter().zip(&after.met).enumerate() {
        let login = new.login.filter(|_| by_login);
        let key = (part(old), part(new), login);
        let class = *index.entry(key).or_insert(classes.len());
        match classes.get_mut(class) {
            Some(class) => class.members.push(end),
            None => classes.push(Class {
                first: end,
                members: vec![end],
            }),
        }
    }
    classes
}

/// By kind of access, for each class of sources the classes of destinations.
type Changes = BTreeMap<String, BTreeMap<usize, BTreeSet<usize>>>;

struct Comparison<'a> {
    before: Side<'a>,
    after: Side<'a>,
    sources: Vec<Class>,
    destinations: Vec<Class>,
    gained: Changes,
    lost: Changes,
}

impl<'a> Comparison<'a> {
    fn new(before: Side<'a>, after: Side<'a>) -> Self {
        Self {
            sources: classes(&before, &after, |met| &met.from),
            destinations: classes(&before, &after, |met| &met.to),
            before,
            after,
            gained: Changes::new(),
            lost: Changes::new(),
        }
    }

    fn run(&mut self) {
        let (old, new) = (self.before.entry_keys(), self.after.entry_keys());
        let changed_before = self.before.changed(&old, &new);
        let changed_after = self.after.changed(&new, &old);
        let ssh_changed = self.before.ssh_keys() != self.after.ssh_keys();
        let pick = |classes: &[Class], part: Part| {
            let touches = |side: &Side<'_>, class: &Class, changed: &Bits| {
                let met = &side.met[class.first];
                // A rule with local parts is about the sources' own devices too.
                let ssh = met.login.is_some() || !part(met).ssh.is_empty();
                (ssh_changed && ssh) || part(met).entries.entries().meets(changed)
            };
            let is_touched = |class: &Class| {
                touches(&self.before, class, &changed_before)
                    || touches(&self.after, class, &changed_after)
            };
            let touched = (0..classes.len()).filter(|class| is_touched(&classes[*class]));
            touched.collect::<Vec<_>>()
        };
        let sources = pick(&self.sources, |met| &met.from);
        let destinations = pick(&self.destinations, |met| &met.to);
        for source in sources {
            for destination in &destinations {
                self.compare(source, *destination);
            }
        }
    }

    fn compare(&mut self, source: usize, destination: usize) {
        let (from, to) = (&self.sources[source], &self.destinations[destination]);
        // A single node is no pair.
        if from.members.len() == 1 && from.members == to.members {
            return;
        }
        let (from, to) = (from.first, to.first);
        let before = self.before.granted(from, to);
        let after = self.after.granted(from, to);
        if before == after {
            return;
        }
        for name in after.without(before) {
            let sources = self.gained.entry(name).or_default();
            sources.entry(source).or_default().insert(destination);
        }
        for name in before.without(after) {
            let sources = self.lost.entry(name).or_default();
            sources.entry(source).or_default().insert(destination);
        }
    }

    /// Changes by name, sources with the same destinations together.
    fn named(&self, changes: Changes) -> Vec<Access> {
        let mut accesses = Vec::new();
        for (ports, sources) in changes {
            let mut by_destinations: BTreeMap<BTreeSet<usize>, Vec<usize>> = BTreeMap::new();
            for (source, destinations) in sources {
                by_destinations
                    .entry(destinations)
                    .or_default()
                    .push(source);
            }
            for (destinations, sources) in by_destinations {
                let sources = self.names(&self.sources, sources);
                let mut destinations = self.names(&self.destinations, destinations);
                if let [alone] = sources.as_slice() {
                    destinations.retain(|name| name != alone);
                }
                accesses.push(Access {
                    sources,
                    destinations,
                    ports: ports.clone(),
                });
            }
        }
        accesses.sort_unstable();
        accesses
    }

    /// The members of classes, without prefixes that are within others.
    fn names(&self, all: &[Class], classes: impl IntoIterator<Item = usize>) -> Vec<String> {
        let members = classes.into_iter().flat_map(|class| &all[class].members);
        let mut members: Vec<&EndMet<'_>> = members.map(|end| &self.after.met[*end]).collect();
        let nets: Vec<IpNet> = members.iter().filter_map(|member| member.net).collect();
        let is_within = |net: &IpNet| nets.iter().any(|other| other != net && other.contains(net));
        members.retain(|member| !member.net.as_ref().is_some_and(is_within));
        let mut names: Vec<String> = members.iter().map(|member| member.name.clone()).collect();
        names.sort_unstable();
        names
    }
}
