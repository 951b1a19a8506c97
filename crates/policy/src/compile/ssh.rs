//! SSH rules (control.md 5.6, 8.8): who may open sessions on a node, as its SSH server is told.
//!
//! Two things are not what the file seems to say; both are what Tailscale's server answers. Rules
//! that ask (`check`) come before those that accept, whatever their order in the file, since the
//! first match decides. And a rule with `localpart:` is also told to its sources, about the other
//! devices of the same user.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use control_proto::tailcfg::{self, SshPolicy, SshPrincipal};

use super::identity::{Identity, is_of};
use crate::file::{Autogroup, Policy, Selector, SshAction, SshRule, SshUser};
use crate::tailnet::{Node, NodeId, UserId};

/// Where the node asks whether a session that must be checked may go on. It replaces the
/// variables; of the URL only the path counts (control.md 2.5).
pub(crate) const CHECK_URL: &str =
    "https://unused/machine/ssh/action/$SRC_NODE_ID/to/$DST_NODE_ID?local_user=$LOCAL_USER";

const ROOT: &str = "root";

/// The SSH rules of a policy with the devices that are their sources, kept up to date device by
/// device. Nodes with the same answer share it, and keep it while it stays the same.
#[derive(Debug, Default)]
pub(crate) struct Ssh {
    /// Sources of each rule.
    sources: Vec<BTreeMap<NodeId, Source>>,
    /// Answers so far, by what they are made of.
    answers: Mutex<HashMap<Vec<Part>, Arc<SshPolicy>>>,
}

/// A device that a rule has among its sources.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Source {
    /// Whose, unless it is tagged; with the login name.
    user: Option<(UserId, String)>,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    /// How often it is named: `autogroup:tagged` names a device once for each of its tags.
    copies: usize,
}

/// A rule as one node is told it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Part {
    rule: usize,
    sources: Sources,
}

/// Which of a rule's sources a node is told.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Sources {
    All,
    /// Devices of this user.
    OfUser(UserId),
    /// This device.
    Device(NodeId),
}

impl Clone for Ssh {
    fn clone(&self) -> Self {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        Self {
            sources: self.sources.clone(),
            answers: Mutex::new(answers.clone()),
        }
    }
}

impl Ssh {
    /// The rules of a policy, without sources so far.
    pub(crate) fn new(policy: &Policy) -> Self {
        Self {
            sources: vec![BTreeMap::new(); policy.ssh.len()],
            answers: Mutex::default(),
        }
    }

    /// Takes note of a node that is new, or that changed.
    pub(crate) fn put_node(&mut self, policy: &Policy, identity: &Identity<'_>, node: &Node) {
        for (index, rule) in policy.ssh.iter().enumerate() {
            let source = source(policy, rule, identity, node);
            self.set(index, node.id, source);
        }
    }

    /// Forgets a node.
    pub(crate) fn remove_node(&mut self, id: NodeId) {
        for index in 0..self.sources.len() {
            self.set(index, id, None);
        }
    }

    fn set(&mut self, rule: usize, id: NodeId, source: Option<Source>) {
        let sources = &mut self.sources[rule];
        if sources.get(&id) == source.as_ref() {
            return;
        }
        match source {
            Some(source) => sources.insert(id, source),
            None => sources.remove(&id),
        };
        self.answers
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|parts, _| parts.iter().all(|part| part.rule != rule));
    }

    /// Who may open sessions on a node that is told these rules, see [`Ssh::parts`].
    pub(crate) fn policy(&self, policy: &Policy, parts: &[Part]) -> Arc<SshPolicy> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = answers.get(parts) {
            return Arc::clone(answer);
        }
        let told = parts
            .iter()
            .filter(|part| self.sources_of(**part).next().is_some());
        let rules = told.flat_map(|part| self.rules(policy, *part));
        let answer = Arc::new(SshPolicy {
            rules: rules.collect(),
        });
        answers.insert(parts.to_vec(), Arc::clone(&answer));
        answer
    }

    /// The rules that a node is told if they have sources, those that ask first. Depends on nothing
    /// but the node itself, its owner, and the policy.
    pub(crate) fn parts(&self, policy: &Policy, identity: &Identity<'_>, id: NodeId) -> Vec<Part> {
        let user = identity.user().and_then(|user| user.id);
        let mut parts = Vec::new();
        for (index, rule) in policy.ssh.iter().enumerate() {
            let part = |sources| Part {
                rule: index,
                sources,
            };
            let destinations = || rule.destinations.iter().map(|it| &it.value);
            let is_self = |it: &&Selector| **it == Selector::Autogroup(Autogroup::SelfDevices);
            if destinations().any(|it| is_self(&it))
                && let Some(user) = user
            {
                parts.push(part(Sources::OfUser(user)));
            }
            let mut others = destinations().filter(|it| !is_self(it)).peekable();
            if others.peek().is_none() {
                continue;
            }
            let is_destination = others.any(|it| !identity.covered_by(policy, it).is_none());
            if is_destination {
                parts.push(part(Sources::All));
            } else if has_local_part(rule) && self.sources[index].contains_key(&id) {
                parts.push(part(user.map_or(Sources::Device(id), Sources::OfUser)));
            }
        }
        parts.sort_by_key(|part| policy.ssh[part.rule].action == SshAction::Accept);
        parts
    }

    fn sources_of(&self, part: Part) -> impl Iterator<Item = (NodeId, &Source)> {
        self.sources[part.rule]
            .iter()
            .map(|(id, source)| (*id, source))
            .filter(move |(id, source)| match part.sources {
                Sources::All => true,
                Sources::OfUser(user) => source.user.as_ref().is_some_and(|it| it.0 == user),
                Sources::Device(device) => *id == device,
            })
    }

    /// A rule on the wire: one, but with `localpart:` one for each user among its sources, followed
    /// by another that maps that user's name.
    fn rules(&self, policy: &Policy, part: Part) -> Vec<tailcfg::SshRule> {
        let rule = &policy.ssh[part.rule];
        if !has_local_part(rule) {
            let sources = self.sources_of(part).map(|(_, source)| source);
            return vec![on_the_wire(rule, ssh_users(rule), sources)];
        }
        let mut by_user: BTreeMap<_, (Option<&str>, Vec<&Source>)> = BTreeMap::new();
        for (_, source) in self.sources_of(part) {
            let user = source.user.as_ref();
            // Tagged devices come last.
            let key = (user.is_none(), user.map(|(id, _)| *id));
            let (login, sources) = by_user.entry(key).or_default();
            *login = user.map(|(_, login)| login.as_str());
            sources.push(source);
        }
        let mut rules = Vec::new();
        for (login, sources) in by_user.into_values() {
            let mapped = login.and_then(|login| local_part(rule, login));
            rules.push(on_the_wire(rule, ssh_users(rule), sources.iter().copied()));
            if let Some(name) = mapped {
                let users = BTreeMap::from([(name.to_owned(), name.to_owned())]);
                rules.push(on_the_wire(rule, users, sources.iter().copied()));
            }
        }
        rules
    }
}

/// A node as a source of a rule, if it is one.
fn source(policy: &Policy, rule: &SshRule, identity: &Identity<'_>, node: &Node) -> Option<Source> {
    let selectors = || rule.sources.iter().map(|source| &source.value);
    let is_source = selectors().any(|it| !identity.covered_by(policy, it).is_none());
    let by_tags = selectors().any(|it| *it == Selector::Autogroup(Autogroup::Tagged));
    is_source.then(|| Source {
        user: identity
            .user()
            .and_then(|user| Some((user.id?, user.login.to_owned()))),
        v4: node.v4,
        v6: node.v6,
        copies: if by_tags {
            identity.tag_count().max(1)
        } else {
            1
        },
    })
}

pub(crate) fn has_local_part(rule: &SshRule) -> bool {
    let mut users = rule.users.iter();
    users.any(|user| matches!(user.value, SshUser::LocalPart { .. }))
}

/// The local part of a login, if `localpart:` of its domain is among the users of the rule.
pub(crate) fn local_part<'a>(rule: &SshRule, login: &'a str) -> Option<&'a str> {
    let applies = rule.users.iter().any(|user| match &user.value {
        SshUser::LocalPart { domain } => is_of(domain, login),
        SshUser::Name(_) | SshUser::NonRoot => false,
    });
    let (local, _) = login.rsplit_once('@')?;
    applies.then_some(local)
}

/// Requested user to local user, apart from local parts. Root is always mentioned.
fn ssh_users(rule: &SshRule) -> BTreeMap<String, String> {
    let mut users = BTreeMap::from([(ROOT.to_owned(), String::new())]);
    for user in &rule.users {
        match &user.value {
            SshUser::Name(name) => users.insert(name.clone(), name.clone()),
            SshUser::NonRoot => users.insert("*".to_owned(), "=".to_owned()),
            SshUser::LocalPart { .. } => None,
        };
    }
    users
}

fn on_the_wire<'a>(
    rule: &SshRule,
    ssh_users: BTreeMap<String, String>,
    sources: impl IntoIterator<Item = &'a Source>,
) -> tailcfg::SshRule {
    let mut addresses: Vec<String> = sources
        .into_iter()
        .flat_map(|source| {
            let both = [source.v4.to_string(), source.v6.to_string()];
            std::iter::repeat_n(both, source.copies).flatten()
        })
        .collect();
    addresses.sort_unstable();
    let principals = addresses.into_iter().map(|node_ip| SshPrincipal {
        node_ip,
        ..SshPrincipal::default()
    });
    tailcfg::SshRule {
        principals: principals.collect(),
        ssh_users,
        action: Some(action(rule.action)),
        accept_env: rule.accept_env.clone(),
        ..tailcfg::SshRule::default()
    }
}

/// For how long a confirmation counts is the server's business: nodes ask each time.
fn action(action: SshAction) -> tailcfg::SshAction {
    match action {
        SshAction::Accept => tailcfg::SshAction {
            accept: true,
            allow_agent_forwarding: true,
            allow_local_port_forwarding: true,
            allow_remote_port_forwarding: true,
            ..tailcfg::SshAction::default()
        },
        SshAction::Check { .. } => tailcfg::SshAction {
            hold_and_delegate: CHECK_URL.to_owned(),
            ..tailcfg::SshAction::default()
        },
    }
}

#[cfg(test)]
mod tests;
