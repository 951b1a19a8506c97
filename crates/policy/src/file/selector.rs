//! Whom or what a part of the policy speaks of (control.md 8.2).

use std::net::IpAddr;

use ipnet::IpNet;

use super::Located;
use super::reader::{Reader, Text, nearest};
use crate::diagnostic::Cause;
use crate::tailnet::Role;

/// Whom or what a part of the policy speaks of (control.md 8.2). Which selectors may stand where
/// is checked by the reader.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Selector {
    /// `*`
    Any,
    /// A login name, with its domain.
    User(String),
    /// `user:*@domain`: everybody of the domain.
    UsersOf(String),
    /// `group:x`
    Group(String),
    /// `tag:x`
    Tag(String),
    /// An alias of `hosts`, with what it stands for.
    Host(String, IpNet),
    /// An address or a prefix.
    Prefix(IpNet),
    /// `a-b`
    Range(IpAddr, IpAddr),
    /// `ipset:x`
    IpSet(String),
    /// `autogroup:x`
    Autogroup(Autogroup),
}

/// The groups that fill themselves.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Autogroup {
    /// Untagged devices of members.
    Member,
    /// Tagged devices.
    Tagged,
    /// The same user's devices.
    SelfDevices,
    /// What is reached through exit nodes.
    Internet,
    /// Everything, sources outside of the tailnet included.
    DangerAll,
    /// Users who accepted a share; nobody here, since nothing is shared between tailnets.
    Shared,
    /// Users by role; `Role::Member` is not among them.
    Role(Role),
}

/// All autogroups by name. `nonroot` is none: it only exists in SSH `users`.
const AUTOGROUPS: &[(&str, Autogroup)] = &[
    ("autogroup:member", Autogroup::Member),
    // The plural is what early policies have.
    ("autogroup:members", Autogroup::Member),
    ("autogroup:tagged", Autogroup::Tagged),
    ("autogroup:self", Autogroup::SelfDevices),
    ("autogroup:internet", Autogroup::Internet),
    ("autogroup:danger-all", Autogroup::DangerAll),
    ("autogroup:shared", Autogroup::Shared),
    ("autogroup:owner", Autogroup::Role(Role::Owner)),
    ("autogroup:admin", Autogroup::Role(Role::Admin)),
    ("autogroup:it-admin", Autogroup::Role(Role::ItAdmin)),
    (
        "autogroup:network-admin",
        Autogroup::Role(Role::NetworkAdmin),
    ),
    (
        "autogroup:billing-admin",
        Autogroup::Role(Role::BillingAdmin),
    ),
    ("autogroup:auditor", Autogroup::Role(Role::Auditor)),
];

impl Autogroup {
    /// Its name in a policy.
    #[must_use]
    pub fn name(self) -> &'static str {
        AUTOGROUPS
            .iter()
            .find(|(_, it)| *it == self)
            .map_or("autogroup:member", |(name, _)| name)
    }

    /// The autogroup of this name, `autogroup:` included.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        AUTOGROUPS
            .iter()
            .find(|(it, _)| *it == name)
            .map(|(_, autogroup)| *autogroup)
    }
}

/// Where a selector stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Position {
    Source,
    Destination,
    SshSource,
    SshDestination,
    Target,
    Approver,
    Owner,
}

impl Position {
    /// What is refused with, whom it speaks of, and what may stand here.
    fn refusal(self) -> (Cause, &'static str, &'static str) {
        match self {
            Self::Source => (
                Cause::NotASource,
                "a source",
                "users, groups, tags, addresses, hosts, ipsets and most autogroups",
            ),
            Self::Destination => (
                Cause::NotADestination,
                "a destination",
                "*, users, groups, tags, addresses, hosts, ipsets and most autogroups",
            ),
            Self::SshSource => (
                Cause::NotASource,
                "a source of SSH",
                "users, groups, tags and autogroups of users or tagged devices",
            ),
            Self::SshDestination => (
                Cause::NotADestination,
                "a destination of SSH",
                "tags, users, autogroup:self, autogroup:member and autogroup:tagged",
            ),
            Self::Target => (
                Cause::NotATarget,
                "a target of attributes",
                "*, users, groups, tags, addresses, hosts, ipsets and autogroups of users or tagged devices",
            ),
            Self::Approver => (
                Cause::NotAnApprover,
                "an approver",
                "users, groups, tags and autogroups of users",
            ),
            Self::Owner => (
                Cause::NotAnOwner,
                "an owner of tags",
                "users, groups, tags and autogroups of users",
            ),
        }
    }

    fn allows(self, selector: &Selector) -> bool {
        use Autogroup as Auto;
        let people = matches!(
            selector,
            Selector::User(_)
                | Selector::Group(_)
                | Selector::Autogroup(Auto::Member | Auto::Role(_))
        );
        match self {
            Self::Source => !matches!(
                selector,
                Selector::Autogroup(Auto::SelfDevices | Auto::Internet)
            ),
            Self::Destination => !matches!(
                selector,
                Selector::UsersOf(_) | Selector::Autogroup(Auto::DangerAll | Auto::Shared)
            ),
            Self::SshSource => {
                people
                    || matches!(
                        selector,
                        Selector::UsersOf(_)
                            | Selector::Tag(_)
                            | Selector::Autogroup(Auto::Tagged | Auto::Shared)
                    )
            }
            Self::SshDestination => matches!(
                selector,
                Selector::User(_)
                    | Selector::Tag(_)
                    | Selector::Autogroup(Auto::SelfDevices | Auto::Member | Auto::Tagged)
            ),
            Self::Target => !matches!(
                selector,
                Selector::Autogroup(Auto::SelfDevices | Auto::Internet | Auto::DangerAll)
            ),
            Self::Approver => {
                people
                    || matches!(
                        selector,
                        Selector::Tag(_) | Selector::Autogroup(Auto::Tagged)
                    )
            }
            Self::Owner => people || matches!(selector, Selector::Tag(_)),
        }
    }
}

impl<'n> Reader<'n> {
    /// The selectors of a list.
    pub(super) fn selectors(
        &mut self,
        texts: &[Text<'n>],
        position: Position,
    ) -> Vec<Located<Selector>> {
        texts
            .iter()
            .filter_map(|text| self.selector(text, position))
            .collect()
    }

    /// A selector that may stand here.
    pub(super) fn selector(
        &mut self,
        text: &Text<'n>,
        position: Position,
    ) -> Option<Located<Selector>> {
        let text = text.trim();
        let selector = self.any_selector(&text)?;
        if position.allows(&selector) {
            return Some(text.located(selector));
        }
        let (cause, what, allowed) = position.refusal();
        let message = format!("{:?} is not valid as {what}", text.value);
        self.error_help(
            cause,
            &text.span,
            message,
            "not here",
            format!("here may stand {allowed}"),
        );
        None
    }

    /// A selector that exists, wherever it stands.
    fn any_selector(&mut self, text: &Text<'n>) -> Option<Selector> {
        let name = text.value;
        let prefix = name.split_once(':').map_or("", |(prefix, _)| prefix);
        match prefix {
            _ if name == "*" => Some(Selector::Any),
            "group" => self
                .known_group(text)
                .then(|| Selector::Group(name.to_owned())),
            "tag" => self.known_tag(text).then(|| Selector::Tag(name.to_owned())),
            "ipset" => self
                .known_ipset(text)
                .then(|| Selector::IpSet(name.to_owned())),
            "autogroup" => self.autogroup(text).map(Selector::Autogroup),
            "user" if name.starts_with("user:*@") => {
                let domain = text.part("user:*@".len()..name.len());
                self.known_domain(&domain)
                    .then(|| Selector::UsersOf(domain.value.to_owned()))
            }
            "svc" => {
                let message =
                    format!("{name:?} names a service, which is not supported by this server");
                let help = "name the nodes that run it, by tag for example";
                self.error_help(
                    Cause::Unsupported,
                    &text.span,
                    message,
                    "not supported",
                    help,
                );
                None
            }
            "posture" => {
                let message = format!("{name:?} is a posture, which does not stand for devices");
                let help = "put it into srcPosture of the rule";
                self.error_help(
                    Cause::Unsupported,
                    &text.span,
                    message,
                    "not a selector",
                    help,
                );
                None
            }
            _ if name.contains('@') && !name.contains([':', '/', ' ']) => {
                self.login(text).map(Selector::User)
            }
            _ => self.address(text),
        }
    }

    fn autogroup(&mut self, text: &Text<'n>) -> Option<Autogroup> {
        let found = Autogroup::named(text.value);
        if found.is_none() {
            let message = format!("there is no {}", text.value);
            let help = if text.value == "autogroup:nonroot" {
                "autogroup:nonroot only exists in users of SSH rules".to_owned()
            } else {
                let names = AUTOGROUPS.iter().map(|(name, _)| *name);
                match nearest(text.value, names.clone()) {
                    Some(near) => format!("did you mean {near}?"),
                    None => {
                        let names: Vec<_> =
                            names.filter(|name| *name != "autogroup:members").collect();
                        format!("there are: {}", names.join(", "))
                    }
                }
            };
            self.error_help(
                Cause::UnknownAutogroup,
                &text.span,
                message,
                "unknown autogroup",
                help,
            );
        }
        found
    }

    /// A host's name or an address, prefix or range.
    fn address(&mut self, text: &Text<'n>) -> Option<Selector> {
        if let Some(net) = self.names.host(text.value) {
            return Some(Selector::Host(text.value.to_owned(), net?));
        }
        match parse_address(text.value) {
            Some(Address::Prefix(net)) => Some(Selector::Prefix(self.without_host_bits(net, text))),
            Some(Address::Range(first, last)) => Some(Selector::Range(first, last)),
            None => {
                self.not_an_address(text);
                None
            }
        }
    }

    /// Reports something that is neither an address nor a host.
    pub(super) fn not_an_address(&mut self, text: &Text<'n>) {
        if self.names.hosts_broken {
            return;
        }
        let name = text.value;
        let (message, help) = if name.is_empty() {
            (
                "an empty name".to_owned(),
                "name a user, group, tag, address or host".to_owned(),
            )
        } else {
            let message = format!("{name:?} is neither an address nor the name of a host");
            (message, self.address_help(name))
        };
        self.error_help(
            Cause::InvalidAddress,
            &text.span,
            message,
            "names nothing",
            help,
        );
    }

    fn address_help(&self, name: &str) -> String {
        let near = self
            .suggests()
            .then(|| self.names.nearest_host(name))
            .flatten();
        let numeric = name.contains(['/', '.']) && name.starts_with(|c: char| c.is_ascii_digit());
        match near {
            Some(near) => format!("did you mean {near:?}?"),
            None if numeric => {
                "addresses look like 10.1.2.3, 10.1.0.0/16, 10.1.2.3-10.1.2.9, fd00::/64".to_owned()
            }
            None => "users have an @, others a prefix (group:, tag:, autogroup:, ipset:), \
                     hosts a line in hosts"
                .to_owned(),
        }
    }

    /// The prefix with zeroes behind its length, and a warning if there were none.
    pub(super) fn without_host_bits(&mut self, net: IpNet, text: &Text<'n>) -> IpNet {
        let trunc = net.trunc();
        if trunc != net {
            let message = format!("{:?} has bits set behind its length", text.value);
            let diagnostic = crate::diagnostic::Diagnostic::warning(
                Cause::HostBits,
                text.span.clone(),
                message,
                format!("read as {trunc}"),
            );
            self.report(diagnostic.help(format!(
                "write {trunc}, or {} for the single address",
                net.addr()
            )));
        }
        trunc
    }
}

/// What an address may be.
pub(super) enum Address {
    Prefix(IpNet),
    Range(IpAddr, IpAddr),
}

/// An address, a prefix or a range of addresses of one family.
pub(super) fn parse_address(text: &str) -> Option<Address> {
    if let Some((first, last)) = text.split_once('-') {
        let (first, last): (IpAddr, IpAddr) =
            (first.trim().parse().ok()?, last.trim().parse().ok()?);
        let ordered = first.is_ipv4() == last.is_ipv4() && first <= last;
        return ordered.then_some(Address::Range(first, last));
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|it| it.strip_suffix(']'))
        .unwrap_or(text);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Some(Address::Prefix(IpNet::from(address)));
    }
    text.parse().ok().map(Address::Prefix)
}
