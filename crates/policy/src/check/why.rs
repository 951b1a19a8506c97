//! Why one may reach another, or what is missing.

use std::collections::{BTreeSet, HashSet};

use super::ports::{PortSet, Query};
use super::reach::{Met, Reach, is_public};
use super::subject::{Directory, Subject, What};
use super::{AskError, RulePlace, cite};
use crate::compile::Network;
use crate::compile::bits::Bits;
use crate::file::{Policy, Rule, has_ports, protocol_name, protocol_number, with_domain};

/// So many rules are named among what is missing.
const SHOWN: usize = 10;

/// Why a source may reach a destination, or what is missing.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Explanation {
    /// May it? If several devices are meant: may each of them reach each?
    pub allowed: bool,
    /// One line: the answer and its reason.
    pub summary: String,
    /// The rules that allow it, in the order of the file, each with its place.
    pub rules: Vec<RulePlace>,
    /// If not allowed: what is missing, one line each (no such rule, other ports only, posture fails…).
    pub missing: Vec<String>,
}

/// Explains whether and why `source` may reach `destination`: node names, addresses, users, tags,
/// groups or hosts; `destination` may end with `:PORT` or `:PROTOCOL:PORT`, without it any port
/// counts. IPv6 addresses with a port stand in brackets.
///
/// # Errors
///
/// They name nobody.
pub fn why(network: &Network, source: &str, destination: &str) -> Result<Explanation, AskError> {
    let policy: &Policy = network.policy();
    let complete = |text| {
        let complete = with_domain(text, policy.domain.as_deref());
        complete.ok_or_else(|| AskError::NoDomain {
            name: text.to_owned(),
        })
    };
    let (source, destination) = (complete(source)?, complete(destination)?);
    let (source, destination) = (source.as_ref(), destination.as_ref());
    let directory = Directory::new(network);
    let (name, subjects, query) = parse(&directory, destination)?;
    let sources = directory
        .find_node_too(source)
        .ok_or_else(|| unknown(&directory, source))?;
    let question = Question {
        policy,
        reach: Reach::new(network),
        source,
        destination: name,
        query,
    };
    Ok(question.answer(&sources, &subjects))
}

fn unknown(directory: &Directory<'_>, name: &str) -> AskError {
    let name = name.to_owned();
    match directory.login_of(&name) {
        Some(login) => AskError::UserWithoutDomain { name, login },
        None => AskError::Unknown { name },
    }
}

/// A destination: its name, whom it means, and what is to be sent there. What may be a name is one,
/// since tags and addresses have colons too.
fn parse<'a>(
    directory: &Directory<'a>,
    text: &'a str,
) -> Result<(&'a str, Vec<Subject<'a>>, Query), AskError> {
    let find = |name: &'a str| {
        let bare = name.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
        let name = bare.unwrap_or(name);
        directory
            .find_node_too(name)
            .map(|subjects| (name, subjects))
    };
    let any = Query {
        protocol: None,
        port: None,
    };
    if let Some((name, subjects)) = find(text) {
        return Ok((name, subjects, any));
    }
    let bad_port = |text: &str| AskError::BadPort {
        text: text.to_owned(),
    };
    let unknown = |name| unknown(directory, name);
    let (rest, last) = split_last(text).ok_or_else(|| unknown(text))?;
    if let Some((name, subjects)) = find(rest) {
        let query = match port(last) {
            Some(port) => Query { port, ..any },
            // A number is a port here, not a protocol.
            None if last.parse::<u32>().is_ok() => return Err(bad_port(last)),
            None => Query {
                protocol: Some(protocol_number(last).ok_or_else(|| bad_port(last))?),
                ..any
            },
        };
        return Ok((name, subjects, query));
    }
    let (rest, protocol) = split_last(rest).ok_or_else(|| unknown(rest))?;
    let (name, subjects) = find(rest).ok_or_else(|| unknown(rest))?;
    let ports = format!("{protocol}:{last}");
    let query = Query {
        protocol: Some(protocol_number(protocol).ok_or_else(|| bad_port(&ports))?),
        port: port(last).ok_or_else(|| bad_port(&ports))?,
    };
    Ok((name, subjects, query))
}

/// What stands before and after the last colon; the one in `tag:x` and the like separates nothing.
fn split_last(text: &str) -> Option<(&str, &str)> {
    let mut prefixes = ["tag:", "group:", "autogroup:"].into_iter();
    let prefix = prefixes.find(|prefix| text.starts_with(prefix));
    let colon = text.rfind(':')?;
    let separates = colon >= prefix.map_or(0, str::len);
    separates.then(|| (&text[..colon], &text[colon + 1..]))
}

/// A port, or `*` for any.
fn port(text: &str) -> Option<Option<u16>> {
    if text == "*" {
        return Some(None);
    }
    text.parse().ok().filter(|port| *port != 0).map(Some)
}

struct Question<'a> {
    policy: &'a Policy,
    reach: Reach<'a>,
    source: &'a str,
    destination: &'a str,
    query: Query,
}

/// Two subjects and what they meet.
struct Pair<'s, 'a> {
    from: (&'s Subject<'a>, &'s Met),
    to: (&'s Subject<'a>, &'s Met),
    same_user: bool,
}

impl<'a> Question<'a> {
    fn answer(&self, sources: &[Subject<'a>], destinations: &[Subject<'a>]) -> Explanation {
        let empty = [(self.source, sources), (self.destination, destinations)];
        if let Some((name, _)) = empty.iter().find(|(_, subjects)| subjects.is_empty()) {
            let missing = format!("{name} has no members");
            return self.explain(
                false,
                self.source,
                self.destination,
                Vec::new(),
                vec![missing],
            );
        }
        let from = distinct(sources, |subject| {
            self.reach.from(subject, subject.attributes())
        });
        let to = distinct(destinations, |subject| self.reach.to(subject));
        let mut allowing = BTreeSet::new();
        let mut refused = None;
        let alone = sources.len() == 1 && destinations.len() == 1;
        for from in &from {
            for to in &to {
                let pair = Pair {
                    from: (from.0, &from.1),
                    to: (to.0, &to.1),
                    same_user: from.0.same_user(to.0),
                };
                let entries = self.between(&pair);
                let found = entries
                    .iter()
                    .filter(|entry| self.reach.allows(*entry, self.query));
                let found: Vec<usize> = found.collect();
                allowing.extend(&found);
                if found.is_empty() && !(alone && is_same_node(&pair)) {
                    refused.get_or_insert((from.0, to.0, self.missing(&pair)));
                }
            }
        }
        let rules = self.places(allowing.into_iter());
        match refused {
            None => self.explain(true, self.source, self.destination, rules, Vec::new()),
            Some((from, to, missing)) => {
                let from = one_of(self.source, from, sources);
                let to = one_of(self.destination, to, destinations);
                self.explain(false, &from, &to, rules, missing)
            }
        }
    }

    fn explain(
        &self,
        allowed: bool,
        from: &str,
        to: &str,
        rules: Vec<RulePlace>,
        missing: Vec<String>,
    ) -> Explanation {
        let ports = match (self.query.protocol, self.query.port) {
            (None, None) => String::new(),
            (None, Some(port)) => format!(" on port {port}"),
            (Some(protocol), Some(port)) if has_ports(protocol) => {
                format!(" on {}:{port}", protocol_name(protocol))
            }
            (Some(protocol), _) => format!(" by {}", protocol_name(protocol)),
        };
        let reason = match (rules.as_slice(), missing.first()) {
            (_, Some(missing)) => missing.clone(),
            ([], None) if self.policy.rules.is_none() => {
                "the policy has neither acls nor grants, so everything is allowed".to_owned()
            }
            ([], None) => "it is the same node".to_owned(),
            ([rule], None) => format!(
                "{}[{}] (line {}) allows it",
                rule.section, rule.index, rule.line
            ),
            (rules, None) => format!("{} rules allow it", rules.len()),
        };
        let may = if allowed {
            "may reach"
        } else {
            "may not reach"
        };
        Explanation {
            allowed,
            summary: format!("{from} {may} {to}{ports}: {reason}"),
            rules,
            missing,
        }
    }

    fn between(&self, pair: &Pair<'_, '_>) -> Bits {
        self.reach.between(pair.from.1, pair.to.1, pair.same_user)
    }

    /// The rules of entries, each once, in the order of the file.
    fn rules(&self, entries: impl Iterator<Item = usize>) -> Vec<&'a Rule> {
        let mut rules: Vec<&Rule> = entries
            .map(|entry| self.reach.entries[entry].rule)
            .collect();
        rules.dedup_by(|a, b| std::ptr::eq(*a, *b));
        rules
    }

    fn places(&self, entries: impl Iterator<Item = usize>) -> Vec<RulePlace> {
        if self.policy.rules.is_none() {
            return Vec::new();
        }
        let rules = self.rules(entries).into_iter();
        rules
            .map(|rule| RulePlace::new(self.policy, &rule.place))
            .collect()
    }

    /// Why no rule lets the pair through, what comes nearest to it first.
    fn missing(&self, pair: &Pair<'_, '_>) -> Vec<String> {
        let (from, to) = (pair.from.0, pair.to.0);
        let mut missing = Vec::new();
        missing.extend(self.not_there(to));
        missing.extend(self.other_ports(pair));
        missing.extend(self.lacking(pair));
        missing.extend(self.reversed(pair));
        missing.extend(other_family(from, to));
        if missing.is_empty() {
            let (from, to) = (&from.name, &to.name);
            let (as_source, as_destination) = (pair.from.1.entries(), pair.to.1.entries());
            missing.push(match (as_source.is_empty(), as_destination.is_empty()) {
                (true, true) => format!("no rule has {from} as a source or {to} as a destination"),
                (true, false) => format!("no rule has {from} as a source"),
                (false, true) => format!("no rule has {to} as a destination"),
                (false, false) => {
                    let sources = self.rules(as_source.iter()).len();
                    let destinations = self.rules(as_destination.iter()).len();
                    let counts =
                        format!("a source: {sources}, with {to} as a destination: {destinations}");
                    format!("rules with {from} as {counts}, with both: none")
                }
            });
        }
        if missing.len() > SHOWN {
            let more = missing.len() - SHOWN;
            missing.truncate(SHOWN);
            missing.push(format!("… and {more} more"));
        }
        missing
    }

    /// An address that nobody answers for.
    fn not_there(&self, to: &Subject<'_>) -> Option<String> {
        let name = &to.name;
        match &to.what {
            What::Device(..) => None,
            What::Internet => {
                let none = self.reach.exits().is_empty();
                none.then(|| "no exit node is approved".to_owned())
            }
            What::Net(net) if self.reach.is_routed(net) => None,
            What::Net(net) if is_public(net) => {
                let none = self.reach.exits().is_empty();
                none.then(|| format!("{name} is on the internet, and no exit node is approved"))
            }
            What::Net(_) => Some(format!("{name} is no node's and within no approved route")),
        }
    }

    fn other_ports(&self, pair: &Pair<'_, '_>) -> Vec<String> {
        let entries = self.between(pair);
        let rules = self.rules(entries.iter());
        let lines = rules.into_iter().map(|rule| {
            let entries = entries.iter().map(|entry| &self.reach.entries[entry]);
            let mut ports = PortSet::default();
            for entry in entries.filter(|entry| std::ptr::eq(entry.rule, rule)) {
                entry
                    .target
                    .ports
                    .iter()
                    .for_each(|it| ports.insert(&it.value));
            }
            let rule = cite(self.policy, &rule.place);
            if ports.is_empty() {
                format!("{rule} grants capabilities, but no ports")
            } else {
                format!("{rule} allows {} only", ports.names().join(", "))
            }
        });
        lines.collect()
    }

    fn lacking(&self, pair: &Pair<'_, '_>) -> Vec<String> {
        let (from, to) = (pair.from.0, pair.to.0);
        let entries = self.reach.nearly(pair.from.1, pair.to.1, pair.same_user);
        let entries = entries
            .iter()
            .filter(|entry| self.reach.allows(*entry, self.query));
        let lines = entries.map(|entry| {
            let rule = self.reach.entries[entry].rule;
            let place = cite(self.policy, &rule.place);
            if Reach::lacks_posture(pair.from.1, entry) {
                let postures = rule
                    .src_posture
                    .iter()
                    .map(|posture| posture.value.as_str());
                let mut postures: Vec<&str> = postures.collect();
                if postures.is_empty() {
                    postures = self
                        .policy
                        .default_src_posture
                        .iter()
                        .map(String::as_str)
                        .collect();
                }
                let postures = postures.join(" or ");
                return format!(
                    "{place} asks for {postures}, which {} does not meet",
                    from.name
                );
            }
            let tags: Vec<&str> = rule.via.iter().map(|tag| tag.value.as_str()).collect();
            if tags.is_empty() {
                format!("{place} would allow it, but nobody routes to {}", to.name)
            } else {
                let tags = tags.join(" or ");
                format!(
                    "{place} goes through {tags}, and no such router serves {}",
                    to.name
                )
            }
        });
        let mut lines: Vec<String> = lines.collect();
        lines.dedup();
        lines
    }

    /// Rules that let the destination reach the source.
    fn reversed(&self, pair: &Pair<'_, '_>) -> Vec<String> {
        let (from, to) = (pair.to.0, pair.from.0);
        let as_source = self.reach.from(from, from.attributes());
        let entries = self
            .reach
            .between(&as_source, &self.reach.to(to), pair.same_user);
        let allowing = entries
            .iter()
            .filter(|entry| self.reach.allows(*entry, self.query));
        let rules = self.rules(allowing).into_iter();
        let lines = rules.map(|rule| {
            let rule = cite(self.policy, &rule.place);
            format!(
                "only the other direction: {rule} lets {} reach {}",
                from.name, to.name
            )
        });
        lines.collect()
    }
}

/// Both named by address, and the addresses are of different families.
fn other_family(from: &Subject<'_>, to: &Subject<'_>) -> Option<String> {
    let apart = from.families.and(to.families).is_none();
    apart.then(|| "one is an IPv4 address, the other an IPv6 address".to_owned())
}

fn is_same_node(pair: &Pair<'_, '_>) -> bool {
    match (pair.from.0.as_node(), pair.to.0.as_node()) {
        (Some(a), Some(b)) => a.id == b.id,
        _ => false,
    }
}

/// One subject for all that the rules do not tell apart.
fn distinct<'s, 'a>(
    subjects: &'s [Subject<'a>],
    meet: impl Fn(&Subject<'a>) -> Met,
) -> Vec<(&'s Subject<'a>, Met)> {
    let mut seen = HashSet::new();
    let met = subjects.iter().map(|subject| (subject, meet(subject)));
    met.filter(|(subject, met)| seen.insert((met.clone(), subject.login())))
        .collect()
}

/// `tag:web (web-1)`: which one of several.
fn one_of(name: &str, subject: &Subject<'_>, all: &[Subject<'_>]) -> String {
    if all.len() == 1 || subject.name == name {
        name.to_owned()
    } else {
        format!("{name} ({})", subject.name)
    }
}
