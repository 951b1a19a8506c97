//! What all sections are read with: it collects what is wrong and goes on.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;

use super::names::Names;
use super::{Context, Located};
use crate::diagnostic::{Cause, Diagnostic, KEPT, SHOWN, Severity};
use crate::syntax::{Json, Member, Node};

/// Warnings that are kept.
const KEPT_WARNINGS: usize = 100;

/// A string of the file and the place of its contents.
#[derive(Clone, Debug)]
pub(super) struct Text<'n> {
    pub(super) value: &'n str,
    pub(super) span: Range<usize>,
}

impl<'n> Text<'n> {
    /// The contents of a string; `span` is that of the string with its quotes.
    pub(super) fn new(value: &'n str, span: &Range<usize>) -> Self {
        Self {
            value,
            span: span.start + 1..span.end - 1,
        }
    }

    /// A part of it, by bytes of the value. With escapes in the string its place is the whole's.
    pub(super) fn part(&self, part: Range<usize>) -> Self {
        let span = if self.value.len() == self.span.len() {
            self.span.start + part.start..self.span.start + part.end
        } else {
            self.span.clone()
        };
        Self {
            value: &self.value[part],
            span,
        }
    }

    /// Without blanks around it.
    pub(super) fn trim(&self) -> Self {
        let start = self.value.len() - self.value.trim_start().len();
        let end = self.value.trim_end().len().max(start);
        self.part(start..end)
    }

    /// The parts before and after the last `separator`.
    pub(super) fn rsplit_once(&self, separator: char) -> Option<(Self, Self)> {
        let at = self.value.rfind(separator)?;
        Some((
            self.part(0..at),
            self.part(at + separator.len_utf8()..self.value.len()),
        ))
    }

    /// The parts between separators.
    pub(super) fn split(&self, separator: char) -> impl Iterator<Item = Self> {
        let mut at = 0;
        self.value.split(separator).map(move |part| {
            let start = at;
            at += part.len() + separator.len_utf8();
            self.part(start..start + part.len())
        })
    }

    /// A value at this place.
    pub(super) fn located<T>(&self, value: T) -> Located<T> {
        Located {
            value,
            span: self.span.clone(),
        }
    }
}

/// Members of an object whose keys the language fixes; those that are null count as absent.
pub(super) struct Fields<'n> {
    members: BTreeMap<&'static str, &'n Member<'n>>,
}

impl<'n> Fields<'n> {
    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&'n Node<'n>> {
        self.members.get(key).map(|member| &member.node)
    }

    /// Where the key itself stands.
    pub(super) fn key_span(&self, key: &str) -> Option<Range<usize>> {
        self.members.get(key).map(|member| member.name_span.clone())
    }
}

/// Reads one file.
pub(super) struct Reader<'n> {
    /// Domains of the tailnet, its own first.
    pub(super) domains: &'n [String],
    /// Can the server ask users to confirm SSH sessions?
    pub(super) ssh_check: bool,
    /// Groups of the identity provider.
    pub(super) provided_groups: HashSet<&'n str>,
    /// What the file defines.
    pub(super) names: Names<'n>,
    /// Destinations times ports of all grants so far.
    pub(super) rule_targets: usize,
    pub(super) diagnostics: Vec<Diagnostic>,
    pub(super) omitted: usize,
    warnings: usize,
}

impl<'n> Reader<'n> {
    pub(super) fn new(context: &'n Context) -> Self {
        Self {
            domains: &context.domains,
            ssh_check: context.ssh_check,
            provided_groups: context.known_groups.iter().map(String::as_str).collect(),
            names: Names::default(),
            rule_targets: 0,
            diagnostics: Vec::new(),
            omitted: 0,
            warnings: 0,
        }
    }

    /// Notes what is wrong.
    pub(super) fn report(&mut self, diagnostic: Diagnostic) {
        match diagnostic.severity {
            Severity::Error if self.errors() >= KEPT => self.omitted += 1,
            Severity::Warning if self.warnings >= KEPT_WARNINGS => {}
            severity => {
                self.warnings += usize::from(severity == Severity::Warning);
                self.diagnostics.push(diagnostic);
            }
        }
    }

    /// How many errors there were so far, the omitted ones included.
    pub(super) fn errors(&self) -> usize {
        self.diagnostics.len() - self.warnings + self.omitted
    }

    /// Notes an error.
    pub(super) fn error(
        &mut self,
        cause: Cause,
        span: &Range<usize>,
        message: impl Into<String>,
        label: impl Into<String>,
    ) {
        self.report(Diagnostic::error(cause, span.clone(), message, label));
    }

    /// Notes an error and what to do.
    pub(super) fn error_help(
        &mut self,
        cause: Cause,
        span: &Range<usize>,
        message: impl Into<String>,
        label: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.report(Diagnostic::error(cause, span.clone(), message, label).help(help));
    }

    /// Are suggestions worth computing? Beyond the errors that are shown nobody reads them.
    pub(super) fn suggests(&self) -> bool {
        self.errors() < SHOWN
    }

    fn wrong_type(&mut self, node: &Node<'_>, what: &str, expected: &str) {
        let message = format!("{what} must be {expected}, not {}", node.kind());
        self.error(
            Cause::WrongType,
            &node.span,
            message,
            format!("expected {expected}"),
        );
    }

    /// The members of an object with free names; none of them twice. Null is the empty object.
    pub(super) fn map(&mut self, node: &'n Node<'n>, what: &str) -> &'n [Member<'n>] {
        let Json::Object(members) = &node.value else {
            if !matches!(node.value, Json::Null) {
                self.wrong_type(node, what, "an object, { … }");
            }
            return &[];
        };
        let mut seen = BTreeSet::new();
        for member in members {
            if !seen.insert(member.name.as_str()) {
                self.duplicate(&member.name_span, what, &member.name);
            }
        }
        members
    }

    fn duplicate(&mut self, span: &Range<usize>, what: &str, name: &str) {
        let message = format!("{what} has {name:?} twice");
        let help = "one would silently replace the other: join or remove one";
        self.error_help(Cause::DuplicateKey, span, message, "the second time", help);
    }

    /// The members of an object whose keys are known, in any case of letters as Go reads them.
    pub(super) fn fields(
        &mut self,
        node: &'n Node<'n>,
        what: &str,
        known: &'static [&'static str],
    ) -> Option<Fields<'n>> {
        self.fields_with_old(node, what, known, &[])
    }

    /// The same, with keys that are accepted but not advertised.
    pub(super) fn fields_with_old(
        &mut self,
        node: &'n Node<'n>,
        what: &str,
        known: &'static [&'static str],
        old: &'static [&'static str],
    ) -> Option<Fields<'n>> {
        let Json::Object(members) = &node.value else {
            self.wrong_type(node, what, "an object, { … }");
            return None;
        };
        let mut fields = Fields {
            members: BTreeMap::new(),
        };
        let mut seen = BTreeSet::new();
        for member in members {
            let mut keys = known.iter().chain(old);
            let Some(key) = keys.find(|key| key.eq_ignore_ascii_case(&member.name)) else {
                self.unknown_key(member, what, known);
                continue;
            };
            if !seen.insert(*key) {
                self.duplicate(&member.name_span, what, &member.name);
            } else if !matches!(member.node.value, Json::Null) {
                fields.members.insert(key, member);
            }
        }
        Some(fields)
    }

    fn unknown_key(&mut self, member: &Member<'_>, what: &str, known: &'static [&'static str]) {
        let message = format!("{what} has no key {:?}", member.name);
        let help = match nearest(&member.name, known.iter().copied()) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("keys are: {}", known.join(", ")),
        };
        self.error_help(
            Cause::UnknownKey,
            &member.name_span,
            message,
            "unknown key",
            help,
        );
    }

    /// A key that must be there.
    pub(super) fn missing(&mut self, cause: Cause, node: &Node<'_>, what: &str, key: &str) {
        // Underlining a whole object would bury the message.
        let span = node.span.start..node.span.start + 1;
        self.error(
            cause,
            &span,
            format!("{what} has no {key}"),
            format!("expected {key:?} in here"),
        );
    }

    /// The elements of a list; null is the empty list.
    pub(super) fn list(&mut self, node: &'n Node<'n>, what: &str) -> &'n [Node<'n>] {
        match &node.value {
            Json::Array(elements) => elements,
            Json::Null => &[],
            Json::String(text) => {
                let message = format!("{what} must be a list, [ … ], not a string");
                let help = format!("write [{text:?}]");
                self.error_help(
                    Cause::WrongType,
                    &node.span,
                    message,
                    "expected a list",
                    help,
                );
                &[]
            }
            _ => {
                self.wrong_type(node, what, "a list, [ … ]");
                &[]
            }
        }
    }

    /// The elements of a list of strings.
    pub(super) fn texts(&mut self, node: Option<&'n Node<'n>>, what: &str) -> Vec<Text<'n>> {
        let Some(node) = node else { return Vec::new() };
        let elements = self.list(node, what).iter();
        let texts = elements.filter_map(|element| match &element.value {
            Json::String(value) => Some(Text::new(value, &element.span)),
            _ => {
                self.wrong_type(element, &format!("an element of {what}"), "a string");
                None
            }
        });
        texts.collect()
    }

    /// A string.
    pub(super) fn text(&mut self, node: &'n Node<'n>, what: &str) -> Option<Text<'n>> {
        if let Json::String(value) = &node.value {
            return Some(Text::new(value, &node.span));
        }
        self.wrong_type(node, what, "a string");
        None
    }

    /// A yes or no, no if absent.
    pub(super) fn flag(&mut self, node: Option<&'n Node<'n>>, what: &str) -> bool {
        let Some(node) = node else { return false };
        if let Json::Bool(value) = node.value {
            return value;
        }
        self.wrong_type(node, what, "true or false");
        false
    }
}

/// The candidate that differs from `name` in the fewest letters, if those are few. What stands
/// before a colon in both does not count.
pub(super) fn nearest<'c>(
    name: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    // A name longer than this is not a misspelling; a list longer than this is not searched whole.
    const LONGEST: usize = 100;
    const MOST: usize = 10_000;
    if name.len() > LONGEST {
        return None;
    }
    let prefix = name.find(':').map_or("", |colon| &name[..=colon]);
    let name = &name.as_bytes()[prefix.len()..];
    let limit = (name.len() / 3).min(3);
    let scored = candidates.into_iter().take(MOST).filter_map(|candidate| {
        let rest = candidate.strip_prefix(prefix).unwrap_or(candidate);
        let score = distance(name, rest.as_bytes(), limit)?;
        Some((score, candidate))
    });
    scored.min_by_key(|(score, _)| *score).map(|(_, it)| it)
}

/// How many letters must be inserted, removed, replaced or swapped with their neighbour to get from
/// `a` to `b`, their case aside (optimal string alignment); `None` above `limit`.
fn distance(a: &[u8], b: &[u8], limit: usize) -> Option<usize> {
    if a.len().abs_diff(b.len()) > limit {
        return None;
    }
    let same = |i: usize, j: usize| a[i].eq_ignore_ascii_case(&b[j]);
    let mut before = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let replaced = last[j] + usize::from(!same(i, j));
            let mut best = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && same(i, j - 1) && same(i - 1, j) {
                let two_rows_up: &Vec<usize> = &before;
                best = best.min(two_rows_up[j - 1] + 1);
            }
            row.push(best);
        }
        if row.iter().min() > Some(&limit) {
            return None;
        }
        before = std::mem::replace(&mut last, row);
    }
    Some(last[b.len()]).filter(|score| *score <= limit)
}
