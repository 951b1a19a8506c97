//! Who may open SSH sessions where, rule by rule.

use std::collections::BTreeMap;

use super::subject::{Subject, What};
use crate::compile::bits::Bits;
use crate::compile::ssh::{has_local_part, local_part};
use crate::file::{Autogroup, Policy, Selector, SshAction, SshRule, SshUser};

/// The SSH rules in the order in which they decide: those that ask first.
pub(super) struct SshReach<'a> {
    policy: &'a Policy,
    pub(super) rules: Vec<&'a SshRule>,
}

/// What the rules of one pair say of a user.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verdict<'a> {
    pub(super) rule: &'a SshRule,
    /// Asks first.
    pub(super) check: bool,
}

impl<'a> SshReach<'a> {
    pub(super) fn new(policy: &'a Policy) -> Self {
        let mut rules: Vec<_> = policy.ssh.iter().collect();
        rules.sort_by_key(|rule| rule.action == SshAction::Accept);
        Self { policy, rules }
    }

    /// Do some rules ask whose device it is?
    pub(super) fn is_by_login(&self) -> bool {
        let mut rules = self.rules.iter();
        rules.any(|rule| to_self(rule) || has_local_part(rule))
    }

    /// Rules that have a subject as a source.
    pub(super) fn from(&self, subject: &Subject<'_>) -> Bits {
        self.matching(subject, |rule| rule.sources.iter().map(|it| &it.value))
    }

    /// Rules that have a subject as a destination, whoever the source is. See also
    /// [`SshReach::between`].
    pub(super) fn to(&self, subject: &Subject<'_>) -> Bits {
        self.matching(subject, |rule| rule.destinations.iter().map(|it| &it.value))
    }

    fn matching<'s, I: Iterator<Item = &'s Selector>>(
        &'s self,
        subject: &Subject<'_>,
        selectors: impl Fn(&'s SshRule) -> I,
    ) -> Bits {
        let mut bits = Bits::below(self.rules.len());
        let What::Device(_, identity) = &subject.what else {
            return bits;
        };
        for (index, rule) in self.rules.iter().enumerate() {
            let mut covered = selectors(rule).map(|it| identity.covered_by(self.policy, it));
            if covered.any(|families| !families.is_none()) {
                bits.insert(index);
            }
        }
        bits
    }

    /// Rules between two subjects, in order of decision. `from` and `to` are what
    /// [`SshReach::from`] and [`SshReach::to`] say of them.
    pub(super) fn between(&self, from: &Bits, to: &Bits, same_user: bool) -> Vec<&'a SshRule> {
        let applies = |index: usize, rule: &SshRule| {
            // Rules with local parts are told to the sources' own devices too.
            let own = same_user && (to_self(rule) || has_local_part(rule));
            from.contains(index) && (to.contains(index) || own)
        };
        let rules = self.rules.iter().enumerate();
        rules
            .filter(|(index, rule)| applies(*index, rule))
            .map(|(_, rule)| *rule)
            .collect()
    }
}

/// Is `autogroup:self` among the destinations?
pub(super) fn to_self(rule: &SshRule) -> bool {
    let mut destinations = rule.destinations.iter();
    destinations.any(|it| it.value == Selector::Autogroup(Autogroup::SelfDevices))
}

/// What the first of the rules that speaks of `user` says; `login` is whose the source is.
pub(super) fn decide<'a>(
    rules: &[&'a SshRule],
    login: Option<&str>,
    user: &str,
) -> Option<Verdict<'a>> {
    let rule = rules.iter().find(|rule| lets_in(rule, login, user))?;
    Some(Verdict {
        rule,
        check: rule.action != SshAction::Accept,
    })
}

fn lets_in(rule: &SshRule, login: Option<&str>, user: &str) -> bool {
    rule.users.iter().any(|allowed| match &allowed.value {
        SshUser::Name(name) => name == user,
        SshUser::NonRoot => user != "root",
        SshUser::LocalPart { .. } => login.and_then(|it| local_part(rule, it)) == Some(user),
    })
}

/// As whom sessions are let in, each with whether it is asked first: names, and `*` for everybody
/// but root.
pub(super) fn users(rules: &[&SshRule], login: Option<&str>) -> BTreeMap<String, bool> {
    let mut users = BTreeMap::new();
    for rule in rules {
        for allowed in &rule.users {
            let name = match &allowed.value {
                SshUser::Name(name) => Some(name.as_str()),
                SshUser::NonRoot => Some("*"),
                SshUser::LocalPart { .. } => login.and_then(|it| local_part(rule, it)),
            };
            if let Some(name) = name {
                let check = rule.action != SshAction::Accept;
                users.entry(name.to_owned()).or_insert(check);
            }
        }
    }
    users
}
