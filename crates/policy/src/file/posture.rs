//! `postures`: what a device must be like for its traffic to count.

use std::collections::BTreeMap;

use super::Located;
use super::reader::{Fields, Reader, Text, nearest};
use crate::diagnostic::Cause;
use crate::tailnet::Attribute;

/// An assertion of a posture.
#[derive(Clone, Debug, PartialEq)]
pub struct Assertion {
    /// `node:os` and the like.
    pub attribute: String,
    /// What it must be.
    pub condition: Condition,
}

/// What an attribute must be.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// `==`
    Equal(Attribute),
    /// `!=`
    NotEqual(Attribute),
    /// `<`; versions compare as versions.
    Less(Attribute),
    /// `<=`
    LessOrEqual(Attribute),
    /// `>`
    Greater(Attribute),
    /// `>=`
    GreaterOrEqual(Attribute),
    /// `IN [ … ]`
    In(Vec<Attribute>),
    /// `NOT IN [ … ]`
    NotIn(Vec<Attribute>),
    /// `IS SET`
    Set,
    /// `NOT SET`
    NotSet,
}

/// Attributes that this server knows of every node.
pub const ATTRIBUTES: [&str; 6] = [
    "node:os",
    "node:osVersion",
    "node:tsAutoUpdate",
    "node:tsReleaseTrack",
    "node:tsStateEncrypted",
    "node:tsVersion",
];

impl<'n> Reader<'n> {
    /// `postures`
    pub(super) fn postures(&mut self, top: &Fields<'n>) -> BTreeMap<String, Vec<Assertion>> {
        let mut postures = BTreeMap::new();
        let Some(node) = top.get("postures") else {
            return postures;
        };
        for member in self.map(node, "postures") {
            let name = self.defined_name(member, "posture", false);
            let texts = self.texts(Some(&member.node), name.value);
            let assertions = texts
                .iter()
                .filter_map(|text| self.assertion(&text.trim()))
                .collect();
            postures.insert(name.value.to_owned(), assertions);
        }
        postures
    }

    /// `defaultSrcPosture`
    pub(super) fn default_src_posture(&mut self, top: &Fields<'n>) -> Vec<String> {
        let texts = self.texts(top.get("defaultSrcPosture"), "defaultSrcPosture");
        self.posture_names(&texts)
            .into_iter()
            .map(|name| name.value)
            .collect()
    }

    /// Names of postures that exist.
    pub(super) fn posture_names(&mut self, texts: &[Text<'n>]) -> Vec<Located<String>> {
        let texts: Vec<_> = texts.iter().map(Text::trim).collect();
        let known = texts.iter().filter(|text| self.known_posture(text));
        known
            .map(|text| text.located(text.value.to_owned()))
            .collect()
    }

    fn assertion(&mut self, text: &Text<'n>) -> Option<Assertion> {
        let mut scanner = Scanner { rest: text.value };
        let attribute = scanner.name();
        let name = text.part(0..attribute.len());
        let condition = self
            .attribute_exists(&name)?
            .then(|| condition(&mut scanner))
            .flatten();
        if let Some(condition) = condition.filter(|_| scanner.at_end()) {
            return Some(Assertion {
                attribute: attribute.to_owned(),
                condition,
            });
        }
        let message = format!("{:?} is not an assertion", text.value);
        let help = "assertions look like node:os == 'linux', node:tsVersion >= '1.60', node:os IN ['linux', 'macos'], node:osVersion IS SET";
        self.error_help(
            Cause::BadAssertion,
            &text.span,
            message,
            "expected attribute operator value",
            help,
        );
        None
    }

    /// `None` if the attribute was complained about.
    pub(super) fn attribute_exists(&mut self, name: &Text<'n>) -> Option<bool> {
        if ATTRIBUTES.contains(&name.value) {
            return Some(true);
        }
        let Some((namespace, _)) = name.value.split_once(':') else {
            return Some(false);
        };
        if namespace == "node" {
            let message = format!("there is no attribute {}", name.value);
            let help = match nearest(name.value, ATTRIBUTES) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("there are: {}", ATTRIBUTES.join(", ")),
            };
            self.error_help(
                Cause::BadAssertion,
                &name.span,
                message,
                "unknown attribute",
                help,
            );
        } else {
            let message = format!("attributes of {namespace}: are not supported by this server");
            let help = format!(
                "it has no such data of its nodes; it knows {}",
                ATTRIBUTES.join(", ")
            );
            self.error_help(
                Cause::Unsupported,
                &name.span,
                message,
                "not supported",
                help,
            );
        }
        None
    }
}

/// What stands behind the attribute's name.
fn condition(scanner: &mut Scanner<'_>) -> Option<Condition> {
    // Longer operators first: `<=` is not `<`.
    type Make = fn(Attribute) -> Condition;
    let comparisons: [(&str, Make); 6] = [
        ("==", Condition::Equal),
        ("!=", Condition::NotEqual),
        ("<=", Condition::LessOrEqual),
        (">=", Condition::GreaterOrEqual),
        ("<", Condition::Less),
        (">", Condition::Greater),
    ];
    for (operator, make) in comparisons {
        if scanner.symbol(operator) {
            return scanner.value().map(make);
        }
    }
    if scanner.word("IS") {
        return scanner.word("SET").then_some(Condition::Set);
    }
    if scanner.word("IN") {
        return scanner.values().map(Condition::In);
    }
    if scanner.word("NOT") {
        if scanner.word("SET") {
            return Some(Condition::NotSet);
        }
        return scanner
            .word("IN")
            .then(|| scanner.values())
            .flatten()
            .map(Condition::NotIn);
    }
    None
}

/// Reads an assertion from left to right; blanks between its parts do not count.
struct Scanner<'t> {
    rest: &'t str,
}

impl<'t> Scanner<'t> {
    fn name(&mut self) -> &'t str {
        let word = |c: char| c.is_ascii_alphanumeric() || ":_-.".contains(c);
        let end = self.rest.find(|c| !word(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        name
    }

    fn symbol(&mut self, symbol: &str) -> bool {
        let rest = self.rest.trim_start().strip_prefix(symbol);
        rest.inspect(|rest| self.rest = rest).is_some()
    }

    fn word(&mut self, word: &str) -> bool {
        let rest = self.rest.trim_start();
        let end = rest
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(rest.len());
        let found = rest[..end].eq_ignore_ascii_case(word);
        if found {
            self.rest = &rest[end..];
        }
        found
    }

    /// `'text'`, a number, true or false.
    fn value(&mut self) -> Option<Attribute> {
        let rest = self.rest.trim_start();
        if let Some(quote) = rest.chars().next().filter(|c| matches!(c, '\'' | '"')) {
            let (text, rest) = rest[1..].split_once(quote)?;
            self.rest = rest;
            return Some(Attribute::Text(text.to_owned()));
        }
        let end = rest.find([',', ']', ' ', '\t']).unwrap_or(rest.len());
        let (word, rest) = rest.split_at(end);
        self.rest = rest;
        match word {
            "true" => Some(Attribute::Flag(true)),
            "false" => Some(Attribute::Flag(false)),
            _ => word
                .parse()
                .ok()
                .filter(|it: &f64| it.is_finite())
                .map(Attribute::Number),
        }
    }

    /// `[value, …]`
    fn values(&mut self) -> Option<Vec<Attribute>> {
        let mut values = Vec::new();
        if !self.symbol("[") {
            return None;
        }
        while !self.symbol("]") {
            values.push(self.value()?);
            if !self.symbol(",") {
                return self.symbol("]").then_some(values);
            }
        }
        Some(values)
    }

    fn at_end(&self) -> bool {
        self.rest.trim().is_empty()
    }
}
