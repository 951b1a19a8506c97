//! Accepted policies: is each node told the same?

use std::collections::BTreeSet;

use ipnet::IpNet;
use policy::Network;
use policy::tailnet::NodeId;
use serde_json::{Value, json};

use crate::case::{Case, Told, ToldNode};

/// Attributes of which a node is told by its peers.
const OF_PEERS: [&str; 2] = ["suggest-exit-node", "dns-subdomain-resolve"];

/// The first difference.
pub(crate) fn compare(case: &Case, network: &Network) -> Result<(), String> {
    let universe = universe(case);
    for (name, id, told) in case.answers() {
        let differs = |what: &str, theirs: String, ours: String| {
            let short = |text: String| text.chars().take(400).collect::<String>();
            format!(
                "{name}: {what}: told: {}; we: {}",
                short(theirs),
                short(ours)
            )
        };
        let same = |what: &str, theirs: &[Value], ours: &[Value]| match first(theirs, ours) {
            None => Ok(()),
            Some((theirs, ours)) => Err(differs(what, theirs, ours)),
        };

        let theirs = told.filter.as_deref().unwrap_or_default();
        same(
            "filter",
            &sorted_rules(theirs),
            &sorted_rules(&filter(network, id)),
        )?;

        let ours = serde_json::to_value(&network.ssh(id).rules).map_err(|it| it.to_string())?;
        let theirs = told.ssh.as_deref().unwrap_or_default();
        let ours = ours.as_array().map_or(&[][..], Vec::as_slice);
        same("ssh", &sorted_principals(theirs), &sorted_principals(ours))?;

        let own = network.own_view(id);
        if let Some(told) = &told.own {
            let ours = view(&own.addresses, &own.routes, &own.primary_routes);
            same("self", &[told_view(told)], &[ours])?;
            let wanted = |it: &str| universe.contains(it) || own.attributes.contains_key(it);
            let theirs = attributes(told, wanted);
            let ours = serde_json::to_value(&own.attributes).map_err(|it| it.to_string())?;
            same("attributes", &[theirs], &[flags_are_null(ours)])?;
        }
        peers(case, network, id, told)
            .map_err(|(what, theirs, ours)| differs(&what, theirs, ours))?;
    }
    Ok(())
}

fn peers(
    case: &Case,
    network: &Network,
    id: NodeId,
    told: &Told,
) -> Result<(), (String, String, String)> {
    let mut seen = Vec::new();
    for (name, peer) in told.peers.iter().flatten() {
        let addresses = peer.addresses.as_deref().unwrap_or_default();
        let Some((name, number)) = case.node_at(addresses) else {
            return Err((
                format!("peer {name}"),
                "there".into(),
                "not a node of the case".into(),
            ));
        };
        seen.push(number);
        if !network.sees(id, number) {
            return Err((
                format!("peer {name}"),
                "visible".into(),
                "not visible".into(),
            ));
        }
        let ours = network.peer_view(id, number);
        let addresses = view(&ours.addresses, &ours.routes, &ours.primary_routes);
        let attributes = attributes(peer, |it| OF_PEERS.contains(&it));
        let names = ours
            .attributes
            .iter()
            .map(|name| (name.clone(), Value::Null));
        for (theirs, ours) in [
            (told_view(peer), addresses),
            (attributes, names.collect::<serde_json::Map<_, _>>().into()),
        ] {
            if theirs != ours {
                return Err((format!("peer {name}"), theirs.to_string(), ours.to_string()));
            }
        }
    }
    seen.sort_unstable();
    let ours = network.peers(id);
    let more = ours.iter().find(|it| !seen.contains(it));
    more.map_or(Ok(()), |more| {
        let name = network.node(*more).map_or("", |it| &it.name);
        Err((
            format!("peer {name}"),
            "not visible".into(),
            "visible".into(),
        ))
    })
}

/// Our filter; both forms of it must say the same.
fn filter(network: &Network, id: NodeId) -> Vec<Value> {
    let filter = network.filter(id);
    let mut text = Vec::new();
    filter.write_json(&mut text);
    let written: Value = serde_json::from_slice(&text).unwrap_or_default();
    let rules = serde_json::to_value(filter.rules()).unwrap_or_default();
    if written != rules {
        return vec![json!({"rules()": rules, "write_json()": written})];
    }
    rules.as_array().cloned().unwrap_or_default()
}

/// Order does not matter in filters, except that there is one.
fn sorted_rules(rules: &[Value]) -> Vec<Value> {
    let sort = |list: &mut Vec<Value>| list.sort_by_key(Value::to_string);
    let mut rules = rules.to_vec();
    for rule in &mut rules {
        for name in ["SrcIPs", "DstPorts", "IPProto", "CapGrant"] {
            let Some(list) = rule.get_mut(name).and_then(Value::as_array_mut) else {
                continue;
            };
            for entry in &mut *list {
                if let Some(nets) = entry.get_mut("Dsts").and_then(Value::as_array_mut) {
                    sort(nets);
                }
            }
            sort(list);
        }
    }
    sort(&mut rules);
    rules
}

/// The order of rules matters, that of those whom a rule is about does not.
fn sorted_principals(rules: &[Value]) -> Vec<Value> {
    let mut rules = rules.to_vec();
    let lists = rules
        .iter_mut()
        .filter_map(|rule| rule.get_mut("principals")?.as_array_mut());
    lists.for_each(|list| list.sort_by_key(Value::to_string));
    rules
}

fn first(theirs: &[Value], ours: &[Value]) -> Option<(String, String)> {
    let text = |list: &[Value], index| list.get(index).map_or("nothing".into(), Value::to_string);
    let differs = |index: &usize| theirs.get(*index) != ours.get(*index);
    let index = (0..theirs.len().max(ours.len())).find(differs)?;
    Some((text(theirs, index), text(ours, index)))
}

fn view(addresses: &[IpNet], routes: &[IpNet], primary: &[IpNet]) -> Value {
    let set = |nets: &mut dyn Iterator<Item = &IpNet>| -> BTreeSet<String> {
        nets.map(IpNet::to_string).collect()
    };
    json!({
        "Addresses": set(&mut addresses.iter()),
        "AllowedIPs": set(&mut addresses.iter().chain(routes)),
        "PrimaryRoutes": set(&mut primary.iter()),
    })
}

fn told_view(told: &ToldNode) -> Value {
    let some = |nets: &Option<Vec<IpNet>>| nets.clone().unwrap_or_default();
    let (addresses, allowed) = (some(&told.addresses), some(&told.allowed_ips));
    let routes: Vec<_> = allowed
        .iter()
        .filter(|net| !addresses.contains(net))
        .copied()
        .collect();
    view(&addresses, &routes, &some(&told.primary_routes))
}

fn attributes(told: &ToldNode, wanted: impl Fn(&str) -> bool) -> Value {
    let all = told.cap_map.iter().flatten();
    let wanted = all.filter(|(name, _)| wanted(name));
    flags_are_null(
        wanted
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
    )
}

/// A flag is null or an empty list.
fn flags_are_null(mut attributes: Value) -> Value {
    for value in attributes
        .as_object_mut()
        .into_iter()
        .flat_map(|it| it.values_mut())
    {
        if value.as_array().is_some_and(Vec::is_empty) {
            *value = Value::Null;
        }
    }
    attributes
}

/// Whatever the policy names could be an attribute that it sets.
fn universe(case: &Case) -> BTreeSet<&str> {
    case.policy.split('"').skip(1).step_by(2).collect()
}
