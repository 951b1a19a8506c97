//! What the file defines: groups, hosts, tags, ipsets and postures. Collected before anything that
//! may refer to them is read, so that their order in the file does not matter.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::Located;
use super::reader::{Fields, Reader, Text, nearest};
use super::selector::{Address, parse_address};
use crate::diagnostic::Cause;
use crate::syntax::{Json, Member, Node};

/// All names of the file. A name whose definition is broken is defined: the definition is what is
/// complained about, not those who use it.
#[derive(Default)]
pub(super) struct Names<'n> {
    groups: BTreeSet<&'n str>,
    tags: BTreeSet<&'n str>,
    ipsets: BTreeSet<&'n str>,
    postures: BTreeSet<&'n str>,
    /// `None`: it exists, but its address is broken.
    hosts: BTreeMap<&'n str, Option<IpNet>>,
    /// The section could not be read, so nothing is said about unknown names.
    pub(super) hosts_broken: bool,
    broken: BTreeSet<&'static str>,
}

impl<'n> Names<'n> {
    /// The address of a host; the inner `None`: it is broken.
    pub(super) fn host(&self, name: &str) -> Option<Option<IpNet>> {
        self.hosts.get(name).copied()
    }

    /// The host whose name is nearly this.
    pub(super) fn nearest_host(&self, name: &str) -> Option<&'n str> {
        nearest(name, self.hosts.keys().copied())
    }

    fn of(&self, section: &'static str) -> &BTreeSet<&'n str> {
        match section {
            "groups" => &self.groups,
            "tagOwners" => &self.tags,
            "ipsets" => &self.ipsets,
            _ => &self.postures,
        }
    }
}

/// Members of a section; empty if it is absent or not an object (which is reported elsewhere).
fn members<'n>(fields: &Fields<'n>, section: &str) -> &'n [Member<'n>] {
    match fields.get(section).map(|node| &node.value) {
        Some(Json::Object(members)) => members,
        _ => &[],
    }
}

impl<'n> Reader<'n> {
    /// Collects the names; hosts are complete afterwards.
    pub(super) fn collect_names(&mut self, top: &Fields<'n>) {
        let collect = |section| {
            members(top, section)
                .iter()
                .map(|member| member.name.as_str())
                .collect()
        };
        self.names.groups = collect("groups");
        self.names.tags = collect("tagOwners");
        self.names.ipsets = collect("ipsets");
        self.names.postures = collect("postures");
        for section in ["groups", "tagOwners", "ipsets", "postures", "hosts"] {
            let broken = |node: &&Node<'_>| !matches!(node.value, Json::Object(_));
            if top.get(section).as_ref().is_some_and(broken) {
                self.names.broken.insert(section);
            }
        }
        self.names.hosts_broken = self.names.broken.contains("hosts");
        if let Some(node) = top.get("hosts") {
            for member in self.map(node, "hosts") {
                self.host(member);
            }
        }
    }

    fn host(&mut self, member: &'n Member<'n>) {
        let name = Text::new(&member.name, &member.name_span);
        // A bad name is an alias all the same for those who use it.
        self.names.hosts.insert(name.value, None);
        if name.value.is_empty() || name.value == "*" || name.value.contains(['@', ':', '/', ' ']) {
            let message = format!("{:?} cannot be the name of a host", name.value);
            let help = "names have no @, :, / or blank and are not empty";
            self.error_help(Cause::BadName, &name.span, message, "not a name", help);
        } else if parse_address(name.value).is_some() {
            let message = format!("{:?} is an address, not the name of a host", name.value);
            self.error(Cause::BadName, &name.span, message, "expected a name");
        }
        let Some(text) = self.text(&member.node, "the address of a host") else {
            return;
        };
        let text = text.trim();
        if let Some(Address::Prefix(net)) = parse_address(text.value) {
            let net = self.without_host_bits(net, &text);
            self.names.hosts.insert(name.value, Some(net));
        } else {
            let message = format!("{:?} is not an address or prefix", text.value);
            let help = "a host is one address or prefix: 10.1.2.3, 10.1.0.0/16, fd00::/64";
            self.error_help(
                Cause::InvalidAddress,
                &text.span,
                message,
                "expected an address",
                help,
            );
        }
    }

    /// The hosts that are in order.
    pub(super) fn hosts(&self) -> BTreeMap<String, IpNet> {
        let hosts = self.names.hosts.iter();
        hosts
            .filter_map(|(name, net)| Some(((*name).to_owned(), (*net)?)))
            .collect()
    }

    fn known(&mut self, text: &Text<'n>, section: &'static str, cause: Cause) -> bool {
        let names = self.names.of(section);
        if names.contains(text.value) || self.names.broken.contains(section) {
            return true;
        }
        let bare = text.value.split_once(':').map_or("", |(_, bare)| bare);
        if names.contains(bare) {
            // Its definition lacks the prefix and was complained about.
            return true;
        }
        let help = match self
            .suggests()
            .then(|| nearest(text.value, names.iter().copied()))
            .flatten()
        {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("define it in {section}"),
        };
        let message = format!("{:?} is not in {section}", text.value);
        self.error_help(cause, &text.span, message, "not defined", help);
        false
    }

    /// Is it a group of the file or of the identity provider?
    pub(super) fn known_group(&mut self, text: &Text<'n>) -> bool {
        self.provided_groups.contains(text.value)
            || self.known(text, "groups", Cause::GroupNotFound)
    }

    /// Is it a tag?
    pub(super) fn known_tag(&mut self, text: &Text<'n>) -> bool {
        self.known(text, "tagOwners", Cause::TagNotFound)
    }

    /// Is it a tag? Says nothing if not.
    pub(super) fn is_tag(&self, name: &str) -> bool {
        self.names.tags.contains(name) || self.names.broken.contains("tagOwners")
    }

    /// Is it an ipset?
    pub(super) fn known_ipset(&mut self, text: &Text<'n>) -> bool {
        self.known(text, "ipsets", Cause::IpSetNotFound)
    }

    /// Is it a posture?
    pub(super) fn known_posture(&mut self, text: &Text<'n>) -> bool {
        self.known(text, "postures", Cause::PostureNotFound)
    }

    /// Is it a domain of this tailnet?
    pub(super) fn known_domain(&mut self, text: &Text<'n>) -> bool {
        let known = self
            .domains
            .iter()
            .any(|domain| domain.eq_ignore_ascii_case(text.value));
        if !known {
            let message = format!("{:?} is not a domain of this tailnet", text.value);
            let help = match self.domains {
                [] => "this tailnet has no domain: name users and groups instead".to_owned(),
                domains => format!("its domains are: {}", domains.join(", ")),
            };
            self.error_help(
                Cause::ForeignDomain,
                &text.span,
                message,
                "somebody else's domain",
                help,
            );
        }
        known
    }

    /// A login name with its domain: `alice@` is of the tailnet's own. With something behind it, as
    /// in `alice@:22`, the rest stays.
    pub(super) fn login(&mut self, text: &Text<'n>) -> Option<String> {
        let login = with_domain(text.value, self.domains.first().map(String::as_str));
        if login.is_none() {
            let message = format!(
                "{:?} has no domain, and neither has this tailnet",
                text.value
            );
            let label = "expected name@domain";
            let help = "write the login name in full: alice@example.com";
            self.error_help(Cause::NoDomain, &text.span, message, label, help);
        }
        login.map(Cow::into_owned)
    }

    /// Checks the form `prefix:name` of a defined name.
    pub(super) fn defined_name(
        &mut self,
        member: &'n Member<'n>,
        prefix: &str,
        letter: bool,
    ) -> Text<'n> {
        let text = Text::new(&member.name, &member.name_span);
        let bare = text
            .value
            .strip_prefix(prefix)
            .and_then(|it| it.strip_prefix(':'));
        let starts = |it: &str| !letter || it.starts_with(|c: char| c.is_ascii_alphabetic());
        let form = |it: &str| {
            !it.is_empty() && !it.contains([':', ' ', '\t', '@', '/', ',']) && starts(it)
        };
        if !bare.is_some_and(form) {
            let message = format!("{:?} is not a name of the form {prefix}:name", text.value);
            let help = match bare {
                None => format!("write \"{prefix}:{}\"", text.value),
                Some(bare) if letter && !starts(bare) => "the name starts with a letter".to_owned(),
                Some(_) => {
                    "the name has no blank, comma, colon, slash or @ and is not empty".to_owned()
                }
            };
            self.error_help(
                Cause::BadName,
                &text.span,
                message,
                format!("expected {prefix}:name"),
                help,
            );
        }
        text
    }

    /// `groups`
    pub(super) fn groups(&mut self, top: &Fields<'n>) -> BTreeMap<String, Vec<Located<String>>> {
        let mut groups = BTreeMap::new();
        let Some(node) = top.get("groups") else {
            return groups;
        };
        for member in self.map(node, "groups") {
            let name = self.defined_name(member, "group", false);
            let members = self.texts(Some(&member.node), name.value);
            let users = members
                .iter()
                .filter_map(|text| self.group_member(&text.trim()))
                .collect();
            groups.insert(name.value.to_owned(), users);
        }
        groups
    }

    fn group_member(&mut self, text: &Text<'n>) -> Option<Located<String>> {
        let name = text.value;
        if name.starts_with("group:") {
            let message = format!("{name:?} is a group, and groups do not contain groups");
            let help = "list its users here, or name both groups where they are used";
            self.error_help(
                Cause::NestedGroup,
                &text.span,
                message,
                "expected a user",
                help,
            );
            return None;
        }
        if name.contains('@') && !name.contains([':', '/', ' ', '*']) {
            return self.login(text).map(|login| text.located(login));
        }
        let message = format!("{name:?} is not a user");
        let help = "members are login names, name@domain";
        self.error_help(
            Cause::BadGroupMember,
            &text.span,
            message,
            "expected a user",
            help,
        );
        None
    }
}

/// Completes `alice@` and `alice@:22` by the tailnet's own domain; all else stays as it is. `None`:
/// there is no such domain.
pub(crate) fn with_domain<'t>(text: &'t str, domain: Option<&str>) -> Option<Cow<'t, str>> {
    let lacking = text
        .split_once('@')
        .filter(|(_, rest)| rest.is_empty() || rest.starts_with(':'));
    let Some((local, rest)) = lacking else {
        return Some(Cow::Borrowed(text));
    };
    Some(Cow::Owned(format!("{local}@{}{rest}", domain?)))
}
