//! Rules from the wire: their grammar, what spoils them, what they grant.

use std::collections::BTreeMap;

use control_proto::tailcfg::{CapGrant, CapMap};
use ipnet::IpNet;
use serde_json::json;

use super::*;

fn admits(source: &str, src: &str) -> bool {
    let rules = parsed(&[rule(&[source], &[("*", 0, 65535)], &[])]);
    let src: IpAddr = src.parse().unwrap();
    let dst = if src.is_ipv4() {
        NETS[0].us
    } else {
        NETS[1].us
    };
    rules.admit(6, src, dst, 22)
}

#[test]
fn sources_are_wildcards_addresses_prefixes_and_ranges() {
    for (source, inside, outside) in [
        (
            "100.64.0.7",
            &["100.64.0.7"][..],
            &["100.64.0.8", "::1"][..],
        ),
        ("fd7a::7", &["fd7a::7"], &["fd7a::8", "100.64.0.7"]),
        (
            "100.64.0.0/30",
            &["100.64.0.0", "100.64.0.3"],
            &["100.64.0.4", "100.63.255.255"],
        ),
        ("fd7a::/16", &["fd7a::", "fd7a:ffff::1"], &["fd7b::"]),
        (
            "100.64.0.7-100.64.0.9",
            &["100.64.0.7", "100.64.0.8", "100.64.0.9"],
            &["100.64.0.6", "100.64.0.10"],
        ),
        ("fd7a::7-fd7a::9", &["fd7a::8"], &["fd7a::a"]),
        ("*", &["0.0.0.0", "255.255.255.255", "::", "ffff::"], &[]),
    ] {
        for src in inside {
            assert!(admits(source, src), "{source} lacks {src}");
        }
        for src in outside {
            assert!(!admits(source, src), "{source} has {src}");
        }
    }
}

#[test]
fn an_entry_that_cannot_be_read_is_left_out_and_told() {
    for text in [
        "100.64.0.1/24",
        "fd7a::1/16",
        "100.64.0.0/33",
        "100.64.0.9-100.64.0.7",
        "100.64.0.1-fd7a::1",
        "100.64.0.1-",
        "1-2-3",
        "100.64.0",
        "host",
        "",
    ] {
        let rules = parsed(&[rule(
            &[text, "100.64.0.2"],
            &[(text, 0, 9), ("100.64.0.1", 22, 22)],
            &[],
        )]);
        let [source, destination] = rules.invalid() else {
            panic!("{text}: {:?}", rules.invalid());
        };
        assert_eq!((source.rule, source.text.as_str()), (0, text));
        assert_eq!(source, destination);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(rules.admit(6, ip("100.64.0.2"), ip("100.64.0.1"), 22));
        assert!(!rules.admit(6, ip("100.64.0.1"), ip("100.64.0.1"), 22));
    }
    let rules = parsed(&[rule(&["*"], &[("cap:funnel", 0, 65535)], &[])]);
    assert_eq!(rules.invalid().len(), 1, "a capability is no destination");
}

#[test]
fn what_is_wrong_with_an_entry_is_said() {
    let rules = parsed(&[rule(&["10.0.0.1/8"], &[("*", 0, 9)], &[])]);
    assert_eq!(
        rules.invalid()[0].to_string(),
        "filter rule 0: `10.0.0.1/8` has bits set beyond the length of its prefix; this entry is ignored"
    );
}

#[test]
fn prefix_lengths_beside_addresses_spoil_all_rules() {
    let good = NETS[0].allow(22, 22, &[]);
    let mut source = good.clone();
    source.src_bits = vec![24];
    let mut destination = good.clone();
    destination.dst_ports[0].bits = Some(24);
    for (bad, field) in [(source, "SrcBits"), (destination, "Bits")] {
        let error = Rules::parse(&[good.clone(), bad], |_| Vec::new(), &[]).unwrap_err();
        assert_eq!(error, RulesError::Deprecated { rule: 1, field });
    }
}

#[test]
fn a_rule_for_an_unsigned_peer_spoils_all_rules() {
    let unsigned: [IpNet; 2] = [
        "100.64.0.2/32".parse().unwrap(),
        "10.9.0.0/16".parse().unwrap(),
    ];
    let parse = |source: &str, destinations: &[(&str, u16, u16)]| {
        Rules::parse(
            &[rule(&[source], destinations, &[])],
            |_| Vec::new(),
            &unsigned,
        )
    };
    let to_us = [("100.64.0.1", 22, 22)];
    for source in ["*", "100.64.0.0/10", "100.64.0.2", "10.9.9.9"] {
        let error = parse(source, &to_us).unwrap_err();
        assert!(
            matches!(error, RulesError::UnsignedPeer { rule: 0, .. }),
            "{source}"
        );
    }
    assert!(parse("100.64.0.3", &to_us).is_ok());
    // Capabilities are no packets.
    assert!(parse("*", &[]).is_ok());
}

#[test]
fn protocol_numbers_that_do_not_exist_are_left_out() {
    let rules = parsed(&[rule(&["*"], &[("*", 0, 65535)], &[6, 262, -250, 300])]);
    let [net, _] = NETS;
    assert!(rules.admit(6, net.peer, net.us, 22));
    assert!(!rules.admit(17, net.peer, net.us, 22));
    // Listing only such is not the same as listing none.
    let rules = parsed(&[rule(&["*"], &[("*", 0, 65535)], &[262])]);
    assert!(!rules.admit(6, net.peer, net.us, 22));
}

#[test]
fn capabilities_are_collected_by_source_and_destination() {
    let [v4, v6] = NETS;
    let map = |name: &str, values: Option<Vec<serde_json::Value>>| {
        CapMap::from_iter([(name.to_owned(), values)])
    };
    let grant = |sources: &[&str], dsts: &[&str], cap_map: CapMap, caps: &[&str]| FilterRule {
        src_ips: sources.iter().map(|source| (*source).to_owned()).collect(),
        cap_grant: vec![CapGrant {
            dsts: dsts.iter().map(|dst| dst.parse().unwrap()).collect(),
            caps: caps.iter().map(|name| (*name).to_owned()).collect(),
            cap_map,
        }],
        ..FilterRule::default()
    };
    let mut filter = filter(&[
        grant(
            &["100.64.0.2"],
            &["100.64.0.1/32"],
            map("drive", Some(vec![json!({"a": 1})])),
            &[],
        ),
        grant(
            &["*"],
            &["100.64.0.0/10", "fd7a::/16"],
            map("drive", Some(vec![json!(2)])),
            &["web"],
        ),
        grant(&["*"], &["100.64.0.9/32"], map("elsewhere", None), &[]),
        grant(&["*"], &["100.64.0.1/32"], map("flag", None), &[]),
    ]);
    let named = |entries: &[(&str, &[serde_json::Value])]| -> Capabilities {
        let own =
            |(name, values): &(&str, &[serde_json::Value])| ((*name).to_owned(), values.to_vec());
        entries.iter().map(own).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(
        filter.capabilities(v4.peer, v4.us),
        named(&[
            ("drive", &[json!({"a": 1}), json!(2)]),
            ("flag", &[]),
            ("web", &[])
        ])
    );
    assert_eq!(
        filter.capabilities(v4.other, v4.us),
        named(&[("drive", &[json!(2)]), ("flag", &[]), ("web", &[])])
    );
    assert_eq!(
        filter.capabilities(v6.peer, v6.us),
        named(&[("drive", &[json!(2)]), ("web", &[])])
    );
    // They admit no packet.
    let syn = v4.inbound().tcp(1, 2, packet::build::SYN, b"");
    assert_eq!(filter.inbound(&syn, NOW), dropped(DropReason::NoRule));
    filter.set_local(Local {
        shields_up: true,
        ..local()
    });
    assert_eq!(filter.capabilities(v4.peer, v4.us), Capabilities::new());
}
