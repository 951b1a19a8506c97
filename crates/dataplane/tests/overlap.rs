//! Rules whose prefixes nest and overlap without end, so that pairs of classes would be too many.

mod common;
#[path = "common/random.rs"]
#[expect(dead_code, reason = "more is used by the differential test")]
mod random;

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use control_proto::tailcfg::{FilterRule, NetPortRange, PortRange};
use dataplane::{Direction, Gso, Program, Rule, Rules, Trial, TrialKind};
use ipnet::Ipv4Net;
use packet::build::{Ip, SYN};
use policy::filter::{self, Filter, Local, Verdict};
use testnet::scaled;

use common::US4;
use random::Random;

const RULES: usize = 10_000;
const DESTINATIONS: usize = 400;
const PACKETS: usize = 2_000;
const TCP: u8 = 6;

/// A rule, before it is said in the words of either side.
struct Plain {
    source: Ipv4Net,
    destination: Ipv4Net,
    ports: PortRange,
}

/// Every length of prefix from 10 on for sources in 100.64.0.0/10, all different, and from 8 on for what
/// is behind us, where they share fewer: each address is in hundreds of rules.
fn rules(random: &mut Random) -> Vec<Plain> {
    let net = |random: &mut Random, base: u32, least: usize| {
        let len = least + random.below(33 - least);
        let host = random.below(1 << (32 - least)) as u32;
        Ipv4Net::new_assert(Ipv4Addr::from(base | host), len as u8).trunc()
    };
    let destinations: Vec<_> = (0..DESTINATIONS)
        .map(|_| net(random, 0x0a00_0000, 8))
        .collect();
    (0..RULES)
        .map(|_| {
            let first = random.below(60_000) as u16;
            Plain {
                source: net(random, 0x6440_0000, 10),
                destination: random.pick(&destinations),
                ports: PortRange {
                    first,
                    last: first + random.below(20) as u16,
                },
            }
        })
        .collect()
}

fn local() -> Local {
    Local {
        addresses: vec![US4.into()],
        routes: vec!["10.0.0.0/8".parse().expect("a prefix")],
        ..Local::default()
    }
}

fn for_programs(plain: &[Plain]) -> Rules {
    let rule = |(id, rule): (u32, &Plain)| Rule {
        id,
        sources: [rule.source.into()].into(),
        destinations: vec![(
            rule.destination.into(),
            dataplane::PortRange {
                first: rule.ports.first,
                last: rule.ports.last,
            },
        )],
        protocols: vec![TCP],
    };
    let local = local();
    Rules {
        rules: (0..).zip(plain).map(rule).collect(),
        addresses: local.addresses,
        routes: local.routes,
        ..Rules::default()
    }
}

fn for_model(plain: &[Plain]) -> Result<filter::Rules> {
    let rule = |rule: &Plain| FilterRule {
        src_ips: vec![rule.source.to_string()],
        dst_ports: vec![NetPortRange {
            ip: rule.destination.to_string(),
            ports: rule.ports,
            ..NetPortRange::default()
        }],
        ip_proto: vec![TCP.into()],
        ..FilterRule::default()
    };
    let rules: Vec<_> = plain.iter().map(rule).collect();
    Ok(filter::Rules::parse(&rules, |_| Vec::new(), &[])?)
}

#[test]
fn ten_thousand_overlapping_rules_load_at_once_and_admit_what_the_model_admits() -> Result<()> {
    skip_without_bpf!();
    let mut random = Random::new(11);
    let plain = rules(&mut random);
    let rules = for_programs(&plain);
    let mut trial = Trial::load_as(TrialKind::Filter)?;
    let mut best = Duration::MAX;
    for _ in 0..3 {
        trial.set_rules(&Rules::default())?;
        let begin = Instant::now();
        trial.set_rules(&rules)?;
        best = best.min(begin.elapsed());
        ensure!(trial.is_linear(), "pairs have sufficed");
    }
    println!("{RULES} overlapping rules in force after {best:?}");
    ensure!(best < scaled(Duration::from_secs(2)), "{best:?}");

    let model_rules = for_model(&plain)?;
    let mut model = Filter::new(local(), [].into_iter().collect(), model_rules);
    let (mut admitted, mut cost) = (0, [Vec::new(), Vec::new()]);
    for step in 0..PACKETS {
        let rule = &plain[random.below(RULES)];
        let mut inside = |net: Ipv4Net| {
            let spread = random.below(1 << 24) as u32 & u32::from(net.hostmask());
            IpAddr::from(Ipv4Addr::from(u32::from(net.network()) | spread))
        };
        let (src, dst) = (inside(rule.source), inside(rule.destination));
        // Half of them at the rule's ports, the others at any.
        let port = if random.one_in(2) {
            rule.ports.first
        } else {
            random.below(1 << 16) as u16
        };
        let frame = Ip::new(src, dst).tcp(1 + step as u16, port, SYN, b"");
        let input = Program::Overlay(Direction::In);
        let outcome = trial.run(input, &frame, Gso::default(), 1)?;
        let expected = model.inbound(&frame, step as u64);
        let passes = matches!(expected, Verdict::Accept(_));
        ensure!(
            outcome.verdict == if passes { -1 } else { 2 },
            "{src} to {dst}, port {port}: model {expected:?}, program {}",
            outcome.verdict
        );
        admitted += usize::from(passes);
        if step < 200 {
            // Known or strangers: strangers run through the list each time.
            let run = trial.run(input, &frame, Gso::default(), 50)?;
            cost[usize::from(passes)].push(run.duration);
        }
    }
    let [refused, known] = cost.map(|mut runs| {
        runs.sort_unstable();
        runs.get(runs.len() / 2).copied()
    });
    println!(
        "{admitted} of {PACKETS} admitted; a packet that no rule admits {refused:?}, of a known flow {known:?}"
    );
    ensure!(
        admitted > PACKETS / 4 && admitted < PACKETS,
        "{admitted} admitted"
    );
    Ok(())
}
