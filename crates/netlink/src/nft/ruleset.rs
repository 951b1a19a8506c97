//! The host's whole ruleset, as far as its verdicts are plain: what other programs made, to be read only.

use super::{Hook, Layer};
use crate::Family;

/// A chain with its rules.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostChain {
    /// Family of its table.
    pub layer: Layer,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where packets enter; `None` if other chains jump here.
    pub hook: Option<Hook>,
    /// Whether it drops what none of its rules decides.
    pub drops: bool,
    /// Its rules in order.
    pub rules: Vec<HostRule>,
}

/// A rule, as far as we read it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HostRule {
    /// All must hold for the verdict.
    pub conditions: Vec<Condition>,
    /// What happens then; `None` goes on with the next rule.
    pub verdict: Option<HostVerdict>,
}

/// Something that a rule asks of a packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Condition {
    /// The interface that it came in by.
    Input(Names),
    /// The interface that it leaves by.
    Output(Names),
    /// Its connection is in one of these states, bits of [`super::state`].
    State(u32),
    /// Is of this family.
    Family(Family),
    /// Something that we do not read.
    Other,
}

/// Which interfaces are meant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Names {
    /// True for all but those.
    pub negated: bool,
    /// Whole names, or beginnings that end in `*`.
    pub patterns: Vec<String>,
}

impl Names {
    /// Whether the interface `name` is meant.
    #[must_use]
    pub fn hold(&self, name: &str) -> bool {
        let one = |pattern: &String| match pattern.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == pattern,
        };
        self.patterns.iter().any(one) != self.negated
    }
}

/// What a rule does with a packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HostVerdict {
    /// Ends the chain in favour of it.
    Accept,
    /// Ends it, with or without telling the sender.
    Drop,
    /// Ends the chain.
    Return,
    /// Goes through another chain of the table.
    Jump(String),
    /// As [`Self::Jump`], without coming back.
    Goto(String),
    /// What a map holds: the first whose condition holds.
    Map(Vec<(Condition, HostVerdict)>),
}
