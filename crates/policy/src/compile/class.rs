//! Classes of nodes: what rules cannot tell apart is compiled once.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;

use super::bits::Bits;
use super::filter::Template;
use super::rules::{GroupId, ListKey, Program, Rule};
use super::select::{Cover, Kind, SelectorId};
use crate::tailnet::{NodeId, UserId};

/// All that rules can ask of a node. Nodes with equal keys get the same answers, apart from their
/// own addresses.
#[derive(Debug, Default, Eq, Hash, PartialEq)]
pub(crate) struct Key {
    /// What each selector covers of it.
    pub(crate) covers: Box<[Cover]>,
    /// Which posture requirements it fulfils.
    pub(crate) admits: Box<[bool]>,
    /// Whose untagged devices they are, where that matters (`autogroup:self`).
    pub(crate) user: Option<UserId>,
    /// Subnets that it routes.
    pub(crate) routes: BTreeSet<IpNet>,
    /// An exit node.
    pub(crate) exit: bool,
}

impl Key {
    /// What the selectors cover together.
    pub(crate) fn cover(&self, selectors: &[SelectorId]) -> Cover {
        let covers = selectors.iter().map(|id| self.covers[*id]);
        covers.fold(Cover::NOTHING, Cover::or)
    }

    /// As a source of a rule. Of a rule that asks for a posture only the node itself can be one,
    /// not what is behind it.
    pub(crate) fn source_cover(&self, rule: &Rule) -> Cover {
        let cover = self.cover(&rule.sources);
        match rule.posture {
            None => cover.only(Cover::ADDRESSES.or(Cover::ROUTE)),
            Some(posture) if self.admits[posture] => cover.only(Cover::ADDRESSES),
            Some(_) => Cover::NOTHING,
        }
    }

    /// Is it a destination of the rule? Through a given router only if it is one.
    fn is_target(&self, program: &Program, rule: &Rule) -> bool {
        let cover = self.cover(&rule.targets);
        if rule.via.is_empty() {
            return !cover.is_nothing();
        }
        let is_router = !self.cover(&rule.via).is_nothing() && !rule.ports.is_empty();
        is_router
            && rule
                .targets
                .iter()
                .any(|id| self.is_via_target(program, *id))
    }

    /// Does the node route what the selector means?
    pub(crate) fn is_via_target(&self, program: &Program, id: SelectorId) -> bool {
        let cover = self.covers[id];
        match program.table.kind(id) {
            Kind::Any { .. } | Kind::Literal(_) => {
                cover.has(Cover::ROUTE) || cover.has(Cover::EXIT)
            }
            Kind::Internet => cover.has(Cover::EXIT),
            Kind::Owner(_) | Kind::SelfDevices => false,
        }
    }

    /// Which of its addresses a list of sources has because it covers the node, not because it
    /// names the address.
    fn listed(&self, program: &Program, (selectors, posture): &ListKey) -> Cover {
        let by_kind = |id: &SelectorId| match (posture, program.table.kind(*id)) {
            (Some(_), _) | (None, Kind::Owner(_)) => self.covers[*id],
            (None, _) => Cover::NOTHING,
        };
        if posture.is_some_and(|posture| !self.admits[posture]) {
            return Cover::NOTHING;
        }
        let cover = selectors
            .iter()
            .map(by_kind)
            .fold(Cover::NOTHING, Cover::or);
        cover.only(Cover::ADDRESSES)
    }
}

/// Nodes with the same key.
#[derive(Clone, Debug)]
pub(crate) struct Class {
    pub(crate) key: Arc<Key>,
    /// Rules that have them among their sources, themselves or what is behind them.
    pub(crate) from: Bits,
    /// Rules that let somebody reach them, or what is behind them.
    pub(crate) to: Bits,
    /// Lists that have them, with the addresses that they have.
    pub(crate) lists: Vec<(GroupId, Cover)>,
    pub(crate) members: BTreeSet<NodeId>,
    /// Their filter, once somebody asked.
    pub(crate) template: OnceLock<Arc<Template>>,
    /// All nodes that they see, themselves included if they see each other.
    pub(crate) peers: OnceLock<Arc<[NodeId]>>,
}

impl Class {
    pub(crate) fn new(program: &Program, key: Arc<Key>) -> Self {
        let lists = program.lists.iter().map(|list| key.listed(program, list));
        let lists = lists.enumerate().filter(|(_, cover)| !cover.is_nothing());
        Self {
            from: program.which(|rule| !key.source_cover(rule).is_nothing()),
            to: program.which(|rule| key.is_target(program, rule)),
            lists: lists.collect(),
            members: BTreeSet::new(),
            template: OnceLock::new(),
            peers: OnceLock::new(),
            key,
        }
    }

    /// The class of nodes that no rule knows, whose filter is `deny`.
    pub(crate) fn nobody(program: &Program, deny: Arc<Template>) -> Self {
        let none = Bits::below(program.rules.len());
        Self {
            key: Arc::default(),
            from: none.clone(),
            to: none,
            lists: Vec::new(),
            members: BTreeSet::new(),
            template: OnceLock::from(deny),
            peers: OnceLock::new(),
        }
    }

    /// Do nodes of this class and nodes of the other know each other?
    pub(crate) fn sees(&self, program: &Program, other: &Self) -> bool {
        self.from.meets(&other.to)
            || other.from.meets(&self.to)
            || (self.key.user.is_some()
                && self.key.user == other.key.user
                && (self.from.meets(&program.self_rules) || other.from.meets(&program.self_rules)))
    }
}
