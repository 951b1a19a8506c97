//! Tables looked up as the programs do, against a plain reading of the rules.

use std::{net::IpAddr, time::Instant};

use super::*;

const ALL: PortRange = PortRange::ALL;

fn net(text: &str) -> IpNet {
    text.parse()
        .unwrap_or_else(|_| IpNet::from(text.parse::<IpAddr>().unwrap()))
}

fn rule(sources: &[&str], destinations: &[(&str, u16, u16)], protocols: &[u8]) -> Rule {
    Rule {
        sources: sources.iter().map(|text| net(text)).collect(),
        destinations: destinations
            .iter()
            .map(|(text, first, last)| {
                let (first, last) = (*first, *last);
                (net(text), PortRange { first, last })
            })
            .collect(),
        protocols: protocols.to_vec(),
        ..Rule::default()
    }
}

/// This node at 100.64.0.1 and fd7a::1, which serves 10.1.0.0/16 and fd00:1::/32.
fn rules(rules: Vec<Rule>) -> Rules {
    Rules {
        rules,
        addresses: vec!["100.64.0.1".parse().unwrap(), "fd7a::1".parse().unwrap()],
        routes: vec![net("10.1.0.0/16"), net("fd00:1::/32")],
        ..Rules::default()
    }
}

fn compiled(given: &Rules) -> ClassTables {
    compile(given, LIMITS).unwrap()
}

fn compiled_linear(given: &Rules) -> ClassTables {
    compile_as(given, LIMITS, Form::Linear).unwrap()
}

fn class_in<A: Copy + PartialEq>(
    table: &Addresses<A>,
    address: A,
    bits: impl Fn(A) -> u128,
) -> Option<Class> {
    let host = table.hosts.iter().find(|(host, _)| *host == address);
    let covering = table.nets.iter().filter(|(len, net, _)| {
        let differing = bits(*net) ^ bits(address);
        differing.leading_zeros() >= *len
    });
    host.map(|(_, class)| *class).or_else(|| {
        let longest = covering.max_by_key(|(len, _, _)| *len);
        longest.map(|(_, _, class)| *class)
    })
}

fn class(tables: &ClassTables, side: usize, address: IpAddr) -> Option<Class> {
    match address {
        IpAddr::V4(address) => class_in(&tables.v4[side], address.octets(), |octets| {
            u128::from(u32::from_be_bytes(octets)) << 96
        }),
        IpAddr::V6(address) => class_in(&tables.v6[side], address.octets(), u128::from_be_bytes),
    }
}

/// What the programs answer; `None` if the destination is not ours.
fn looked_up(
    tables: &ClassTables,
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    port: u16,
) -> Option<Option<u32>> {
    let destination = class(tables, 1, dst)? & !CLASS_OWN;
    let Some(source) = class(tables, 0, src) else {
        return Some(None);
    };
    let pair = Pair {
        source,
        destination,
        protocol: protocol.into(),
    };
    let pair = match tables.linear {
        Some(_) => Pair { source: 0, ..pair },
        None => pair,
    };
    let found = tables.pairs.iter().find(|(found, _)| *found == pair);
    Some(found.and_then(|(_, ports)| {
        let holds = |range: PortRange| (range.first..=range.last).contains(&port);
        let list = ports.first as usize..(ports.first + ports.len) as usize;
        if let Some(linear) = &tables.linear {
            let mut ends = linear.ends[list].iter();
            let is_member = |list| {
                let (word, bit) = member_bit(source, list, linear.member_words);
                linear.members[word as usize] >> bit & 1 == 1
            };
            let end = ends.find(|end| holds(end.ports) && is_member(end.sources));
            return end.map(|end| end.rule);
        }
        let mut ranges = match ports.len {
            0 => ports.ranges.iter(),
            _ => tables.port_lists[list].iter(),
        };
        ranges
            .find(|range| holds(range.ports))
            .map(|range| range.rule)
    }))
}

/// The rules, read as they stand.
fn read(rules: &Rules, src: IpAddr, dst: IpAddr, protocol: u8, port: u16) -> Option<Option<u32>> {
    let local = rules.addresses.contains(&dst) || rules.routes.iter().any(|net| net.contains(&dst));
    let icmp = if dst.is_ipv4() { ICMP } else { ICMPV6 };
    local.then(|| {
        if rules.shields_up {
            return None;
        }
        let mut rules = (0..).zip(&rules.rules);
        let first = rules.find(|(_, rule)| {
            rule.sources.iter().any(|net| net.contains(&src))
                && rule.destinations.iter().any(|(net, ports)| {
                    let listed = rule.protocols.contains(&protocol);
                    net.contains(&dst)
                        && match protocol {
                            TCP | UDP | SCTP => {
                                listed && (ports.first..=ports.last).contains(&port)
                            }
                            number if number == icmp => true,
                            _ => listed && *ports == ALL,
                        }
                })
        });
        first.map(|(number, _)| number)
    })
}

#[test]
fn tables_say_what_the_rules_say() {
    let many: Vec<_> = (0..20)
        .map(|i| ("10.1.2.0/24", 100 * i, 100 * i + 9))
        .collect();
    let many_hosts: Vec<String> = (2..40).map(|host| format!("100.64.0.{host}")).collect();
    let many_hosts: Vec<&str> = many_hosts.iter().map(String::as_str).collect();
    let sets = [
        rules(vec![]),
        rules(vec![rule(
            &["0.0.0.0/0", "::/0"],
            &[("0.0.0.0/0", 0, 65_535), ("::/0", 22, 22)],
            &[1, 6, 17, 58],
        )]),
        rules(vec![
            rule(
                &["100.64.0.2", "100.64.0.0/28"],
                &[("100.64.0.1", 22, 22)],
                &[6],
            ),
            rule(
                &["100.64.0.0/16"],
                &[("10.0.0.0/8", 53, 53), ("10.1.2.3", 80, 90)],
                &[17, 6],
            ),
            rule(
                &["100.64.0.4", "fd7a::4"],
                &[("10.1.2.3", 0, 65_535), ("fd00::/16", 0, 65_535)],
                &[47, 132],
            ),
            rule(
                &["fd7a::/64"],
                &[("fd7a::1", 443, 443), ("fd00:1:2::/48", 1, 1)],
                &[6],
            ),
        ]),
        rules(vec![
            rule(&many_hosts, &many, &[6, 17]),
            rule(&["100.64.0.7"], &[("10.1.2.9", 5, 5)], &[6]),
        ]),
        // The wrong way round, as no rule should be: no port, but somebody may be pinged.
        rules(vec![rule(&["100.64.0.2"], &[("100.64.0.1", 9, 8)], &[6])]),
        Rules {
            shields_up: true,
            ..rules(vec![rule(
                &["0.0.0.0/0"],
                &[("0.0.0.0/0", 0, 65_535)],
                &[6],
            )])
        },
    ];
    let addresses = [
        "100.64.0.1",
        "100.64.0.2",
        "100.64.0.4",
        "100.64.0.7",
        "100.64.0.17",
        "100.65.0.1",
        "10.1.2.3",
        "10.1.2.9",
        "10.1.200.1",
        "10.2.0.1",
        "8.8.8.8",
        "fd7a::1",
        "fd7a::4",
        "fd7a:0:0:1::1",
        "fd00:1:2::3",
        "fd00:1::3",
        "fd00:2::3",
    ]
    .map(|text| text.parse::<IpAddr>().unwrap());
    let mut admitted = 0;
    for set in &sets {
        let linear = compiled_linear(set);
        let tables = compiled(set);
        for src in addresses {
            for dst in addresses
                .into_iter()
                .filter(|dst| dst.is_ipv4() == src.is_ipv4())
            {
                for protocol in [1, 6, 17, 47, 58, 132] {
                    for port in [
                        0, 1, 5, 8, 9, 22, 53, 80, 90, 91, 105, 110, 443, 511, 512, 513, 1909,
                        1910, 65_535,
                    ] {
                        let expected = read(set, src, dst, protocol, port);
                        let found = looked_up(&tables, src, dst, protocol, port);
                        assert_eq!(
                            found, expected,
                            "{src} to {dst}, {protocol}/{port}: {set:?}"
                        );
                        let found = looked_up(&linear, src, dst, protocol, port);
                        assert_eq!(
                            found, expected,
                            "end by end, {src} to {dst}, {protocol}/{port}: {set:?}"
                        );
                        admitted += u32::from(found.flatten().is_some());
                    }
                }
            }
        }
    }
    assert!(admitted > 1000, "{admitted}");
}

#[test]
fn own_addresses_are_marked_and_routes_are_not() {
    let tables = compiled(&rules(vec![]));
    let own = |text: &str| class(&tables, 1, text.parse().unwrap());
    assert_eq!(own("100.64.0.1"), Some(CLASS_OWN));
    assert_eq!(own("fd7a::1"), Some(CLASS_OWN));
    assert_eq!(own("10.1.2.3"), Some(0));
    assert_eq!(own("10.2.0.0"), None);
}

#[test]
fn peers_of_the_same_rules_share_a_class() {
    let sources: Vec<String> = (2..200).map(|host| format!("100.64.0.{host}")).collect();
    let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
    let tables = compiled(&rules(vec![rule(
        &sources,
        &[("100.64.0.1", 22, 22)],
        &[6],
    )]));
    assert_eq!(tables.v4[0].hosts.len(), sources.len());
    // One class of sources: TCP and ICMP.
    assert_eq!(tables.pairs.len(), 2);
}

#[test]
fn what_does_not_fit_says_so_and_by_how_much() {
    let nested = |count: u8| {
        let rules = (0..count).map(|i| {
            let (source, port) = (format!("100.64.{i}.0/24"), u16::from(i));
            rule(&[&source], &[("100.64.0.1", port, port)], &[6, 17])
        });
        super::super::Rules {
            addresses: vec!["100.64.0.1".parse().unwrap()],
            rules: rules.collect(),
            ..Rules::default()
        }
    };
    let tight = Limits {
        pairs: 40,
        port_ranges: 5,
        members: 1000,
        ends: 0,
        member_words: 1 << 10,
    };
    assert!(compile(&nested(5), tight).is_ok());
    let error = compile(&nested(30), tight).unwrap_err();
    assert_eq!(error, TooLarge::Pairs { limit: 40 });
    assert!(error.to_string().contains("more than 40 pairs"), "{error}");

    let few = Limits {
        members: 10,
        ..LIMITS
    };
    assert_eq!(
        compile(&nested(30), few),
        Err(TooLarge::Members { limit: 10 })
    );

    let scattered: Vec<_> = (0..9).map(|i| ("100.64.0.1", 2000 * i, 2000 * i)).collect();
    let scattered = rules(vec![rule(&["100.64.0.2"], &scattered, &[6])]);
    assert_eq!(
        compile(&scattered, tight),
        Err(TooLarge::PortRanges { limit: 5 })
    );
    let roomy = Limits { ends: 100, ..tight };
    for too_many in [nested(30), scattered] {
        let tables = compile(&too_many, roomy).unwrap();
        assert!(tables.linear.is_some());
    }
}

#[test]
fn ten_thousand_rules_compile_in_a_fraction_of_two_seconds() {
    let begin = Instant::now();
    let tables = compiled(&rules(
        (0..10_000)
            .map(|i: u32| {
                let source = format!("100.{}.{}.{}", 64 + i / 65_536, i / 256 % 256, i % 256);
                let port = (i % 60_000) as u16;
                rule(&[&source], &[("100.64.0.1", port, port)], &[6])
            })
            .collect(),
    ));
    assert_eq!(tables.v4[0].hosts.len(), 10_000);
    println!("{:?}", begin.elapsed());
    assert!(begin.elapsed().as_secs() < 2);
}
