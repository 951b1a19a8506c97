//! The vectors of filter.md section 20, and those that follow from design.md 3.5.

use packet::build::{ACK, SYN, fragments};

use super::*;

/// The section's rules, in both families.
fn section_20() -> Filter {
    let [v4, v6] = NETS;
    filter(&[
        v4.allow(22, 22, &[]),
        v6.allow(22, 22, &[]),
        rule(
            &["*"],
            &[("10.1.0.0/16", 53, 53), ("fd00:1::/32", 53, 53)],
            &[17],
        ),
    ])
}

#[track_caller]
fn check(packet: &[u8], verdict: Verdict) {
    assert_eq!(section_20().inbound(packet, NOW), verdict);
}

#[test]
fn only_the_source_that_a_rule_names_may_open() {
    for net in NETS {
        check(&net.inbound().tcp(40_000, 22, SYN, b""), ACL);
        check(
            &net.inbound().tcp(40_000, 23, SYN, b""),
            dropped(DropReason::NoRule),
        );
        let other = Ip::new(net.other, net.us);
        check(
            &other.tcp(40_000, 22, SYN, b""),
            dropped(DropReason::NoRule),
        );
    }
}

#[test]
fn a_refused_ipv4_connection_is_answered_through_tsmp() {
    let [v4, v6] = NETS;
    let reject = |packet: &[u8], shields_up| {
        let mut filter = section_20();
        filter.set_local(Local {
            shields_up,
            ..local()
        });
        match filter.inbound(packet, NOW) {
            Verdict::Drop(reason) => filter.reject(packet, reason),
            Verdict::Accept(reason) => panic!("{reason:?}"),
        }
    };
    let from_other = Ip::new(v4.other, v4.us);
    assert_eq!(
        reject(&from_other.tcp(40_000, 22, SYN, b""), false),
        Some(Reject::Acl)
    );
    assert_eq!(
        reject(&from_other.tcp(40_000, 22, SYN, b""), true),
        Some(Reject::ShieldsUp)
    );
    assert_eq!(
        reject(&from_other.tcp(40_000, 22, SYN | ACK, b""), false),
        None
    );
    assert_eq!(reject(&from_other.udp(40_000, 22, b""), false), None);
    assert_eq!(
        reject(&Ip::new(v6.other, v6.us).tcp(40_000, 22, SYN, b""), false),
        None
    );
}

#[test]
fn an_answer_to_a_connection_passes_only_if_we_opened_it() {
    for net in NETS {
        let from_other = Ip::new(net.other, net.us);
        let syn_ack = from_other.tcp(80, 40_000, SYN | ACK, b"");
        check(&syn_ack, dropped(DropReason::NoFlow));

        let mut filter = section_20();
        let syn = from_other.reversed().tcp(40_000, 80, SYN, b"");
        assert_eq!(filter.outbound(&syn, NOW), OUTBOUND);
        assert_eq!(filter.inbound(&syn_ack, NOW), OPENED);
    }
}

#[test]
fn whoever_may_reach_a_port_may_ping() {
    for net in NETS {
        check(&net.inbound().echo_request(7, 1, b"ping"), ACL);
        let other = Ip::new(net.other, net.us);
        check(
            &other.echo_request(7, 1, b"ping"),
            dropped(DropReason::NoRule),
        );
        // The rule that admits it is about UDP only.
        check(
            &Ip::new(net.other, net.lan).echo_request(7, 1, b"ping"),
            ACL,
        );
    }
}

#[test]
fn a_route_is_reached_at_the_port_of_its_rule() {
    for net in NETS {
        let to_lan = Ip::new(net.other, net.lan);
        check(&to_lan.udp(40_000, 53, b"query"), ACL);
        check(
            &to_lan.udp(40_000, 54, b"query"),
            dropped(DropReason::NoRule),
        );
        check(
            &to_lan.tcp(40_000, 53, SYN, b""),
            dropped(DropReason::NoRule),
        );
        let elsewhere = Ip::new(net.other, net.foreign);
        check(
            &elsewhere.udp(40_000, 53, b"query"),
            dropped(DropReason::NotLocal),
        );
    }
}

#[test]
fn a_reply_to_our_own_datagram_passes() {
    for net in NETS {
        let mut filter = section_20();
        let from_other = Ip::new(net.other, net.us);
        let reply = from_other.udp(9999, 40_000, b"reply");
        assert_eq!(filter.inbound(&reply, NOW), dropped(DropReason::NoRule));
        filter.outbound(&from_other.reversed().udp(40_000, 9999, b"query"), NOW);
        assert_eq!(filter.inbound(&reply, NOW), OPENED);
    }
}

#[test]
fn a_protocol_without_ports_has_to_be_listed() {
    for net in NETS {
        check(
            &net.inbound().raw(47, &[0; 20]),
            dropped(DropReason::NoRule),
        );
    }
}

#[test]
fn tsmp_passes_from_anybody() {
    for net in NETS {
        let tsmp = Ip::new(net.other, net.us).tsmp(&[b'!', 0, 0, 0, 0, 0, 0]);
        check(&tsmp, Verdict::Accept(AcceptReason::Tsmp));
    }
}

#[test]
fn later_fragments_need_their_first_and_tiny_offsets_never_pass() {
    for net in NETS {
        let datagram = Ip::new(net.other, net.lan).udp(40_000, 53, &[0; 2000]);
        let parts = fragments(&datagram, 1480, 7);
        check(&parts[1], dropped(DropReason::Fragment));
        let mut filter = section_20();
        assert_eq!(filter.inbound(&parts[0], NOW), ACL);
        let fragment = Verdict::Accept(AcceptReason::Fragment);
        assert_eq!(filter.inbound(&parts[1], NOW), fragment);

        let tiny = &fragments(&datagram, 40, 7)[1];
        assert_eq!(filter.inbound(tiny, NOW), dropped(DropReason::FragmentTiny));
    }
}

#[test]
fn multicast_and_link_local_destinations_are_dropped() {
    let [v4, v6] = NETS;
    for (src, dst, reason) in [
        (v4.peer, "224.0.0.251", DropReason::Multicast),
        (v6.peer, "ff02::fb", DropReason::Multicast),
        (v4.peer, "169.254.1.1", DropReason::LinkLocal),
        (v6.peer, "fe80::1", DropReason::LinkLocal),
    ] {
        let dst: IpAddr = dst.parse().unwrap();
        check(&Ip::new(src, dst).udp(1, 53, b""), dropped(reason));
    }
}

#[test]
fn the_metadata_address_is_judged_like_any_other() {
    let metadata = Ip::new(NETS[0].peer, v4([169, 254, 169, 254])).tcp(40_000, 80, SYN, b"");
    let rules = [rule(&["*"], &[("*", 80, 80)], &[])];
    // An exit node offers the Internet, of which it is no part; a subnet router may offer it.
    for (route, verdict) in [
        ("0.0.0.0/0", dropped(DropReason::NotLocal)),
        ("169.254.169.254/32", ACL),
    ] {
        let mut filter = filter(&rules);
        filter.set_local(Local {
            routes: vec![route.parse().unwrap()],
            ..local()
        });
        assert_eq!(filter.inbound(&metadata, NOW), verdict, "{route}");
    }
}

#[test]
fn hop_by_hop_options_are_dropped() {
    let packet = NETS[1]
        .inbound()
        .extension(0, &[1, 4])
        .tcp(40_000, 22, SYN, b"");
    check(&packet, dropped(DropReason::ExtensionHeader));
}

#[test]
fn an_empty_packet_passes_both_ways() {
    let empty = Verdict::Accept(AcceptReason::Empty);
    check(b"", empty);
    assert_eq!(section_20().outbound(b"", NOW), empty);
}
