//! Policy routing rules: dump → plan → apply.

use std::collections::BTreeSet;

use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use crate::{Error, Family, Netlink, routes};

/// Mark of packets that must not enter the overlay: WireGuard's and the agent's own.
pub const UNDERLAY_MARK: u32 = 0x8_0000;
/// Bits of the mark that belong to us.
pub const MARK_MASK: u32 = 0xff_0000;

const TABLE_MAIN: u32 = 254;
const TABLE_DEFAULT: u32 = 253;

/// One rule: packets with this mark (all packets, without one) are looked up in a table or refused.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Rule {
    /// Address family.
    pub family: Family,
    /// Place in the list; lower is asked first.
    pub priority: u32,
    /// Mark and mask that a packet must have.
    pub mark: Option<(u32, u32)>,
    /// What happens to the packet.
    pub action: Action,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Action {
    /// Looks the destination up in a table.
    Table(u32),
    /// Refuses the packet with ICMP unreachable.
    Unreachable,
}

/// One change to the rules.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    /// Takes a rule away.
    Remove(Rule),
    /// Adds a rule.
    Add(Rule),
}

/// Returns the rules of a node: marked packets take the host's tables, all others ask table 52 first.
///
/// Priorities and marks are upstream's (5210, 5230, 5250, 5270), so that its documentation carries over.
#[must_use]
pub fn standard(families: &[Family]) -> BTreeSet<Rule> {
    let marked = Some((UNDERLAY_MARK, MARK_MASK));
    families
        .iter()
        .flat_map(|&family| {
            [
                (5210, marked, Action::Table(TABLE_MAIN)),
                (5230, marked, Action::Table(TABLE_DEFAULT)),
                (5250, marked, Action::Unreachable),
                (5270, None, Action::Table(routes::TABLE)),
            ]
            .map(|(priority, mark, action)| Rule {
                family,
                priority,
                mark,
                action,
            })
        })
        .collect()
}

/// Returns those of `ours` that exist. Rules of others, also at the same priorities, are not looked at.
///
/// # Errors
///
/// Whatever the kernel answered.
pub async fn dump(netlink: &Netlink, ours: &BTreeSet<Rule>) -> Result<BTreeSet<Rule>, Error> {
    let mut found = BTreeSet::new();
    for family in Family::BOTH {
        let mut messages = std::pin::pin!(netlink.route.rule().get(family.version()).execute());
        loop {
            match messages.try_next().await {
                Ok(Some(message)) => {
                    found.extend(parse(family, &message).filter(|rule| ours.contains(rule)));
                }
                Ok(None) => break,
                Err(error) => {
                    let error = Error::from_route("RTM_GETRULE", "", error);
                    if error.is_family_missing() {
                        break;
                    }
                    return Err(error);
                }
            }
        }
    }
    Ok(found)
}

/// Returns the changes that turn `actual` into `desired`, removals first. Pure.
#[must_use]
pub fn plan(desired: &BTreeSet<Rule>, actual: &BTreeSet<Rule>) -> Vec<Change> {
    let stale = actual.difference(desired).copied().map(Change::Remove);
    let fresh = desired.difference(actual).copied().map(Change::Add);
    stale.chain(fresh).collect()
}

/// Makes one change; repeating one that already holds succeeds.
///
/// # Errors
///
/// Whatever the kernel refused.
pub async fn apply(netlink: &Netlink, change: Change) -> Result<(), Error> {
    match change {
        Change::Add(rule) => {
            let mut request = netlink.route.rule().add();
            *request.message_mut() = message(rule);
            match request.execute().await.map_err(|error| {
                Error::from_route("RTM_NEWRULE", &rule.priority.to_string(), error)
            }) {
                Err(error) if error.is_exists() => Ok(()),
                other => other,
            }
        }
        Change::Remove(rule) => {
            let request = netlink.route.rule().del(message(rule));
            match request.execute().await.map_err(|error| {
                Error::from_route("RTM_DELRULE", &rule.priority.to_string(), error)
            }) {
                Err(error) if error.is_gone() => Ok(()),
                other => other,
            }
        }
    }
}

fn message(rule: Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = match rule.family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    message
        .attributes
        .push(RuleAttribute::Priority(rule.priority));
    message
        .attributes
        .push(RuleAttribute::Protocol(RouteProtocol::Boot));
    if let Some((mark, mask)) = rule.mark {
        message.attributes.push(RuleAttribute::FwMark(mark));
        message.attributes.push(RuleAttribute::FwMask(mask));
    }
    match rule.action {
        Action::Table(table) => {
            message.header.action = RuleAction::ToTable;
            message.attributes.push(RuleAttribute::Table(table));
        }
        Action::Unreachable => message.header.action = RuleAction::Unreachable,
    }
    message
}

/// Parses a rule that selects by nothing but a mark; `None` for all others.
fn parse(family: Family, message: &RuleMessage) -> Option<Rule> {
    let header = &message.header;
    if header.src_len != 0 || header.dst_len != 0 || header.tos != 0 {
        return None;
    }
    let (mut priority, mut mark, mut mask) = (0, 0, 0);
    let mut table = u32::from(header.table);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::FwMark(value) => mark = *value,
            RuleAttribute::FwMask(value) => mask = *value,
            RuleAttribute::Table(value) => table = *value,
            RuleAttribute::Iifname(_)
            | RuleAttribute::Oifname(_)
            | RuleAttribute::Source(_)
            | RuleAttribute::Destination(_)
            | RuleAttribute::UidRange(_)
            | RuleAttribute::IpProtocol(_)
            | RuleAttribute::SourcePortRange(_)
            | RuleAttribute::DestinationPortRange(_)
            | RuleAttribute::TunId(_)
            | RuleAttribute::L3MDev(true) => return None,
            _ => {}
        }
    }
    let action = match header.action {
        RuleAction::ToTable => Action::Table(table),
        RuleAction::Unreachable => Action::Unreachable,
        _ => return None,
    };
    Some(Rule {
        family,
        priority,
        mark: (mask != 0).then_some((mark, mask)),
        action,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_rules_read_back_as_themselves() {
        for rule in standard(&Family::BOTH) {
            assert_eq!(parse(rule.family, &message(rule)), Some(rule));
        }
    }

    #[test]
    fn a_rule_with_another_selector_is_not_ours() {
        let rule = *standard(&[Family::V4]).first().unwrap();
        let mut foreign = message(rule);
        foreign
            .attributes
            .push(RuleAttribute::Iifname("eth0".into()));
        assert_eq!(parse(Family::V4, &foreign), None);
    }

    #[test]
    fn missing_rules_are_added_and_nothing_else() {
        let desired = standard(&Family::BOTH);
        let mut actual = desired.clone();
        let missing = actual.pop_first().unwrap();

        assert_eq!(plan(&desired, &actual), [Change::Add(missing)]);
        assert_eq!(plan(&desired, &desired), []);
        assert_eq!(plan(&BTreeSet::new(), &desired).len(), 8);
    }
}
