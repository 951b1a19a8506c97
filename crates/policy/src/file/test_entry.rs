//! `tests` and `sshTests`: what the author of a policy expects of it.

use std::collections::BTreeMap;

use super::Located;
use super::reader::{Fields, Reader, Text};
use super::selector::{Address, parse_address};
use crate::diagnostic::Cause;
use crate::syntax::{Json, Node};
use crate::tailnet::Attribute;

/// An entry of `tests`. Its names are resolved when the test runs: one that does not exist is a
/// failed test, not an invalid file.
#[derive(Clone, Debug)]
pub struct AccessTest {
    /// Who.
    pub source: Located<String>,
    /// Protocol number; `None` = the protocols that rules default to (control.md 8.3).
    pub protocol: Option<u8>,
    /// Must reach these, `host:port`.
    pub accept: Vec<Located<String>>,
    /// Must not reach these.
    pub deny: Vec<Located<String>>,
    /// Attributes that the source is taken to have.
    pub source_attributes: BTreeMap<String, Attribute>,
}

/// An entry of `sshTests`.
#[derive(Clone, Debug)]
pub struct SshTest {
    /// Who.
    pub source: Located<String>,
    /// On which nodes.
    pub destinations: Vec<Located<String>>,
    /// Must be let in as these users.
    pub accept: Vec<Located<String>>,
    /// Must be asked first for these.
    pub check: Vec<Located<String>>,
    /// Must not get in as these.
    pub deny: Vec<Located<String>>,
}

const KEYS: &[&str] = &["src", "proto", "accept", "deny", "srcPostureAttrs"];
/// What `src` and `accept` were called once.
const OLD_KEYS: &[&str] = &["user", "allow"];
const SSH_KEYS: &[&str] = &["src", "dst", "accept", "check", "deny"];

impl<'n> Reader<'n> {
    /// `tests`
    pub(super) fn access_tests(&mut self, top: &Fields<'n>) -> Vec<Located<AccessTest>> {
        let Some(node) = top.get("tests") else {
            return Vec::new();
        };
        let elements = self.list(node, "tests").iter();
        elements
            .filter_map(|element| self.access_test(element))
            .collect()
    }

    fn access_test(&mut self, node: &'n Node<'n>) -> Option<Located<AccessTest>> {
        let fields = self.fields_with_old(node, "a test", KEYS, OLD_KEYS)?;
        let source = self.old_name(&fields, "src", "user");
        let source = self.test_source(source, node);
        let accept = self.old_name(&fields, "accept", "allow");
        let protocol = fields
            .get("proto")
            .and_then(|node| self.text(node, "proto"));
        let protocol = protocol.and_then(|text| self.protocol(&text.trim()));
        let test = AccessTest {
            source,
            protocol: protocol.and_then(|numbers| numbers.first().copied()),
            accept: self.subjects(accept, "accept"),
            deny: self.subjects(fields.get("deny"), "deny"),
            source_attributes: self.source_attributes(&fields),
        };
        Some(Located {
            value: test,
            span: node.span.clone(),
        })
    }

    /// Empty if it is missing: then the test fails.
    fn test_source(&mut self, source: Option<&'n Node<'n>>, test: &Node<'n>) -> Located<String> {
        match source.and_then(|node| self.text(node, "src")) {
            Some(text) => self.subject(&text),
            None => Located {
                value: String::new(),
                span: test.span.start..test.span.start + 1,
            },
        }
    }

    fn located_texts(&mut self, node: Option<&'n Node<'n>>, what: &str) -> Vec<Located<String>> {
        self.texts(node, what).iter().map(located).collect()
    }

    /// Like [`Self::located_texts`], of subjects.
    fn subjects(&mut self, node: Option<&'n Node<'n>>, what: &str) -> Vec<Located<String>> {
        let texts = self.texts(node, what);
        texts.iter().map(|text| self.subject(text)).collect()
    }

    /// Whom a test is about, with or without a port. Without a domain that should be there (which
    /// was reported) it is as it was written.
    fn subject(&mut self, text: &Text<'n>) -> Located<String> {
        let text = text.trim();
        let name = self.login(&text);
        text.located(name.unwrap_or_else(|| text.value.to_owned()))
    }

    fn source_attributes(&mut self, fields: &Fields<'n>) -> BTreeMap<String, Attribute> {
        let mut attributes = BTreeMap::new();
        let Some(node) = fields.get("srcPostureAttrs") else {
            return attributes;
        };
        for member in self.map(node, "srcPostureAttrs") {
            let name = Text::new(&member.name, &member.name_span);
            if self.attribute_exists(&name) == Some(false) {
                let message = format!("{:?} is not an attribute", name.value);
                self.error(
                    Cause::BadAssertion,
                    &name.span,
                    message,
                    "expected node:os or the like",
                );
            }
            let value = match &member.node.value {
                Json::String(text) => Attribute::Text(text.clone()),
                Json::Bool(flag) => Attribute::Flag(*flag),
                Json::Number(text) => match text.parse() {
                    Ok(number) => Attribute::Number(number),
                    Err(_) => continue,
                },
                Json::Null | Json::Array(_) | Json::Object(_) => {
                    let message = format!("an attribute cannot be {}", member.node.kind());
                    let label = "expected a string, a number, true or false";
                    self.error(Cause::WrongType, &member.node.span, message, label);
                    continue;
                }
            };
            attributes.insert(member.name.clone(), value);
        }
        attributes
    }

    /// `sshTests`
    pub(super) fn ssh_tests(&mut self, top: &Fields<'n>) -> Vec<Located<SshTest>> {
        let Some(node) = top.get("sshTests") else {
            return Vec::new();
        };
        let elements = self.list(node, "sshTests").iter();
        elements
            .filter_map(|element| self.ssh_test(element))
            .collect()
    }

    fn ssh_test(&mut self, node: &'n Node<'n>) -> Option<Located<SshTest>> {
        let fields = self.fields(node, "a test of SSH", SSH_KEYS)?;
        let source = self.test_source(fields.get("src"), node);
        let destinations = self.texts(fields.get("dst"), "dst");
        for destination in &destinations {
            self.check_ssh_test_destination(&destination.trim());
        }
        let test = SshTest {
            source,
            destinations: destinations.iter().map(|text| self.subject(text)).collect(),
            accept: self.located_texts(fields.get("accept"), "accept"),
            check: self.located_texts(fields.get("check"), "check"),
            deny: self.located_texts(fields.get("deny"), "deny"),
        };
        Some(Located {
            value: test,
            span: node.span.clone(),
        })
    }

    /// A destination is one host, or hosts that share an identity.
    fn check_ssh_test_destination(&mut self, text: &Text<'n>) {
        if text.value.starts_with("tag:") {
            if !self.is_tag(text.value) {
                let message = format!("{:?} is not in tagOwners", text.value);
                let help = "tests of SSH name destinations without port";
                self.error_help(
                    Cause::SshTestUnknownTag,
                    &text.span,
                    message,
                    "unknown tag",
                    help,
                );
            }
            return;
        }
        let net = match self.names.host(text.value) {
            Some(net) => net,
            None => match parse_address(text.value) {
                Some(Address::Prefix(net)) => Some(net),
                Some(Address::Range(..)) => {
                    return self.not_one_host(text);
                }
                None => None,
            },
        };
        let wide = net.is_some_and(|net| net.prefix_len() < net.max_prefix_len());
        if wide || text.value == "autogroup:internet" {
            self.not_one_host(text);
        }
    }

    fn not_one_host(&mut self, text: &Text<'n>) {
        let message = format!(
            "{:?} cannot be the destination of a test of SSH",
            text.value
        );
        let help = "name a tag, a user or a single host";
        self.error_help(
            Cause::SshTestDestination,
            &text.span,
            message,
            "not a single host",
            help,
        );
    }
}

fn located(text: &Text<'_>) -> Located<String> {
    let text = text.trim();
    text.located(text.value.to_owned())
}
