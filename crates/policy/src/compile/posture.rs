//! Postures: what a device must be like for a rule to count it among its sources.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::file::{Assertion, Condition, Policy, Rule};
use crate::tailnet::Attribute;

/// Attributes of a device, by name.
pub(crate) type Attributes = BTreeMap<String, Attribute>;

/// May a device with these attributes use the rule? Without `srcPosture` the file's default
/// decides, without either everybody may.
pub(crate) fn admits(policy: &Policy, rule: &Rule, attributes: &Attributes) -> bool {
    let holds = |name: &str| {
        policy
            .postures
            .get(name)
            .is_some_and(|assertions| holds(assertions, attributes))
    };
    if !rule.src_posture.is_empty() {
        return rule.src_posture.iter().any(|name| holds(&name.value));
    }
    let default = &policy.default_src_posture;
    default.is_empty() || default.iter().any(|name| holds(name))
}

/// Does the rule depend on what its sources are like?
pub(crate) fn matters(policy: &Policy, rule: &Rule) -> bool {
    !rule.src_posture.is_empty() || !policy.default_src_posture.is_empty()
}

/// Do all assertions hold?
pub(crate) fn holds(assertions: &[Assertion], attributes: &Attributes) -> bool {
    assertions
        .iter()
        .all(|assertion| is_met(&assertion.condition, attributes.get(&assertion.attribute)))
}

/// An attribute that is not set, or of another type, meets nothing but `NOT SET` or `IS SET`:
/// a device of which nothing is known must not pass because of it.
fn is_met(condition: &Condition, actual: Option<&Attribute>) -> bool {
    let Some(actual) = actual else {
        return *condition == Condition::NotSet;
    };
    let ordering = |wanted| compare(actual, wanted);
    match condition {
        Condition::Equal(wanted) => actual == wanted,
        Condition::NotEqual(wanted) => comparable(actual, wanted) && actual != wanted,
        Condition::Less(wanted) => ordering(wanted).is_some_and(Ordering::is_lt),
        Condition::LessOrEqual(wanted) => ordering(wanted).is_some_and(Ordering::is_le),
        Condition::Greater(wanted) => ordering(wanted).is_some_and(Ordering::is_gt),
        Condition::GreaterOrEqual(wanted) => ordering(wanted).is_some_and(Ordering::is_ge),
        Condition::In(wanted) => wanted.contains(actual),
        Condition::NotIn(wanted) => wanted
            .iter()
            .all(|wanted| comparable(actual, wanted) && actual != wanted),
        Condition::Set => true,
        Condition::NotSet => false,
    }
}

/// Are both of the same type?
fn comparable(a: &Attribute, b: &Attribute) -> bool {
    std::mem::discriminant(a) == std::mem::discriminant(b)
}

/// Numbers by value, texts as versions.
fn compare(actual: &Attribute, wanted: &Attribute) -> Option<Ordering> {
    match (actual, wanted) {
        (Attribute::Number(a), Attribute::Number(b)) => a.partial_cmp(b),
        (Attribute::Text(a), Attribute::Text(b)) => {
            let (a, b) = (version(a)?, version(b)?);
            let parts = a.len().max(b.len());
            let part = |version: &[u64], index| version.get(index).copied().unwrap_or(0);
            Some(
                (0..parts)
                    .map(|index| part(&a, index).cmp(&part(&b, index)))
                    .find(|ordering| ordering.is_ne())
                    .unwrap_or(Ordering::Equal),
            )
        }
        (Attribute::Text(_) | Attribute::Number(_) | Attribute::Flag(_), _) => None,
    }
}

/// The numbers of a version, `1.98.9-t0123abc` → 1, 98, 9. What follows `-`, `+` or a space names
/// a build, not a version. `None`: not a version.
fn version(text: &str) -> Option<Vec<u64>> {
    let end = text.find(['-', '+', ' ']).unwrap_or(text.len());
    let numbers = text[..end].trim_start_matches('v');
    numbers
        .split('.')
        .map(|number| number.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> Attribute {
        Attribute::Text(value.to_owned())
    }

    fn meets(condition: Condition, actual: Option<Attribute>) -> bool {
        let attributes = actual
            .map(|actual| ("node:x".to_owned(), actual))
            .into_iter()
            .collect();
        let assertion = Assertion {
            attribute: "node:x".to_owned(),
            condition,
        };
        holds(&[assertion], &attributes)
    }

    #[test]
    fn versions_compare_number_by_number() {
        let at_least = |version| Condition::GreaterOrEqual(text(version));
        assert!(meets(at_least("1.9"), Some(text("1.10.2"))));
        assert!(meets(at_least("1.98.9"), Some(text("1.98.9-t0123abc"))));
        assert!(meets(at_least("13"), Some(text("13.0"))));
        assert!(!meets(at_least("13.4.1"), Some(text("13.4"))));
        assert!(meets(
            Condition::Less(text("6.2")),
            Some(text("6.1.0-13-amd64"))
        ));
        assert!(!meets(at_least("1"), Some(text("unstable"))));
    }

    #[test]
    fn numbers_and_flags_have_their_own_comparisons() {
        let score = Some(Attribute::Number(7.5));
        assert!(meets(
            Condition::Greater(Attribute::Number(7.0)),
            score.clone()
        ));
        assert!(!meets(
            Condition::LessOrEqual(Attribute::Number(7.0)),
            score.clone()
        ));
        assert!(!meets(Condition::Greater(text("7")), score.clone()));
        assert!(!meets(Condition::NotEqual(text("7")), score));
        let yes = Some(Attribute::Flag(true));
        assert!(meets(Condition::Equal(Attribute::Flag(true)), yes.clone()));
        assert!(!meets(Condition::Greater(Attribute::Flag(false)), yes));
    }

    #[test]
    fn lists_hold_one_or_none_of_their_values() {
        let list = || vec![text("macos"), text("linux")];
        assert!(meets(Condition::In(list()), Some(text("linux"))));
        assert!(!meets(Condition::In(list()), Some(text("windows"))));
        assert!(meets(Condition::NotIn(list()), Some(text("windows"))));
        assert!(!meets(Condition::NotIn(list()), Some(text("linux"))));
    }

    #[test]
    fn what_is_not_set_meets_only_not_set() {
        assert!(meets(Condition::NotSet, None));
        assert!(!meets(Condition::Set, None));
        assert!(!meets(Condition::NotEqual(text("linux")), None));
        assert!(!meets(Condition::NotIn(vec![text("linux")]), None));
        assert!(meets(Condition::Set, Some(text("linux"))));
        assert!(!meets(Condition::NotSet, Some(text("linux"))));
    }

    #[test]
    fn all_assertions_must_hold() {
        let assertion = |name: &str, condition| Assertion {
            attribute: name.to_owned(),
            condition,
        };
        let assertions = [
            assertion("node:os", Condition::Equal(text("linux"))),
            assertion("node:tsVersion", Condition::Set),
        ];
        let mut attributes = Attributes::from([("node:os".to_owned(), text("linux"))]);
        assert!(!holds(&assertions, &attributes));
        attributes.insert("node:tsVersion".to_owned(), text("1.98"));
        assert!(holds(&assertions, &attributes));
    }
}
