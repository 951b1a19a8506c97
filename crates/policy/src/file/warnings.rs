//! What is legal but surely not meant.

use std::ops::Range;

use super::reader::Reader;
use super::{Located, Policy, Selector};
use crate::diagnostic::{Cause, Diagnostic};
use crate::syntax;

impl Reader<'_> {
    /// Notes warnings about a policy that is otherwise in order.
    pub(super) fn warn(&mut self, policy: &Policy, document: &syntax::Node<'_>) {
        if policy.rules.is_none() {
            let start = document.span.start..document.span.start + 1;
            let message =
                "the policy has neither acls nor grants, so every node may reach every node";
            let label = "expected \"acls\" or \"grants\" in here";
            let warning = Diagnostic::warning(Cause::NoRules, start, message, label);
            self.report(warning.help("write \"grants\": [] to allow nothing"));
        }
        for rule in policy.rules.iter().flatten() {
            self.warn_of_empty_groups(policy, &rule.sources);
            let destinations = rule.targets.iter().map(|target| &target.destination);
            self.warn_of_empty_groups(policy, destinations);
            self.warn_if_idle(
                rule.sources.is_empty(),
                rule.targets.is_empty(),
                &rule.place.span,
            );
        }
        for rule in &policy.ssh {
            self.warn_of_empty_groups(policy, &rule.sources);
            self.warn_if_idle(
                rule.sources.is_empty(),
                rule.destinations.is_empty(),
                &rule.place.span,
            );
        }
    }

    fn warn_of_empty_groups<'p>(
        &mut self,
        policy: &Policy,
        selectors: impl IntoIterator<Item = &'p Located<Selector>>,
    ) {
        for selector in selectors {
            let Selector::Group(name) = &selector.value else {
                continue;
            };
            let empty = policy.groups.get(name).is_some_and(Vec::is_empty);
            if empty && !self.provided_groups.contains(name.as_str()) {
                let message = format!("{name} has no members, so this names nobody");
                self.report(Diagnostic::warning(
                    Cause::EmptyGroup,
                    selector.span.clone(),
                    message,
                    "empty group",
                ));
            }
        }
    }

    fn warn_if_idle(&mut self, no_source: bool, no_destination: bool, span: &Range<usize>) {
        let missing = match (no_source, no_destination) {
            (true, true) => "src and dst",
            (true, false) => "src",
            (false, true) => "dst",
            (false, false) => return,
        };
        let message = format!("a rule without {missing} never applies");
        let start = span.start..span.start + 1;
        self.report(Diagnostic::warning(
            Cause::EmptyRule,
            start,
            message,
            format!("expected {missing} in here"),
        ));
    }
}
