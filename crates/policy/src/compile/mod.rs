//! A policy in force for a tailnet: what each node is told, kept up to date node by node.
//!
//! ```text
//! Policy ──rules, select──► Program          what rules and selectors mean, without nodes
//! Node ──class──► Class                      what selectors cover of it; equal for many nodes
//! Program + Class ──reduce──► Template       the filter of a class, without own addresses
//! Template + Node ──filter──► Filter         what is sent
//! Class × Class ──views, routes──►           who sees whom, and which routes
//! ```
//!
//! Rules see nodes only through the selectors that cover them, so nodes that the same selectors
//! cover form a [class](class::Class) and are compiled together. A change of one node moves it
//! between classes, edits the source lists that it is in, and drops the templates that name those.
//!
//! Answers are shared and stable: as long as a node's answer stays the same, so does the `Arc`
//! that holds it, and nodes with the same answer share it. Callers compare with `Arc::ptr_eq`.
//! A clone is cheap, so that two states can be compared.

mod approvers;
mod attributes;
pub(crate) mod bits;
mod class;
mod filter;
pub(crate) mod identity;
mod index;
pub(crate) mod posture;
mod reduce;
mod routes;
mod rules;
mod select;
mod sources;
pub(crate) mod ssh;
#[cfg(test)]
mod tests;
mod views;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use control_proto::tailcfg::SshPolicy;
use ipnet::{IpNet, Ipv4Net};

use crate::Policy;
use crate::tailnet::{Node, NodeId, Owner, User, UserId};
use class::{Class, Key};
pub use filter::Filter;
use filter::{Template, Templates};
use identity::Identity;
use index::Entry;
use routes::Route;
use rules::Program;
use select::Cover;
use sources::List;
use ssh::Ssh;
pub use views::{OwnView, PeerView};

/// A policy, the users and nodes it is in force for, and what follows from them.
#[derive(Clone, Debug)]
pub struct Network {
    policy: Arc<Policy>,
    program: Arc<Program>,
    users: BTreeMap<UserId, User>,
    nodes: BTreeMap<NodeId, Arc<Entry>>,
    /// Untagged devices by their user.
    devices: BTreeMap<UserId, BTreeSet<NodeId>>,
    /// What selectors cover of the devices of an owner, as far as the owner decides it.
    owners: HashMap<Owner, Arc<[Cover]>>,
    /// Classes by number, with holes.
    classes: Vec<Option<Class>>,
    /// Numbers of no class.
    holes: Vec<usize>,
    class_numbers: HashMap<Arc<Key>, usize>,
    /// Whom no rule knows: neither reaches nor sees anybody.
    nobody: Class,
    /// Source lists of the rules.
    lists: Vec<List>,
    /// Approved routes.
    routes: BTreeMap<IpNet, Route>,
    primaries: BTreeMap<IpNet, NodeId>,
    ssh: Ssh,
    templates: Arc<Templates>,
    /// The filter of nobody.
    deny: Arc<Filter>,
}

impl Network {
    /// Puts a policy in force.
    #[must_use]
    pub fn new(
        policy: Arc<Policy>,
        users: impl IntoIterator<Item = User>,
        nodes: impl IntoIterator<Item = Node>,
    ) -> Self {
        let mut network = Self::without_nodes(policy, Arc::default());
        network.users = users.into_iter().map(|user| (user.id, user)).collect();
        nodes.into_iter().for_each(|node| network.put_node(node));
        network
    }

    fn without_nodes(policy: Arc<Policy>, templates: Arc<Templates>) -> Self {
        let program = Program::new(&policy);
        let deny = templates.intern(Template::new(Vec::new()));
        let nobody = Class::nobody(&program, Arc::clone(&deny));
        Self {
            lists: (0..program.lists.len())
                .map(|id| List::new(&program, id))
                .collect(),
            program: Arc::new(program),
            users: BTreeMap::new(),
            nodes: BTreeMap::new(),
            devices: BTreeMap::new(),
            owners: HashMap::new(),
            classes: Vec::new(),
            holes: Vec::new(),
            class_numbers: HashMap::new(),
            nobody,
            routes: BTreeMap::new(),
            primaries: BTreeMap::new(),
            ssh: Ssh::new(&policy),
            deny: deny.filter(Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
            templates,
            policy,
        }
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Replaces the policy. Nodes whose filter stays the same keep its `Arc`.
    pub fn set_policy(&mut self, policy: Arc<Policy>) {
        let mut new = Self::without_nodes(policy, Arc::clone(&self.templates));
        new.users = std::mem::take(&mut self.users);
        new.primaries = std::mem::take(&mut self.primaries);
        for entry in self.nodes.values() {
            new.place(entry.node.clone(), entry.last_filter());
        }
        *self = new;
    }

    /// All users.
    pub fn users(&self) -> impl Iterator<Item = &User> {
        self.users.values()
    }

    /// All nodes, by number.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().map(|entry| &entry.node)
    }

    /// The node with this number.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id).map(|entry| &entry.node)
    }

    /// What is sent to the node as its packet filter. Unknown nodes get the empty filter: deny all.
    #[must_use]
    pub fn filter(&self, viewer: NodeId) -> Arc<Filter> {
        match self.nodes.get(&viewer) {
            Some(entry) => entry.filter(self.template(self.class(entry))),
            None => Arc::clone(&self.deny),
        }
    }

    fn template<'a>(&self, class: &'a Class) -> &'a Arc<Template> {
        let new = || self.templates.intern(reduce::template(self, class));
        class.template.get_or_init(new)
    }

    /// Who may open SSH sessions on the node.
    #[must_use]
    pub fn ssh(&self, id: NodeId) -> Arc<SshPolicy> {
        self.nodes.get(&id).map_or_else(Arc::default, |entry| {
            self.ssh.policy(&self.policy, &entry.ssh)
        })
    }

    /// Of `advertised`, what the policy approves for a node of this owner (control.md 8.7). Exit
    /// routes come both or not at all.
    #[must_use]
    pub fn auto_approved(&self, owner: &Owner, advertised: &[IpNet]) -> Vec<IpNet> {
        approvers::auto_approved(&self.policy, &self.identity(owner), advertised)
    }

    /// Where a new node of this owner gets its IPv4 address from; empty = anywhere.
    #[must_use]
    pub fn ip_pools(&self, owner: &Owner) -> Vec<Ipv4Net> {
        attributes::ip_pools(&self.policy, &self.identity(owner))
    }

    /// May this user give a node this tag (`tagOwners`)? `tagged_as`: the tags that the node, or
    /// the auth key that it uses, has already.
    #[must_use]
    pub fn may_tag(&self, user: UserId, tagged_as: &[String], tag: &str) -> bool {
        let identity = self.identity_of_user(user);
        approvers::may_tag(&self.policy, &identity, tagged_as, tag)
    }

    fn identity<'a>(&'a self, owner: &'a Owner) -> Identity<'a> {
        Identity::of_owner(&self.policy, owner, |id| self.users.get(&id))
    }

    fn identity_of_user(&self, id: UserId) -> Identity<'_> {
        match self.users.get(&id) {
            Some(user) => Identity::of_user(&self.policy, user),
            None => Identity::of_tags([]),
        }
    }

    fn class(&self, entry: &Entry) -> &Class {
        let class = self.classes.get(entry.class).and_then(Option::as_ref);
        debug_assert!(class.is_some(), "a class exists as long as nodes are in it");
        class.unwrap_or(&self.nobody)
    }
}
