//! The typed policy: what a valid file says, with the places where it says it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use ipnet::IpNet;

mod approvers;
mod ipset;
mod json;
mod names;
mod node_attr;
mod options;
mod ports;
mod posture;
mod ranges;
mod reader;
mod rule;
mod selector;
mod ssh;
mod tag_owners;
mod test_entry;
mod warnings;

use crate::diagnostic::{Diagnostic, Diagnostics, Lines};
use crate::syntax;
use reader::Reader;

pub use ipset::IpSet;
pub(crate) use names::with_domain;
pub use node_attr::NodeAttr;
pub use options::{OneCgnatRoute, Options};
pub use ports::ProtoPorts;
pub(crate) use ports::{has_ports, protocol_name, protocol_number};
pub use posture::{ATTRIBUTES, Assertion, Condition};
pub use rule::{Place, Rule, Target};
pub use selector::{Autogroup, Selector};
pub use ssh::{SshAction, SshRule, SshUser};
pub use test_entry::{AccessTest, SshTest};

/// A value and where in the file it stands, as a range of bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// First byte and the byte after the last.
    pub span: Range<usize>,
}

/// What a policy depends on beyond its text.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Domains of the tailnet: `user:*@domain` and `localpart:*@domain` accept no others. The first
    /// is the tailnet's own, the one that `alice@` means; without any, `alice@` is refused.
    pub domains: Vec<String>,
    /// Groups that come from the identity provider, with the `group:` prefix.
    pub known_groups: Vec<String>,
    /// The server can ask users to confirm SSH sessions. If it cannot, rules that say `check` are
    /// warned of.
    pub ssh_check: bool,
}

/// A policy. All that it refers to exists; all values are in range.
#[derive(Debug)]
pub struct Policy {
    /// The file as it was written.
    pub text: Arc<str>,
    /// Its lines.
    pub lines: Lines,
    /// The tailnet's own domain, if it has one: questions about `alice@` are about its alice.
    /// In all else here, login names have their domain.
    pub domain: Option<String>,
    /// `group:x` to login names; not nested.
    pub groups: BTreeMap<String, Vec<Located<String>>>,
    /// Aliases.
    pub hosts: BTreeMap<String, IpNet>,
    /// `ipset:x`, evaluated: sorted ranges that do not touch each other.
    pub ipsets: BTreeMap<String, IpSet>,
    /// `tag:x` to those who may give it to a node.
    pub tag_owners: BTreeMap<String, Vec<Located<Selector>>>,
    /// `acls` and `grants`, in that order. `None` if the file has neither key: all is allowed.
    pub rules: Option<Vec<Rule>>,
    /// Approvers of routes.
    pub route_approvers: BTreeMap<IpNet, Vec<Located<Selector>>>,
    /// Approvers of exit nodes.
    pub exit_approvers: Vec<Located<Selector>>,
    /// Attributes.
    pub node_attrs: Vec<NodeAttr>,
    /// SSH rules, in order.
    pub ssh: Vec<SshRule>,
    /// `posture:x` to its assertions, all of which must hold.
    pub postures: BTreeMap<String, Vec<Assertion>>,
    /// Postures of which one must hold for sources of rules without `srcPosture`.
    pub default_src_posture: Vec<String>,
    /// Tests of `acls` and `grants`.
    pub tests: Vec<Located<AccessTest>>,
    /// Tests of `ssh`.
    pub ssh_tests: Vec<Located<SshTest>>,
    /// Options of the whole network.
    pub options: Options,
}

/// A file that is in order, and what may still surprise its author.
#[derive(Debug)]
pub struct Parsed {
    /// The policy.
    pub policy: Policy,
    /// Warnings only, possibly none.
    pub warnings: Vec<Diagnostic>,
}

/// Top-level keys (control.md 8.1).
const KEYS: &[&str] = &[
    "groups",
    "hosts",
    "tagOwners",
    "acls",
    "grants",
    "autoApprovers",
    "nodeAttrs",
    "ssh",
    "tests",
    "sshTests",
    "postures",
    "defaultSrcPosture",
    "ipsets",
    "randomizeClientPort",
    "disableIPv4",
    "OneCGNATRoute",
    "derpMap",
];

impl Policy {
    /// Reads a policy file; `name` is what diagnostics call it. Tests in it are not run: see
    /// [`crate::check`].
    ///
    /// # Errors
    ///
    /// All that is wrong with it.
    pub fn parse(name: &str, text: &str, context: &Context) -> Result<Parsed, Diagnostics> {
        let shared: Arc<str> = text.into();
        let document = syntax::parse(text)
            .map_err(|error| Diagnostics::new(name, Arc::clone(&shared), vec![error]))?;
        let mut reader = Reader::new(context);
        let policy = reader.policy(&document, &shared);
        let refused = reader.errors() > 0;
        let Reader {
            mut diagnostics,
            omitted,
            ..
        } = reader;
        diagnostics.sort_by_key(|diagnostic| diagnostic.span.start);
        match policy {
            Some(policy) if !refused => Ok(Parsed {
                policy,
                warnings: diagnostics,
            }),
            _ => {
                let mut refused = Diagnostics::new(name, shared, diagnostics);
                refused.omitted += omitted;
                Err(refused)
            }
        }
    }

    /// What is in force without any file: every node may reach every node (control.md 8.1, last
    /// paragraph). Sources are all addresses of the tailnet, not `*`, which in a filter would be
    /// everybody.
    #[must_use]
    pub fn allow_all() -> Self {
        Self {
            text: "{}".into(),
            lines: Lines::new("{}"),
            domain: None,
            groups: BTreeMap::new(),
            hosts: BTreeMap::new(),
            ipsets: BTreeMap::new(),
            tag_owners: BTreeMap::new(),
            rules: None,
            route_approvers: BTreeMap::new(),
            exit_approvers: Vec::new(),
            node_attrs: Vec::new(),
            ssh: Vec::new(),
            postures: BTreeMap::new(),
            default_src_posture: Vec::new(),
            tests: Vec::new(),
            ssh_tests: Vec::new(),
            options: Options::default(),
        }
    }
}

impl<'n> Reader<'n> {
    /// All sections. What is wrong was noted; then the result is of no use.
    fn policy(&mut self, document: &'n syntax::Node<'n>, text: &Arc<str>) -> Option<Policy> {
        let top = self.fields(document, "a policy", KEYS)?;
        self.collect_names(&top);
        let approvers = self.approvers(&top);
        let policy = Policy {
            text: Arc::clone(text),
            lines: Lines::new(text),
            domain: self.domains.first().cloned(),
            groups: self.groups(&top),
            hosts: self.hosts(),
            ipsets: self.ipsets(&top),
            tag_owners: self.tag_owners(&top),
            rules: self.rules(&top),
            route_approvers: approvers.routes,
            exit_approvers: approvers.exit,
            node_attrs: self.node_attrs(&top),
            ssh: self.ssh(&top),
            postures: self.postures(&top),
            default_src_posture: self.default_src_posture(&top),
            tests: self.access_tests(&top),
            ssh_tests: self.ssh_tests(&top),
            options: self.options(&top),
        };
        if self.errors() == 0 {
            self.warn(&policy, document);
        }
        Some(policy)
    }
}
