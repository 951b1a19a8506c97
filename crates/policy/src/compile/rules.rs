//! A policy's rules, prepared: what does not depend on users and nodes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use control_proto::tailcfg::CapMap;
use ipnet::IpNet;

use super::bits::Bits;
use super::posture::{self, Attributes};
use super::select::{Kind, SelectorId, Table};
use crate::file::{Policy, ProtoPorts, Rule as FileRule, Selector};

/// Capabilities that need one in the other direction as well: who may use a drive or a relay is
/// told who offers it (control.md 5.9).
const COMPANIONS: [(&str, &str); 2] = [
    ("tailscale.com/cap/drive", "tailscale.com/cap/drive-sharer"),
    ("tailscale.com/cap/relay", "tailscale.com/cap/relay-target"),
];

/// Number of a list of sources.
pub(crate) type GroupId = usize;

/// A rule.
#[derive(Debug)]
pub(crate) struct Rule {
    /// Who.
    pub(crate) sources: Vec<SelectorId>,
    /// The same as a list.
    pub(crate) source_list: GroupId,
    /// Posture requirement of the sources, a number of [`Program::postures`].
    pub(crate) posture: Option<usize>,
    /// May reach what.
    pub(crate) targets: Vec<SelectorId>,
    /// On which ports, apart by protocols.
    pub(crate) ports: Vec<Ports>,
    /// And may do what there.
    pub(crate) app: Option<Arc<Capabilities>>,
    /// What the targets may do with the sources because of that.
    pub(crate) companions: Vec<Arc<Capabilities>>,
    /// The targets as a list, for the companions.
    pub(crate) target_list: GroupId,
    /// Tags of the routers that must be used; empty = any.
    pub(crate) via: Vec<SelectorId>,
    /// `autogroup:self`, if it is among the targets.
    pub(crate) self_target: Option<SelectorId>,
}

/// Ports of some protocols.
#[derive(Debug)]
pub(crate) struct Ports {
    /// IP protocol numbers; empty = TCP, UDP, ICMP and ICMPv6.
    pub(crate) protocols: Arc<[u8]>,
    /// Targets with the first and the last port, in the order of the file.
    pub(crate) targets: Vec<(SelectorId, u16, u16)>,
}

/// Capabilities and their values.
#[derive(Debug)]
pub(crate) struct Capabilities {
    /// For programs.
    pub(crate) map: CapMap,
    /// The values as they were written.
    pub(crate) json: Box<str>,
}

impl PartialEq for Capabilities {
    fn eq(&self, other: &Self) -> bool {
        self.json == other.json
    }
}

impl Eq for Capabilities {}

/// A list of sources: selectors, and the posture that nodes must have.
pub(crate) type ListKey = (Vec<SelectorId>, Option<usize>);

/// The rules of a policy.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) table: Table,
    pub(crate) rules: Vec<Rule>,
    /// What is listed.
    pub(crate) lists: Vec<ListKey>,
    /// Which rules have `autogroup:self` as a target.
    pub(crate) self_rules: Bits,
    /// Which rules have companions.
    pub(crate) companion_rules: Bits,
    /// Which rules let their sources use any exit node.
    pub(crate) exit_rules: Bits,
    /// Which rules let their sources use exit nodes with a tag.
    pub(crate) exit_via_rules: Bits,
    /// For each requirement a rule that has it, by its index in the policy.
    postures: Vec<usize>,
}

impl Program {
    pub(crate) fn new(policy: &Policy) -> Self {
        let mut builder = Builder::default();
        let rules: Vec<Rule> = match &policy.rules {
            Some(rules) => {
                let rules = rules.iter().enumerate();
                rules
                    .map(|(index, rule)| builder.rule(policy, index, rule))
                    .collect()
            }
            None => vec![builder.allow_all(policy)],
        };
        let which = |holds: &dyn Fn(&Rule) -> bool| {
            let mut bits = Bits::below(rules.len());
            let found = rules.iter().enumerate().filter(|(_, rule)| holds(rule));
            found.for_each(|(index, _)| bits.insert(index));
            bits
        };
        let table = builder.table;
        let reaches_internet = |rule: &Rule| {
            let mut targets = rule.ports.iter().flat_map(|ports| &ports.targets);
            targets.any(|(target, _, _)| match table.kind(*target) {
                Kind::Any { .. } | Kind::Internet => true,
                Kind::Literal(literal) => literal.public,
                Kind::Owner(_) | Kind::SelfDevices => false,
            })
        };
        let self_rules = which(&|rule| rule.self_target.is_some());
        let companion_rules = which(&|rule| !rule.companions.is_empty());
        let exit_rules = which(&|rule| rule.via.is_empty() && reaches_internet(rule));
        let exit_via_rules = which(&|rule| !rule.via.is_empty() && reaches_internet(rule));
        let (lists, postures) = (builder.lists, builder.postures);
        Self {
            table,
            rules,
            lists,
            self_rules,
            companion_rules,
            exit_rules,
            exit_via_rules,
            postures,
        }
    }

    /// Which posture requirements a node with these attributes fulfils.
    pub(crate) fn admits(&self, policy: &Policy, attributes: &Attributes) -> Box<[bool]> {
        let rules = policy.rules.as_deref().unwrap_or_default();
        let admits = |index: &usize| posture::admits(policy, &rules[*index], attributes);
        self.postures.iter().map(admits).collect()
    }

    /// Rules whose sources include some of a subnet.
    pub(crate) fn sources_in(&self, net: &IpNet) -> Bits {
        // Nobody knows what devices behind a router are like.
        self.which(|rule| rule.posture.is_none() && self.any_covers(&rule.sources, net))
    }

    /// Rules without `via` whose targets include some of a subnet.
    pub(crate) fn targets_in(&self, net: &IpNet) -> Bits {
        self.which(|rule| rule.via.is_empty() && self.any_covers(&rule.targets, net))
    }

    /// Rules with `via` whose targets include some of a subnet.
    pub(crate) fn via_targets_in(&self, net: &IpNet) -> Bits {
        self.which(|rule| {
            let ports = !rule.ports.is_empty();
            ports && !rule.via.is_empty() && self.any_covers(&rule.targets, net)
        })
    }

    fn any_covers(&self, selectors: &[SelectorId], net: &IpNet) -> bool {
        selectors.iter().any(|id| self.table.covers_net(*id, net))
    }

    /// The rules for which something holds.
    pub(crate) fn which(&self, holds: impl Fn(&Rule) -> bool) -> Bits {
        let mut bits = Bits::below(self.rules.len());
        for (index, rule) in self.rules.iter().enumerate() {
            if holds(rule) {
                bits.insert(index);
            }
        }
        bits
    }
}

#[derive(Default)]
struct Builder {
    table: Table,
    lists: Vec<ListKey>,
    list_ids: HashMap<ListKey, GroupId>,
    postures: Vec<usize>,
    posture_ids: HashMap<Vec<String>, usize>,
}

impl Builder {
    fn rule(&mut self, policy: &Policy, index: usize, rule: &FileRule) -> Rule {
        let posture = self.posture(policy, index, rule);
        let sources = self.selectors(policy, rule.sources.iter().map(|it| &it.value));
        let destinations = rule.targets.iter().map(|it| &it.destination.value);
        let targets = self.selectors(policy, destinations);
        let is_self = |id: &SelectorId| *self.table.kind(*id) == Kind::SelfDevices;
        let self_target = targets.iter().copied().find(is_self);
        let listed = targets.iter().filter(|id| !is_self(id)).copied().collect();
        let via: Vec<_> = rule
            .via
            .iter()
            .map(|tag| Selector::Tag(tag.value.clone()))
            .collect();
        let app = (!rule.app.is_empty() && via.is_empty()).then(|| {
            let values = |values: &Vec<Box<serde_json::value::RawValue>>| {
                let values = values.iter().map(|raw| raw.get());
                format!("[{}]", values.collect::<Vec<_>>().join(","))
            };
            capabilities(
                rule.app
                    .iter()
                    .map(|(name, it)| (name.as_str(), values(it))),
            )
        });
        let companions = COMPANIONS
            .iter()
            .filter(|(name, _)| app.is_some() && rule.app.contains_key(*name))
            .map(|(_, companion)| capabilities([(*companion, "null".to_owned())]));
        Rule {
            source_list: self.list((sources.clone(), posture)),
            target_list: self.list((listed, None)),
            via: self.selectors(policy, &via),
            ports: self.ports(policy, rule),
            companions: companions.collect(),
            sources,
            targets,
            posture,
            app,
            self_target,
        }
    }

    /// What is in force without a file, or with one that has no rules.
    fn allow_all(&mut self, policy: &Policy) -> Rule {
        let any = self.selectors(policy, [&Selector::Any]);
        let list = self.list((any.clone(), None));
        let all = Ports {
            protocols: [].into(),
            targets: any.iter().map(|id| (*id, 0, u16::MAX)).collect(),
        };
        Rule {
            sources: any.clone(),
            source_list: list,
            posture: None,
            targets: any,
            ports: vec![all],
            app: None,
            companions: Vec::new(),
            target_list: list,
            via: Vec::new(),
            self_target: None,
        }
    }

    /// Sorted, each once.
    fn selectors<'a>(
        &mut self,
        policy: &Policy,
        selectors: impl IntoIterator<Item = &'a Selector>,
    ) -> Vec<SelectorId> {
        let mut ids = Vec::new();
        for selector in selectors {
            ids.extend_from_slice(self.table.intern(policy, selector));
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    fn list(&mut self, key: ListKey) -> GroupId {
        let lists = &mut self.lists;
        *self.list_ids.entry(key).or_insert_with_key(|key| {
            lists.push(key.clone());
            lists.len() - 1
        })
    }

    fn posture(&mut self, policy: &Policy, index: usize, rule: &FileRule) -> Option<usize> {
        if !posture::matters(policy, rule) {
            return None;
        }
        let key = rule.src_posture.iter().map(|it| it.value.clone()).collect();
        let postures = &mut self.postures;
        let id = self.posture_ids.entry(key).or_insert_with(|| {
            postures.push(index);
            postures.len() - 1
        });
        Some(*id)
    }

    fn ports(&mut self, policy: &Policy, rule: &FileRule) -> Vec<Ports> {
        let mut by_protocols: Vec<Ports> = Vec::new();
        for target in &rule.targets {
            for id in self.table.intern(policy, &target.destination.value) {
                for ports in &target.ports {
                    let ProtoPorts {
                        protocols,
                        first,
                        last,
                    } = &ports.value;
                    let same = |it: &Ports| *it.protocols == **protocols;
                    let place = by_protocols.iter().position(same).unwrap_or_else(|| {
                        let protocols = protocols.as_slice().into();
                        by_protocols.push(Ports {
                            protocols,
                            targets: Vec::new(),
                        });
                        by_protocols.len() - 1
                    });
                    by_protocols[place].targets.push((*id, *first, *last));
                }
            }
        }
        by_protocols
    }
}

/// Capabilities whose values are given as JSON: an array or null.
fn capabilities<'a>(values: impl IntoIterator<Item = (&'a str, String)>) -> Arc<Capabilities> {
    let values: BTreeMap<&str, String> = values.into_iter().collect();
    let map = values.iter().map(|(name, json)| {
        // The reader has parsed it once already; null stands for a flag.
        (
            (*name).to_owned(),
            serde_json::from_str(json).unwrap_or_default(),
        )
    });
    let map = map.collect();
    let members = values
        .iter()
        .map(|(name, json)| format!("{}:{json}", quoted(name)));
    let json = format!("{{{}}}", members.collect::<Vec<_>>().join(",")).into();
    Arc::new(Capabilities { map, json })
}

/// A JSON string.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
