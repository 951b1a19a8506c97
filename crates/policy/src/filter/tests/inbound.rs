//! Inbound packets that no flow decides: protocols, shields, jail, PeerAPI, expiry.

use packet::build::{ACK, FIN, RST, SYN};

use super::*;

#[test]
fn a_connection_needs_a_rule_for_its_protocol_address_and_port() {
    for net in NETS {
        let mut filter = filter(&[net.allow(80, 90, &[6])]);
        let tcp = |port| net.inbound().tcp(40_000, port, SYN, b"");
        for (port, verdict) in [
            (79, dropped(DropReason::NoRule)),
            (80, ACL),
            (90, ACL),
            (91, dropped(DropReason::NoRule)),
        ] {
            assert_eq!(filter.inbound(&tcp(port), NOW), verdict, "port {port}");
        }
        let udp = net.inbound().udp(40_000, 80, b"");
        assert_eq!(filter.inbound(&udp, NOW), dropped(DropReason::NoRule));
    }
}

#[test]
fn rules_without_protocols_are_for_tcp_udp_and_icmp() {
    for net in NETS {
        let mut filter = filter(&[net.allow(0, 65535, &[])]);
        let ip = net.inbound();
        assert_eq!(filter.inbound(&ip.tcp(1, 2, SYN, b""), NOW), ACL);
        assert_eq!(filter.inbound(&ip.udp(1, 2, b""), NOW), ACL);
        assert_eq!(filter.inbound(&ip.echo_request(1, 1, b""), NOW), ACL);
        // The other family's ICMP is no ICMP here, but it is in the list.
        let foreign_icmp = if net.us.is_ipv4() { 58 } else { 1 };
        assert_eq!(filter.inbound(&ip.raw(foreign_icmp, &[8; 8]), NOW), ACL);
        for packet in [ip.sctp(1, 2, b""), ip.raw(47, &[0; 8])] {
            assert_eq!(filter.inbound(&packet, NOW), dropped(DropReason::NoRule));
        }
    }
}

#[test]
fn sctp_is_admitted_where_it_is_listed() {
    for net in NETS {
        let mut filter = filter(&[net.allow(36412, 36412, &[132])]);
        let sctp = |port| net.inbound().sctp(40_000, port, &[1, 0, 0, 20]);
        assert_eq!(filter.inbound(&sctp(36412), NOW), ACL);
        assert_eq!(
            filter.inbound(&sctp(36413), NOW),
            dropped(DropReason::NoRule)
        );
    }
}

#[test]
fn every_combination_of_tcp_flags_needs_a_rule_or_a_flow() {
    for net in NETS {
        let mut open = filter(&[net.allow(22, 22, &[6])]);
        let mut closed = filter(&[]);
        for flags in 0..=0x3f {
            let packet = net.inbound().tcp(40_000, 22, flags, b"");
            assert_eq!(open.inbound(&packet, NOW), ACL, "flags {flags:#x}");
            let opens = flags & (SYN | ACK) == SYN;
            let reason = if opens {
                DropReason::NoRule
            } else {
                DropReason::NoFlow
            };
            assert_eq!(
                closed.inbound(&packet, NOW),
                dropped(reason),
                "flags {flags:#x}"
            );
        }
    }
}

#[test]
fn protocols_without_ports_need_a_rule_for_all_ports_in_one_piece() {
    for net in NETS {
        let us = net.us.to_string();
        let peer = net.peer.to_string();
        let gre = net.inbound().raw(47, &[0; 20]);
        for (destinations, verdict) in [
            (vec![(us.as_str(), 0, 65535)], ACL),
            (vec![(us.as_str(), 1, 65535)], dropped(DropReason::NoRule)),
            (
                vec![(us.as_str(), 0, 99), (us.as_str(), 100, 65535)],
                dropped(DropReason::NoRule),
            ),
        ] {
            let rules = [rule(&[&peer], &destinations, &[47])];
            assert_eq!(
                filter(&rules).inbound(&gre, NOW),
                verdict,
                "{destinations:?}"
            );
        }
        let other = Ip::new(net.other, net.us).raw(47, &[0; 20]);
        let rules = [rule(&[&peer], &[(&us, 0, 65535)], &[47])];
        assert_eq!(
            filter(&rules).inbound(&other, NOW),
            dropped(DropReason::NoRule)
        );
    }
}

#[test]
fn any_open_port_admits_every_icmp_that_asks() {
    for net in NETS {
        // Neither the ports nor the protocols of the rule matter.
        let mut filter = filter(&[net.allow(1, 1, &[47])]);
        for kind in [5, 8, 13, 128, 135, 200] {
            let message = net.inbound().icmp(kind, 0, [0; 4], &[0; 8]);
            assert_eq!(filter.inbound(&message, NOW), ACL, "type {kind}");
        }
        let lan = Ip::new(net.peer, net.lan).echo_request(1, 1, b"");
        assert_eq!(filter.inbound(&lan, NOW), dropped(DropReason::NoRule));
    }
}

#[test]
fn a_rule_may_be_wider_than_the_node_but_only_our_addresses_are_reached() {
    for net in NETS {
        let mut filter = filter(&[rule(&["*"], &[("*", 0, 65535)], &[6, 17, 1, 58, 47])]);
        for dst in [net.us, net.lan] {
            let packet = Ip::new(net.peer, dst).udp(1, 2, b"");
            assert_eq!(filter.inbound(&packet, NOW), ACL);
        }
        for dst in [net.foreign, net.peer] {
            let ip = Ip::new(net.other, dst);
            for packet in [
                ip.udp(1, 2, b""),
                ip.echo_request(1, 1, b""),
                ip.raw(47, b""),
            ] {
                assert_eq!(filter.inbound(&packet, NOW), dropped(DropReason::NotLocal));
            }
        }
    }
}

#[test]
fn tsmp_to_a_foreign_address_is_dropped() {
    for net in NETS {
        let packet = Ip::new(net.peer, net.foreign).tsmp(&[0; 7]);
        assert_eq!(
            filter(&[]).inbound(&packet, NOW),
            dropped(DropReason::NotLocal)
        );
    }
}

#[test]
fn a_capability_is_a_source_for_packets_with_ports_and_pings() {
    for net in NETS {
        let us = net.us.to_string();
        let all = [rule(&["cap:funnel"], &[(&us, 0, 65535)], &[6, 47])];
        let capable = |name: &str| {
            assert_eq!(name, "funnel");
            vec![net.peer]
        };
        let rules = Rules::parse(&all, capable, &[]).unwrap();
        let mut filter = Filter::new(local(), Peers::default(), rules);
        let ip = net.inbound();
        assert_eq!(filter.inbound(&ip.tcp(1, 22, SYN, b""), NOW), ACL);
        assert_eq!(filter.inbound(&ip.echo_request(1, 1, b""), NOW), ACL);
        // The destination counts for pings too.
        let lan = Ip::new(net.peer, net.lan).echo_request(1, 1, b"");
        assert_eq!(filter.inbound(&lan, NOW), dropped(DropReason::NoRule));
        // Other protocols do not look at capabilities.
        assert_eq!(
            filter.inbound(&ip.raw(47, b""), NOW),
            dropped(DropReason::NoRule)
        );
        let other = Ip::new(net.other, net.us).tcp(1, 22, SYN, b"");
        assert_eq!(filter.inbound(&other, NOW), dropped(DropReason::NoRule));
    }
}

#[test]
fn shields_up_leaves_what_we_opened_and_tsmp() {
    for net in NETS {
        let mut filter = filter(&[rule(&["*"], &[("*", 0, 65535)], &[])]);
        let (out, ip) = (net.outbound(), net.inbound());
        let query = out.udp(40_000, 53, b"");
        filter.outbound(&query, NOW);
        filter.outbound(&out.tcp(40_001, 80, SYN, b""), NOW);
        filter.outbound(&out.echo_request(7, 1, b""), NOW);
        filter.set_local(Local {
            shields_up: true,
            ..local()
        });

        for packet in [
            ip.udp(53, 40_000, b""),
            ip.tcp(80, 40_001, SYN | ACK, b""),
            ip.tcp(80, 40_001, FIN | ACK, b""),
            ip.echo_reply(7, 1, b""),
        ] {
            assert_eq!(filter.inbound(&packet, NOW), OPENED);
        }
        let error = Verdict::Accept(AcceptReason::IcmpError);
        assert_eq!(filter.inbound(&ip.unreachable(&query, 576), NOW), error);
        let tsmp = Verdict::Accept(AcceptReason::Tsmp);
        assert_eq!(filter.inbound(&ip.tsmp(&[0; 7]), NOW), tsmp);
        for packet in [
            ip.udp(53, 40_009, b""),
            ip.tcp(80, 22, SYN, b""),
            ip.tcp(80, 22, RST, b""),
            ip.echo_request(8, 1, b""),
        ] {
            assert_eq!(filter.inbound(&packet, NOW), dropped(DropReason::ShieldsUp));
        }

        filter.set_local(local());
        assert_eq!(filter.inbound(&ip.tcp(80, 22, SYN, b""), NOW), ACL);
    }
}

#[test]
fn a_jailed_peer_may_answer_and_nothing_else() {
    for net in NETS {
        let jailed = Peer {
            jailed: true,
            ..Peer::default()
        };
        let mut filter = filter(&[rule(&["*"], &[("*", 0, 65535)], &[])]);
        filter.set_peers(Peers::from_iter([
            (net.peer.into(), jailed),
            (net.other.into(), Peer::default()),
        ]));
        let syn = |src| Ip::new(src, net.us).tcp(40_000, 22, SYN, b"");
        assert_eq!(
            filter.inbound(&syn(net.peer), NOW),
            dropped(DropReason::Jailed)
        );
        assert_eq!(filter.inbound(&syn(net.other), NOW), ACL);

        filter.outbound(&net.outbound().udp(40_000, 53, b""), NOW);
        assert_eq!(
            filter.inbound(&net.inbound().udp(53, 40_000, b""), NOW),
            OPENED
        );

        // Released, it may at once; jailed again, its connections are cut as well.
        let jail = Peers::from_iter([(net.peer.into(), jailed)]);
        filter.set_peers(Peers::default());
        assert_eq!(filter.inbound(&syn(net.peer), NOW), ACL);
        filter.set_peers(jail);
        let reason = dropped(DropReason::Jailed);
        assert_eq!(filter.inbound(&syn(net.peer), NOW), reason);
    }
}

#[test]
fn the_longest_prefix_says_which_peer_a_source_is() {
    let net = NETS[0];
    let jailed = Peer {
        jailed: true,
        ..Peer::default()
    };
    let mut filter = filter(&[rule(&["*"], &[("*", 0, 65535)], &[])]);
    filter.set_peers(Peers::from_iter([
        ("192.168.0.0/16".parse().unwrap(), jailed),
        ("192.168.7.0/24".parse().unwrap(), Peer::default()),
    ]));
    let from = |src| Ip::new(v4(src), net.us).udp(1, 2, b"");
    assert_eq!(
        filter.inbound(&from([192, 168, 6, 1]), NOW),
        dropped(DropReason::Jailed)
    );
    assert_eq!(filter.inbound(&from([192, 168, 7, 1]), NOW), ACL);
    assert_eq!(filter.inbound(&from([192, 169, 7, 1]), NOW), ACL);
}

#[test]
fn peerapi_is_reached_without_a_rule_even_behind_shields_and_from_jail() {
    let peer_api = PeerApi {
        v4: Some(40_004),
        v6: Some(40_006),
    };
    for (net, port, others) in [(NETS[0], 40_004, 40_006), (NETS[1], 40_006, 40_004)] {
        for shields_up in [false, true] {
            let mut filter = filter(&[]);
            filter.set_local(Local {
                peer_api,
                shields_up,
                ..local()
            });
            let jailed = Peer {
                jailed: true,
                ..Peer::default()
            };
            filter.set_peers(Peers::from_iter([(net.peer.into(), jailed)]));

            let reached = Verdict::Accept(AcceptReason::PeerApi);
            for flags in [SYN, ACK, FIN | ACK] {
                let packet = net.inbound().tcp(50_000, port, flags, b"");
                assert_eq!(filter.inbound(&packet, NOW), reached);
            }
            let not = |packet: Vec<u8>, filter: &mut Filter| {
                let verdict = filter.inbound(&packet, NOW);
                assert!(matches!(verdict, Verdict::Drop(_)), "{verdict:?}");
            };
            // The other family's port, UDP, an address that is only routed.
            not(net.inbound().tcp(50_000, others, SYN, b""), &mut filter);
            not(net.inbound().udp(50_000, port, b""), &mut filter);
            not(
                Ip::new(net.peer, net.lan).tcp(50_000, port, SYN, b""),
                &mut filter,
            );
            // It does not count as an open port for pings.
            not(net.inbound().echo_request(1, 1, b""), &mut filter);
        }
    }
}

#[test]
fn an_error_about_a_peerapi_connection_passes() {
    for net in NETS {
        let mut filter = filter(&[]);
        let peer_api = PeerApi {
            v4: Some(4000),
            v6: Some(4000),
        };
        filter.set_local(Local {
            peer_api,
            ..local()
        });
        filter.inbound(&net.inbound().tcp(50_000, 4000, SYN, b""), NOW);
        let ours = net.outbound().tcp(4000, 50_000, ACK, &[0; 1200]);
        let error = net.inbound().too_big(&ours, 1000);
        let passes = Verdict::Accept(AcceptReason::IcmpError);
        assert_eq!(filter.inbound(&error, NOW), passes);
    }
}

#[test]
fn expiry_of_our_key_stops_everything_and_of_a_peers_what_is_the_peers() {
    for net in NETS {
        let mut filter = filter(&[rule(&["*"], &[("*", 0, 65535)], &[])]);
        let expires = Some(NOW + 10);
        filter.set_peers(Peers::from_iter([(
            net.peer.into(),
            Peer {
                expires,
                jailed: false,
            },
        )]));
        let (ip, other) = (net.inbound(), Ip::new(net.other, net.us));
        let from_peer = ip.udp(1, 2, b"");
        let to_peer = net.outbound().udp(2, 3, b"");
        assert_eq!(filter.inbound(&from_peer, NOW + 9), ACL);
        assert_eq!(filter.outbound(&to_peer, NOW + 9), OUTBOUND);
        let reason = dropped(DropReason::PeerExpired);
        assert_eq!(filter.inbound(&from_peer, NOW + 10), reason);
        assert_eq!(filter.inbound(&ip.tsmp(&[0; 7]), NOW + 10), reason);
        assert_eq!(filter.outbound(&to_peer, NOW + 10), reason);
        assert_eq!(filter.inbound(&other.udp(1, 2, b""), NOW + 10), ACL);

        filter.set_local(Local { expires, ..local() });
        assert_eq!(filter.inbound(&other.udp(1, 2, b""), NOW + 9), ACL);
        let reason = dropped(DropReason::KeyExpired);
        assert_eq!(filter.inbound(&other.udp(1, 2, b""), NOW + 10), reason);
        assert_eq!(
            filter.outbound(&other.reversed().udp(1, 2, b""), NOW + 10),
            reason
        );
    }
}
