//! Flows: who opened them, how long they live, what a change of policy does to them.

use packet::build::{ACK, FIN, RST, SYN};

use super::*;

const IDLE_UDP: u64 = 200 * SECOND;
const IDLE_TCP: u64 = 5 * 24 * 3600 * SECOND;
const IDLE_ECHO: u64 = 60 * SECOND;

fn no_flow() -> Verdict {
    dropped(DropReason::NoFlow)
}

#[test]
fn tcp_that_we_opened_passes_in_every_state_but_for_a_new_opening() {
    for net in NETS {
        let mut filter = filter(&[]);
        filter.outbound(&net.outbound().tcp(40_000, 80, SYN, b""), NOW);
        let packet = |flags| net.inbound().tcp(80, 40_000, flags, b"");
        for flags in [SYN | ACK, ACK, FIN | ACK, RST, RST | ACK, 0] {
            assert_eq!(filter.inbound(&packet(flags), NOW), OPENED);
        }
        assert_eq!(
            filter.inbound(&packet(SYN), NOW),
            dropped(DropReason::NoRule)
        );
        // Neighbours of the flow are not the flow.
        let ip = net.inbound();
        assert_eq!(
            filter.inbound(&ip.tcp(81, 40_000, ACK, b""), NOW),
            no_flow()
        );
        assert_eq!(
            filter.inbound(&ip.tcp(80, 40_001, ACK, b""), NOW),
            no_flow()
        );
        let other = Ip::new(net.other, net.us).tcp(80, 40_000, ACK, b"");
        assert_eq!(filter.inbound(&other, NOW), no_flow());
        let lan = Ip::new(net.peer, net.lan).tcp(80, 40_000, ACK, b"");
        assert_eq!(filter.inbound(&lan, NOW), no_flow());
    }
}

#[test]
fn only_a_syn_of_ours_opens_tcp() {
    for net in NETS {
        for flags in [SYN | ACK, ACK, FIN | ACK, RST, 0] {
            let mut filter = filter(&[]);
            let ours = net.outbound().tcp(22, 40_000, flags, b"");
            assert_eq!(filter.outbound(&ours, NOW), OUTBOUND);
            let theirs = net.inbound().tcp(40_000, 22, ACK, b"");
            assert_eq!(filter.inbound(&theirs, NOW), no_flow(), "flags {flags:#x}");
        }
    }
}

#[test]
fn removing_a_rule_cuts_live_flows_at_once_and_adding_it_again_mends_them() {
    for net in NETS {
        let rules = [net.allow(22, 22, &[6, 17])];
        let mut filter = filter(&rules);
        let (ip, out) = (net.inbound(), net.outbound());
        let tcp = ip.tcp(40_000, 22, ACK, b"data");
        let udp = ip.udp(40_000, 22, b"data");
        filter.inbound(&ip.tcp(40_000, 22, SYN, b""), NOW);
        filter.outbound(&out.tcp(22, 40_000, SYN | ACK, b""), NOW);
        assert_eq!(filter.inbound(&tcp, NOW), ACL);
        assert_eq!(filter.inbound(&udp, NOW), ACL);
        filter.outbound(&out.udp(22, 40_000, b"answer"), NOW);

        filter.set_rules(Rules::default());
        assert_eq!(filter.inbound(&tcp, NOW), no_flow());
        assert_eq!(filter.inbound(&udp, NOW), dropped(DropReason::NoRule));
        // Our side does not know yet, and goes on answering: that opens nothing.
        filter.outbound(&out.tcp(22, 40_000, ACK, b"more"), NOW);
        filter.outbound(&out.udp(22, 40_000, b"more"), NOW);
        assert_eq!(filter.inbound(&tcp, NOW), no_flow());
        assert_eq!(filter.inbound(&udp, NOW), dropped(DropReason::NoRule));

        filter.set_rules(parsed(&rules));
        assert_eq!(filter.inbound(&tcp, NOW), ACL);
        assert_eq!(filter.inbound(&udp, NOW), ACL);
    }
}

#[test]
fn what_we_opened_outlives_every_change_of_rules() {
    for net in NETS {
        let mut filter = filter(&[net.allow(0, 65535, &[])]);
        filter.outbound(&net.outbound().tcp(40_000, 80, SYN, b""), NOW);
        filter.outbound(&net.outbound().udp(40_000, 53, b""), NOW);
        filter.set_rules(Rules::default());
        assert_eq!(
            filter.inbound(&net.inbound().tcp(80, 40_000, ACK, b""), NOW),
            OPENED
        );
        assert_eq!(
            filter.inbound(&net.inbound().udp(53, 40_000, b""), NOW),
            OPENED
        );
    }
}

#[test]
fn a_restart_cuts_no_flow_that_a_rule_admits() {
    for net in NETS {
        // A filter that remembers nothing, in the middle of a connection.
        let mut filter = filter(&[net.allow(22, 22, &[])]);
        assert_eq!(
            filter.inbound(&net.inbound().tcp(40_000, 22, ACK, b"data"), NOW),
            ACL
        );
    }
}

#[test]
fn udp_and_sctp_live_200_seconds_after_the_last_packet_either_way() {
    for net in NETS {
        let (ip, out) = (net.inbound(), net.outbound());
        for (query, reply) in [
            (out.udp(40_000, 53, b""), ip.udp(53, 40_000, b"")),
            (out.sctp(40_000, 53, b""), ip.sctp(53, 40_000, b"")),
        ] {
            let mut opened = filter(&[]);
            opened.outbound(&query, NOW);
            let mut late = opened.clone();
            assert_eq!(opened.inbound(&reply, NOW + IDLE_UDP - 1), OPENED);
            assert_eq!(
                late.inbound(&reply, NOW + IDLE_UDP),
                dropped(DropReason::NoRule)
            );

            // The reply has refreshed it, and so does another query.
            let replied = NOW + IDLE_UDP - 1;
            let asked = replied + IDLE_UDP - 1;
            opened.outbound(&query, asked);
            assert_eq!(opened.inbound(&reply, asked + IDLE_UDP - 1), OPENED);
            // Forgotten, it is opened anew by the next query.
            late.outbound(&query, NOW + IDLE_UDP);
            assert_eq!(late.inbound(&reply, NOW + IDLE_UDP), OPENED);
        }
    }
}

#[test]
fn a_refresh_within_a_second_of_the_last_is_not_written() {
    let net = NETS[0];
    let mut filter = filter(&[]);
    let (query, reply) = (
        net.outbound().udp(40_000, 53, b""),
        net.inbound().udp(53, 40_000, b""),
    );
    filter.outbound(&query, NOW);
    filter.outbound(&query, NOW + SECOND - 1);
    assert_eq!(
        filter.clone().inbound(&reply, NOW + IDLE_UDP),
        dropped(DropReason::NoRule)
    );
    filter.outbound(&query, NOW + SECOND);
    assert_eq!(filter.inbound(&reply, NOW + IDLE_UDP + SECOND - 1), OPENED);
}

#[test]
fn tcp_lives_five_days_of_silence_and_is_not_brought_back_by_data() {
    for net in NETS {
        let mut filter = filter(&[]);
        let (ip, out) = (net.inbound(), net.outbound());
        filter.outbound(&out.tcp(40_000, 80, SYN, b""), NOW);
        let reply = ip.tcp(80, 40_000, ACK, b"");
        assert_eq!(filter.clone().inbound(&reply, NOW + IDLE_TCP - 1), OPENED);
        filter.outbound(&out.tcp(40_000, 80, ACK, b""), NOW + IDLE_TCP);
        assert_eq!(filter.inbound(&reply, NOW + IDLE_TCP), no_flow());
        filter.outbound(&out.tcp(40_000, 80, SYN, b""), NOW + IDLE_TCP);
        assert_eq!(filter.inbound(&reply, NOW + IDLE_TCP), OPENED);
    }
}

#[test]
fn echo_replies_pass_only_after_our_request_with_the_same_identifier() {
    for net in NETS {
        // A rule does not help: nobody needs replies to what was not asked.
        let mut filter = filter(&[net.allow(0, 65535, &[])]);
        let ip = net.inbound();
        let unasked = dropped(DropReason::EchoReply);
        assert_eq!(filter.inbound(&ip.echo_reply(7, 1, b""), NOW), unasked);
        filter.outbound(&net.outbound().echo_request(7, 1, b""), NOW);
        assert_eq!(filter.inbound(&ip.echo_reply(7, 1, b""), NOW), OPENED);
        assert_eq!(filter.inbound(&ip.echo_reply(8, 1, b""), NOW), unasked);
        let other = Ip::new(net.other, net.us).echo_reply(7, 1, b"");
        assert_eq!(filter.inbound(&other, NOW), unasked);

        let late = filter
            .clone()
            .inbound(&ip.echo_reply(7, 1, b""), NOW + IDLE_ECHO);
        assert_eq!(late, unasked);
        assert_eq!(
            filter.inbound(&ip.echo_reply(7, 1, b""), NOW + IDLE_ECHO - 1),
            OPENED
        );
    }
}

#[test]
fn a_ping_that_we_answer_opens_nothing() {
    for net in NETS {
        let mut filter = filter(&[net.allow(22, 22, &[])]);
        assert_eq!(
            filter.inbound(&net.inbound().echo_request(7, 1, b""), NOW),
            ACL
        );
        filter.outbound(&net.outbound().echo_reply(7, 1, b""), NOW);
        filter.set_rules(Rules::default());
        let ping = net.inbound().echo_request(7, 2, b"");
        assert_eq!(filter.inbound(&ping, NOW), dropped(DropReason::NoRule));
        let reply = net.inbound().echo_reply(7, 2, b"");
        assert_eq!(filter.inbound(&reply, NOW), dropped(DropReason::EchoReply));
    }
}

#[test]
fn errors_pass_only_about_packets_of_flows_that_we_opened() {
    let passes = Verdict::Accept(AcceptReason::IcmpError);
    let unknown = dropped(DropReason::IcmpError);
    for net in NETS {
        let out = net.outbound();
        for sent in [
            out.tcp(40_000, 80, SYN, b""),
            out.udp(40_000, 53, &[0; 500]),
            out.sctp(40_000, 53, &[0; 20]),
            out.echo_request(7, 1, &[0; 100]),
            // Too big for a tunnel on the way: protocols without ports need it as well.
            out.raw(47, &[0; 500]),
        ] {
            // Routers on the way send errors too, not only the addressee.
            for router in [net.peer, net.other, net.foreign] {
                let ip = Ip::new(router, net.us);
                let mut fresh = filter(&[rule(&["*"], &[("*", 0, 65535)], &[])]);
                for error in [ip.too_big(&sent, 1280), ip.unreachable(&sent, 576)] {
                    let mut opened = fresh.clone();
                    opened.outbound(&sent, NOW);
                    assert_eq!(fresh.inbound(&error, NOW), unknown);
                    assert_eq!(opened.inbound(&error, NOW), passes);
                }
            }
        }
    }
}

#[test]
fn errors_pass_about_our_part_of_flows_that_rules_admit_now() {
    let passes = Verdict::Accept(AcceptReason::IcmpError);
    let unknown = dropped(DropReason::IcmpError);
    for net in NETS {
        let (ip, out) = (net.inbound(), net.outbound());
        for (theirs, ours) in [
            (
                ip.tcp(40_000, 22, ACK, b""),
                out.tcp(22, 40_000, ACK, &[0; 900]),
            ),
            (ip.udp(40_000, 22, b""), out.udp(22, 40_000, &[0; 900])),
            (ip.echo_request(7, 1, b""), out.echo_reply(7, 1, &[0; 900])),
            (ip.raw(47, b""), out.raw(47, &[0; 900])),
        ] {
            let rules = [net.allow(0, 65535, &[6, 17, 47])];
            let mut filter = filter(&rules);
            let error = ip.too_big(&ours, 1000);
            assert_eq!(filter.inbound(&error, NOW), unknown);
            assert_eq!(filter.inbound(&theirs, NOW), ACL);
            filter.outbound(&ours, NOW);
            assert_eq!(filter.inbound(&error, NOW), passes);
            filter.set_rules(parsed(&rules));
            assert_eq!(filter.inbound(&error, NOW), passes);
            filter.set_rules(Rules::default());
            assert_eq!(filter.inbound(&error, NOW), unknown);
        }
    }
}

#[test]
fn a_flow_that_was_only_admitted_dies_of_silence_for_errors_too() {
    let net = NETS[0];
    let mut filter = filter(&[net.allow(22, 22, &[17])]);
    filter.inbound(&net.inbound().udp(40_000, 22, b""), NOW);
    let error = net
        .inbound()
        .too_big(&net.outbound().udp(22, 40_000, &[0; 900]), 600);
    let at = |now| filter.clone().inbound(&error, now);
    assert_eq!(
        at(NOW + IDLE_UDP - 1),
        Verdict::Accept(AcceptReason::IcmpError)
    );
    assert_eq!(at(NOW + IDLE_UDP), dropped(DropReason::IcmpError));
}

#[test]
fn an_error_goes_to_whoever_sent_what_it_quotes() {
    for net in NETS {
        let mut filter = filter(&[]);
        let sent = net.outbound().udp(40_000, 53, b"");
        filter.outbound(&sent, NOW);
        let astray = Ip::new(net.peer, net.lan).unreachable(&sent, 576);
        assert_eq!(filter.inbound(&astray, NOW), dropped(DropReason::IcmpError));
    }
}

#[test]
fn a_quote_of_eight_bytes_suffices_and_of_fewer_does_not() {
    for net in NETS {
        let header = if net.us.is_ipv4() { 20 } else { 40 };
        for sent in [
            net.outbound().tcp(40_000, 80, SYN, b""),
            net.outbound().udp(40_000, 80, b""),
            net.outbound().echo_request(7, 1, b""),
        ] {
            let mut filter = filter(&[]);
            filter.outbound(&sent, NOW);
            for quoted in 0..=sent.len() {
                let error = net.inbound().unreachable(&sent, quoted);
                let verdict = filter.inbound(&error, NOW);
                let accepted = matches!(verdict, Verdict::Accept(_));
                assert!(
                    accepted || quoted < header + 8,
                    "{quoted} bytes: {verdict:?}"
                );
                assert!(
                    !accepted || quoted >= header + 4,
                    "{quoted} bytes: {verdict:?}"
                );
            }
        }
    }
}

#[test]
fn errors_refresh_nothing() {
    let net = NETS[0];
    let mut filter = filter(&[]);
    let sent = net.outbound().udp(40_000, 53, b"");
    filter.outbound(&sent, NOW);
    filter.inbound(&net.inbound().unreachable(&sent, 576), NOW + IDLE_UDP - 1);
    let reply = net.inbound().udp(53, 40_000, b"");
    assert_eq!(
        filter.inbound(&reply, NOW + IDLE_UDP),
        dropped(DropReason::NoRule)
    );
}

#[test]
fn inbound_packets_never_push_out_what_we_opened() {
    let net = NETS[0];
    let mut filter = filter(&[net.allow(0, 65535, &[])]);
    filter.outbound(&net.outbound().udp(40_000, 53, b""), NOW);
    for port in 0..=u16::MAX {
        filter.inbound(&net.inbound().udp(port, 1000, b""), NOW);
        filter.inbound(&net.inbound().tcp(port, 1000, SYN, b""), NOW);
    }
    assert_eq!(
        filter.inbound(&net.inbound().udp(53, 40_000, b""), NOW),
        OPENED
    );
}

#[test]
fn udp_that_the_peer_began_becomes_ours_after_the_peers_silence() {
    let net = NETS[0];
    let mut filter = filter(&[net.allow(500, 500, &[17])]);
    let (theirs, ours) = (
        net.inbound().udp(500, 500, b""),
        net.outbound().udp(500, 500, b""),
    );
    filter.inbound(&theirs, NOW);
    filter.set_rules(Rules::default());
    filter.outbound(&ours, NOW + IDLE_UDP - 1);
    let cut = dropped(DropReason::NoRule);
    assert_eq!(filter.inbound(&theirs, NOW + IDLE_UDP - 1), cut);
    // What was cut has not kept the flow alive: now our side begins it.
    filter.outbound(&ours, NOW + IDLE_UDP);
    assert_eq!(filter.inbound(&theirs, NOW + IDLE_UDP), OPENED);
}

#[test]
fn protocols_without_ports_get_no_answers_without_a_rule() {
    for net in NETS {
        let mut filter = filter(&[]);
        filter.outbound(&net.outbound().raw(47, b""), NOW);
        let answer = net.inbound().raw(47, b"");
        assert_eq!(filter.inbound(&answer, NOW), dropped(DropReason::NoRule));
    }
}
