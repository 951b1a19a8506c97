//! Target of `policy::filter`.

use ::policy::filter::{AcceptReason, Filter, Local, Peers, Rules, Verdict};
use control_proto::{json, tailcfg::FilterRule};

/// Nanoseconds that pass before a packet, by the upper bits of its first byte.
const WAITS: [u64; 4] = [0, 1_500_000_000, 31_000_000_000, 201_000_000_000];

/// Rules as JSON up to a byte of 0, then packets, each after a byte that says direction (bit 0) and
/// time passed (bits 6 and 7), and one that says its length: whatever comes, the order of rules does
/// not matter, and without rules nothing is admitted that we did not ask for.
pub fn filter_model(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let (Some(rules), Some(mut packets)) = (parts.next(), parts.next()) else {
        return;
    };
    let Ok(mut rules) = json::from_slice::<Vec<FilterRule>>(rules) else {
        return;
    };
    let mut filter = filter(&rules);
    rules.reverse();
    let mut reversed = self::filter(&rules);
    let mut closed = self::filter(&[]);
    let mut now = 0;
    while let Some(([head, len], rest)) = packets.split_first_chunk() {
        let (packet, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        packets = rest;
        now += WAITS[usize::from(head >> 6)];
        if head & 1 != 0 {
            let verdict = filter.outbound(packet, now);
            assert_eq!(verdict, reversed.outbound(packet, now));
            assert_eq!(verdict, closed.outbound(packet, now));
        } else {
            assert_eq!(
                filter.inbound(packet, now),
                reversed.inbound(packet, now),
                "the order of rules decides"
            );
            let uninvited = closed.inbound(packet, now);
            assert_ne!(uninvited, Verdict::Accept(AcceptReason::Rule));
        }
    }
}

/// A filter of a node that has an address and a route in each family.
fn filter(rules: &[FilterRule]) -> Filter {
    let capable = |_: &str| vec![[100, 64, 0, 3].into()];
    // Rules that spoil them all leave none.
    let rules = Rules::parse(rules, capable, &[]).unwrap_or_default();
    let local = Local {
        addresses: vec![
            [100, 64, 0, 1].into(),
            [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 1].into(),
        ],
        routes: ["10.1.0.0/16", "fd00:1::/32"]
            .iter()
            .filter_map(|route| route.parse().ok())
            .collect(),
        ..Local::default()
    };
    Filter::new(local, Peers::default(), rules)
}
