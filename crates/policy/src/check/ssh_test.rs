//! `sshTests`: may this source open sessions as these users, and is it asked first?

use std::collections::{BTreeSet, HashSet};

use super::ssh::{SshReach, Verdict, decide};
use super::subject::{Directory, Subject, What};
use super::{cite, on_one_line};
use crate::compile::Network;
use crate::compile::bits::Bits;
use crate::diagnostic::{Cause, Diagnostic};
use crate::file::{Located, Policy, SshTest};

/// What a test expects of a user.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Expected {
    /// Is let in, asked first or not.
    Accept,
    /// Is asked first.
    Check,
    /// Is not let in.
    Deny,
}

/// A subject with the rules that have it as a source or destination.
struct Side<'a> {
    subject: Subject<'a>,
    rules: Bits,
    /// A destination for the devices of this user alone: `autogroup:self`.
    only_for: Option<&'a str>,
}

/// Runs `sshTests`; what failed, in order.
pub(super) fn run(network: &Network) -> Vec<Diagnostic> {
    let policy: &Policy = network.policy();
    let run = Run {
        policy,
        directory: Directory::new(network),
        reach: SshReach::new(policy),
    };
    let tests = policy.ssh_tests.iter();
    tests.flat_map(|test| run.test(test)).collect()
}

struct Run<'a> {
    policy: &'a Policy,
    directory: Directory<'a>,
    reach: SshReach<'a>,
}

impl<'a> Run<'a> {
    fn test(&self, test: &'a Located<SshTest>) -> Vec<Diagnostic> {
        let users = [
            (&test.value.accept, Expected::Accept),
            (&test.value.check, Expected::Check),
            (&test.value.deny, Expected::Deny),
        ];
        if users.iter().all(|(users, _)| users.is_empty()) {
            let failure = failed(&test.span, "it expects nothing", "no accept, check or deny");
            return vec![failure];
        }
        let sides = self.sources(&test.value);
        let sides = sides.and_then(|from| Ok((self.destinations(&test.value, &from)?, from)));
        let (destinations, sources) = match sides {
            Ok(sides) => sides,
            Err(failure) => return vec![failure],
        };
        let mut failures = Vec::new();
        for (users, expected) in users {
            for user in users {
                let judged = self.expect(&test.value, &sources, &destinations, user, expected);
                failures.extend(judged.err());
            }
        }
        failures
    }

    fn sources(&self, test: &'a SshTest) -> Result<Vec<Side<'a>>, Diagnostic> {
        let name = &test.source.value;
        let subjects = self.directory.find(name).unwrap_or_default();
        if subjects.is_empty() || !subjects.iter().all(is_device) {
            let why = format!("{name:?} names nobody in this tailnet");
            let label = "expected a user, group, tag, host or address";
            return Err(failed(&test.source.span, &why, label));
        }
        Ok(distinct(subjects, None, |subject| self.reach.from(subject)))
    }

    fn destinations(
        &self,
        test: &'a SshTest,
        sources: &[Side<'a>],
    ) -> Result<Vec<Side<'a>>, Diagnostic> {
        let mut all = Vec::new();
        for destination in &test.destinations {
            let name = destination.value.as_str();
            if name == "autogroup:self" {
                all.extend(self.own_devices(sources));
                continue;
            }
            let found = self.directory.find(name).unwrap_or_default();
            if found.is_empty() || !found.iter().all(is_device) {
                let why = format!("{name:?} names no node in this tailnet");
                return Err(failed(
                    &destination.span,
                    &why,
                    "expected a tag, user or host",
                ));
            }
            all.extend(distinct(found, None, |subject| self.reach.to(subject)));
        }
        if all.is_empty() {
            return Err(failed(
                &test.source.span,
                "it has no destination",
                "a test needs \"dst\"",
            ));
        }
        Ok(all)
    }

    /// For each user among the sources, the user's devices.
    fn own_devices(&self, sources: &[Side<'a>]) -> Vec<Side<'a>> {
        let logins: BTreeSet<&str> = sources.iter().filter_map(|it| it.subject.login()).collect();
        let devices = logins.into_iter().map(|login| {
            let found = self.directory.find(login).unwrap_or_default();
            distinct(found, Some(login), |subject| self.reach.to(subject))
        });
        devices.flatten().collect()
    }

    fn expect(
        &self,
        test: &SshTest,
        sources: &[Side<'_>],
        destinations: &[Side<'_>],
        user: &Located<String>,
        expected: Expected,
    ) -> Result<(), Diagnostic> {
        if user.value.is_empty() {
            return Err(failed(&user.span, "a user has a name", "empty"));
        }
        for source in sources {
            let is_for = |it: &&Side<'_>| {
                it.only_for
                    .is_none_or(|it| source.subject.login() == Some(it))
            };
            for destination in destinations.iter().filter(is_for) {
                let same_user = source.subject.same_user(&destination.subject);
                let rules = self
                    .reach
                    .between(&source.rules, &destination.rules, same_user);
                let verdict = decide(&rules, source.subject.login(), &user.value);
                let met = match (expected, verdict) {
                    (Expected::Accept, verdict) => verdict.is_some(),
                    (Expected::Check, verdict) => verdict.is_some_and(|verdict| verdict.check),
                    (Expected::Deny, verdict) => verdict.is_none(),
                };
                if !met {
                    let (from, to) = (&test.source.value, &destination.subject.name);
                    let session = format!("{from} as {:?} on {to}", user.value);
                    return Err(self.failure(user, &session, expected, verdict, !rules.is_empty()));
                }
            }
        }
        Ok(())
    }

    fn failure(
        &self,
        user: &Located<String>,
        session: &str,
        expected: Expected,
        verdict: Option<Verdict<'_>>,
        other_users: bool,
    ) -> Diagnostic {
        let label = match expected {
            Expected::Accept => "expected to be let in",
            Expected::Check => "expected to be asked first",
            Expected::Deny => "expected to be denied",
        };
        let outcome = match verdict {
            None => "is not let in",
            Some(Verdict { check: true, .. }) => "is let in after being asked",
            Some(_) => "is let in without being asked",
        };
        let help = match verdict {
            Some(Verdict { rule, .. }) => {
                let text = on_one_line(&self.policy.text, &rule.place.span);
                format!("{} lets it in: {text}", cite(self.policy, &rule.place))
            }
            None if other_users => {
                "the rules for this source and destination are for other users".to_owned()
            }
            None => "no rule of \"ssh\" has this source and this destination".to_owned(),
        };
        failed(&user.span, &format!("{session} {outcome}"), label).help(help)
    }
}

fn failed(span: &std::ops::Range<usize>, why: &str, label: &str) -> Diagnostic {
    Diagnostic::error(
        Cause::SshTestFailed,
        span.clone(),
        format!("test failed: {why}"),
        label,
    )
}

fn is_device(subject: &Subject<'_>) -> bool {
    matches!(subject.what, What::Device(..))
}

/// One subject for all that the rules do not tell apart.
fn distinct<'a>(
    subjects: Vec<Subject<'a>>,
    only_for: Option<&'a str>,
    rules: impl Fn(&Subject<'a>) -> Bits,
) -> Vec<Side<'a>> {
    let mut seen = HashSet::new();
    let sides = subjects.into_iter().map(|subject| Side {
        rules: rules(&subject),
        subject,
        only_for,
    });
    sides
        .filter(|side| seen.insert((side.rules.clone(), side.subject.login())))
        .collect()
}
