//! The filter of a class of nodes: of each rule what concerns them (control.md 8.4, per-node
//! reduction).

use std::sync::Arc;

use super::Network;
use super::class::{Class, Key};
use super::filter::{Address, Part, Template, What};
use super::rules::{Capabilities, Program, Rule};
use super::select::{Cover, INTERNET, Kind, SelectorId};
use super::sources::SourceList;

/// Makes the filter of a class.
pub(super) fn template(network: &Network, class: &Class) -> Template {
    let program = &*network.program;
    let mut parts = Parts::default();
    // Rules that concern the class as a target, or, by their companions, as a source.
    let own_user = class.key.user;
    let mut concerned = class.to.or(&class.from.and(&program.companion_rules));
    if own_user.is_some() {
        concerned.add(&program.self_rules);
    }
    for index in concerned.iter() {
        let rule = &program.rules[index];
        if class.to.contains(index) && !rule.sources.is_empty() {
            let sources = network.list(rule.source_list);
            parts.rule(program, rule, &class.key, sources);
        }
        let own_devices = own_user.filter(|_| rule.self_target.is_some());
        let own_devices = own_devices.map(|user| network.devices_of(user, index));
        if let Some(own_devices) = own_devices.as_ref().filter(|list| !list.is_empty()) {
            parts.own_devices(rule, own_devices);
        }
        if class.from.contains(index) {
            let to = companion_addresses(program, rule, &class.key);
            for companion in &rule.companions {
                let others = network.list(rule.target_list);
                if !others.is_empty() && !to.is_empty() {
                    parts.grant(others, vec![(to.clone(), companion)]);
                }
                // Whoever is not a source of the rule is not among the devices either.
                if let Some(own_devices) = &own_devices {
                    let to = vec![Address::V4, Address::V6];
                    parts.grant(Arc::clone(own_devices), vec![(to, companion)]);
                }
            }
        }
    }
    Template::new(parts.0)
}

#[derive(Default)]
struct Parts(Vec<Part>);

impl Parts {
    /// What sources may do with the class, apart from the devices of its own user.
    fn rule(&mut self, program: &Program, rule: &Rule, key: &Key, sources: Arc<SourceList>) {
        for ports in &rule.ports {
            let mut targets = Vec::new();
            for (id, first, last) in &ports.targets {
                for address in addresses(program, rule, key, *id) {
                    targets.push((address, *first, *last));
                }
            }
            self.ports(&sources, &ports.protocols, targets);
        }
        if let Some(app) = &rule.app {
            let grants = rule
                .targets
                .iter()
                .map(|id| (granted(program, key, *id), app));
            self.grant(sources, grants.filter(|(to, _)| !to.is_empty()).collect());
        }
    }

    /// What devices of the user may do with each other.
    fn own_devices(&mut self, rule: &Rule, sources: &Arc<SourceList>) {
        let is_self = |id: SelectorId| rule.self_target == Some(id);
        for ports in &rule.ports {
            let targets = ports.targets.iter().filter(|(id, _, _)| is_self(*id));
            let targets = targets.flat_map(|(_, first, last)| {
                [(Address::V4, *first, *last), (Address::V6, *first, *last)]
            });
            self.ports(sources, &ports.protocols, targets.collect());
        }
        if let Some(app) = &rule.app {
            let to = vec![Address::V4, Address::V6];
            self.grant(Arc::clone(sources), vec![(to, app)]);
        }
    }

    /// Rules with equal sources and protocols become one.
    fn ports(
        &mut self,
        sources: &Arc<SourceList>,
        protocols: &Arc<[u8]>,
        targets: Vec<(Address, u16, u16)>,
    ) {
        if targets.is_empty() || sources.is_empty() {
            return;
        }
        for part in &mut self.0 {
            if let What::Ports(its, list) = &mut part.what
                && its == protocols
                && part.sources == *sources
            {
                list.extend(targets);
                return;
            }
        }
        let what = What::Ports(Arc::clone(protocols), targets);
        self.0.push(Part {
            sources: Arc::clone(sources),
            what,
        });
    }

    fn grant(&mut self, sources: Arc<SourceList>, grants: Vec<(Vec<Address>, &Arc<Capabilities>)>) {
        if !grants.is_empty() {
            let grants = grants.into_iter().map(|(to, what)| (to, Arc::clone(what)));
            self.0.push(Part {
                sources,
                what: What::Capabilities(grants.collect()),
            });
        }
    }
}

/// A target of a rule as a filter of the class says it.
fn addresses(program: &Program, rule: &Rule, key: &Key, id: SelectorId) -> Vec<Address> {
    let cover = key.covers[id];
    let routes = || {
        key.routes
            .iter()
            .map(|net| Address::Text(net.to_string().into()))
    };
    let internet = || INTERNET.iter().map(|range| Address::Text((*range).into()));
    if rule.via.is_empty() {
        return match program.table.kind(id) {
            Kind::Any { .. } => vec![Address::Any],
            Kind::Owner(_) => own(cover),
            Kind::Literal(_) if cover.is_nothing() => Vec::new(),
            Kind::Literal(literal) => vec![Address::Text(Arc::clone(&literal.text))],
            Kind::Internet if cover.has(Cover::EXIT) => internet().collect(),
            Kind::Internet | Kind::SelfDevices => Vec::new(),
        };
    }
    if !key.is_via_target(program, id) {
        return Vec::new();
    }
    match program.table.kind(id) {
        Kind::Literal(literal) => vec![Address::Text(Arc::clone(&literal.text))],
        Kind::Any { .. } if key.exit => routes().chain(internet()).collect(),
        Kind::Any { .. } => routes().collect(),
        Kind::Internet => internet().collect(),
        Kind::Owner(_) | Kind::SelfDevices => Vec::new(),
    }
}

/// Towards which addresses of the class a capability is granted: its own; prefixes only where it
/// routes some of them.
fn granted(program: &Program, key: &Key, id: SelectorId) -> Vec<Address> {
    let cover = key.covers[id];
    let mut to = match program.table.kind(id) {
        Kind::Any { .. } | Kind::Owner(_) | Kind::Literal(_) => own(cover),
        Kind::SelfDevices | Kind::Internet => Vec::new(),
    };
    if let Kind::Literal(literal) = program.table.kind(id)
        && cover.has(Cover::ROUTE)
    {
        to.extend(literal.nets().map(Address::Net));
    }
    to
}

/// The same for a class that is a source, of which something is granted in return.
fn companion_addresses(program: &Program, rule: &Rule, key: &Key) -> Vec<Address> {
    let cover = key.source_cover(rule);
    let mut to = own(cover);
    for id in &rule.sources {
        if let Kind::Literal(literal) = program.table.kind(*id)
            && cover.has(Cover::ROUTE)
            && key.covers[*id].has(Cover::ROUTE)
        {
            to.extend(literal.nets().map(Address::Net));
        }
    }
    to
}

fn own(cover: Cover) -> Vec<Address> {
    let v4 = cover.has(Cover::V4).then_some(Address::V4);
    let v6 = cover.has(Cover::V6).then_some(Address::V6);
    v4.into_iter().chain(v6).collect()
}
