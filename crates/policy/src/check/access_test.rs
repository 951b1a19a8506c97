//! `tests`: may this source reach these destinations, as the policy stands?
//!
//! A test speaks of people, tags and hosts, not of the devices that happen to be there: a user
//! without any is judged as if there were one, and a device's own posture does not count, only
//! what the test supposes (`srcPostureAttrs`). All devices of a source must reach all of a
//! destination; none must reach any of it where that is to be denied.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use super::ports::Query;
use super::reach::{Met, Reach};
use super::subject::{Directory, Subject, What};
use super::{cite, is_implied, on_one_line};
use crate::compile::Network;
use crate::diagnostic::{Cause, Diagnostic};
use crate::file::{AccessTest, Located, Policy};

/// A subject with what it meets.
struct Side<'a> {
    subject: Subject<'a>,
    met: Met,
}

/// Runs `tests`; what failed, in order.
pub(super) fn run(network: &Network) -> Vec<Diagnostic> {
    let policy: &Policy = network.policy();
    if policy.tests.is_empty() {
        return Vec::new();
    }
    let mut run = Run {
        policy,
        directory: Directory::new(network),
        reach: Reach::new(network),
        destinations: HashMap::new(),
    };
    policy
        .tests
        .iter()
        .flat_map(|test| run.test(&test.value))
        .collect()
}

struct Run<'a> {
    policy: &'a Policy,
    directory: Directory<'a>,
    reach: Reach<'a>,
    /// Destinations so far, by name.
    destinations: HashMap<&'a str, Rc<[Side<'a>]>>,
}

impl<'a> Run<'a> {
    fn test(&mut self, test: &'a AccessTest) -> Vec<Diagnostic> {
        let sources = match self.sources(test) {
            Ok(sources) => sources,
            Err(failure) => return vec![failure],
        };
        let mut failures = Vec::new();
        for destination in &test.accept {
            failures.extend(self.expect(test, &sources, destination, true).err());
        }
        for destination in &test.deny {
            failures.extend(self.expect(test, &sources, destination, false).err());
        }
        failures
    }

    fn sources(&self, test: &'a AccessTest) -> Result<Vec<Side<'a>>, Diagnostic> {
        let name = &test.source.value;
        let fail = |why: String| {
            let failure = format!("test failed: {why}");
            let label = "expected a user, group, tag, host or address";
            Diagnostic::error(Cause::TestFailed, test.source.span.clone(), failure, label)
        };
        if name.is_empty() {
            return Err(fail("it does not say whose access it is about".to_owned()));
        }
        let subjects = self.directory.find(name).unwrap_or_default();
        let is_source = |subject: &Subject<'_>| !matches!(subject.what, What::Internet);
        if subjects.is_empty() || !subjects.iter().all(is_source) {
            return Err(fail(format!("{name:?} names nobody in this tailnet")));
        }
        let met = |subject: &Subject<'a>| self.reach.from(subject, Some(&test.source_attributes));
        Ok(distinct(subjects, met))
    }

    /// Judges one destination.
    fn expect(
        &mut self,
        test: &AccessTest,
        sources: &[Side<'a>],
        destination: &'a Located<String>,
        accept: bool,
    ) -> Result<(), Diagnostic> {
        let fail = |why: &str, label: &str| {
            let message = format!("test failed: {why}");
            Diagnostic::error(Cause::TestFailed, destination.span.clone(), message, label)
        };
        let text = destination.value.as_str();
        let form = || {
            let why = format!("{text:?} is not a host and a port");
            fail(&why, "expected host:port").help("tests ask about one port, such as tag:web:443")
        };
        let (name, port) = split_port(text).ok_or_else(form)?;
        let port = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(form)?;
        if name.contains('/') {
            let why = format!("{name} is a prefix, and a test asks about single hosts");
            return Err(fail(&why, "not a single host")
                .help("name an address in it, or give one a name in \"hosts\""));
        }
        let destinations = self.destination(name);
        if destinations.is_empty() {
            let why = format!("{name:?} names no destination in this tailnet");
            return Err(
                fail(&why, "unknown").help("name a user, a group, a tag, a host or an address")
            );
        }
        let query = Query {
            protocol: test.protocol,
            port: Some(port),
        };
        for source in sources {
            for destination in &*destinations {
                let decided = self.decide(source, destination, query);
                if decided.is_some() == accept {
                    continue;
                }
                let pair = format!(
                    "{} to {text}",
                    described(&test.source.value, &source.subject)
                );
                return Err(match decided {
                    Some(entry) => {
                        let place = &self.reach.entries[entry].rule.place;
                        let help = if is_implied(place) {
                            format!("{} allows everything", self.rule(entry))
                        } else {
                            let text = on_one_line(&self.policy.text, &place.span);
                            format!("{} allows it: {text}", self.rule(entry))
                        };
                        fail(&format!("{pair} is allowed"), "expected to be denied").help(help)
                    }
                    None => fail(&format!("{pair} is not allowed"), "expected to be accepted")
                        .help(self.what_is_missing(source, destination, query)),
                });
            }
        }
        Ok(())
    }

    fn destination(&mut self, name: &'a str) -> Rc<[Side<'a>]> {
        if let Some(known) = self.destinations.get(name) {
            return Rc::clone(known);
        }
        let subjects = self.directory.find(name).unwrap_or_default();
        let is_host = |subject: &Subject<'_>| !matches!(subject.what, What::Internet);
        let subjects = if subjects.iter().all(is_host) {
            subjects
        } else {
            Vec::new()
        };
        let sides: Rc<[_]> = distinct(subjects, |subject| self.reach.to(subject)).into();
        self.destinations.insert(name, Rc::clone(&sides));
        sides
    }

    /// The rule that lets it through, if one does.
    fn decide(&self, source: &Side<'_>, destination: &Side<'_>, query: Query) -> Option<usize> {
        let same_user = source.subject.same_user(&destination.subject);
        let entries = self.reach.between(&source.met, &destination.met, same_user);
        entries
            .iter()
            .find(|entry| self.reach.allows(*entry, query))
    }

    fn what_is_missing(&self, source: &Side<'_>, destination: &Side<'_>, query: Query) -> String {
        let (from, to) = (&source.met, &destination.met);
        let same_user = source.subject.same_user(&destination.subject);
        let other_ports = self.reach.between(from, to, same_user).iter().next();
        if let Some(entry) = other_ports {
            return format!("{} allows other ports only", self.rule(entry));
        }
        let nearly = self.reach.nearly(from, to, same_user);
        match nearly.iter().find(|entry| self.reach.allows(*entry, query)) {
            Some(entry) if Reach::lacks_posture(from, entry) => {
                let advice = "what the source is like can be said with srcPostureAttrs";
                format!("{} asks for a posture; {advice}", self.rule(entry))
            }
            Some(entry) => format!("{} needs a router that is not there", self.rule(entry)),
            None => "no rule has this source and this destination".to_owned(),
        }
    }

    fn rule(&self, entry: usize) -> String {
        cite(self.policy, &self.reach.entries[entry].rule.place)
    }
}

/// One subject for all that the rules do not tell apart.
fn distinct<'a>(subjects: Vec<Subject<'a>>, meet: impl Fn(&Subject<'a>) -> Met) -> Vec<Side<'a>> {
    let mut seen = HashSet::new();
    let sides = subjects.into_iter().map(|subject| Side {
        met: meet(&subject),
        subject,
    });
    sides
        .filter(|side| seen.insert((side.met.clone(), side.subject.login())))
        .collect()
}

/// `group:dev (laptop)`: which one of those that a name stands for.
fn described(name: &str, subject: &Subject<'_>) -> String {
    if subject.name == name {
        name.to_owned()
    } else {
        format!("{name} ({})", subject.name)
    }
}

/// `host:port`, where the host may be an IPv6 address, in brackets or not.
pub(super) fn split_port(text: &str) -> Option<(&str, &str)> {
    if let Some(rest) = text.strip_prefix('[') {
        return rest.split_once("]:");
    }
    text.rsplit_once(':').filter(|(host, _)| !host.is_empty())
}
