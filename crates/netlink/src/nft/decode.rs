//! From the kernel's attributes to [`HostChain`] and [`HostRule`]; what is not understood is [`Condition::Other`].

use std::collections::BTreeMap;

use super::encode::{
    CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, CHAIN_TABLE, CT_STATE, DATA_VALUE, DATA_VERDICT,
    DIFFERENT, EQUAL, EXPRESSION_DATA, EXPRESSION_NAME, HOOK_NUMBER, LIST_ELEMENT, META_INPUT_NAME,
    META_NETWORK_PROTOCOL, META_OUTPUT_NAME, REGISTER_VERDICT, RULE_CHAIN, RULE_EXPRESSIONS,
    RULE_TABLE, VERDICT_ACCEPT, VERDICT_CHAIN, VERDICT_CODE, VERDICT_DROP, VERDICT_GOTO,
    VERDICT_JUMP, VERDICT_RETURN,
};
use super::{Condition, Hook, HostChain, HostRule, HostVerdict, Layer, Names};
use crate::netfilter::wire::{Attribute, Frame};

// enum nft_set_elem_list_attributes, nft_set_elem_attributes
const SET_ELEMENTS: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const LOOKUP_INVERTED: u32 = 1;
const NAME_LEN: usize = 16;

/// Statements that let any packet go on.
const STATEMENTS: [&str; 8] = [
    "counter", "log", "notrack", "nat", "masq", "redir", "objref", "last",
];
/// Expressions that load something we do not compare, and ask nothing by themselves.
const LOADS: [&str; 10] = [
    "payload", "exthdr", "fib", "rt", "socket", "osf", "hash", "numgen", "tunnel", "xfrm",
];

/// Family, table and name of a set.
pub(super) type SetName = (Layer, String, String);
/// What is known of the sets that rules look things up in.
pub(super) type Sets = BTreeMap<SetName, Vec<Element>>;

/// An element of a set: its key, and what a map holds for it.
#[derive(Clone, Debug)]
pub(super) struct Element {
    key: Vec<u8>,
    verdict: Option<HostVerdict>,
}

/// A rule whose sets are not known yet.
#[derive(Clone, Debug)]
pub(super) struct RawRule {
    layer: Layer,
    table: String,
    chain: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    Condition(Condition),
    Verdict(HostVerdict),
    Lookup {
        source: Source,
        set: String,
        negated: bool,
        map: bool,
    },
}

/// What a register was loaded with.
#[derive(Clone, Copy, Debug)]
enum Source {
    Input,
    Output,
    /// With the states that a mask has left.
    State(Option<u32>),
    Protocol,
}

/// Reads what a dump says of a chain.
pub(super) fn chain(frame: Frame<'_>) -> Option<HostChain> {
    let attribute = |kind| frame.attributes().find(|found| found.kind == kind);
    let hook = attribute(CHAIN_HOOK).and_then(|hook| {
        let number = hook.inner().find(|inner| inner.kind == HOOK_NUMBER)?;
        Hook::parse(number.u32()?)
    });
    let policy = attribute(CHAIN_POLICY).and_then(|policy| policy.u32());
    Some(HostChain {
        layer: Layer::parse(frame.family())?,
        table: attribute(CHAIN_TABLE)?.text()?.to_owned(),
        name: attribute(CHAIN_NAME)?.text()?.to_owned(),
        hook,
        drops: policy == Some(VERDICT_DROP.cast_unsigned()),
        rules: Vec::new(),
    })
}

/// Reads what a dump says of a rule.
pub(super) fn rule(frame: Frame<'_>) -> Option<RawRule> {
    let attribute = |kind| frame.attributes().find(|found| found.kind == kind);
    Some(RawRule {
        layer: Layer::parse(frame.family())?,
        table: attribute(RULE_TABLE)?.text()?.to_owned(),
        chain: attribute(RULE_CHAIN)?.text()?.to_owned(),
        parts: attribute(RULE_EXPRESSIONS).map_or_else(Vec::new, |list| parts(list.inner())),
    })
}

/// Packets that a rule of this chain has counted; `None` for rules of others and those that count nothing.
pub(super) fn counted(frame: Frame<'_>, table: &str, chain: &str) -> Option<u64> {
    const COUNTER_PACKETS: u16 = 2;
    let attribute = |kind| frame.attributes().find(|found| found.kind == kind);
    let is = |kind, name| attribute(kind).and_then(|found| found.text()) == Some(name);
    if !is(RULE_TABLE, table) || !is(RULE_CHAIN, chain) {
        return None;
    }
    let mut expressions = attribute(RULE_EXPRESSIONS)?.inner();
    let counter = expressions.find(|expression| {
        part(*expression, EXPRESSION_NAME).and_then(|name| name.text()) == Some("counter")
    })?;
    let packets = part(part(counter, EXPRESSION_DATA)?, COUNTER_PACKETS)?;
    packets.array().map(u64::from_be_bytes)
}

/// Reads elements of a set; a long one comes in several frames.
pub(super) fn elements(frame: Frame<'_>) -> Vec<Element> {
    let list = frame.attributes().find(|found| found.kind == SET_ELEMENTS);
    let elements = list.into_iter().flat_map(|list| list.inner());
    elements
        .filter(|element| element.kind == LIST_ELEMENT)
        .filter_map(|element| {
            let key = part(element, ELEMENT_KEY)?;
            Some(Element {
                key: part(key, DATA_VALUE)?.value.to_vec(),
                verdict: part(element, ELEMENT_DATA).and_then(verdict),
            })
        })
        .collect()
}

impl RawRule {
    /// Whether it stands in this chain.
    pub(super) fn is_in(&self, chain: &HostChain) -> bool {
        self.layer == chain.layer && self.table == chain.table && self.chain == chain.name
    }

    /// The sets that have to be read to understand it.
    pub(super) fn sets(&self) -> impl Iterator<Item = SetName> {
        self.parts.iter().filter_map(|part| match part {
            Part::Lookup { set, .. } => Some((self.layer, self.table.clone(), set.clone())),
            _ => None,
        })
    }

    /// The rule, with what its sets hold.
    pub(super) fn resolve(&self, sets: &Sets) -> HostRule {
        let mut rule = HostRule::default();
        for part in &self.parts {
            match part {
                Part::Condition(condition) => rule.conditions.push(condition.clone()),
                Part::Verdict(verdict) => rule.verdict = Some(verdict.clone()),
                Part::Lookup {
                    source,
                    set,
                    negated,
                    map,
                } => {
                    let name = (self.layer, self.table.clone(), set.clone());
                    let elements = sets.get(&name).map_or(&[][..], Vec::as_slice);
                    if *map {
                        let entry = |element: &Element| {
                            let condition = among(*source, std::slice::from_ref(element), false);
                            Some((condition, element.verdict.clone()?))
                        };
                        let entries = elements.iter().filter_map(entry).collect();
                        rule.verdict = Some(HostVerdict::Map(entries));
                    } else {
                        rule.conditions.push(among(*source, elements, *negated));
                    }
                }
            }
        }
        rule
    }
}

/// That what was loaded is one of `elements`, or none of them.
fn among(source: Source, elements: &[Element], negated: bool) -> Condition {
    let names = || {
        let whole = elements.iter().all(|element| element.key.len() == NAME_LEN);
        let patterns = elements.iter().map(|element| text(&element.key)).collect();
        whole.then_some(Names { negated, patterns })
    };
    match source {
        Source::Input => names().map_or(Condition::Other, Condition::Input),
        Source::Output => names().map_or(Condition::Other, Condition::Output),
        Source::State(None) if !negated => {
            let bits = elements
                .iter()
                .filter_map(|element| element.key.first_chunk().copied());
            Condition::State(bits.map(u32::from_ne_bytes).fold(0, |all, bit| all | bit))
        }
        Source::State(_) | Source::Protocol => Condition::Other,
    }
}

/// Reads the expressions of a rule from left to right, keeping track of what registers hold.
fn parts<'a>(list: impl Iterator<Item = Attribute<'a>>) -> Vec<Part> {
    let mut registers: BTreeMap<u32, Source> = BTreeMap::new();
    let mut parts = Vec::new();
    for element in list {
        let name = part(element, EXPRESSION_NAME).and_then(|name| name.text());
        let data = part(element, EXPRESSION_DATA);
        let number = |kind| data.and_then(|data| part(data, kind)?.u32());
        let value = |kind| data.and_then(|data| part(part(data, kind)?, DATA_VALUE));
        let other = Part::Condition(Condition::Other);
        match name.unwrap_or_default() {
            kind @ ("meta" | "ct") => {
                // With a source register it is a statement.
                let Some(target) = number(1) else { continue };
                let source = match (kind, number(2)) {
                    ("meta", Some(META_INPUT_NAME)) => Some(Source::Input),
                    ("meta", Some(META_OUTPUT_NAME)) => Some(Source::Output),
                    ("meta", Some(META_NETWORK_PROTOCOL)) => Some(Source::Protocol),
                    ("ct", Some(CT_STATE)) => Some(Source::State(None)),
                    _ => None,
                };
                match source {
                    Some(source) => registers.insert(target, source),
                    None => registers.remove(&target),
                };
            }
            "bitwise" => {
                let source = number(1).and_then(|register| registers.remove(&register));
                let mask = value(4).and_then(|mask| mask.array());
                if let (Some(Source::State(None)), Some(mask), Some(target)) =
                    (source, mask, number(2))
                {
                    registers.insert(target, Source::State(Some(u32::from_ne_bytes(mask))));
                }
            }
            "cmp" => {
                let source = number(1).and_then(|register| registers.get(&register).copied());
                let compared = match (source, number(2), value(3)) {
                    (Some(source), Some(operator), Some(value)) => {
                        comparison(source, operator, value.value)
                    }
                    _ => Condition::Other,
                };
                parts.push(Part::Condition(compared));
            }
            "lookup" => {
                let source = number(2).and_then(|register| registers.get(&register).copied());
                let set = data.and_then(|data| part(data, 1)?.text());
                parts.push(match (source, set) {
                    (Some(source), Some(set))
                        if number(3).is_none_or(|to| to == REGISTER_VERDICT) =>
                    {
                        Part::Lookup {
                            source,
                            set: set.to_owned(),
                            negated: number(5).unwrap_or(0) & LOOKUP_INVERTED != 0,
                            map: number(3).is_some(),
                        }
                    }
                    _ => other,
                });
            }
            "immediate" => match number(1) {
                Some(REGISTER_VERDICT) => {
                    let found = data.and_then(|data| verdict(part(data, 2)?));
                    parts.push(found.map_or(other, Part::Verdict));
                }
                Some(register) => drop(registers.remove(&register)),
                None => {}
            },
            "reject" => parts.push(Part::Verdict(HostVerdict::Drop)),
            "target" => {
                let name = data.and_then(|data| part(data, 1)?.text());
                if name == Some("REJECT") {
                    parts.push(Part::Verdict(HostVerdict::Drop));
                }
            }
            name if LOADS.contains(&name) => {
                if let Some(target) = number(1) {
                    registers.remove(&target);
                }
            }
            name if STATEMENTS.contains(&name) => {}
            _ => parts.push(other),
        }
    }
    parts
}

fn comparison(source: Source, operator: u32, value: &[u8]) -> Condition {
    let negated = match operator {
        EQUAL => false,
        DIFFERENT => true,
        _ => return Condition::Other,
    };
    let names = || {
        let mut pattern = text(value);
        // A whole name is compared with its closing zero, the beginning of one without.
        if !value.contains(&0) {
            pattern.push('*');
        }
        Names {
            negated,
            patterns: vec![pattern],
        }
    };
    let zero = value.iter().all(|byte| *byte == 0);
    match (source, value) {
        (Source::Input, _) => Condition::Input(names()),
        (Source::Output, _) => Condition::Output(names()),
        (Source::State(Some(mask)), _) if negated && zero => Condition::State(mask),
        (Source::State(None), &[a, b, c, d]) if !negated => {
            Condition::State(u32::from_ne_bytes([a, b, c, d]))
        }
        (Source::Protocol, &[number]) if !negated => match Layer::parse(number) {
            Some(Layer::Ip(family)) => Condition::Family(family),
            _ => Condition::Other,
        },
        _ => Condition::Other,
    }
}

fn verdict(data: Attribute<'_>) -> Option<HostVerdict> {
    let verdict = part(data, DATA_VERDICT)?;
    let chain = || Some(part(verdict, VERDICT_CHAIN)?.text()?.to_owned());
    match part(verdict, VERDICT_CODE)?.u32()?.cast_signed() {
        VERDICT_DROP => Some(HostVerdict::Drop),
        VERDICT_ACCEPT => Some(HostVerdict::Accept),
        VERDICT_RETURN => Some(HostVerdict::Return),
        VERDICT_JUMP => chain().map(HostVerdict::Jump),
        VERDICT_GOTO => chain().map(HostVerdict::Goto),
        _ => None,
    }
}

fn part(of: Attribute<'_>, kind: u16) -> Option<Attribute<'_>> {
    of.inner().find(|inner| inner.kind == kind)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
