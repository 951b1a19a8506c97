//! What people ask of a policy: do its tests pass, why may A reach B, what would change.
//!
//! All three read the rules of the file as they stand, one by one, since they must name them; what
//! nodes are told is [`crate::compile`]'s. Both must agree, and a test holds them to it.

mod access_test;
mod diff;
mod ports;
mod reach;
mod ssh;
mod ssh_test;
mod subject;
#[cfg(test)]
mod tests;
mod why;

use std::ops::Range;

use crate::compile::Network;
use crate::diagnostic::Diagnostic;
use crate::file::{Place, Policy};

pub use diff::{Access, Difference, diff};
pub use why::{Explanation, why};

/// Runs `tests` and `sshTests` of the policy in force. Each failure names source, destination,
/// what was expected and the rule that decided.
#[must_use]
pub fn run_tests(network: &Network) -> Vec<Diagnostic> {
    let mut failures = access_test::run(network);
    failures.extend(ssh_test::run(network));
    failures
}

/// A rule in the file.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct RulePlace {
    /// `acls`, `grants` or `ssh`.
    pub section: String,
    /// Index in it.
    pub index: usize,
    /// Line, from 1.
    pub line: usize,
    /// Its text on one line, cut if it is long.
    pub text: String,
}

impl RulePlace {
    fn new(policy: &Policy, place: &Place) -> Self {
        Self {
            section: place.section.to_owned(),
            index: place.index,
            line: line(policy, place),
            text: on_one_line(&policy.text, &place.span),
        }
    }
}

fn line(policy: &Policy, place: &Place) -> usize {
    policy.lines.position(&policy.text, place.span.start).0
}

/// `acls[3] (line 12)`
fn cite(policy: &Policy, place: &Place) -> String {
    if is_implied(place) {
        return "the policy without acls and grants".to_owned();
    }
    let line = line(policy, place);
    format!("{}[{}] (line {line})", place.section, place.index)
}

/// Is it the rule that is in force where the file has none, and stands nowhere?
fn is_implied(place: &Place) -> bool {
    place.span.is_empty()
}

/// The beginning of a part of the file with each run of white space as one space.
fn on_one_line(text: &str, span: &Range<usize>) -> String {
    /// Bytes that are told.
    const LONGEST: usize = 400;
    /// Bytes that are read: indentation shrinks.
    const READ: usize = 4000;
    let part = text.get(span.clone()).unwrap_or_default();
    let read = &part[..part.floor_char_boundary(READ)];
    let mut line = read.split_whitespace().collect::<Vec<_>>().join(" ");
    if read.len() < part.len() || line.len() > LONGEST {
        line.truncate(line.floor_char_boundary(LONGEST));
        line.push('…');
    }
    line
}

/// A question that names nobody.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AskError {
    /// No node, user, tag, group, host or address is called that.
    #[error(
        "{name:?} names nothing in this tailnet: give a node, an address, user@domain, a tag, a group or a host of the policy"
    )]
    Unknown {
        /// As it was given.
        name: String,
    },
    /// A user is, but for the domain.
    #[error("{name:?} names nothing in this tailnet: did you mean the user {login}?")]
    UserWithoutDomain {
        /// As it was given.
        name: String,
        /// What would name the user.
        login: String,
    },
    /// `alice@` in a tailnet without a domain of its own.
    #[error("{name} has no domain, and the policy in force knows none: give user@domain")]
    NoDomain {
        /// As it was given.
        name: String,
    },
    /// Not a port.
    #[error("{text} is not a port: give HOST:PORT, HOST:PROTOCOL:PORT or HOST alone")]
    BadPort {
        /// As it was given.
        text: String,
    },
}
