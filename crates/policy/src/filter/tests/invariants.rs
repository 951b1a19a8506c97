//! What holds for all rules and all packets.

use packet::build::{ACK, SYN, fragments};
use proptest::prelude::*;

use super::*;

/// What a filter meets.
#[derive(Clone, Debug)]
enum Step {
    In(Vec<u8>),
    Out(Vec<u8>),
    Wait(u64),
}

impl Step {
    fn run(&self, filter: &mut Filter, now: &mut u64) -> Option<Verdict> {
        match self {
            Self::In(packet) => Some(filter.inbound(packet, *now)),
            Self::Out(packet) => Some(filter.outbound(packet, *now)),
            Self::Wait(nanos) => {
                *now += nanos;
                None
            }
        }
    }
}

/// Runs all steps and collects the verdicts.
fn run(filter: &mut Filter, steps: &[Step]) -> Vec<Verdict> {
    let mut now = NOW;
    steps
        .iter()
        .filter_map(|step| step.run(filter, &mut now))
        .collect()
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![Just(22), Just(53), Just(40_000)]
}

/// A packet between few hosts, at few ports: flows meet again.
fn packet() -> impl Strategy<Value = Vec<u8>> {
    let net = prop::sample::select(NETS.to_vec());
    let host = 0usize..5;
    let flags = prop_oneof![Just(SYN), Just(SYN | ACK), Just(ACK)];
    let ends = (
        net,
        host.clone(),
        host,
        port(),
        port(),
        flags,
        0u8..12,
        0usize..3,
    );
    ends.prop_map(|(net, src, dst, src_port, dst_port, flags, kind, part)| {
        let hosts = [net.us, net.us, net.peer, net.other, net.lan];
        let ip = Ip::new(hosts[src], hosts[dst]);
        let back = ip.reversed();
        let whole = match kind {
            0..3 => ip.tcp(src_port, dst_port, flags, &[0; 90]),
            3..5 => ip.udp(src_port, dst_port, &[0; 100]),
            5 => ip.sctp(src_port, dst_port, &[0; 90]),
            6 => ip.echo_request(dst_port, 1, &[0; 100]),
            7 => ip.echo_reply(src_port, 1, &[0; 100]),
            8 => ip.unreachable(&back.udp(dst_port, src_port, &[0; 90]), 100),
            9 => ip.too_big(&back.tcp(dst_port, src_port, ACK, &[0; 90]), 100),
            10 => ip.raw(47, &[0; 100]),
            _ => ip.tsmp(&[0; 100]),
        };
        match part {
            0 => whole,
            part => fragments(&whole, 80, 7).swap_remove(part - 1),
        }
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let wait = prop_oneof![Just(SECOND / 2), Just(29 * SECOND), Just(201 * SECOND)];
    let step = prop_oneof![
        6 => packet().prop_map(Step::In),
        3 => packet().prop_map(Step::Out),
        1 => wait.prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..40)
}

fn rules() -> impl Strategy<Value = Vec<FilterRule>> {
    let hosts = || {
        let all = [
            "*",
            "100.64.0.2",
            "100.64.0.0/30",
            "fd7a:115c:a1e0::2",
            "10.1.0.0-10.1.2.9",
        ];
        prop::sample::subsequence(
            [
                &all[..],
                &["100.64.0.1", "fd7a:115c:a1e0::1", "10.2.0.0/16"],
            ]
            .concat(),
            1..4,
        )
    };
    let ports = prop_oneof![
        Just((0, 65535)),
        Just((22, 53)),
        port().prop_map(|port| (port, port))
    ];
    let protocols = prop::sample::subsequence(vec![6, 17, 1, 58, 47, 132], 0..3);
    let one =
        (hosts(), hosts(), ports, protocols).prop_map(|(src, dst, (first, last), protocols)| {
            let dst: Vec<_> = dst.into_iter().map(|ip| (ip, first, last)).collect();
            rule(&src, &dst, &protocols)
        });
    prop::collection::vec(one, 0..5)
}

fn is_accept(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Accept(_))
}

proptest! {
    #[test]
    fn no_bytes_make_the_filter_fail(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 1..8),
        version in prop_oneof![Just(0x45u8), Just(0x60)],
    ) {
        let mut filter = filter(&[rule(&["*"], &[("*", 0, 65535)], &[])]);
        for mut packet in packets {
            filter.inbound(&packet, NOW);
            filter.outbound(&packet, NOW);
            if let Some(first) = packet.first_mut() {
                *first = version;
            }
            filter.inbound(&packet, NOW);
            filter.outbound(&packet, NOW);
        }
    }

    #[test]
    fn flipped_bits_and_wrong_lengths_make_no_filter_fail(
        mut packet in packet(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 0..6),
    ) {
        let mut filter = filter(&[rule(&["*"], &[("*", 0, 65535)], &[])]);
        for (place, bit) in flips {
            let place = place.index(packet.len());
            packet[place] ^= 1 << bit;
            filter.inbound(&packet, NOW);
            filter.outbound(&packet, NOW);
        }
    }

    #[test]
    fn the_order_of_rules_does_not_matter(
        (rules, shuffled) in rules().prop_flat_map(|rules| (Just(rules.clone()), Just(rules).prop_shuffle())),
        steps in steps(),
    ) {
        prop_assert_eq!(run(&mut filter(&rules), &steps), run(&mut filter(&shuffled), &steps));
    }

    #[test]
    fn another_rule_never_takes_access_away(rules in rules(), more in rules(), packet in packet()) {
        let before = filter(&rules).inbound(&packet, NOW);
        let after = filter(&[rules, more].concat()).inbound(&packet, NOW);
        prop_assert!(!is_accept(&before) || is_accept(&after), "{:?}, then {:?}", before, after);
    }

    #[test]
    fn without_rules_and_flows_of_ours_only_tsmp_passes(steps in steps()) {
        let mut filter = filter(&[]);
        for step in steps {
            if let Step::In(packet) = step {
                let verdict = filter.inbound(&packet, NOW);
                let tsmp = verdict == Verdict::Accept(AcceptReason::Tsmp);
                prop_assert!(tsmp || !is_accept(&verdict), "{:?}", verdict);
            }
        }
    }

    /// Destinations that are not ours may be left out of the rules that are sent to us.
    #[test]
    fn reduction_to_what_is_ours_never_changes_a_verdict(rules in rules(), steps in steps()) {
        let ours = local().destinations();
        let mut reduced = rules.clone();
        for rule in &mut reduced {
            let all = parsed(std::slice::from_ref(rule));
            let keep: Vec<bool> = all.matches()[0]
                .destinations
                .iter()
                .map(|dst| NETS.iter().flat_map(|net| [net.us, net.lan])
                    .any(|ip| dst.addresses.contains(ip) && ours.contains(ip)))
                .collect();
            let mut keep = keep.into_iter();
            rule.dst_ports.retain(|_| keep.next().unwrap());
        }
        reduced.retain(|rule| !rule.dst_ports.is_empty());
        prop_assert_eq!(run(&mut filter(&rules), &steps), run(&mut filter(&reduced), &steps));
    }

    /// What was admitted is remembered for its flow, but the rules could as well be asked again.
    #[test]
    fn asking_the_rules_again_for_every_packet_gives_the_same_verdicts(
        rules in rules(),
        steps in steps(),
    ) {
        let mut remembers = filter(&rules);
        let mut asks = filter(&rules);
        let (mut now, mut again) = (NOW, NOW);
        for step in &steps {
            let expected = step.run(&mut remembers, &mut now);
            asks.set_rules(parsed(&rules));
            let verdict = step.run(&mut asks, &mut again);
            // Fragments are the exception: of packets under way when the policy changes.
            if expected != Some(Verdict::Accept(AcceptReason::Fragment)) {
                prop_assert_eq!(expected, verdict);
            }
        }
    }

    #[test]
    fn what_neither_we_opened_nor_rules_admit_now_does_not_pass(
        rules in rules(),
        steps in steps(),
    ) {
        let mut filter = filter(&rules);
        run(&mut filter, &steps);
        filter.set_rules(Rules::default());
        let mut now = NOW;
        for step in &steps {
            if let Step::In(_) = step
                && let Some(Verdict::Accept(reason)) = step.run(&mut filter, &mut now)
            {
                let ours = [AcceptReason::Opened, AcceptReason::Tsmp, AcceptReason::IcmpError];
                // Fragments of answers to us, whose first came again after the change.
                prop_assert!(
                    ours.contains(&reason) || reason == AcceptReason::Fragment,
                    "{:?}",
                    reason
                );
            }
        }
    }
}
