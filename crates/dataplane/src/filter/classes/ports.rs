//! Ranges of ports that several rules admit, cut so that each port has the first of its rules.

use std::{cmp::Reverse, collections::BinaryHeap};

use ebpf_abi::{PortRange, RulePorts};

/// Returns the ports of `ranges` in ascending order, none twice, each with the least of its rules.
pub(super) fn apart(ranges: impl Iterator<Item = RulePorts>) -> Vec<RulePorts> {
    let mut ranges: Vec<RulePorts> = ranges
        .filter(|range| range.ports.first <= range.ports.last)
        .collect();
    if ranges.len() < 2 {
        return ranges;
    }
    ranges.sort_unstable_by_key(|range| range.ports.first);
    let mut apart: Vec<RulePorts> = Vec::new();
    // Those that begin at `at` or before it: by rule, the least on top.
    let mut open: BinaryHeap<Reverse<(u32, u16)>> = BinaryHeap::new();
    let mut waiting = ranges.into_iter().peekable();
    let mut at = 0u32;
    loop {
        while let Some(range) = waiting.next_if(|range| u32::from(range.ports.first) <= at) {
            open.push(Reverse((range.rule, range.ports.last)));
        }
        let Some(&Reverse((rule, last))) = open.peek() else {
            match waiting.peek() {
                Some(range) => at = range.ports.first.into(),
                None => return apart,
            }
            continue;
        };
        if u32::from(last) < at {
            open.pop();
            continue;
        }
        // Up to its own end, or to where a rule before it begins.
        let mut end = last;
        while let Some(range) = waiting.peek().filter(|range| range.ports.first <= last) {
            if range.rule < rule {
                end = range.ports.first - 1;
                break;
            }
            open.push(Reverse((range.rule, range.ports.last)));
            waiting.next();
        }
        match apart.last_mut() {
            Some(before) if before.rule == rule && u32::from(before.ports.last) + 1 == at => {
                before.ports.last = end;
            }
            _ => apart.push(RulePorts {
                ports: PortRange {
                    first: at as u16,
                    last: end,
                },
                rule,
            }),
        }
        at = u32::from(end) + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_has_the_first_of_its_rules() {
        let mut state = 1u64;
        let mut random = |end: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % end
        };
        for round in 0..500 {
            let ranges: Vec<RulePorts> = (0..random(9))
                .map(|_| {
                    let base = if round % 2 == 0 { 65_500 } else { 0 };
                    let first = base + random(36) as u16;
                    let last = first.saturating_add(random(12) as u16).saturating_sub(1);
                    RulePorts {
                        ports: PortRange { first, last },
                        rule: random(4) as u32,
                    }
                })
                .collect();
            let apart = apart(ranges.iter().copied());
            assert!(
                apart
                    .windows(2)
                    .all(|two| two[0].ports.last < two[1].ports.first)
            );
            for port in (0..60).chain(65_490..=65_535) {
                let rules = |of: &[RulePorts]| {
                    of.iter()
                        .filter(|range| (range.ports.first..=range.ports.last).contains(&port))
                        .map(|range| range.rule)
                        .min()
                };
                assert_eq!(
                    rules(&apart),
                    rules(&ranges),
                    "{port}: {ranges:?} {apart:?}"
                );
            }
        }
    }
}
