//! `acls` and `grants`: who may reach what (control.md 8.1 to 8.3).

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::ops::Range;

use serde_json::value::RawValue;

use super::Located;
use super::ports::ProtoPorts;
use super::reader::{Fields, Reader, Text};
use super::selector::{Autogroup, Position, Selector, parse_address};
use crate::diagnostic::Cause;
use crate::syntax::{Json, Node};

/// Where a rule stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// Top-level key: `acls`, `grants`, `ssh`…
    pub section: &'static str,
    /// Index in it.
    pub index: usize,
    /// Its text.
    pub span: Range<usize>,
}

/// An entry of `acls` or `grants`.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Where it stands.
    pub place: Place,
    /// Who.
    pub sources: Vec<Located<Selector>>,
    /// May reach what; in an ACL each destination has ports of its own, in a grant all have `ip`.
    pub targets: Vec<Target>,
    /// Capability name to its values as they were written. Grants only.
    pub app: BTreeMap<String, Vec<Box<RawValue>>>,
    /// Through which routers, as `tag:x`; empty = any. Grants only.
    pub via: Vec<Located<String>>,
    /// Postures of which a source must have one; empty = the default's.
    pub src_posture: Vec<Located<String>>,
}

/// A destination.
#[derive(Clone, Debug)]
pub struct Target {
    /// What.
    pub destination: Located<Selector>,
    /// On which protocols and ports; empty in a grant that only has `app`.
    pub ports: Vec<Located<ProtoPorts>>,
}

const ACL_KEYS: &[&str] = &["action", "src", "dst", "proto", "srcPosture"];
/// What `src` and `dst` were called once.
const OLD_ACL_KEYS: &[&str] = &["users", "ports"];
const GRANT_KEYS: &[&str] = &["src", "dst", "ip", "app", "via", "srcPosture"];

/// Pairs of destination and ports in all grants: a short file must not stand for gigabytes.
const MOST_TARGETS: usize = 1_000_000;

/// Capabilities in Tailscale's domain that a policy may grant; the others are the server's own
/// (control.md 8.4).
const GRANTABLE: [&str; 6] = ["drive", "relay", "webui", "kubernetes", "tsidp", "secrets"];

impl<'n> Reader<'n> {
    /// `acls` and `grants`, in that order. `None` if the file has neither: all is allowed.
    pub(super) fn rules(&mut self, top: &Fields<'n>) -> Option<Vec<Rule>> {
        let (acls, grants) = (top.get("acls"), top.get("grants"));
        if acls.is_none() && grants.is_none() {
            return None;
        }
        let mut rules = Vec::new();
        for (index, node) in acls
            .map_or(&[][..], |node| self.list(node, "acls"))
            .iter()
            .enumerate()
        {
            rules.extend(self.acl(node, index));
        }
        for (index, node) in grants
            .map_or(&[][..], |node| self.list(node, "grants"))
            .iter()
            .enumerate()
        {
            rules.extend(self.grant(node, index));
        }
        Some(rules)
    }

    fn acl(&mut self, node: &'n Node<'n>, index: usize) -> Option<Rule> {
        let fields = self.fields_with_old(node, "an ACL", ACL_KEYS, OLD_ACL_KEYS)?;
        self.acl_action(node, &fields);
        let sources = self.old_name(&fields, "src", "users");
        let destinations = self.old_name(&fields, "dst", "ports");
        let sources = self.texts(sources, "src");
        let sources = self.selectors(&sources, Position::Source);
        let protocol = match fields.get("proto") {
            Some(node) => self
                .text(node, "proto")
                .and_then(|text| self.protocol(&text.trim())),
            None => Some(Vec::new()),
        };
        let mut targets = Vec::new();
        for text in self.texts(destinations, "dst") {
            targets.extend(self.acl_destination(&text, protocol.as_deref().unwrap_or_default()));
        }
        self.check_self(&sources, &targets, true);
        let place = Place {
            section: "acls",
            index,
            span: node.span.clone(),
        };
        let src_posture = self.src_posture(&fields);
        Some(Rule {
            place,
            sources,
            targets,
            app: BTreeMap::new(),
            via: Vec::new(),
            src_posture,
        })
    }

    fn acl_action(&mut self, node: &Node<'n>, fields: &Fields<'n>) {
        let Some(action) = fields.get("action") else {
            self.missing(Cause::ActionMissing, node, "an ACL", "action");
            return;
        };
        let Some(action) = self.text(action, "action") else {
            return;
        };
        if action.value.is_empty() {
            self.error(
                Cause::ActionMissing,
                &action.span,
                "an ACL has no action",
                "expected accept",
            );
        } else if action.value != "accept" {
            let message = format!("{:?} is not an action of ACLs", action.value);
            let help = "the only action is \"accept\": what no rule accepts is denied";
            self.error_help(
                Cause::BadAction,
                &action.span,
                message,
                "expected accept",
                help,
            );
        }
    }

    /// A field by its name or, if that is absent, by the name it once had.
    pub(super) fn old_name(
        &mut self,
        fields: &Fields<'n>,
        name: &str,
        old: &str,
    ) -> Option<&'n Node<'n>> {
        if let (Some(_), Some(span)) = (fields.get(name), fields.key_span(old)) {
            let message = format!("{old} is the old name of {name}, which is here too");
            self.error(Cause::DuplicateKey, &span, message, "remove one");
        }
        fields.get(name).or_else(|| fields.get(old))
    }

    /// `destination:ports`, split at the last colon: `fd00::1:22` is port 22 of `fd00::1`.
    fn acl_destination(&mut self, text: &Text<'n>, protocols: &[u8]) -> Option<Target> {
        let text = text.trim();
        let Some((name, ports)) = text.rsplit_once(':') else {
            return self.no_ports(&text, &text);
        };
        if ports.value.is_empty() {
            return self.no_ports(&text, &name);
        }
        // Without ports, the last colon is one of the name.
        let prefix = matches!(name.value, "tag" | "group" | "autogroup" | "ipset" | "svc");
        if prefix || parse_address(text.value).is_some() && parse_address(name.value).is_none() {
            return self.no_ports(&text, &text);
        }
        let ports = self.port_list(&ports.trim(), protocols);
        let destination = self.selector(&name, Position::Destination)?;
        Some(Target { destination, ports })
    }

    fn no_ports(&mut self, text: &Text<'n>, name: &Text<'n>) -> Option<Target> {
        let message = format!("{:?} has no ports", name.value);
        let name = match name.value {
            address if address.parse::<Ipv6Addr>().is_ok() => format!("[{address}]"),
            name => name.to_owned(),
        };
        let help = format!("write \"{name}:*\" for all ports, \"{name}:22\" for one");
        let label = "expected destination:ports";
        self.error_help(Cause::BadPorts, &text.span, message, label, help);
        None
    }

    fn grant(&mut self, node: &'n Node<'n>, index: usize) -> Option<Rule> {
        let fields = self.fields(node, "a grant", GRANT_KEYS)?;
        let sources = self.texts(fields.get("src"), "src");
        let sources = self.selectors(&sources, Position::Source);
        let ip = self.texts(fields.get("ip"), "ip");
        let ports: Vec<_> = ip
            .iter()
            .filter_map(|text| self.proto_ports(text))
            .collect();
        let app = fields
            .get("app")
            .map(|node| self.capabilities(node))
            .unwrap_or_default();
        if ip.is_empty() && app.is_empty() {
            let message = "a grant grants neither ports (ip) nor capabilities (app)";
            let span = node.span.start..node.span.start + 1;
            let help = "all ports: \"ip\": [\"*\"]";
            self.error_help(
                Cause::EmptyGrant,
                &span,
                message,
                "expected ip, app or both in here",
                help,
            );
        }
        let mut targets = Vec::new();
        for text in self.texts(fields.get("dst"), "dst") {
            let destination = self.grant_destination(&text, !app.is_empty());
            if let Some(destination) = destination.filter(|it| self.has_room(it, ports.len())) {
                let ports = ports.clone();
                targets.push(Target { destination, ports });
            }
        }
        self.check_self(&sources, &targets, false);
        let via = self.via(&fields);
        let place = Place {
            section: "grants",
            index,
            span: node.span.clone(),
        };
        let src_posture = self.src_posture(&fields);
        Some(Rule {
            place,
            sources,
            targets,
            app,
            via,
            src_posture,
        })
    }

    fn grant_destination(&mut self, text: &Text<'n>, app: bool) -> Option<Located<Selector>> {
        let destination = self.selector(text, Position::Destination)?;
        match &destination.value {
            Selector::Prefix(net) if net.prefix_len() == 0 => {
                let message = format!("{:?} is not a destination of grants", text.value);
                let help =
                    "write \"*\" for all nodes, \"autogroup:internet\" for the use of exit nodes";
                self.error_help(
                    Cause::DefaultRoute,
                    &destination.span,
                    message,
                    "too wide",
                    help,
                );
                None
            }
            Selector::Autogroup(Autogroup::Internet) if app => {
                let message = "app capabilities towards autogroup:internet";
                let help = "the internet has no nodes that could be told: split the grant";
                self.error_help(
                    Cause::AppToInternet,
                    &destination.span,
                    message,
                    "not with app",
                    help,
                );
                None
            }
            _ => Some(destination),
        }
    }

    /// Counts a destination with so many ports.
    fn has_room(&mut self, destination: &Located<Selector>, ports: usize) -> bool {
        let before = self.rule_targets;
        self.rule_targets += ports;
        let full = self.rule_targets > MOST_TARGETS;
        if full && before <= MOST_TARGETS {
            let message =
                format!("grants name more than {MOST_TARGETS} pairs of destination and ports");
            let help = "each dst counts once for each ip: use ipsets, tags and ranges of ports";
            let label = "the limit is reached here";
            self.error_help(Cause::TooLarge, &destination.span, message, label, help);
        }
        !full
    }

    /// `autogroup:self` is relative to a person: sources must be people. ACLs also take `*`.
    fn check_self(&mut self, sources: &[Located<Selector>], targets: &[Target], any: bool) {
        let to_self =
            |it: &&Target| it.destination.value == Selector::Autogroup(Autogroup::SelfDevices);
        if !targets.iter().any(|it| to_self(&it)) {
            return;
        }
        let person = |selector: &Selector| match selector {
            Selector::User(_) | Selector::UsersOf(_) | Selector::Group(_) => true,
            Selector::Autogroup(Autogroup::Member | Autogroup::Role(_)) => true,
            Selector::Any => any,
            _ => false,
        };
        if let Some(source) = sources.iter().find(|source| !person(&source.value)) {
            let message = "autogroup:self needs users as sources";
            let help = "autogroup:self means the devices of the same user: name users, groups or autogroup:member, or give this source a rule of its own";
            self.error_help(
                Cause::SelfNeedsUsers,
                &source.span,
                message,
                "not a user",
                help,
            );
        }
    }

    fn via(&mut self, fields: &Fields<'n>) -> Vec<Located<String>> {
        let mut via = Vec::new();
        for text in self.texts(fields.get("via"), "via") {
            let text = text.trim();
            if !text.value.starts_with("tag:") {
                let message = format!("{:?} is not a tag", text.value);
                let help = "via names routers by their tags";
                self.error_help(
                    Cause::ViaNotATag,
                    &text.span,
                    message,
                    "expected tag:name",
                    help,
                );
            } else if self.known_tag(&text) {
                via.push(text.located(text.value.to_owned()));
            }
        }
        via
    }

    fn src_posture(&mut self, fields: &Fields<'n>) -> Vec<Located<String>> {
        let texts = self.texts(fields.get("srcPosture"), "srcPosture");
        self.posture_names(&texts)
    }

    fn capabilities(&mut self, node: &'n Node<'n>) -> BTreeMap<String, Vec<Box<RawValue>>> {
        let app = self.app(node, Self::raw);
        if let Json::Object(members) = &node.value {
            for member in members {
                self.capability_name(&Text::new(&member.name, &member.name_span));
            }
        }
        app
    }

    /// Names and lists of values, each value read by `read`.
    pub(super) fn app<T>(
        &mut self,
        node: &'n Node<'n>,
        read: fn(&mut Self, &'n Node<'n>) -> Option<T>,
    ) -> BTreeMap<String, Vec<T>> {
        let mut app = BTreeMap::new();
        for member in self.map(node, "app") {
            let values = self.list(&member.node, &member.name);
            let values = values
                .iter()
                .filter_map(|value| read(self, value))
                .collect();
            app.insert(member.name.clone(), values);
        }
        app
    }

    fn capability_name(&mut self, name: &Text<'n>) {
        let form = name.value.split_once('/').is_some_and(|(domain, path)| {
            !domain.is_empty() && !path.is_empty() && !name.value.contains([' ', ':'])
        });
        if !form {
            let message = format!("{:?} is not the name of a capability", name.value);
            let help = "capabilities are named domain/path, without https://, as in example.com/cap/backup";
            self.error_help(
                Cause::BadCapabilityName,
                &name.span,
                message,
                "expected domain/path",
                help,
            );
        } else if let Some(path) = name.value.strip_prefix("tailscale.com/")
            && !path
                .strip_prefix("cap/")
                .is_some_and(|cap| GRANTABLE.contains(&cap))
        {
            let message = format!(
                "{:?} is a capability that policies cannot grant",
                name.value
            );
            let help = format!(
                "of tailscale.com/cap/ there are {}; own ones go into a domain of yours",
                GRANTABLE.join(", ")
            );
            self.error_help(
                Cause::ReservedCapability,
                &name.span,
                message,
                "reserved",
                help,
            );
        }
    }
}
